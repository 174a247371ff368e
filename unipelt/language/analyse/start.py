"""What an edit is before the first step: its meaning with every tensor at its starting value, as far as that is known.

A start of zeros, ones or a constant is a value; a draw is not 0, and what is multiplied by it stays. So "the identity"
is proved, and "not the identity" says which draw stands in the way.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce
from typing import Any

from ..types.algebra import ONE, Atom, Term, add, atoms, contract, number, regrouped, sum_of, times, turn, unit
from ..types.primitives import PRIMITIVES
from .reader import CARRY, Learned
from ..sizes import Size
from ..types.values import NumberType, Value


#: Among tensors: every value that is carried along depth is the first one.
FIRST_LAYER = "the first layer"


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
        learned = tensors[a.parts[0]]
        if learned.exact is not None and _is_another(a, tensors):
            return Term(at_start(learned.exact, tensors).products, a.sizes)
        value = learned.start_value
        return plain if value is None else Term(number(value).products, a.sizes)
    if a.kind == "read" and a.parts[0] in tensors:  # what the layer before had, where that is known to be 0
        return sum_of([], a.sizes)
    if a.kind in ("read", "call") and not any(isinstance(p, (Atom, Term)) for p in a.parts):
        return plain
    if a.kind == "chain":
        parts = [_atom(p, tensors) for p in a.parts]
        if any(not p.products for p in parts):
            return sum_of([], a.sizes)
        return Term(reduce(contract, parts).products, a.sizes) if _changed(a.parts, parts) else plain
    if a.kind == "times":
        out = number(1)
        for p in a.parts:
            out = times(out, _atom(p, tensors))
        return Term(out.products, a.sizes)
    if a.kind == "turned":
        inner = _atom(a.parts[0], tensors)
        if not inner.products:
            return sum_of([], a.sizes)
        if _constant(inner) is not None:
            return Term(inner.products, a.sizes)
        return turn(inner) if _changed(a.parts, [inner]) else plain
    if a.kind in ("sum", "sized"):
        inner = at_start(a.parts[0], tensors)
        decided = _constant(inner) is not None or (a.kind == "sum" and inner.products != a.parts[0].products)
        return Term(inner.products, a.sizes) if decided else plain
    name, *args = a.parts
    if name == CARRY:
        return _carried(a, tensors)
    values = [at_start(v, tensors) if isinstance(v, Term) else v for v in args]
    first = values[0] if values else None
    if name == "**" and _is_zero(first) and isinstance(values[1], Term) and (power := _constant(values[1])) is not None:
        return sum_of([], a.sizes) if (power.number or 0) > 0 else plain
    if name == "if" and all(isinstance(v, Term) for v in values[1:]) and values[1].products == values[2].products:
        return Term(values[1].products, a.sizes)  # whatever the condition says
    if isinstance(first, Term):
        known = _constant(first)
        if known is not None and name.startswith("["):  # ranges and entries of what is one number everywhere
            return Term(number(known).products, a.sizes)
        if known is not None and name in PRIMITIVES and PRIMITIVES[name].elementwise and len(values) == 1:
            result = _curve(name, known)
            if result is not None:
                return Term(number(result).products, a.sizes)
        if not first.products and (name.startswith("[") or (name in PRIMITIVES and PRIMITIVES[name].linear)):
            return sum_of([], a.sizes)
        if name == "givens" and _is_zero(values[1]):  # by no angle; matrices of zeros leave nothing of any pair
            return first if len(values[1].sizes) == 1 else sum_of([], a.sizes)
        if name == "cayley" and not first.products:
            return unit(a.sizes[-1]) if len(a.sizes) == 2 else plain
        if name in ("split", "join") and first.products != args[0].products and known is None:
            return regrouped(name, a.sizes, first, str(values[1]))
        if name in PRIMITIVES and PRIMITIVES[name].bilinear and (_is_zero(first) or _is_zero(values[1])):
            return sum_of([], a.sizes)
        if name == "concat":
            if known is not None and all(isinstance(v, Term) and _constant(v) == known for v in values):
                return Term(number(known).products, a.sizes)
    return plain


def _carried(a: Atom, tensors: Mapping[Any, Learned]) -> Term:
    """What is carried: 0 where it is at the first layer, and at the next one if it was before."""
    _, before, first, following = a.parts
    started = at_start(first, tensors)
    if FIRST_LAYER in tensors:
        return started
    known: dict[Any, Any] = {**tensors, before: None}
    if not started.products and not at_start(following, known).products:
        return started
    return Term((((a,), ONE),), a.sizes)


def _changed(before: Sequence[Atom], parts: Sequence[Term]) -> bool:
    """Whether some factors are other ones now, and none a plain number, of which there is no product of matrices."""
    return any(p.products != (((a,), ONE),) for a, p in zip(before, parts)) and all(_constant(p) is None for p in parts)


def _is_another(a: Atom, tensors: Mapping[Any, Learned]) -> bool:
    """Whether a factor is a tensor, perhaps turned, that starts as others do: by sums and products of these alone, or as entries of
    the base's own."""
    if a.kind == "turned":
        return isinstance(a.parts[0], Atom) and _is_another(a.parts[0], tensors)
    exact = tensors[a.parts[0]].exact if a.kind == "tensor" else None
    found = list(atoms(exact)) if exact is not None else []
    picks = [b for b in found if b.kind == "call" and str(b.parts[0]).startswith("[")]
    if len(picks) == 1 and all(b.kind in ("read", "tensor") for b in found if b is not picks[0]):
        return True
    return bool(found) and all(b.kind in ("tensor", "turned", "chain", "times") for b in found)


