"""Finds a model's sites: by what flows where in a recorded pass (`search`), unless an `anatomy` of one's own says them.

Anatomies stand in files that the environment variable ``UNIPELT_ANATOMIES`` names; they come first, and are proved. Several may be
for one type (gated feed-forward layers or not, norms before or behind): the first that fits counts.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from ..language.report.diagnostics import PeltError, error
from ..language.sites import SITES
from ..language.library import library_definition, parse_path
from .base import NAME, base_modules, base_of
from ..language.syntax.nodes import AnatomyDef
from .brought import lacks_weights
from .entries import Entries, blocks_of, conditions, missing, stacks_of
from .examples import Inputs
from .heads import lone_head
from .packed import apart
from .prove import proved, tried, unproved, without_heads
from .read import read
from .remembered import recall, remember
from .search import search
from .sites import SiteMap
from .stored import Architecture, store, stored

#: Files with anatomies of one's own, separated as paths are in PATH.
OWN = "UNIPELT_ANATOMIES"
#: Modules of a block that a message lists.
LISTED = 24


def anatomies() -> tuple[AnatomyDef, ...]:
    """Those of the files in ``UNIPELT_ANATOMIES``."""
    files = [Path(f) for f in os.environ.get(OWN, "").split(os.pathsep) if f]
    own = {d.name: d for f in files for d in parse_path(f).definitions if isinstance(d, AnatomyDef)}
    return tuple(_whole(n, own=own) for n in own)


def _whole(name: str, seen: tuple[str, ...] = (), own: Mapping[str, AnatomyDef] | None = None) -> AnatomyDef:
    """An anatomy with the entries of the one it is ``like``; its own count, and an empty path takes one away."""
    a = (own or {}).get(name) or library_definition("anatomy", name)
    if not isinstance(a, AnatomyDef) or name in seen:
        raise error(
            "E0705",
            f"the anatomy `{seen[-1]}` is like `{name}`, which " + ("is like it" if name in seen else "there is not"),
        )
    mine = dict(a.entries)
    base = mine.pop("like", None)
    entries = {**(dict(_whole(base, (*seen, name), own).entries) if base else {}), **mine}
    return replace(a, entries=tuple((n, t) for n, t in entries.items() if t))


def config_of(model: nn.Module) -> Any:
    """The configuration that every transformers model has; what has none is an error (E0501)."""
    config = getattr(model, "config", None)
    if config is None:
        raise error("E0501", f"{type(model).__name__} is not a transformers model: it has no `config`")
    return config


def find(model: nn.Module, example: Mapping[str, Any] | None = None) -> SiteMap:
    """The map of a model's sites: of an anatomy of one's own for its type, else what a recorded pass shows.

    ``example``: keyword arguments of a pass, where they cannot be guessed. Where nothing is found the map has no sites, and
    `SiteMap.unknown` says why.
    """
    attached = getattr(model._modules.get(NAME), "sites", None)
    if isinstance(attached, SiteMap) and not attached.anatomy and not attached.unknown:
        return attached  # with adapters in the model a pass would show theirs too
    config: Any = getattr(model, "config", None)
    base = base_of(model)
    prefix = next((n for n, m in base_modules(model) if m is base), "")
    kind = str(getattr(config, "model_type", "")).replace("-", "_")
    known = [a for a in anatomies() if kind in a.models]
    with apart(model):
        if known:
            return _own(known, [a for a in known if fits(a, base, config)], model, base, prefix)
        try:
            return _searched(model, base, prefix, dict(example) if example is not None else None)
        except PeltError as e:
            return _nothing(model, e)


def _nothing(model: nn.Module, why: PeltError) -> SiteMap:
    """The map of a model of whose sites nothing is known: ``why`` is what asking for one is answered with."""
    base = base_of(model)
    prefix = next((n for n, m in base_modules(model) if m is base), "")
    return SiteMap("", prefix, (), (), lone_head(model, base, prefix), unknown=why.diagnostics)


def _searched(model: nn.Module, base: nn.Module, prefix: str, example: Inputs | None) -> SiteMap:
    """What a recorded pass shows, proved where there are weights; an error where it shows no sublayer (E0502)."""
    remembered = recall(model)
    if remembered is not None and example is None:
        return remembered
    inputs = example
    architecture = Architecture(model)
    before = stored(architecture) if example is None else None
    if before is not None:
        sites = before
    else:
        sites, inputs = search(model, base, prefix, example)
        if sites.stacks and example is None:
            store(architecture, sites)
    if not sites.stacks:
        config_of(model)  # without a configuration that is the reason
        why = error("E0502", f"no sites were found in this {type(model).__name__}: nothing is added to what enters its blocks",
                    help=_how(model, base))  # fmt: skip
        return replace(_nothing(model, why), read_past=sites.read_past)
    if not lacks_weights(base):
        sites = proved(sites, model, base, inputs)
    remember(model, sites)
    return sites


def _own(known: list[AnatomyDef], fitting: list[AnatomyDef], model: nn.Module, base: nn.Module, prefix: str) -> SiteMap:
    """The first of somebody's own anatomies that fits a model and stands the proof; an error that says what of it does not (E0503)."""
    if not fitting:
        raise _unfit(known, model, base, getattr(model, "config", None))
    adapted = any(NAME in m._modules for _, m in base_modules(model))  # so it has stood the proof
    empty = lacks_weights(base)
    reasons = []
    mistakes: list[PeltError] = []
    for a in fitting:
        try:
            sites = read(a, present(a, base), model, base, prefix)
            if adapted or empty:
                sites, wrong = unproved(sites) if empty and not adapted else _as_before(sites, model), ""
            else:
                sites, refuted = tried(sites, model, base)
                wrong = next((f"`{n}`: {why}" if n else why for n, why in refuted.items()), "")
        except PeltError as e:
            mistakes.append(e)
            wrong = e.diagnostics[0].message
        if not wrong:
            return sites
        reasons.append(f"`{a.name}` has the names of its modules, but {wrong}")
    if mistakes:
        raise mistakes[0]
    raise error("E0503", "; ".join(reasons), help="correct the entry of the anatomy")


