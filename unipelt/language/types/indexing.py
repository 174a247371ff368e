"""What an index reads: ranges `[a : b]` of sizes, and entries by an input of type index."""

from __future__ import annotations

from ..sites import TensorType
from ..sizes import Size
from ..syntax.nodes import Expr, Index, Slice
from .primitives import Reporter
from .values import POISON, NumberType, Poison, Value, WordType, join


def indexed(inf: Reporter, e: Index) -> Value:
    """Ranges `[a : b]` of sizes; an input of type index picks an entry of a size for each example of the batch."""
    a = inf.infer(e.value)
    if isinstance(a.type, Poison):
        return a
    if not isinstance(a.type, TensorType) or len(e.items) > len(a.type.sizes):
        return inf.fail(
            "E0319",
            f"this has no {len(e.items)} sizes to index: {a.type}",
            e.span,
            help="write one range or index for each size, from the first on",
        )
    sizes: list[Size | None] = list(a.type.sizes)
    for i, item in enumerate(e.items):
        if isinstance(item, Slice):
            sizes[i] = _range(inf, item, a.type.sizes[i])
            if sizes[i] is None:
                return Value(POISON)
            continue
        picked = _picked(inf, item, a.type, a.type.sizes[i])
        if isinstance(picked.type, Poison):
            return picked
        a = join((a, picked), TensorType(a.type.axes | {"batch"}, a.type.sizes))
        sizes[i] = None
    return a.typed(TensorType(a.type.axes, tuple(s for s in sizes if s is not None)))  # type: ignore[union-attr]


def _range(inf: Reporter, item: Slice, whole: Size) -> Size | None:
    low = _bound(inf, item.low) if item.low is not None else Size.of(0)
    high = _bound(inf, item.high) if item.high is not None else whole
    if low is None or high is None:
        return None
    low = whole + low if (low.number or 0) < 0 else low
    high = whole + high if (high.number or 0) < 0 else high
    size = high - low
    n = size.number
    if n is not None and n < 1:
        inf.fail("E0319", "this range is empty", item.span)
    elif (low.number or 0) < 0 or ((whole - high).number or 0) < 0:
        inf.fail("E0319", f"this range leaves the size {whole}", item.span)
    else:
        return size
    return None


def _picked(inf: Reporter, item: Expr, whole: TensorType, size: Size) -> Value:
    """The index with which a size of a tensor is read."""
    v = inf.infer(item)
    if isinstance(v.type, Poison):
        return v
    if not isinstance(v.type, WordType) or v.type.what != "index":
        return inf.fail("E0319", f"a size is read by a range `[a : b]` or by an input of type index, not by {v.type}",
                         item.span)  # fmt: skip
    if v.type.word != size:
        return inf.fail("E0363", f"the index counts {v.type.word}, and this size is {size}", item.span,
                         where=inf.bindings(v.type.word, size))  # fmt: skip
    if "batch" in whole.axes:
        return inf.fail(
            "E0363",
            f"this has a value for each example already: {whole}",
            item.span,
            help="leave this index out: it picks from what is the same for every example, and once",
        )
    return v


def _bound(inf: Reporter, e: Expr) -> Size | None:
    v = inf.infer(e)
    if isinstance(v.type, NumberType) and v.type.size is not None:
        return v.type.size
    if not isinstance(v.type, Poison):
        inf.fail("E0319", f"a range's end is a whole number, not {v.type}", e.span)
    return None
