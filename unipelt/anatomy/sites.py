"""A model's sites as data: which module, which side of it, which slice, and what is in scope there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Side = Literal["output", "input", "attention", "prompt"]


@dataclass(frozen=True, slots=True)
class View:
    """A module (path from the model that was given) and, where projections are fused, slice ``i`` of ``n`` of its output."""

    module: str
    part: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class Site:
    """One place in a model. ``h`` is found at ``side`` of ``view``; ``x`` and ``residual`` enter the named modules.

    ``block`` is the block's path from the base model (so that names do not depend on the head a model carries).
    """

    name: str
    family: str
    view: View
    side: Side
    sizes: Mapping[str, int]
    stack: str = ""
    layer: int | None = None
    block: str = ""
    x: str | None = None
    residual: str | None = None
    norm: str | None = None
    bases: Mapping[str, View] = field(default_factory=dict)
    causal: bool = False

    @property
    def label(self) -> str:
        """``encoder.layer.0.attn.q``: the front of the names of the tensors that live here."""
        return f"{self.block}.{self.name}" if self.block else self.name


@dataclass(frozen=True, slots=True)
class SiteMap:
    """Everything an anatomy knows of one model."""

    anatomy: str
    prefix: str  # path of the base model inside the model, "" if it is the model
    depth: int
    sites: tuple[Site, ...]
    blocks: tuple[str, ...]
    head: tuple[str, ...]  # modules of the head, outermost first; the last yields the logits
    causal: bool
    learned_positions: bool

    def named(self, name: str) -> list[Site]:
        return [s for s in self.sites if s.name == name]

    def names(self) -> list[str]:
        return list(dict.fromkeys(s.name for s in self.sites))
