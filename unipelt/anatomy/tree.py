"""A map of sites as plain data, folded: towers, the blocks of each that are equal, their sublayers, and the sites of those.

The schema is published (`json_schema`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from ..language.sites import COUNTED
from ..language.versions import SITES_SCHEMA
from .sites import Site, SiteMap, Stack

#: What stands for the path of a block in the paths of what lies in it.
BLOCK = "*"
#: A number that is a part of a path, and one that is a part of a path within a text.
_NUMBER = re.compile(r"(?<![^.])\d+(?![^.])")
_NUMBER_IN = re.compile(r"(?<=\.)\d+(?=[.`])")


@dataclass(frozen=True, slots=True)
class LayoutData:
    """Where a site's numbers lie, as `Layout` says it: ``axis`` is counted from the last dimension, ``turned``: tokens come before examples."""

    axis: int
    stride: list[int]
    turned: bool


@dataclass(frozen=True, slots=True)
class SiteData:
    """One site. ``module`` is the one whose output (``side`` says: or input, or attention function) it is; ``columns`` are its own of
    that output, as ranges (the second number not included), None: all. ``layout``: where the numbers lie, None: [batch, token, d].
    Of the weights of experts ``module`` is the parameter that has a matrix for each, with these columns of each; ``transposed``: each is
    stored as [d_out, d_in].

    ``size``: the last dimensions of h; ``d_in``: of what a projection reads. ``each``: what there is one range of columns for.
    ``factor`` and ``keeps`` are those of `Site`.
    """

    site: str
    module: str
    side: str
    columns: list[list[int]] | None
    each: str
    layout: LayoutData | None
    transposed: bool
    d_in: int | None
    size: list[int]
    x: str | None
    residual: str | None
    norm: str | None
    factor: float | None
    keeps: float | None
    evidence: str
    proof: str


@dataclass(frozen=True, slots=True)
class SublayerData:
    """A sublayer's sites, its own first; what lies in no sublayer has the name ``""``."""

    sublayer: str
    sites: list[SiteData]


@dataclass(frozen=True, slots=True)
class BlocksData:
    """Blocks whose sites are equal. ``*`` stands for each one's path in the paths of modules."""

    layers: list[int]
    blocks: list[str]
    sublayers: list[SublayerData]


@dataclass(frozen=True, slots=True)
class TowerData:
    """One tower. ``main``: a site's bare name means this tower too. ``shared``: a module serves several layers."""

    tower: str
    module: str
    depth: int
    causal: bool
    shared: bool
    main: bool
    blocks: list[BlocksData]
    outside: list[SiteData]


@dataclass(frozen=True, slots=True)
class LeftData:
    """Sites that are left out, or projections that no site covers: a path in which ``*`` stands for numbers, how many, and why."""

    path: str
    count: int
    reason: str


@dataclass(frozen=True, slots=True)
class SitesData:
    """``known``: how the sites are known. ``unknown``: where nothing is known of them, why."""

    schema: str
    model: str
    known: Literal["anatomy", "found", "unknown"]
    anatomy: str
    proof: str
    sizes: dict[str, int]
    towers: list[TowerData]
    between: list[SiteData]
    left_out: list[LeftData]
    uncovered: list[LeftData]
    unknown: list[str]


def tree(model: str, m: SiteMap) -> SitesData:
    """The data of a map. Nothing is left out of it but what equal blocks repeat."""
    return SitesData(
SITES_SCHEMA, model, m.known, m.anatomy, m.proof,
        dict(m.sites[0].sizes) if m.sites else {},
        [_tower(m, s) for s in m.stacks],
        [_site(s, "", m) for s in m.sites if not _of_a_tower(m, s)],
        _folded(m.refused), _folded(m.uncovered), [d.message for d in m.unknown],
    )  # fmt: skip


def data(found: SitesData) -> dict[str, Any]:
    return asdict(found)


