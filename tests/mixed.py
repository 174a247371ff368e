"""A small model whose blocks differ, with an anatomy of its own: a picture's tower, a projector, and a language tower of which layers 0
and 2 mix tokens without attention, layer 1 has latent attention, and layers 1 and 2 have experts."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as T
from torch import nn

from unipelt.anatomy.find import OWN

WIDTH, PICTURE, HEADS, QK, V, Q_RANK, KV_RANK, ROTARY, INNER, MIX, EXPERTS, VOCAB, LAYERS = (
    16,
    10,
    2,
    6,
    5,
    7,
    9,
    2,
    24,
    12,
    3,
    40,
    3,
)
#: Of the language tower, as its sites have them. What the projector reads is another width than a token's.
SIZES = dict(d_model=WIDTH, d_q_rank=Q_RANK, d_q=HEADS * QK, d_kv_a=KV_RANK + ROTARY, d_kv_rank=KV_RANK, d_kv_b=HEADS * (QK - ROTARY + V),
             d_experts=EXPERTS, d_mix=2 * MIX, d_inner=MIX, d_ff=INNER, d_x=PICTURE, vocab=VOCAB, heads=HEADS, groups=HEADS, d_head=QK)  # fmt: skip
ANATOMY = """
anatomy mixed for mixed {
  vision.stack:  "vision"
  vision.block:  "vision.layers.*"
  projector:     "projector"
  text.stack:    "text"
  text.block:    "text.layers.*"
  text.embed:    "before text.layers.0"
  text.embed.words: "text.embed"
  text.final:    "text.norm"
  attn:          "attn?"
  attn.x:        "attn?"
  attn.residual: "before_attn"
  attn.norm:     "before_attn"
  attn.heads:    "attn?"
  vision.attn.q: "attn.q"
  vision.attn.k: "attn.k"
  vision.attn.v: "attn.v"
  attn.o:        "attn.o?"
  text.attn.q_a:  "attn.q_a?"
  text.attn.q_b:  "attn.q_b?"
  text.attn.kv_a: "attn.kv_a?"
  text.attn.kv_b: "attn.kv_b?"
  text.mixer:          "mixer?"
  text.mixer.x:        "mixer?"
  text.mixer.residual: "before_attn"
  text.mixer.norm:     "before_attn"
  text.mixer.in:       "mixer.in_proj?"
  text.mixer.out:      "mixer.out_proj?"
  ffn:           "ffn"
  ffn.x:         "ffn"
  ffn.residual:  "before_ffn"
  ffn.norm:      "before_ffn"
  ffn.up:        "ffn.up?"
  ffn.down:      "ffn.down?"
  text.ffn.router: "ffn.router?"
}
"""


_linear = partial(nn.Linear, bias=False)


def _attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, causal: bool) -> torch.Tensor:
    """q, k, v: [batch, tokens, all heads] → the same, by tokens."""
    q, k, v = (t.unflatten(-1, (HEADS, -1)).transpose(1, 2) for t in (q, k, v))
    return nn.functional.scaled_dot_product_attention(q, k, v, is_causal=causal).transpose(1, 2).flatten(-2)


class Attention(nn.Module):
    is_causal = False

    def __init__(self, d: int):
        super().__init__()
        self.head_dim = d // HEADS
        self.q, self.k, self.v, self.o = (_linear(d, d) for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.o(_attend(self.q(x), self.k(x), self.v(x), False))


class Latent(nn.Module):
    """Latent attention: the part of a key that turns with its position is shared by the heads; values have another size than keys."""

    is_causal, head_dim = True, QK

    def __init__(self, d: int):
        super().__init__()
        self.q_a, self.q_b = _linear(d, Q_RANK), _linear(Q_RANK, HEADS * QK)
        self.kv_a, self.kv_b = _linear(d, KV_RANK + ROTARY), _linear(KV_RANK, HEADS * (QK - ROTARY + V))
        self.o = _linear(HEADS * V, d)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q = self.q_b(torch.tanh(self.q_a(x)))
        low, turned = self.kv_a(x).split([KV_RANK, ROTARY], -1)
        k, v = self.kv_b(torch.tanh(low)).unflatten(-1, (HEADS, -1)).split([QK - ROTARY, V], -1)
        k = torch.cat([k, turned.unsqueeze(-2).expand(*k.shape[:-1], ROTARY)], -1)
        return self.o(_attend(q, k.flatten(-2), v.flatten(-2), True))


class Mixer(nn.Module):
    """Each token takes the mean of those up to it, gated."""

    def __init__(self, d: int):
        super().__init__()
        self.in_proj, self.out_proj = _linear(d, 2 * MIX), _linear(MIX, d)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        value, gate = self.in_proj(x).chunk(2, -1)
        seen = torch.arange(1, x.shape[1] + 1, dtype=x.dtype, device=x.device)[:, None]
        return self.out_proj(value.cumsum(1) / seen * torch.sigmoid(gate))


class FeedForward(nn.Module):
    def __init__(self, d: int, inner: int = INNER):
        super().__init__()
        self.up, self.down = _linear(d, inner), _linear(inner, d)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(torch.relu(self.up(x)))


class Experts(nn.Module):
    def __init__(self, d: int):
        super().__init__()
        self.router = _linear(d, EXPERTS)
        self.experts = nn.ModuleList(FeedForward(d, 8) for _ in range(EXPERTS))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weights = self.router(x).softmax(-1)
        return torch.stack([e(x) for e in self.experts], -1).mul(weights.unsqueeze(-2)).sum(-1)


class Block(nn.Module):
    def __init__(self, d: int, **parts: nn.Module):
        super().__init__()
        self.before_attn, self.before_ffn = nn.LayerNorm(d), nn.LayerNorm(d)
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first = self.attn if hasattr(self, "attn") else self.mixer
        x = x + first(self.before_attn(x))
        return x + self.ffn(self.before_ffn(x))


class Vision(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Block(PICTURE, attn=Attention(PICTURE), ffn=FeedForward(PICTURE)) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


class Text(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        d = WIDTH
        self.embed, self.norm = nn.Embedding(VOCAB, d), nn.LayerNorm(d)
        self.layers = nn.ModuleList([Block(d, mixer=Mixer(d), ffn=FeedForward(d)), Block(d, attn=Latent(d), ffn=Experts(d)),
                                     Block(d, mixer=Mixer(d), ffn=Experts(d))])  # fmt: skip

    def forward(self, input_ids: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
        x = self.embed(input_ids)
        x = torch.cat([x[:, :1] + seen.mean(1, keepdim=True), x[:, 1:]], 1)
        for layer in self.layers:
            x = layer(x)
        return self.norm(x)


class MixedConfig(T.PreTrainedConfig):
    model_type = "mixed"


class Mixed(T.PreTrainedModel):
    config_class, base_model_prefix = MixedConfig, "model"

    def __init__(self, config: Any):
        super().__init__(config)
        self.vision, self.projector, self.text = Vision(), nn.Linear(PICTURE, WIDTH), Text()
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.text.embed

    def forward(
        self, input_ids: torch.Tensor, attention_mask: Any = None, pixels: torch.Tensor | None = None
    ) -> tuple[torch.Tensor]:
        if pixels is None:
            pixels = self.projector.weight.new_ones(len(input_ids), 2, PICTURE)
        return (self.text(input_ids, self.projector(self.vision(pixels))),)


def build(dtype: torch.dtype = torch.float64) -> nn.Module:
    torch.manual_seed(0)
    model = Mixed(MixedConfig())
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape) * (0.3 if p.dim() > 1 else 0.1) + (1.0 if p.dim() == 1 else 0.0))
    return model.to(dtype).eval()


def batch(dtype: torch.dtype = torch.float64) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    return {
        "input_ids": torch.randint(0, VOCAB, (2, 5), generator=g),
        "pixels": torch.randn(2, 3, PICTURE, generator=g, dtype=dtype),
    }


def teach(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes the model's anatomy known."""
    (folder / "mixed.pelt").write_text(ANATOMY)
    monkeypatch.setenv(OWN, str(folder / "mixed.pelt"))
