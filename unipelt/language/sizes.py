"""Sizes as exact rational polynomials: symbols when checked, numbers when bound.

A size such as ``2 * d_in / n`` is a sum of monomials with rational coefficients; two sizes are equal exactly when
their normal forms are. What is no polynomial (``max``, ``ceil``, ``min``) becomes an opaque symbol named by its text.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction

Monomial = tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True)
class Size:
    """A polynomial: ``terms`` maps monomials (sorted symbol–exponent pairs) to non-zero coefficients."""

    terms: tuple[tuple[Monomial, Fraction], ...]

    @staticmethod
    def of(value: Size | float | Fraction | str) -> Size:
        if isinstance(value, Size):
            return value
        if isinstance(value, str):
            return Size((((((value, 1),), Fraction(1))),))
        number = Fraction(value)
        return Size((((), number),)) if number else Size(())

    @staticmethod
    def _make(terms: Mapping[Monomial, Fraction]) -> Size:
        return Size(tuple(sorted((m, c) for m, c in terms.items() if c)))

    def __add__(self, other: Size | int | Fraction) -> Size:
        total = dict(self.terms)
        for m, c in Size.of(other).terms:
            total[m] = total.get(m, Fraction(0)) + c
        return Size._make(total)

    def __neg__(self) -> Size:
        return Size(tuple((m, -c) for m, c in self.terms))

    def __sub__(self, other: Size | int | Fraction) -> Size:
        return self + (-Size.of(other))

    def __mul__(self, other: Size | int | Fraction) -> Size:
        total: dict[Monomial, Fraction] = {}
        for m1, c1 in self.terms:
            for m2, c2 in Size.of(other).terms:
                m = _times(m1, m2)
                total[m] = total.get(m, Fraction(0)) + c1 * c2
        return Size._make(total)

    def __truediv__(self, other: Size | int | Fraction) -> Size:
        divisor = Size.of(other)
        if len(divisor.terms) == 1:
            ((m, c),) = divisor.terms
            inverse = tuple((s, -e) for s, e in m)
            return self * Size(((inverse, 1 / c),))
        if not divisor.terms:
            raise ZeroDivisionError("a size is divided by zero")
        return Size.of(f"({self}) / ({divisor})")

    @property
    def number(self) -> Fraction | None:
        """The value, when no symbol is left."""
        if not self.terms:
            return Fraction(0)
        if len(self.terms) == 1 and self.terms[0][0] == ():
            return self.terms[0][1]
        return None

    @property
    def below_zero(self) -> bool:
        """Whether it is less than 0 whatever its symbols stand for, which are whole numbers of 1 or more: `-r`."""
        return bool(self.terms) and all(c < 0 for _, c in self.terms)

    @property
    def large(self) -> bool:
        """Whether it is none that a model could have, so that nothing is computed with it: a spec is untrusted text."""
        return len(self.terms) > 512 or any(
            max(c.numerator.bit_length(), c.denominator.bit_length()) > 512 or any(abs(e) > 64 for _, e in m)
            for m, c in self.terms
        )

    @property
    def symbols(self) -> frozenset[str]:
        return frozenset(s for m, _ in self.terms for s, _ in m)

    def bind(self, values: Mapping[str, Size | int]) -> Size:
        """The size with the given symbols replaced."""
        total = Size(())
        for m, c in self.terms:
            term = Size.of(c)
            for s, e in m:
                base = Size.of(values[s]) if s in values else Size.of(s)
                for _ in range(abs(e)):
                    term = term * base if e > 0 else term / base
            total = total + term
        return total

    @property
    def text(self) -> str:
        """The size as an expression of the language."""
        out = ""
        for m, c in self._printed():
            above = [s if e == 1 else f"{s} ** {e}" for s, e in m if e > 0]
            below = [s if e == -1 else f"{s} ** {-e}" for s, e in m if e < 0]
            head = [str(abs(c.numerator))] if abs(c.numerator) != 1 or not above else []
            below = [*below, *([str(c.denominator)] if c.denominator != 1 else [])]
            text = " * ".join(head + above) + "".join(f" / {b}" for b in below)
            out += (" - " if c < 0 else " + ") + text if out else ("-" if c < 0 else "") + text
        return out or "0"

    def _printed(self) -> list[tuple[Monomial, Fraction]]:
        """The terms, the highest degree first, as formulas are written."""
        return sorted(self.terms, key=lambda t: (-sum(e for _, e in t[0]), t[0]))

    def __str__(self) -> str:
        if not self.terms:
            return "0"
        out = ""
        for m, c in self._printed():
            above = [s if e == 1 else f"{s}^{e}" for s, e in m if e > 0]
            below = [s if e == -1 else f"{s}^{-e}" for s, e in m if e < 0]
            head = [] if abs(c) == 1 and above else [str(abs(c))]
            text = " ".join(head + above) + "".join(f" / {b}" for b in below)
            out += (" - " if c < 0 else " + ") + text if out else ("-" if c < 0 else "") + text
        return out


def _times(a: Monomial, b: Monomial) -> Monomial:
    total = dict(a)
    for s, e in b:
        total[s] = total.get(s, 0) + e
    return tuple(sorted((s, e) for s, e in total.items() if e))
