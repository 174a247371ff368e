"""Where a module's numbers lie: edits read [batch, token, d], and a convolution yields [batch, d, rows, columns]."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import torch

from ..language.report.diagnostics import error


@dataclass(frozen=True, slots=True)
class Layout:
    """``axis`` is the dimension of the d numbers, those before and behind it are examples and positions: the first are examples.
    ``stride``: of what enters, only every so many positions are read, in each of the dimensions of positions. ``turned``: tokens
    are the first dimension and examples the second."""

    axis: int = -1
    stride: tuple[int, ...] = ()
    turned: bool = False

    def into(self, t: torch.Tensor) -> torch.Tensor:
        """[…, d, …] → [batch, token, d]."""
        t = self._in_order(t)
        lead = t.shape[:-1]
        return t.reshape(*(lead[:1] or (1,)), prod(lead[1:]), t.shape[-1])

    def entering(self, t: torch.Tensor) -> torch.Tensor:
        """As `into`, of what enters the module: without the positions that a stride leaves out."""
        if any(n > 1 for n in self.stride):
            at: tuple[Any, ...] = (..., *(slice(None, None, n) for n in self.stride))
            t = t[at]
        return self.into(t)

    def positions(self, t: torch.Tensor) -> tuple[int, ...]:
        """How many positions there are in each of their dimensions."""
        return tuple(self._in_order(t).shape[1:-1])

    def back(self, t: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        """[batch, token, d] → the shape of ``like``, which `into` was given."""
        t = t.reshape(self._in_order(like).shape)
        return (t.transpose(0, 1) if self._turns(like) else t).movedim(-1, self.axis)

    def _in_order(self, t: torch.Tensor) -> torch.Tensor:
        turns = self._turns(t)
        t = t.movedim(self.axis, -1)
        return t.transpose(0, 1) if turns else t

    def _turns(self, t: torch.Tensor) -> bool:
        return self.turned and t.dim() > 2


def agree(x: torch.Tensor, h: torch.Tensor, place: str) -> None:
    """An error where what enters a module has other examples or positions than what leaves it."""
    if x.shape[:2] != h.shape[:2]:
        raise error("E0529", f"what enters {place} has {_counted(x)}, and what leaves it {_counted(h)}, so that `x` and `h` do not meet",
                    help="`insert sequential` reads `h` alone")  # fmt: skip


def _counted(t: torch.Tensor) -> str:
    return f"{t.shape[0]} examples of {t.shape[1]} positions"
