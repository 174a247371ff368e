"""A merged model as a plain folder: it loads without the library, with the same logits, its head and its labels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from names import name
from transformers import (
    AutoModelForSequenceClassification, AutoModelForTokenClassification, BartConfig, BartForConditionalGeneration,
    BartForSequenceClassification, BertConfig, BertForMaskedLM, BertForQuestionAnswering, BertForSequenceClassification,
    BertForTokenClassification, GPT2Config, GPT2ForSequenceClassification, GPT2LMHeadModel, LlamaConfig,
    LlamaForCausalLM, LlamaForTokenClassification, RobertaConfig, RobertaForSequenceClassification, T5Config,
    T5ForConditionalGeneration, T5ForSequenceClassification,
)  # fmt: skip

import unipelt
from unipelt import PeltError

WIDTH, WORDS = 32, 60
_BERT: dict[str, Any] = dict(
    hidden_size=WIDTH, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48, vocab_size=WORDS,
    max_position_embeddings=40, pad_token_id=0, initializer_range=0.2,
)  # fmt: skip
_GPT2: dict[str, Any] = dict(
    n_embd=WIDTH, n_layer=2, n_head=4, vocab_size=WORDS, n_positions=40, pad_token_id=0, initializer_range=0.2,
    bos_token_id=1, eos_token_id=1,
)  # fmt: skip
_T5: dict[str, Any] = dict(
    d_model=WIDTH, d_kv=8, d_ff=48, num_layers=2, num_heads=4, vocab_size=WORDS, pad_token_id=0, eos_token_id=1,
    decoder_start_token_id=0,
)  # fmt: skip
_BART: dict[str, Any] = dict(
    d_model=WIDTH, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4, decoder_attention_heads=4,
    encoder_ffn_dim=48, decoder_ffn_dim=48, vocab_size=WORDS, pad_token_id=0, eos_token_id=1, bos_token_id=2,
    decoder_start_token_id=1, forced_eos_token_id=1, init_std=0.2, max_position_embeddings=40,
)  # fmt: skip
WORDED: dict[str, tuple[Any, Any, dict]] = {
    "bert_words": (BertForMaskedLM, BertConfig, _BERT),
    "bert_answers": (BertForQuestionAnswering, BertConfig, _BERT),
    "gpt2_words": (GPT2LMHeadModel, GPT2Config, _GPT2),
    "llama_words": (LlamaForCausalLM, LlamaConfig, {**_BERT, "num_key_value_heads": 2}),
    "llama_tied": (LlamaForCausalLM, LlamaConfig, {**_BERT, "num_key_value_heads": 2, "tie_word_embeddings": True}),
    "t5_words": (T5ForConditionalGeneration, T5Config, _T5),
    "t5_untied": (T5ForConditionalGeneration, T5Config, {**_T5, "tie_word_embeddings": False}),
    "bart_words": (BartForConditionalGeneration, BartConfig, _BART),
}
LABELLED: dict[str, tuple[Any, Any, dict]] = {
    "bert": (BertForSequenceClassification, BertConfig, {**_BERT, "num_labels": 3}),
    "roberta": (RobertaForSequenceClassification, RobertaConfig, {**_BERT, "num_labels": 3, "pad_token_id": 1}),
    "gpt2": (GPT2ForSequenceClassification, GPT2Config, {**_GPT2, "num_labels": 3}),
    "t5": (T5ForSequenceClassification, T5Config, {**_T5, "num_labels": 3}),
    "bart": (BartForSequenceClassification, BartConfig, {**_BART, "num_labels": 3}),
    "bert_tokens": (BertForTokenClassification, BertConfig, {**_BERT, "num_labels": 3}),
    "llama_tokens": (LlamaForTokenClassification, LlamaConfig, {**_BERT, "num_key_value_heads": 2, "num_labels": 3}),
}
KINDS = {**WORDED, **LABELLED}


def build(kind: str) -> Any:
    cls, config, options = KINDS[kind]
    torch.manual_seed(0)
    return cls(config(**options)).eval()


def output(m: Any) -> torch.Tensor:
    ids = torch.randint(3, WORDS, (3, 7), generator=torch.Generator().manual_seed(0))
    ids[:, 4] = 1  # encoder–decoders pool where the text ends
    mask = torch.ones_like(ids)
    given = (
        {"decoder_input_ids": ids[:, :3]}
        if isinstance(m, (T5ForConditionalGeneration, BartForConditionalGeneration))
        else {}
    )
    with torch.no_grad():
        found = m(input_ids=ids, attention_mask=mask, **given)
    return (found.logits if "logits" in found else found.start_logits).clone()


def put(m: Any, spec: str, **options: Any) -> None:
    unipelt.apply(m, unipelt.load(name(spec)), "a", **options)
    g = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for t in unipelt.state_dict(m, "a").values():
            t.add_(torch.randn(t.shape, generator=g) * 0.1)


def trace(m: Any) -> tuple:
    parameters = [(n, id(p), p.requires_grad, p.detach().double().sum().item()) for n, p in m.named_parameters()]
    return id(m.config), repr(m.config), unipelt.active(m), repr(m), parameters


@pytest.mark.parametrize("spec", ["lora", "ia3", "full"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_folder_is_a_plain_model_with_the_same_logits(kind: str, spec: str, tmp_path: Path) -> None:
    m = build(kind)
    base = output(m)
    put(m, spec)
    wanted, before = output(m), trace(m)
    assert (wanted - base).abs().max() > 0.05
    folder = unipelt.save_merged(m, tmp_path / "plain", "a")
    assert trace(m) == before and torch.equal(output(m), wanted), "the model itself is as before"
    again, info = type(m).from_pretrained(folder, output_loading_info=True)
    assert not any(info.values()), info
    assert torch.allclose(output(again.eval()), wanted, atol=2e-5)
    assert again.config.tie_word_embeddings == m.config.tie_word_embeddings
    assert all(b"unipelt" not in f.read_bytes() for f in folder.iterdir())
    assert sorted(f.name for f in tmp_path.iterdir()) == ["plain"]


@pytest.mark.parametrize("kind", LABELLED)
def test_a_head_with_other_labels_comes_along(kind: str, tmp_path: Path) -> None:
    m = build(kind)
    base = output(m)
    names = ["a", "b", "c", "d", "e"]
    kind_of = "single_label_classification" if "tokens" in kind else "multi_label_classification"
    put(m, "lora", labels=names, problem_type=kind_of)
    wanted, before = output(m), trace(m)
    folder = unipelt.save_merged(m, tmp_path / "plain", "a")
    assert trace(m) == before and torch.equal(output(m), wanted)
    auto = AutoModelForTokenClassification if "tokens" in kind else AutoModelForSequenceClassification
    again, info = auto.from_pretrained(folder, output_loading_info=True)
    assert type(again) is type(m) and not any(info.values()), info
    assert again.config.id2label == dict(enumerate(names)) and again.config.problem_type == kind_of
    assert again.config.label2id == {n: i for i, n in enumerate(names)} and again.config.num_labels == 5
    assert output(again.eval()).shape[-1] == 5 and torch.allclose(output(again), wanted, atol=2e-5)
    with unipelt.disabled(m):
        assert torch.equal(output(m), base)


def test_merged_in_memory_and_back() -> None:
    m = build("roberta")
    base, untouched = output(m), trace(m)[4]
    put(m, "lora", labels=["a", "b", "c", "d"])
    wanted, before = output(m), trace(m)
    labels = torch.tensor([0, 3, 1])
    ids = torch.randint(3, WORDS, (3, 7), generator=torch.Generator().manual_seed(0))
    loss = m(input_ids=ids, labels=labels).loss
    unipelt.merge(m, "a")
    assert torch.allclose(output(m), wanted, atol=2e-5) and m.classifier.out_proj.out_features == 4
    assert m.config.num_labels == 4 and m.config.to_dict()["label2id"] == {"a": 0, "b": 1, "c": 2, "d": 3}
    assert torch.allclose(m(input_ids=ids, labels=labels).loss, loss, atol=2e-5)
    with unipelt.disabled(m):
        assert output(m).shape == wanted.shape and m.config.num_labels == 4, "it is the base now"
    unipelt.unmerge(m)
    assert trace(m) == before and torch.equal(output(m), wanted)
    unipelt.remove(m, "a")
    assert trace(m)[4] == untouched and torch.equal(output(m), base)


def test_another_adapter_is_removed_meanwhile() -> None:
    m = build("bert")
    unipelt.apply(m, unipelt.load(name("lora")), "other", labels=2)
    put(m, "lora", labels=4)
    wanted = output(m)
    unipelt.merge(m, "a")
    unipelt.remove(m, "other")
    assert m.config.num_labels == 4 and torch.allclose(output(m), wanted, atol=2e-5)
    unipelt.unmerge(m)
    assert torch.equal(output(m), wanted)


def test_what_cannot_be_merged_leaves_no_folder(tmp_path: Path) -> None:
    m = build("bert")
    put(m, "lora+mean_head", labels=4)
    wanted, before = output(m), trace(m)
    with pytest.raises(PeltError, match="E0563"):
        unipelt.save_merged(m, tmp_path / "plain", "a")
    assert trace(m) == before and torch.equal(output(m), wanted) and not list(tmp_path.iterdir())
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("mine")
    with pytest.raises(PeltError, match="E0611"):
        unipelt.save_merged(m, tmp_path / "full", "a")
    with pytest.raises(PeltError, match="E0551"):
        unipelt.save_merged(m, tmp_path / "plain", "b")
    assert (tmp_path / "full" / "file").read_text() == "mine" and len(list(tmp_path.iterdir())) == 1


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    m = build("bert")
    put(m, "lora", labels=4)
    wanted, before = output(m), trace(m)
    (tmp_path / "file").write_text("")
    with pytest.raises(PeltError, match="E0750"):
        unipelt.save_merged(m, tmp_path / "file" / "plain", "a")
    assert trace(m) == before and torch.equal(output(m), wanted)


def test_a_weight_that_is_tied_to_another_is_not_merged() -> None:
    m = build("bert_words")
    first, second = (layer.attention.self for layer in m.bert.encoder.layer)
    second.query.weight = first.query.weight
    put(m, "lora")
    wanted = output(m)
    with pytest.raises(PeltError, match="E0749"):
        unipelt.merge(m, "a")
    assert torch.equal(output(m), wanted)


def test_a_merged_model_saves_its_adapters_as_before(tmp_path: Path) -> None:
    """The fingerprint of the base does not see what was merged into it, nor the head of a model that is its own base."""
    m = build("t5")
    put(m, "lora", labels=5)
    wanted = output(m)
    unipelt.merge(m, "a")
    folder = unipelt.save(m, tmp_path / "a", "a")
    unipelt.unmerge(m)
    unipelt.remove(m, "a")
    unipelt.attach(m, folder)
    assert torch.equal(output(m), wanted)
    torch.manual_seed(0)
    other = T5ForSequenceClassification(T5Config(**{**_T5, "num_labels": 2})).eval()
    other.load_state_dict({n: t for n, t in build("t5").state_dict().items() if "out_proj" not in n}, strict=False)
    unipelt.attach(other, folder)
    assert torch.equal(output(other), wanted)
