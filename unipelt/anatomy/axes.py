"""In which dimension of a value the numbers of each token lie: in the last one, except behind convolutions and the norms of channels,
which yield [batch, channels, rows, columns].

Known from there on by what operations do with dimensions. Where a pass has no convolution it is the last dimension everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import TYPE_CHECKING

from torch import nn

if TYPE_CHECKING:
    from .record import Key, Step

#: Operations that yield channels in the second dimension, and those that yield the numbers of each token in the last.
_CHANNELS = ("convolution", "batch_norm", "group_norm", "instance_norm")
_LAST = ("projection", "layer_norm", "rms_norm", "mm", "addmm", "embedding")
#: Operations of which it is not known, because they read several values that lie otherwise.
_UNKNOWN = ("attention", "bmm", "baddbmm", "matmul", "softmax")
Shape = tuple[int, ...]


def axes(steps: Sequence[Step], shapes: Mapping[Key, Shape], modules: Mapping[str, nn.Module]) -> dict[Key, int]:
    """The dimension of each token's numbers, for the values in which it is not the last one."""
    if not any(_convolves(s, modules) for s in steps):
        return {}
    known: dict[Key, int] = {}
    for s in steps:
        for o in s.outs:
            axis = _axis(s, shapes[o], shapes, known, modules)
            if axis is not None and 0 < axis < len(shapes[o]):
                known[o] = axis
    return {k: axis for k, axis in known.items() if axis < len(shapes[k]) - 1}


def _convolves(s: Step, modules: Mapping[str, nn.Module]) -> bool:
    own = s.op == "projection" and isinstance(modules[s.weight], nn.modules.conv._ConvNd)
    return own or any(w in s.op for w in _CHANNELS)


def _axis(s: Step, shape: Shape, shapes: Mapping[Key, Shape], known: Mapping[Key, int], modules: Mapping[str, nn.Module]) -> int | None:  # fmt: skip
    """Where a step puts the numbers of each token; None where that is not known."""
    if _convolves(s, modules):
        return 1
    if s.op in _LAST or "layer_norm" in s.op:
        return len(shape) - 1
    at = next((i for i in s.ins if i in known), None)
    if at is None or any(w in s.op for w in _UNKNOWN):
        return None
    before, axis = shapes[at], known[at]
    moved = _MOVES.get(s.op)
    if moved is not None:
        return moved(s.args[1:], axis, len(before))
    if len(shape) == len(before):
        return axis if shape[axis] == before[axis] else None
    lead = prod(before[:axis])
    return next((j for j, n in enumerate(shape) if n == before[axis] and prod(shape[:j]) == lead), None)


def _permuted(args: Sequence, axis: int, n: int) -> int | None:
    return [d % n for d in args[0]].index(axis)


def _transposed(args: Sequence, axis: int, n: int) -> int | None:
    a, b = (d % n for d in args[:2])
    return b if axis == a else a if axis == b else axis


def _selected(args: Sequence, axis: int, n: int) -> int | None:
    d = args[0] % n
    return None if d == axis else axis - (d < axis)


_MOVES: Mapping[str, Callable[[Sequence, int, int], int | None]] = {
    "permute": _permuted, "transpose": _transposed, "select": _selected,
}  # fmt: skip
