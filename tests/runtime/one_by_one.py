"""A batch, and what a model yields for each of its examples by itself, for the tests of batches with several adapters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

import unipelt


def batch(n: int, padded: bool = True) -> dict[str, torch.Tensor]:
    ids = torch.randint(3, 20, (n, 7), generator=torch.Generator().manual_seed(n))
    mask = torch.ones_like(ids)
    if padded:
        mask[::2, 5:] = 0
    return {"input_ids": ids, "attention_mask": mask}


def outputs(m: nn.Module, who: Sequence[str | None], x: dict[str, torch.Tensor]) -> list[Any]:
    """What the model yields for each example, run with its own adapter."""
    found = []
    for i, name in enumerate(who):
        with torch.no_grad(), unipelt.using(m, name):
            found.append(m(**{n: t[i : i + 1] for n, t in x.items()}))
    return found


def alone(m: nn.Module, who: Sequence[str | None], x: dict[str, torch.Tensor]) -> torch.Tensor:
    """The first of what the model yields for each example, as of one batch."""
    return torch.cat([out[0] for out in outputs(m, who, x)])
