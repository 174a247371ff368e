"""What lies below the last block that runs once and is no block: convolutions, and whole stages of them, that need not run either.

Nobody says what these modules are, and what they yield may be read elsewhere, too. So it is proved by numbers: in a small pass their
outputs become NaN, the blocks are passed over, and the last one yields what it did. They are passed over only where the model's
outputs stay the same, to the bit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import nn

from ..anatomy.base import base_modules
from ..anatomy.examples import first_that_runs
from ..anatomy.interrupts import ended_by
from ..compiler.untouched import Cut, within
from ..language.report.diagnostics import PeltError
from ..anatomy.stand_in import StandIn


def stem_of(model: nn.Module, cut: Cut) -> tuple[str, ...] | None:
    """The modules that are done before the trunk's last block begins and that nothing but its blocks reads; none where the trunk
    has no convolution. None: not even the blocks can be passed over."""
    if not any(isinstance(m, nn.modules.conv._ConvNd) and not cut.above(p) for p, m in base_modules(model)):
        return ()
    try:
        given, (before, stem, states) = first_that_runs(model, run=lambda x: _watched(model, cut, x))
    except PeltError:  # no pass is known
        return ()
    for tried in dict.fromkeys((stem, ())):
        try:
            _, after = first_that_runs(model, given=given, run=partial(_without, model, cut, tried, states))
        except PeltError:  # shapes do not fit
            continue
        if len(before) == len(after) and all(torch.equal(a, b) for a, b in zip(before, after)):
            return tried
    return None


def _watched(model: nn.Module, cut: Cut, given: Mapping[str, Any]) -> tuple[list[torch.Tensor], tuple[str, ...], Any]:
    """The outputs of a pass, the outermost modules that were done before the last block began, and what left that block."""
    blocks = [cut.path(i) for i in range(cut.blocks)]
    done: list[str] = []
    left: list[Any] = []
    begun = [False]
    last = model.get_submodule(blocks[-1])
    handles = [last.register_forward_pre_hook(lambda *_: begun.__setitem__(0, True))]

    def leave(path: str, output: Any) -> None:
        if not begun[0]:
            done[:] = [p for p in done if not within(p, path)]
            done.extend([path] if isinstance(output, torch.Tensor) and output.is_floating_point() else [])

    for path, m in base_modules(model):
        if path and not cut.above(path):
            handles.append(m.register_forward_hook(lambda m, args, output, path=path: leave(path, output)))
    handles.append(last.register_forward_hook(lambda m, args, output: left.append(output)))

    def end() -> None:
        for h in handles:
            h.remove()

    with ended_by(end):
        outputs = _tensors(model(**given))
    return outputs, tuple(p for p in done if p not in blocks), left[-1]


class _Yields(StandIn):
    """A module that yields what somebody says, and does not run."""

    def __init__(self, module: nn.Module, yields: Callable[[Any], Any]):
        super().__init__(module, "forward")
        self.yields = yields

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.yields(args[0] if args else next(iter(kwargs.values())))


class _Nothing(StandIn):
    """A module that runs, and yields NaN."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return torch.full_like(self.own()(*args, **kwargs), torch.nan)


def _without(
    model: nn.Module, cut: Cut, stem: tuple[str, ...], states: Any, given: Mapping[str, Any]
) -> list[torch.Tensor]:
    """The outputs of a pass in which the stem yields NaN, the blocks what enters them, and the last one what it did."""
    single = isinstance(states, torch.Tensor)
    there: list[StandIn] = [_Nothing(model.get_submodule(p), "forward") for p in stem]
    for i in range(cut.blocks - 1):
        there.append(_Yields(model.get_submodule(cut.path(i)), lambda x: x if single else (x,)))
    there.append(_Yields(model.get_submodule(cut.path(cut.blocks - 1)), lambda x: states))

    def end() -> None:
        for s in there:
            s.take()

    with ended_by(end):
        for s in there:
            s.put()
        return _tensors(model(**given))


def _tensors(output: Any) -> list[torch.Tensor]:
    values = list(output.values()) if isinstance(output, Mapping) else output
    values = values if isinstance(values, (tuple, list)) else [values]
    return [v for v in values if isinstance(v, torch.Tensor)]
