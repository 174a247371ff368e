"""The tree of a model's sites as a text: towers, blocks that are equal once, what each site is and by what it is known."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator

from ..language.report.diagnostics import counted
from .columns import Columns
from .tree import BLOCK, BlocksData, LayoutData, LeftData, SiteData, SitesData, TowerData

#: Columns of a text where nobody says how many there are.
WIDTH = 80
#: What of a module is meant, where it is not its output.
_SIDES = {"input": "input of ", "attention": "attention of "}
PROVED = {
    "proved": "proved by the numbers of a pass",
    "not yet proved": "not yet proved: there were no weights, or no pass could try them",
    "some proved": "some of them not yet proved",
}


def text(found: SitesData, width: int = WIDTH) -> str:
    """The tree in lines of at most ``width`` columns; a path or a list of columns that is longer is not cut."""
    lines = _filled(f"{found.model}: {_known(found)}", "", width)
    for t in found.towers:
        lines += ["", *_tower(t, found, width)]
    if found.between:
        lines += ["", "outside the towers", *_sites(found.between, "  ", found, width)]
    lines += _left("left out", found.left_out, width)
    lines += _left("projections that no site covers", found.uncovered, width)
    return "\n".join(lines)


def _known(found: SitesData) -> str:
    if found.known == "unknown":
        return "no sites are known; " + "; ".join(found.unknown)
    if found.known == "anatomy" and not found.proof:
        return f"sites of the anatomy {found.anatomy}"
    how = f"sites of the anatomy {found.anatomy}" if found.known == "anatomy" else "sites found by what flows where"
    return f"{how}, {PROVED.get(found.proof, found.proof)}"


def _tower(t: TowerData, found: SitesData, width: int) -> list[str]:
    about = [counted(t.depth, "layer")]
    about += ["one module for all of them" if t.shared else ""]
    about += ["later tokens are not seen" if t.causal else "all tokens are seen"]
    about += [] if t.main else [f"meant only as `{t.tower}.…`"]
    name = f"tower {t.tower}" if t.tower else "the model"
    lines = _filled(f"{name}: {', '.join(filter(None, about))}", "", width)
    for b in t.blocks:
        lines += _blocks(b, t, found, width)
    return lines + ([""] if t.outside else []) + _sites(t.outside, "  ", found, width)


def _blocks(b: BlocksData, t: TowerData, found: SitesData, width: int) -> Iterator[str]:
    layers = range(t.depth) if t.shared else b.layers
    front = "layer" if len(layers) == 1 else "layers"
    where = b.blocks[0] if len(b.blocks) == 1 else f"{b.blocks[0]} … {b.blocks[-1]}"
    yield from _filled(f"  {front} {ranges(layers)} ({BLOCK} is {where})", "    ", width)
    for part in b.sublayers:
        yield from _sites(part.sites, "    ", found, width)


def _sites(sites: Iterable[SiteData], indent: str, found: SitesData, width: int) -> list[str]:
    named = max((len(s.site) for s in sites), default=0)
    lines: list[str] = []
    for s in sites:
        columns = f" columns {Columns(tuple((a, b) for a, b in s.columns)).text()}" if s.columns is not None else ""
        columns += f" per {s.each}" if s.each else ""
        module = _SIDES.get(s.side, "") + (s.module or "the model")
        lines.append(f"{indent}{s.site:<{named}}  {module}{columns}  {_size(s)}")
        lines += _filled(indent + " " * (named + 2) + _about(s, found), indent + " " * (named + 2), width)
    return [line.rstrip() for line in lines if line.strip()]


def _size(s: SiteData) -> str:
    size = " × ".join(f"{n:,}" for n in s.size)
    return f"{s.d_in:,} → {size}" if s.d_in is not None else size


def _about(s: SiteData, found: SitesData) -> str:
    """What stands around a site, and by what it is known, where the first line of the text does not say it of all."""
    parts = [s.evidence] if found.known != "anatomy" and s.evidence else []
    parts += _lies(s.layout) if s.layout is not None else []
    for name, path in (("x", s.x), ("residual", s.residual), ("norm", s.norm)):
        if path is not None and path != s.module:
            parts.append(f"{name}{'' if name == 'norm' else ' enters'} {path or 'the model'}")
    if found.proof == "some proved":
        parts.append(s.proof)
    return "; ".join(filter(None, parts))


def _lies(layout: LayoutData) -> list[str]:
    """What of the order of dimensions is not as usual, in words."""
    parts = [f"its numbers are dimension {layout.axis}"] if layout.axis != -1 else []
    parts += ["tokens come before examples"] if layout.turned else []
    if any(n > 1 for n in layout.stride):
        parts.append(f"one of {' × '.join(map(str, layout.stride))} positions is read")
    return parts


def _left(title: str, left: list[LeftData], width: int) -> list[str]:
    lines = ["", title] if left else []
    for entry in left:
        times = f" ({entry.count})" if entry.count > 1 else ""
        lines += _filled(f"  {entry.path}{times}: {entry.reason}", "    ", width)
    return lines


def ranges(numbers: Iterable[int]) -> str:
    """``0–2, 4``: whole numbers in ascending order."""
    runs: list[list[int]] = []
    for n in numbers:
        if runs and runs[-1][1] == n - 1:
            runs[-1][1] = n
        else:
            runs.append([n, n])
    return ", ".join(f"{a}" if a == b else f"{a}–{b}" for a, b in runs)


def _filled(text: str, indent: str, width: int) -> list[str]:
    return textwrap.wrap(text, max(width, 40), subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