_COMPARISONS = ("==", "!=", "<=", ">=", "<", ">")


def called(part: Any) -> set[str]:
    """The names of all calls in a term."""
    return {str(a.parts[0]) for a in atoms(part) if a.kind == "call"}


def _is_zero(t: Any) -> bool:
    return isinstance(t, Term) and not t.products


def compares(part: Any) -> bool:
    """Whether a comparison takes part, which may be false everywhere and so make a zero of what is drawn."""
    return not called(part).isdisjoint(_COMPARISONS)


def calls_one_number(part: Any, tensors: Mapping[Any, Learned]) -> bool:
    """Whether something is called with one number everywhere: rows of what it gives may all be the same, and add up to 0."""
    calls = ([p for p in a.parts if isinstance(p, Term)] for a in atoms(part) if a.kind == "call")
    return any(args and all(_constant(at_start(p, tensors)) is not None for p in args) for args in calls)


def multiplies_one_number(part: Any, tensors: Mapping[Any, Learned]) -> bool:
    """Whether a product has a matrix that is one number everywhere, and not 0: its rows or columns are then the same, and their
    differences 0."""
    factors = (_constant(_atom(p, tensors)) for a in atoms(part) if a.kind == "chain" for p in a.parts)
    return any(c is not None and c.terms for c in factors)


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


def random_tensors(t: Term, tensors: Mapping[Any, Learned]) -> list[str]:
    """The keys of the tensors in a term that are drawn at random; whole numbers say where something stands, and add nothing."""
    return [k for k in tensors_of(t) if tensors[k].drawn and not tensors[k].whole]


def settled(t: Term, tensors: Mapping[Any, Learned]) -> list[str]:
    """The keys of the tensors in a term that start as they are told, but for zeros and for numbers, which cancel nothing."""
    return [
        k for k in tensors_of(t) if not tensors[k].drawn and tensors[k].start_value != Size.of(0) and tensors[k].shape
    ]


def undecided(part: Any, tensors: Mapping[Any, Learned]) -> bool:
    """Whether an activation that is an argument is asked for its value at a number, which another argument changes."""
    asked = (a.parts[1] for a in atoms(part) if a.kind == "call" and str(a.parts[0]).startswith("?"))
    return any(isinstance(t, Term) and _constant(at_start(t, tensors)) is not None for t in asked)


def may_cancel(extra: Term, drawn: Sequence[str]) -> bool:
    """Whether what is made of drawn tensors may come to nothing by equations that the algebra does not know: a rotation times its
    inverse. Not where some tensor stands in no summand that has two factors with such equations."""
    tied = [sum(map(_tied, factors)) for factors, _ in extra.products]
    if sum(tied) < 2:
        return False
    read = [{a.parts[0] for f in factors for a in atoms(f) if a.kind == "tensor"} for factors, _ in extra.products]
    return all(any(n > 1 and k in keys for n, keys in zip(tied, read)) for k in drawn)


def _tied(part: Any) -> int:
    """How many factors with equations of their own are in a term; a skew matrix, which alone makes nothing of a vector on both sides,
    counts twice."""
    entry = PRIMITIVES.get(str(part.parts[0])) if isinstance(part, Atom) and part.kind == "call" else None
    if entry is not None and entry.tied:
        return 2 if entry.name == "skew" else 1
    inner = (
        [f for factors, _ in part.products for f in factors] if isinstance(part, Term) else getattr(part, "parts", ())
    )
    return sum(map(_tied, inner))


def tensors_of(t: Term) -> list[str]:
    """The keys of the tensors that a term reads, each once, in the order of its text."""
    return list(dict.fromkeys(a.parts[0] for a in atoms(t) if a.kind == "tensor"))
