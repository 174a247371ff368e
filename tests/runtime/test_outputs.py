"""What a model with a prompt returns has an entry for each token that it was given, and the one that a user means."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from names import spec
from small import cache_of, model
from torch import nn
from transformers import (
    BertConfig,
    BertForQuestionAnswering,
    BertForTokenClassification,
    GPT2Config,
    GPT2ForTokenClassification,
)

import unipelt

ROWS, TOKENS = 3, 7
PLACES = ("prepend(delta, h)", "prepend(delta, h, 2)", "append(delta, h)")
SIZES = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48, vocab_size=80)


def rows(compose: str, at: str = "embed.words") -> unipelt.Method:
    return unipelt.parse(
        spec(f"method m {{ modify {at} form {{ P: [{ROWS}, d_out] ~ normal(0.5) delta = P }} compose {compose} }}")
    )


def batch() -> dict[str, torch.Tensor]:
    """Texts of 7, 4 and 5 tokens."""
    ids = torch.randint(5, 80, (3, TOKENS), generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids, "attention_mask": (torch.arange(TOKENS) < torch.tensor([7, 4, 5])[:, None]).long()}


def places(compose: str, n: int) -> tuple[list[int], list[int]]:
    """Of a text of n tokens: where its tokens stand among all entries, and the entries that foretell what follows them."""
    before = {PLACES[0]: 0, PLACES[1]: 2, PLACES[2]: n}[compose]
    at = [j + ROWS * (j >= before) for j in range(n)]
    return at, [i - 1 for i in at[1:]] + [n + ROWS - 1]


def compared(found: torch.Tensor, full: torch.Tensor, compose: str, foretells: bool) -> None:
    assert found.shape[:2] == (3, TOKENS) and full.shape[:2] == (3, TOKENS + ROWS)
    for b, n in enumerate([7, 4, 5]):
        assert torch.equal(found[b, :n], full[b, places(compose, n)[foretells]])


@pytest.mark.parametrize("compose", PLACES)
@pytest.mark.parametrize("kind", ["bert", "gpt2", "llama"])
def test_entries_are_those_of_the_tokens(kind: str, compose: str) -> None:
    m, given = model(kind), batch()
    unipelt.apply(m, rows(compose))
    lm = kind != "bert"
    with torch.no_grad():
        found = m(**given, output_hidden_states=True, output_attentions=False)
        with unipelt.with_rows(m):
            full = m(**given, output_hidden_states=True)
        as_tuple = m(**given, output_hidden_states=True, return_dict=False)
    compared(found[0], full[0], compose, lm)
    assert len(found.hidden_states) == len(full.hidden_states) > 2
    for a, b in zip(found.hidden_states, full.hidden_states):
        compared(a, b, compose, False)
    if not lm:
        assert torch.equal(found.pooler_output, full.pooler_output)
    else:
        assert cache_of(found).get_seq_length() == TOKENS + ROWS
    assert torch.equal(as_tuple[0], found[0]) and torch.equal(as_tuple[-1][-1], found.hidden_states[-1])
    inner = full.hidden_states[-1]
    assert torch.equal(unipelt.at_tokens(m, inner), found.hidden_states[-1])
    assert unipelt.at_tokens(m, found[0]) is found[0]


@pytest.mark.parametrize("compose", PLACES)
def test_logits_foretell_the_next_token_as_the_loss_has_it(compose: str) -> None:
    """A loss that a user makes of logits and tokens is the model's own (but for the first token, which rows in front foretell)."""
    m, given = model("gpt2"), batch()
    unipelt.apply(m, rows(compose))
    labels = given["input_ids"].masked_fill(given["attention_mask"] == 0, -100)
    labels[:, 0] = -100
    with torch.no_grad():
        found = m(**given, labels=labels)
    own = nn.functional.cross_entropy(found.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    assert torch.allclose(found.loss, own, atol=1e-6)
    one = {"input_ids": given["input_ids"][:1]}
    with torch.no_grad():
        next_word = m(**one).logits[0, -1].argmax()
        written = m.generate(**one, max_new_tokens=1, do_sample=False, pad_token_id=0)
    assert written[0, -1] == next_word


@pytest.mark.parametrize("causal", [False, True])
def test_scores_of_tokens_stand_at_the_tokens(causal: bool) -> None:
    torch.manual_seed(0)
    m: Any = (GPT2ForTokenClassification(GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=80, num_labels=5)) if causal
              else BertForTokenClassification(BertConfig(**SIZES, num_labels=5)))  # fmt: skip
    m.eval()
    unipelt.apply(m, rows(PLACES[1]), head=False)
    labels = torch.arange(3 * TOKENS).view(3, TOKENS) % 5
    with torch.no_grad():
        found = m(**batch(), labels=labels)
        with unipelt.with_rows(m):
            full = m(**batch())
    compared(found.logits, full.logits, PLACES[1], False)
    assert torch.allclose(
        found.loss, nn.functional.cross_entropy(found.logits.flatten(0, 1), labels.flatten()), atol=1e-6
    )
    unipelt.remove(m, "default")
    unipelt.apply(m, rows(PLACES[1]), labels=["a", "b", "c"])  # an adapter's own labels
    with torch.no_grad():
        own = m(**batch(), labels=labels % 3)
    assert own.logits.shape == (3, TOKENS, 3)
    assert torch.allclose(
        own.loss, nn.functional.cross_entropy(own.logits.flatten(0, 1), (labels % 3).flatten()), atol=1e-6
    )


