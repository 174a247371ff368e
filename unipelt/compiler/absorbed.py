"""Which linear map of the base absorbs an edit when it is merged, and whether it has the bias that this needs."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from ..anatomy.sites import SiteMap, View
from ..language.analyse.merged import needs_bias
from ..language.types.algebra import TooLarge
from .plan import PlannedEdit


def absorber(sites: SiteMap, e: PlannedEdit) -> View | None:
    """The linear map that absorbs an edit; None where the model has none there."""
    into = e.site.kind.into
    if into == e.site.name or e.site.kind.is_weight:
        return e.site.view
    found = (s.view for s in sites.named(into, e.site.stack) if s.layer == e.site.layer)
    return next(found, None)


def without_bias(model: nn.Module, sites: SiteMap, edits: Iterable[PlannedEdit]) -> str:
    """Why edits cannot be merged though they are affine: a map that has no bias would need one. Nothing where none does, as far
    as a formula tells."""
    for e in edits:
        view = absorber(sites, e)
        if view is None or e.site.kind.is_weight or getattr(model.get_submodule(view.module), "bias", None) is not None:
            continue
        try:
            needed = needs_bias(e.typing)
        except TooLarge:
            continue
        if needed:
            return f"`{e.row.name}`: the merged `{view.module}` would need a bias, and it has none"
    return ""
