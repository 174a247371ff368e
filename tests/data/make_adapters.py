"""Writes what an older reader left behind: tiny seeded bases, adapters with random values, and what they computed.

``python tests/data/make_adapters.py FOLDER [ADAPTER …]`` writes the format of the code it runs with. ``format-1`` was written once,
at commit 6f93d52 (torch 2.13.0, transformers 5.23.0), and is never written again: `tests/runtime/test_formats.py` opens it. So
were ``format-1.1``, the last with frozen draws in its file of tensors, and ``format-1.2``, the first without, which have the
adapters that draw (`DRAWING`).
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn
from transformers import BertConfig, BertForSequenceClassification, GPT2Config, GPT2LMHeadModel

import unipelt

BASES: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "bert": (BertForSequenceClassification, BertConfig, dict(
        vocab_size=24, hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=12,
        max_position_embeddings=16, num_labels=3, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)),
    "gpt2": (GPT2LMHeadModel, GPT2Config, dict(
        vocab_size=24, n_embd=8, n_layer=2, n_head=2, n_inner=12, n_positions=16, bos_token_id=1, eos_token_id=1,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)),
}  # fmt: skip
#: Folder → method, base, arguments. `unipelt_apl` is folded; GPT-2's projections are fused.
ADAPTERS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "lora": ("lora", "bert", dict(r=2)),
    "unipelt_apl": ("unipelt_apl", "bert", dict(ra=2, l=2, rl=2, mid=16)),
    "prompt_tuning": ("prompt_tuning", "bert", dict(l=3)),
    "bitfit": ("bitfit", "bert", {}),
    "mean_head": ("mean_head", "bert", {}),
    "lora_fused": ("lora", "gpt2", dict(r=2)),
}
DRAWING: dict[str, tuple[str, str, dict[str, Any]]] = {
    "vera": ("vera", "bert", dict(r=3)),
    "lori": ("lori", "bert", dict(r=2, at="[attn.q, ffn.up]")),
    "pissa": ("pissa", "bert", dict(r=2)),
    "fourierft": ("fourierft", "gpt2", dict(n=6)),
}
BATCH = {
    "input_ids": torch.tensor([[2, 7, 11, 5, 3], [2, 19, 3, 0, 0]]),
    "attention_mask": torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]),
}


def noise(key: str, shape: torch.Size) -> torch.Tensor:
    seed = int.from_bytes(hashlib.sha256(key.encode()).digest()[:6], "little")
    return 0.3 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def base(kind: str) -> nn.Module:
    cls, config, sizes = BASES[kind]
    model = cls(config(**sizes)).eval()
    with torch.no_grad():
        for n, p in model.named_parameters():
            scale = n.endswith("weight") and ("norm" in n.lower() or ".ln_" in n)
            p.copy_(noise(f"{kind}:{n}", p.shape) + (1.0 if scale else 0.0))
    return model


def write(out: Path, chosen: Collection[str]) -> None:
    for kind, (_, _, sizes) in BASES.items():
        save_file({n: p.detach().clone() for n, p in base(kind).named_parameters()}, out / f"{kind}.safetensors")
        (out / f"{kind}.json").write_text(json.dumps(sizes) + "\n")
    found: dict[str, Any] = {}
    for folder, (method, kind, arguments) in {**ADAPTERS, **DRAWING}.items():
        if folder not in chosen:
            continue
        model = base(kind)
        plan = unipelt.apply(model, unipelt.load(method)(**arguments), name="saved", seed=3)
        with torch.no_grad():
            frozen = {n for n, t in plan.tensors.items() if t.frozen}
            for n, t in unipelt.state_dict(model, "saved").items():
                if n in frozen:
                    continue
                t.add_(noise(f"{folder}:{n}", t.shape))
            logits = model(**BATCH).logits
        unipelt.save(model, out / folder, "saved")
        counts = {k: getattr(plan.counts, k) for k in plan.counts.__slots__}
        found[folder] = {"base": kind, "logits": logits.tolist(), "counts": counts}
    batch = {k: v.tolist() for k, v in BATCH.items()}
    (out / "outputs.json").write_text(json.dumps({"batch": batch, "adapters": found}, indent=1) + "\n")


if __name__ == "__main__":
    write(Path(sys.argv[1]), sys.argv[2:] or ADAPTERS)
