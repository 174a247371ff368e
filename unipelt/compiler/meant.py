"""Which sites of a model a row means: its paths looked up, with what is wrong with them and what is to be said of them."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import nn

from ..anatomy.modules import matching
from ..anatomy.sites import Site, SiteMap
from ..language.check.methods import sites_of
from ..language.ir import Method, Row
from ..language.report.diagnostics import Diagnostic, near
from ..language.sites import SiteSignature, signature, site_name
from ..language.syntax.nodes import Path
from . import coverage
from .places import one_place
from .trained import HEADLESS


@dataclass
class Meant:
    """The sites of a row in all layers, each once."""

    sites: list[Site] = field(default_factory=list)
    problems: list[Diagnostic] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def meant_by(row: Row, method: Method, model: nn.Module, sites: SiteMap, again: bool = False) -> Meant:
    """The sites that a row names. ``again``: mistakes have been found already, which may be why this row finds nothing."""
    meant = Meant()
    absent: list[str] = []  # of an attention to an encoder, which many models do not have
    ungated: list[Path] = []  # of a gate in the feed-forward layer
    stacks = {s.name for s in sites.stacks}
    for path in sites_of(row.sites, method.params):
        tower, name = site_name(str(path))
        kind = signature(name)
        by_path = kind is not None and kind.by_path
        if sites.unknown and not by_path:
            meant.problems += sites.unknown
            continue
        if tower is not None and tower not in stacks:
            meant.problems.append(coverage.no_stack(tower, sites, model, path.span))
            continue
        here = sites.named(name, tower)
        if by_path:
            here, wrong = matching(model, sites, name, tower, path.span)
            meant.problems += wrong
        elif not here and kind is not None and kind.cross:
            absent.append(name)
        elif not here and kind is not None and kind.gated and not coverage.refused(name, tower, sites):
            ungated.append(path)
        elif not here:
            meant.problems.append(_no_site(path, kind, model, sites))
        # `attn.q, decoder.attn.q` names some sites twice
        meant.sites += [s for s in here if not any(s is f or one_place(s, f) for f in meant.sites)]
    if absent and not meant.sites and not meant.problems and not again:
        meant.problems.append(Diagnostic(
            "E0512", f"this {type(model).__name__} has no {', '.join(f'`{n}`' for n in absent)}", row.span,
            help="choose a model whose decoder reads an encoder, or modify other sites: " + ", ".join(sites.names())))  # fmt: skip
    elif absent:
        meant.warnings.append(
            f"row `{row.name}`: the model has no cross-attention, so {', '.join(absent)} are left out"
        )
    if ungated and not meant.sites:
        meant.problems += [_no_site(p, signature(site_name(str(p))[1]), model, sites) for p in ungated]
    elif ungated:
        meant.warnings.append(
            f"row `{row.name}`: the feed-forward layers have no gate, so {', '.join(map(str, ungated))} is left out"
        )
    return meant


def _no_site(path: Path, kind: SiteSignature | None, model: nn.Module, sites: SiteMap) -> Diagnostic:
    """The mistake of naming a site that a model does not have, and what it has instead."""
    tower, name = site_name(str(path))
    known = [n for n in sites.names() if sites.named(n, tower)]
    why = f": {reason}" if (reason := coverage.refused(name, tower, sites)) else ""
    instead = coverage.elsewhere(name, sites) or (near(name, known) if not why else "") or f"it has: {', '.join(known)}"
    headless = kind is not None and kind.times == "head" and not why
    return Diagnostic("E0512", f"this {type(model).__name__} has no site `{name}`{why}", path.span,
                      help=HEADLESS if headless else instead)  # fmt: skip
