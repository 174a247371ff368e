"""How a model is called: with labels, ids by position, embeddings, past itself; prompts among its tokens."""

from __future__ import annotations

import pytest
import torch
from tiny import VOCAB, batch, distance, look, put
from torch.nn import functional as F

import unipelt


EFFECT = 1e-3
AT = ["embed", "embed.words"]


def prompt(at: str, **arguments):
    """Prompt tuning at a site; every spelling of its arguments is that of the library's spec."""
    method = unipelt.load("prompt_tuning")
    return method(l=4, at=at, **arguments)


@pytest.mark.parametrize("at", AT)
@pytest.mark.parametrize("kind", ["gpt2", "llama", "mistral", "qwen2"])
def test_a_prompt_with_labels(kind, at, bases):
    """The model's own loss is that of the tokens alone, computed by hand from the logits."""
    m = bases.get(kind)
    inputs = batch(kind)
    labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
    with torch.no_grad():
        before = m(**inputs, labels=labels)
        put(m, prompt(at))
        with unipelt.with_rows(m):
            o = m(**inputs, labels=labels)
    logits = o.logits[:, -labels.shape[1] :]
    # the prompt's last row predicts the first token, whose label counts too
    shifted, targets = logits[:, :-1], labels[:, 1:]
    first = o.logits[:, -labels.shape[1] - 1]
    all_ = torch.cat([first[:, None], shifted], 1)
    by_hand = F.cross_entropy(all_.reshape(-1, VOCAB), labels.reshape(-1), ignore_index=-100)
    without_first = F.cross_entropy(shifted.reshape(-1, VOCAB), targets.reshape(-1), ignore_index=-100)
    assert abs(float(before.loss - o.loss)) > EFFECT
    assert abs(float(by_hand - without_first)) > 1e-4
    assert torch.isclose(o.loss, by_hand, atol=1e-5)
    unipelt.remove(m, "a")


@pytest.mark.parametrize("at", AT)
@pytest.mark.parametrize("kind", ["gpt2_head", "llama_head"])
def test_a_prompt_and_pooling_at_the_last_token(kind, at, bases):
    """A classifier on a decoder reads the last real token; with pads at the right that is not the last position."""
    m = bases.get(kind)
    inputs = batch(kind)
    before = look(m, inputs)
    put(m, prompt(at))
    together = look(m, inputs)["logits"]
    assert (together - before["logits"]).abs().max() > EFFECT
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    for i in range(ids.shape[0]):
        n = int(mask[i].sum())
        alone = look(m, {"input_ids": ids[i : i + 1, :n], "attention_mask": mask[i : i + 1, :n]})["logits"]
        assert (together[i : i + 1] - alone).abs().max() <= 1e-5
        assert (look(m, {"input_ids": ids[i : i + 1, :n]})["logits"] - alone).abs().max() <= 1e-5
    unipelt.remove(m, "a")


@pytest.mark.parametrize("at", AT)
def test_a_prompt_past_the_model_is_an_error(at, bases):
    m = bases.get("gpt2")
    ids = batch("gpt2")["input_ids"]
    base = m.transformer(ids).last_hidden_state
    put(m, prompt(at))
    with pytest.raises(unipelt.PeltError, match="E0543"):
        m.transformer(ids)
    with unipelt.disabled(m):
        assert torch.equal(m.transformer(ids).last_hidden_state, base)
    m(ids)
    with pytest.raises(unipelt.PeltError, match="E0543"):  # nothing of the call before is left
        m.transformer(ids)
    unipelt.remove(m, "a")
    assert torch.equal(m.transformer(ids).last_hidden_state, base)


@pytest.mark.parametrize(("kind", "spec"), [
    *((kind, spec) for kind in ("bert", "gpt2", "llama") for spec in ("lora", "mam", "prompt_tuning", "unipelt_apl_causal")),
    ("t5", "prompt_tuning"), ("bart", "mam"), ("opt", "mam"), ("albert", "prompt_tuning"), ("distilbert_head", "prompt_tuning"),
])  # fmt: skip
def test_ids_by_position_by_name_and_as_embeddings(kind, spec, bases):
    m = bases.get(kind)
    inputs = batch(kind)
    ids, rest = inputs["input_ids"], {n: t for n, t in inputs.items() if n != "input_ids"}
    before = look(m, inputs)
    embeds = m.get_input_embeddings()(ids).detach()
    assert distance(look(m, {"inputs_embeds": embeds, **rest}), before) <= 1e-6
    put(m, spec)
    acting = look(m, inputs)
    assert distance(acting, before) > EFFECT
    with torch.no_grad():
        positional = m(ids, **rest)
        tuple_ = m(ids, **rest, return_dict=False)[0]
    assert torch.equal(positional[0], next(iter(acting.values())))
    assert torch.equal(tuple_, positional[0])
    assert distance(look(m, {"inputs_embeds": embeds, **rest}), acting) <= 1e-6
    unipelt.remove(m, "a")


def test_a_prompt_at_the_words_given_embeddings(bases):
    m = bases.get("gpt2")
    inputs = batch("gpt2")
    put(m, prompt("embed.words"))
    acting = look(m, inputs)
    with unipelt.disabled(m):
        embeds = m.get_input_embeddings()(inputs["input_ids"]).detach()
    found = look(m, {"inputs_embeds": embeds, "attention_mask": inputs["attention_mask"]})
    assert distance(found, acting) <= 1e-6
    unipelt.remove(m, "a")
