"""Small models with heads that have labels, their inputs and targets, for the tests of adapters' own heads."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from names import name
from torch import nn
from transformers import (
    BertConfig, BertForSequenceClassification, BertForTokenClassification, ElectraConfig, ElectraForTokenClassification,
    GPT2Config, GPT2ForSequenceClassification, GPT2ForTokenClassification, LlamaConfig, LlamaForSequenceClassification,
    LlamaForTokenClassification, RobertaConfig, RobertaForSequenceClassification,
)  # fmt: skip

import unipelt
from unipelt import PeltError

WIDTH, WORDS = 32, 60
SIZES: dict[str, Any] = dict(
    hidden_size=WIDTH, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48, vocab_size=WORDS,
    max_position_embeddings=40, pad_token_id=0, initializer_range=0.2, num_labels=3,
)  # fmt: skip
STILL: dict[str, Any] = dict(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
GPT2: dict[str, Any] = dict(
    n_embd=WIDTH, n_layer=2, n_head=4, vocab_size=WORDS, n_positions=40, pad_token_id=0, initializer_range=0.2,
    resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=1, eos_token_id=1, num_labels=3,
)  # fmt: skip
SEQUENCE: dict[str, tuple[Any, Any, dict]] = {
    "bert": (BertForSequenceClassification, BertConfig, {**SIZES, **STILL}),
    "roberta": (RobertaForSequenceClassification, RobertaConfig, {**SIZES, **STILL, "pad_token_id": 1}),
    "gpt2": (GPT2ForSequenceClassification, GPT2Config, GPT2),
    "llama": (LlamaForSequenceClassification, LlamaConfig, {**SIZES, "num_key_value_heads": 2}),
}
TOKEN: dict[str, tuple[Any, Any, dict]] = {
    "bert_tokens": (BertForTokenClassification, BertConfig, {**SIZES, **STILL}),
    "electra_tokens": (ElectraForTokenClassification, ElectraConfig, {**SIZES, **STILL, "embedding_size": WIDTH}),
    "gpt2_tokens": (GPT2ForTokenClassification, GPT2Config, {**GPT2, "classifier_dropout": 0.0}),
    "llama_tokens": (
        LlamaForTokenClassification, LlamaConfig, {**SIZES, "num_key_value_heads": 2, "classifier_dropout": 0.0}
    ),
}  # fmt: skip
KINDS = {**SEQUENCE, **TOKEN}


def build(kind: str = "bert", **changes: Any) -> Any:
    cls, config, options = KINDS[kind]
    torch.manual_seed(0)
    return cls(config(**{**options, **changes})).eval()


def batch(rows: int = 3, seed: int = 0) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, WORDS, (rows, 7), generator=g)
    mask = torch.ones_like(ids)
    ids[1, 5:], mask[1, 5:] = 0, 0
    return {"input_ids": ids, "attention_mask": mask}


def targets(kind: str, n: int, rows: int = 3) -> torch.Tensor:
    g = torch.Generator().manual_seed(9)
    if kind in SEQUENCE:
        return torch.randint(0, n, (rows,), generator=g)
    found = torch.randint(0, n, (rows, 7), generator=g)
    found[0, 0] = -100
    return found


def logits(m: Any, **more: Any) -> torch.Tensor:
    with torch.no_grad():
        return m(**batch(), **more).logits.clone()


def lora(r: int = 4) -> Any:
    return unipelt.load(name("lora"))(r=r)


def refused(code: str, call: Any, *args: Any, **options: Any) -> str:
    with pytest.raises(PeltError) as caught:
        call(*args, **options)
    assert caught.value.diagnostics[0].code == code, str(caught.value)
    return str(caught.value)


def last_map(m: Any) -> nn.Linear:
    return [x for n, x in m.named_modules() if isinstance(x, nn.Linear) and "unipelt" not in n.split(".")][-1]
