"""Blocks that do the same are looked at once; whatever the finder reads of a block tells two blocks apart."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from test_finder import OTHERS, model_of, searched
from torch import nn

from unipelt.anatomy import found
from unipelt.anatomy.alike import structure
from unipelt.anatomy.record import record


def each_by_itself(monkeypatch: pytest.MonkeyPatch, model: nn.Module) -> Any:
    """The map where no block is taken for another."""
    with monkeypatch.context() as m:
        m.setattr(found, "structure", lambda *_: object())
        return searched(model)


@pytest.mark.parametrize("kind", OTHERS)
def test_one_block_for_all_gives_the_same_map(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of(OTHERS[kind])
    assert searched(model) == each_by_itself(monkeypatch, model)


class Block(nn.Module):
    def __init__(self, order: list[int] | None = None, factor: float = 1.0, bends: bool = True, swapped: bool = False):
        super().__init__()
        self.norm, self.both, self.down = nn.LayerNorm(8), nn.Linear(8, 32), nn.Linear(16, 8)
        self.order, self.factor, self.bends, self.swapped = order, factor, bends, swapped

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.both(self.norm(x))
        if self.order is not None:
            h = h[..., torch.tensor(self.order)]
        gate, up = h.chunk(2, -1)[:: -1 if self.swapped else 1]
        h = self.down((torch.relu(gate) if self.bends else gate) * up)
        return x + self.factor * h


class Blocks(nn.Module):
    def __init__(self, *blocks: nn.Module):
        super().__init__()
        self.blocks = nn.ModuleList(blocks)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for b in self.blocks:
            x = b(x)
        return x


def structures(*blocks: nn.Module) -> list[Any]:
    torch.manual_seed(0)
    model, x = Blocks(*blocks), torch.randn(1, 3, 8)
    r = record(model, lambda: model(x))
    return [structure(r, r.of(f"blocks.{i}")[0], r.times) for i in range(len(blocks))]


TURNED = [*range(16, 32), *range(16)]


@pytest.mark.parametrize(
    "other",
    [dict(factor=0.5), dict(bends=False), dict(swapped=True), dict(order=TURNED), dict(order=list(range(32)))],
    ids=str,
)
def test_blocks_that_do_other_things_are_told_apart(other: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    plain, same, differs = structures(Block(), Block(), Block(**other))
    assert plain == same != differs
    torch.manual_seed(0)
    model = Blocks(Block(), Block(**other), Block())
    assert searched(model) == each_by_itself(monkeypatch, model)


def test_the_numbers_of_an_index_count() -> None:
    one, other, again = structures(Block(order=TURNED), Block(order=list(range(32))), Block(order=TURNED))
    assert one == again != other
