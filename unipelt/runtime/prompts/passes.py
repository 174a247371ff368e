"""One pass of the model in one thread: what its hooks leave for one another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from .arguments import Given
    from ..along import Left
    from ..penalties import Noted
    from .layout import Layout
    from .pictures import Unplaced
    from .selected import Entered
    from .veils import Veil


class Pass:
    """The pass that a thread is in, or its last one: layers that are computed again in the backward pass read the same.

    A thread has one of these for good: compiled code loses what it writes to an attribute of a `threading.local`.
    """

    def __init__(self) -> None:
        #: A number in [0, 1). It may be drawn before the tokens enter, so it stays until another is drawn.
        self.chance: torch.Tensor | None = None
        #: What every place's own draws of the pass follow from.
        self.seed: torch.Tensor | None = None
        #: What its penalties are; None before the first pass with any.
        self.penalties: Noted | None = None
        #: What rows have carried so far, by chain (see `along`); None outside a pass.
        self.carried: dict[str, Left] | None = None
        self.begin()

    def begin(self) -> None:
        self.given: Given | None = None  # the declared arguments of the model's call; None outside it
        self.inputs: dict[str, torch.Tensor] = {}  # their values for the batch
        self.masks: dict[str, torch.Tensor] = {}  # which tokens are real, [batch, tokens], by the stack's name
        self.entered: dict[str, Entered] = {}  # what entered a stack, by its name, where edits select tokens
        self.layout: Layout | None = None  # the sequence with a prompt's rows
        #: Where the rows of an edit stand, by adapter, site and row; None in a step that continues a cache.
        self.positions: dict[tuple[str, str, str], Any] = {}
        self.waiting: dict[str, Unplaced] = {}  # by stack, rows whose places are known behind the embeddings
        self.late: dict[tuple[str, str, str], Any] = {}  # the same of rows that enter a block
        self.veils: list[Veil] = []  # the places of those
        self.behind: dict[Any, torch.Tensor] = {}  # masks of these, by what they are masks of (see `veils`)

    def place(self, keys: Sequence[tuple[str, str, str]], blocks: Sequence[int | None], places: Sequence[Any]) -> None:
        """Notes where the rows of edits stand; ``blocks``: which one they enter, None where they enter the model."""
        for key, block, at in zip(keys, blocks, places):
            (self.positions if block is None else self.late)[key] = at

    def end(self) -> None:
        """An embedding or an encoder that is called by itself afterwards is not of this pass."""
        self.positions, self.waiting, self.behind = {}, {}, {}
        self.given = None
