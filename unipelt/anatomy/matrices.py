"""A linear map's weight as a matrix [d_in, d_out], whichever way its module stores it."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import torch
from torch import nn

from .evaluating import untouched
from .quantised import PLAIN, unreadable, values, without_weight

#: So many unit vectors enter a map at once.
_ROWS = 1024


def by_its_calls(module: Any) -> torch.Tensor:
    """[d_in, d_out], what a map without a weight computes with: what it makes of unit vectors, whichever library's it is.

    Nothing is left of it in the module. `PeltError` (E0565) where the map takes numbers of no type, or does not do with other numbers
    what this matrix does.
    """
    shape = without_weight(module)
    assert shape is not None
    buffers = [b for b in module._buffers.values() if b is not None]
    found = None
    if not any(b.is_meta for b in buffers):
        own = [b.dtype for b in buffers if b.dtype in PLAIN]
        for dtype in dict.fromkeys([*own, torch.float32, torch.bfloat16, torch.float16]):
            with suppress(Exception):  # of a kernel that takes other types, or nothing here
                found = _of_unit_vectors(module, *shape, dtype, buffers[0].device)
                break
    if found is None:
        raise unreadable(module, "weight")
    return found


def _of_unit_vectors(
    module: Any, d_in: int, d_out: int, dtype: torch.dtype, device: torch.device
) -> torch.Tensor | None:
    """What a map makes of unit vectors, less what it makes of zeros; None where that is not its matrix."""

    def made(x: torch.Tensor) -> torch.Tensor:
        return module.forward(x.requires_grad_()).detach().float()  # type: ignore[no-any-return]

    probe = torch.randn(4, d_in, generator=torch.Generator().manual_seed(0)).to(device, dtype)
    with untouched(module), torch.enable_grad():
        module.training = True  # in evaluation, some pack their codes for good when they are called
        bias = made(torch.zeros_like(probe[:1]))
        unit = torch.eye(d_in, dtype=dtype, device=device)
        found = torch.cat([made(rows.clone()) - bias for rows in unit.split(_ROWS)])
        there, here = made(probe.clone()), probe.float() @ found + bias
    right = found.shape == (d_in, d_out) and bool((there - here).norm() <= 0.02 * here.norm())
    return found.to(dtype) if right else None


def matrix(module: nn.Module) -> torch.Tensor:
    """The weight of a linear map as [d_in, d_out], whichever way the module stores it; codes are turned into numbers."""
    own = getattr(module, "weight", None)
    if not isinstance(own, torch.Tensor):
        if without_weight(module) is not None:
            return by_its_calls(module)
        raise unreadable(module, "weight")
    return as_map(module, values(module, "weight", own))


def as_map(module: nn.Module, weight: torch.Tensor) -> torch.Tensor:
    """A linear map's weight as [d_in, d_out], whichever way the module stores it; a convolution of one position is one, too.

    A table of embeddings maps ids as rows of an identity, so its weight is what it is; what is no matrix is, too.
    """
    return weight if weight.dim() < 2 or stored_as_map(module) else weight.flatten(1).T


def stored_as_map(module: nn.Module) -> bool:
    """Whether a module stores its weight as [d_in, d_out]; torch's linear maps store the transpose."""
    return isinstance(module, nn.Embedding) or type(module).__name__ == "Conv1D"


def as_stored(module: nn.Module, W: torch.Tensor) -> torch.Tensor:
    """[d_in, d_out] as the module stores its weight."""
    if W.dim() < 2 or stored_as_map(module):
        return W
    kernel = getattr(module, "kernel_size", ()) if isinstance(module, nn.modules.conv._ConvNd) else ()
    return W.T.reshape(*W.T.shape, *kernel)
