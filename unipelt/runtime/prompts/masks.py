"""Which tokens of a stack are real: taken from the mask that its own module is called with.

Not from the model's call: a decoder has another mask than its encoder, and generation calls an encoder by itself.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import nn

from ...anatomy.sites import Stack
from ..switch import Switch


class MaskTap:
    """A hook of a stack's module that notes the mask [batch, tokens] of its tokens.

    A decoder that is given its encoder's mask leaves that too: the encoder may have run before, in another call.
    """

    def __init__(self, switch: Switch, stack: Stack, module: nn.Module):
        self.switch = switch
        self.stacks = {"attention_mask": stack.name}
        names = list(inspect.signature(module.forward).parameters)
        if stack.name == "decoder" and "encoder_attention_mask" in names:  # T5's encoder has the argument too
            self.stacks["encoder_attention_mask"] = "encoder"
        self.at = {n: names.index(n) for n in self.stacks if n in names}

    def enters(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        if not self.switch.live:
            return
        masks = self.switch.holder.current.masks
        for name, stack in self.stacks.items():
            at = self.at.get(name, len(args))
            mask = args[at] if at < len(args) else kwargs.get(name)
            if isinstance(mask, torch.Tensor) and mask.dim() == 2:
                masks[stack] = mask
            else:
                masks.pop(stack, None)
