"""The literal evaluator: every line of a row as written, with named axes, in any dtype. The reference for everything."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from ..language.types.carried import from_before
from ..language.types.draws import PROGRESS, draw_of
from ..language.types.indexing import numbers_named
from ..language.types.layers import layered
from ..language.syntax.nodes import (
    Apply,
    Attr,
    Binary,
    Choose,
    Compare,
    Expr,
    Index,
    Later,
    Let,
    ListOf,
    Name,
    Negative,
    Number,
    Param,
    Slice,
    Statement,
    String,
    dotted,
)  # fmt: skip
from .drawn import Draws, numbers, unseeded
from .words import FUNCTIONS
from .named import Named, Value, elementwise, matmul, picked, transpose

OPERATIONS: dict[str, Callable] = {
    "+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv, "**": operator.pow,
    "==": operator.eq, "!=": operator.ne, "<=": operator.le, ">=": operator.ge, "<": operator.lt, ">": operator.gt,
}  # fmt: skip


@dataclass
class Context:
    """What expressions read: ``names`` (scope, tensors, lets), the site's sizes, parameters, the callable frozen base
    modules, the mask of real tokens ([batch, token] or None), whether the model trains, where rows stand among the
    tokens (see `functions.prepend`, `functions.fill`), which tokens are the parts of a picture ([rows, columns]), the sizes of the declared axes, what is drawn,
    the penalties that were met, what is carried to the next layer and, after a step, the gradients of tensors by their identity."""

    names: dict[str, Value]
    sizes: Mapping[str, int]
    bases: Mapping[str, Callable[[torch.Tensor], torch.Tensor]] = field(default_factory=dict)
    mask: torch.Tensor | None = None
    training: bool = False
    places: torch.Tensor | None = None
    grid: torch.Tensor | None = None
    axes: Mapping[str, int] = field(default_factory=dict)
    draws: Draws = field(default_factory=Draws)
    penalties: list[Value] = field(default_factory=list)
    carried: dict[str, Value] = field(default_factory=dict)
    gradients: Mapping[int, torch.Tensor] = field(default_factory=dict)


def constants(params: Sequence[Param], sizes: Mapping[str, int], numbers: Mapping[str, int]) -> dict[str, Value]:
    """Parameters, sizes and numbers as values that expressions read."""
    context = Context({**sizes, **numbers}, sizes)
    absent = frozenset() if "layer" in numbers else layered(params)  # nothing outside the layers reads these
    for p in params:
        if p.default is None or p.type in ("init", "sites", "scope") or p.name in absent:
            continue
        if p.type == "activation" and isinstance(p.default, Name):
            context.names[p.name] = p.default.id
        else:
            context.names[p.name] = evaluate(p.default, context)
    return context.names


def run(body: Sequence[Statement], context: Context) -> None:
    """Executes the lets of a body; its tensors must be in ``context.names`` already."""
    for s in body:
        if isinstance(s, Let):
            bind(s, context)
        elif isinstance(s, Later) and s.word == "carry":
            carry(s, context)
        elif isinstance(s, Later) and context.training and s.word == "penalty":
            context.penalties.append(evaluate(s.values[0], context))


def carry(s: Later, context: Context) -> None:
    """Gives a name what is carried: the first value, or, where there is one of the layer before, the next."""
    name, (first, following) = s.names[0], s.values
    if (entered := from_before(name)) in context.names:
        context.names[name] = context.names[entered]
    value = evaluate(following if entered in context.names else first, context)
    context.names[name] = context.carried[name] = value


def bind(s: Let, context: Context) -> None:
    """Gives what a line binds its names: one, or one for each result of a function that has several."""
    value: Any = evaluate(s.value, context)
    context.names.update(zip(s.names, value if len(s.names) > 1 else (value,), strict=True))


def evaluate(e: Expr, c: Context) -> Value:
    """The value of an expression."""
    if isinstance(e, Name):
        if e.id in c.names:
            return c.names[e.id]
        if e.id in c.sizes:
            return c.sizes[e.id]
        if e.id in ("true", "false"):
            return e.id == "true"
        if e.id == "training":
            return c.training
        if e.id == "chance":
            raise unseeded("chance")
        if e.id == PROGRESS and not c.training:
            return 1.0
        return e.id  # a domain, an axis, an activation: words stand for themselves
    if isinstance(e, Number):
        return e.value / 100 if e.percent else e.value
    if isinstance(e, Binary):
        a, b = evaluate(e.left, c), evaluate(e.right, c)
        if e.op == "@":
            assert isinstance(a, Named) and isinstance(b, Named)
            return matmul(a, b)
        if e.op == "/" and isinstance(a, int) and isinstance(b, int) and a % b == 0:
            return a // b
        return elementwise(OPERATIONS[e.op], a, b)
    if isinstance(e, Apply):
        return _apply(e, c)
    if isinstance(e, Attr) and (lent := dotted(e)) in c.names:
        return c.names[lent]  # type: ignore[index]
    if isinstance(e, Attr):
        value = evaluate(e.value, c)
        assert e.name == "T" and isinstance(value, Named)
        return transpose(value)
    if isinstance(e, Negative):
        value = evaluate(e.value, c)
        return Named(-value.data, value.axes) if isinstance(value, Named) else -value  # type: ignore[operator]
    if isinstance(e, Compare):
        return _compare(e, c)
    if isinstance(e, Choose):
        return evaluate(e.then if evaluate(e.test, c) else e.other, c)
    if isinstance(e, Index):
        return _index(e, c)
    if isinstance(e, String):
        return e.value
    assert isinstance(e, ListOf)
    layer = c.names["layer"]
    assert isinstance(layer, int)
    return evaluate(e.items[layer], c)  # a list has a value for each layer


def _compare(e: Compare, c: Context) -> Value:
    """1 where it holds and 0 elsewhere, in the dtype of what is compared."""
    a, b = evaluate(e.left, c), evaluate(e.right, c)
    out = elementwise(OPERATIONS[e.op], a, b)
    if not isinstance(out, Named):
        return out
    like = next(t.data.dtype for t in (a, b) if isinstance(t, Named))
    return Named(out.data.to(like), out.axes)


def _apply(e: Apply, c: Context) -> Value:
    args = [evaluate(a.value, c) for a in e.args]
    text = dotted(e.function)
    if text is not None and text in c.bases:
        (a,) = args
        assert isinstance(a, Named)
        return Named(c.bases[text](a.data), a.axes)
    name: Any = e.function.id if isinstance(e.function, Name) else None
    bound = c.names.get(name)
    return FUNCTIONS[bound if isinstance(bound, str) else name](c, *args)


def _index(e: Index, c: Context) -> Value:
    # a name that has dimensions is a tensor of the row; the pass's own `chance` has none
    bound = {n for n, v in c.names.items() if isinstance(v, Named) and v.data.dim()}
    draw = draw_of(e, bound, c.draws.lengths)
    if draw is not None:
        return numbers(draw, [int(evaluate(s, c)) for s in draw.sizes], c.draws, c.training)  # type: ignore[arg-type]
    value = evaluate(e.value, c)
    assert isinstance(value, Named)
    data, front = value.data, len(value.axes)
    picks: list[tuple[int, Named]] = []
    for i, item in enumerate(e.items):
        if not isinstance(item, Slice):
            index = c.names[own] if (own := numbers_named(item)) in c.names else evaluate(item, c)
            assert isinstance(index, Named)
            picks.append((i, index))
            continue
        low = evaluate(item.low, c) if item.low is not None else 0
        high = evaluate(item.high, c) if item.high is not None else data.shape[front + i]
        n = data.shape[front + i]
        low, high = (v + n if v < 0 else v for v in (low, high))  # type: ignore[operator]
        data = data.narrow(front + i, int(low), int(high - low))  # type: ignore[arg-type,operator]
    out = Named(data, value.axes)
    for i, index in reversed(picks):  # the last first: what stands behind a size may come to be more than one
        out = picked(out, i, index)
    return out
