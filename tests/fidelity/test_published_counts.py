"""Parameter counts to the unit: published numbers, and for every method of the library a formula in the sizes.

The formulas are written here by hand. A plan, the printed formula, the tensors of an applied model and the file that is
saved must all agree with them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Callable

import pytest
import torch
from fidelity_kit import library
from names import CLASSICS
from safetensors import safe_open
from torch import nn
from transformers import (
    BertConfig, BertForSequenceClassification, BertModel, GPT2Config, GPT2ForSequenceClassification, LlamaConfig,
    LlamaForSequenceClassification, LlamaModel,
)  # fmt: skip

import unipelt
from unipelt.language.analyse.counts import counts as printed


@dataclass(frozen=True)
class Sizes:
    """The sizes of an architecture, and what its own parameters come to."""

    kind: str
    d: int
    L: int
    heads: int
    groups: int
    d_head: int
    ff: int
    vocab: int
    positions: int
    labels: int

    @property
    def q(self) -> int:
        return self.heads * self.d_head

    @property
    def kv(self) -> int:
        return self.groups * self.d_head

    @property
    def norm(self) -> int:
        return self.d if self.kind == "llama" else 2 * self.d  # an RMS norm has no bias

    @property
    def norms(self) -> int:
        return (2 * self.L + 1) * self.norm  # BERT's odd one stands at the embeddings, the others' at the end

    @property
    def biases(self) -> int:
        linear = self.q + 2 * self.kv + self.d + self.ff + self.d
        return 0 if self.kind == "llama" else self.L * (linear + 2 * self.d) + self.d

    @property
    def block(self) -> int:
        attention = self.d * self.q + 2 * self.d * self.kv + self.q * self.d
        maps = attention + (3 if self.kind == "llama" else 2) * self.d * self.ff
        linear_biases = 0 if self.kind == "llama" else self.q + 2 * self.kv + self.d + self.ff + self.d
        return maps + linear_biases + 2 * self.norm

    @property
    def total(self) -> int:
        """The base without its head (of which BERT's pooler is a part)."""
        rows = self.vocab + {"bert": self.positions + 2, "gpt2": self.positions, "llama": 0}[self.kind]
        return rows * self.d + self.norm + self.L * self.block

    @property
    def head(self) -> int:
        pooler = self.d * self.d + self.d + self.labels if self.kind == "bert" else 0  # with the classifier's bias
        return pooler + self.labels * self.d


def bottleneck(s: Sizes, r: int) -> int:
    return 2 * s.d * r + r + s.d


def low_rank(s: Sizes, r: int) -> int:
    return s.L * (r * (s.d + s.q) + r * (s.d + s.kv))


def prefix(s: Sizes, l: int) -> int:
    return s.L * 2 * l * s.kv


def mlp(s: Sizes, l: int, mid: int) -> int:
    return l * s.d + s.d * mid + mid + s.L * 2 * (mid * s.kv + s.kv)


def gate(s: Sizes) -> int:
    return s.d + 1


def lstm(d_in: int, h: int) -> int:
    """A bidirectional layer as torch has it: in each direction W_ih, W_hh and two biases for four gates."""
    return 2 * 4 * (h * d_in + h * h + 2 * h)


def linear(d_in: int, d_out: int) -> int:
    return d_in * d_out + d_out


@dataclass(frozen=True)
class Formula:
    """What a method trains and stores on top of the head; ``own_head`` replaces the model's."""

    trained: Callable[[Sizes], int]
    stored: Callable[[Sizes], int] | None = None  # where it is less
    own_head: Callable[[Sizes], int] | None = None
    copies: bool = False  # it trains parameters of the base, which its printed formula names in words


def head_only(own_head: Callable[[Sizes], int] | None = None) -> Formula:
    return Formula(lambda s: 0, own_head=own_head, copies=own_head is None)


def linear_head(s: Sizes) -> int:
    return s.d * s.labels + s.labels


#: Every method of the library, at its default arguments.
FORMULAS: dict[str, Formula] = {
    "adapter": Formula(lambda s: 2 * s.L * bottleneck(s, 64) + s.norms, copies=True),
    "pfeiffer": Formula(lambda s: s.L * bottleneck(s, 48)),
    "parallel_adapter": Formula(lambda s: 2 * s.L * bottleneck(s, 64)),
    "multi_head_parallel_adapter": Formula(lambda s: s.L * 2 * 64 * s.q),
    "scaled_parallel_adapter": Formula(lambda s: s.L * bottleneck(s, 512)),
    "scaled_parallel_adapter_learned": Formula(lambda s: s.L * (bottleneck(s, 512) + 1)),
    "adapter_drop": Formula(lambda s: (s.L - 5 * s.L // 12) * bottleneck(s, 48)),
    "adapter_drop_robust": Formula(lambda s: s.L * bottleneck(s, 48)),
    "adapter_plus": Formula(lambda s: s.L * (bottleneck(s, 8) + s.d)),
    "lora": Formula(lambda s: low_rank(s, 8)),
    "rslora": Formula(lambda s: low_rank(s, 8)),
    "lora_plus": Formula(lambda s: low_rank(s, 8)),
    "prefix_tuning": Formula(lambda s: prefix(s, 30)),
    "prefix_tuning_mlp": Formula(lambda s: mlp(s, 10, 512), lambda s: prefix(s, 10)),
    "llama_adapter": Formula(lambda s: min(s.L, 30) * (10 * s.d + s.heads)),
    "p_tuning_v2": Formula(lambda s: prefix(s, 20)),
    "prompt_tuning": Formula(lambda s: 20 * s.d),
    "prompt_tuning_after_cls": Formula(lambda s: 20 * s.d),
    "prompt_ensemble": Formula(lambda s: 5 * 20 * s.d),
    "p_tuning": Formula(lambda s: 9 * s.d + 2 * lstm(s.d, s.d // 2) + 2 * linear(s.d, s.d), lambda s: 9 * s.d),
    "p_tuning_prepended": Formula(lambda s: 20 * s.d + 2 * lstm(s.d, s.d // 2) + 2 * linear(s.d, s.d), lambda s: 20 * s.d),
    "p_tuning_mlp": Formula(lambda s: 9 * s.d + 3 * linear(s.d, s.d), lambda s: 9 * s.d),
    "p_tuning_mlp_prepended": Formula(lambda s: 20 * s.d + 3 * linear(s.d, s.d), lambda s: 20 * s.d),
    "ia3": Formula(lambda s: s.L * (2 * s.kv + s.ff)),
    "bitfit": Formula(lambda s: s.biases, copies=True),
    "ln_tuning": Formula(lambda s: s.norms, copies=True),
    "full": Formula(lambda s: s.total, copies=True),
    "partial": Formula(lambda s: 2 * s.block, copies=True),
    "probing": head_only(),
    "mean_head": head_only(linear_head),
    "first_head": head_only(linear_head),
    "probing_mean": head_only(linear_head),
    "probing_cls": head_only(linear_head),
    "mam": Formula(lambda s: mlp(s, 30, 800) + s.L * bottleneck(s, 512),
                   lambda s: prefix(s, 30) + s.L * bottleneck(s, 512)),
    "unipelt_prefix": Formula(lambda s: mlp(s, 10, 512), lambda s: prefix(s, 10)),
    "unipelt_gated_prefix": Formula(lambda s: mlp(s, 10, 512) + s.L * gate(s), lambda s: prefix(s, 10) + s.L * gate(s)),
    "unipelt_ap": Formula(lambda s: s.L * (bottleneck(s, 48) + 2 * gate(s)) + mlp(s, 10, 512),
                          lambda s: s.L * (bottleneck(s, 48) + 2 * gate(s)) + prefix(s, 10)),
    "unipelt_apl": Formula(lambda s: s.L * (bottleneck(s, 48) + 4 * gate(s)) + mlp(s, 10, 512) + low_rank(s, 8),
                           lambda s: s.L * (bottleneck(s, 48) + 4 * gate(s)) + prefix(s, 10) + low_rank(s, 8)),
    "unipelt_ap_ungated": Formula(lambda s: s.L * bottleneck(s, 48) + mlp(s, 10, 512),
                                  lambda s: s.L * bottleneck(s, 48) + prefix(s, 10)),
    "unipelt_apl_ungated": Formula(lambda s: s.L * bottleneck(s, 48) + mlp(s, 10, 512) + low_rank(s, 8),
                                   lambda s: s.L * bottleneck(s, 48) + prefix(s, 10) + low_rank(s, 8)),
    "unipelt_apl_causal": Formula(lambda s: s.L * (bottleneck(s, 48) + 4 * gate(s)) + mlp(s, 10, 512) + low_rank(s, 8),
                                  lambda s: s.L * (bottleneck(s, 48) + 4 * gate(s)) + prefix(s, 10) + low_rank(s, 8)),
}  # fmt: skip

BERT_BASE = Sizes("bert", 768, 12, 12, 12, 64, 3072, 30522, 512, 2)
TINY = {
    "bert": Sizes("bert", 32, 3, 4, 4, 8, 72, 96, 64, 3),
    "gpt2": Sizes("gpt2", 32, 3, 4, 4, 8, 72, 96, 64, 3),
    "llama": Sizes("llama", 32, 3, 4, 2, 8, 72, 96, 64, 3),
}


def classifier(s: Sizes) -> nn.Module:
    """A sequence classifier of these sizes."""
    if s.kind == "bert":
        return BertForSequenceClassification(BertConfig(
            vocab_size=s.vocab, hidden_size=s.d, num_hidden_layers=s.L, num_attention_heads=s.heads,
            intermediate_size=s.ff, max_position_embeddings=s.positions, num_labels=s.labels))  # fmt: skip
    if s.kind == "gpt2":
        return GPT2ForSequenceClassification(GPT2Config(
            vocab_size=s.vocab, n_embd=s.d, n_layer=s.L, n_head=s.heads, n_inner=s.ff, n_positions=s.positions,
            num_labels=s.labels, bos_token_id=1, eos_token_id=2, pad_token_id=0))  # fmt: skip
    return LlamaForSequenceClassification(LlamaConfig(
        vocab_size=s.vocab, hidden_size=s.d, num_hidden_layers=s.L, num_attention_heads=s.heads,
        num_key_value_heads=s.groups, intermediate_size=s.ff, max_position_embeddings=s.positions, num_labels=s.labels,
        pad_token_id=0))  # fmt: skip


@pytest.fixture(scope="module")
def bert_base() -> nn.Module:
    with torch.device("meta"):
        return BertModel(BertConfig())


@pytest.fixture(scope="module")
def bert_base_classifier() -> nn.Module:
    with torch.device("meta"):
        return classifier(BERT_BASE)


def test_every_classic_has_a_formula():
    """The numbers of the others are compared in `tests/zoo`."""
    assert set(FORMULAS) == set(CLASSICS)


@pytest.mark.parametrize(
    ("name", "arguments", "trained", "stored"),
    [
        ("pfeiffer", {}, 894_528, 894_528),
        ("prefix_tuning_mlp", {"l": 10, "mid": 512}, 9_857_024, 184_320),
        ("lora", {"r": 8}, 294_912, 294_912),
        ("unipelt_ap", {}, 10_770_008, 1_097_304),  # 9,857,024 + 894,528 + 12 · 2 · 769, folded to the published number
        ("unipelt_apl", {}, 11_083_376, 1_410_672),  # 294,912 + 12 · 2 · 769 more
    ],
)
def test_published_counts_on_bert_base(bert_base, name, arguments, trained, stored):
    found = unipelt.plan(bert_base, library(name, **arguments)).counts
    assert (found.trained, found.stored, found.frozen, found.head) == (trained, stored, 0, 0)


def test_published_count_of_llama_adapter_on_llama_7b():
    config = LlamaConfig(
        vocab_size=32000, hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32
    )
    with torch.device("meta"):
        model = LlamaModel(config)
    found = unipelt.plan(model, library("llama_adapter", l=10, top=30)).counts
    assert (found.trained, found.stored, found.frozen, found.head) == (1_229_760, 1_229_760, 0, 0)
    assert found.base == 6_738_415_616 - 32000 * 4096  # the published size of the whole, without its output embeddings


@pytest.mark.parametrize("name", FORMULAS)
def test_formula_on_bert_base(bert_base_classifier, name):
    check_plan(unipelt.plan(bert_base_classifier, library(name)), FORMULAS[name], BERT_BASE)


@pytest.mark.parametrize("kind", TINY)
@pytest.mark.parametrize("name", FORMULAS)
def test_formula_is_the_number_of_tensor_entries(kind, name, tmp_path):
    formula, sizes, method = FORMULAS[name], TINY[kind], library(name)
    model = classifier(sizes)
    before = sum(p.numel() for p in model.parameters())
    assert before == sizes.total + sizes.head
    if (name, kind) == ("bitfit", "llama"):  # there is no bias to train, and that is said
        assert formula.trained(sizes) == 0
        with pytest.raises(unipelt.PeltError, match="names no parameter"):
            unipelt.plan(model, method)
        return
    plan = unipelt.apply(model, method, name="counted", allow_future=True)
    check_plan(plan, formula, sizes)
    head = formula.own_head(sizes) if formula.own_head else sizes.head
    tensors = unipelt.state_dict(model, "counted")
    assert sum(t.numel() for t in tensors.values()) == formula.trained(sizes) + head
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == formula.trained(sizes) + head
    stored = formula.stored(sizes) if formula.stored else formula.trained(sizes)
    for fold, expected in ((True, stored), (False, formula.trained(sizes))):
        folder = unipelt.save(model, tmp_path / str(fold), "counted", fold=fold)
        with safe_open(folder / "adapter.safetensors", "pt") as f:
            assert sum(f.get_tensor(n).numel() for n in f.keys()) == expected + head
    unipelt.remove(model, "counted")
    assert sum(p.numel() for p in model.parameters()) == before


def check_plan(plan: Any, formula: Formula, s: Sizes) -> None:
    """The plan's counts, and where it has no words the printed formula's, are what the formula here says."""
    trained = formula.trained(s)
    stored = formula.stored(s) if formula.stored else trained
    head = formula.own_head(s) if formula.own_head else s.head
    found = plan.counts
    assert (found.trained, found.stored, found.frozen, found.head) == (trained, stored, 0, head)
    assert found.base == s.total
    text = printed(plan.method)
    assert formula.copies == any(c.words for c in text.values())
    if not formula.copies:
        values = {
            "L": s.L, "L_cross": 0, "d_model": s.d, "d_x": s.d, "heads": s.heads, "groups": s.groups,
            "d_head": s.d_head, "d_q": s.q, "d_kv": s.kv, "d_ff": s.ff, "vocab": s.vocab, "labels": s.labels,
        }  # fmt: skip
        values |= {n: v for n, v in plan.method.arguments.items() if isinstance(v, int)}
        assert text["trained"].number(values) == trained
        assert text["stored"].number(values) == stored
        assert text["frozen"].number(values) == 0
        if formula.own_head:
            assert text["head"].number(values) == head
