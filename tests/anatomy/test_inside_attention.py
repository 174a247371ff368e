"""What attention modules do before the softmax: windows beside the heads, positions that are added to what queries read."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from names import name as named
from torch import nn

import unipelt
from unipelt.anatomy.columns import Columns
from unipelt.anatomy.find import find
from unipelt.anatomy.prove import PROVED, proved
from unipelt.anatomy.sites import SiteMap

WIDTH, HEADS, TOKENS = 16, 2, 12
PREFIX = unipelt.load(named("prefix_tuning"))(l=3)


class Windowed(nn.Module):
    """Queries, keys and values as [batch, heads, windows, tokens, numbers]."""

    def __init__(self, windows: int) -> None:
        super().__init__()
        self.windows = windows
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shape = (len(x), TOKENS // self.windows, self.windows, 3, HEADS, WIDTH // HEADS)
        q, k, v = self.qkv(x).reshape(shape).permute(3, 0, 4, 2, 1, 5).unbind(0)
        h = torch.softmax(q @ k.transpose(-1, -2) * 0.3, -1) @ v
        return self.out(h.transpose(1, 3).reshape(x.shape))


class Placed(nn.Module):
    """Positions are added to what queries and keys read, and not to what values do."""

    def __init__(self) -> None:
        super().__init__()
        self.places = nn.Parameter(torch.randn(TOKENS, WIDTH))
        self.q, self.k, self.v, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        there = x + self.places
        q, k, v = (
            m(t).unflatten(-1, (HEADS, -1)).transpose(1, 2) for m, t in ((self.q, there), (self.k, there), (self.v, x))
        )
        return self.out(nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(-2))


class Block(nn.Module):
    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.attention, self.norm = attention, nn.LayerNorm(WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(x + self.attention(x))


class Model(nn.Module):
    def __init__(self, kind: Any, *arguments: Any) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(kind(*arguments)) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x)
        return x


def found(kind: Any, *arguments: Any) -> tuple[Model, SiteMap]:
    """A model and its sites, which are those that are found of it on meta."""
    torch.manual_seed(0)
    model = Model(kind, *arguments).eval()
    example = {"x": torch.randn(1, TOKENS, WIDTH)}
    sites = find(model, example)
    with torch.device("meta"):
        empty = Model(kind, *arguments).eval()
    bare = find(empty, {"x": example["x"].to("meta")})
    assert {(s.label, s.view, s.x) for s in bare.sites} == {(s.label, s.view, s.x) for s in sites.sites}
    return model, sites


@pytest.mark.parametrize("windows", [1, HEADS, 3])
def test_windows_beside_the_heads_are_no_heads(windows: int) -> None:
    model, sites = found(Windowed, windows)
    for name in ("attn.q", "attn.k", "attn.v", "attn.o"):
        assert [s.proof for s in sites.named(name)] == [PROVED] * 2, sites.refused
    # whose keys a window has cannot be said of one that stands beside others
    assert bool(sites.named("attn.heads")) == (windows == 1)
    q = sites.named("attn.q")[0]
    half = replace(q, view=replace(q.view, columns=Columns(((0, WIDTH // 2),))))
    mistaken = replace(sites, sites=tuple(half if s is q else s for s in sites.sites))
    assert q.label in proved(mistaken, model, model, {"x": torch.randn(1, TOKENS, WIDTH)}).refused


def test_rows_among_the_keys_of_one_window_are_those_of_every_head() -> None:
    """As keys and values that are put in front by hand."""
    model, _ = found(Windowed, 1)
    x = torch.randn(2, TOKENS, WIDTH)
    with torch.no_grad():
        before = model(x)
        unipelt.apply(model, PREFIX, seed=0, example={"x": x[:1]})
        for t in unipelt.state_dict(model).values():
            t.normal_(0, 0.5)
        rows = {(int(n.split(".")[1]), n.rpartition(".")[2]): t.clone() for n, t in unipelt.state_dict(model).items()}
        changed = model(x)
        unipelt.remove(model)
        assert torch.equal(model(x), before)
        for i, block in enumerate(model.blocks):
            q, k, v = block.attention.qkv(x).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
            k, v = (torch.cat([rows[i, f"P_{n}"].expand(2, -1, -1, -1), t], 2)
                    for n, t in (("k", k), ("v", v)))  # fmt: skip
            h = (torch.softmax(q @ k.transpose(-1, -2) * 0.3, -1) @ v).transpose(1, 2).flatten(-2)
            x = block.norm(x + block.attention.out(h))
    torch.testing.assert_close(changed, x)


def test_positions_that_attention_adds_are_no_part_of_what_it_reads() -> None:
    _, sites = found(Placed)
    for s in sites.named("attn"):
        assert (s.x, s.residual, s.proof) == (s.view.module, s.view.module, PROVED), sites.refused
