"""A model as it evaluates, for a while, and a model that passes leave as it was."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from .interrupts import ended_by
from .quantised import packs_itself


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients inside; each module's mode is as it was afterwards.

    Maps that are stored otherwise once they are called so are in train mode, in which they compute the same.
    """
    modes, gradients = [(m, m.training) for m in model.modules()], torch.is_grad_enabled()

    def end() -> None:
        for m, mode in modes:
            m.training = mode
        torch.set_grad_enabled(gradients)

    with ended_by(end):
        model.eval()
        for m, _ in modes:
            m.training = packs_itself(m)
        torch.set_grad_enabled(False)
        yield


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """What a pass inside sets in the model's modules, and in their configurations, is as it was afterwards.

    Some models adapt to what goes in, for good: a window shrinks to a small picture, and larger ones no longer fit; others
    hang hooks on their modules in their first pass. Attributes, buffers, hooks and what is in plain dictionaries are put
    back; numbers that a pass writes into a tensor are not.
    """
    spaces: dict[int, dict[Any, Any]] = {}
    for m in model.modules():
        config = m.__dict__.get("config")
        for space in (m.__dict__, vars(config) if hasattr(config, "__dict__") and not isinstance(config, dict) else {}):
            spaces[id(space)] = space
            spaces |= {id(v): v for v in space.values() if type(v) in (dict, OrderedDict)}
    before = [(space, dict(space)) for space in spaces.values()]

    def end() -> None:
        for space, old in before:
            for name in [n for n in space if n not in old]:
                del space[name]
            space.update((n, v) for n, v in old.items() if n not in space or space[n] is not v)

    with ended_by(end):
        yield
