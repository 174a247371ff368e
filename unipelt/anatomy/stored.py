"""Maps that a search found, by architecture: of two models of one class, configuration and structure, one is searched.

In memory for this process; and as JSON in a folder (`unipelt.language.cache`), for models that are made of modules of
transformers and torch alone. Nothing of what a search finds depends on weights: a map is stored before it is proved, and each
model's proof is its own.
"""

from __future__ import annotations

import functools
import json
from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from torch import nn

from ..language import cache
from ..language.sites import signature
from .base import NAME, base_modules, base_parameters
from .columns import Columns
from .layout import Layout
from .packed import InProjection, own_forward
from .sites import Site, SiteMap, Stack, View

#: Maps that are kept in memory, and in the folder.
KEPT, FILES = 64, 256
#: Packages whose modules are what their version says.
_VERSIONED = ("torch", "transformers")

_found: OrderedDict[Hashable, SiteMap] = OrderedDict()


class Architecture:
    """What a search of a model depends on: its modules, their configurations, their parameters' sizes, and versions.

    ``key`` is None where something in the model is its own: hooks, a forward that was put in place of another, adapters.
    """

    def __init__(self, model: nn.Module):
        modules = list(base_modules(model))
        self.paths = {p for p, _ in modules}
        modules = [(p, m) for p, m in modules if not isinstance(m, InProjection)]  # it comes and goes
        self.versioned = all(type(m).__module__.split(".")[0] in _VERSIONED for _, m in modules)
        own = any(
            own_forward(m) is not None or m._forward_hooks or m._forward_pre_hooks or NAME in m._modules
            for _, m in modules
        )
        told: list[Any] = [(p, type(m), type(m).forward, *_told(m)) for p, m in modules]
        self._model, self._modules, self._tied = model, modules, _tied(model)
        self.key: Hashable = None if own else (self._tied, *told)

    def name(self) -> str:
        """The name of a file: of all that the key says, and of the versions of what reads it."""
        import torch
        import transformers

        told = [[p, f"{type(m).__module__}.{type(m).__qualname__}", *map(str, _told(m))] for p, m in self._modules]
        return cache.name_of("sites", torch.__version__, transformers.__version__, _finder(), self._tied, told)


def _tied(model: nn.Module) -> tuple[tuple[str, str], ...]:
    """Which parameters are one, by path: each with the first path of the same one."""
    first: dict[int, str] = {}
    return tuple((n, first[id(p)]) for n, p in base_parameters(model) if first.setdefault(id(p), n) != n)


def _told(m: nn.Module) -> tuple[Hashable, ...]:
    config: Any = getattr(m, "config", None)
    shapes = tuple((n, tuple(p.shape), p.dtype) for n, p in m._parameters.items() if p is not None)
    numbers = tuple(
        (n, v) for n, v in vars(m).items() if n[0] != "_" and n != "training" and isinstance(v, (bool, int, float, str))
    )
    if not hasattr(config, "to_dict"):
        return shapes, numbers, m.extra_repr(), ""
    told = json.dumps(config.to_dict(), sort_keys=True, default=str)
    return shapes, numbers, m.extra_repr(), f"{told} {getattr(config, '_attn_implementation', '')}"


@functools.cache
def _finder() -> str:
    """What the finder is: its own text, since another one may find more."""
    return cache.digest([*Path(__file__).parent.glob("*.py"), Path(__file__).parent.parent / "language" / "sites.py"])


def stored(a: Architecture) -> SiteMap | None:
    """The map that was found of an architecture; None where there is none."""
    if a.key is None:
        return None
    if a.key not in _found:
        read = _read(cache.get(a.name()), a.paths) if a.versioned and cache.folder() is not None else None
        if read is None:
            return None
        _keep(a, read)
    _found.move_to_end(a.key)
    return _found[a.key]


def store(a: Architecture, sites: SiteMap) -> None:
    """Keeps a map that was found and not proved."""
    if a.key is None:
        return
    _keep(a, sites)
    if a.versioned and cache.folder() is not None:
        cache.put("sites", {a.name(): _data(sites)}, FILES)


def forget() -> None:
    """Forgets the maps in memory."""
    _found.clear()


def _keep(a: Architecture, sites: SiteMap) -> None:
    _found[a.key] = sites
    while len(_found) > KEPT:
        _found.popitem(last=False)


# ---------------------------------------------------------------- as JSON


def _data(m: SiteMap) -> dict[str, Any]:
    return {
        "prefix": m.prefix, "head": m.head, "refused": dict(m.refused), "uncovered": dict(m.uncovered), "read_past": dict(m.read_past),
        "stacks": [asdict(s) for s in m.stacks], "sites": [_site(s) for s in m.sites],
    }  # fmt: skip


def _site(s: Site) -> dict[str, Any]:
    own = {f.name: getattr(s, f.name) for f in fields(s)}
    return {
        **own,
        "view": _view(s.view),
        "sizes": dict(s.sizes),
        "bases": {n: _view(v) for n, v in s.bases.items()},
        "lacks": sorted(s.lacks),
    }


def _view(v: View) -> list[Any]:
    lies = None if v.layout is None else [v.layout.axis, v.layout.stride, v.layout.turned]
    return [v.module, v.columns.ranges if v.columns is not None else None, v.enters, lies, v.parameter, v.turned]


def _read(d: Any, paths: set[str]) -> SiteMap | None:
    """The map in an entry; None where there is none, or none of a model with these modules."""
    try:
        stacks = tuple(Stack(**{**s, "blocks": tuple(s["blocks"])}) for s in d["stacks"])
        sites = tuple(_site_of(s) for s in d["sites"])
        named = {
            p
            for s in sites
            for p in (s.view.module, s.x, s.residual, s.norm, s.rows, *(v.module for v in s.bases.values()))
        }
        if not sites or not named - {None} <= paths or any(signature(s.name) is None for s in sites):
            return None
        past = {n: tuple(readers) for n, readers in d["read_past"].items()}
        if not {r for readers in past.values() for r in readers} <= paths:
            return None
        return SiteMap("", d["prefix"], stacks, sites, tuple(d["head"]), d["refused"], d["uncovered"], past)
    except (ValueError, TypeError, KeyError, AttributeError):
        return None


def _site_of(d: dict[str, Any]) -> Site:
    bases = {n: _view_of(v) for n, v in d["bases"].items()}
    view, lacks = _view_of(d["view"]), frozenset(d["lacks"])
    return Site(**{**d, "view": view, "bases": bases, "lacks": lacks, "also": tuple(d["also"])})


def _view_of(v: list[Any]) -> View:
    module, ranges, enters, lies, parameter, turned = v
    columns = None if ranges is None else Columns(tuple((a, b) for a, b in ranges))
    return View(
        module, columns, enters, None if lies is None else Layout(lies[0], tuple(lies[1]), lies[2]), parameter, turned
    )
