"""Primitives of each entry, and of plain numbers."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

from ..sites import TensorType, united_axes
from ..sizes import Size
from ..syntax.nodes import Expr, Span
from .primitive import Reporter, Rule, primitive
from .values import NumberType, Poison, Value, bend, join


def _curve(name: str, number: Callable[[float], float] | None) -> Rule:
    def rule(check: Reporter, span: Span, args: list[Value], exprs: list[Expr]) -> Value:
        (a,) = args
        if isinstance(a.type, NumberType):
            value = a.type.value
            if value is None or number is None:
                return a.typed(NumberType())
            try:
                return a.typed(NumberType(None, number(value)))
            except (ValueError, OverflowError):
                return check.fail("E0330", f"`{name}` is not defined at {value}", span)
        if not isinstance(a.type, (TensorType, Poison)):
            return check.fail("E0331", f"`{name}` takes a tensor or a number, not {a.type}", span)
        return bend(a, span)

    return rule


for _name, _number, _doc in (
    ("relu", lambda v: max(v, 0.0), "max(x, 0)"),
    ("gelu", lambda v: v * (1 + math.erf(v / math.sqrt(2))) / 2, "x Φ(x), exact"),
    (
        "gelu_new",
        lambda v: v * (1 + math.tanh(math.sqrt(2 / math.pi) * (v + 0.044715 * v**3))) / 2,
        "x Φ(x), the tanh approximation",
    ),
    ("silu", lambda v: v * (1 + math.tanh(v / 2)) / 2, "x σ(x)"),
    ("tanh", math.tanh, "the hyperbolic tangent"),
    ("sigmoid", lambda v: (1 + math.tanh(v / 2)) / 2, "1 / (1 + exp(-x))"),
    ("softplus", lambda v: max(v, 0.0) + math.log1p(math.exp(-abs(v))), "log(1 + exp(x))"),
    ("exp", math.exp, "the exponential"),
    ("log", math.log, "the natural logarithm"),
    ("sqrt", math.sqrt, "the square root"),
    ("abs", abs, "the absolute value"),
    ("sin", math.sin, "the sine"),
    ("cos", math.cos, "the cosine"),
    ("lgamma", math.lgamma, "the logarithm of the absolute value of the gamma function"),
    ("digamma", None, "the derivative of the logarithm of the gamma function"),
):
    primitive(_name, (1, 1), _doc, elementwise=True)(_curve(_name, _number))


@primitive(
    "leaky_relu", (1, 2), "x where it is above 0, else 0.01 x, or the given share of x", elementwise=True, linear=True
)
def _leaky_relu(check: Reporter, span: Span, args: list[Value], exprs: list[Expr]) -> Value:
    share = args[1].type if len(args) > 1 else NumberType(None, 0.01)
    if not isinstance(share, NumberType):
        return check.fail("E0331", f"the share that `leaky_relu` leaves is a number, not {share}", exprs[1].span)
    a = args[0]
    if isinstance(a.type, NumberType):
        x, s = a.type.value, share.value
        return join(args, NumberType(None, None if x is None or s is None else x if x > 0 else s * x))
    if not isinstance(a.type, (TensorType, Poison)):
        return check.fail("E0331", f"`leaky_relu` takes a tensor or a number, not {a.type}", span)
    return bend(join(args, a.type), span)


@primitive("identity_map", (1, 1), "x itself: the activation that does not bend", elementwise=True)
def _identity_map(check: Reporter, span: Span, args: list[Value], exprs: list[Expr]) -> Value:
    return args[0]


@primitive("stop_gradient", (1, 1), "x, through which no gradient flows", linear=True, still=True)
def _stop(check: Reporter, span: Span, args: list[Value], exprs: list[Expr]) -> Value:
    return args[0]


@primitive(
    "drop",
    (2, 2),
    "dropout with the given probability; x itself outside training. A plain number is left as it is",
    linear=True,
    still=True,
    draws=True,
)
def _drop(check: Reporter, span: Span, args: list[Value], exprs: list[Expr]) -> Value:
    a, p = args
    if not isinstance(a.type, (TensorType, NumberType, Poison)):
        return check.fail("E0331", f"`drop` takes a tensor or a number, not {a.type}", exprs[0].span)
    if not isinstance(p.type, (NumberType, Poison)):
        return check.fail("E0331", f"`drop` takes a probability, not {p.type}", exprs[1].span)
    if isinstance(p.type, NumberType) and p.type.value is not None and not 0 <= p.type.value < 1:
        return check.fail("E0332", f"a dropout probability lies in [0, 1), not {p.type.value}", exprs[1].span)
    silent = isinstance(a.type, NumberType) or (isinstance(p.type, NumberType) and p.type.value == 0)
    return a if silent else replace(a, random=True)


def _rounding(name: str, round_: Callable[[float], int]) -> Rule:
    def rule(check: Reporter, span: Span, args: list[Value], exprs: list[Expr]) -> Value:
        (a,) = args
        if isinstance(a.type, NumberType):
            if a.type.value is not None:
                whole = round_(a.type.value)
                return a.typed(NumberType(Size.of(whole), whole))
            return a.typed(NumberType(Size.of(f"{name}({a.type.size.text})") if a.type.size is not None else None))
        if isinstance(a.type, TensorType):
            return bend(a, span)
        return a if isinstance(a.type, Poison) else check.fail("E0331", f"`{name}` takes a number or a tensor", span)

    return rule


primitive("ceil", (1, 1), "the next whole number", linear=True)(_rounding("ceil", math.ceil))
primitive("floor", (1, 1), "the previous whole number", linear=True)(_rounding("floor", math.floor))
primitive("round", (1, 1), "the nearest whole number, of two the even one", linear=True)(_rounding("round", round))


@primitive(
    "nearest", (2, 2), "nearest(x, t): for each entry of x the nearest of the numbers t: [n], of two the smaller"
)
def _nearest(check: Reporter, span: Span, args: list[Value], exprs: list[Expr]) -> Value:
    x, t = (v.type for v in args)
    if not isinstance(x, TensorType):
        return check.fail("E0331", f"`nearest` takes a tensor, not {x}", exprs[0].span)
    if not isinstance(t, TensorType) or len(t.sizes) != 1:
        return check.fail("E0331", f"`nearest` takes a list of numbers [n], not {t}", exprs[1].span,
                          help="declare it, as in `frozen t: [4] ~ values(-1, -0.5, 0, 1)`")  # fmt: skip
    return bend(join(args, TensorType(united_axes(x.axes, t.axes), x.sizes)), span)


@primitive("divides", (2, 2), "whether the first number divides the second")
def _divides(check: Reporter, span: Span, args: list[Value], exprs: list[Expr]) -> Value:
    a, b = (v.type for v in args)
    if isinstance(a, NumberType) and isinstance(b, NumberType):
        if a.value is not None and b.value is not None:
            return join(args, NumberType(None, bool(a.value) and b.value % a.value == 0))
        return join(args, NumberType())
    return check.fail("E0331", "`divides` takes two numbers", span)
