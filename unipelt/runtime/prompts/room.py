"""Whether a model's table of positions has entries for the tokens of a call and the rows that move them.

Without this the table, or a buffer of its length, would be read past its end, in an error of torch's that says nothing of rows.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ...anatomy.positions import longest_text, tables_of_positions
from ...anatomy.sites import SiteMap
from ...compiler.plan import Plan
from ...language.report.diagnostics import error
from .call import Call
from .layout import Rows, most


def moving(plan: Plan) -> int:
    """How many rows of a plan take positions of the tokens from a table of them."""
    if not plan.sites.main[0].learned_positions:
        return 0
    return sum(
        e.prompt.rows for e in plan.edits if e.prompt is not None and e.prompt.grows and not e.site.kind.positions
    )


@dataclass(frozen=True)
class Room:
    """``longest``: for how many tokens there are positions. ``padding``: the id of pads, where those take none; ``masked``: pads of
    the mask take none; else every token takes one. ``still``: rows can stand where the tokens keep their positions."""

    longest: int
    padding: int | None
    masked: bool
    still: bool

    @staticmethod
    def of(model: nn.Module, sites: SiteMap) -> Room | None:
        """That of the stack whose tokens rows stand among; None where nothing bounds it."""
        stack = sites.main[0]
        longest = longest_text(model) if stack.learned_positions else None
        if longest is None:
            return None
        tables = [t for t, _ in tables_of_positions(model.get_submodule(stack.module))]
        masked = any("attention_mask" in inspect.signature(t.forward).parameters for t in tables)
        embed = next((s.view for s in sites.entered() if s.kind.positions and not s.view.enters), None)
        embeddings: Any = model.get_submodule(embed.module) if embed is not None else None
        padding = int(embeddings.padding_idx) if hasattr(embeddings, "create_position_ids_from_input_ids") else None
        entered = model.get_submodule(stack.module) if len(sites.main) > 1 else model
        still = embed is not None and "position_ids" in inspect.signature(entered.forward).parameters
        return Room(longest, padding, masked, still)

    def refuse(self, call: Call, rows: Sequence[Rows]) -> None:
        """An error where a call has too many tokens for its rows. What a call's tensors hold is looked at only where it may."""
        own = most([r for r in rows if r.moves])
        seen = call.seen - most(rows) if call.seen else 0
        if own and seen + call.tokens.shape[1] + own > self.longest:
            tokens = self._counted(call, seen)
            if tokens is not None and tokens + own > self.longest:
                raise error("E0534", f"the model has {self.longest} positions, and {own} rows take some beside {tokens} tokens",
                            help=f"give at most {max(self.longest - own, 0)} tokens (a tokenizer takes truncation=True, max_length=…)"
                            + (", or put the rows at `embed`, where the tokens keep their positions" if self.still else ""))  # fmt: skip

    def _counted(self, call: Call, seen: int) -> int | None:
        """For how many tokens of a text positions are needed; None where that cannot be seen."""
        position, tokens = call.named.get("position_ids"), call.tokens
        pads = self.padding is not None and tokens.dim() == 2 or self.masked and call.mask is not None
        if position is None and not pads:
            return seen + tokens.shape[1]
        if torch.compiler.is_compiling() or tokens.is_meta:
            return None
        if position is not None:  # RoBERTa's begin behind the id of pads
            return int(position.max()) + 1 - (self.padding + 1 if self.padding is not None else 0)
        if self.padding is not None:
            return seen + int((tokens != self.padding).sum(-1).max())
        return int((call.mask != 0).sum(-1).max())  # type: ignore[union-attr]
