"""The primitives: one table entry each – name, type rule with its facts, what it does to the input's degree.

The torch functions of the same names stand in `unipelt.compiler.functions`; a test holds that the two tables agree.
A rule gets the checker (for diagnostics), the call's span and the argument values, and returns the result's value.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

from ..sites import TensorType, united_axes
from ..sizes import Size
from ..syntax.nodes import Apply, Expr, Name, Span
from .values import POISON, NumberType, Placed, Poison, Value, WordType, bend, join


class Reporter(Protocol):
    """What a rule may ask of the checker."""

    def infer(self, e: Expr) -> Value: ...

    def bindings(self, *sizes: Size) -> tuple[str, ...]: ...

    def fail(self, code: str, message: str, span: Span, **more) -> Value: ...

    def axis_size(self, name: str) -> Size | None: ...

    @property
    def bases(self) -> Mapping[str, tuple[Size, Size]]: ...


Rule = Callable[[Reporter, Span, list[Value], list[Expr]], Value]


@dataclass(frozen=True, slots=True)
class Primitive:
    """``arity`` is (least, most) arguments. ``elementwise`` primitives may be passed as an `activation`.

    Further facts: zero where the first argument is (``linear``; all that is linear, and more); the first argument itself
    outside training (``still``); random in training unless the second argument is 0 (``draws``); entries that sum to one,
    whatever the argument (``shares``); entries added up (``totals``); one of the tokens (``picks``).
    """

    name: str
    rule: Rule
    arity: tuple[int, int]
    doc: str
    elementwise: bool = False
    linear: bool = False
    still: bool = False
    draws: bool = False
    shares: bool = False
    totals: bool = False
    picks: bool = False


PRIMITIVES: dict[str, Primitive] = {}


def primitive(name: str, arity: tuple[int, int], doc: str, **facts: bool) -> Callable[[Rule], Rule]:
    def add(rule: Rule) -> Rule:
        PRIMITIVES[name] = Primitive(name, rule, arity, doc, **facts)
        return rule

    return add


def entry_of(call: Expr) -> Primitive | None:
    """The entry of the primitive that an expression calls, if it calls one by its name."""
    name = call.function.id if isinstance(call, Apply) and isinstance(call.function, Name) else ""
    return PRIMITIVES.get(name)


# ---------------------------------------------------------------- elementwise


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
):
    primitive(_name, (1, 1), _doc, elementwise=True)(_curve(_name, _number))


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
    if not isinstance(p.type, (NumberType, Poison)):
        return check.fail("E0331", f"`drop` takes a probability, not {p.type}", exprs[1].span)
    if isinstance(p.type, NumberType) and p.type.value is not None and not 0 <= p.type.value < 1:
        return check.fail("E0332", f"a dropout probability lies in [0, 1), not {p.type.value}", exprs[1].span)
    silent = isinstance(a.type, NumberType) or (isinstance(p.type, NumberType) and p.type.value == 0)
    return a if silent else replace(a, random=True)


def _extremum(name: str, pick: Callable) -> Rule:
    def rule(check: Reporter, span: Span, args: list[Value], exprs: list[Expr]) -> Value:
        kinds = [a.type for a in args]
        if all(isinstance(t, NumberType) for t in kinds):
            values = [t.value for t in kinds]  # type: ignore[union-attr]
            if all(v is not None for v in values):
                best = pick(values)
                return join(args, NumberType(Size.of(best) if isinstance(best, int) else None, best))
            sizes = [t.size.text for t in kinds if isinstance(t, NumberType) and t.size is not None]
            return join(args, NumberType(Size.of(f"{name}({', '.join(sizes)})") if len(sizes) == len(kinds) else None))
        return check.fail("E0331", f"`{name}` takes numbers", span)

    return rule


primitive("max", (2, 8), "the largest of some numbers")(_extremum("max", max))
primitive("min", (2, 8), "the smallest of some numbers")(_extremum("min", min))


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


@primitive("divides", (2, 2), "whether the first number divides the second")
def _divides(check: Reporter, span: Span, args: list[Value], exprs: list[Expr]) -> Value:
    a, b = (v.type for v in args)
    if isinstance(a, NumberType) and isinstance(b, NumberType):
        if a.value is not None and b.value is not None:
            return join(args, NumberType(None, bool(a.value) and b.value % a.value == 0))
        return join(args, NumberType())
    return check.fail("E0331", "`divides` takes two numbers", span)


# ---------------------------------------------------------------- reductions

DOMAINS = ("tokens", "positions")


def _reduction(name: str, affine: bool) -> Rule:
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
    return out


primitive(
    "mean",
    (1, 3),
    "the mean over the last size, an axis, `tokens` (real ones) or `positions` (all)",
    linear=True,
    totals=True,
)(_reduction("mean", True))
primitive("sum", (1, 3), "the sum over the last size, an axis, `tokens` or `positions`", linear=True, totals=True)(
    _reduction("sum", True)
)
primitive("norm", (1, 2), "the Euclidean norm over the last size or the one given", linear=True)(
    _reduction("norm", False)
)
primitive("logsumexp", (1, 2), "log of the sum of exponentials over the last size or an axis")(
    _reduction("logsumexp", False)
)


@primitive("softmax", (1, 2), "softmax over the last size or an axis", shares=True)
def _softmax(check: Reporter, span: Span, args: list[Value], exprs: list[Expr]) -> Value:
    a = args[0]
    if isinstance(a.type, Poison):
        return a
    if not isinstance(a.type, TensorType):
        return check.fail("E0331", f"`softmax` takes a tensor, not {a.type}", span)
    checked = _reduce(check, "softmax", a, args[1], exprs[1]) if len(args) > 1 else _last(check, "softmax", a, span)
    return bend(replace(checked, type=a.type if not isinstance(checked.type, Poison) else POISON), span)


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


# ---------------------------------------------------------------- shapes


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


# ---------------------------------------------------------------- rows among the tokens


def _placing(name: str) -> Rule:
    """Rows [l, d] and tokens of width d; the fact ``placed`` tells where the rows stand."""

    def rule(check: Reporter, span: Span, args: list[Value], exprs: list[Expr]) -> Value:
        rows, h = (a.type for a in args[:2])
        if not (isinstance(rows, TensorType) and isinstance(h, TensorType) and "token" in h.axes):
            return check.fail("E0331", f"`{name}` puts rows among the tokens of h", span)
        if len(rows.sizes) != 2 or len(h.sizes) != 1 or not rows.axes <= {"batch"}:
            return check.fail("E0337", f"`{name}` takes rows of type [l, d], not {rows}", exprs[0].span)
        if rows.sizes[1] != h.sizes[0]:
            return check.fail("E0312", f"the rows are {rows.sizes[1]} wide and h is {h.sizes[0]}", exprs[0].span)
        after = Size.of(0)
        if len(args) > 2:
            k = args[2].type
            if not isinstance(k, NumberType) or k.size is None or (k.value is not None and k.value < 0):
                return check.fail("E0331", f"rows are placed after a whole number of tokens, not {k}", exprs[2].span)
            after = k.size
        out = replace(join(args, h), placed=Placed(name, rows.sizes[0], after, span))
        return replace(out, chunk=out.chunk or span) if name == "append" else out  # the last token is that of its chunk

    return rule


primitive("prepend", (2, 3), "prepend(P, h): the rows of P before the tokens; prepend(P, h, k): behind the first k tokens. "
          "The length changes; mask, positions and labels follow")(_placing("prepend"))  # fmt: skip
primitive("append", (2, 2), "append(P, h): the rows of P behind the last real token. The length changes; mask, positions and "
          "labels follow")(_placing("append"))  # fmt: skip
primitive("fill", (2, 2), "fill(P, h): row k of P in place of the k-th pseudo-token of the text, which the forward argument "
          "`pseudo_tokens` marks")(_placing("fill"))  # fmt: skip

#: Primitives that put rows among the tokens, and whether they make the sequence longer.
PLACING = {"prepend": True, "append": True, "fill": False}


# ---------------------------------------------------------------- sizes


@primitive("width", (1, 1), "the last size of a tensor, as a number")
def _width(check: Reporter, span: Span, args: list[Value], exprs: list[Expr]) -> Value:
    t = args[0].type
    if isinstance(t, Poison):
        return Value(POISON)
    if not isinstance(t, TensorType) or not t.sizes:
        return check.fail("E0331", f"`width` takes a tensor with a size, not {t}", span)
    n = t.sizes[-1].number
    return Value(NumberType(t.sizes[-1], int(n) if n is not None and n.denominator == 1 else None))
