"""The arguments of a call, longer by the rows that a method puts among its tokens."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ...language.report.diagnostics import error
from .. import caches
from .layout import Layout, Rows, most

#: Arguments with an entry for each token, and the entry of a row: it is on no page (`bbox`), and words are of kind 0.
_ALIGNED = {"labels": -100, "global_attention_mask": 0, "special_tokens_mask": 0, "bbox": 0, "bbox_first_token_mask": 0,
            "mm_token_type_ids": 0}  # fmt: skip
#: Arguments with an entry for each token that may be a fraction.
_FRACTIONS = ("inputs_embeds", "bbox")
#: Arguments that hold the number of a token for each example.
_NUMBERS = ("start_positions", "end_positions")
#: What it is called where it holds states alone, which have no positions.
_STATES = ("cache_params", "state")
#: Arguments that say of tokens which of them belong together.
_PACKED = ("cu_seq_lens_q", "cu_seq_lens_k", "seq_idx")


@dataclass
class Call:
    """A call of the model: its arguments by name, which `grow` changes."""

    model: nn.Module
    named: dict[str, Any]
    grown: int = 0

    @property
    def tokens(self) -> torch.Tensor:
        """The ids [batch, tokens], or the embeddings given in their place."""
        for name in ("input_ids", "inputs_embeds"):
            if self.named.get(name) is not None:
                return self.named[name]
        raise error("E0544", "a prompt needs `input_ids` or `inputs_embeds`")

    @property
    def mask(self) -> torch.Tensor | None:
        return self.named.get("attention_mask")

    @property
    def cache(self) -> Any:
        return caches.given(self.named)

    @property
    def continues(self) -> bool:
        """Whether the call goes on from states alone: rows before its tokens are in them, and nothing of it has a place for rows."""
        states = next((c for n in _STATES if (c := self.named.get(n)) is not None), None)
        if states is None:
            return False
        begun = getattr(states, "has_previous_state", None)
        return bool(begun() if callable(begun) else getattr(states, "seqlen_offset", True))

    @property
    def seen(self) -> int:
        """How many positions the cache holds; rows are among them."""
        return int(self.cache.get_seq_length()) if self.cache is not None else 0

    @property
    def shape(self) -> tuple[int, int]:
        """[batch, tokens]; in a step that continues a cache, the tokens seen before (those of the mask) count too."""
        batch, tokens = self.tokens.shape[:2]
        return (batch, self.mask.shape[1]) if self.seen and self.mask is not None else (batch, tokens)


def refuse(call: Call, rows: Sequence[Rows]) -> None:
    """What a call cannot be made longer for."""
    mask, tokens = call.mask, call.tokens.shape[1]
    if mask is not None and (not isinstance(mask, torch.Tensor) or mask.dim() != 2):
        raise error("E0545", "a prompt needs an attention mask of shape [batch, tokens]; a prepared mask cannot grow",
                    help="give a mask of shape [batch, tokens], or none; where generation prepares masks for a static cache, leave "
                    "cache_implementation out")  # fmt: skip
    if mask is not None and not call.seen and mask.shape[1] != tokens:
        raise error("E0545", f"the attention mask has {mask.shape[1]} entries, and there are {tokens} tokens")
    if any(call.named.get(n) is not None for n in _PACKED) or _packed(call):
        raise error("E0734", "these are packed sequences, and a prompt would stand before the first of them only",
                    help="train a prompt without packing")  # fmt: skip
    total = most(rows)
    behind = max([0, *(r.after or 0 for r in rows)])
    if call.seen:
        if mask is not None and any(r.after is None for r in rows) and not torch.compiler.is_compiling():
            real = mask != 0
            if bool((real.long().cummax(-1).values.bool() & ~real).any()):
                raise error("E0735", "rows follow the last token of each text, and here pads follow it inside the cache",
                            help="pad at the left to generate")  # fmt: skip
        return
    if call.cache is not None and tokens < behind:
        raise error("E0735", f"rows follow the first {behind} tokens, and the first chunk has {tokens}",
                    help="give more tokens at first")  # fmt: skip
    if (
        call.cache is not None
        and mask is not None
        and not torch.compiler.is_compiling()
        and not bool((mask != 0).any(1).all())
    ):
        raise error("E0735", "rows stand beside the first token of each text, and the first chunk holds only pads of one",
                    help="give more tokens at first")  # fmt: skip
    limit = _room(call.cache)
    if 0 <= limit < tokens + total:
        raise error("E0546", f"the static cache holds {limit} positions, and prompt and tokens take {tokens + total}",
                    help="make the cache larger by the prompt's length")  # fmt: skip


def _room(cache: Any) -> int:
    """How many positions a cache holds; -1 where it has no end. A layer with a window forgets tokens, so it holds any number."""
    if cache is None or not len(cache):
        return -1
    layers = getattr(cache, "layers", None)
    if layers is None:
        return int(cache.get_max_length())
    ends = [n for layer in layers if not getattr(layer, "is_sliding", False) and (n := layer.get_max_length()) >= 0]
    return min(ends, default=-1)


def _packed(call: Call) -> bool:
    """Whether positions start anew within a row of the batch."""
    position = call.named.get("position_ids")
    if position is None or call.seen or position.dim() != 2 or torch.compiler.is_compiling() or position.is_meta:
        return False
    again = position[:, 1:] < position[:, :-1]
    if call.mask is not None:
        again = again & (call.mask[:, 1:] != 0) & (call.mask[:, :-1] != 0)
    return bool(again.any())


def grow(call: Call, layout: Layout, own_positions: Callable[[Call], torch.Tensor], by_mask: bool = False) -> None:
    """Every argument that has an entry for each token gets entries for the rows; ``by_mask``: the model counts positions by its
    mask."""
    named, seen = call.named, call.seen
    call.grown = layout.total
    shape = call.tokens.shape[:2]
    _positions(call, layout, own_positions, by_mask)
    if call.mask is not None:
        named["attention_mask"] = layout.mask(call.mask)
    if seen:
        return
    for name, fill in (("input_ids", _filler(call.model)), ("inputs_embeds", 0), *_ALIGNED.items()):
        t = named.get(name)
        if isinstance(t, torch.Tensor) and t.shape[:2] == shape and (name in _FRACTIONS or not t.is_floating_point()):
            named[name] = layout.spread(t, fill)
    types = named.get("token_type_ids")
    if isinstance(types, torch.Tensor) and types.shape[1:] == shape[1:]:
        named["token_type_ids"] = layout.types(types)
    for name in _NUMBERS:
        if isinstance(named.get(name), torch.Tensor):
            named[name] = layout.where(named[name].reshape(shape[0]))


def _positions(call: Call, layout: Layout, own_positions: Callable[[Call], torch.Tensor], by_mask: bool) -> None:
    # pads that stand in front are counted by a model that is not told the positions
    named, still = call.named, layout.ragged and not by_mask or any(not r.moves for r in layout.kinds)
    position = named.get("position_ids")
    if position is None:
        if not still or "position_ids" not in inspect.signature(call.model.forward).parameters:
            return
        position = own_positions(call)
    if call.seen:
        named["position_ids"] = position + layout.moved
        return
    if not _of_each_token(position, layout.shape):
        raise error("E0545", f"a prompt needs a position for each token, [batch, tokens] = {list(layout.shape)}, not {list(position.shape)}",
                    help="give `position_ids` of that shape, or none")  # fmt: skip
    if still and call.mask is None:
        # without a mask, transformers reads repeated positions as packed sequences
        named["attention_mask"] = torch.ones(layout.shape, dtype=torch.long, device=position.device)
    if position.dim() == 2:
        named["position_ids"] = layout.positions(position)
        return
    told = position.is_meta or not torch.compiler.is_compiling() and bool((position == position[:1]).all())
    if any(r.after != 0 for r in layout.kinds) and not told:
        raise error("E0545", "tokens of a picture have positions in its rows and columns, and how many a prompt behind them would follow is not told",
                    help="put the prompt before the text")  # fmt: skip
    named["position_ids"] = torch.stack([layout.positions(p) for p in position])


def _of_each_token(position: torch.Tensor, shape: tuple[int, int]) -> bool:
    """Whether each token of ``shape`` [batch, tokens] has a position: those of one text serve for all, and several kinds of positions,
    [kinds, batch, tokens], are given for each text."""
    if position.dim() == 3:
        return tuple(position.shape[1:]) == shape
    return position.dim() == 2 and position.shape[0] in (1, shape[0]) and position.shape[1] == shape[1]


def _filler(model: nn.Module) -> int:
    """An id for placeholders that means neither padding nor an end to the model."""
    config: Any = model.config
    taken: set[Any] = set()
    for name in ("pad_token_id", "eos_token_id"):
        found = getattr(config, name, None)
        taken |= set(found) if isinstance(found, (list, tuple)) else {found}
    return next(i for i in range(len(taken) + 1) if i not in taken)


def named_arguments(model: nn.Module, args: tuple, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Every argument of a call by name."""
    signature = inspect.signature(model.forward)
    named = dict(signature.bind_partial(*args, **kwargs).arguments)
    for variadic in [n for n, p in signature.parameters.items() if p.kind is p.VAR_KEYWORD]:
        named |= named.pop(variadic, {})
    return named
