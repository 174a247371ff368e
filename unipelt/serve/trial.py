"""Tries what a row gives alone, with pads in front, beside the base's rows, and in what runs already, before anybody's text depends on it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from .decoding import Decoding, Model, Row

#: How far scores may be apart, as a part of the largest one, for what is computed in another order.
_NEAR = {torch.float32: 1e-4, torch.float64: 1e-8}
_NEAR_HALF = 5e-2


@dataclass(frozen=True)
class Ways:
    """How an adapter's rows may run. ``batches``: together at all; ``shares``: beside those of other adapters; ``pads``: beside longer
    ones; ``joins``: from the middle of what runs. ``rows``: how many the adapter itself puts among the tokens."""

    batches: bool
    shares: bool
    pads: bool
    joins: bool
    rows: int = 0


class NotFinite(Exception):
    """The adapter makes scores that are no numbers."""


def need_finite(scores: torch.Tensor) -> None:
    """Raises `NotFinite`."""
    if not torch.isfinite(scores).all():
        raise NotFinite("it makes scores that are no numbers")


def alike(model: nn.Module, found: torch.Tensor, expected: torch.Tensor) -> bool:
    """Whether two results are the same but for the rounding of the model's dtype."""
    share = _NEAR.get(next(p.dtype for p in model.parameters()), _NEAR_HALF)
    return bool((found - expected).abs().max() <= share * expected.abs().max().clamp(min=1e-6))


def tried_briefly(model: Model, adapter: str) -> None:
    """A short text under an adapter whose ways are known. Raises `NotFinite`, and what the model raises."""
    need_finite(Decoding(model).begin([Row(range(3), adapter)]))


def tried(model: Model, adapter: str | None, words: int, rows: int = 0) -> Ways:
    """How an adapter's texts may run, tried with random prompts of 3 and 7 tokens and two tokens after each. The adapter puts ``rows``
    among the tokens. Raises `NotFinite`, and what the model raises.

    To a text, the rows that another one's adapter has more are pads in front, so one that bears no pads shares nothing with rows.
    """
    g = torch.Generator().manual_seed(0)
    long, short = (torch.randint(0, words, (n,), generator=g).tolist() for n in (7, 3))
    then = [int(torch.randint(0, words, (1,), generator=g)) for _ in range(2)]

    def row(prompt: list[int], who: str | None, k: int) -> Row:
        return Row(prompt, who, next=then[k], inserted=rows if who == adapter else 0)

    def alone(prompt: list[int], who: str | None, k: int) -> torch.Tensor:
        d, r = Decoding(model), row(prompt, who, k)
        found = [d.begin([r]), d.step()]
        r.next = then[1]
        return torch.cat([*found, d.step()])

    wanted = alone(short, adapter, 0)
    need_finite(wanted)

    def same(found: Sequence[torch.Tensor], expected: torch.Tensor) -> bool:
        return alike(model.model, torch.stack(list(found)), expected)

    def beside(companion: str | None, pads: bool, stays: int) -> bool:
        """Whether a row (0) and one behind it (1) give the same, and the one that stays when the other has left."""
        other = long if pads else short
        expected = wanted, alone(other, companion, 1)
        d = Decoding(model, joins=False)
        both = [row(short, adapter, 0), row(other, companion, 1)]
        found = [d.begin(both), d.step()]
        d.leave([both[1 - stays]])
        both[stays].next = then[1]
        last = d.step()[0]
        kept = [*(t[stays] for t in found), last]
        return same(kept, expected[stays]) and same([t[1 - stays] for t in found], expected[1 - stays][:2])

    def holds(companion: str | None, pads: bool) -> bool:
        try:
            return all(beside(companion, pads, stays) for stays in (0, 1))
        except Exception:  # noqa: BLE001 - a model whose cache cannot do this raises what it likes
            return False

    def joined(first: str | None, second: str | None) -> bool:
        """Whether a row gives the same when another one joins it, and that one too, when the first has left."""
        d = Decoding(model)
        one, other = row(long, first, 1), row(short, second, 0)
        mine = [d.begin([one])[0], d.step()[0]]
        if not d.joins:
            return False
        one.next = then[1]
        its, both = d.begin([other]), d.step()
        d.leave([one])
        other.next = then[1]
        return same([*mine, both[0]], alone(long, first, 1)) and same([its[0], both[1], d.step()[0]], alone(short, second, 0))  # fmt: skip

    pads = holds(adapter, True)
    batches = pads or holds(adapter, False)
    shares = batches and (pads or not rows) and (adapter is None or holds(None, pads))
    joins = shares and pads and joined(None, adapter) and (adapter is None or joined(adapter, None))
    return Ways(batches, shares, pads, joins, rows)
