"""Primitives that move the last size to and from an axis that a form declares: blocks, chunks, pieces of a vector."""

from __future__ import annotations

from ..sites import TensorType
from ..sizes import Size
from ..syntax.nodes import Expr, Span
from .primitive import Reporter, primitive
from .values import POISON, Poison, Value, WordType, is_whole, join


def _axis(check: Reporter, name: str, over: Value, expr: Expr) -> tuple[str, Size] | None:
    """The declared axis that an argument names, with its size; None where it is none, which is said."""
    what = over.type
    axis = str(what.word) if isinstance(what, WordType) and what.what == "axis" else ""
    size = check.axes.get(axis)
    if size is not None:
        return axis, size
    if not isinstance(what, Poison):
        check.fail("E0334", f"`{name}` takes an axis that this row declares, not {axis and f'the axis `{axis}`' or what}", expr.span,
                   help="declare it before this line, as in `axis block = 4`")  # fmt: skip
    return None


def _read(check: Reporter, name: str, args: list[Value], exprs: list[Expr]) -> tuple[str, Size] | None:
    """The axis of a word that reads a tensor with a size and a declared axis; None where one of the two is none, which is said."""
    found, t = _axis(check, name, args[1], exprs[1]), args[0].type
    if found is not None and (not isinstance(t, TensorType) or not t.sizes):
        check.fail("E0331", f"`{name}` takes a tensor with a size, not {t}", exprs[0].span)
        return None
    return found


@primitive("split", (2, 2), "split(z, axis): the last size n b as the declared axis, of size n, and the last size b; "
           "entry i b + j goes to entry i of the axis, place j", linear=True)  # fmt: skip
def _split(check: Reporter, span: Span, args: list[Value], exprs: list[Expr]) -> Value:
    found = _read(check, "split", args, exprs)
    if found is None:
        return Value(POISON)
    a, (axis, n) = args[0], found
    assert isinstance(a.type, TensorType)
    if axis in a.type.axes:
        return check.fail("E0331", f"this has the axis `{axis}` already: {a.type}", exprs[0].span,
                          help="declare a second axis of that size, and split along that")  # fmt: skip
    last = a.type.sizes[-1]
    size = last / n
    if size.number is not None and (size.number.denominator != 1 or size.number < 1):
        return check.fail("E0338", f"the size {last} does not split into {n} equal pieces", exprs[0].span,
                          help=f"`{axis}` has {n} entries; choose a number that divides {last}")  # fmt: skip
    return a.typed(TensorType(a.type.axes | {axis}, (*a.type.sizes[:-1], size)))


@primitive("join", (2, 2), "join(y, axis): the inverse of `split`: the axis, of size n, and the last size b as one last size n b",
           linear=True)  # fmt: skip
def _join(check: Reporter, span: Span, args: list[Value], exprs: list[Expr]) -> Value:
    found = _read(check, "join", args, exprs)
    if found is None:
        return Value(POISON)
    a, (axis, n) = args[0], found
    assert isinstance(a.type, TensorType)
    if axis not in a.type.axes:
        return check.fail("E0335", f"this value has no axis `{axis}` to join: {a.type}", exprs[0].span,
                          help="split it along that axis, or give a tensor that is read here `per` that axis")  # fmt: skip
    return a.typed(TensorType(a.type.axes - {axis}, (*a.type.sizes[:-1], n * a.type.sizes[-1])))


@primitive("roll", (2, 3), "roll(x, k): the last size (or the one given) moved on by k places, those at the end to the front",
           linear=True)  # fmt: skip
def _roll(check: Reporter, span: Span, args: list[Value], exprs: list[Expr]) -> Value:
    a = args[0]
    if not isinstance(a.type, TensorType) or not a.type.sizes:
        return check.fail("E0331", f"`roll` takes a tensor with a size, not {a.type}", exprs[0].span)
    for what, expr in zip(args[1:], exprs[1:]):
        if not is_whole(what):
            return check.fail("E0331", f"`roll` moves by a whole number of places, not {what.type}", expr.span)
    at = args[2].type.value if len(args) > 2 else -1  # type: ignore[union-attr]
    if not isinstance(at, int) or not -len(a.type.sizes) <= at < len(a.type.sizes):
        return check.fail("E0333", f"`roll` has no such size to move in a value of type {a.type}", span)
    return join(args, a.type)
