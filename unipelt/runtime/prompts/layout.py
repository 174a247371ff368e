"""Where rows stand among tokens: pure index arithmetic, with no model in it.

Rows stand before the first real token, behind the first k, or behind the last; which index that is differs from example
to example where there is padding. (Pads between rows and tokens would not be seen, but a model that counts how far apart
two positions are, as T5 does, would count them.) Rows that share a place stand in the order of application, the first ones
nearest to the tokens they follow or precede.

In a mixed batch an example has the rows of its own adapter only. Those with fewer get pads, in front of all where a text is
continued at its end, and behind all else, where a first token may stand for the whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True, slots=True)
class Rows:
    """``count`` rows behind the first ``after`` real tokens; None: behind the last. ``moves``: tokens behind them count
    them in their positions. ``who``: the examples that have them; None: all."""

    count: int
    after: int | None
    moves: bool
    who: tuple[int, ...] | None = None


def sums(rows: Sequence[Rows], batch: int) -> list[int]:
    """How many rows each example has; one number, where all have the same: the size of a batch need not be known then."""
    if all(r.who is None for r in rows):
        return [sum(r.count for r in rows)]
    return [sum(r.count for r in rows if r.who is None or b in r.who) for b in range(batch)]


def ragged(rows: Sequence[Rows], batch: int) -> bool:
    """Whether some examples have fewer rows than others, so that they get pads."""
    return len(set(sums(rows, batch))) > 1


def most(rows: Sequence[Rows]) -> int:
    """How many rows an example has at most."""
    last = [b for r in rows if r.who is not None for b in r.who]
    return max(sums(rows, 1 + max(last) if last else 0))


class Layout:
    """The longer sequence: ``tokens`` [batch, tokens] and ``rows`` (one [batch, count] for each) are indices into it; those of
    examples that do not have the rows mean nothing. ``front``: pads of examples with fewer rows stand in front."""

    def __init__(
        self, rows: Sequence[Rows], shape: tuple[int, int], mask: torch.Tensor | None, device: torch.device, front: bool = False
    ):  # fmt: skip
        self.shape, self.kinds = shape, tuple(rows)
        has = sums(rows, shape[0])
        self.total = max(has, default=0)
        self.same = mask is None and all(
            r.who is None for r in rows
        )  # whether rows stand at the same places in all texts
        self.ragged = any(n < self.total for n in has)  # whether some examples get pads
        lead = [self.total - n if front else 0 for n in has]
        self.counts = [self._count(r, device) for r in rows]
        self.real = mask != 0 if mask is not None else torch.ones(shape, dtype=torch.bool, device=device)
        steps = torch.arange(shape[1], device=device)
        self.anchors = [self._anchor(r) for r in rows]
        before = torch.zeros(shape, dtype=torch.long, device=device)
        for c, a in zip(self.counts, self.anchors):
            before = before + c * (a[:, None] <= steps)
        pads = torch.tensor(lead, device=device) if any(lead) else torch.zeros((), dtype=torch.long, device=device)
        self.tokens = steps + before + pads.reshape(-1, 1)
        self.rows = [
            (a + self._earlier(i) + pads)[:, None] + torch.arange(r.count, device=device)
            for i, (r, a) in enumerate(zip(rows, self.anchors))
        ]

    def _count(self, r: Rows, device: torch.device) -> Any:
        """How many of the rows there are: a number, or [batch, 1]."""
        if r.who is None:
            return r.count
        return torch.tensor([[r.count if b in r.who else 0] for b in range(self.shape[0])], device=device)

    def _put(self, out: torch.Tensor, i: int, values: torch.Tensor) -> torch.Tensor:
        """Values [batch, count] at rows ``i``, in the examples that have them."""
        index, who = self.rows[i], self.kinds[i].who
        values = values.expand(index.shape).to(out.dtype)
        if who is None:
            return out.scatter(1, index, values)
        at = torch.tensor(who, device=out.device)
        return out.index_copy(0, at, out[at].scatter(1, index[at], values[at]))

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
                count = self.counts[j]
                total = total + (count[:, 0] if isinstance(count, torch.Tensor) else count) * first
        return total

    @property
    def moved(self) -> Any:
        """How many rows each example has that move its tokens: a number, or [batch, 1]."""
        return sum(c for r, c in zip(self.kinds, self.counts) if r.moves)

    def mask(self, t: torch.Tensor) -> torch.Tensor:
        """A mask of the tokens as that of the longer sequence, in which rows are real."""
        if not self.ragged:
            return self.spread(t, 1)
        out = self.spread(t)
        for i in range(len(self.rows)):
            out = self._put(out, i, torch.ones_like(self.rows[i]))
        return out

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
        for i, a in enumerate(self.anchors):
            own = torch.where(a > self.real.long().argmax(-1), t.gather(1, (a - 1).clamp(min=0)[:, None])[:, 0], 0)
            out = self._put(out, i, own[:, None])
        return out

    def positions(self, t: torch.Tensor) -> torch.Tensor:
        """Position numbers: rows that move tokens are counted like tokens, the others stand at 0."""
        t = t.expand(self.shape)
        steps = torch.arange(self.shape[1], device=t.device)
        moved = torch.zeros_like(t)
        for r, c, a in zip(self.kinds, self.counts, self.anchors):
            if r.moves:
                moved = moved + c * (a[:, None] <= steps)
        out = self.spread(t + moved)
        first = t.masked_fill(~self.real, torch.iinfo(t.dtype).max).amin(1)
        count = torch.cat([torch.zeros_like(self.real[:, :1], dtype=torch.long), self.real.cumsum(1)], 1)
        for i, (r, a) in enumerate(zip(self.kinds, self.anchors)):
            if r.moves:
                start = first + count.gather(1, a[:, None])[:, 0] + self._earlier(i, moved=True)
                own = start[:, None] + torch.arange(r.count, device=t.device)
                out = self._put(out, i, own)
        return out

    def where(self, index: torch.Tensor) -> torch.Tensor:
        """Token numbers [batch] in the longer sequence; one beyond the tokens stays beyond them."""
        n = self.shape[1]
        inside = self.tokens.gather(1, index.clamp(0, n - 1)[:, None])[:, 0]
        return torch.where((index >= 0) & (index < n), inside, torch.where(index < 0, index, index + self.total))
