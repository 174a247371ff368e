"""The merged weight of an edit, derived from its meaning: ``W + alpha / r * A @ B``.

An edit that is affine in the input of a linear map beside it (`properties.mergeable`) makes of ``x @ W + bias`` another
such map. Its weight is what stands behind ``x`` in the normal form; what stands without ``x`` is its bias. Non-goal:
merging a model's weights (`runtime.merge` does that by numbers).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce
from typing import Any

from ..syntax import nodes as S
from ..types.algebra import TooLarge, ONE, Atom, Product, Term, add, atom, atoms, contract, scaled, sum_of, times, turn
from .method import analyse
from ..once import once
from ..types.typed import TypedRow
from ..ir import Method
from ..syntax.parser import parse_expression
from ..types.primitives import PRIMITIVES
from ..syntax.printer import to_text
from .row_verdicts import mergeable
from .reader import SiteState, reads
from ..sites import signature
from ..sizes import Size


@dataclass(frozen=True, slots=True)
class Merged:
    """What a row makes of the weight [in, out] and the bias of the map that absorbs it. ``names`` are the tensors' own,
    and those of declared axes."""

    row: str
    site: str
    into: str
    weight: Term
    bias: Term
    names: Mapping[Any, str]

    @property
    def weight_expression(self) -> S.Expr:
        return expression(self.weight, self.names)

    @property
    def bias_expression(self) -> S.Expr:
        return expression(self.bias, self.names)

    def to_json(self) -> dict[str, str]:
        return {"row": self.row, "site": self.site, "into": self.into, "weight": to_text(self.weight_expression),
                "bias": to_text(self.bias_expression)}  # fmt: skip


def merged(method: Method) -> list[Merged]:
    """The merged weights of a method's rows at each of their sites, where they can be derived."""
    found: list[Merged] = []
    for t in analyse(method).rows:
        try:
            one = merged_at(t)
        except TooLarge:
            continue
        found += [one] if one is not None else []
    return found


@once
def merged_at(t: TypedRow) -> Merged | None:
    """The weight and bias that absorb a row at a site; None where none can, or where no expression is found for it."""
    site, row = t.site, t.row
    if mergeable(t).value != "yes":
        return None
    found = signature(site.into)
    if found is None or site.has_heads or not found.has_weight:
        return None  # what stands behind some heads is a block of the map; a model's head is what it is
    scope = dict(found.scope)
    W, bias = (atom("read", tuple(s.bind(t.sizes) for s in scope[n].sizes), n) for n in ("W", "bias"))
    place = SiteState(site.name, {}, evaluation=True)
    before = site.side == "input"
    if not before and not site.has_weight:
        place.h = add(contract(atom("read", W.sizes[:1], "x"), W), bias)
    place.read(t)
    out = add(contract(place.out, W), bias) if before else place.out
    halves = _halves(out, "h" if before else "x", (W.sizes[0], W.sizes[1]))
    if halves is None:
        return None
    names = {k: k.split("/")[1].removeprefix("gate.") for k in place.tensors} | place.axes
    made = Merged(row.name, site.name, site.into, *halves, names)
    try:
        _ = made.weight_expression, made.bias_expression
    except LookupError:
        return None
    return made


@once
def needs_bias(t: TypedRow) -> bool:
    """Whether a map that absorbs a row needs a bias, whatever the map's own: a term of the new ``h`` reads nothing of a pass."""
    if t.site.is_weight or mergeable(t).value != "yes":
        return False
    place = SiteState(t.site.name, {}, evaluation=True)
    place.read(t)
    return not _vanishes(place.out)


def _vanishes(part: Any) -> bool:
    """Whether what is affine in what a pass gives is 0 where that is 0: each summand has a factor that is."""
    if isinstance(part, Term):
        return all(any(map(_vanishes, factors)) for factors, _ in part.products)
    if part.kind == "read":
        return part.parts[0] != "W"
    inner = [p for p in part.parts if isinstance(p, (Atom, Term))]
    if part.kind in ("chain", "times"):
        return any(map(_vanishes, inner))
    if part.kind != "call":
        return bool(inner) and all(map(_vanishes, inner))
    name, entry = part.parts[0], PRIMITIVES.get(str(part.parts[0]))
    if not reads(part) - {"W"}:
        return False
    if name in ("concat", "if"):
        return all(map(_vanishes, inner[name == "if" :]))
    return any(map(_vanishes, inner[: 2 if entry is not None and entry.bilinear else 1]))


