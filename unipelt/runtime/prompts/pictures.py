"""Rows among the parts of a picture: their number is known where they leave the embeddings, so room is made there.

Nothing else of a call has an entry for each part of a picture, so nothing else grows with them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from .call import Call
from .layout import Layout, Rows
from .passes import Pass
from .selected import Entered
from .veils import veils


@dataclass(frozen=True)
class Unplaced:
    """Rows whose places are not known yet: those of all acting prompts of a stack, by the keys of their edits. ``main``: the stack's
    tokens are the model's; ``blocks``: which one they enter, None where they enter with the parts."""

    stack: str
    keys: Sequence[tuple[str, str, str]]
    rows: Sequence[Rows]
    blocks: Sequence[int | None]
    main: bool = True

    def make_room(self, h: torch.Tensor, current: Pass) -> torch.Tensor:
        """``h`` [batch, parts, d] with places for the rows, which are noted for the edits behind."""
        current.waiting.pop(self.stack, None)
        layout = Layout(self.rows, (h.shape[0], h.shape[1]), None, h.device)
        blank = Call(None, {"inputs_embeds": h.new_zeros((*h.shape[:2], 0))})  # type: ignore[arg-type]
        if self.main:
            current.layout = layout
        current.entered[self.stack] = Entered(self.stack, blank, layout, 0)
        current.place(self.keys, self.blocks, layout.rows)
        current.veils += veils(self.stack, self.keys, self.blocks, layout)
        return layout.spread(h)


def pictured(model: torch.nn.Module) -> bool:
    """Whether what enters a model are pictures alone."""
    return getattr(model, "main_input_name", "input_ids") == "pixel_values"
