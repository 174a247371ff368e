"""Where the parts of a picture lie among the tokens of a row's sites, for rows that ask (`conv2d`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from ..anatomy.grids import Grid, grid_of
from ..anatomy.sites import Site, SiteMap
from ..language.report.diagnostics import Diagnostic
from ..language.syntax.nodes import Apply
from ..language.syntax.tree import dotted
from ..language.types.primitives import OF_GRID
from ..language.types.typed import TypedRow
from .coverage import the


class Grids:
    """The grids of a model's towers, each found when it is first asked for; ``said`` is what the plan says of them."""

    def __init__(self, model: nn.Module, sites: SiteMap, example: Mapping[str, Any] | None):
        self.model, self.sites, self.example = model, sites, example
        self.found: dict[str, Grid | str] = {}
        self.said: list[str] = []

    def of(self, site: Site, typing: TypedRow) -> Grid | Diagnostic | None:
        """The grid that a row reads at a site, or what is wrong where there is none; None where it reads none, or where what
        leaves a module has rows and columns itself."""
        if OF_GRID.isdisjoint(typing.read_by_passes):
            return None
        if site.view.layout is not None and site.view.layout.axis == -3:
            return None
        found = self._of_tower(site.tokens)
        if isinstance(found, Grid):
            return found
        call = next(n for n in typing.row.nodes if isinstance(n, Apply) and dotted(n.function) in OF_GRID)
        word = dotted(call.function)
        return Diagnostic("E0538", f"`{word}` reads a token's neighbours in a picture, and the tokens at `{site.full_name}` of this "
                          f"{type(self.model).__name__} lie on no grid: {found}", call.span,
                          help="apply it to a model of pictures, or use `conv`, which goes along the tokens")  # fmt: skip

    def _of_tower(self, name: str) -> Grid | str:
        stack = next((s for s in self.sites.stacks if s.name == name), None)
        if stack is None:
            return "what is there belongs to no tower"
        if name not in self.found:
            found = self.found[name] = grid_of(self.model, self.sites, stack, self.example)
            if isinstance(found, Grid) and not found.proved:
                self.said.append(f"where the parts of a picture lie among the tokens of {the(stack)} was found without weights and is "
                                 "not yet proved: that is done where the method is applied to them")  # fmt: skip
        return self.found[name]
