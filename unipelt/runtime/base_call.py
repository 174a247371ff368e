"""The frozen modules of the base that a form calls (`base(…)`), past every hook."""

from __future__ import annotations

import torch
from torch import nn

from ..anatomy.columns import Columns, taken

_COMPUTED = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class BaseCall:
    """Calls a frozen module of the base past every hook, so past every edit. It computes in its own dtype, and what it yields
    has that of what was given (outside of autocast, which chooses for itself)."""

    def __init__(self, module: nn.Module, columns: Columns | None):
        self.module, self.columns = module, columns

    def __call__(self, t: torch.Tensor) -> torch.Tensor:
        if torch.is_autocast_enabled(t.device.type):
            return taken(self.module.forward(t), self.columns)
        weight = getattr(self.module, "weight", None)
        # one that is packed says nothing of what its module takes
        fit = weight is None or weight.dtype == t.dtype or weight.dtype not in _COMPUTED
        out = taken(self.module.forward(t if fit else t.to(weight.dtype)), self.columns)  # type: ignore[union-attr]
        return out if out.dtype == t.dtype else out.to(t.dtype)
