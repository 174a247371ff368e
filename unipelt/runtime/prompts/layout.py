"""Where rows stand among tokens: pure index arithmetic, with no model in it.

Rows stand before the first real token, behind the first k, or behind the last; which index that is differs from example
to example where there is padding. (Pads between rows and tokens would not be seen, but a model that counts how far apart
two positions are, as T5 does, would count them.) Rows that share a place stand in the order of application, the first ones
nearest to the tokens they follow or precede.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class Rows:
    """``count`` rows behind the first ``after`` real tokens; None: behind the last. ``moves``: tokens behind them count
    them in their positions."""

    count: int
    after: int | None
    moves: bool


class Layout:
    """The longer sequence: ``tokens`` [batch, tokens] and ``rows`` (one [batch, count] for each) are indices into it."""

    def __init__(self, rows: Sequence[Rows], shape: tuple[int, int], mask: torch.Tensor | None, device: torch.device):
        self.shape, self.kinds = shape, tuple(rows)
        self.total = sum(r.count for r in rows)
        self.real = mask != 0 if mask is not None else torch.ones(shape, dtype=torch.bool, device=device)
        steps = torch.arange(shape[1], device=device)
        self.anchors = [self._anchor(r) for r in rows]
        before = torch.zeros(shape, dtype=torch.long, device=device)
        for r, a in zip(rows, self.anchors):
            before = before + r.count * (a[:, None] <= steps)
        self.tokens = steps + before
        self.rows = [
            (a + self._earlier(i))[:, None] + torch.arange(r.count, device=device)
            for i, (r, a) in enumerate(zip(rows, self.anchors))
        ]

    def _anchor(self, r: Rows) -> torch.Tensor:
        """How many tokens, pads among them, stand before the rows: [batch]."""
        n = self.shape[1]
        seen = self.real.long()
        end = n - seen.flip(-1).argmax(-1)
        if r.after is None:
            return end
        return torch.minimum(seen.argmax(-1) + r.after, end)  # a text shorter than that: behind all of it

    def _rank(self, i: int) -> int:
        """The order of rows that share a place."""
        return i if self.kinds[i].after is None else -i - 1

    def _earlier(self, i: int, moved: bool = False) -> torch.Tensor:
        """How many other rows stand before rows ``i`` (only those that move tokens): [batch]."""
        total = torch.zeros_like(self.anchors[i])
        for j, (r, a) in enumerate(zip(self.kinds, self.anchors)):
            if j != i and (r.moves or not moved):
                first = a < self.anchors[i] if self._rank(j) > self._rank(i) else a <= self.anchors[i]
                total = total + r.count * first
        return total

    @property
    def foretelling(self) -> torch.Tensor:
        """For each token the entry that foretells the next one, [batch, tokens]: its own, or the last row between the two."""
        end = self.tokens.new_full((self.shape[0], 1), self.shape[1] + self.total)
        return torch.cat([self.tokens[:, 1:], end], 1) - 1

    @property
    def text(self) -> torch.Tensor:
        """Which entries of the longer sequence are real tokens of the text: [batch, tokens and rows]."""
        return self.spread(self.real.long())

    def spread(self, t: torch.Tensor, fill: int = 0) -> torch.Tensor:
        """[batch or 1, tokens, …] → [batch, tokens and rows, …], ``fill`` at the rows."""
        t = t.expand(self.shape[0], *t.shape[1:])
        out = t.new_full((self.shape[0], self.shape[1] + self.total, *t.shape[2:]), fill)
        index = self.tokens.reshape(*self.tokens.shape, *[1] * (t.dim() - 2)).expand(t.shape)
        return out.scatter(1, index, t)

    def types(self, t: torch.Tensor) -> torch.Tensor:
        """Token types: rows have that of the token they follow, 0 before the first."""
        out = self.spread(t)
        t = t.expand(self.shape)
        for index, a in zip(self.rows, self.anchors):
            own = torch.where(a > self.real.long().argmax(-1), t.gather(1, (a - 1).clamp(min=0)[:, None])[:, 0], 0)
            out = out.scatter(1, index, own[:, None].expand(index.shape))
        return out

    def positions(self, t: torch.Tensor) -> torch.Tensor:
        """Position numbers: rows that move tokens are counted like tokens, the others stand at 0."""
        t = t.expand(self.shape)
        steps = torch.arange(self.shape[1], device=t.device)
        moved = torch.zeros_like(t)
        for r, a in zip(self.kinds, self.anchors):
            if r.moves:
                moved = moved + r.count * (a[:, None] <= steps)
        out = self.spread(t + moved)
        first = t.masked_fill(~self.real, torch.iinfo(t.dtype).max).amin(1)
        count = torch.cat([torch.zeros_like(self.real[:, :1], dtype=torch.long), self.real.cumsum(1)], 1)
        for i, (r, a, index) in enumerate(zip(self.kinds, self.anchors, self.rows)):
            if r.moves:
                start = first + count.gather(1, a[:, None])[:, 0] + self._earlier(i, moved=True)
                own = start[:, None] + torch.arange(r.count, device=t.device)
                out = out.scatter(1, index, own.to(out.dtype))
        return out

    def where(self, index: torch.Tensor) -> torch.Tensor:
        """Token numbers [batch] in the longer sequence; one beyond the tokens stays beyond them."""
        n = self.shape[1]
        inside = self.tokens.gather(1, index.clamp(0, n - 1)[:, None])[:, 0]
        return torch.where((index >= 0) & (index < n), inside, torch.where(index < 0, index, index + self.total))
