"""Architectures for free, and what a method says of layers, tied weights and dropout."""

from __future__ import annotations

import pytest
import torch
from tiny import (
    PAD, batch, build, distance, footprint, look, loss, put, randomise, same, same_values, small, trained, values,
)  # fmt: skip

import unipelt


EFFECT = 1e-3


@pytest.mark.parametrize("kind", ["roberta_head", "electra_head", "mistral", "qwen2"])
@pytest.mark.parametrize("spec", ["lora", "mam", "unipelt_apl", "unipelt_apl_causal", "prompt_tuning"])
def test_other_architectures(kind, spec, bases):
    m = bases.get(kind)
    inputs = batch(kind)
    causal = kind in ("mistral", "qwen2")
    traces, before = footprint(m), look(m, inputs)
    if causal and spec == "unipelt_apl":
        with pytest.raises(unipelt.PeltError, match="E0530"):
            unipelt.apply(m, small(spec))
        assert footprint(m) == traces
        return
    unipelt.apply(m, small(spec), name="a")
    randomise(m, "a")
    acting = look(m, inputs)
    assert distance(acting, before) > EFFECT
    with unipelt.disabled(m):
        assert same(look(m, inputs), before)
    loss(m, inputs).backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in trained(m, "a").values())
    found = unipelt.state_dict(m, "a")
    unipelt.apply(m, small(spec), name="b", lowering=False)
    with torch.no_grad():
        for n, t in unipelt.state_dict(m, "b").items():
            t.copy_(found[n])
    assert distance(look(m, inputs), acting) <= 1e-5
    unipelt.remove(m, "b")
    unipelt.remove(m, "a")
    assert footprint(m) == traces and same(look(m, inputs), before)


@pytest.mark.parametrize("kind", ["mistral", "qwen2"])
@pytest.mark.parametrize("spec", ["lora", "mam", "unipelt_apl_causal", "prompt_tuning"])
def test_other_architectures_decode(kind, spec, bases):
    m = bases.get(kind)
    ids = batch(kind, rows=2, tokens=6, padded=False)["input_ids"]
    put(m, spec)
    options = dict(attention_mask=torch.ones_like(ids), max_new_tokens=4, do_sample=False, pad_token_id=PAD)
    assert torch.equal(m.generate(ids, **options), m.generate(ids, use_cache=False, **options))
    unipelt.remove(m, "a")


def test_only_the_chosen_layers():
    """`layers last 1`: the first layer of the base is left alone."""
    m = build("bert")  # its own: asking for hidden states leaves transformers' hooks on a model
    plan = put(m, unipelt.load("llama_adapter")(l=4, top=1))
    assert {e.site.layer for e in plan.edits} == {1}
    assert {n.split(".")[2] for n in unipelt.state_dict(m, "a")} == {"1"}
    with torch.no_grad():
        acting = m(**batch("bert"), output_hidden_states=True).hidden_states
        with unipelt.disabled(m):
            before = m(**batch("bert"), output_hidden_states=True).hidden_states
    assert torch.equal(acting[1], before[1]) and (acting[2] - before[2]).abs().max() > EFFECT


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_tied_weights_survive_a_merge(kind, bases):
    """A trained copy of a tied table is merged into one table, which stays tied."""
    m = build(kind, tie_word_embeddings=True)
    inputs = batch(kind)
    assert m.get_output_embeddings().weight is m.get_input_embeddings().weight
    before, weights = look(m, inputs), values(m)
    put(m, "full")
    acting = look(m, inputs)
    unipelt.merge(m, "a")
    assert m.get_output_embeddings().weight is m.get_input_embeddings().weight
    assert distance(look(m, inputs), acting) <= 1e-5 * max(1.0, float(acting["logits"].abs().max()))
    unipelt.unmerge(m)
    unipelt.remove(m, "a")
    assert same_values(values(m), weights) and same(look(m, inputs), before)


def test_dropout_of_the_method_acts_in_training_only(bases):
    m = bases.get("bert")
    inputs = batch("bert")
    put(m, unipelt.load("lora")(r=4, dropout=0.5))
    acting = look(m, inputs)
    m.train()
    torch.manual_seed(0)
    one = look(m, inputs)
    two = look(m, inputs)
    assert distance(one, two) > EFFECT and distance(one, acting) > EFFECT
    m.eval()
    assert same(look(m, inputs), acting)
    unipelt.remove(m, "a")


@pytest.mark.parametrize("order", [("one", "two"), ("two", "one")])
@pytest.mark.parametrize("copied", ["full", "bitfit", "ln_tuning"])
def test_a_trained_copy_beside_an_adapter(copied, order, bases):
    """Weight edits precede activation edits, whichever adapter they belong to."""
    m = bases.get("bert", torch.float64)
    inputs = batch("bert")
    put(m, copied, "one")
    put(m, "lora", "two")
    for name in order[:1]:
        unipelt.activate(m, name)
    alone = look(m, inputs)
    unipelt.activate(m, *order)
    both = look(m, inputs)
    unipelt.activate(m, *reversed(order))
    assert distance(both, look(m, inputs)) <= 1e-10
    assert distance(both, alone) > EFFECT
    unipelt.remove(m, "one")
    unipelt.remove(m, "two")
