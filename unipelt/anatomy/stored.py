"""Maps that a search found, by architecture: of two models of one class, configuration and structure, one is searched.

In memory for this process; and as JSON in a folder, for models that are made of modules of transformers and torch alone. The
folder is ``UNIPELT_CACHE`` (``off``: none), else ``unipelt`` in the user's cache folder. What cannot be read there is searched
anew. Nothing of what a search finds depends on weights: a map is stored before it is proved, and each model's proof is its own.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import asdict, fields
from functools import cache
from pathlib import Path
from typing import Any

from torch import nn

from ..language.files import replace
from ..language.sites import SITES
from .base import NAME, base_modules, base_parameters
from .columns import Columns
from .layout import Layout
from .sites import Site, SiteMap, Stack, View

#: The folder, or ``off``.
FOLDER = "UNIPELT_CACHE"
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
        self.versioned = all(type(m).__module__.split(".")[0] in _VERSIONED for _, m in modules)
        own = any(
            "forward" in vars(m) or m._forward_hooks or m._forward_pre_hooks or NAME in m._modules for _, m in modules
        )
        told: list[Any] = [(p, type(m), type(m).forward, *_told(m)) for p, m in modules]
        self._model, self._modules, self._tied = model, modules, _tied(model)
        self.key: Hashable = None if own else (self._tied, *told)

    def name(self) -> str:
        """The name of a file: of all that the key says, and of the versions of what reads it."""
        import torch
        import transformers

        told = [[p, f"{type(m).__module__}.{type(m).__qualname__}", *map(str, _told(m))] for p, m in self._modules]
        text = json.dumps([torch.__version__, transformers.__version__, _finder(), self._tied, told])
        return f"sites-{hashlib.sha256(text.encode()).hexdigest()[:32]}.json"


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


@cache
def _finder() -> str:
    """What the finder is: its own text, since another one may find more."""
    files = [*Path(__file__).parent.glob("*.py"), Path(__file__).parent.parent / "language" / "sites.py"]
    return hashlib.sha256(b"".join(f.read_bytes() for f in sorted(files))).hexdigest()


def stored(a: Architecture) -> SiteMap | None:
    """The map that was found of an architecture; None where there is none."""
    if a.key is None:
        return None
    if a.key not in _found:
        folder = cache_folder() if a.versioned else None
        read = _read(folder / a.name(), a.paths) if folder is not None else None
        if read is None:
            return None
        _keep(a, read)
    _found.move_to_end(a.key)
    return _found[a.key]


def store(a: Architecture, sites: SiteMap) -> None:
    """Keeps a map that was found and not proved. A folder that cannot be written is left alone."""
    if a.key is None:
        return
    _keep(a, sites)
    folder = cache_folder() if a.versioned else None
    if folder is None:
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        replace(folder / a.name(), json.dumps(_data(sites), separators=(",", ":")).encode())
        old = sorted(folder.glob("sites-*.json"), key=lambda f: f.stat().st_mtime)
        for file in old[:-FILES]:
            file.unlink(missing_ok=True)
    except OSError:
        pass


def forget() -> None:
    """Forgets the maps in memory."""
    _found.clear()


def cache_folder() -> Path | None:
    """Where maps are kept; None where they are not."""
    named = os.environ.get(FOLDER, "")
    if named.lower() in ("off", "0", "no"):
        return None
    if named:
        return Path(named)
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "unipelt"
    except RuntimeError:  # nobody's home
        return None


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
    return [v.module, v.columns.ranges if v.columns is not None else None, v.enters, lies]


def _read(file: Path, paths: set[str]) -> SiteMap | None:
    """The map in a file; None where there is none, or none of a model with these modules."""
    try:
        d = json.loads(file.read_bytes())
        stacks = tuple(Stack(**{**s, "blocks": tuple(s["blocks"])}) for s in d["stacks"])
        sites = tuple(_site_of(s) for s in d["sites"])
        named = {
            p
            for s in sites
            for p in (s.view.module, s.x, s.residual, s.norm, s.rows, *(v.module for v in s.bases.values()))
        }
        if not sites or not named - {None} <= paths or not {s.name for s in sites} <= SITES.keys():
            return None
        past = {n: tuple(readers) for n, readers in d["read_past"].items()}
        if not {r for readers in past.values() for r in readers} <= paths:
            return None
        return SiteMap("", d["prefix"], stacks, sites, tuple(d["head"]), d["refused"], d["uncovered"], past)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None


def _site_of(d: dict[str, Any]) -> Site:
    bases = {n: _view_of(v) for n, v in d["bases"].items()}
    view, lacks = _view_of(d["view"]), frozenset(d["lacks"])
    return Site(**{**d, "view": view, "bases": bases, "lacks": lacks, "also": tuple(d["also"])})


def _view_of(v: list[Any]) -> View:
    module, ranges, enters, lies = v
    columns = None if ranges is None else Columns(tuple((a, b) for a, b in ranges))
    return View(module, columns, enters, None if lies is None else Layout(lies[0], tuple(lies[1]), lies[2]))
