"""References for `specs/vision.pelt`: the blocks of a model called one after the other, with rows put among the patches by hand."""

from __future__ import annotations

from collections.abc import Callable

import small
import torch
from reference import apart, library, reference
from transformers import ViTConfig, ViTForImageClassification

import unipelt

L = 3


def _model() -> ViTForImageClassification:
    torch.manual_seed(0)
    config = ViTConfig(hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=48, image_size=12, patch_size=4,
                       num_labels=5)  # fmt: skip
    return ViTForImageClassification(config).double().eval()


def _by_hand(
    name: str, first: int, rows: str, each: Callable[[int, torch.Tensor, torch.Tensor, dict], torch.Tensor]
) -> float:
    """``rows`` names what enters behind the first tokens; ``each`` gives a block's input, or what goes on behind it, of the rows."""
    pictures = torch.randn(2, 3, 12, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    model = _model()
    unipelt.apply(model, library(name, l=L), head=False)
    model.eval()
    own = small.randomise(model)
    own = {**unipelt.state_dict(model), **own}
    with torch.no_grad():
        after = model(pixel_values=pictures, output_hidden_states=True)
        base = _model().vit
        h = base.embeddings(pictures)
        h = torch.cat([h[:, :first], next(t for n, t in own.items() if rows in n).expand(2, -1, -1), h[:, first:]], 1)
        for i, block in enumerate(base.encoder.layer if hasattr(base, "encoder") else base.layers):
            h = torch.cat([h[:, :first], each(i, h[:, first : first + L], h[:, :0], own), h[:, first + L :]], 1)
            entered = h[:, first : first + L]
            h = block(h)
            h = h[0] if isinstance(h, tuple) else h
            left = each(i, h[:, first : first + L], entered, own) if name == "gate_vpt" else h[:, first : first + L]
            h = torch.cat([h[:, :first], left, h[:, first + L :]], 1)
        h = base.layernorm(h)
        logits = _model().classifier(h[:, 0])
        assert after.hidden_states[0].shape[1] == 10
    return apart(after.logits, logits)


def _of(own: dict[str, torch.Tensor], layer: int, row: str) -> torch.Tensor:
    return next(t for n, t in own.items() if f".{layer}." in n and f".{row}." in n)


@reference("vpt_shallow", by="formula", against="the blocks on [class; P; patches], ViT")
def _shallow() -> float:
    return _by_hand("vpt_shallow", 1, ".P", lambda i, rows, entered, own: rows)


@reference("vpt_deep", by="formula", against="the blocks one by one, the rows cut out and put in anew before each, ViT")
def _deep() -> float:
    def each(i: int, rows: torch.Tensor, entered: torch.Tensor, own: dict) -> torch.Tensor:
        return rows if i == 0 else _of(own, i, "deep").expand(2, -1, -1)

    return _by_hand("vpt_deep", 1, "first.P", each)


@reference(
    "e2_vpt",
    by="formula",
    against="the blocks written out, rows put in before each, keys and values behind each head's own, ViT",
)
def _e2_vpt() -> float:
    pictures = torch.randn(2, 3, 12, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    model = _model()
    unipelt.apply(model, library("e2_vpt", l=L, m=2), head=False)
    model.eval()
    own = small.randomise(model)
    with torch.no_grad():
        after = model(pixel_values=pictures).logits
        whole = _model()
        h = whole.vit.embeddings(pictures)
        h = torch.cat(
            [h[:, :1], next(t for n, t in own.items() if "prompt_first.P" in n).expand(2, -1, -1), h[:, 1:]], 1
        )
        for i, block in enumerate(whole.vit.layers):
            if i:
                h = torch.cat([h[:, :1], _of(own, i, "prompt_deep").expand(2, -1, -1), h[:, 1 + L :]], 1)
            y, at = block.layernorm_before(h), block.attention
            q, k, v = (p(y).view(2, -1, 4, 8).transpose(1, 2) for p in (at.q_proj, at.k_proj, at.v_proj))
            P_k, P_v = (next(t for n, t in own.items() if f".{i}." in n and n.endswith(f"pairs.P_{e}")) for e in "kv")
            k, v = torch.cat([k, P_k.expand(2, -1, -1, -1)], 2), torch.cat([v, P_v.expand(2, -1, -1, -1)], 2)
            a = torch.softmax(q @ k.mT / 8**0.5, -1) @ v
            h = h + at.o_proj(a.transpose(1, 2).flatten(2))
            h = h + block.mlp(block.layernorm_after(h))
        return apart(after, whole.classifier(whole.vit.layernorm(h)[:, 0]))


@reference("gate_vpt", by="formula", against="g · block(rows) + (1 - g) · rows behind each block but the last, ViT")
def _gated() -> float:
    def each(i: int, rows: torch.Tensor, entered: torch.Tensor, own: dict) -> torch.Tensor:
        if entered.shape[1] == 0 or i == 2:
            return rows
        g = 1 / (1 + torch.exp(-_of(own, i, "gate")))
        return g * rows + (1 - g) * entered

    return _by_hand("gate_vpt", 1, "prompt.P", each)


@reference(
    "prefix_propagation", by="formula", against="zeros in front, the prefix added to them before each block, ViT"
)
def _propagated() -> float:
    def each(i: int, rows: torch.Tensor, entered: torch.Tensor, own: dict) -> torch.Tensor:
        return rows + _of(own, i, "prefix")

    return _by_hand("prefix_propagation", 0, "rows.Z", each)


@reference("vpt_deep", by="count", against="12 · 50 · 768 = 460,800 on ViT-B/16")
def _count() -> float:
    from transformers import ViTModel

    with torch.device("meta"):
        model = ViTModel(ViTConfig())
    return abs(unipelt.plan(model, library("vpt_deep")).counts.trained - 460_800)