def _as_before(sites: SiteMap, model: nn.Module) -> SiteMap:
    """The map of a model in which nothing can be tried now, without the sites that were refused when that was done."""
    before = getattr(model._modules.get(NAME), "sites", None)
    found = dict(before.refused) if isinstance(before, SiteMap) else {}
    kept = tuple(s for s in sites.sites if s.full_name not in found)
    return without_heads(replace(sites, sites=kept, refused=found), model)


def _how(model: nn.Module, base: nn.Module) -> str:
    """How an anatomy is written, with the names of a block's modules at hand."""
    lists = [(n, m) for n, m in base_modules(base) if isinstance(m, nn.ModuleList) and len(m) > 0]
    held = [n for n, _ in base_modules(lists[0][1][0]) if n] if lists else []
    told = (
        f" (a block in `{lists[0][0]}` holds {', '.join(held[:LISTED])}{', …' if len(held) > LISTED else ''})"
        if held
        else ""
    )
    kind = str(getattr(getattr(model, "config", None), "model_type", "")).replace("-", "_")
    if not kind.isidentifier():
        return ("set `model.config.model_type` to a name of letters, digits and `_`, for which an anatomy can be written; methods that "
                "need no site work: `train`, `module(…)`")  # fmt: skip
    return (f'write `anatomy {kind} for {kind} {{ block: "…"  attn.q: "…"  ffn.up: "…" }}` with the path of each part into a file{told}, '
            f"and name the file in {OWN}; specs/anatomy has examples")  # fmt: skip


def present(a: AnatomyDef, base: nn.Module) -> list[Entries]:
    """The stacks of an anatomy that a model has: one of them may be left out (an encoder used by itself).

    A decoder by itself has the modules of its cross-attention too, but does not call them.
    """
    found = [e for e in stacks_of(a) if blocks_of(base, e.block)]
    alone = [e.name for e in found] == ["decoder"]
    crossing = {n for n, s in SITES.items() if s.cross}
    return [
        replace(e, parts=tuple(p for p in e.parts if p[0].split(".")[0] not in crossing)) if alone else e for e in found
    ]


def fits(a: AnatomyDef, base: nn.Module, config: Any) -> bool:
    """Whether every path and condition of an anatomy holds for a model."""
    return not _differs(a, config) and bool(stacks := present(a, base)) and not any(missing(base, e) for e in stacks)


def _differs(a: AnatomyDef, config: Any) -> str | None:
    return next((n for n, v in conditions(a) if str(getattr(config, n, None)).lower() != v.lower()), None)


def _unfit(known: list[AnatomyDef], model: nn.Module, base: nn.Module, config: Any) -> PeltError:
    reasons = []
    for a in known:
        stacks = present(a, base)
        lacks = _differs(a, config)
        if lacks is not None:
            reasons.append(f"`{a.name}` is for another `{lacks}`")
        elif not stacks:
            lists = " nor ".join(f"`{e.block.split('.*')[0]}`" for e in stacks_of(a))
            reasons.append(f"the anatomy `{a.name}` does not fit this {type(model).__name__}: it has no {lists}")
        else:
            path = next(p for e in stacks if (p := missing(base, e)))
            reasons.append(f"the anatomy `{a.name}` does not fit this {type(model).__name__}: it has no `{path}`")
    return error("E0503", "; ".join(reasons))
