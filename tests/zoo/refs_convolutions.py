"""References for `specs/convolutions.pelt`: torch's own modules, with the tokens laid out as a picture by hand."""

from __future__ import annotations

from collections.abc import Callable

import small
import torch
from reference import Seen, by_formula, library, reference
from torch import nn
from torch.nn import functional as F

import unipelt
from transformers import ViTConfig, ViTModel

ROWS, COLUMNS = small.PICTURE[0] // 4, small.PICTURE[1] // 4


def pictured(t: torch.Tensor, f: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """``f`` of the patches [batch, d, rows, columns], and of the class token as a picture of one patch."""
    patches = f(t[:, 1:].reshape(t.shape[0], ROWS, COLUMNS, -1).permute(0, 3, 1, 2))
    alone = f(t[:, :1].reshape(t.shape[0], 1, 1, -1).permute(0, 3, 1, 2))
    return torch.cat([alone.flatten(2).mT, patches.flatten(2).mT], 1)


def convolution(kernel: torch.Tensor, b: torch.Tensor, groups: int = 1) -> nn.Conv2d:
    """A module of torch's with a kernel [a, b, d_in / groups, d_out]."""
    k, _, inner, out = kernel.shape
    m = nn.Conv2d(inner * groups, out, k, padding=k // 2, groups=groups).double().requires_grad_(False)
    m.weight.copy_(kernel.permute(3, 2, 0, 1))
    m.bias.copy_(b)
    return m


@reference("convpass", by="formula", against="nn.Conv2d over the patches, and over the class token alone, ViT")
def _() -> float:
    def formula(s: Seen) -> torch.Tensor:
        def quick(t: torch.Tensor) -> torch.Tensor:
            return t * torch.sigmoid(1.702 * t)

        K = s.K.clone()
        K[1, 1] += torch.eye(8)
        u = quick(F.linear(s.x, s.down.T, s.b_down))
        return s.h + 0.5 * F.linear(quick(pictured(u, convolution(K, s.b))), s.up.T, s.b_up)

    return by_formula(library("convpass", s=0.5), formula, "vit")


@reference(
    "mona", by="formula", against="three depthwise nn.Conv2d and a 1 x 1 one over the patches, nn.LayerNorm, ViT"
)
def _() -> float:
    def formula(s: Seen) -> torch.Tensor:
        def op(t: torch.Tensor) -> torch.Tensor:
            deep = [convolution(getattr(s, f"K_{k}")[:, :, None], getattr(s, f"b_{k}"), 6) for k in (3, 5, 7)]
            t = sum(m(t) for m in deep) / 3.0 + t
            return t + F.conv2d(t, s.P.T[:, :, None, None], s.p)

        z = s.h + s.residual
        y = F.layer_norm(z, z.shape[-1:], s.t["y_gamma"], s.t["y_beta"]) * s.gamma + z * s.gamma_x
        return s.h + F.linear(F.gelu(pictured(F.linear(y, s.down.T, s.b_down), op)), s.up.T, s.b_up)

    return by_formula(library("mona", r=6), formula, "vit")


@reference("conv_adapter", by="formula", against="a grouped nn.Conv2d and a 1 x 1 one, ViT")
def _() -> float:
    def formula(s: Seen) -> torch.Tensor:
        kernel = s.K.permute(1, 2, 3, 0, 4).flatten(3)  # [k, k, reduction, channels]
        m = convolution(kernel, s.b, 8)
        u = pictured(s.x, lambda t: F.conv2d(F.relu(m(t)), s.up.T[:, :, None, None], s.b_up))
        return s.h + u * s.se

    return by_formula(library("conv_adapter"), formula, "vit")


@reference("convpass", by="count", against="Jie and Deng 2022: 24 modules of 13,648 (0.33 M) on ViT-B/16")
def _() -> float:
    with torch.device("meta"):
        model = ViTModel(ViTConfig())
    return abs(unipelt.plan(model, library("convpass")).counts.trained - 24 * 13_648)
