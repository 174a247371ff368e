"""Rows in parts of a fused map, for peft, which knows the map alone: their factors become one pair with zero blocks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch

from ..compiler.plan import PlannedEdit
from .declared import Declared, no_counterpart
from .places import host

NOTE = (
    "the parts of a fused map became one pair of factors, of the sum of their ranks and with zeros between them: "
    "equal but for rounding, and trained on it is another method, whose parts meet"
)
SHARED = (
    "the parts of a fused map became one pair of factors, whose first one they share: trained on it is another method"
)


def by_map(edits: Iterable[PlannedEdit]) -> dict[str, list[PlannedEdit]]:
    """The edits that stand in parts of a map, by the map's path; a map that is edited as a whole besides is refused."""
    found: dict[str, list[PlannedEdit]] = {}
    whole: set[str] = set()
    for e in edits:
        if e.site.view.columns is None:
            whole.add(host(e))
        else:
            found.setdefault(host(e), []).append(e)
    both = sorted(whole & found.keys())
    if both:
        raise no_counterpart(f"the fused map `{both[0]}` is edited as a whole and in parts")
    return found


def joined(
    d: Declared, width: int, edits: list[PlannedEdit], values: Mapping[str, torch.Tensor], arguments: list[dict[str, Any]]
) -> tuple[dict[str, torch.Tensor], dict[str, Any], str]:  # fmt: skip
    """The two factors of all parts, by our labels, down [d_in, rank] and up [rank, ``width``, the outputs of the map], their arguments, and
    what is to be said of it."""
    down = (d.factors or d.parameters).get("down")
    if down is None:
        raise no_counterpart(f"`{edits[0].site.label}` is a part of the fused map `{host(edits[0])}`")
    up = next(n for n in d.tensors if n != down)
    narrow = [values[e.tensors[down]] for e in edits]
    # as where peft's own pair came in
    one = all(a == arguments[0] for a in arguments) and all(torch.equal(t, narrow[0]) for t in narrow)
    own = arguments[0] if one else _summed(d, edits, arguments)
    wide = narrow[0].new_zeros(*narrow[0].shape[:-2], sum(t.shape[-1] for t in narrow[: 1 if one else None]), width)
    start = 0
    for e, t, a in zip(edits, narrow, arguments):
        columns = e.site.view.columns
        assert columns is not None
        places = torch.cat([torch.arange(*r) for r in columns.ranges])
        share = (
            1.0
            if one
            else a[d.factors["scale"]] / a[d.factors["rank"]] / own[d.factors["scale"]] * own[d.factors["rank"]]
        )
        wide[..., start : start + t.shape[-1], places] = values[e.tensors[up]] * share
        start += 0 if one else t.shape[-1]
    return (
        {down: narrow[0] if one else torch.cat(narrow, dim=-1), up: wide},
        own,
        SHARED if one and len(edits) > 1 else NOTE,
    )


def _summed(d: Declared, edits: list[PlannedEdit], arguments: list[dict[str, Any]]) -> dict[str, Any]:
    """The arguments of one pair of factors for all parts: the sum of the ranks, and the scale of the first part."""
    rank, scale = (d.factors.get(n, "") for n in ("rank", "scale"))
    others = [{n: v for n, v in a.items() if n not in (rank, scale)} for a in arguments]
    if not d.factors or any(o != others[0] for o in others):
        raise no_counterpart(
            f"the parts of the fused map `{host(edits[0])}` have different settings, or numbers that `{d.name}` does not share"
        )
    total = sum(a[rank] for a in arguments)
    return {**arguments[0], rank: total, scale: arguments[0][scale] / arguments[0][rank] * total}