def json_schema() -> dict[str, Any]:
    """The published schema of `data`."""
    from pydantic import TypeAdapter

    return {"$id": SITES_SCHEMA, **TypeAdapter(SitesData).json_schema()}


def _of_a_tower(m: SiteMap, s: Site) -> bool:
    return not s.kind.once and s.stack in {k.name for k in m.stacks}


def _tower(m: SiteMap, stack: Stack) -> TowerData:
    mine = [s for s in m.sites if s.stack == stack.name and _of_a_tower(m, s)]
    groups: list[tuple[list[SublayerData], list[int], list[str]]] = []
    for layer, path in enumerate(stack.blocks):
        block = f"{m.prefix}.{path}" if m.prefix else path
        parts = list(_sublayers(m, [s for s in mine if s.layer == layer], block))
        same = next((g for g in groups if g[0] == parts), None)
        if same is None:
            groups.append((parts, [layer], [block]))
        else:
            same[1].append(layer)
            same[2].append(block)
    return TowerData(
        stack.name, stack.module, stack.depth, stack.causal, stack.shared, stack.main,
        [BlocksData(layers, blocks, parts) for parts, layers, blocks in groups],
        [_site(s, "", m) for s in mine if s.layer is None],
    )  # fmt: skip


def _sublayers(m: SiteMap, sites: Iterable[Site], block: str) -> Iterator[SublayerData]:
    found: dict[str, list[Site]] = {}
    for s in sites:
        found.setdefault(s.kind.sublayer, []).append(s)
    for name in sorted(found, key=lambda n: not n):
        yield SublayerData(name, [_site(s, block, m) for s in found[name]])


def _site(s: Site, block: str, m: SiteMap) -> SiteData:
    def at(path: str | None) -> str | None:
        inside = block and path is not None and (path == block or path.startswith(f"{block}."))
        return f"{BLOCK}{path[len(block) :]}" if inside and path is not None else path

    columns = s.view.columns
    W = dict(s.kind.scope).get("W")
    each = columns.each(head=s.sizes.get("heads", 0), group=s.sizes.get("groups", 0)) if columns is not None else ""
    last = [str(n) for n in s.kind.h.sizes]
    heads = ["heads"] if s.kind.has_heads else [COUNTED[a] for a in s.kind.own_axes]
    size = [s.sizes[n] for n in heads + last if n in s.sizes]
    return SiteData(
        s.name, at(s.view.path) or "", "input" if s.view.enters else s.side, None if columns is None else [list(r) for r in columns.ranges], each,
        None if (lies := s.view.layout) is None else LayoutData(lies.axis, [*lies.stride], lies.turned), s.view.turned,
        s.sizes.get(str(W.sizes[0])) if W is not None and not s.kind.own_axes else None, size,
        at(s.x), at(s.residual), at(s.norm), s.factor, s.keeps, _evidence(s, m), s.proof,
    )  # fmt: skip


def _evidence(s: Site, m: SiteMap) -> str:
    """By what a site is known, in words."""
    if m.anatomy:
        return f"written in the anatomy {m.anatomy}"
    factor, keeps = ("learned numbers" if n is None else f"{n:.4g}" for n in (s.factor, s.keeps))
    kept = "" if s.keeps == 1 else f", which is multiplied by {keeps}"
    return s.kind.shown_by + kept + ("" if s.factor == 1 else f", after it is multiplied by {factor}")


def _folded(reasons: Mapping[str, str]) -> list[LeftData]:
    """Paths that differ in numbers alone and have one reason are one."""
    counted: dict[tuple[str, str], list[str]] = {}
    for path, why in reasons.items():
        counted.setdefault((_NUMBER.sub(BLOCK, path), _NUMBER_IN.sub(BLOCK, why)), []).append(path)
    return [
        LeftData(paths[0] if len(paths) == 1 else pattern, len(paths), reasons[paths[0]] if len(paths) == 1 else why)
        for (pattern, why), paths in counted.items()
    ]
