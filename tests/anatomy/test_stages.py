"""Blocks of models whose stages differ: in stages that are called as lists, and in lists within what adds their input to what they yield,
as a UNet's transformers are. Models of timm and diffusers are tried where they are installed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

import unipelt
from unipelt.anatomy.find import find

WIDTH, OUTSIDE = 16, 12


class Attention(nn.Module):
    def __init__(self, read: int = WIDTH) -> None:
        super().__init__()
        self.to_q, self.to_k, self.to_v = nn.Linear(WIDTH, WIDTH), nn.Linear(read, WIDTH), nn.Linear(read, WIDTH)
        self.to_out = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        q, k, v = (
            m(t).unflatten(-1, (2, 8)).transpose(1, 2)
            for m, t in ((self.to_q, x), (self.to_k, other), (self.to_v, other))
        )
        return self.to_out(functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Inner(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleDict({n: nn.LayerNorm(WIDTH) for n in "abc"})
        self.attn, self.other = Attention(), Attention(OUTSIDE)
        self.up, self.down = nn.Linear(WIDTH, 24), nn.Linear(24, WIDTH)

    def forward(self, x: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        y = self.norms["a"](x)
        x = x + self.attn(y, y)
        x = x + self.other(self.norms["b"](x), text)
        return x + self.down(torch.relu(self.up(self.norms["c"](x))))


class Around(nn.Module):
    """Parts of a picture as tokens, through blocks, and added to the picture."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.blocks, self.leave = (
            nn.Linear(WIDTH, WIDTH),
            nn.ModuleList([Inner(), Inner()]),
            nn.Linear(WIDTH, WIDTH),
        )

    def forward(self, x: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        h = self.enter(x.flatten(2).transpose(1, 2))
        for block in self.blocks:
            h = block(h, text)
        return x + self.leave(h).transpose(1, 2).unflatten(2, x.shape[2:])


class Pictured(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cut, self.parts = nn.Conv2d(3, WIDTH, 3, padding=1), nn.ModuleList([Around(), Around()])

    def forward(self, sample: torch.Tensor, encoder_hidden_states: torch.Tensor) -> torch.Tensor:
        h = self.cut(sample)
        for part in self.parts:
            h = part(h, encoder_hidden_states)
        return h


def acts_and_leaves(model: Any, method: Any, run: Any, **more: Any) -> None:
    """An adapter changes what the model yields, is merged, and leaves nothing behind."""
    with torch.no_grad():
        plain = run()
        unipelt.apply(model, method, **more)
        for t in unipelt.state_dict(model).values():
            t.normal_(0, 0.3)
        changed = run()
        assert float((changed - plain).abs().max()) > 1e-3 * float(plain.abs().max())
        unipelt.merge(model)
        torch.testing.assert_close(run(), changed, rtol=1e-3, atol=1e-4)
        unipelt.unmerge(model)
        unipelt.remove(model)
        assert torch.equal(run(), plain)


def low(*sites: str) -> Any:
    return unipelt.parse(f"method low {{ modify {', '.join(sites)}  insert parallel  form {{ A: [d_in, 2] ~ normal(0.3)  B: [2, d_out] ~ normal(0.3)  "
                         "delta = z @ A @ B }  compose add }")  # fmt: skip


def test_blocks_in_a_list_within_what_adds_their_input() -> None:
    torch.manual_seed(0)
    model = Pictured().eval()
    given = torch.randn(2, 3, 4, 4), torch.randn(2, 5, OUTSIDE)
    sites = find(model, {"sample": given[0][:1], "encoder_hidden_states": given[1][:1]})
    blocks = [f"parts.{i}.blocks.{j}" for i in range(2) for j in range(2)]
    assert [b for s in sites.stacks for b in s.blocks] == blocks
    for name, path in {
        "attn.q": "attn.to_q",
        "cross.k": "other.to_k",
        "cross.o": "other.to_out",
        "ffn.up": "up",
        "ffn.down": "down",
    }.items():
        assert [s.view.module for s in sites.named(name)] == [f"{b}.{path}" for b in blocks]
        assert {s.proof for s in sites.named(name)} == {"proved"}
    acts_and_leaves(model, low("attn.q", "cross.k", "cross.v"), lambda: model(*given),
                    example={"sample": given[0][:1], "encoder_hidden_states": given[1][:1]})  # fmt: skip


class Stage(nn.Module):
    """As ConvNeXt's: it makes a picture smaller, and calls its blocks as one list."""

    def __init__(self, d_in: int, d: int) -> None:
        super().__init__()
        self.smaller = nn.Conv2d(d_in, d, 2, 2)
        self.blocks = nn.Sequential(Mixed(d), Mixed(d))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.blocks(self.smaller(x))


class Mixed(nn.Module):
    def __init__(self, d: int) -> None:
        super().__init__()
        self.near, self.norm = nn.Conv2d(d, d, 3, padding=1, groups=d), nn.LayerNorm(d)
        self.mlp = nn.Sequential(nn.Linear(d, 2 * d), nn.GELU(), nn.Linear(2 * d, d))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.mlp(self.norm(self.near(x).permute(0, 2, 3, 1))).permute(0, 3, 1, 2)


def test_stages_that_are_called_as_lists_have_all_their_blocks() -> None:
    torch.manual_seed(0)
    model = nn.ModuleDict({"stages": nn.Sequential(Stage(3, 4), Stage(4, 8))})["stages"].eval()
    x = torch.randn(2, 3, 16, 16)
    sites = find(model, {"input": x[:1]})
    assert not sites.refused and len(sites.named("mixer.in")) == len(sites.named("mixer.out")) == 4
    acts_and_leaves(model, low("mixer.in", "mixer.out"), lambda: model(x), example={"input": x[:1]})


# ---------------------------------------------------------------- of other libraries


def library(name: str) -> Any:
    return pytest.importorskip(
        name, reason=f"did not run: {name} is not installed, or cannot be imported", exc_type=Exception
    )


def test_attention_of_a_vit_of_timm_has_its_columns() -> None:
    timm = library("timm")
    torch.manual_seed(0)
    model = timm.create_model(
        "vit_tiny_patch16_224", img_size=32, patch_size=8, depth=2, embed_dim=32, num_heads=4, num_classes=3
    ).eval()
    x = torch.randn(2, 3, 32, 32)
    columns = [
        s.view.columns.ranges
        for p in "qkv"
        for s in find(model).named(f"attn.{p}", "")[:1]
        if s.view.columns is not None
    ]
    assert columns == [((0, 32),), ((32, 64),), ((64, 96),)]
    acts_and_leaves(model, low("attn.q", "attn.v"), lambda: model(x))


@pytest.mark.parametrize("name, more, sites", [
    ("convnext_atto", {"depths": (1, 1, 2, 1), "dims": (8, 16, 16, 32), "ls_init_value": 1.0}, ("mixer.in", "mixer.out")), ("resnet18", {}, ()),
])  # fmt: skip
def test_convolutions_of_timm(name: str, more: dict[str, Any], sites: tuple[str, ...]) -> None:
    timm = library("timm")
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=3, **more).eval()
    x = torch.randn(2, 3, 64, 64)
    method = low(*sites) if sites else unipelt.parse("method m { train *.bias }")
    acts_and_leaves(model, method, lambda: model(x))


def test_attention_of_a_unet_of_diffusers() -> None:
    diffusers = library("diffusers")
    torch.manual_seed(0)
    model = diffusers.UNet2DConditionModel(
        sample_size=8, layers_per_block=1, block_out_channels=(16, 32), cross_attention_dim=OUTSIDE, attention_head_dim=4, norm_num_groups=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    ).eval()  # fmt: skip
    given = torch.randn(2, 4, 8, 8), torch.tensor([3, 7]), torch.randn(2, 5, OUTSIDE)
    sites = find(model)
    read = {
        n
        for n, m in model.named_modules()
        if n.endswith((".to_q", ".to_k", ".to_v", ".to_out.0")) and isinstance(m, nn.Linear)
    }
    assert (
        read == {s.view.module for s in sites.sites if s.name.split(".")[-1] in ("q", "k", "v", "o")}
        and len(read) == 32
    )
    acts_and_leaves(model, low("attn.q", "attn.v", "cross.q", "cross.k", "cross.v"), lambda: model(*given).sample)
