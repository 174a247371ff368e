"""Primitives that need data: what a site is given in some batches, and the gradient that reaches its weight.

They are computed once, where a method is attached to a model (`apply(…, data=batches)`), and only starts may read them.
"""

from __future__ import annotations

from dataclasses import replace

from ..sites import TensorType
from ..syntax.nodes import Expr, Name, Span
from .primitive import Reporter, primitive
from .values import CONSTANT, Value


def _of_tokens(check: Reporter, name: str, a: Value, span: Span) -> TensorType | Value:
    """The type of what enters a site, if this is made of it, or the value of a mistake."""
    if isinstance(a.type, TensorType) and len(a.type.sizes) == 1 and a.reads == {"x"} and not a.learned:
        return a.type
    return check.fail("E0331", f"`{name}` takes a vector for each token that is made of `x` alone, and this is {a.type}", span,
               help=f"write `{name}(x)`, at a site that has an `x`, such as a projection")  # fmt: skip


def _measured(a: Value, kind: TensorType, span: Span) -> Value:
    """What data have told: the same for every input."""
    return Value(kind, CONSTANT, reads=a.reads, at_start=span)


@primitive("second_moment", (1, 1), "E[x xᵀ] over the real tokens of some batches of data, [d, d] of a vector [d] for each token, such as x", data=True)  # fmt: skip
def _second_moment(check: Reporter, span: Span, args: list[Value], exprs: list[Expr]) -> Value:
    t = _of_tokens(check, "second_moment", args[0], span)
    return t if isinstance(t, Value) else _measured(args[0], TensorType(frozenset(), (t.sizes[0], t.sizes[0])), span)


@primitive("data_mean", (1, 1), "E[x] over the real tokens of some batches of data, [d] of a vector [d] for each token, such as x", data=True)  # fmt: skip
def _data_mean(check: Reporter, span: Span, args: list[Value], exprs: list[Expr]) -> Value:
    t = _of_tokens(check, "data_mean", args[0], span)
    return t if isinstance(t, Value) else _measured(args[0], TensorType(frozenset(), t.sizes), span)


@primitive("mean_gradient", (1, 1), "mean_gradient(W): the gradient [d_in, d_out] of the loss in the site's weight, the mean over some "
           "batches of data", data=True)  # fmt: skip
def _mean_gradient(check: Reporter, span: Span, args: list[Value], exprs: list[Expr]) -> Value:
    (a,) = args
    if exprs[0] != Name("W") or not isinstance(a.type, TensorType):
        return check.fail("E0331", "`mean_gradient` takes the weight of the site, `W`", span,
                          help="write `mean_gradient(W)`, at a site that has a `W`, such as a projection")  # fmt: skip
    return replace(a, at_start=span)
