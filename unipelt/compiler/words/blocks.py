"""Moving the last size to and from a declared axis, and around."""

from __future__ import annotations

from typing import Any

from ..code import ATOM, Code, Written, text_of
from ..named import Named, Value, ordered
from .evaluated import function
from .written import Writing, as_size, word


@function("split")
def split(context: Any, a: Named, axis: str) -> Value:
    """[.., n b] → the axis of n, [.., b]."""
    axes = ordered((*a.axes, axis))
    return Named(a.data.unflatten(-1, (context.axes[axis], -1)).movedim(-2, axes.index(axis)), axes)


@word("split")
def _split(w: Writing, a: Written, axis: Written) -> Written:
    assert isinstance(a, Code) and isinstance(axis, str)
    axes = ordered((*a.axes, axis))
    n = w.axes[axis]
    at = axes.index(axis)
    moved = "" if at == a.rank - 1 else f".movedim(-2, {at})"
    text = f"{text_of(a, ATOM)}.unflatten(-1, ({text_of(n)}, -1)){moved}"
    return Code(text, axes, (*a.sizes[:-1], a.sizes[-1] / as_size(n)))


@function("join")
def join(context: Any, a: Named, axis: str) -> Value:
    """The axis of n, [.., b] → [.., n b]."""
    axes = tuple(x for x in a.axes if x != axis)
    return Named(a.data.movedim(a.axes.index(axis), -2).flatten(-2), axes)


@word("join")
def _join(w: Writing, a: Written, axis: Written) -> Written:
    assert isinstance(a, Code) and isinstance(axis, str)
    at = a.axes.index(axis)
    moved = "" if at == a.rank - 2 else f".movedim({at}, -2)"
    axes = tuple(x for x in a.axes if x != axis)
    return Code(f"{text_of(a, ATOM)}{moved}.flatten(-2)", axes, (*a.sizes[:-1], a.sizes[-1] * as_size(w.axes[axis])))


@function("roll")
def roll(context: Any, a: Named, k: Value, at: Value = -1) -> Value:
    dim = int(at) if int(at) < 0 else len(a.axes) + int(at)  # type: ignore[arg-type]
    return Named(a.data.roll(int(k), dim), a.axes)  # type: ignore[arg-type]


@word("roll")
def _roll(w: Writing, a: Written, k: Written, at: Written = -1) -> Written:
    assert isinstance(a, Code) and isinstance(at, int)
    return Code(f"{text_of(a, ATOM)}.roll({text_of(k)}, {at if at < 0 else len(a.axes) + at})", a.axes, a.sizes)
