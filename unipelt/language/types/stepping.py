"""Words of `after step`: the gradient of a tensor, and which entries are among the largest of the whole model."""

from __future__ import annotations

from ..sites import TensorType
from ..syntax.nodes import Expr, Name, Span
from .primitive import Reporter, primitive
from .values import NumberType, Poison, Value, bend, join


def _elsewhere(check: Reporter, name: str, span: Span) -> Value | None:
    if getattr(check, "stepping", False):
        return None
    return check.fail("E0387", f"`{name}` is a word of `after step`", span,
                      help="write it into the form's `after step { … }`, where gradients are known")  # fmt: skip


@primitive(
    "gradient",
    (1, 1),
    "in `after step`: the gradient of a trained tensor of the row, as the optimiser saw it; 0 where there is none",
)
def _gradient(check: Reporter, span: Span, args: list[Value], exprs: list[Expr]) -> Value:
    (a,) = args
    wrong = _elsewhere(check, "gradient", span)
    if wrong is not None or isinstance(a.type, Poison):
        return wrong or a
    if not isinstance(exprs[0], Name) or not a.learned or a.reads != {exprs[0].id}:
        return check.fail("E0387", "`gradient` takes the name of a trained tensor of the row", exprs[0].span,
                          help="as in `gradient(A)`; a frozen tensor has none")  # fmt: skip
    return a


@primitive("among", (2, 2), "in `after step`: 1 at the entries that are among the n largest of each place on average, those of the "
           "row's places in the model taken together, and 0 elsewhere")  # fmt: skip
def _among(check: Reporter, span: Span, args: list[Value], exprs: list[Expr]) -> Value:
    a, n = args
    wrong = _elsewhere(check, "among", span)
    if wrong is not None or isinstance(a.type, Poison):
        return wrong or a
    number = n.type
    if not isinstance(a.type, TensorType) or not (
        isinstance(number, (NumberType, Poison)) or number == TensorType(frozenset(), ())
    ):
        return check.fail("E0387", f"`among` takes a tensor and how many of its entries there are at most, not {a.type} and {n.type}", span,
                          help="as in `among(s, 8)`")  # fmt: skip
    return bend(join(args, a.type), span)
