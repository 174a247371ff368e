"""Primitives with whole numbers that say where something stands: found, and filled in."""

from __future__ import annotations

from math import prod

from ..sites import SIZES, TensorType, united_axes
from ..sizes import Size
from ..syntax.nodes import Expr, Span
from .primitive import Reporter, primitive
from .values import CONSTANT, IndexType, NumberType, Value, join


def beyond(a: Size, b: Size) -> bool:
    """Whether one size is larger than another in every model that has these sizes."""
    left = a - b
    return bool(left.terms) and left.symbols <= SIZES.keys() and all(c > 0 for _, c in left.terms)


@primitive("top_indices", (2, 2), "top_indices(t, k): where the k largest entries of t stand, the largest first, counted row by row. "
           "For starts: t reads no token")  # fmt: skip
def _top_indices(check: Reporter, span: Span, args: list[Value], exprs: list[Expr]) -> Value:
    a, k = args
    if not isinstance(a.type, TensorType) or not a.type.sizes:
        return check.fail("E0331", f"`top_indices` takes a tensor with sizes, not {a.type}", exprs[0].span)
    if a.degree > CONSTANT or "batch" in a.type.axes:
        return check.fail("E0331", "`top_indices` finds places once and for all, and this reads the input", exprs[0].span,
                          help="for the largest entries of a token's own values compare them, as in `z * (z > b)`")  # fmt: skip
    if not isinstance(k.type, NumberType) or k.type.size is None:
        return check.fail("E0331", f"`top_indices` takes a whole number of entries, not {k.type}", exprs[1].span)
    if beyond(k.type.size, a.type.entries) or beyond(Size.of(1), k.type.size):
        return check.fail("E0372", f"there are {a.type.entries} entries, of which {k.type.size} cannot be taken", exprs[1].span,
                          help="take at least 1 and at most as many as there are")  # fmt: skip
    return join(args, IndexType(a.type.axes, (k.type.size,), a.type.entries))


@primitive("scatter", (3, 6), "scatter(v, I, p, q): a tensor [p, q] of zeros with the values v: [n] at the places I: [n], which count "
           "its entries row by row; scatter(R, I, p): a tensor [p, d] with the rows R: [n, d] at the places I; what meets at one place is "
           "added up", linear=True, indexes=True)  # fmt: skip
def _scatter(check: Reporter, span: Span, args: list[Value], exprs: list[Expr]) -> Value:
    v, places, *lengths = (a.type for a in args)
    if not isinstance(v, TensorType):
        return check.fail("E0331", f"`scatter` takes a tensor of values, not {v}", exprs[0].span)
    if not isinstance(places, IndexType):
        return check.fail("E0331", f"`scatter` takes whole numbers that say where, not {places}", exprs[1].span,
                          help="declare them, as in `frozen I: [n] ~ choice(d_in * d_out)`")  # fmt: skip
    at, rest = v.sizes[: len(places.sizes)], v.sizes[len(places.sizes) :]
    if at != places.sizes:
        return check.fail("E0312", f"there are values {v} and places {places.fits}", exprs[0].span,
                          where=check.bindings(*v.sizes, *places.sizes), help="give both the same sizes")  # fmt: skip
    sizes: list[Size] = []
    for t, e in zip(lengths, exprs[2:]):
        if not isinstance(t, NumberType) or t.size is None:
            return check.fail("E0331", f"`scatter` takes the sizes of what is filled, not {t}", e.span,
                              help="write them one after the other: `scatter(v, I, d_in, d_out)`")  # fmt: skip
        sizes.append(t.size)
    filled = prod(sizes, start=Size.of(1))
    if beyond(places.below, filled):
        what = "rows" if rest else "entries"
        return check.fail("E0363", f"the places are below {places.below}, and this has {filled} {what}", exprs[1].span,
                          where=check.bindings(places.below, filled), help=f"draw places below {filled}")  # fmt: skip
    return join(args, TensorType(united_axes(v.axes, places.axes), (*sizes, *rest)))


@primitive("nearest_indices", (2, 4), "nearest_indices(a, p): for each number of a the place among p that is nearest, from 0 to p - 1; nearest_indices(a, b, p, q): the places in "
           "the rows a and the columns b of [p, q], counted row by row")  # fmt: skip
def _nearest_indices(check: Reporter, span: Span, args: list[Value], exprs: list[Expr]) -> Value:
    half = len(args) // 2
    if len(args) != 2 * half:
        return check.fail("E0321", "`nearest_indices` takes numbers and how many places there are, both once or both twice", span,
                          help="write `nearest_indices(a, p)`, or `nearest_indices(a, b, p, q)`")  # fmt: skip
    where, lengths = args[:half], [v.type for v in args[half:]]
    for v, e in zip(where, exprs):
        if not isinstance(v.type, TensorType):
            return check.fail("E0331", f"`nearest_indices` takes a tensor of numbers, not {v.type}", e.span)
        if v.degree > CONSTANT or "batch" in v.type.axes:
            return check.fail("E0331", "`nearest_indices` says where something stands whatever the input is, and this reads the input", e.span,
                              help="give it tensors of the row, or what is made of them")  # fmt: skip
    sizes: list[Size] = []
    for t, e in zip(lengths, exprs[half:]):
        if not isinstance(t, NumberType) or t.size is None:
            return check.fail("E0331", f"`nearest_indices` takes a whole number of places, not {t}", e.span)
        sizes.append(t.size)
    found = (
        where[0] if half == 1 else check.aligned("nearest_indices", where[0], where[1], exprs[0].span, exprs[1].span)
    )
    if not isinstance(found.type, TensorType):
        return found
    return join((*args, found), IndexType(found.type.axes, found.type.sizes, prod(sizes, start=Size.of(1))))
