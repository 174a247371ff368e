"""What rows carry from layer to layer in a pass (`carry s = first then next`): left by each layer, taken by the next one.

It belongs to a pass of the whole model, in one thread: a layer that is called outside of one, as gradient checkpointing does it when it
computes a layer again, would not find what the layers before had, and is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from ..language.report.diagnostics import error
from ..language.sites import AXES
from ..language.types.carried import from_before

if TYPE_CHECKING:
    from .edits import Edit

#: Under which name an edit is given what the layers before have left: no name of the language.
CARRIED = ":carried"


class Left(NamedTuple):
    """What the last layer of a chain left: its number, how many were called, the values by name."""

    layer: int | None
    calls: int
    values: Mapping[str, torch.Tensor]


def taken(edit: Edit, given: Mapping[str, Any], h: torch.Tensor) -> dict[str, Any]:
    """What is in scope, with what the layer before had, if there is one."""
    current = given.get(CARRIED)
    name = edit.carries[0]
    if current is None:
        raise error("E0549", f"`{edit.row.name}` carries `{name}` from layer to layer, and `{edit.site.label}` is computed outside a pass of "
                    "the model: by itself, or again for its gradients", edit.row.span,
                    help="call the model that was given to unipelt.apply; where activations are checkpointed to save memory, switch that off")  # fmt: skip
    left = _before(edit, current)
    if left is None:
        return dict(given)
    values = {from_before(n): t if t.device == h.device else t.to(h.device) for n, t in left.values.items()}
    for n, t in values.items():
        _fits(edit, n, t, h)
    return {**given, **values}


def _before(edit: Edit, current: Mapping[str, Left]) -> Left | None:
    """What the layer before had; None at the first one. A second run over the layers in one pass begins anew."""
    left = current.get(edit.chain)
    if left is None:
        return None
    again = left.calls >= edit.runs if edit.layer is None else edit.layer <= (left.layer or 0)
    if again and edit.layer is not None and edit.leads:
        return None
    if again:
        raise error("E0549", f"`{edit.row.name}` carries `{edit.carries[0]}` from layer to layer, and `{edit.site.label}` is called more than "
                    "once in a pass, or behind a later layer", edit.row.span,
                    help="call the layers one after the other, each once: without chunks of tokens (chunk_size_feed_forward)")  # fmt: skip
    return left


def _fits(edit: Edit, name: str, t: torch.Tensor, h: torch.Tensor) -> None:
    """Refuses what has other examples or tokens than there are here."""
    lengths = dict(zip(edit.types["h"][0], h.shape))
    for axis, n in zip(edit.types[name][0], t.shape):
        if axis in AXES and n not in (1, lengths.get(axis, n)):
            raise error("E0549", f"`{edit.row.name}` carries a value for each of {n} {axis}s, and at `{edit.site.label}` there are "
                        f"{lengths[axis]}", edit.row.span, help="select layers that have the same tokens")  # fmt: skip


def leave(edit: Edit, given: Mapping[str, Any], values: Mapping[str, torch.Tensor]) -> None:
    """Leaves what is carried to the next layer."""
    current = given[CARRIED]
    before = current.get(edit.chain)
    count = before.calls if before is not None and from_before(edit.carries[0]) in given else 0
    current[edit.chain] = Left(edit.layer, count + 1, values)
