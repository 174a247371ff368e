"""Every recording of two public libraries whose method and model unipelt has so far: outputs and gradients agree.

The recordings are looked for in ``UNIPELT_FIXTURES``, else in ``shared/fixtures`` beside the checkout.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable

import pytest
import torch
import transformers
from fidelity_kit import (
    EFFECT,
    GRADIENTS,
    OUTPUTS,
    effect,
    fill,
    gradient_error,
    gradients,
    library,
    output_error,
    variant,
)
from mappings import (
    Piece, Place, adaption, bottleneck, classifier, low_rank, mapping, norms, prefix, prefix_gates, prefix_mlp,
    prompt, prompt_lstm, prompt_mlp, rescaling,
)  # fmt: skip
from recordings import COUNT, FOLDER, listed

import unipelt


@dataclass(frozen=True)
class Case:
    """How a recorded method is written here, and how its tensors are named."""

    method: Callable[[], unipelt.Method]
    pieces: tuple[Piece, ...]
    shift: int = 0  # token positions start here
    allow_future: bool = False
    why: str = field(default="", compare=False)  # what differs from the library's own spec or from a plain call


def own(name: str, *pieces: Piece, **arguments: Any) -> Case:
    return Case(lambda: library(name, **arguments), pieces)


def other(file: str, name: str, why: str, *pieces: Piece, allow_future: bool = False, **arguments: Any) -> Case:
    return Case(lambda: variant(file, name, **arguments), pieces, allow_future=allow_future, why=why)


def with_classifier(
    name: str, pieces: tuple[Piece, ...], shift: int = 0, wrapper: bool = False, **arguments: Any
) -> Case:
    return Case(lambda: library(name, **arguments) + variant("peft", "classifier_copy"), (*pieces, classifier(wrapper)),
                shift, why=f"{CLASSIFIER}; {SHIFT}" if shift else CLASSIFIER)  # fmt: skip


QUERIES_AND_VALUES = tuple(f"{part}.{n}" for part in ("encoder.attn", "decoder.attn", "decoder.cross") for n in "qv")
EVERYWHERE = "[attn.q, attn.v, cross.q, cross.v]"
HEADS = ("encoder.attn.heads", "decoder.attn.heads", "decoder.cross.heads")
BOTH_FFN = ("encoder.ffn", "decoder.ffn")
QKV = ("attn.q", "attn.k", "attn.v")
UNIPELT_MLP = ("K", "bk", "V", "bv")
CLASSIFIER = "the classifier is trained too, the pooler is not"
SHIFT = "peft's prefix goes through the cache, so the tokens' positions start after it: they are passed as position_ids"

CASES: dict[str, Case] = {
    "adapters/bert-seq_bn": own("pfeiffer", bottleneck("ffn"), r=8),
    "adapters/bert-double_seq_bn": other("adapters", "double_bottleneck", "swish, and frozen norms",
                                          bottleneck("attn", "ffn"), r=8),
    "adapters/bert-par_bn": own("scaled_parallel_adapter", bottleneck("ffn"), r=16, s=4.0),
    "adapters/bert-scaled_par_bn": own("scaled_parallel_adapter_learned", bottleneck("ffn", scaled=True), r=8),
    "adapters/bert-prefix_tuning": own("prefix_tuning_mlp", prefix_mlp(), l=5, mid=16),
    "adapters/bert-prefix_tuning_flat": own("prefix_tuning", prefix(5), l=5),
    "adapters/bert-prompt_tuning": own("prompt_tuning", prompt("embed"), l=4, at="embed"),
    "adapters/bert-prompt_tuning_after_bos": own("prompt_tuning_after_cls", prompt("embed"), l=3, at="embed"),
    "adapters/bert-lora": own("lora", low_rank("attn.q", "attn.v"), r=4, alpha=8.0),
    "adapters/bert-lora_all": other("adapters", "lora_everywhere", "five places instead of two",
                                    low_rank(*QKV, "ffn.up", "ffn.down"), r=3, alpha=6.0),
    "adapters/bert-ia3": other("adapters", "ia3_before_activation", "the inner vector acts before the activation",
                               rescaling("attn.k", "attn.v", "ffn.up")),
    "adapters/bert-mam": own("mam", prefix_mlp(0), bottleneck("ffn", row=1), l=5, r=16, s=4.0, mid=24),
    "adapters/bert-mam_paper": Case(
        lambda: library("prefix_tuning", l=5) + library("scaled_parallel_adapter", r=8, s=4.0),
        (prefix(5, 0), bottleneck("ffn", row=1)), why="the paper's flat prefix"),
    "adapters/bert-unipelt": own(
        "unipelt_apl", bottleneck("ffn", gated=True), prefix_mlp(1, UNIPELT_MLP), prefix_gates("G", row=1),
        low_rank("attn.q", "attn.v", row=2, gated=True), ra=8, l=5, rl=4, mid=16),
    "adapters/bert-unipelt_separate_gates": other(
        "adapters", "unipelt_separate_gates", "keys and values have a gate each", bottleneck("ffn", gated=True),
        prefix_mlp(1, UNIPELT_MLP), prefix_gates("GK", "GV", row=1), low_rank("attn.q", "attn.v", row=2, gated=True),
        ra=4, l=4, rl=2, mid=12),
    "adapters/bert-union_nogates": own(
        "unipelt_apl_ungated", bottleneck("ffn"), prefix_mlp(1, UNIPELT_MLP), low_rank("attn.q", "attn.v", row=2),
        ra=8, l=5, rl=4, alpha=2.0, mid=16),
    "adapters/gpt2-lora": own("lora", low_rank("attn.q", "attn.v", r=4), r=4, alpha=8.0),
    "adapters/gpt2-lora_qkv": other("adapters", "lora_everywhere", "five places instead of two",
                                    low_rank(*QKV, "ffn.up", "ffn.down", r=4), r=4, alpha=8.0),
    "adapters/gpt2-ia3": other("adapters", "ia3_before_activation", "the inner vector acts before the activation",
                               rescaling("attn.k", "attn.v", "ffn.up")),
    "adapters/gpt2-par_bn": other("adapters", "parallel_raw", "reads the raw stream", bottleneck("ffn"), r=8, s=4.0),
    "adapters/gpt2-seq_bn": other("adapters", "sequential_raw", "reads the sum, which has no norm",
                                  bottleneck("ffn"), r=8),
    "adapters/gpt2-prefix_tuning_flat": own("prefix_tuning", prefix(5), l=5),
    "adapters/gpt2-union_nogates": other(
        "adapters", "union_raw", "the adapter reads the sum, which has no norm", bottleneck("ffn"),
        prefix_mlp(1, UNIPELT_MLP), low_rank("attn.q", "attn.v", row=2, r=4), ra=8, l=5, rl=4, alpha=2.0, mid=16),
    "adapters/gpt2-unipelt": other(
        "adapters", "unipelt_raw", "the adapter reads the sum; the pooled gates see later positions, allowed here",
        bottleneck("ffn", gated=True), prefix_mlp(1, UNIPELT_MLP), prefix_gates("G", row=1),
        low_rank("attn.q", "attn.v", row=2, r=4, gated=True), allow_future=True, ra=8, l=5, rl=4, mid=16),
    "adapters/bart-lora": own("lora", low_rank(*QUERIES_AND_VALUES), r=4, alpha=8.0, at=EVERYWHERE),
    "adapters/bart-seq_bn": own("pfeiffer", bottleneck(*BOTH_FFN), r=8),
    "adapters/bart-prefix_tuning_flat": own("prefix_tuning", *(prefix(5, site=s) for s in HEADS), l=5),
    "adapters/bart-mam": own("mam", *(prefix_mlp(0, site=s) for s in HEADS), bottleneck(*BOTH_FFN, row=1),
                             l=5, r=8, s=4.0, mid=16),
    "peft/llama-lora": own("lora", low_rank("attn.q", "attn.v"), r=4, alpha=8.0),
    "peft/llama-rslora": other("peft", "rslora_attention", "four places instead of two",
                               low_rank(*QKV, "attn.o"), r=4, alpha=6.0),
    "peft/llama-lora_rank_alpha_pattern": other(
        "peft", "lora_patterns", "a row for each rank and alpha", low_rank("attn.q", row=0),
        low_rank("attn.v", row=1, layers=[0]), low_rank("attn.v", row=2, layers=[1])),
    "peft/llama-lora_bias": other("peft", "lora_with_bias", "B has a bias",
                                  low_rank("attn.q", "ffn.down", bias=True), r=4, alpha=8.0),
    "peft/llama-ia3": own("ia3", rescaling("attn.k", "attn.v", "ffn.hidden")),
    "peft/llama-ln_tuning": own(
        "ln_tuning", norms("*.input_layernorm", "*.post_attention_layernorm", "norm", biases=False)),
    "peft/llama-prefix_tuning": Case(lambda: library("prefix_tuning", l=5), (prefix(5),), shift=5, why=SHIFT),
    "peft/llama-prefix_tuning_mlp": Case(
        lambda: variant("peft", "prefix_mlp_narrow", l=5, mid=16), (prefix_mlp(0, UNIPELT_MLP),), shift=5,
        why=f"an embedding as wide as one layer's keys; {SHIFT}"),
    "peft/llama-prompt_tuning": own("prompt_tuning", prompt("embed.words"), l=4, at="embed.words"),
    "peft/llama-p_tuning_lstm": other("peft", "p_tuning_lstm", "one LSTM layer with a width of its own", prompt_lstm(),
                                      l=4, mid=12),
    "peft/llama-p_tuning_mlp": other("peft", "p_tuning_mlp_narrow", "the MLP has a width of its own", prompt_mlp(),
                                     l=4, mid=16),
    "peft/llama-adaption_prompt": other("peft", "adaption_prompt", "one gate a layer, no tanh", adaption(), l=4, top=2),
    "peft/bert-lora": with_classifier("lora", (low_rank("attn.q", "attn.v"),), r=4, alpha=8.0),
    "peft/bert-ia3": Case(lambda: variant("peft", "ia3_all_inputs") + variant("peft", "classifier_copy"),
                          (rescaling("attn.k", "attn.v", "ffn.hidden"), rescaling("attn.heads", row=1), classifier()),
                          why=f"`output.dense` names two maps, and both have their inputs rescaled; {CLASSIFIER}"),
    "peft/bert-prefix_tuning": with_classifier("prefix_tuning", (prefix(5),), 5, True, l=5),
    "peft/bert-prompt_tuning": with_classifier(
        "prompt_tuning", (prompt("embed.words"),), wrapper=True, l=4, at="embed.words"),
    "peft/t5-lora": own("lora", low_rank(*QUERIES_AND_VALUES), r=4, alpha=8.0, at=EVERYWHERE),
    "peft/t5-ia3": own("ia3", rescaling(
        *(f"{part}.{n}" for part in ("encoder.attn", "decoder.attn", "decoder.cross") for n in "kv"),
        "encoder.ffn.hidden", "decoder.ffn.hidden")),
}  # fmt: skip

#: Recordings of which only a part is read by the library that made them; compared in a file of their own.
READ_IN_PART = {"peft/t5-prompt_tuning": "half of the recorded rows are read nowhere (test_t5_prompt)"}

#: Recordings that are not compared, each with its reason.
NOT_HERE: dict[str, str] = {
    "peft/t5-prefix_tuning": "its rows stand before the text, so T5 adds a bias to their scores; ours stand nowhere (test_t5_prefix)"
}


#: Recordings that are compared in `tests/zoo`, where their methods' references stand.
ELSEWHERE = {
    name
    for file in (Path(__file__).parents[1] / "zoo").glob("refs_*.py")
    for name in re.findall(r'"((?:adapters|peft)/[\w-]+)"', file.read_text(encoding="utf-8"))
    if name not in CASES  # a reference may be one of the cases here
}


def test_every_recording_is_listed_once():
    """A case, a reference of a method or a reason for each of the recordings there are (and for no other)."""
    lists = (CASES, READ_IN_PART, NOT_HERE, ELSEWHERE)
    listed_names = [name for names in lists for name in names]
    twice = sorted({n for n in listed_names if listed_names.count(n) > 1})
    assert not twice and len(listed_names) == COUNT
    if FOLDER is None:
        pytest.skip(f"{COUNT} recordings were not run: UNIPELT_FIXTURES is not set")
    assert set(listed(FOLDER)) == set(listed_names)


@pytest.mark.parametrize("name", CASES if FOLDER is not None else [])
def test_recording(name, record_property):
    found, worst = compared(name)
    record_property("recording", (name, found, worst, CASES[name].why))


def compared(name: str) -> tuple[float, float]:
    """How far the outputs and the gradients are from the recorded ones, lowered and not; neither is too far."""
    metadata, tensors = read(name)
    case, key = CASES[name], metadata["output_key"]
    recorded = {n.removeprefix("adapter."): t for n, t in tensors.items() if n.startswith("adapter.")}
    recorded_gradients = {n.removeprefix("grad."): t for n, t in tensors.items() if n.startswith("grad.")}
    assert recorded.keys() == recorded_gradients.keys()
    model = build(metadata, tensors)
    inputs = {
        n.removeprefix("input."): t for n, t in tensors.items() if n.startswith("input.") and n != "input.cotangent"
    }
    moved = dict(inputs)
    if case.shift:
        moved["position_ids"] = torch.arange(inputs["input_ids"].shape[1])[None] + case.shift
    with torch.no_grad():
        base = model(**inputs)[key]
    assert output_error(base, tensors["output.base"]) <= OUTPUTS

    method = case.method()
    mapped = mapping(case.pieces, Place.of(model.config, name.startswith("peft/"), method))
    errors = []
    for lowering in (True, False):
        unipelt.apply(model, method, name="recorded", head=False, allow_future=case.allow_future, lowering=lowering)
        fill(model, "recorded", mapped, recorded)
        with unipelt.with_rows(model):
            out = model(**moved)[key]
        (out * tensors["input.cotangent"]).sum().backward()
        found = output_error(out, tensors[f"output.{key}"])
        worst, where = gradient_error(gradients(model, "recorded"), mapped, recorded_gradients)
        errors.append((found, worst))
        assert found <= OUTPUTS, f"outputs differ by {found:.1e} (lowering={lowering})"
        assert worst <= GRADIENTS, f"the gradient of {where} differs by {worst:.1e} (lowering={lowering})"
        assert effect(out.detach(), base) > EFFECT
        with torch.no_grad(), unipelt.disabled(model):
            assert torch.equal(model(**inputs)[key], base)
        unipelt.remove(model, "recorded")
    outputs, theirs = zip(*errors)
    return max(outputs), max(theirs)


#: Slips that reimplementations make: each must be seen where it is made.
SLIPS: dict[str, tuple[str, Callable[[], unipelt.Method]]] = {
    "alpha": ("adapters/bert-lora", lambda: library("lora", r=4, alpha=9.0)),
    "s": ("adapters/bert-par_bn", lambda: library("scaled_parallel_adapter", r=16, s=1.0)),
    "activation": ("adapters/bert-seq_bn", lambda: library("pfeiffer", r=8, act="gelu")),
    "insertion": ("adapters/gpt2-seq_bn", lambda: library("pfeiffer", r=8)),
    "positions": ("peft/llama-prefix_tuning", lambda: library("prefix_tuning", l=5)),
    "prompt_site": ("adapters/bert-prompt_tuning", lambda: library("prompt_tuning", l=4, at="embed.words")),
}


@pytest.mark.parametrize("slip", SLIPS if FOLDER is not None else [])
def test_the_comparison_sees_a_slip(slip):
    name, method = SLIPS[slip]
    metadata, tensors = read(name)
    model, wrong = build(metadata, tensors), method()
    unipelt.apply(model, wrong, name="slip", head=False)
    pieces = (prompt("embed.words"),) if slip == "prompt_site" else CASES[name].pieces
    recorded = {n.removeprefix("adapter."): t for n, t in tensors.items() if n.startswith("adapter.")}
    fill(model, "slip", mapping(pieces, Place.of(model.config, name.startswith("peft/"), wrong)), recorded)
    with torch.no_grad(), unipelt.with_rows(model):
        out = model(**{n: tensors[f"input.{n}"] for n in ("input_ids", "attention_mask")})[metadata["output_key"]]
    assert output_error(out, tensors[f"output.{metadata['output_key']}"]) > 100 * OUTPUTS


def read(name: str) -> tuple[dict[str, str], dict[str, torch.Tensor]]:
    from safetensors import safe_open

    assert FOLDER is not None
    with safe_open(FOLDER / f"{name}.safetensors", "pt") as f:
        return f.metadata(), {n: f.get_tensor(n) for n in f.keys()}


def build(metadata: dict[str, str], tensors: dict[str, torch.Tensor]) -> torch.nn.Module:
    """The plain model of a recording, with its weights."""
    config = getattr(transformers, metadata["model_config_class"])(**json.loads(metadata["model_config"]))
    config._attn_implementation = "eager"
    model = getattr(transformers, metadata["model_class"])(config)
    model.load_state_dict({n.removeprefix("base."): t for n, t in tensors.items() if n.startswith("base.")})
    return model.eval()
