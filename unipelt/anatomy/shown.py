"""`unipelt.sites`: what is known of a model's sites, to read and as data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from torch import nn

from ..language.report.diagnostics import counted, error
from .base import uncompiled
from .find import find
from .sites import SiteMap, Stack
from .tree import SitesData, data, tree
from .written import text


@dataclass(frozen=True)  # without slots, since the tree is made once
class Sites:
    """The sites of a model. ``str`` is their tree, `to_json` the same as data, ``map`` has every site of every block."""

    model: str
    map: SiteMap

    @cached_property
    def tree(self) -> SitesData:
        """Towers, their blocks (equal ones once), sublayers and sites; what is left out, and what no site covers."""
        return tree(self.model, self.map)

    def tower(self, name: str) -> Sites:
        """The sites of one tower alone. An error (E0704) names the towers that there are."""
        stack = next((k for k in self.map.stacks if k.name == name), None)
        if stack is None:
            has = ", ".join(f"`{k.name}`" for k in self.map.stacks if k.name)
            one = (
                "all its sites are in one tower, without a name"
                if self.map.stacks
                else "it has no towers that are known"
            )
            raise error("E0704", f"this {self.model} has no tower `{name}`", help=f"it has {has}" if has else one)
        root = f"{stack.module}." if stack.module else ""
        here, others = root or self._root(stack), [self._root(k) for k in self.map.stacks if k is not stack]
        uncovered = {
            p: why for p, why in self.map.uncovered.items() if p.startswith(here) and not p.startswith(tuple(others))
        }
        refused = {n: why for n, why in self.map.refused.items() if n.startswith((f"{name}.", *stack.blocks))}
        sites = tuple(s for s in self.map.sites if s.stack == name and not s.kind.once)
        return Sites(self.model, replace(self.map, stacks=(stack,), sites=sites, refused=refused, uncovered=uncovered))

    def _root(self, stack: Stack) -> str:
        """What the paths of a stack's blocks begin with."""
        path = f"{self.map.prefix}.{stack.blocks[0]}" if self.map.prefix else stack.blocks[0]
        return path.rpartition(".")[0] + "."

    def to_json(self) -> dict[str, Any]:
        """The tree as plain data, of the schema in ``grammar/unipelt-sites-1.schema.json``."""
        return data(self.tree)

    def __str__(self) -> str:
        return text(self.tree)

    def __repr__(self) -> str:
        """Short: `str` is the tree."""
        m = self.map
        towers, left = counted(len(m.stacks), "tower"), counted(len(m.uncovered), "projection")
        return f"<sites of {self.model}: {len(m.sites)} in {towers}, {left} not covered>"


def sites(model: nn.Module, example: Mapping[str, Any] | None = None) -> Sites:
    """The sites of a model: where each is, its sizes and columns, by what it is known, and what no site covers.

    An anatomy of one's own says it, or a small pass shows it (with weights each site is then proved by
    numbers; on the meta device it is not yet). ``example``: keyword arguments of the model's forward, where a pass's inputs
    cannot be guessed (tensors of few tokens are enough). What was found is remembered, so that `plan` and `apply` use it.
    Nothing is left behind in the model. Where no sites are known, the tree says why.
    """
    model = uncompiled(model)
    found = find(model, example)
    return Sites(type(model).__name__, found)
