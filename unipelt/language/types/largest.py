"""Primitives that look for the largest or the smallest."""

from __future__ import annotations

from collections.abc import Callable

from ..sites import TensorType
from ..sizes import Size
from ..syntax.nodes import Expr, Span
from .primitive import Reporter, Rule, primitive
from .reductions import along, reducing
from .values import NumberType, Poison, Value, WordType, bend, is_count, join


def _extremum(name: str, pick: Callable) -> Rule:
    reduction = reducing(name, False)

    def rule(check: Reporter, span: Span, args: list[Value], exprs: list[Expr]) -> Value:
        kinds = [a.type for a in args]
        if isinstance(kinds[0], TensorType):
            return reduction(check, span, args, exprs)
        if len(args) > 1 and all(isinstance(t, NumberType) for t in kinds):
            values = [t.value for t in kinds]  # type: ignore[union-attr]
            if all(v is not None for v in values):
                best = pick(values)
                return join(args, NumberType(Size.of(best) if isinstance(best, int) else None, best))
            sizes = [t.size.text for t in kinds if isinstance(t, NumberType) and t.size is not None]
            return join(args, NumberType(Size.of(f"{name}({', '.join(sizes)})") if len(sizes) == len(kinds) else None))
        return check.fail("E0331", f"`{name}` takes several numbers, or a tensor that it reduces", span)

    return rule


primitive("max", (1, 8), "the largest of some numbers; of a tensor the largest entry over the last size, a size by its number, an axis, "
          "`tokens` or `positions`")(_extremum("max", max))  # fmt: skip
primitive("min", (1, 8), "the smallest of some numbers; of a tensor the smallest entry over the last size, a size by its number, an axis, "
          "`tokens` or `positions`")(_extremum("min", min))  # fmt: skip


@primitive("maximum", (2, 2), "the larger of two values, entry by entry")
def _maximum(check: Reporter, span: Span, args: list[Value], exprs: list[Expr]) -> Value:
    a, b = args
    for v, e in zip(args, exprs):
        if not isinstance(v.type, (TensorType, NumberType)):
            return check.fail("E0331", f"`maximum` takes tensors and numbers, not {v.type}", e.span)
    if isinstance(a.type, NumberType) and isinstance(b.type, NumberType):
        return check.fail(
            "E0331", "`maximum` takes a tensor, and these are numbers: the larger of two numbers is `max(a, b)`", span
        )
    return a if exprs[0] == exprs[1] else bend(check.aligned("maximum", a, b, exprs[0].span, exprs[1].span), span)


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
