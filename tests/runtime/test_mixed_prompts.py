"""Mixed batches whose examples get longer by different numbers of rows, or have heads of different labels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import small
import torch
from names import name as named
from one_by_one import alone, outputs
from small import randomise
from torch import nn

import unipelt
from unipelt.language.report.diagnostics import PeltError

ROWS = {"two": ("prompt_tuning", 2), "five": ("prompt_tuning", 5), "after": ("prompt_tuning_after_cls", 3)}


def load(name: str, **arguments: Any) -> unipelt.Method:
    return unipelt.load(named(name), arguments=arguments)


def build(kind: str) -> nn.Module:
    import transformers as hf

    sizes = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 48,
        "vocab_size": 80,
    }
    torch.manual_seed(0)
    m: Any
    if kind == "opt":
        m = hf.OPTForCausalLM(hf.OPTConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, ffn_dim=48, vocab_size=80, word_embed_proj_dim=32, max_position_embeddings=64))  # fmt: skip
    elif kind == "t5":
        m = hf.T5ForConditionalGeneration(hf.T5Config(vocab_size=80, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, decoder_start_token_id=0, pad_token_id=0, eos_token_id=1))  # fmt: skip
    elif kind == "roberta":
        m = hf.RobertaModel(hf.RobertaConfig(**sizes, max_position_embeddings=64, pad_token_id=1))
    elif kind == "mistral":  # a window
        m = hf.MistralForCausalLM(hf.MistralConfig(**sizes, num_key_value_heads=2, sliding_window=4))
    elif kind == "gpt2_labels":  # pools the last token
        m = hf.GPT2ForSequenceClassification(hf.GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=80, pad_token_id=0, num_labels=3))  # fmt: skip
    else:
        return small.model(kind, dtype=torch.float64)
    for p in m.parameters():
        p.data.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(1)) * 0.1)
    return m.double().eval()


def with_rows(kind: str) -> tuple[nn.Module, list[str | None]]:
    m = build(kind)
    at = {"at": "embed.words"} if kind == "opt" else {}
    for i, (n, (method, count)) in enumerate(ROWS.items()):
        unipelt.apply(m, load(method, l=count, **at), name=n, seed=i, allow_future=True)
        randomise(m, n, seed=i)
    others = {"mamba": (), "opt": ("lora",)}.get(
        kind, ("lora", "unipelt_apl_causal")
    )  # OPT flattens batch and tokens before its maps
    for i, n in enumerate(others):
        unipelt.apply(m, load(n, r=2) if n == "lora" else load(n), name=n, seed=i, allow_future=True)
        randomise(m, n, seed=i)
    return m, [
        n if n in unipelt.adapters(m) else None
        for n in ("five", None, "lora", "two", "after", "five", "unipelt_apl_causal")
    ]


def batch(m: nn.Module, n: int, padded: bool) -> dict[str, torch.Tensor]:
    kind = m.config.model_type
    ids = torch.randint(3, 20, (n, 6), generator=torch.Generator().manual_seed(n))
    mask = torch.ones_like(ids)
    mask[::3, 4:] = 0
    mask = mask if kind in ("bert", "roberta", "t5") else mask.flip(1)
    ids = ids.masked_fill(mask == 0, 1 if kind == "roberta" else 0) if padded else ids
    more = {"decoder_input_ids": ids[:, :4]} if kind == "t5" else {}
    return {"input_ids": ids, **({"attention_mask": mask} if padded else {}), **more}


@pytest.mark.parametrize("kind", ["bert", "roberta", "llama", "gpt2", "mistral", "opt", "t5", "mamba", "gpt2_labels"])
@pytest.mark.parametrize("padded", [True, False])
def test_prompts_of_different_lengths_share_a_batch(kind: str, padded: bool) -> None:
    m, who = with_rows(kind)
    x = batch(m, len(who), padded or kind == "gpt2_labels")
    expected = alone(m, who, x)
    with torch.no_grad(), unipelt.using(m, who):
        out = m(**x)
    found = out[0]
    assert found.shape == expected.shape
    real = x.get("attention_mask", torch.ones_like(x["input_ids"])).bool() if found.shape[1] == 6 else ...
    torch.testing.assert_close(found[real], expected[real], rtol=1e-6, atol=1e-6)
    assert len({tuple(row.flatten()[-4:].tolist()) for row in expected}) >= len(set(who)) - 1, "the adapters differ"
    if kind == "bert":  # what is pooled at the first place
        pooled = torch.cat([o.pooler_output for o in outputs(m, who, x)])
        torch.testing.assert_close(out.pooler_output, pooled, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "opt", "t5", "mamba"])
@pytest.mark.parametrize("beams, padded", [(1, True), (2, False)])
def test_generation_goes_on_behind_rows_of_different_number(kind: str, beams: int, padded: bool) -> None:
    m, who = with_rows(kind)
    x = {n: t for n, t in batch(m, len(who), padded).items() if not n.startswith("decoder")}
    options = {"max_new_tokens": 4, "do_sample": False, "num_beams": beams, "pad_token_id": 0, "eos_token_id": None}
    expected = []
    for i, n in enumerate(who):
        with unipelt.using(m, n):
            expected.append(m.generate(**{k: t[i : i + 1] for k, t in x.items()}, **options))
    with unipelt.using(m, who):
        assert torch.equal(m.generate(**x, **options), torch.cat(expected))


def test_a_cache_without_a_mask_is_told_of_the_pads() -> None:
    m, who = with_rows("llama")
    x = batch(m, len(who), padded=False)["input_ids"]
    with torch.no_grad(), unipelt.using(m, who):
        whole = m(input_ids=x)[0]
        first = m(input_ids=x[:, :4], use_cache=True)
        cache = first.cache if hasattr(first, "cache") else first.past_key_values
        rest = m(input_ids=x[:, 4:], **small.with_cache(m, cache))[0]
    torch.testing.assert_close(torch.cat([first.logits, rest], 1), whole, rtol=1e-6, atol=1e-6)


def test_embeddings_in_the_place_of_ids() -> None:
    m = build("llama")
    for i, (n, count) in enumerate((("two", 2), ("five", 5))):
        unipelt.apply(m, load("prompt_tuning", l=count, at="embed.words"), name=n, seed=i)
        randomise(m, n, seed=i)
    who: list[str | None] = ["two", None, "five"]
    x = {"inputs_embeds": m.get_input_embeddings()(batch(m, 3, padded=False)["input_ids"]).detach()}
    with torch.no_grad(), unipelt.using(m, who):
        found = m(**x)[0]
    torch.testing.assert_close(found, alone(m, who, x), rtol=1e-6, atol=1e-6)


def test_a_bank_of_prompts_beside_others(tmp_path: Path) -> None:
    m, _ = with_rows("llama")
    twin = build("llama")
    bank = unipelt.bank(m, load("prompt_tuning", l=4), slots=2, folder=tmp_path)
    for i, n in enumerate(("ann", "bob", "eve")):
        unipelt.apply(twin, load("prompt_tuning", l=4), name=n)
        randomise(twin, n, seed=i + 20)
        bank.add(n, unipelt.state_dict(twin, n))
    x = batch(m, 4, padded=True)
    who: list[str | None] = ["eve", "two", None, "ann"]
    real = x["attention_mask"].bool()
    expected = torch.cat([alone(t, [n], {k: v[i : i + 1] for k, v in x.items()}) for i, (t, n) in enumerate(zip((twin, m, m, twin), who))])  # fmt: skip
    with torch.no_grad(), unipelt.using(m, who):
        torch.testing.assert_close(m(**x)[0][real], expected[real], rtol=1e-6, atol=1e-6)


def test_a_model_that_takes_no_positions_is_not_given_pads_in_front() -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    class Plain(GPT2LMHeadModel):
        def forward(self, input_ids=None, attention_mask=None, inputs_embeds=None):  # type: ignore[no-untyped-def, override]
            return super().forward(input_ids=input_ids, attention_mask=attention_mask, inputs_embeds=inputs_embeds)

    m = Plain(GPT2Config(n_embd=32, n_layer=1, n_head=2, vocab_size=80)).eval()
    for n, count in (("two", 2), ("five", 5)):
        unipelt.apply(m, load("prompt_tuning", l=count, at="embed.words"), name=n)
    ids = torch.randint(3, 20, (2, 4))
    with pytest.raises(PeltError, match="E0853"), unipelt.using(m, ["two", "five"]):
        m(input_ids=ids)
    with torch.no_grad(), unipelt.using(m, ["two", "two"]):
        assert m(input_ids=ids)[0].isfinite().all()


def test_rows_among_the_parts_of_a_picture_are_refused() -> None:
    m = small.model("vit")
    unipelt.apply(m, load("vpt_shallow", l=2), name="rows")
    with pytest.raises(PeltError, match=r"E0853.*parts of a picture"), unipelt.using(m, ["rows", None]):
        pass


# ---------------------------------------------------------------- heads


def with_heads(kind: str) -> nn.Module:
    m = build(kind)
    for i, (n, labels) in enumerate({"seven": 7, "two": ["no", "yes"], "base": None}.items()):
        unipelt.apply(m, load("lora", r=2), name=n, seed=i, labels=labels, **({"head": True} if labels is None else {}))
        randomise(m, n, seed=i)
    unipelt.apply(m, load("prompt_tuning", l=3), name="row", labels=5)
    randomise(m, "row", seed=9)
    return m


@pytest.mark.parametrize("kind", ["bert_labels", "gpt2_labels"])
def test_heads_of_different_labels_share_a_batch(kind: str) -> None:
    m = with_heads(kind)
    who: list[str | None] = ["two", None, "seven", "row", "base"]
    x = batch(m, len(who), padded=True)
    expected = [o.logits[0] for o in outputs(m, who, x)]
    assert [len(row) for row in expected] == [2, 3, 7, 5, 3]
    with torch.no_grad(), unipelt.using(m, who):
        found = m(**x).logits
        assert found.shape == (5, 7) and m.config.num_labels == 3
        with pytest.raises(PeltError, match=r"E0853.*different labels"):
            m(**x, labels=torch.zeros(5, dtype=torch.long))
    for row, own in zip(found, expected):
        torch.testing.assert_close(row[: len(own)], own, rtol=1e-6, atol=1e-6)
        assert (row[len(own) :] == -torch.inf).all() and row.argmax() == own.argmax()
        torch.testing.assert_close(row.softmax(0)[: len(own)], own.softmax(0), rtol=1e-6, atol=1e-6)


def test_examples_of_one_head_have_its_labels_and_its_loss() -> None:
    m = with_heads("bert_labels")
    x, labels = batch(m, 2, padded=True), torch.tensor([6, 2])
    with torch.no_grad():
        with unipelt.using(m, "seven"):
            one = m(**x, labels=labels)
        with unipelt.using(m, ["seven", "seven"]):
            found = m(**x, labels=labels)
            assert m.config.num_labels == 7 == len(unipelt.labels(m))  # type: ignore[arg-type]
    torch.testing.assert_close(found.loss, one.loss)
    torch.testing.assert_close(found.logits, one.logits)


def test_a_bank_with_heads(tmp_path: Path) -> None:
    m, twin = with_heads("bert_labels"), build("bert_labels")
    bank = unipelt.bank(m, load("lora", r=2), slots=2, labels=["a", "b", "c", "d"])
    for i, n in enumerate(("ann", "bob")):
        unipelt.apply(twin, load("lora", r=2), name=n, labels=["a", "b", "c", "d"])
        randomise(twin, n, seed=i + 20)
        unipelt.save(twin, tmp_path / n, n)
        bank.add(n, tmp_path / n)
    unipelt.apply(twin, load("lora", r=2), name="other", labels=["a", "b", "c", "e"])
    unipelt.save(twin, tmp_path / "other", "other")
    with pytest.raises(PeltError, match=r"E0856.*labels"):
        bank.add("other", tmp_path / "other")
    who: list[str | None] = ["bob", "two", None, "ann"]
    x = batch(m, 4, padded=True)
    expected = [outputs(t, [n], {k: v[i : i + 1] for k, v in x.items()})[0].logits[0] for i, (t, n) in enumerate(zip((twin, m, m, twin), who))]  # fmt: skip
    assert unipelt.labels(m, "ann") == unipelt.labels(twin, "ann")
    with torch.no_grad(), unipelt.using(m, who):
        found = m(**x).logits
    for row, own in zip(found, expected):
        torch.testing.assert_close(row[: len(own)], own, rtol=1e-6, atol=1e-6)
