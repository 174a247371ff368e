"""Rows that move the tokens' positions, on texts as long as the model reads: an error that says so, and only where there is no room."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny import build, put
from torch import nn

import unipelt

ROWS = 3
PROMPT = f"method p() {{{{ modify {{site}} form {{{{ P: [{ROWS}, d_out] ~ normal(1.0)  delta = P }}}} compose prepend(delta, h) }}}}"
#: How many tokens the model reads, and whether its positions count pads.
LEARNED = {"bert_head": (64, True), "gpt2": (64, True), "roberta_head": (63, False), "electra_head": (64, True), "distilbert_head": (64, True),
           "albert_head": (64, True), "opt": (64, False), "bart": (64, True)}  # fmt: skip


def wear(kind: str, site: str = "embed.words") -> nn.Module:
    m = build(kind)
    unipelt.apply(m, unipelt.parse(PROMPT.format(site=site)), allow_future=True)
    return m


def batch(m: nn.Module, kind: str, tokens: int, real: int | None = None) -> dict[str, torch.Tensor]:
    ids = torch.randint(5, 90, (2, tokens), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    if real is not None:
        ids[:, real:], mask[:, real:] = m.config.pad_token_id, 0
    more = {"decoder_input_ids": ids[:, :4]} if kind in ("bart", "t5") else {}
    return {"input_ids": ids, "attention_mask": mask, **more}


def refused(m: nn.Module, **given: Any) -> str:
    with pytest.raises(unipelt.PeltError, match="E0534") as e, torch.no_grad():
        m(**given)
    return str(e.value)


@pytest.mark.parametrize("kind", LEARNED)
def test_there_is_room_up_to_the_last_position_and_no_further(kind: str) -> None:
    m, longest = wear(kind), LEARNED[kind][0]
    fits = longest - ROWS
    with torch.no_grad():
        base = m(**batch(m, kind, fits)).logits
    said = refused(m, **batch(m, kind, fits + 1))
    assert f"the model has {longest} positions, and {ROWS} rows take some beside {fits + 1} tokens" in said
    assert f"at most {fits} tokens" in said
    try:
        at_embed = wear(kind, "embed")
    except unipelt.PeltError:
        assert "`embed`" not in said  # a remedy that this model refuses is none
    else:
        assert "put the rows at `embed`" in said
        with torch.no_grad():
            at_embed(**batch(m, kind, longest))
    refused(m, **batch(m, kind, longest))
    with torch.no_grad():
        assert torch.equal(m(**batch(m, kind, fits)).logits, base)  # a pass that was refused leaves nothing behind
        with unipelt.disabled(m):
            m(**batch(m, kind, longest))


@pytest.mark.parametrize("kind", LEARNED)
def test_pads_that_take_no_position_need_no_room(kind: str) -> None:
    m, (longest, pads) = wear(kind), LEARNED[kind]
    given = batch(m, kind, longest, real=20)
    if pads:
        refused(m, **given)
        return
    with torch.no_grad():
        m(**given)
    refused(m, **batch(m, kind, longest, real=longest - ROWS + 1))


@pytest.mark.parametrize("kind", ["llama", "t5"])
def test_without_a_table_there_is_no_end(kind: str) -> None:
    m = wear(kind)
    with torch.no_grad():
        assert torch.isfinite(m(**batch(m, kind, 80)).logits).all()


def test_positions_that_are_given_count() -> None:
    m = wear("gpt2")
    given = batch(m, "gpt2", 64)
    with torch.no_grad():
        m(**given, position_ids=torch.arange(64)[None].clamp(max=60))
    refused(m, **given, position_ids=torch.arange(64)[None].clamp(max=61))


def test_embeddings_in_place_of_ids() -> None:
    m = wear("bert_head")
    words = m.bert.embeddings.word_embeddings.weight
    with torch.no_grad():
        m(inputs_embeds=words[torch.full((2, 61), 7)])
    refused(m, inputs_embeds=words[torch.full((2, 62), 7)])


@pytest.mark.parametrize("kind", ["gpt2", "opt"])
def test_generation_ends_with_the_room(kind: str) -> None:
    """The step beyond the last position is refused; the one before it is not."""
    m = wear(kind)
    ids = batch(m, kind, 50)["input_ids"]
    options: dict[str, Any] = {"do_sample": False, "attention_mask": torch.ones_like(ids)}
    found = m.generate(
        ids, max_new_tokens=12, min_new_tokens=12, **options
    )  # the last token that is written is not read
    assert found.shape == (2, 62)
    with pytest.raises(unipelt.PeltError, match="E0534.*beside 62 tokens"):
        m.generate(ids, max_new_tokens=13, min_new_tokens=13, **options)


def test_two_adapters_share_the_room() -> None:
    m = build("gpt2")
    for name in ("a", "b"):
        unipelt.apply(m, unipelt.parse(PROMPT.format(site="embed.words")), name, allow_future=True)
    unipelt.activate(m, "a", "b")
    with torch.no_grad():
        m(**batch(m, "gpt2", 58))
    assert f"{2 * ROWS} rows take some beside 59 tokens" in refused(m, **batch(m, "gpt2", 59))
    unipelt.activate(m, "a")
    with torch.no_grad():
        m(**batch(m, "gpt2", 61))


def test_answers_of_a_task_end_with_the_room() -> None:
    from unipelt.training.tasks.generation import generate

    m = wear("gpt2")
    m.config.eos_token_id = m.generation_config.eos_token_id = None
    prompts = [list(range(5, 5 + n)) for n in (50, 61, 62)]
    assert [len(a) for a in generate(m, prompts, 20, answers_only=False)] == [11, 0, 0]
    with unipelt.disabled(m):
        assert [len(a) for a in generate(m, prompts, 20, answers_only=False)] == [14, 3, 2]


def test_a_method_whose_rows_replace_tokens_needs_none() -> None:
    m = build("gpt2")
    put(m, "lora")
    with torch.no_grad():
        m(**batch(m, "gpt2", 64))


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # dynamo hides it, but not where it is an error
def test_compiled() -> None:
    m = wear("gpt2")
    given = batch(m, "gpt2", 20)
    torch._dynamo.reset()
    compiled = torch.compile(m, backend="eager", fullgraph=True)
    with torch.no_grad():
        assert torch.allclose(compiled(**given).logits, m(**given).logits, atol=1e-5)
    torch._dynamo.reset()
