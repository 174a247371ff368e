"""Modules that have an adapter's tensors by name: those of one edit, and those that several edits read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from .switch import Holder


@dataclass(frozen=True)
class Stacked:
    """Which of a module's tensors have a slot for each adapter of a bank, [slots, …], and where the thread says which it means."""

    names: frozenset[str]
    holder: Holder

    @property
    def several(self) -> bool:
        """Whether the rows that are computed now have several adapters: what is read then has the axis of the batch in front."""
        part = self.holder.part
        return part is not None and part.slot is None

    def of(self, name: str, t: torch.Tensor) -> torch.Tensor:
        """The tensor of the adapter that is meant, or of each row's: [rows, …]."""
        if name not in self.names:
            return t
        part = self.holder.part
        if part is None:  # outside a pass, where only the shape counts
            return t[0]
        return t[part.slot] if part.slot is not None else t.index_select(0, part.slots.on(t.device))


class Holding(nn.Module):
    """Has tensors by name: parameters, and frozen draws as buffers."""

    stacked: Stacked | None = None

    def hold(self, tensors: Mapping[str, torch.Tensor], stacked: Stacked | None = None) -> None:
        self.stacked = stacked
        #: Numbers are registered as vectors of one entry: FSDP2 does not shard scalars.
        self.scalars = {name: t.dim() == 0 for name, t in tensors.items()}
        for name, t in tensors.items():
            data = t.detach().reshape(1) if self.scalars[name] else t
            if isinstance(t, nn.Parameter):
                kept = nn.Parameter(data, t.requires_grad) if self.scalars[name] else t
                self.register_parameter(key_of_tensor(name), kept)
            else:
                self.register_buffer(key_of_tensor(name), data, persistent=stacked is None)

    def _load_from_state_dict(self, state: dict[str, Any], prefix: str, *others: Any) -> None:
        """As torch's; what earlier versions called otherwise is found, so that a state dict or a checkpoint of theirs is read whole."""
        keys = {name: prefix + key_of_tensor(name) for name in self.scalars}
        if not set(keys.values()) <= set(state):
            found = {
                name: prefix + former
                for name in keys
                for former in (name.replace(".", ":"), f"twin.{name}")
                if prefix + former in state
            }
            values = {
                name: state.pop(former) for name, former in found.items()
            }  # all before any is written: one may be called as another was
            state.update({keys[name]: t for name, t in values.items()})
        super()._load_from_state_dict(state, prefix, *others)

    def meant(self, name: str, t: torch.Tensor) -> torch.Tensor:
        """A tensor as it is read: of a bank, that of the adapters whose rows are computed now."""
        return t if self.stacked is None else self.stacked.of(name, t)

    def held(self) -> dict[str, torch.Tensor]:
        tensors = {name: self.meant(name, getattr(self, key_of_tensor(name))) for name in self.scalars}
        return {name: t.reshape(()) if self.scalars[name] else t for name, t in tensors.items()}


class Shared(Holding):
    """Tensors of an adapter that several edits read. It belongs to the model, not to a layer.

    Each is registered once, and outside the layers: a layer can be sharded by itself (FSDP2 wants a parameter in one
    group) or moved by itself. Edits get them by calling it, so that hooks which bring a module's weights act.
    """

    def __init__(self, tensors: Mapping[str, torch.Tensor], stacked: Stacked | None = None):
        super().__init__()
        self.hold(tensors, stacked)

    def forward(self, registered: bool = False) -> dict[str, Any]:
        """The tensors by name, or as they are ``registered``, by key."""
        return {**self._parameters, **self._buffers} if registered else self.held()


def key_of_tensor(name: str) -> str:
    """A tensor's name as an attribute of a module. It begins as none of a module's own attributes does, whatever a method calls it."""
    return f"tensor_{name.replace('.', ':')}"
