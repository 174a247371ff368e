"""Finds a model's sites: an `anatomy` of the library for its type, else the one whose every path the model has.

Several anatomies may be for one type (gated feed-forward layers or not, norms before or behind): the first that fits counts.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import Any

from torch import nn

from ..language.diagnostics import error
from ..language.library import library_definition, library_names
from ..language.syntax import AnatomyDef
from .entries import Entries, blocks_of, conditions, missing, stacks_of
from .read import read
from .sites import SiteMap


@lru_cache(maxsize=1)
def anatomies() -> tuple[AnatomyDef, ...]:
    """The anatomies of the library."""
    return tuple(_whole(n) for n in library_names("anatomy"))


def _whole(name: str, seen: tuple[str, ...] = ()) -> AnatomyDef:
    """An anatomy with the entries of the one it is ``like``; its own count, and an empty path takes one away."""
    a = library_definition("anatomy", name)
    if not isinstance(a, AnatomyDef) or name in seen:
        raise error("E0705", f"the anatomy `{seen[-1]}` is like `{name}`, which " + ("is like it" if name in seen else "there is not"))
    own = dict(a.entries)
    base = own.pop("like", None)
    entries = {**(dict(_whole(base, (*seen, name)).entries) if base else {}), **own}
    return replace(a, entries=tuple((n, t) for n, t in entries.items() if t))


def find(model: nn.Module) -> SiteMap:
    """The map of a model's sites; an architecture that no anatomy fits is an error that says what was tried."""
    config = getattr(model, "config", None)
    if config is None:
        raise error("E0501", f"{type(model).__name__} is not a transformers model: it has no `config`")
    base = getattr(model, "base_model", model)
    prefix = next((n for n, m in model.named_modules() if m is base), "")
    kind = str(getattr(config, "model_type", "")).replace("-", "_")
    known = [a for a in anatomies() if kind in a.models]
    fitting = [a for a in known or anatomies() if fits(a, base, config)]
    if not known and len(fitting) != 1:
        raise error(
            "E0502", f"no anatomy is known for the model type `{kind}`",
            help=f"known types: {', '.join(sorted(m for a in anatomies() for m in a.models))}; "
            "write an `anatomy` for it beside those in specs/anatomy",
        )  # fmt: skip
    if not fitting:
        raise _unfit(known, model, base, config)
    return read(fitting[0], present(fitting[0], base), model, base, prefix)


def present(a: AnatomyDef, base: nn.Module) -> list[Entries]:
    """The stacks of an anatomy that a model has: one of them may be left out (an encoder used by itself).

    A decoder by itself has the modules of its cross-attention too, but does not call them.
    """
    found = [e for e in stacks_of(a) if blocks_of(base, e.block)]
    alone = [e.name for e in found] == ["decoder"]
    return [replace(e, parts=tuple(p for p in e.parts if p[0].split(".")[0] != "cross")) if alone else e for e in found]


def fits(a: AnatomyDef, base: nn.Module, config: Any) -> bool:
    """Whether every path and condition of an anatomy holds for a model."""
    return not _differs(a, config) and bool(stacks := present(a, base)) and not any(missing(base, e) for e in stacks)


def _differs(a: AnatomyDef, config: Any) -> str | None:
    return next((n for n, v in conditions(a) if str(getattr(config, n, None)).lower() != v.lower()), None)


def _unfit(known: list[AnatomyDef], model: nn.Module, base: nn.Module, config: Any) -> Exception:
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
