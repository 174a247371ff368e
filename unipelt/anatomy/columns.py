"""Columns: which numbers of a module's output are a site's own, where one module serves several sites (a fused projection).

They are one range where the projections stand side by side (Phi-3), and several where they alternate head by head (GPT-NeoX) or
group by group (Falcon). Several ranges of one width at one distance are one range of each row, once the output is cut into rows
of that distance: taking them and putting them back costs two changes of shape more than one range does.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch

#: Ranges that a text lists in full.
LISTED = 3


@dataclass(frozen=True, slots=True)
class Columns:
    """Some columns of a module's output, the last dimension of what it yields: ranges ``(start, stop)`` in ascending order.

    ``stop`` is not included. Ranges that touch become one, so that the same columns are equal. `ValueError`: a range is
    empty, or begins before the one before it has ended. ``width`` counts the columns; ``period`` is the distance from one
    range to the next where all have one width and one distance, 0 where they have not, and where there is one range only.
    """

    ranges: tuple[tuple[int, int], ...]
    width: int = field(init=False, compare=False, repr=False)
    period: int = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        found: list[tuple[int, int]] = []
        for start, stop in self.ranges:
            before = found[-1][1] if found else 0
            if not before <= start < stop:
                raise ValueError(f"columns are ranges in ascending order, none of them empty, not {self.ranges}"[:200])
            if found and start == before:
                start = found.pop()[0]
            found.append((start, stop))
        if not found:
            raise ValueError("columns are one range at least")
        widths, steps = {b - a for a, b in found}, {b[0] - a[0] for a, b in zip(found, found[1:])}
        object.__setattr__(self, "ranges", tuple(found))
        object.__setattr__(self, "width", sum(b - a for a, b in found))
        object.__setattr__(self, "period", steps.pop() if len(widths) == len(steps) == 1 else 0)

    @classmethod
    def span(cls, start: int, stop: int) -> Columns:
        """The columns ``start`` to ``stop`` (not included)."""
        return cls(((start, stop),))

    @classmethod
    def of_indices(cls, indices: Iterable[int]) -> Columns:
        """The columns of these numbers, in ascending order whatever theirs is; one that is named twice counts once."""
        found: list[tuple[int, int]] = []
        for i in sorted({int(i) for i in indices}):
            found.append((found.pop()[0] if found and found[-1][1] == i else i, i + 1))
        return cls(tuple(found))

    def of(self, t: torch.Tensor) -> torch.Tensor:
        """[…, all columns] → […, these] in ascending order. One range is a view; gradients flow to these columns alone."""
        ranges = self.ranges
        if len(ranges) == 1:
            return t.narrow(-1, ranges[0][0], self.width)
        n = len(ranges)
        if self.rows(t.shape[-1]):
            rows = t.unflatten(-1, (n, self.period))
            return rows.narrow(-1, ranges[0][0], self.width // n).flatten(-2)
        sizes, first = self._cuts(t.shape[-1])
        return torch.cat(t.split(sizes, -1)[first::2], -1)

    def put(self, h: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
        """``h`` with the new values […, width] in these columns; the other columns are as they were."""
        sizes, first = self._cuts(h.shape[-1])
        pieces = list(h.split(sizes, -1))
        pieces[first::2] = new.split(sizes[first::2], -1)
        return torch.cat(pieces, -1)

    def rows(self, total: int) -> int:
        """Into how many equal rows all columns can be cut so that these are one and the same range of each; 0 where they cannot."""
        n = len(self.ranges)
        return 1 if n == 1 else n if n * self.period == total else 0

    def _cuts(self, total: int) -> tuple[list[int], int]:
        """The widths of the pieces of all columns, by turns these and others, and the number of the first that is of these."""
        edges = [0, *(i for r in self.ranges for i in r), total]
        sizes = [b - a for a, b in zip(edges, edges[1:])]
        return [s for s in sizes if s], 1 if sizes[0] else 0

    def meets(self, other: Columns) -> bool:
        """Whether some column is in both."""
        mine, others = list(self.ranges), list(other.ranges)
        while mine and others:
            (a, b), (c, d) = mine[-1], others[-1]
            if a < d and c < b:
                return True
            (mine if a >= d else others).pop()
        return False

    def text(self, **counts: int) -> str:
        """``[0:16, 48:64, 96:112, …] per head``: the ranges, and what there is one for each of, by its number (``head=4``)."""
        shown = [f"{a}:{b}" for a, b in self.ranges[:LISTED]]
        shown += ["…"] if len(self.ranges) > LISTED else []
        each = self.each(**counts)
        return f"[{', '.join(shown)}]" + (f" per {each}" if each else "")

    def each(self, **counts: int) -> str:
        """Of what there is one range for each, by its number (``head=4``); nothing where that is not known."""
        return next((n for n, count in counts.items() if self.period and count == len(self.ranges)), "")

    def __str__(self) -> str:
        return self.text()

    def __repr__(self) -> str:
        return f"<columns {self.text()}: {self.width}>"


def taken(t: torch.Tensor, columns: Columns | None) -> torch.Tensor:
    """The columns of a tensor; all of them where none are named."""
    return t if columns is None else columns.of(t)


def joined(h: torch.Tensor, new: Mapping[Columns, torch.Tensor]) -> torch.Tensor:
    """``h`` with new values in some of its columns, which do not meet; the other columns are as they were."""
    total = h.shape[-1]
    counts = [c.rows(total) for c in new]
    n = counts[0]
    if n == 0 or any(count != n for count in counts):
        for c in new:
            h = c.put(h, new[c])
        return h
    if n > 1:
        h, new = h.unflatten(-1, (n, total // n)), {c: new[c].unflatten(-1, (n, -1)) for c in new}
    parts, at = [], 0
    for c in sorted(new, key=lambda c: c.ranges[0]):  # (torch.compile cannot sort the columns themselves)
        start, stop = c.ranges[0]
        if at < start:
            parts.append(h.narrow(-1, at, start - at))
        parts.append(new[c])
        at = stop
    if at < h.shape[-1]:
        parts.append(h.narrow(-1, at, h.shape[-1] - at))
    out = torch.cat(parts, -1)
    return out if n == 1 else out.flatten(-2)
