"""The torch side of the words of `after step`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ..code import Unwritten, Written
from ..named import Named, Value
from .evaluated import function
from .written import Writing, word


@function("gradient")
def gradient(context: Any, a: Named) -> Value:
    found = context.gradients.get(id(a.data))
    return Named(torch.zeros_like(a.data) if found is None else found.to(a.data.dtype).reshape(a.data.shape), a.axes)


@function("among")
def among(context: Any, a: Named, n: Value) -> Value:
    """Of one place; several are taken together by `largest_of`."""
    return largest_of([a], float(n.data if isinstance(n, Named) else n))[0]  # type: ignore[arg-type]


def largest_of(values: Sequence[Named], n: float) -> list[Named]:
    """1 at the entries that are among the ``n`` largest of each value on average, 0 elsewhere; of equal ones the first."""
    flat = torch.cat([v.data.detach().flatten().cpu().double() for v in values])
    kept = torch.zeros_like(flat)
    kept[torch.sort(flat, descending=True, stable=True).indices[: max(0, round(n * len(values)))]] = 1
    parts = kept.split([v.data.numel() for v in values])
    return [Named(p.reshape(v.data.shape).to(v.data), v.axes) for p, v in zip(parts, values)]


@word("gradient", "among")
def _between_passes(w: Writing, *args: Written) -> Written:
    raise Unwritten("what happens after a step")
