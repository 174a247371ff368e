"""Rows that run together give what each gives by itself, whatever joins them and leaves, and the trial notices where they would not."""

from __future__ import annotations

import random

import pytest
import small
import torch
from names import name as named
from served import Plain
from torch import nn

import unipelt
from unipelt.serve import decoding
from unipelt.serve.decoding import Decoding, Model, Row
from unipelt.serve.trial import Ways, tried

PROMPTS = ([2, 5, 9], [2, 14, 6, 8, 21], [2, 19])


def test_scores_are_those_of_a_whole_pass_alone(plain: Plain) -> None:
    model = Model(plain.model, 0)
    rows = [Row(p, who) for who, p in zip(("ann", "bob", None, "cy", "di"), (*PROMPTS, *PROMPTS))]
    d = Decoding(model)
    d.begin(rows[:2])
    seen = {id(r): list(r.prompt) for r in rows}
    for k in range(6):
        if k == 2:
            d.begin(rows[2:])  # they join what runs
            d.sort()
        if k == 4:
            d.leave([rows[1]])
        for i, r in enumerate(d.rows):
            r.next = 5 + (3 * k + i) % 20
            seen[id(r)].append(r.next)
        scores = d.step()
        for row, own in zip(d.rows, scores):
            with unipelt.using(plain.model, row.adapter), torch.no_grad():
                whole = plain.model(input_ids=torch.tensor([seen[id(row)]])).logits[0, -1]
            assert (own - whole).abs().max() < 1e-6 * whole.abs().max() + 1e-6
    assert len(d.rows) == 4


#: Rows before a text and behind its first token, some of which move its positions, some not: a method, how many, and where.
INSERTED: dict[str, tuple[str, int, str]] = {
    "two": ("prompt_tuning", 2, "embed"), "six": ("prompt_tuning", 6, "embed.words"), "four": ("p_tuning_prepended", 4, "embed.words"),
    "three": ("prompt_tuning_after_cls", 3, "embed"),
}  # fmt: skip


def built(kind: str) -> nn.Module:
    """A decoder whose positions are turned (llama), looked up (gpt2) or counted by the mask (opt)."""
    import transformers as hf

    if kind in ("llama", "gpt2"):
        return small.model(kind, dtype=torch.float64).eval()
    torch.manual_seed(0)
    config = hf.OPTConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, ffn_dim=48, vocab_size=80, word_embed_proj_dim=32, max_position_embeddings=64)  # fmt: skip
    return hf.OPTForCausalLM(config).double().eval()


def prompted(kind: str) -> nn.Module:
    m = built(kind)
    for i, (name, (method, k, at)) in enumerate(INSERTED.items()):
        at = "embed.words" if kind == "opt" else at  # where rows stand still, it has no positions to be told
        unipelt.apply(
            m, unipelt.load(named(method), arguments={"l": k, "at": at}), name=name, seed=i, allow_future=True
        )
    unipelt.apply(m, unipelt.load(named("lora"), arguments={"r": 2}), name="lora")
    for i, name in enumerate(unipelt.adapters(m)):
        small.randomise(m, name, i)
    return m.eval()


@pytest.mark.parametrize("kind", ["llama", "gpt2", "opt"])
def test_rows_of_adapters_come_and_go_with_their_texts(kind: str) -> None:
    m, chance = prompted(kind), random.Random(kind)
    d, seen, widest, mixed = Decoding(Model(m, 0)), {}, 0, 0
    for _ in range(80):
        if len(d.rows) < 2 or chance.random() < 0.25:
            rows = []
            for who in chance.choices([None, "lora", *INSERTED], k=chance.randint(1, 3)):
                k = INSERTED[who][1] if who in INSERTED else 0
                rows.append(Row([chance.randint(3, 19) for _ in range(chance.randint(1, 6))], who, inserted=k))
                seen[id(rows[-1])] = (rows[-1], list(rows[-1].prompt))
            scores = d.begin(rows)
        else:
            if len(d.rows) > 1 and chance.random() < 0.3:
                d.leave(chance.sample(d.rows, chance.randint(1, len(d.rows) - 1)))
            d.sort()
            for r in d.rows:
                r.next = chance.randint(3, 19)
                seen[id(r)][1].append(r.next)
            rows, scores = d.rows, d.step()
        assert d.joins
        for row, found in zip(rows, scores):
            with unipelt.using(m, row.adapter), torch.no_grad():
                whole = m(input_ids=torch.tensor([seen[id(row)][1]])).logits[0, -1].float()
            assert (found - whole).abs().max() < 1e-6 * whole.abs().max() + 1e-6
        needed = max(len(seen[id(r)][1]) for r in d.rows) + max(r.inserted for r in d.rows)
        assert d._cache.get_seq_length() <= needed, "columns that nobody needs are gone"
        widest, mixed = max(widest, needed), max(mixed, len({r.adapter for r in d.rows}))
    assert widest > 15 and mixed > 3


@pytest.mark.parametrize("kind", ["llama", "gpt2", "opt"])
def test_the_trial_lets_rows_share_and_join(kind: str) -> None:
    model = Model(prompted(kind), 0)
    for name, (_, k, _) in INSERTED.items():
        assert tried(model, name, 80, k) == Ways(True, True, True, True, k)


def test_the_trial_notices_rows_that_are_not_made_room_for(plain: Plain, monkeypatch: pytest.MonkeyPatch) -> None:
    """Columns that stay or go with the wrong text, and a mask that knows nothing of them."""
    true = decoding._inserted
    model, words = Model(plain.model, 0), plain.model.config.vocab_size
    assert tried(model, "eve", words, 3).joins
    for wrong in (lambda rows: 0, lambda rows: min(r.inserted for r in rows), lambda rows: true(rows) + 1):
        with monkeypatch.context() as patch:
            patch.setattr(decoding, "_inserted", wrong)
            assert not tried(model, "eve", words, 3).joins
