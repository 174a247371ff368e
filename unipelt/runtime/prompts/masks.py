"""Which tokens of a stack are real: taken from the mask that its own module is called with.

Not from the model's call: a decoder has another mask than its encoder, and generation calls an encoder by itself.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ...anatomy.sites import Stack
from .. import caches
from ..switch import Switch
from .call import Call, named_arguments
from .selected import Entered

if TYPE_CHECKING:
    from .hooks import InputHooks


class MaskTap:
    """A hook of a stack's module that notes the mask [batch, tokens] of its tokens, and the tokens where edits select some.

    A decoder that is given its encoder's mask leaves that too: the encoder may have run before, in another call.
    """

    def __init__(self, switch: Switch, stack: Stack, module: nn.Module, inputs: InputHooks):
        self.switch, self.stack, self.inputs = switch, stack.name, inputs
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
        if self._selects:
            self._enters(module, args, kwargs)

    @property
    def _selects(self) -> bool:
        return any(name in self.inputs.selecting for name in self.switch.live)

    def _enters(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        """Notes the tokens that enter, of which edits select some."""
        call, current = Call(module, named_arguments(module, args, kwargs)), self.switch.holder.current
        if not any(call.named.get(n) is not None for n in ("input_ids", "inputs_embeds")):
            return
        own = self.stack == self.inputs.sites.main[0].name  # that of the rows of a prompt
        known = current.entered.get(self.stack)
        if not own and known is not None and known.layout is not None:
            return  # rows stand among the parts of a picture (see `pictures`)
        current.entered[self.stack] = Entered(
            self.stack, call, current.layout if own and not call.seen else None, self.inputs.standing if own else 0
        )

    def leaves(self, module: nn.Module, args: tuple, output: Any) -> None:
        """A cache, which may have been made in this call, remembers the ids."""
        entered = self.switch.holder.current.entered.get(self.stack) if self.switch.live and self._selects else None
        if entered is not None and self.inputs.looks_for_text(self.switch.live):
            entered.remember(entered.call.cache if entered.call.cache is not None else caches.yielded(output))
