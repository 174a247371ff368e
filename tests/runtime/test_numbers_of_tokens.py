"""Tensors that are read by the ids of the tokens and by their positions: with pads, with a cache, beside a prompt."""

from __future__ import annotations

import pytest
import torch
from names import spec
from small import cache_of, model, output, randomise, with_cache

import unipelt

IDS = torch.tensor([[5, 6, 7, 8, 9, 7, 8], [7, 8, 20, 21, 22, 0, 0], [30, 31, 7, 0, 0, 0, 0]])
MASK = (IDS != 0).long()
LEFT = tuple(torch.stack([r.roll(int((r == 0).sum())) for r in t]) for t in (IDS, MASK))
BY_ID = "modify embed.words form { A: [vocab, 2] ~ normal(1.0) B: [2, d_out] ~ normal(1.0) delta = A[ids] @ B } compose h + delta"
BY_POSITION = "modify embed.words form { T: [9, d_out] ~ normal(1.0) delta = T[positions] } compose h + delta"
PROMPT = "modify embed.words form { P: [3, d_out] ~ normal(1.0) delta = P } compose prepend(delta, h)"


def applied(text: str, kind: str = "llama", **options) -> tuple[torch.nn.Module, dict[str, torch.Tensor]]:
    m = model(kind, dtype=torch.float64)
    unipelt.apply(m, unipelt.parse(spec(f"method m {{ {text} }}")), **options)
    randomise(m)
    return m, {n.split(".")[-1]: t for n, t in unipelt.state_dict(m).items()}


def by_hand(
    ids: torch.Tensor, mask: torch.Tensor, added: torch.Tensor, rows: torch.Tensor | None = None
) -> torch.Tensor:
    """The logits at the real tokens of a base that is given embeddings, one text after the other, without pads."""
    base = model("llama", dtype=torch.float64)
    found = []
    for own, on, more in zip(ids, mask, added):
        words = base.get_input_embeddings()(own[on == 1]) + more[on == 1]
        n = 0 if rows is None else len(rows)
        fed = words if rows is None else torch.cat([rows, words])
        with torch.no_grad():
            found.append(base(inputs_embeds=fed[None]).logits[0, n:])
    return torch.cat(found)


@pytest.mark.parametrize("lowering", [True, False])
@pytest.mark.parametrize("prompt", ["", "before", "behind"])
def test_ids_and_positions_are_those_of_the_text(prompt: str, lowering: bool) -> None:
    for text in (BY_ID, BY_POSITION):
        rows = [f"use {{ {PROMPT} }} as p"] if prompt else []
        own_row = [f"use {{ {text} }} as t"]
        m, own = applied(" ".join(rows + own_row if prompt == "before" else own_row + rows), lowering=lowering)
        for ids, mask in ((IDS, MASK), LEFT):
            number = (mask.cumsum(1) - 1).clamp(min=0)
            added = (own["A"] @ own["B"])[ids] if text is BY_ID else own["T"][number]
            given = {"input_ids": ids, "attention_mask": mask, "position_ids": number}
            found = output(m, **given)[mask == 1]
            torch.testing.assert_close(found, by_hand(ids, mask, added, own.get("P")), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("text", [BY_ID, BY_POSITION])
def test_steps_with_a_cache_are_one_pass(text: str) -> None:
    for front in ("", f"use {{ {PROMPT} }} as p"):
        m, _ = applied(f"{front} use {{ {text} }} as t")
        ids, mask = LEFT
        cache, parts, at = None, [], 0
        with torch.no_grad():
            whole = m(input_ids=ids, attention_mask=mask).logits
            for n in (5, 1, 1):
                o = m(
                    input_ids=ids[:, at : at + n],
                    attention_mask=mask[:, : at + n],
                    use_cache=True,
                    **with_cache(m, cache),
                )
                parts.append(o.logits)
                cache, at = cache_of(o), at + n
        torch.testing.assert_close(torch.cat(parts, 1)[mask == 1], whole[mask == 1], rtol=1e-9, atol=1e-9)


def test_what_is_not_there_is_said() -> None:
    m, _ = applied(BY_POSITION.replace("[9,", "[6,"))
    with pytest.raises(unipelt.PeltError) as e:
        m(input_ids=IDS)
    assert e.value.diagnostics[0].code == "E0797"
    m(input_ids=IDS[:, :6])
    for text in (BY_ID.replace("[vocab, 2]", "[d_out, 2]"), BY_ID.replace("embed.words", "ffn")):
        with pytest.raises(unipelt.PeltError):
            applied(text)


def test_encoders_have_their_own_text() -> None:
    from transformers import T5Config, T5ForConditionalGeneration

    torch.manual_seed(0)
    config = T5Config(d_model=16, d_ff=24, num_layers=2, num_heads=2, d_kv=8, vocab_size=40, decoder_start_token_id=0)
    m = T5ForConditionalGeneration(config).double().eval()
    base = output(m, input_ids=IDS, attention_mask=MASK, decoder_input_ids=IDS[:, :3])
    unipelt.apply(m, unipelt.parse(spec(f"method m {{ {BY_ID} }}")))
    own = {n.split(".")[-1]: t for n, t in randomise(m).items()}
    found = output(m, input_ids=IDS, attention_mask=MASK, decoder_input_ids=IDS[:, :3])
    with torch.no_grad(), unipelt.disabled(m):
        words = m.shared(IDS) + (own["A"] @ own["B"])[IDS]
        fed = m(inputs_embeds=words, attention_mask=MASK, decoder_input_ids=IDS[:, :3]).logits
    torch.testing.assert_close(found, fed, rtol=1e-9, atol=1e-9)
    assert not torch.allclose(found, base)
