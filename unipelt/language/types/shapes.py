"""Primitives that change what sizes and axes a value has."""

from __future__ import annotations

from ..sites import TensorType, united_axes
from ..sizes import Size
from ..syntax.nodes import Expr, Span
from .primitive import Reporter, primitive
from .values import POISON, NumberType, Poison, Value, bend, join


@primitive("heads", (1, 1), "splits the last size into key/value heads: axis `group`, size d_head", linear=True)
def _heads(check: Reporter, span: Span, args: list[Value], exprs: list[Expr]) -> Value:
    (a,) = args
    if isinstance(a.type, Poison):
        return a
    d_head, d_kv, d_q = check.axis_size("d_head"), check.axis_size("d_kv"), check.axis_size("d_q")
    if d_head is None or not isinstance(a.type, TensorType) or not a.type.sizes:
        return check.fail("E0336", "`heads` splits a tensor whose last size is that of all heads, at a heads site", span,
                          help="modify attn.heads, or leave `heads` out")  # fmt: skip
    if a.type.axes & {"group", "head"}:
        return check.fail("E0336", f"`heads` splits a value into heads, and this has heads already: {a.type}", span,
                          help="a tensor at the heads is one for each head; write `per site` after it for one that is split")  # fmt: skip
    if a.type.sizes[-1] == d_kv:
        return a.typed(TensorType(a.type.axes | {"group"}, (*a.type.sizes[:-1], d_head)))
    if a.type.sizes[-1] == d_q:
        return a.typed(TensorType(a.type.axes | {"head"}, (*a.type.sizes[:-1], d_head)))
    return check.fail("E0336", f"the last size {a.type.sizes[-1]} is not the size of a set of heads", span,
                      help="declare the tensor with the size `d_kv` (of the keys' and values' heads) or `d_q` (of the queries')"
                      + (", or send it through `attn.k` first" if "attn.k" in check.bases else ""))  # fmt: skip


@primitive("concat", (2, 8), "joins tensors along their last size")
def _concat(check: Reporter, span: Span, args: list[Value], exprs: list[Expr]) -> Value:
    types = [a.type for a in args]
    if any(isinstance(t, Poison) for t in types):
        return join(args)
    if not all(isinstance(t, TensorType) and t.sizes for t in types):
        return check.fail("E0331", "`concat` joins tensors along their last size", span)
    tensors = [t for t in types if isinstance(t, TensorType)]
    if any(t.sizes[:-1] != tensors[0].sizes[:-1] for t in tensors):
        return check.fail("E0312", "only the last sizes of what `concat` joins may differ", span)
    axes = united_axes(*(t.axes for t in tensors))
    total = Size(())
    for t in tensors:
        total = total + t.sizes[-1]
    return join(args, TensorType(axes, (*tensors[0].sizes[:-1], total)))


@primitive("flip", (1, 1), "the rows of a tensor [.., l, d] in reverse order", linear=True)
def _flip(check: Reporter, span: Span, args: list[Value], exprs: list[Expr]) -> Value:
    (a,) = args
    if not isinstance(a.type, TensorType) or len(a.type.sizes) < 2:
        return check.fail("E0331", f"`flip` reverses the rows of a tensor [.., l, d], and this is {a.type}", span)
    return a


@primitive("lstm", (4, 4), "lstm(x, W, U, b): the hidden states [l, h] of one LSTM layer along the rows of x: [l, d], with "
           "W: [d, 4 h], U: [h, 4 h], b: [4 h] in the order input, forget, cell, output (torch's)")  # fmt: skip
def _lstm(check: Reporter, span: Span, args: list[Value], exprs: list[Expr]) -> Value:
    types = [a.type for a in args]
    if not all(isinstance(t, TensorType) for t in types):
        return check.fail("E0331", "`lstm` takes a tensor and the weights of a layer", span)
    x, W, U, b = (t for t in types if isinstance(t, TensorType))
    for t, n, expr in zip((x, W, U, b), (2, 2, 2, 1), exprs):
        if len(t.sizes) != n:
            return check.fail(
                "E0337", f"`lstm` takes x: [l, d], W: [d, 4 h], U: [h, 4 h], b: [4 h]; this is {t}", expr.span
            )
    for t, expr in zip((W, U, b), exprs[1:]):
        if t.axes:
            return check.fail("E0331", f"the weights of `lstm` have no axes, and this is {t}", expr.span)
    gates = U.sizes[0] * Size.of(4)
    for t, wanted, expr in (
        (W, (x.sizes[1], gates), exprs[1]),
        (U, (U.sizes[0], gates), exprs[2]),
        (b, (gates,), exprs[3]),
    ):
        if t.sizes != wanted:
            return check.fail("E0312", f"`lstm` needs [{', '.join(map(str, wanted))}] here, and this is {t}", expr.span)
    return bend(join(args, TensorType(x.axes, (x.sizes[0], U.sizes[0]))), span)


@primitive("width", (1, 1), "the last size of a tensor, as a number")
def _width(check: Reporter, span: Span, args: list[Value], exprs: list[Expr]) -> Value:
    t = args[0].type
    if isinstance(t, Poison):
        return Value(POISON)
    if not isinstance(t, TensorType) or not t.sizes:
        return check.fail("E0331", f"`width` takes a tensor with a size, not {t}", span)
    n = t.sizes[-1].number
    return Value(NumberType(t.sizes[-1], int(n) if n is not None and n.denominator == 1 else None))
