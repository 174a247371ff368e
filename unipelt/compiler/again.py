"""Functions that keep their arguments alone for the backward pass, and compute the rest again there.

What such a function makes on its way is as large as a weight or larger, and cheap to compute: keeping it would cost more. Generated
code calls them in training; a text that stands alone never does (`code.torch_source`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


class _Again(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, function: Callable[..., torch.Tensor], *tensors: torch.Tensor) -> torch.Tensor:
        ctx.function = function
        ctx.save_for_backward(*tensors)
        return function(*tensors)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple:  # type: ignore[override]
        needed = ctx.needs_input_grad[1:]
        second = torch.is_grad_enabled()  # a gradient of the gradient is asked for
        with torch.enable_grad():
            inputs = [
                t.view_as(t) if second else t.detach().requires_grad_(n) for t, n in zip(ctx.saved_tensors, needed)
            ]
            wanted = [t for t, n in zip(inputs, needed) if n]
            found = iter(torch.autograd.grad(ctx.function(*inputs), wanted, gradient, create_graph=second))
        return None, *(next(found) if n else None for n in needed)


def again(function: Callable[..., torch.Tensor], *tensors: torch.Tensor) -> torch.Tensor:
    """``function(*tensors)``. A compiler decides by itself what it keeps."""
    if torch.compiler.is_compiling() or not torch.is_grad_enabled():
        return function(*tensors)
    return _Again.apply(function, *tensors)  # type: ignore[no-any-return]


def entrywise(a: torch.Tensor, b: torch.Tensor, c: torch.Tensor, d: torch.Tensor) -> torch.Tensor:
    """``(a @ b) * (c @ d)``."""
    return again(_entrywise, a, b, c, d)


def _entrywise(a: torch.Tensor, b: torch.Tensor, c: torch.Tensor, d: torch.Tensor) -> torch.Tensor:
    return (a @ b) * (c @ d)


def circular(z: torch.Tensor, w: torch.Tensor, axes: str) -> torch.Tensor:
    """``z @ circulant(w)`` by Fourier transforms, without the matrix; ``axes`` says as an einsum's text which dimensions stand in front of the last
    size of z, of w and of the result. Axes that the result lacks are summed."""
    z_axes, w_axes, out = axes.split(",")
    equation = f"{z_axes}z,{w_axes}z->{out}z"

    def convolved(z: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        at_least = torch.promote_types(torch.promote_types(z.dtype, w.dtype), torch.float32)
        both = torch.einsum(equation, torch.fft.rfft(z.to(at_least)), torch.fft.rfft(w.to(at_least)).conj())
        return torch.fft.irfft(both, n=w.shape[-1]).to(z.dtype)

    return again(convolved, z, w)
