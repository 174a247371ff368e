"""What a host does in steady passes (see `steady`): the edits that act there as functions written for them, where they are of the plain kind.

Plain is an edit whose recipe reads what enters its host or what a tap has left, and nothing else that a pass brings. Others are
called as ever.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from ..anatomy.columns import joined
from ..compiler.bound import Read, bound
from ..compiler.recipe import Want
from .edits import Edit, Rows
from .holding import key_of_tensor
from .steady import Steady
from .straight import Ready

Quick = Callable[..., Any]


def of_host(
    edits: Sequence[tuple[str, Any]], side: str, steady: Steady, args: tuple, kwargs: Mapping[str, Any], output: Any = None,
    overlap: bool = False,
) -> Quick | bool | None:  # fmt: skip
    """The function ``(args, kwargs, output)`` (for the side "input" without the last) that gives what the host's hook returns, or the
    new h for an "input"; False where there is none, None where it cannot be told. What was given is what the host was called with now;
    ``overlap``: columns that edits have here have numbers in common."""
    if not all(type(e) is Edit and e.direct and not e.of_weight and e.prompt is None for _, e in edits):
        return False
    entered = args[0] if args else kwargs.get("hidden_states")
    first = type(output) is tuple and len(output) > 0
    h = entered if side == "input" else output[0] if first else output
    if type(h) is not torch.Tensor:
        return False
    if torch.is_autocast_enabled(h.device.type):
        return None
    columns = [e.columns for _, e in edits]
    split = any(c is not None for c in columns)
    if split and (overlap or None in columns):
        return False
    if (split or len(edits) != 1) and (side == "input" or first):
        return False
    if len(edits) > 1 and any(left(e) for _, e in edits):  # who is called as ever finds what was left for it
        return False
    found = []
    for c, (_, e) in zip(columns, edits):
        function = _of_edit(e, side, steady, h if c is None else c.of(h), entered, first)
        if not function:
            return False
        found.append(function)
    if split:
        return _at_columns([*zip(columns, found)])
    return found[0] if len(found) == 1 else _in_turn(found)


def _in_turn(found: Sequence[Quick]) -> Quick:
    def quick(args: tuple, kwargs: Mapping[str, Any], output: Any) -> Any:
        for function in found:
            output = function(args, kwargs, output)
            if output is None:
                return None
        return output

    return quick


def _at_columns(found: Sequence[tuple[Any, Quick]]) -> Quick:
    def quick(args: tuple, kwargs: Mapping[str, Any], output: Any) -> Any:
        parts: dict[Any, torch.Tensor] = {}
        for columns, function in found:
            new = function(args, kwargs, parts[columns] if columns in parts else columns.of(output))
            if new is None:
                return None
            parts[columns] = new
        return joined(output, parts)

    return quick


def _of_edit(edit: Edit, side: str, steady: Steady, h: torch.Tensor, entered: Any, first: bool) -> Any:
    if h.ndim != edit.dims:
        return False
    ready = _ready(edit, "h")
    if ready is None or ready.recipe is None or len(ready.recipe.ends) != 1:
        return False
    own = ready.dtype if ready.dtype is not None else h.dtype
    source = "enters" if side == "input" else "first of a tuple" if first else "leaves"
    reads = {"h": Read(source, h.dtype, h.ndim, cast=h.dtype != own)}
    for name, (_, dims) in zip(ready.reads, ready.lies):
        if name == "x" and name not in left(edit):
            if side == "input" or type(entered) is not torch.Tensor or entered.ndim != dims:
                return False
            reads[name] = Read("enters", entered.dtype, dims, cast=entered.dtype != own)
    return _bound(edit, ready, side, reads, own, h.dtype, steady)


def of_rows(edit: Edit, steady: Steady, like: torch.Tensor) -> tuple[Quick, Rows | None] | None:
    """The function that gives an edit's learned rows as `Edit.rows` does, without arguments, and what it gives where that is always the
    same; None where there is none. What enters has the dtype of ``like``."""
    if type(edit) is not Edit or edit.lies is not None:
        return None
    ready = _ready(edit, "rows")
    if ready is None or ready.recipe is None:
        return None
    own = ready.dtype if ready.dtype is not None else like.dtype
    found = _bound(edit, ready, "rows", {}, own, like.dtype, steady)
    if not found:
        return None
    return found, found() if not left(edit) and not ready.recipe.lines else None


def left(edit: Edit) -> dict[str, str]:
    """What hooks leave for an edit in other modules, with the keys."""
    itself = edit.side == "output" and edit.site.x == edit.site.view.module
    return {need: key for need, key in edit.taps.items() if not (need == "x" and itself)}


def _ready(edit: Edit, want: Want) -> Ready | None:
    """The edit's recipe as it was called just now, where that is all that there is to do."""
    if (
        edit.training
        or edit.watchers
        or edit.asks
        or edit.maps
        or edit.pools
        or edit.grid is not None
        or edit.site.rows is not None
    ):
        return None
    if edit.recipes is None or any(s.stacked is not None for s in (edit, *edit.shared)):
        return None
    found = [r for key, r in [*edit.recipes.ready.items()] if key[:2] == (want, False)]
    if len(found) != 1 or found[0].bases is None or torch.is_grad_enabled():
        return None
    return found[0]


def _bound(
    edit: Edit, ready: Ready, called: str, reads: dict[str, Read], own: torch.dtype, entering: torch.dtype, steady: Steady
) -> Any:  # fmt: skip
    assert ready.recipe is not None and ready.bases is not None and edit.recipes is not None
    dims = dict(zip(ready.reads, (n for _, n in ready.lies)))
    for need, key in left(edit).items():
        source = "left with a flag" if need == "x" and edit.site.x_leaves else "left"
        reads[need] = Read(source, entering, dims.get(need, 3), key, entering != own)
    if not set(ready.reads) <= set(reads):
        return False
    # numbers are views of their tensors, which other data would leave behind
    computed = {*(ready.recipe.computed), *(n for n in ready.places.labels if edit._is_number(n))}
    keys = {key_of_tensor(edit.borrowed.get(n, n)) for n in computed}
    parameters, buffers, lent, _ = ready.places
    if not steady.rests_on(edit, (*parameters, *buffers), keys, passed_by=True):
        return False
    if lent and not steady.rests_on(edit.shared[0], lent, keys, passed_by=True):
        return False
    modules: list[Any] = []
    for base in ready.bases:
        weight = base.module._parameters.get("weight")
        fits = base.columns is None and weight is not None and weight.dtype == own
        modules.append(base.module if fits and steady.rests_on(base.module, ("weight",)) else base)
    tensors: Any = edit._own(ready.places)
    if not tensors or any(t.device != tensors[0].device for t in tensors):
        return False
    if ready.recipe.fold is not None:
        tensors = edit.recipes.kept.of(ready.recipe.source, tensors, ready.fold)
    elif ready.fold is not None:
        tensors = ready.fold(tensors)
    if any(type(t) not in (torch.Tensor, torch.nn.Parameter) for t in tensors):
        return False
    return bound(ready.recipe, called, reads, modules, tensors, ready.dtype, steady.holder)
