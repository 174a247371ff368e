"""Rows of texts that a language model goes on with together, a token at a time, each under an adapter of its own.

The model is called as anybody calls it: tokens, a mask, positions, a cache. Rows of different lengths stand at the right, with pads
in front; a row that has ended leaves, and new ones join what runs, where the cache is one that can be cut and joined. Whether
a model, and an adapter, gives a row beside others what it gives it alone is not believed but tried (`trial`).

An adapter may put rows of its own among a text's tokens. The cache then has as many columns more than there are tokens as the adapters
of the batch put in at most; a text with fewer has pads there. When that number falls or rises, columns in front go or come.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import nn
from transformers.cache_utils import DynamicCache, DynamicLayer

import unipelt
from unipelt.runtime import caches


@dataclass(eq=False)
class Row:
    """A text under way. ``adapter`` is its name in the model (None: the base), which puts ``inserted`` rows among the tokens; ``next``
    is the token that has not been read yet."""

    prompt: Sequence[int]
    adapter: str | None
    owner: Any = None
    next: int = -1
    inserted: int = 0


class Model:
    """How a language model is called."""

    def __init__(self, model: nn.Module, pad: int):
        self.model, self.pad = model, pad
        names = inspect.signature(model.forward).parameters
        self._cache = next((n for n in caches.NAMES if n in names), None)
        self._positions = "position_ids" in names
        self._last = {"logits_to_keep": 1} if "logits_to_keep" in names else {}

    @property
    def remembers(self) -> bool:
        """Whether the model takes a cache of keys and values, as `Decoding` gives it, and not one of states alone."""
        if self._cache is None:
            return False
        of_states = self.cache().is_linear
        return not (of_states and all(of_states))

    @cached_property
    def device(self) -> torch.device:
        return next(p.device for p in self.model.parameters())

    def cache(self) -> DynamicCache:
        config: Any = self.model.config
        return DynamicCache(config=config.get_text_config(decoder=True))

    def scores(
        self, ids: torch.Tensor, mask: torch.Tensor, cache: DynamicCache, who: Sequence[str | None]
    ) -> torch.Tensor:
        """The scores of the token that follows, [rows, vocabulary]. ``ids`` [rows, new tokens], ``mask`` [rows, all tokens]."""
        given: dict[str, Any] = {"input_ids": ids, "attention_mask": mask, str(self._cache): cache, "use_cache": True, **self._last}  # fmt: skip
        if self._positions:
            given["position_ids"] = (mask.cumsum(-1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        alike = len(set(who)) == 1
        with torch.no_grad(), unipelt.using(self.model, who[0] if alike else list(who)):
            return self.model(**given).logits[:, -1].float()


@dataclass(eq=False)
class Decoding:
    """Rows that run together. ``joins``: whether more may join them.

    The mask is that of the tokens, [rows, tokens]. All that is real of a row, its adapter's rows too, stands at the right of the cache,
    which has ``_columns``: as many as the mask and the most that an adapter puts in, or more.
    """

    model: Model
    joins: bool = True
    rows: list[Row] = field(default_factory=list)
    _cache: Any = None
    _mask: Any = None
    _columns: int = 0

    def begin(self, rows: Sequence[Row]) -> torch.Tensor:
        """Reads the prompts of new rows, which stand behind those that are there; the new rows' scores [new rows, vocabulary]."""
        rows = list(rows)
        longest = max(len(r.prompt) for r in rows)
        ids = torch.full((len(rows), longest), self.model.pad)
        mask = torch.zeros_like(ids)
        for i, r in enumerate(rows):
            ids[i, longest - len(r.prompt) :] = torch.tensor(list(r.prompt))
            mask[i, longest - len(r.prompt) :] = 1
        ids, mask = ids.to(self.model.device), mask.to(self.model.device)
        cache = self.model.cache()
        scores = self.model.scores(ids, mask, cache, [r.adapter for r in rows])
        if not self.rows:
            self._cache, self._mask = cache, mask
            self._columns = longest + _inserted(rows)
        else:
            self._join(cache, mask, _inserted([*self.rows, *rows]))
        self.rows += rows
        self.joins = self.joins and _plain(self._cache)
        return scores

    def step(self) -> torch.Tensor:
        """Reads the next token of every row; the scores of those that follow [rows, vocabulary]."""
        ids = torch.tensor([[r.next] for r in self.rows], device=self._mask.device)
        self._mask = torch.cat([self._mask, torch.ones_like(self._mask[:, :1])], 1)
        self._columns += 1
        mask = _long(self._mask, self._columns - _inserted(self.rows))  # the adapters' rows come to it in the model
        return self.model.scores(ids, mask, self._cache, [r.adapter for r in self.rows])

    def leave(self, gone: Sequence[Row]) -> None:
        """Takes rows out, and the columns in which all that stay have nothing."""
        left = {id(r) for r in gone}
        keep = [i for i, r in enumerate(self.rows) if id(r) not in left]
        if len(keep) == len(self.rows):
            return
        self._order(keep)
        if self.rows and self.joins:
            self._mask = self._mask[:, int(self._mask.any(0).int().argmax()) :]
            self._columns = self._mask.shape[1] + _inserted(self.rows)
            for layer in self._layers():
                layer.keys, layer.values = (
                    t[..., t.shape[-2] - self._columns :, :] for t in (layer.keys, layer.values)
                )

    def sort(self) -> None:
        """Rows of one adapter stand together: what an adapter computes is then a part of the batch and no copy."""
        order = sorted(range(len(self.rows)), key=lambda i: self.rows[i].adapter or "")
        if order != list(range(len(order))):
            self._order(order)

    def _order(self, order: list[int]) -> None:
        self.rows = [self.rows[i] for i in order]
        if not order:
            self._cache = self._mask = None
            return
        at = torch.tensor(order, device=self._mask.device)
        self._mask = self._mask.index_select(0, at)
        self._cache.batch_select_indices(at)

    def _join(self, cache: DynamicCache, mask: torch.Tensor, inserted: int) -> None:
        n = max(self._mask.shape[1], mask.shape[1])
        self._columns = n + inserted
        for mine, other in zip(self._layers(), cache.layers):
            for name in ("keys", "values"):
                whole = [_at_right(getattr(layer, name), self._columns) for layer in (mine, other)]
                setattr(mine, name, torch.cat(whole))
        self._mask = torch.cat([_long(m, n) for m in (self._mask, mask)])

    def _layers(self) -> list[Any]:
        return [layer for layer in self._cache.layers if layer.is_initialized]


def _plain(cache: DynamicCache) -> bool:
    """Whether all layers keep all keys and values, so that rows and columns can be taken out and put together."""
    return all(type(layer) is DynamicLayer and layer.is_initialized for layer in cache.layers)


def _inserted(rows: Sequence[Row]) -> int:
    """How many rows the adapters of some texts put among the tokens of one at most."""
    return max(r.inserted for r in rows)


def _long(mask: torch.Tensor, n: int) -> torch.Tensor:
    """A mask [rows, tokens] with zeros in front, ``n`` tokens long."""
    return torch.nn.functional.pad(mask, (n - mask.shape[1], 0))


def _at_right(t: torch.Tensor, n: int) -> torch.Tensor:
    """A tensor [..., tokens, width] with zeros in front, ``n`` tokens long."""
    return torch.nn.functional.pad(t, (0, 0, n - t.shape[-2], 0))
