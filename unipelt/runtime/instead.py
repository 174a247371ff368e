"""Trained copies in a module that holds others, within a block: a twin beside it would run what it holds twice, and attention may
write into a cache. So the twin computes in its place; and so does one with edited weights of experts, whichever way these compute."""

from __future__ import annotations

from typing import Any

from torch import nn

from ..language.report.diagnostics import error
from .copies import CopyEdit, in_place
from .seam import seam_of
from ..anatomy.stand_in import StandIn
from .weights import of_experts


class Instead(StandIn):
    """Stands in for the ``forward`` of a module with other parameters: trained copies of its own, or of those of its children that it
    reads, and what edits make of them."""

    def __init__(self, module: nn.Module):
        super().__init__(module, "forward")

    def put(self) -> None:
        """What stands around the module's own forward stands around this."""
        around = list(self.standing())
        if not around:
            super().put()
        elif self not in around:
            self.before, around[-1].before = around[-1].before, self

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        seam = seam_of(self.owner)
        if seam is None or not (edits := [e for _, e in seam.live("forward")]):
            return self.own()(*args, **kwargs)
        if seam.switch.mixes and seam.switch.mixture() is not None:
            what = "holds experts" if any(e.of_weight for e in edits) else "holds other modules"
            raise error("E0853", f"`{seam.path}` {what}, and its parameters cannot differ between the rows of a batch",
                        help="run the examples of its adapter by themselves: with unipelt.using(model, NAME)")  # fmt: skip
        copies = [e for e in edits if isinstance(e, CopyEdit)]
        rewriting = [e for e in edits if e.of_weight]
        if not rewriting:
            return copies[-1].instead(args, kwargs, copies[:-1])
        trained = {n: t for c in copies for n, t in c.values().items()}
        return in_place(
            self.owner, {**trained, **of_experts(self.owner, rewriting, seam.read_by(rewriting), trained)}, args, kwargs
        )
