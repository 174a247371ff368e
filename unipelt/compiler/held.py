"""Parameters of the base that rows edit: which module holds one, which others use it as well, and why some cannot be edited.

A linear map's weight and a table of words are edited by what the change adds to the module's output; of a norm the whole
module is called with the new parameter (`runtime.held`). A tied parameter is one: an edit of it acts at every module that uses it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import nn

from ..anatomy.base import children
from ..anatomy.quantised import is_quantised
from ..anatomy.sites import Site, SiteMap
from ..anatomy.sizes import weight_shape
from ..language.ir import Row
from ..language.report.diagnostics import Diagnostic
from ..language.types.primitives import entry_of
from .hosting import Parameter
from .trained import is_norm


def held(
    site: Site, row: Row, model: nn.Module, sites: SiteMap, parameters: Mapping[str, Parameter], label_map: str | None
) -> Site | Diagnostic:
    """The site of a parameter with its own sizes and the other modules that use it, or what is wrong with editing it.

    Sites of other kinds stay as they are. ``label_map`` is the path of the map that ends the head.
    """
    kind = site.kind
    if not kind.is_weight:
        return site
    if kind.has_labels and label_map is not None:
        site = replace(site, view=replace(site.view, module=label_map))
    path, name = site.view.module, site.parameter
    module = model.get_submodule(path)
    if not kind.has_weight and (why := _not_held(module, path, name, site)):
        return Diagnostic("E0747", f"`{kind.name}` of this {type(model).__name__} cannot be edited: {why}", row.span,
                          help=f"edit what leaves it: modify {kind.of or kind.sublayer}")  # fmt: skip
    here = next((p for p in parameters.values() if (path, name) in p.uses), None)
    if not kind.has_weight and here is not None and not site.view.parameter:
        shape = here.shape if len(here.shape) < 2 or isinstance(module, nn.Embedding) else weight_shape(module)
        own = {str(s): n for s, n in zip(kind.h.sizes, shape or ()) if not (kind.has_labels and str(s) == "labels")}
        site = replace(site, sizes={**site.sizes, **own})
    found = _with_others(site, row, model, sites, here)
    if isinstance(found, Site) and _measures(row) and (not kind.has_weight or found.also):
        why = "it is tied" if found.also else "it is none"
        return Diagnostic("E0747", f"`{kind.name}` of this {type(model).__name__} cannot start from data: what they tell is measured at "
                          f"linear maps that are used once, and {why}", row.span, help="start it from the weight or from a draw")  # fmt: skip
    return found


def _measures(row: Row) -> bool:
    """Whether something of a row is told by data."""
    return any(entry.data for n in row.nodes if (entry := entry_of(n)) is not None)


def _not_held(module: nn.Module, path: str, name: str, site: Site) -> str:
    """Why a parameter that is no projection's weight cannot be edited at a module; nothing if it can."""
    own, kind = module._parameters.get(name), type(module).__name__
    if site.view.enters:
        return "no module holds it by itself"
    if own is None:
        return f"`{path}`, a {kind}, has no parameter `{name}`"
    if site.view.parameter:
        return f"`{path}.{name}` holds codes, which `{path}` computes with as they are" if is_quantised(own) else ""
    if children(module):
        return f"`{path}`, a {kind}, holds other modules"
    matrix = len(site.kind.h.sizes) == 2
    fits = weight_shape(module) is not None or isinstance(module, nn.Embedding) if matrix else is_norm(module)
    if not fits or own.dim() != len(site.kind.h.sizes):
        return f"`{path}`, a {kind}, is neither {'a linear map nor a table' if matrix else 'a norm'} of a known kind"
    return ""


def _with_others(site: Site, row: Row, model: nn.Module, sites: SiteMap, p: Parameter | None) -> Site | Diagnostic:
    """The site with the other modules that use its parameter, or why one of them could not follow an edit of it."""
    if p is None or len(p.uses) == 1 and not sites.read_past.get(p.path):
        return site
    here, name = site.view.module, site.parameter
    known = {id(model.get_submodule(here))}
    also: list[str] = []
    wrong = "" if site.view.columns is None else "only some of its columns would change"
    wrong = "it has a matrix for each expert" if site.view.parameter else wrong
    for m, a in p.uses:
        module = model.get_submodule(m)
        if id(module) not in known:
            known.add(id(module))
            also.append(m)
            serves = a == name and (weight_shape(module) is not None or isinstance(module, nn.Embedding))
            wrong = wrong or ("" if serves else f"`{m}` is a {type(module).__name__}")
    past = [r for r in sites.read_past.get(p.path, ()) if id(model.get_submodule(r)) not in known]
    also += [r or type(model).__name__ for r in past]
    wrong = wrong or (f"`{past[0] or type(model).__name__}` reads it past the module that holds it" if past else "")
    if not also or not wrong:
        return replace(site, also=tuple(also))
    other = next((f"{m}.{a}" for m, a in p.uses if m == also[0]), also[0])
    return Diagnostic("E0749", f"`{here}.{name}` is tied to `{other}`, which the row `{row.name}` would have to change too, and cannot: {wrong}",
                      row.span, help=f"edit what leaves it: modify {site.kind.of or site.kind.sublayer}, insert parallel")  # fmt: skip


def said_of_tied(site: Site, row: Row) -> list[str]:
    """What a plan says of a tied parameter that a row edits."""
    if not site.also:
        return []
    *others, last = (f"`{m}`" for m in site.also)
    there = f"{', '.join(others)} and {last}" if others else last
    drops = any(entry.draws for n in row.nodes if (entry := entry_of(n)) is not None)
    each = ", and in training each of them draws its own dropout" if drops else ""
    return [f"`{site.view.module}.{site.parameter}` is tied: what is edited of it acts in {there} too{each}"]
