"""Factors at a convolution of one position, a linear map of each pixel: peft keeps them as two convolutions, with sizes of 1 behind."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

import torch
from torch import nn

from .declared import Declared, no_counterpart
from .places import module_at, module_of


def spread(model: nn.Module, d: Declared, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors for peft, those at a convolution [a, b] as [a, b, 1, 1]. Raises `PeltError` for a method that peft has not there."""
    found = {}
    for k, t in tensors.items():
        path = module_of(d, k)
        module = module_at(model, path)
        if isinstance(module, nn.modules.conv._ConvNd):
            if not d.convolutions:
                raise no_counterpart(f"`{path}` is a convolution, and peft has `{d.name}` at linear maps alone")
            t = t.reshape(*t.shape, *[1] * len(module.kernel_size))
        found[k] = t
    return found


def flat(
    model: nn.Module, d: Declared, tensors: Mapping[str, torch.Tensor], here: Mapping[str, str]
) -> dict[str, torch.Tensor]:
    """The tensors of peft's, those at a convolution of one position as of a linear map; ``here`` has our path for each of peft's."""
    found = {}
    for k, t in tensors.items():
        path = module_of(d, k)
        at = module_at(model, here.get(path or ""))
        pointwise = isinstance(at, nn.modules.conv._ConvNd) and t.dim() > 2 and prod(t.shape[2:]) == 1
        found[k] = t.flatten(1) if pointwise and d.convolutions else t
    return found
