"""``chance``: one number, uniform in [0, 1), drawn where the model is called and read wherever its edits say so.

It comes from torch's generator on the CPU, as dropout does there: `torch.manual_seed` seeds it, and a checkpoint that
keeps the generator's state resumes it. It stays until the next call, so layers that are computed again in the backward
pass (gradient checkpointing) see the same number; a backward pass must therefore come before the next forward pass.
Each process of a distributed run draws its own.
"""

from __future__ import annotations

import torch
from torch import nn

from .switch import Switch


class Draw:
    """A pre-hook of the model itself that draws the number while an adapter acts."""

    def __init__(self, switch: Switch):
        self.switch = switch

    def enters(self, module: nn.Module, args: tuple) -> None:
        if self.switch.live:
            self.switch.holder.values["chance"] = torch.rand(())
