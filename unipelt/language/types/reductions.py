"""Primitives that reduce a size, an axis or the tokens."""

from __future__ import annotations

from dataclasses import replace

from ..sites import TensorType
from ..syntax.nodes import Expr, Span
from .primitive import Reporter, Rule, primitive
from .values import POISON, NumberType, Poison, Value, WordType, bend, join

DOMAINS = ("tokens", "positions")


def reducing(name: str, affine: bool) -> Rule:
    """Reduces the last size, a size by its number, an axis, or the axis token over a domain."""

    def rule(check: Reporter, span: Span, args: list[Value], exprs: list[Expr]) -> Value:
        a = args[0]
        if isinstance(a.type, Poison):
            return a
        if not isinstance(a.type, TensorType):
            return check.fail("E0331", f"`{name}` takes a tensor, not {a.type}", span)
        out = a if affine else bend(a, span)
        for over, expr in zip(args[1:], exprs[1:]):
            out = _reduce(check, name, out, over, expr)
        return _last(check, name, out, span) if len(args) == 1 else out

    return rule


def _last(check: Reporter, name: str, a: Value, span: Span, index: int = -1) -> Value:
    if not isinstance(a.type, TensorType):
        return a
    sizes = list(a.type.sizes)
    if not -len(sizes) <= index < len(sizes):
        return check.fail("E0333", f"`{name}` has no size to reduce in a value of type {a.type}", span)
    del sizes[index]
    return a.typed(TensorType(a.type.axes, tuple(sizes)))


def _reduce(check: Reporter, name: str, a: Value, over: Value, expr: Expr) -> Value:
    if not isinstance(a.type, TensorType):
        return a
    what = over.type
    if isinstance(what, NumberType) and isinstance(what.value, int):
        return _last(check, name, a, expr.span, what.value)
    if not isinstance(what, WordType) or what.what not in ("domain", "axis"):
        return check.fail(
            "E0334", f"`{name}` reduces a size (by its number), an axis, `tokens` or `positions`", expr.span
        )
    axis = "token" if what.what == "domain" else str(what.word)
    if axis not in a.type.axes:
        return check.fail("E0335", f"this value has no axis `{axis}` to reduce: {a.type}", expr.span)
    out = replace(a, type=TensorType(a.type.axes - {axis}, a.type.sizes))
    if axis == "token" and a.degree:
        # the mean over all positions reads every later one, and the pads unless only real tokens count
        out = replace(out, future=out.future or expr.span, chunk=out.chunk or expr.span)
        if what.word == "positions":
            out = replace(out, padding=out.padding or expr.span)
    if axis == "batch" and a.degree:
        # a token of another example may be a pad
        pads = "token" in a.type.axes
        out = replace(out, mixed=out.mixed or expr.span, padding=out.padding or (expr.span if pads else None))
    return out


primitive(
    "mean",
    (1, 3),
    "the mean over the last size, an axis, `tokens` (real ones) or `positions` (all)",
    linear=True,
    totals=True,
)(reducing("mean", True))
primitive("sum", (1, 3), "the sum over the last size, an axis, `tokens` or `positions`", linear=True, totals=True)(
    reducing("sum", True)
)
primitive("norm", (1, 2), "the Euclidean norm over the last size or the one given", linear=True)(
    reducing("norm", False)
)
primitive("logsumexp", (1, 2), "log of the sum of exponentials over the last size or an axis")(
    reducing("logsumexp", False)
)


@primitive("softmax", (1, 2), "softmax over the last size or an axis", shares=True)
def _softmax(check: Reporter, span: Span, args: list[Value], exprs: list[Expr]) -> Value:
    a = args[0]
    if isinstance(a.type, Poison):
        return a
    if not isinstance(a.type, TensorType):
        return check.fail("E0331", f"`softmax` takes a tensor, not {a.type}", span)
    checked = along(check, "softmax", a, args[1:], exprs[1:], span)
    return bend(replace(checked, type=a.type if not isinstance(checked.type, Poison) else POISON), span)


def along(check: Reporter, name: str, a: Value, over: list[Value], exprs: list[Expr], span: Span) -> Value:
    """What is left of a tensor behind a reduction of the last size, or of what an argument names: to see whether it has that, and
    which other positions take part."""
    return _reduce(check, name, a, over[0], exprs[0]) if over else _last(check, name, a, span)


def _normalised(name: str) -> Rule:
    def rule(check: Reporter, span: Span, args: list[Value], exprs: list[Expr]) -> Value:
        a = args[0]
        if isinstance(a.type, Poison):
            return a
        if not isinstance(a.type, TensorType) or not a.type.sizes:
            return check.fail("E0331", f"`{name}` takes a tensor with a size, not {a.type}", exprs[0].span)
        if len(args) > 1 and not isinstance(args[1].type, (NumberType, Poison)):
            return check.fail(
                "E0331", f"what `{name}` adds to the variance is a number, not {args[1].type}", exprs[1].span
            )
        return bend(join(args, a.type), span)

    return rule


primitive("layer_norm", (1, 2), "the last size less its mean, divided by its deviation: the root of the variance + 1e-5, or + the number given",
          linear=True, shares=True)(_normalised("layer_norm"))  # fmt: skip
primitive(
    "rms_norm",
    (1, 2),
    "the last size divided by the root of its mean square + 1e-6, or + the number given",
    linear=True,
)(_normalised("rms_norm"))


@primitive(
    "running_mean", (1, 1), "the mean over the positions up to each one: the causal twin of a pooled mean", linear=True
)
def _running_mean(check: Reporter, span: Span, args: list[Value], exprs: list[Expr]) -> Value:
    (a,) = args
    if not isinstance(a.type, (TensorType, Poison)):
        return check.fail("E0331", f"`running_mean` takes a tensor, not {a.type}", span)
    if isinstance(a.type, TensorType) and "token" not in a.type.axes:
        return check.fail("E0335", f"this value has no axis `token`: {a.type}", span)
    # it keeps no state, so left pads count as positions
    return replace(a, padding=a.padding or span, chunk=a.chunk or span) if a.degree else a


@primitive("first", (2, 2), "the value at the first of `tokens` or `positions`", linear=True, picks=True)
def _first(check: Reporter, span: Span, args: list[Value], exprs: list[Expr]) -> Value:
    out = _picked(check, "first", span, args, exprs)
    return replace(out, future=args[0].future)  # the first of all positions is a pad where pads stand at the left


@primitive("last", (2, 2), "the value at the last of `tokens` or `positions`", linear=True, picks=True)
def _last_token(check: Reporter, span: Span, args: list[Value], exprs: list[Expr]) -> Value:
    return _picked(check, "last", span, args, exprs)


def _picked(check: Reporter, name: str, span: Span, args: list[Value], exprs: list[Expr]) -> Value:
    a, what = args[0], args[1].type
    if not isinstance(a.type, (TensorType, Poison)):
        return check.fail("E0331", f"`{name}` takes a tensor, not {a.type}", span)
    if not isinstance(what, WordType) or what.what != "domain":
        return check.fail("E0334", f"`{name}` picks one of `tokens` or of `positions`", exprs[1].span,
                          help=f"write `{name}(…, tokens)` or `{name}(…, positions)`")  # fmt: skip
    return _reduce(check, name, a, args[1], exprs[1])
