"""Which linear map of the base absorbs an edit when it is merged, and whether it has the bias that this needs."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from ..anatomy.sites import SiteMap, View
from ..language.analyse.merged import merged_at
from ..language.analyse.reader import reads
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
            merged = merged_at(e.typing)
        except TooLarge:
            continue
        if merged is not None and any(not any("bias" in reads(f) for f in p) for p, _ in merged.bias.products):
            return f"`{e.row.name}`: the merged `{view.module}` would need a bias, and it has none"
    return ""
