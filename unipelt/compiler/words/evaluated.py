"""The torch side of the primitives: the same names as in `unipelt.language.types.primitives` (a test holds that)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional as F

from .. import helpers
from ..named import Named, Value, elementwise, ordered, spread, together

Function = Callable[..., Value]
FUNCTIONS: dict[str, Function] = {}


def function(name: str) -> Callable[[Function], Function]:
    def add(f: Function) -> Function:
        FUNCTIONS[name] = f
        return f

    return add


def _curve(name: str, tensor: Callable[[torch.Tensor], torch.Tensor], number: Callable[[float], float] | None) -> None:
    def curve(context: Any, a: Value) -> Value:
        if isinstance(a, Named):
            return Named(tensor(a.data), a.axes)
        if isinstance(a, str):
            raise TypeError(f"{name} takes a tensor or a number")
        return number(a) if number is not None else tensor(torch.tensor(float(a), dtype=torch.float64)).item()

    FUNCTIONS[name] = curve


_curve("relu", F.relu, lambda v: max(v, 0.0))
_curve("gelu", F.gelu, None)  # of a number: by way of a tensor
_curve("gelu_new", lambda t: F.gelu(t, approximate="tanh"), None)
_curve("silu", F.silu, None)
_curve("tanh", torch.tanh, math.tanh)
_curve("sigmoid", torch.sigmoid, lambda v: (1 + math.tanh(v / 2)) / 2)
_curve("softplus", F.softplus, None)
_curve("exp", torch.exp, math.exp)
_curve("log", torch.log, math.log)
_curve("sqrt", torch.sqrt, math.sqrt)
_curve("abs", torch.abs, abs)
_curve("sin", torch.sin, math.sin)
_curve("cos", torch.cos, math.cos)
_curve("lgamma", torch.lgamma, math.lgamma)
_curve("digamma", torch.digamma, None)
_curve("identity_map", lambda t: t, lambda v: v)
_curve("stop_gradient", torch.Tensor.detach, lambda v: v)


@function("leaky_relu")
def leaky_relu(context: Any, a: Value, share: Value = 0.01) -> Value:
    if isinstance(a, Named):
        return Named(F.leaky_relu(a.data, float(share)), a.axes)  # type: ignore[arg-type]
    return a if a > 0 else share * a  # type: ignore[operator]


@function("drop")
def drop(context: Any, a: Value, p: Value) -> Value:
    if not isinstance(a, Named) or not context.training or not p:
        return a
    return Named(F.dropout(a.data, float(p), True), a.axes)  # type: ignore[arg-type]


_curve("ceil", torch.ceil, math.ceil)
_curve("floor", torch.floor, math.floor)
_curve("round", torch.round, round)


@function("nearest")
def nearest(context: Any, x: Named, table: Named) -> Value:
    axes, (x, table) = together(x, table)
    return Named(helpers.nearest(spread(x, axes, len(x.sizes)), spread(table, axes, 1), len(x.sizes)), axes)


FUNCTIONS["divides"] = lambda context, a, b: bool(a) and b % a == 0


# ---------------------------------------------------------------- reductions


def _mask(context: Any, a: Named) -> Named | None:
    """1 at real tokens, over (batch, token); None where every position is real."""
    if context.mask is None:
        return None
    mask = context.mask
    if mask.shape[-1] != a.data.shape[a.axes.index("token")]:
        mask = mask[..., -a.data.shape[a.axes.index("token")] :]
    return Named(mask.to(a.data.dtype), ("batch", "token"))


def dim_of(a: Named, over: Value) -> tuple[int, tuple[str, ...]]:
    """The data's dimension that is reduced, and the axes that stay."""
    if isinstance(over, str):
        axis = "token" if over in ("tokens", "positions") else over
        return a.axes.index(axis), tuple(x for x in a.axes if x != axis)
    index = int(over)  # type: ignore[arg-type]
    return (len(a.axes) + index if index >= 0 else a.data.dim() + index), a.axes


def _reduce(name: str, plain: Callable[[torch.Tensor, int], torch.Tensor]) -> None:
    def reduction(context: Any, a: Named, *over: Value) -> Value:
        for what in over or (-1,):
            masked = _mask(context, a) if what == "tokens" else None
            dim, axes = dim_of(a, what)
            if masked is None:
                a = Named(plain(a.data, dim), axes)
                continue
            if name in ("max", "min"):
                function = helpers.largest if name == "max" else helpers.smallest
                a = Named(function(a.data, context.mask, dim), axes)
                continue
            if name not in ("mean", "sum"):
                raise NotImplementedError(f"`{name}` over `tokens`")
            weighted = elementwise(torch.mul, a, masked)
            assert isinstance(weighted, Named)
            total = Named(weighted.data.sum(weighted.axes.index("token")), axes)
            count = Named(masked.data.sum(-1).clamp(min=1), ("batch",))
            a = elementwise(torch.div, total, count) if name == "mean" else total  # type: ignore[assignment]
        return a

    FUNCTIONS[name] = reduction


_reduce("mean", lambda t, d: t.mean(d))
_reduce("sum", lambda t, d: t.sum(d))
_reduce("norm", lambda t, d: torch.linalg.vector_norm(t, dim=d))
_reduce("logsumexp", lambda t, d: torch.logsumexp(t, d))


