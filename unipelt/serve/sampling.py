"""From scores to the next token, for each text by its own settings and its own chance: neighbours in a batch change nothing."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Sampling:
    """``temperature`` 0 takes the most probable token; ``top_p`` leaves the least probable ones out that together have less than the rest."""

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None

    def generator(self) -> torch.Generator | None:
        """The chance of one answer; None where none is needed."""
        if self.temperature == 0:
            return None
        g = torch.Generator()
        if self.seed is None:
            g.seed()
        else:
            g.manual_seed(self.seed)
        return g

    def choose(self, scores: torch.Tensor, chance: torch.Generator | None) -> int:
        """A token by its scores [vocabulary], on the CPU."""
        if chance is None:
            return int(scores.argmax())
        shares = torch.softmax(scores.double() / self.temperature, -1)
        if self.top_p < 1:
            sorted_, order = shares.sort(descending=True, stable=True)
            sorted_[sorted_.cumsum(-1) - sorted_ >= self.top_p] = 0  # the most probable one stays in any case
            shares = torch.zeros_like(shares).scatter_(0, order, sorted_)
        return int(torch.multinomial(shares, 1, generator=chance))
