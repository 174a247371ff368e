"""Tiny models, a tokenizer and data sets, built on the spot: what the tests of training and of the command line share."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

WORDS = {
    "refund": ["money", "refund", "return", "charge"],
    "arrival": ["when", "arrive", "late", "parcel"],
    "closing": ["close", "leave", "delete", "account"],
}
FILLERS = ["please", "i", "my", "the", "to", "want", "it", "can", "you", "a"]

#: A method written here, so that no test depends on what the library calls its own.
SPEC = """
method small(r: int = 4, rate: float = 0.0) {
  \"\"\"A low-rank edit of two projections.\"\"\"
  modify attn.q, attn.v   insert parallel
  form {
    A: [d_in, r]  ~ normal(0.1)
    B: [r, d_out] ~ zeros
    delta = drop(z, rate) @ A @ B
  }
  compose add
}

method bent(r: int = 4) {
  \"\"\"A bottleneck with a bend, which no weight can absorb.\"\"\"
  modify ffn   insert parallel
  form {
    down: [d_in, r]  ~ normal(0.1)
    up:   [r, d_out] ~ zeros
    delta = relu(z @ down) @ up
  }
  compose add
}

method pooling(r: int = 4) {
  \"\"\"Its gate pools over the whole sequence.\"\"\"
  modify attn.q   insert parallel
  form {
    A: [d_in, r]  ~ normal(0.1)
    B: [r, d_out] ~ normal(0.1)
    w: [d_in]     ~ zeros
    delta = z @ A @ B * mean(sigmoid(z @ w), positions)
  }
  compose add
}
"""


def write_spec(folder: Path) -> str:
    path = folder / "mine.pelt"
    path.write_text(SPEC)
    return str(path)


def sentence(label: str, rng: random.Random) -> str:
    words = rng.sample(WORDS[label], 2) + rng.choices(FILLERS, k=rng.randint(1, 5))
    rng.shuffle(words)
    return " ".join(words)


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return path


def write_intents(folder: Path, train: int = 90, validation: int = 18, test: int = 18) -> Path:
    """Three classes told apart by their words."""
    rng = random.Random(7)
    for name, size in (("train", train), ("validation", validation), ("test", test)):
        labels = [list(WORDS)[i % 3] for i in range(size)]
        write_rows(folder / f"{name}.jsonl", [{"text": sentence(x, rng), "label": x} for x in labels])
    return folder


def write_completions(folder: Path, train: int = 60) -> Path:
    """Prompts whose completion is their class."""
    rng = random.Random(3)
    for name, size in (("train", train), ("validation", 9)):
        labels = [list(WORDS)[i % 3] for i in range(size)]
        write_rows(folder / f"{name}.jsonl", [{"prompt": sentence(x, rng), "completion": x} for x in labels])
    return folder


def write_tokenizer(folder: Path, more: tuple[str, ...] = (), **special: str) -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *FILLERS, *(w for ws in WORDS.values() for w in ws), *WORDS, *more]
    vocabulary = {w: i for i, w in enumerate(dict.fromkeys(words))}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]",
        bos_token="[CLS]", eos_token="[SEP]", model_max_length=64, **special,
    )  # fmt: skip
    tokenizer.save_pretrained(folder)
    return tokenizer


def write_bert(folder: Path) -> str:
    import torch
    from transformers import BertConfig, BertModel

    tokenizer = write_tokenizer(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
        max_position_embeddings=64, initializer_range=0.1,
    )  # fmt: skip
    BertModel(config).save_pretrained(folder)
    return str(folder)


def write_gpt2(folder: Path) -> str:
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    tokenizer = write_tokenizer(folder)
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=len(tokenizer), n_embd=32, n_layer=2, n_head=4, n_positions=64, bos_token_id=2, eos_token_id=3,
        pad_token_id=0, initializer_range=0.2,
    )  # fmt: skip
    GPT2LMHeadModel(config).save_pretrained(folder)
    return str(folder)


def write_llama(folder: Path, positions: int = 64, **special: str) -> str:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = write_tokenizer(folder, **special)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=positions, bos_token_id=2, eos_token_id=3, pad_token_id=0, initializer_range=0.2,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    return str(folder)