def _extremum(name: str, plain: Callable[[torch.Tensor, int], torch.Tensor], of_numbers: Callable[[Any], Any]) -> None:
    _reduce(name, plain)
    reduction = FUNCTIONS[name]
    FUNCTIONS[name] = lambda context, *args: (
        reduction(context, *args) if isinstance(args[0], Named) else of_numbers(args)
    )


_extremum("max", lambda t, d: t.amax(d), max)
_extremum("min", lambda t, d: t.amin(d), min)


@function("maximum")
def maximum(context: Any, a: Value, b: Value) -> Value:
    def larger(x: Any, y: Any) -> torch.Tensor:
        if isinstance(x, torch.Tensor) and isinstance(y, torch.Tensor):
            return torch.maximum(x, y)
        return x.clamp(min=y) if isinstance(x, torch.Tensor) else y.clamp(min=x)

    return elementwise(larger, a, b)


@function("softmax")
def softmax(context: Any, a: Named, over: Value = -1) -> Value:
    return Named(torch.softmax(a.data, dim_of(a, over)[0]), a.axes)


@function("layer_norm")
def layer_norm(context: Any, a: Named, *eps: Value) -> Value:
    return Named(helpers.layer_norm(a.data, *eps), a.axes)  # type: ignore[arg-type]


@function("rms_norm")
def rms_norm(context: Any, a: Named, *eps: Value) -> Value:
    return Named(helpers.rms_norm(a.data, *eps), a.axes)  # type: ignore[arg-type]


@function("running_mean")
def running_mean(context: Any, a: Named) -> Value:
    dim = a.axes.index("token")
    steps = torch.arange(1, a.data.shape[dim] + 1, device=a.data.device, dtype=a.data.dtype)
    return Named(a.data.cumsum(dim) / steps.reshape([-1 if i == dim else 1 for i in range(a.data.dim())]), a.axes)


def _at(a: Named, context: Any, over: Value, last: bool) -> Value:
    dim, axes = dim_of(a, over)
    n = a.data.shape[dim]
    mask = _mask(context, a) if over == "tokens" else None
    if mask is None:
        return Named(a.data.select(dim, n - 1 if last else 0), axes)
    steps = torch.arange(n, device=a.data.device)
    real = mask.data.bool()
    index = torch.where(real, steps, -1).amax(-1) if last else torch.where(real, steps, n).amin(-1)
    index = index.clamp(0, n - 1)
    moved = a.data.movedim((a.axes.index("batch"), dim), (0, 1))
    picked = moved[torch.arange(moved.shape[0], device=a.data.device), index]
    return Named(picked.movedim(0, axes.index("batch")), axes)


@function("first")
def first(context: Any, a: Named, over: Value) -> Value:
    return _at(a, context, over, last=False)


@function("last")
def last(context: Any, a: Named, over: Value) -> Value:
    return _at(a, context, over, last=True)


# ---------------------------------------------------------------- shapes


@function("heads")
def heads(context: Any, a: Named) -> Value:
    """[…, n · d_head] → axis group (or head) of n, [… , d_head]."""
    d_head, d_kv = context.sizes["d_head"], context.sizes["d_kv"]
    width = a.data.shape[-1]
    name = "group" if width == d_kv else "head"
    split = a.data.reshape(*a.data.shape[:-1], width // d_head, d_head)
    axes = ordered((*a.axes, name))
    return Named(split.movedim(-2, axes.index(name)), axes)


@function("concat")
def concat(context: Any, *parts: Named) -> Value:
    axes, found = together(*parts)
    lead = [max(t.data.shape[t.axes.index(x)] for t in found if x in t.axes) for x in axes]
    datas = []
    for t in found:
        shape = [*lead, *t.sizes]
        index = [t.axes.index(x) if x in t.axes else None for x in axes]
        data = t.data.reshape([t.data.shape[i] if i is not None else 1 for i in index] + list(t.sizes))
        datas.append(data.expand(shape))
    return Named(torch.cat(datas, -1), axes)


@function("flip")
def flip(context: Any, a: Named) -> Value:
    return Named(a.data.flip(-2), a.axes)


@function("lstm")
def lstm(context: Any, x: Named, W: Named, U: Named, b: Named) -> Value:
    return Named(helpers.lstm(x.data, W.data, U.data, b.data), x.axes)


# ---------------------------------------------------------------- rows among the tokens


@function("prepend")
def prepend(context: Any, rows: Named, h: Named, after: Value = 0) -> Value:
    """``h`` has placeholders at ``context.places`` [batch, l] already (see `runtime.prompts.hooks`); they become the rows."""
    return Named(helpers.put_rows(rows.data, h.data, context.places), h.axes)


FUNCTIONS["append"] = prepend


@function("fill")
def fill(context: Any, rows: Named, h: Named) -> Value:
    return Named(helpers.fill_rows(rows.data, h.data, context.places), h.axes)


# ---------------------------------------------------------------- sizes


@function("width")
def width(context: Any, a: Named) -> Value:
    return a.data.shape[-1]
