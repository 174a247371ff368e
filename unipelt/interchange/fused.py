"""Rows in parts of a fused map, for peft, which knows the map alone: their factors become one pair with zero blocks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from ..compiler.plan import PlannedEdit
from .declared import Declared, no_counterpart
from .places import host

NOTE = (
    "the parts of a fused map became one pair of factors, of the sum of their ranks and with zeros between them: "
    "equal but for rounding, and trained on it is another method, whose parts meet"
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
    d: Declared, module: nn.Module, edits: list[PlannedEdit], values: Mapping[str, torch.Tensor],
    arguments: list[dict[str, Any]],
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:  # fmt: skip
    """The two factors of all parts, by our labels, down [d_in, rank] and up [rank, outputs of the map], and their arguments."""
    if not d.factors:
        raise no_counterpart(f"`{edits[0].site.label}` is a part of the fused map `{host(edits[0])}`")
    down, up, rank, scale = (d.factors[n] for n in ("down", "up", "rank", "scale"))
    others = [{n: v for n, v in a.items() if n not in (rank, scale)} for a in arguments]
    if any(o != others[0] for o in others):
        raise no_counterpart(f"the parts of the fused map `{host(edits[0])}` have different settings")
    weight: torch.Tensor = module.weight  # type: ignore[assignment]
    total = sum(a[rank] for a in arguments)
    unit = arguments[0][scale] / arguments[0][rank]
    wide = values[edits[0].tensors[up]].new_zeros(total, weight.shape[0 if isinstance(module, nn.Linear) else -1])
    start = 0
    for e, a in zip(edits, arguments):
        columns = e.site.view.columns
        assert columns is not None
        places = torch.cat([torch.arange(*r) for r in columns.ranges])
        wide[start : start + a[rank], places] = values[e.tensors[up]] * (a[scale] / a[rank] / unit)
        start += a[rank]
    narrow = torch.cat([values[e.tensors[down]] for e in edits], dim=1)
    return {down: narrow, up: wide}, {**arguments[0], rank: total, scale: unit * total}
