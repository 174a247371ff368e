"""Primitives that look for the largest or the smallest."""

from __future__ import annotations

from ..sites import TensorType
from ..syntax.nodes import Expr, Span
from .primitive import Reporter, primitive
from .reductions import along
from .values import Poison, Value, WordType, bend, is_count, join


@primitive("top", (2, 3), "top(x, k): the k largest along the last size (or the size or axis given) stay as they are, the others become "
           "minus infinity, so that `softmax` gives them no share")  # fmt: skip
def _top(check: Reporter, span: Span, args: list[Value], exprs: list[Expr]) -> Value:
    a, k = args[0], args[1]
    if isinstance(a.type, Poison):
        return a
    if not isinstance(a.type, TensorType):
        return check.fail("E0331", f"`top` takes a tensor, not {a.type}", exprs[0].span)
    if not is_count(k):
        return check.fail("E0331", f"`top` keeps a whole number of entries, at least 1, not {k.type}", exprs[1].span)
    if len(args) > 2 and isinstance(args[2].type, WordType) and args[2].type.what == "domain":
        return check.fail(
            "E0334", "`top` looks along a size (by its number) or an axis, not along the tokens", exprs[2].span
        )
    left = along(check, "top", a, args[2:], exprs[2:], span)
    return left if isinstance(left.type, Poison) else bend(join((a, k), a.type), span)
