"""Tries what a row gives alone, with pads in front, beside the base's rows, and in what runs already, before anybody's text depends on it."""

from __future__ import annotations

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

    An adapter with rows shares nothing: the cache of every text beside it is longer by them, and nothing shortens it when the adapter leaves.
    """
    g = torch.Generator().manual_seed(0)
    long, short = (torch.randint(0, words, (n,), generator=g).tolist() for n in (7, 3))
    then = [int(torch.randint(0, words, (1,), generator=g)) for _ in range(2)]

    def row(prompt: list[int], who: str | None, k: int) -> Row:
        return Row(prompt, who, next=then[k])

    def alone(prompt: list[int], who: str | None, k: int) -> torch.Tensor:
        d, r = Decoding(model), row(prompt, who, k)
        found = [d.begin([r]), d.step()]
        r.next = then[1]
        return torch.cat([*found, d.step()])

    wanted = alone(short, adapter, 0)
    need_finite(wanted)

    def same(found: torch.Tensor, expected: torch.Tensor) -> bool:
        return alike(model.model, found, expected)

    def holds(companion: str | None, pads: bool) -> bool:
        """Whether a row gives the same in front of another, and when that one has left."""
        other = long if pads else short
        d = Decoding(model, joins=False)
        try:
            both = [row(short, adapter, 0), row(other, companion, 1)]
            first, second = d.begin(both), d.step()
            d.leave(both[1:])
            both[0].next = then[1]
            third = d.step()
        except Exception:  # noqa: BLE001 - a model whose cache cannot do this raises what it likes
            return False
        if not same(torch.stack([first[0], second[0], third[0]]), wanted):
            return False
        return companion == adapter or same(torch.stack([first[1], second[1]]), alone(other, companion, 1)[:2])

    def joined() -> bool:
        d = Decoding(model)
        d.begin([row(long, None, 1)])
        d.step()
        if not d.joins:
            return False
        first = d.begin([row(short, adapter, 0)])
        second = d.step()
        d.leave(d.rows[:1])
        d.rows[0].next = then[1]
        return same(torch.stack([first[0], second[1], d.step()[0]]), wanted)

    pads = holds(adapter, True)
    batches = pads or holds(adapter, False)
    shares = batches and not rows and (adapter is None or holds(None, pads))
    return Ways(batches, shares, pads, shares and pads and joined(), rows)
