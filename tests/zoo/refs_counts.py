"""Numbers of trained parameters to the unit: live peft's, those of the recordings, published ones.

Every comparison with live peft or with a recording compares the numbers too, but for those listed here with the reason.
Published: a number that a paper or its code prints, or its formula, written with the numbers of the model that it speaks of.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import recorded
import refs_classics
import test_peft
import test_recordings
import torch
from reference import REFERENCES, count_of, library, reference
from torch import nn
from transformers import BartConfig, BartModel, BertConfig, BertModel, LlamaConfig, LlamaForCausalLM, T5Config, T5Model

import unipelt

for _file in sorted(Path(__file__).parent.glob("refs_*.py")):
    if _file.stem != "refs_counts":
        importlib.import_module(_file.stem)

# ---------------------------------------------------------------- of what is compared anyway

#: Comparisons in which the other side has parameters that we do not have, or has them twice.
OTHERWISE: dict[tuple[str, str], str] = {}


def _counts(by: str, asked: str) -> list[Any]:
    """References that go through `beside_peft` or `by_recording`, which can be asked for the numbers alone; one for each method."""
    found = {r.method: r for r in reversed(REFERENCES)
             if r.by == by and f"{asked}(" in inspect.getsource(r.measure) and (r.method, by) not in OTHERWISE}  # fmt: skip
    return sorted(found.values(), key=lambda r: r.method)


for _r in [*_counts("peft", "beside_peft"), *_counts("recording", "by_recording")]:
    _whose = "peft's number" if _r.by == "peft" else f"the number of {_r.against.split(',')[0]}"
    reference(_r.method, by="count", against=_whose)(lambda r=_r: count_of(r.measure))


def trained(model: nn.Module, method: unipelt.Method) -> int:
    return unipelt.plan(model, method, head=False, allow_future=True).counts.trained


def _of_recording(name: str) -> Callable[[], float]:
    def measure() -> float:
        if recorded.FOLDER is None:
            pytest.skip("the recordings are not here")
        metadata, tensors = test_recordings.read(name)
        theirs = sum(t.numel() for n, t in tensors.items() if n.startswith("grad."))
        return abs(trained(test_recordings.build(metadata, tensors), test_recordings.CASES[name].method()) - theirs)

    return measure


for _method, _name in refs_classics.RECORDED.items():
    reference(_method, by="count", against=f"the number of {_name}")(_of_recording(_name))


def _of_peft(name: str) -> float:
    ours, theirs, _ = test_peft.pair(name.split("-")[0], test_peft.CASES[name])
    own = sum(t.numel() for t in unipelt.state_dict(ours, "mine").values())
    return abs(own - theirs.get_nb_trainable_parameters()[0])


for _method, _name in refs_classics.LIVE.items():
    reference(_method, by="count", against=f"peft's number ({_name})")(lambda name=_name: _of_peft(name))

# ---------------------------------------------------------------- published


@lru_cache(maxsize=None)
def model(name: str) -> nn.Module:
    """The models that papers speak of, without weights. Where a method is at the input, two layers do."""
    build: dict[str, Callable[[], nn.Module]] = {
        "BERT-base": lambda: BertModel(BertConfig()),
        "BERT-large": lambda: BertModel(BertConfig(hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096)),
        "BART-large": lambda: BartModel(BartConfig()),
        "Llama 7B": lambda: LlamaForCausalLM(LlamaConfig(
            hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32)),
        "Llama 3 8B": lambda: LlamaForCausalLM(LlamaConfig(
            vocab_size=128256, hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32,
            num_key_value_heads=8)),
        "T5-XXL": lambda: T5Model(T5Config(d_model=4096, d_kv=64, d_ff=10240, num_layers=2, num_heads=64)),
    }  # fmt: skip
    with torch.device("meta"):
        return build[name]()


def published(method: str, of: str, number: int, source: str, stored: bool = False, **arguments: Any) -> None:
    """The method has so many trained (or, with ``stored``, folded) parameters on a model; ``source`` says who says so."""

    def measure() -> float:
        found = unipelt.plan(model(of), library(method, **arguments), head=False, allow_future=True).counts
        return abs((found.stored if stored else found.trained) - number)

    reference(method, by="count", against=f"{number:,} on {of}: {source}")(measure)


D, L = 768, 12  # BERT-base
# of each layer of Llama 3 8B the sums of widths d_in + d_out of its maps
Q, K, UP = 4096 + 4096, 4096 + 1024, 4096 + 14336
FIVE = Q + 2 * K + 2 * UP  # q, k, v, up, down
SEVEN = 2 * Q + 2 * K + 3 * UP

published("lora", "BERT-base", 294_912, "0.3 million at rank 8 (Hu et al. 2022)", r=8)
published("lora", "Llama 7B", 4_194_304, "at rank 8, as Alpaca-LoRA prints it", r=8)
published("rslora", "Llama 7B", 4_194_304, "LoRA's number", r=8)
published("lora_plus", "BERT-base", 294_912, "LoRA's number", r=8)
published("lora_fa", "BERT-base", 147_456, "half of LoRA's (Zhang et al. 2023)", r=8)
published("vera", "BERT-base", 43_008, "0.043 million at rank 1024 (Kopiczko et al. 2024)", r=1024)
published("vera", "BERT-large", 61_440, "0.061 million at rank 256 (Kopiczko et al. 2024)", r=256)
published("lotr", "BERT-base", 595_298 - 592_130, "at rank 2, in the authors' code", r=2)
published("nola", "BERT-base", L * 2 * 2 * 1024, "k + l numbers for each map (Koohpayegani et al. 2024)", n=1024)
published("tied_lora", "BERT-base", 4 * D * 8 + L * (8 + 3 * D), "4 d r + L (r + 3 d), their table", r=8)
published("share_lora", "BERT-base", 159_744, "0.16 million for ShareA at rank 8 (Song et al. 2024)", r=8)
published("share_lora", "BERT-base", 2 * 2 * D * 8, "ShareAB: one pair for queries, one for values", r=8, b="kind")
published(
    "ra_sa", "Llama 3 8B", 32 * 8 * SEVEN + 32 * 7 * (7 + 32), "LoRA's number and a diagonal (He et al. 2025)", r=8, k=1
)
published("dense_lora", "Llama 3 8B", 16 * FIVE + 32 * 5 * 16**2, "0.01 % at rank 16, the sizes of their code", r=16)
published("mos_lora", "Llama 3 8B", 32 * (16 * FIVE + 5 * 16**2), "28.4 million at rank 16 (Wu et al. 2024)", r=16,
          at="[attn.q, attn.k, attn.v, ffn.up, ffn.down]")  # fmt: skip
published("sine_lora", "Llama 3 8B", 7_077_888, "7.1 million at rank 4 (Ji et al. 2025)", r=4)
published("sine_lora", "Llama 3 8B", 14_155_776, "14.2 million at rank 8 (Ji et al. 2025)", r=8)
published("flora_core", "Llama 3 8B", 32 * (8 * SEVEN + 7 * 64), "r (d_in + d_out) + r² for each map (Si et al. 2024)")
published("multi_lora", "Llama 7B", 3 * 32 * (8 * (8 * 4096 + 3 * (4096 + 11008)) + 5 * 4096 + 2 * 11008),
          "n (r (d_in + d_out) + d_out) for each map (Wang et al. 2023)")  # fmt: skip
published(
    "hydra",
    "BERT-base",
    L * 2 * ((D + D) + 2 * D + (4 * D + D) + 2 * D),
    "r (d_in + 3 d_out) for each map (Kim et al. 2023)",
    r=2,
)
published("pfeiffer", "BERT-base", 894_528, "at width 48 (Mao et al. 2022)")
published(
    "adapter",
    "BERT-base",
    24 * (2 * D * 64 + D + 64) + 25 * 2 * D,
    "2 m d + d + m twice a layer, and the norms (Houlsby et al. 2019)",
    r=64,
)
published(
    "parallel_adapter", "BERT-base", 24 * (2 * D * 64 + D + 64), "2 r d a sublayer, and biases (He et al. 2022)", r=64
)
published("multi_head_parallel_adapter", "BERT-base", L * 2 * D * 30, "2 r d a layer (He et al. 2022)", r=30)
published(
    "scaled_parallel_adapter",
    "BART-large",
    24 * (2 * 1024 * 512 + 512 + 1024),
    "2 r d a layer, and biases (He et al. 2022)",
    r=512,
)
published(
    "adapter_drop", "BERT-base", 7 * (2 * D * 48 + D + 48), "without the lowest five layers (Rücklé et al. 2021)", k=5
)
published(
    "adapter_plus",
    "BERT-base",
    L * (2 * D * 8 + D + 8 + D),
    "bottleneck and a scale of each channel (Steitz and Roth 2024)",
    r=8,
)
published("prefix_tuning", "BERT-base", 184_320, "10 rows (Mao et al. 2022)", l=10)
published("prefix_tuning_mlp", "BERT-base", 9_857_024, "10 rows, while it trains (Mao et al. 2022)", l=10, mid=512)
published("p_tuning_v2", "BERT-base", 2 * L * D * 20, "2 L d l (Liu et al. 2022)", l=20)
published("unipelt_prefix", "BERT-base", 184_320, "10 rows, folded (Mao et al. 2022)", stored=True)
published("unipelt_ap", "BERT-base", 1_097_304, "folded (Mao et al. 2022)", stored=True)
published("unipelt_apl", "BERT-base", 1_410_672, "folded (Mao et al. 2022)", stored=True)
published("llama_adapter", "Llama 7B", 1_229_760, "1.2 million (Zhang et al. 2023)")
published(
    "prompt_tuning",
    "T5-XXL",
    20_480,
    "five rows (Lester et al. 2021)",
    l=5,
    start="normal(0.02)",
    at="encoder.embed.words",
)
published("prompt_ensemble", "BERT-base", 5 * 20 * D, "n prompts of l rows (Lester et al. 2021)")
published("ia3", "BERT-base", L * (2 * D + 4 * D), "L (d_k + d_v + d_ff) (Liu et al. 2022)")
published("full", "BERT-base", 109_482_240, "all of bert-base-uncased")
published("partial", "BERT-base", 2 * 7_087_872, "two layers of 7,087,872", k=2)
published(
    "lorta", "BERT-base", 8 * (D + 64 + 12 + L + 4), "r (d + d_head + heads + layers + 4) (Hounie et al. 2024)", r=8
)
published("fact_tt", "BERT-base", 2 * D * 16 + 4 * L * 16**2, "2 d r + r² for each map (Jie and Deng 2023)", r=16)
published(
    "lori",
    "Llama 3 8B",
    32 * 32 * (2 * 4096 + 2 * 1024 + 2 * 14336 + 4096),
    "44 million at rank 32 before the mask (Zhang et al. 2025)",
    r=32,
)
published("lo_ran", "BERT-base", 294_912, "LoRA's number", r=8)
published(
    "bitfit",
    "BERT-base",
    2 * D + L * (7 * D + 3072),
    "0.09 % of BERT-base, the pooler's among them (Ben Zaken et al. 2022)",
)
published("uni_lora", "BERT-base", 23_040, "one vector of 23,040 (Li et al. 2025)")
published(
    "randlora",
    "BERT-base",
    L * 2 * (64 * 12 + 12 * D),
    "for each map r and the narrower width times the bases, of which there are d / r (Albert et al. 2025)",
    r=64,
)
published("hyperadapt", "Llama 3 8B", 32 * SEVEN, "n + m for each map (Gurung and Campbell 2025)")
published(
    "disel", "BERT-base", L * 2 * (8 * (D + D) + 8 * D + 8), "LoRA's number, and W_g and b_g (Zindari et al. 2026)", r=8
)
published("gora", "Llama 3 8B", 32 * 8 * SEVEN, "LoRA's number at equal ranks (He et al. 2025)", r=8)
published(
    "blob",
    "BERT-base",
    294_912 + L * 2 * 8 * D,
    "LoRA's number, and a deviation for each of A's (Wang et al. 2024)",
    r=8,
)
published("rosa", "BERT-base", 294_912 + L * 2 * (D * D // 100), "LoRA's number and the entries (Nikdan et al. 2024)", r=8, one_in=100,
          at="[attn.q, attn.v]")  # fmt: skip
