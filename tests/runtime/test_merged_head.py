"""LoRA at a head: merged where the head is a linear map of its own, refused for the true reason elsewhere."""

from __future__ import annotations

from pathlib import Path

import pytest
import small
import torch
from names import name as named
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

import unipelt
from unipelt.language.report.diagnostics import PeltError

SIZES = {"vocab_size": small.WORDS, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1}


def language_model(kind: str, tied: bool) -> torch.nn.Module:
    torch.manual_seed(0)
    if kind == "gpt2":
        return GPT2LMHeadModel(
            GPT2Config(n_embd=32, n_layer=1, n_head=4, n_positions=64, tie_word_embeddings=tied, **SIZES)
        ).eval()
    return LlamaForCausalLM(LlamaConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=48,
                                        tie_word_embeddings=tied, **SIZES)).eval()  # fmt: skip


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_a_head_of_its_own_takes_in_its_edit(kind: str, tmp_path: Path) -> None:
    m = language_model(kind, tied=False)
    base = small.output(m)
    unipelt.apply(m, unipelt.load(named("lora"))(at="head"))
    small.randomise(m)
    adapted = small.output(m)
    assert (adapted - base).abs().max() > 1e-2
    unipelt.merge(m)
    torch.testing.assert_close(small.output(m), adapted, rtol=1e-5, atol=1e-5)
    unipelt.unmerge(m)
    assert torch.equal(small.output(m), adapted)
    plain = AutoModelForCausalLM.from_pretrained(unipelt.save_merged(m, tmp_path / "plain")).eval()
    torch.testing.assert_close(small.output(plain), adapted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_a_tied_head_is_refused_for_the_tie(kind: str) -> None:
    m = language_model(kind, tied=True)
    unipelt.apply(m, unipelt.load(named("lora"))(at="head"))
    small.randomise(m)
    before = small.output(m)
    with pytest.raises(PeltError) as caught:
        unipelt.merge(m)
    (found,) = caught.value.diagnostics
    assert found.code == "E0749" and "tied" in found.message
    assert torch.equal(small.output(m), before)


def test_on_a_classifier_the_mistake_is_found_before_any_pass() -> None:
    """The head has a score for each text, and the edit would have one for each token."""
    m = small.model("bert_labels")
    before = small.state(m)
    with pytest.raises(PeltError, match="token"):
        unipelt.apply(m, unipelt.load(named("lora"))(at="head"))
    assert small.state(m) == before


def test_the_verdict_says_it() -> None:
    from unipelt.language.analyse.verdicts import verdicts

    assert verdicts(unipelt.load(named("lora"))(at="head"))["mergeable"].value == "yes"
    assert verdicts(unipelt.load(named("mean_head")))["mergeable"].value == "no"
