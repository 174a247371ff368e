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
    from .switch import Holder


def _of_the_tokens(name: str) -> Any:
    """An attribute of the plain layer that a layer with rows becomes when it is asked for."""

    def get(layer: WithRows) -> Any:
        layer.leave()
        return getattr(layer, name)

    def put(layer: WithRows, new: Any) -> None:
        layer.leave()
        setattr(layer, name, new)

    return property(get, put)


class WithRows(DynamicLayer):
    """A layer of a cache that has learned rows before those of the tokens, of which only attention knows.

    It is one for steps of one query in one kind of passes. Before any other pass, and for everyone else who reads or writes its keys
    or values, it becomes a plain layer again, with the tokens alone. Copies and pickles are plain.
    """

    whole: tuple[torch.Tensor, torch.Tensor]  # keys and values [batch, groups, rows + tokens, d]
    rows: int
    steady: Steady
    keys, values = _of_the_tokens("keys"), _of_the_tokens("values")

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

    def __reduce_ex__(self, protocol: Any) -> Any:
        self.leave()
        return self.__reduce_ex__(protocol)


def layer_of(holder: Holder, module: Any, key: torch.Tensor, value: torch.Tensor) -> DynamicLayer | None:
    """The plain layer of this pass's cache whose keys and values these are, where rows can stay in it: all layers are plain, on their
    device, and one for each block, so that no other block reads them. A cache of which that is not so is not asked again in this pass."""
    cache, at = holder.cache, getattr(module, "layer_idx", None)
    if cache is None:
        return None
    layers: list[Any] = cache.layers if type(cache) is DynamicCache and not cache.offloading else []
    blocks = getattr(getattr(module, "config", None), "num_hidden_layers", None)
    if len(layers) != blocks or not all(type(x) in (DynamicLayer, WithRows) and x.get_seq_length() for x in layers):
        holder.cache = None
        return None
    layer = layers[at] if type(at) is int and at < blocks else None
    return layer if type(layer) is DynamicLayer and layer.keys is key and layer.values is value else None
