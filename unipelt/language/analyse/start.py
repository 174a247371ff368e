"""What an edit is before the first step: its meaning with every tensor at its starting value, as far as that is known.

A start of zeros, ones or a constant is a value; a draw is not 0, and what is multiplied by it stays. So "the identity"
is proved, and "not the identity" says which draw stands in the way.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..types.algebra import ONE, Atom, Term, add, number, sum_of, times
from ..types.primitives import PRIMITIVES
from .reader import Learned
from ..sizes import Size
from ..types.values import NumberType, Value


def at_start(t: Term, tensors: Mapping[Any, Learned]) -> Term:
    """The term with starting values in place of tensors."""
    total = sum_of([], t.sizes)
    for factors, c in t.products:
        product = number(c)
        for a in factors:
            product = times(product, _atom(a, tensors))
        total = add(total, Term(product.products, t.sizes))
    return total


def _atom(a: Atom, tensors: Mapping[Any, Learned]) -> Term:
    plain = Term((((a,), ONE),), a.sizes)
    if a.kind == "tensor":
        value = _value(tensors[a.parts[0]])
        return plain if value is None else Term(number(value).products, a.sizes)
    if a.kind in ("read", "call") and not any(isinstance(p, (Atom, Term)) for p in a.parts):
        return plain
    if a.kind == "chain":
        parts = [_atom(p, tensors) for p in a.parts]
        if any(not p.products for p in parts):
            return sum_of([], a.sizes)
        return plain
    if a.kind == "times":
        out = number(1)
        for p in a.parts:
            out = times(out, _atom(p, tensors))
        return Term(out.products, a.sizes)
    if a.kind == "turned":
        inner = _atom(a.parts[0], tensors)
        return plain if inner.products else sum_of([], a.sizes)
    if a.kind in ("sum", "sized"):
        inner = at_start(a.parts[0], tensors)
        return inner if not inner.products or _constant(inner) is not None else plain
    name, *args = a.parts
    values = [at_start(v, tensors) if isinstance(v, Term) else v for v in args]
    first = values[0] if values else None
    if name == "**" and _is_zero(first) and isinstance(values[1], Term) and (power := _constant(values[1])) is not None:
        return sum_of([], a.sizes) if (power.number or 0) > 0 else plain
    if name == "if" and all(isinstance(v, Term) for v in values[1:]) and values[1].products == values[2].products:
        return Term(values[1].products, a.sizes)  # whatever the condition says
    if isinstance(first, Term):
        known = _constant(first)
        if known is not None and name in PRIMITIVES and PRIMITIVES[name].elementwise:
            result = _curve(name, known)
            if result is not None:
                return Term(number(result).products, a.sizes)
        if not first.products and name in PRIMITIVES and PRIMITIVES[name].linear:
            return sum_of([], a.sizes)
        if name == "concat" and all(isinstance(v, Term) and not v.products for v in values):
            return sum_of([], a.sizes)
    return plain


_COMPARISONS = ("==", "!=", "<=", ">=", "<", ">")


def called(part: Any) -> set[str]:
    """The names of all calls in a term."""
    if isinstance(part, Term):
        return set().union(*(called(a) for factors, _ in part.products for a in factors))
    if not isinstance(part, Atom):
        return set()
    own = {str(part.parts[0])} if part.kind == "call" else set()
    return own.union(*(called(p) for p in part.parts))


def _is_zero(t: Any) -> bool:
    return isinstance(t, Term) and not t.products


def compares(part: Any) -> bool:
    """Whether a comparison takes part, which may be false everywhere and so make a zero of what is drawn."""
    if isinstance(part, Term):
        return any(compares(a) for factors, _ in part.products for a in factors)
    if not isinstance(part, Atom):
        return False
    return (part.kind == "call" and part.parts[0] in _COMPARISONS) or any(compares(p) for p in part.parts)


def _value(t: Learned) -> Size | None:
    """The one number that all entries of a tensor start as."""
    if t.exact is not None:
        return None
    if t.start.startswith("constant("):
        text = t.start.removeprefix("constant(").removesuffix(")")
        try:
            return Size.of(float(text))
        except ValueError:
            return None
    return {"zeros()": Size.of(0), "ones()": ONE}.get(t.start)


def _constant(t: Term) -> Size | None:
    """The number that a term is, if it is one."""
    if not t.products:
        return Size.of(0)
    return t.products[0][1] if len(t.products) == 1 and not t.products[0][0] else None


def _curve(name: str, at: Size) -> float | None:
    n = at.number
    if n is None:
        return None
    value = Value(NumberType(None, float(n)))
    found = PRIMITIVES[name].rule(_Silent(), None, [value], []).type  # type: ignore[arg-type]
    return float(found.value) if isinstance(found, NumberType) and found.value is not None else None


class _Silent:
    """A checker that has nothing to report to: a curve outside of its domain has no value."""

    def fail(self, code: str, message: str, span: Any, **more: Any) -> Value:
        return Value(NumberType())

    def axis_size(self, name: str) -> Size | None:
        return None


#: Starts that are what they are told to be; all others are drawn.
_TOLD = ("zeros(", "ones(", "constant(", "identity(")


def random_tensors(t: Term, tensors: Mapping[Any, Learned]) -> list[str]:
    """The keys of the tensors in a term that are drawn at random."""
    return [k for k in _tensors(t) if tensors[k].exact is None and not tensors[k].start.startswith(_TOLD)]


def settled(t: Term, tensors: Mapping[Any, Learned]) -> list[str]:
    """The keys of the tensors in a term that start as they are told, but for zeros and for numbers, which cancel nothing."""
    told = [k for k in _tensors(t) if tensors[k].exact is not None or tensors[k].start.startswith(_TOLD)]
    return [k for k in told if tensors[k].start != "zeros()" and tensors[k].shape]


def undecided(part: Any, tensors: Mapping[Any, Learned]) -> bool:
    """Whether an activation that is an argument is asked for its value at a number, which another argument changes."""
    if isinstance(part, Term):
        return any(undecided(a, tensors) for factors, _ in part.products for a in factors)
    if not isinstance(part, Atom):
        return False
    asked = part.kind == "call" and str(part.parts[0]).startswith("?") and isinstance(part.parts[1], Term)
    if asked and _constant(at_start(part.parts[1], tensors)) is not None:
        return True
    return any(undecided(p, tensors) for p in part.parts)


def _tensors(t: Term) -> list[str]:
    found: dict[str, None] = {}

    def visit(node: Any) -> None:
        if isinstance(node, Term):
            for factors, _ in node.products:
                for a in factors:
                    visit(a)
        elif isinstance(node, Atom):
            if node.kind == "tensor":
                found[node.parts[0]] = None
            else:
                for p in node.parts:
                    visit(p)

    visit(t)
    return list(found)
