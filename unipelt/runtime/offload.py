"""Weights that accelerate keeps elsewhere (`device_map`, `cpu_offload`) and brings only while their module runs.

Between calls such a parameter is on the meta device; here is where its values and the device it runs on are asked for.
"""

from __future__ import annotations

import torch
from torch import nn

from ..anatomy.brought import bringing, device_of

#: What accelerate writes on a module it has hooked; a copy must not keep them, as they call the module itself.
PATCHED = ("forward", "_old_forward", "_hf_hook")


def kept_elsewhere(module: nn.Module) -> bool:
    """Whether a module's own weights are brought for its call only."""
    return any(getattr(hook, "weights_map", None) is not None for hook in bringing(module))


def value_of(module: nn.Module, name: str) -> torch.Tensor:
    """A parameter's or buffer's values, wherever they are kept; on the meta device only if there are none."""
    own = module._parameters[name] if name in module._parameters else module._buffers[name]
    assert own is not None
    if own.device.type == "meta":
        for hook in bringing(module):
            kept = getattr(hook, "weights_map", None)
            if kept is not None:
                return kept[name].to(device_of(own.device, module))
    return own
