"""Weights that accelerate keeps elsewhere (`device_map`, `cpu_offload`) and brings only while their module runs.

Between calls such a parameter is on the meta device; here is where its values and the device it runs on are asked for.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

#: What accelerate writes on a module it has hooked; a copy must not keep them, as they call the module itself.
PATCHED = ("forward", "_old_forward", "_hf_hook")


def _hooks(module: nn.Module) -> Iterator[Any]:
    hook = getattr(module, "_hf_hook", None)
    yield from getattr(hook, "hooks", (hook,) if hook is not None else ())


def kept_elsewhere(module: nn.Module) -> bool:
    """Whether a module's own weights are brought for its call only."""
    return any(getattr(hook, "weights_map", None) is not None for hook in _hooks(module))


def device_of(given: torch.device, *modules: nn.Module) -> torch.device:
    """The device on which the first of the modules runs: ``given`` unless that is meta and accelerate names another."""
    if given.type == "meta":
        for hook in (h for module in modules for m in module.modules() for h in _hooks(m)):
            device = getattr(hook, "execution_device", None)
            if device is not None:
                return torch.device(device)
    return given


def value_of(module: nn.Module, name: str) -> torch.Tensor:
    """A parameter's or buffer's values, wherever they are kept; on the meta device only if there are none."""
    own = module._parameters[name] if name in module._parameters else module._buffers[name]
    assert own is not None
    if own.device.type == "meta":
        for hook in _hooks(module):
            kept = getattr(hook, "weights_map", None)
            if kept is not None:
                return kept[name].to(device_of(own.device, module))
    return own
