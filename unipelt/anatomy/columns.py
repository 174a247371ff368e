"""Columns: which numbers of a module's output are a site's own, where one module serves several sites (a fused projection)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class Columns:
    """The columns ``start`` to ``stop`` (not included) of a module's output: the last dimension of what it yields."""

    start: int
    stop: int

    @property
    def width(self) -> int:
        return self.stop - self.start

    def of(self, t: torch.Tensor) -> torch.Tensor:
        """[…, all columns] → […, these]."""
        return t.narrow(-1, self.start, self.width)

    def meets(self, other: Columns) -> bool:
        """Whether some column is in both."""
        return self.start < other.stop and other.start < self.stop


def taken(t: torch.Tensor, columns: Columns | None) -> torch.Tensor:
    """The columns of a tensor; all of them where none are named."""
    return t if columns is None else columns.of(t)


def joined(h: torch.Tensor, new: Mapping[Columns, torch.Tensor]) -> torch.Tensor:
    """``h`` with new values in some of its columns, which do not meet; the other columns are as they were."""
    parts, at = [], 0
    for columns in sorted(new, key=lambda c: c.start):  # (torch.compile cannot sort the columns themselves)
        parts += [Columns(at, columns.start).of(h), new[columns]]
        at = columns.stop
    parts.append(Columns(at, h.shape[-1]).of(h))
    return torch.cat([p for p in parts if p.shape[-1]], -1)
