"""One pass of the model in one thread: what its hooks leave for one another."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from .arguments import Given
    from ..penalties import Noted
    from .layout import Layout
    from .selected import Entered


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
        self.begin()

    def begin(self) -> None:
        self.given: Given | None = None  # the declared arguments of the model's call; None outside it
        self.inputs: dict[str, torch.Tensor] = {}  # their values for the batch
        self.masks: dict[str, torch.Tensor] = {}  # which tokens are real, [batch, tokens], by the stack's name
        self.entered: dict[str, Entered] = {}  # what entered a stack, by its name, where edits select tokens
        self.layout: Layout | None = None  # the sequence with a prompt's rows
        #: Where the rows of an edit stand, by adapter, site and row; None in a step that continues a cache.
        self.positions: dict[tuple[str, str, str], Any] = {}

    def end(self) -> None:
        """An embedding or an encoder that is called by itself afterwards is not of this pass."""
        self.positions = {}
        self.given = None
