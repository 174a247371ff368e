"""Prompts: placeholder tokens are put before the real ones where the model is called, and filled at the embeddings.

Because the ids, the mask, the positions and the labels all grow together, every length that a model derives from them
(pooling at the last token, the loss, a cache) follows by itself. Where the tokens' positions shift and where they do
not is the site's meaning: at ``embed.words`` they shift, at ``embed`` of a model with learned positions they do not.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import nn

from ..anatomy.sites import SiteMap
from ..language.diagnostics import error
from .seam import Seam, seam_of
from .switch import Switch


class Doorway(nn.Module):
    """Hangs on the model itself: bookkeeping for prompts and the mask of real tokens."""

    def __init__(self, switch: Switch, sites: SiteMap):
        super().__init__()
        self.switch, self.sites = switch, sites
        self.hosts = tuple(dict.fromkeys(s.view.module for n in ("embed.words", "embed") for s in sites.named(n)))
        words = sites.named("embed.words")
        self.words = words[0].view.module if words else None

    # ------------------------------------------------------------ hooks

    def enter(self, model: nn.Module, args: tuple, kwargs: dict) -> Any:
        values = self.switch.holder.values
        for key in [k for k in values if k.startswith(("mask:", "prompt:"))]:
            del values[key]
        if not self.switch.live:
            return None
        named = inspect.signature(model.forward).bind_partial(*args, **kwargs).arguments
        named = {**named, **named.pop("kwargs", {})}
        for variadic in [n for n, p in inspect.signature(model.forward).parameters.items() if p.kind is p.VAR_KEYWORD]:
            named |= named.pop(variadic, {})
        lengths = self._lengths(model)
        if lengths:
            named = self._prepend(model, named, lengths)
        return ((), named) if lengths else None

    def base_enter(self, base: nn.Module, args: tuple, kwargs: dict) -> None:
        """The base model was called past the model: a prompt would be left out in silence."""
        if self.switch.live and "inside" not in self.switch.holder.values and self._live_hosts(base):
            raise error("E0543", "a prompt is active, and the base model was called directly, past the model it was applied to",
                        help="call the model that was given to unipelt.apply, or apply to the base model")  # fmt: skip

    def mark(self, model: nn.Module, args: tuple, kwargs: dict) -> None:
        self.switch.holder.values["inside"] = True

    def leave(self, model: nn.Module, args: tuple, output: Any) -> None:
        self.switch.holder.values.pop("inside", None)

    # ------------------------------------------------------------ lengths

    def _seams(self, model: nn.Module) -> list[tuple[str, Seam]]:
        found = []
        for path in self.hosts:
            seam = seam_of(model.get_submodule(path))
            if seam is not None and seam.live("prompt"):
                found.append((path, seam))
        return found

    def _live_hosts(self, base: nn.Module) -> bool:
        return any(isinstance(m, Seam) and m.live("prompt") for m in base.modules())

    def _lengths(self, model: nn.Module) -> list[tuple[str, Seam, int]]:
        return [(p, s, sum(e.prepended for _, e in s.live("prompt"))) for p, s in self._seams(model)]

    def _prepend(self, model: nn.Module, named: dict[str, Any], lengths: list[tuple[str, Seam, int]]) -> dict[str, Any]:
        total = sum(n for _, _, n in lengths)
        still = sum(n for p, _, n in lengths if self.sites.stacks[-1].learned_positions and p != self.words)
        ids, embeds = named.get("input_ids"), named.get("inputs_embeds")
        given = ids if ids is not None else embeds
        if given is None:
            raise error("E0544", "a prompt needs `input_ids` or `inputs_embeds`")
        batch, tokens = given.shape[:2]
        cache = named.get("past_key_values")
        seen = int(cache.get_seq_length()) if cache is not None else 0
        self._mask(named, batch, total)
        self._positions(model, named, given, tokens, total, still, seen)
        if seen:
            return named
        self._room(cache, tokens + total)
        if ids is not None:
            filler = ids.new_full((batch, total), self._filler(model))
            named["input_ids"] = torch.cat([filler, ids], 1)
        elif embeds is not None:
            named["inputs_embeds"] = torch.cat([embeds.new_zeros(batch, total, embeds.shape[-1]), embeds], 1)
        for name, fill in (("labels", -100), ("token_type_ids", 0)):
            t = named.get(name)
            if isinstance(t, torch.Tensor) and t.shape[:2] == (batch, tokens) and not t.is_floating_point():
                named[name] = torch.cat([t.new_full((batch, total, *t.shape[2:]), fill), t], 1)
        left = total
        for path, seam, n in lengths:  # words first: their rows stand nearest to the tokens
            if embeds is not None and path == self.words:
                named["inputs_embeds"] = seam.prompt(named["inputs_embeds"], left)
            else:
                self.switch.holder.values[f"prompt:{path}"] = left
            left -= n
        return named

    def _filler(self, model: nn.Module) -> int:
        pad = getattr(model.config, "pad_token_id", None)
        return 1 if pad == 0 else 0

    def _mask(self, named: dict[str, Any], batch: int, total: int) -> None:
        mask = named.get("attention_mask")
        if mask is None:
            return
        if not isinstance(mask, torch.Tensor) or mask.dim() != 2:
            raise error("E0545", "a prompt needs an attention mask of shape [batch, tokens]; a prepared mask cannot grow")
        named["attention_mask"] = torch.cat([mask.new_ones(batch, total), mask], 1)

    def _positions(
        self, model: nn.Module, named: dict[str, Any], given: torch.Tensor, tokens: int, total: int, still: int, seen: int
    ) -> None:  # fmt: skip
        """``still`` rows take position 0 and shift nothing; the others count as tokens."""
        accepts = "position_ids" in inspect.signature(model.forward).parameters
        position = named.get("position_ids")
        moved = total - still
        if position is None and (not still or not accepts):
            return
        if position is None:
            start = seen - total if seen else 0
            position = self._own_positions(model, named, given, tokens, start)
        if still and named.get("attention_mask") is None and not seen:
            # without a mask, transformers reads repeated positions as packed sequences
            named["attention_mask"] = given.new_ones(given.shape[0], tokens + total, dtype=torch.long)
        position = position + moved
        if not seen:
            rows = torch.cat([position.new_zeros(still), torch.arange(moved, device=position.device)]).to(position.dtype)
            position = torch.cat([rows.expand(position.shape[0], -1), position], 1)
        named["position_ids"] = position

    def _own_positions(self, model: nn.Module, named: dict[str, Any], given: torch.Tensor, tokens: int, start: int) -> torch.Tensor:
        embeddings = model.get_submodule(self.sites.named("embed")[0].view.module)
        own = getattr(embeddings, "create_position_ids_from_input_ids", None)
        if own is not None and given.dim() == 2:  # RoBERTa counts from its padding index
            return own(given, embeddings.padding_idx)
        return torch.arange(start, start + tokens, device=given.device)[None]

    def _room(self, cache: Any, needed: int) -> None:
        limit = cache.get_max_cache_shape() if cache is not None and hasattr(cache, "get_max_cache_shape") else None
        if isinstance(limit, int) and 0 < limit < needed:
            raise error("E0546", f"the static cache holds {limit} positions, and prompt and tokens take {needed}",
                        help="make the cache larger by the prompt's length")  # fmt: skip