def _halves(t: Term, source: str, sizes: tuple[Size, Size]) -> tuple[Term, Term] | None:
    """The matrix behind the input and what does not read it; None where the input stands in no product of its own."""
    weight, bias = sum_of([], sizes), sum_of([], sizes[1:])
    for factors, c in t.products:
        hits = [f for f in factors if _reads(f, source)]
        others = tuple(f for f in factors if f not in hits)
        if not hits:
            bias = add(bias, Term(((others, c),), sizes[1:]))
            continue
        part = _behind(hits[0], source) if len(hits) == 1 else None
        if part is None:
            return None
        weight = add(weight, scaled(times(part, _product(others)), c))
    return Term(weight.products, sizes), Term(bias.products, sizes[1:])


def _behind(a: Atom, source: str) -> Term | None:
    """The matrix of a product of matrices whose first factor is the input, perhaps times a vector."""
    if a.kind != "chain" or any(_reads(p, source) for p in a.parts[1:]):
        return None
    first, *rest = a.parts
    matrix = reduce(contract, (Term((((p,), ONE),), p.sizes) for p in rest))
    if first.kind == "read":
        return matrix
    if first.kind == "times":
        vectors = tuple(p for p in first.parts if not _reads(p, source))
        inputs = [p for p in first.parts if _reads(p, source)]
        if len(inputs) == 1 and inputs[0].kind == "read":
            return turn(times(turn(matrix), _product(vectors)))  # a vector at the input scales the rows
    return None


def _product(factors: Product) -> Term:
    return reduce(times, (Term((((f,), ONE),), f.sizes) for f in factors), Term((((), ONE),), ()))


def _reads(a: Any, source: str) -> bool:
    return source in reads(a)


# ---------------------------------------------------------------- as expressions


def expression(t: Term, names: Mapping[Any, str]) -> S.Expr:
    """A normal form as an expression of the language, the base's own first; `LookupError` where it has no words for it."""
    parts = [(_factors(factors, c, names), any(_learned(f) for f in factors)) for factors, c in t.products]
    parts.sort(key=lambda p: p[1])
    total: S.Expr | None = None
    for (sign, e), _ in parts:
        if total is None:
            total = e if sign > 0 else S.Negative(e)
        else:
            total = S.Binary("+" if sign > 0 else "-", total, e)
    return total if total is not None else S.Number(0)


def _learned(a: Any) -> bool:
    return any(found.kind == "tensor" for found in atoms(a))


def _factors(factors: Product, c: Size, names: Mapping[Any, str]) -> tuple[int, S.Expr]:
    """A summand, its sign apart."""
    n = c.number
    sign = -1 if (n is not None and n < 0) else 1
    c = c if sign > 0 else -c
    # what has no sizes first, products of matrices last
    ordered = sorted(factors, key=lambda f: (len(f.sizes), f.kind == "chain", f.text))
    shown = [_atom(f, names) for f in ordered]
    if c != ONE or not shown:
        shown.insert(0, _number(c))
    return sign, reduce(lambda a, b: S.Binary("*", a, b), shown)


def _word(p: str, names: Mapping[Any, str]) -> S.Expr:
    """An argument that is no term: a domain, a function, or an axis, which a row has given a name."""
    return S.Name(names[p]) if p in names else parse_expression(p)


def _number(c: Size) -> S.Expr:
    n = c.number
    if n is not None and n.denominator != 1:
        try:
            return S.Number(float(n))
        except OverflowError:
            raise LookupError(str(n)) from None
    return parse_expression(c.text)


def _atom(a: Atom, names: Mapping[Any, str]) -> S.Expr:
    match a.kind:
        case "read":
            return S.Name(a.parts[0])
        case "tensor":
            return S.Name(names.get(a.parts[0], str(a.parts[0])))
        case "turned":
            return S.Attr(_atom(a.parts[0], names), "T")
        case "chain":
            return reduce(lambda x, y: S.Binary("@", x, y), [_atom(p, names) for p in a.parts])
        case "times":
            return reduce(lambda x, y: S.Binary("*", x, y), [_atom(p, names) for p in a.parts])
        case "sum" | "sized":
            return expression(a.parts[0], names)
    name, *args = a.parts
    shown = [expression(p, names) if isinstance(p, Term) else _word(str(p), names) for p in args]
    if name == "1 /":
        return S.Binary("/", S.Number(1), shown[0])
    if name == "**":
        return S.Binary("**", shown[0], shown[1])
    if name == "if":
        return S.Choose(shown[1], shown[0], shown[2])
    if name.startswith("[") and len(shown) == 1:
        indexed: Any = parse_expression(f"t{name}")
        return S.Index(shown[0], indexed.items)
    plain = name.removeprefix("?")
    if name in PRIMITIVES or plain != name:
        return S.Apply(S.Name(plain), tuple(S.Arg(e) for e in shown))
    if plain.isidentifier() and not shown:
        return S.Name(plain)
    raise LookupError(name)
