"""What an index reads: ranges `[a : b]` of sizes, entries by an input of type index, and rows by whole numbers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ..sites import TensorType
from ..sizes import Size
from ..syntax.nodes import Expr, Index, Name, Slice
from .integers import beyond
from .primitives import Reporter
from .values import POISON, IndexType, NumberType, Poison, Value, WordType, join


#: Under which names the numbers of the tokens in their text are known (`positions` itself is the word for a domain), and those of
#: the rows that a prompt put among them (`inserted`).
POSITIONS, INSERTED = ":positions", ":inserted"
_NUMBERS = {"ids": "ids", "positions": POSITIONS, "inserted": INSERTED}


def numbers_named(item: Any) -> str | None:
    """Under which name the numbers are known by which an index reads, where they are those of the tokens."""
    return _NUMBERS.get(item.id) if isinstance(item, Name) else None


def token_indices(nodes: Iterable[Any]) -> frozenset[str]:
    """Which whole numbers of the tokens themselves tensors are read by: ``ids``, `POSITIONS`, `INSERTED`."""
    items = [i for n in nodes if isinstance(n, Index) for i in n.items]
    return frozenset(name for i in items if (name := numbers_named(i)) is not None)


def indexed(inf: Reporter, e: Index) -> Value:
    """Ranges `[a : b]` of sizes; an input of type index picks an entry of a size for each example of the batch, and whole
    numbers [n] give n of them: the sizes of the numbers stand in the place of the one that they read."""
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
    whole = a.type.sizes
    sizes: list[tuple[Size, ...] | None] = [(s,) for s in whole]
    for i, item in enumerate(e.items):
        if isinstance(item, Slice):
            length = _range(inf, item, whole[i])
            if length is None:
                return Value(POISON)
            sizes[i] = (length,)
            continue
        picked = _picked(inf, item, a.type, whole[i])
        if isinstance(picked.type, Poison):
            return picked
        axes, own = (
            (picked.type.axes, picked.type.sizes) if isinstance(picked.type, IndexType) else (frozenset({"batch"}), ())
        )
        a = join((a, picked), TensorType(a.type.axes | axes, whole))  # type: ignore[union-attr]
        sizes[i] = own
    return a.typed(TensorType(a.type.axes, tuple(s for found in sizes for s in found)))  # type: ignore[union-attr]


def _range(inf: Reporter, item: Slice, whole: Size) -> Size | None:
    low = _bound(inf, item.low) if item.low is not None else Size.of(0)
    high = _bound(inf, item.high) if item.high is not None else whole
    if low is None or high is None:
        return None
    low = whole + low if low.below_zero else low
    high = whole + high if high.below_zero else high
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
    here = inf.names.get(numbers_named(item) or "")
    if here is not None:
        v = here
    if isinstance(v.type, IndexType):
        return _within(inf, item, v, whole, size)
    if not isinstance(v.type, WordType) or v.type.what != "index":
        return inf.fail("E0319", f"a size is read by a range `[a : b]`, by an input of type index or by whole numbers, not by {v.type}",
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


def _within(inf: Reporter, item: Expr, v: Value, whole: TensorType, size: Size) -> Value:
    """Whole numbers with which a size of a tensor is read, which must be less than it where both are known."""
    assert isinstance(v.type, IndexType)
    if beyond(v.type.below, size):
        return inf.fail("E0363", f"the numbers are below {v.type.below}, and this size is {size}", item.span,
                         where=inf.bindings(v.type.below, size), help=f"draw numbers below {size}, or read a tensor of the size {v.type.below}")  # fmt: skip
    shared = sorted(v.type.axes & whole.axes) or ["head"] * ({"head", "group"} <= v.type.axes | whole.axes)
    if shared:
        return inf.fail("E0363", f"this has a value for each {shared[0]} already, as the numbers have: {whole}", item.span,
                         help=f"declare the numbers or the tensor without the axis `{shared[0]}` (`per site`)")  # fmt: skip
    return v


def _bound(inf: Reporter, e: Expr) -> Size | None:
    v = inf.infer(e)
    if isinstance(v.type, NumberType) and v.type.size is not None:
        return v.type.size
    if not isinstance(v.type, Poison):
        inf.fail("E0319", f"a range's end is a whole number, not {v.type}", e.span)
    return None
