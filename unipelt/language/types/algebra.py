"""The algebra of the language in normal form: sums of products of factors, with what may be rearranged rearranged.

The rules are identities: sums and products commute, ``@`` is linear in both sides and associative over matrices,
transposing turns a product round. A normal form carries its sizes where its factors do not tell them (`firm`), since
what reduces a size depends on it. Non-goal: deciding every equality.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

from ..report.diagnostics import Diagnostic, PeltError
from ..sizes import Size
from ..syntax.nodes import NOWHERE

Sizes = tuple[Size, ...]
ONE = Size.of(1)
#: How much text a term may be: a few lines in which each reads the one before twice would else be a term without end.
MOST = 20_000


class TooLarge(PeltError):
    """A normal form would be larger than is worked out, so what depends on it is not known."""

    def __init__(self) -> None:
        super().__init__(
            Diagnostic("E0393", self.reason, NOWHERE, help="name fewer values that are read several times")
        )

    reason = (
        f"with every line in its place the edit is a formula of more than {MOST:,} characters, which is not worked out"
    )


@dataclass(frozen=True, slots=True)
class Atom:
    """One factor. ``parts`` are names, atoms, terms and sizes; ``text`` orders factors and is the same for equal ones."""

    kind: str  # read, tensor, turned, chain, times, sum, sized, call, unit
    parts: tuple[Any, ...]
    sizes: Sizes = field(compare=False)
    text: str = field(compare=False, repr=False)

    @staticmethod
    def of(kind: str, sizes: Sizes, *parts: Any) -> Atom:
        texts = [p.text if isinstance(p, (Atom, Term)) else str(p) for p in parts]
        if sum(map(len, texts)) > MOST:
            raise TooLarge
        inner = ", ".join(texts)
        return Atom(kind, parts, sizes, f"{kind}({inner})")


Product = tuple[Atom, ...]


@dataclass(frozen=True, slots=True)
class Term:
    """A sum of products with their coefficients, sorted; a number is the empty product."""

    products: tuple[tuple[Product, Size], ...]
    sizes: Sizes = field(compare=False)

    @property
    def text(self) -> str:
        return " + ".join(f"{c}·" + "·".join(a.text for a in p) for p, c in self.products) or "0"


def sum_of(products: Iterable[tuple[Product, Size]], sizes: Sizes) -> Term:
    total: dict[Product, Size] = {}
    length = 0
    for factors, c in products:
        length += sum(len(a.text) for a in factors) + len(c.terms)
        if length > 4 * MOST:  # before equal ones are brought together
            raise TooLarge
        total[factors] = total[factors] + c if factors in total else c
    kept = [(f, c) for f, c in total.items() if c.terms]
    return Term(tuple(sorted(kept, key=lambda p: [a.text for a in p[0]])), sizes)


def atoms(part: Any) -> Iterator[Atom]:
    """Every factor in a term or an atom, each before what it is made of."""
    todo: list[Any] = [part]
    while todo:
        node = todo.pop()
        if isinstance(node, Term):
            todo += [a for factors, _ in reversed(node.products) for a in reversed(factors)]
        elif isinstance(node, Atom):
            yield node
            todo += reversed(node.parts)


def number(value: Size | float | Fraction) -> Term:
    return sum_of([((), Size.of(value))], ())


def atom(kind: str, sizes: Sizes, *parts: Any) -> Term:
    return Term((((Atom.of(kind, sizes, *parts),), ONE),), sizes)


def call(sizes: Sizes, name: str, *parts: Term | str) -> Term:
    """A function of terms that the algebra does not look into; words are its other arguments."""
    return atom("call", sizes, name, *(firm(p) if isinstance(p, Term) else p for p in parts))


def stretched(a: Sizes, b: Sizes) -> Sizes:
    """The sizes of two operands aligned at the right, where a literal 1 stretches."""
    out: list[Size] = []
    for i in range(1, max(len(a), len(b)) + 1):
        s = a[-i] if i <= len(a) else None
        t = b[-i] if i <= len(b) else None
        out.insert(0, t if s is None or (t is not None and s == ONE) else s)  # type: ignore[arg-type]
    return tuple(out)


def firm(t: Term) -> Term:
    """The term, with its sizes where its factors do not tell them: ``z - z + 1`` is 1, and its sum is not 1."""
    implied: Sizes = ()
    for factors, _ in t.products:
        for f in factors:
            implied = stretched(implied, f.sizes)
    return t if implied == t.sizes else atom("sized", t.sizes, t, *t.sizes)


def add(a: Term, b: Term) -> Term:
    return sum_of([*a.products, *b.products], stretched(a.sizes, b.sizes))


def times(a: Term, b: Term) -> Term:
    if _length(a) * len(b.products) + _length(b) * len(a.products) > 4 * MOST:
        raise TooLarge
    products = [(tuple(sorted((*f, *g), key=lambda x: x.text)), c * d) for f, c in a.products for g, d in b.products]
    return sum_of(products, stretched(a.sizes, b.sizes))


def _length(t: Term) -> int:
    return sum(sum(len(a.text) for a in f) + len(c.terms) for f, c in t.products)


def scaled(t: Term, by: Size) -> Term:
    return sum_of([(f, c * by) for f, c in t.products], t.sizes)


# ---------------------------------------------------------------- products of matrices


@dataclass(frozen=True, slots=True)
class _Piece:
    """A summand as an operand of ``@``: what is a number at each position, and the one factor with sizes."""

    scalars: Product
    factor: Atom
    coefficient: Size


def _pieces(t: Term) -> list[_Piece]:
    """The summands of an operand; the whole sum as one factor where a summand would be stretched."""
    out: list[_Piece] = []
    for factors, c in t.products:
        others = tuple(f for f in factors if f.sizes)
        if not others or any(f.sizes != t.sizes for f in others):
            return [_Piece((), _whole(t), ONE)]
        scalars = tuple(f for f in factors if not f.sizes)
        out.append(_Piece(scalars, others[0] if len(others) == 1 else Atom.of("times", t.sizes, *others), c))
    return out


def _whole(t: Term) -> Atom:
    """The sum as one factor."""
    found = firm(t)
    return Atom.of("sum", t.sizes, t) if found is t else found.products[0][0][0]


def contract(a: Term, b: Term) -> Term:
    """``a @ b``: linear in both sides, associative where what stands between is a matrix."""
    sizes = a.sizes[:-1] + b.sizes[1:]
    for side, other in ((a, b), (b, a)):
        c = _times_unit(side)
        if c is not None:
            return Term(scaled(other, c).products, sizes)
    products: list[tuple[Product, Size]] = []
    for p in _pieces(a):
        for q in _pieces(b):
            left = p.factor.parts if p.factor.kind == "chain" else (p.factor,)
            right: tuple[Atom, ...] = (q.factor,)
            if q.factor.kind == "chain" and all(len(f.sizes) == 2 for f in q.factor.parts[:-1]):
                right = q.factor.parts
            joined = Atom.of("chain", sizes, *left, *right)
            factors = tuple(sorted((*p.scalars, *q.scalars, joined), key=lambda x: x.text))
            products.append((factors, p.coefficient * q.coefficient))
    return sum_of(products, sizes)


def unit(n: Size) -> Term:
    """The matrix I of n rows."""
    return atom("unit", (n, n), n)


def _times_unit(t: Term) -> Size | None:
    """The number c of a term that is c I."""
    if len(t.products) != 1 or [a.kind for a in t.products[0][0]] != ["unit"]:
        return None
    return t.products[0][1]


_INVERSE = {"split": "join", "join": "split"}


def regrouped(name: str, sizes: Sizes, t: Term, axis: str) -> Term:
    """``split(t, axis)`` or ``join(t, axis)``; each undoes the other."""
    if len(t.products) == 1:
        (factors, c), *_ = t.products
        if len(factors) == 1 and factors[0].kind == "call" and factors[0].parts[::2] == (_INVERSE[name], axis):
            return Term(scaled(factors[0].parts[1], c).products, sizes)
    return call(sizes, name, t, axis)


def turn(t: Term) -> Term:
    """``t.T``"""
    sizes = (*t.sizes[:-2], t.sizes[-1], t.sizes[-2])
    products = [
        (tuple(sorted((*p.scalars, _turned(p.factor)), key=lambda x: x.text)), p.coefficient) for p in _pieces(t)
    ]
    return sum_of(products, sizes)


def _turned(a: Atom) -> Atom:
    sizes = (*a.sizes[:-2], a.sizes[-1], a.sizes[-2])
    if a.kind == "turned":
        return a.parts[0]
    if a.kind == "unit":
        return a
    if a.kind == "chain" and all(len(p.sizes) == 2 for p in a.parts):
        return Atom.of("chain", sizes, *(_turned(p) for p in reversed(a.parts)))
    if a.kind == "times":
        return Atom.of("times", sizes, *sorted((_turned(p) for p in a.parts), key=lambda x: x.text))
    return Atom.of("turned", sizes, a)
