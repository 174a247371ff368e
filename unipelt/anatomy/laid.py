"""How the tokens of a value that a pass recorded lie, and where a projection of theirs is."""

from __future__ import annotations

from typing import Any

from torch import nn

from .columns import Columns
from .layout import Layout
from .record import Key, Recording
from .sites import View
from .sublayers import Projected


def axis(r: Recording, key: Key) -> int:
    """The dimension of a value's numbers for each token, counted from the last."""
    return r.axes[key] - len(r.shapes[key]) if key in r.axes else -1


def lies(r: Recording, key: Key, pictures: bool) -> Layout | None:
    """How the tokens of a value lie, where that is not [batch, token, d]: in rows and columns, behind their numbers, or before the examples."""
    if key in r.axes or (pictures and len(r.shapes[key]) > 3):
        return Layout(axis(r, key))
    return Layout(turned=True) if _turned(r, key) else None


def _turned(r: Recording, key: Key) -> bool:
    """Whether a value is [token, batch, d], as the pass's words say, which are [batch, token]: one example of several tokens."""
    shape = r.shapes[key]
    words = {r.shapes[k] for k in r.inputs if k not in r.floating and len(r.shapes[k]) == 2}
    return len(shape) == 3 and shape[0] > 1 == shape[1] and (1, shape[0]) in words


def map_view(model: nn.Module, r: Recording, p: Projected, pictures: bool) -> View:
    """A projection's place. One that is a convolution reads every so many positions."""
    module: Any = model.get_submodule(p.step.weight)
    convolves = isinstance(module, nn.modules.conv._ConvNd)
    layout = (
        Layout(-1 - len(module.kernel_size), tuple(module.stride)) if convolves else lies(r, p.step.outs[0], pictures)
    )
    return View(p.step.weight, None if p.columns is None else Columns.of_indices(p.columns), layout=layout)
