"""Models without all of their weights: on the meta device, or brought by accelerate's hooks only while their modules run."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from .base import base_parameters


def bringing(module: nn.Module) -> Iterator[Any]:
    """accelerate's hooks of a module."""
    hook = getattr(module, "_hf_hook", None)
    yield from getattr(hook, "hooks", (hook,) if hook is not None else ())


def device_of(given: torch.device, *modules: nn.Module) -> torch.device:
    """The device on which the first of the modules runs: ``given`` unless that is meta and accelerate names another."""
    if given.type == "meta":
        for hook in (h for module in modules for m in module.modules() for h in bringing(m)):
            device = getattr(hook, "execution_device", None)
            if device is not None:
                return torch.device(device)
    return given


def lacks_weights(model: nn.Module) -> bool:
    """Whether a model has parameters on meta that nothing brings."""
    return any(p.is_meta for _, p in base_parameters(model)) and device_of(torch.device("meta"), model).type == "meta"


def are_brought(model: nn.Module) -> bool:
    """Whether accelerate's hooks bring some of a model's weights while their modules run."""
    return any(getattr(h, "offload", False) for m in model.modules() for h in bringing(m))


def on_meta(model: nn.Module) -> nn.Module:
    """A model that has some of its weights, without any: a copy on the meta device. Its modules are new, its sizes and paths are not."""
    held = [*model.parameters(), *model.buffers()]
    memo: dict[int, Any] = {}
    for t in held:
        empty = torch.empty_like(t, device="meta")
        memo[id(t)] = nn.Parameter(empty, requires_grad=t.requires_grad) if isinstance(t, nn.Parameter) else empty
    return copy.deepcopy(model, memo)
