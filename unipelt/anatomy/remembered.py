"""Maps of sites that were found, by model: a model is not searched again as long as nothing of its structure changes."""

from __future__ import annotations

from weakref import WeakKeyDictionary

from torch import nn

from .base import base_modules
from .packed import InProjection, own_forward
from .sites import SiteMap

_found: WeakKeyDictionary[nn.Module, tuple[int, SiteMap]] = WeakKeyDictionary()


def recall(model: nn.Module) -> SiteMap | None:
    """The map that was found of a model whose structure is as it was; None where there is none."""
    before = _found.get(model)
    return before[1] if before is not None and before[0] == _structure(model) else None


def remember(model: nn.Module, sites: SiteMap) -> None:
    _found[model] = _structure(model), sites


def _structure(model: nn.Module) -> int:
    """What a search depends on: modules, hooks, forwards that were put in place of their own, weights and where they are."""
    told = []
    for path, m in base_modules(model):
        if isinstance(m, InProjection):  # it comes and goes
            continue
        own = tuple((n, p.shape, p.dtype, p.is_meta) for n, p in m._parameters.items() if p is not None)
        told.append((path, id(m), len(m._forward_hooks), len(m._forward_pre_hooks), id(own_forward(m)), own))
    return hash(tuple(told))
