"""Learned rows that stand in a cache, before the tokens' keys and values, while steps of a generation follow one another.

Put before the cached keys at every step, rows cost a copy of all keys and values at every step. In steady passes (see `steady`) of one
query, where the rows are the same at each, they are put there once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from transformers.cache_utils import DynamicCache, DynamicLayer

if TYPE_CHECKING:
    from .steady import Steady


class WithRows(DynamicLayer):
    """A layer of a cache that has learned rows before those of the tokens, of which only attention knows.

    It is one for steps of one query in one kind of passes. Before any other pass, and for everyone else who reads or writes its keys
    or values, it becomes a plain layer again, with the tokens alone. Copies and pickles are plain.
    """

    whole: tuple[torch.Tensor, torch.Tensor]  # keys and values [batch, groups, rows + tokens, d]
    rows: int
    steady: Steady

    @classmethod
    def put(cls, layer: DynamicLayer, whole: tuple[torch.Tensor, torch.Tensor], rows: int, steady: Steady) -> None:
        """Makes a plain layer one with rows."""
        del layer.keys, layer.values
        layer.__class__ = cls
        layer.whole, layer.rows, layer.steady = whole, rows, steady  # type: ignore[attr-defined]

    def leave(self) -> None:
        """Makes it a plain layer, with views of the tokens' keys and values."""
        keys, values = (t[:, :, self.rows :] for t in self.whole)
        del self.whole, self.rows, self.steady
        self.__class__ = DynamicLayer  # type: ignore[assignment]
        self.keys, self.values = keys, values

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        holder = self.steady.holder
        if holder.steady is not self.steady or key_states.shape[2] != 1:
            self.leave()
            return self.update(key_states, value_states, *args, **kwargs)
        keys, values = self.whole
        self.whole = torch.cat((keys, key_states), 2), torch.cat((values, value_states), 2)
        holder.with_rows_in = self.whole[0]
        return self.whole

    def get_seq_length(self) -> int:
        return self.whole[0].shape[2] - self.rows

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        keys, values = self.whole
        self.whole = keys.index_select(0, beam_idx.to(keys.device)), values.index_select(0, beam_idx.to(values.device))

    @property
    def keys(self) -> Any:
        self.leave()
        return self.keys

    @keys.setter
    def keys(self, new: Any) -> None:
        self.leave()
        self.keys = new

    @property
    def values(self) -> Any:
        self.leave()
        return self.values

    @values.setter
    def values(self, new: Any) -> None:
        self.leave()
        self.values = new

    def __reduce_ex__(self, protocol: Any) -> Any:
        self.leave()
        return self.__reduce_ex__(protocol)


def layer_of(cache: Any, module: Any, key: torch.Tensor, value: torch.Tensor) -> DynamicLayer | None:
    """The plain layer of the cache whose keys and values these are, and in which rows can stay: one of a cache whose layers are all plain,
    on their device, with one for each block, so that no other block reads them; None where there is none."""
    at = getattr(module, "layer_idx", None)
    if type(cache) is not DynamicCache or cache.offloading or type(at) is not int or at >= len(cache.layers):
        return None
    layers: list[Any] = cache.layers
    layer = layers[at]
    if type(layer) is not DynamicLayer or layer.keys is not key or layer.values is not value:
        return None
    blocks = getattr(getattr(module, "config", None), "num_hidden_layers", None)
    plain = all(type(x) in (DynamicLayer, WithRows) and x.get_seq_length() for x in layers)
    return layer if plain and len(layers) == blocks else None