def test_ends_of_spans_and_what_has_no_tokens() -> None:
    torch.manual_seed(0)
    m = BertForQuestionAnswering(BertConfig(**SIZES)).eval()
    unipelt.apply(m, rows(PLACES[2]), head=False)
    with torch.no_grad():
        found, as_tuple = m(**batch()), m(**batch(), return_dict=False)
        with unipelt.with_rows(m):
            full = m(**batch())
    for name, t in zip(("start_logits", "end_logits"), as_tuple):
        compared(found[name], full[name], PLACES[2], False)
        assert torch.equal(t, found[name])
    pooled, given = model("bert_labels"), batch()
    # as many labels as there are tokens and rows: the scores of an example are no entries of tokens
    unipelt.apply(pooled, rows(PLACES[0]), labels=TOKENS + ROWS)
    with torch.no_grad():
        assert pooled(**given).logits.shape == (3, TOKENS + ROWS)


def test_last_logits_alone_are_left_as_they_are() -> None:
    m, given = model("llama"), batch()
    unipelt.apply(m, rows(PLACES[2]))
    with torch.no_grad():
        last = m(input_ids=given["input_ids"], logits_to_keep=1).logits
        every = m(input_ids=given["input_ids"]).logits
    assert last.shape[1] == 1 and torch.allclose(last[:, -1], every[:, -1], atol=1e-5)


def test_gradients_pass_and_threads_and_switches_are_kept_apart() -> None:
    m, given = model("bert"), batch()
    unipelt.apply(m, rows(PLACES[0]))
    elsewhere: list[torch.Tensor] = []
    with unipelt.with_rows(m):
        with unipelt.with_rows(m):
            pass
        thread = threading.Thread(target=lambda: elsewhere.append(m(**given).last_hidden_state))
        thread.start()
        thread.join()
        assert elsewhere[0].shape[1] == TOKENS and m(**given).last_hidden_state.shape[1] == TOKENS + ROWS
    found = m(**given).last_hidden_state
    assert found.shape[1] == TOKENS
    found[:, 0].sum().backward()
    (P,) = [p for g in unipelt.parameter_groups(m, "default", 1.0) for p in g["params"]]
    assert bool((P.grad.abs().amax(1) > 0).all())
    with unipelt.disabled(m), torch.no_grad():
        assert m(**given).last_hidden_state.shape[1] == TOKENS
    unipelt.remove(m, "default")
    with unipelt.with_rows(m), torch.no_grad():
        assert m(**given).last_hidden_state.shape[1] == TOKENS and not m._forward_hooks
