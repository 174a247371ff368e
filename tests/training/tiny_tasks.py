"""Tiny models and data sets for the kinds of tasks; what they say is about the words of `tiny_hf`."""

from __future__ import annotations

import random
from pathlib import Path

from tiny_hf import FILLERS, WORDS, sentence, write_rows, write_tokenizer

CHAT = (
    "{% for m in messages %}{{ m['role'] }} : {{ m['content'] }} [SEP] {% endfor %}"
    "{% if add_generation_prompt %}assistant : {% endif %}"
)
MORE = ("[MASK]", "user", "assistant", "system", ":", "type", ".", "is", "no")
CLASSES = list(WORDS)
FULL = """
method everything {
  \"\"\"Every weight of the base: tiny random models have nothing that could be adapted.\"\"\"
  train *
}
"""


def splits(folder: Path, make, train: int = 90, others: int = 18) -> str:
    """Rows from `make(class, rng)` for each split."""
    rng = random.Random(5)
    for name, size in (("train", train), ("validation", others), ("test", others)):
        write_rows(folder / f"{name}.jsonl", [make(CLASSES[i % 3], rng) for i in range(size)])
    return str(folder)


def tagged(label: str, rng: random.Random) -> dict:
    """One or two words of a class stand together among fillers: an entity of that type."""
    entity = rng.sample(WORDS[label], rng.randint(1, 2))
    before, after = rng.choices(FILLERS, k=rng.randint(0, 3)), rng.choices(FILLERS, k=rng.randint(1, 3))
    tags = ["O"] * len(before) + [f"B-{label}"] + [f"I-{label}"] * (len(entity) - 1) + ["O"] * len(after)
    return {"tokens": [*before, *entity, *after], "ner_tags": tags}


def asked(label: str, rng: random.Random) -> dict:
    """The question names a class, and the context has one word of each."""
    words = [rng.choice(WORDS[c]) for c in CLASSES]
    rng.shuffle(words)
    text = " ".join(w for x in words for w in (x, *rng.choices(FILLERS, k=2)))
    answer = next(w for w in words if w in WORDS[label])
    return {"question": label, "context": text, "answers": {"text": [answer], "answer_start": [text.index(answer)]}}


def talked(label: str, rng: random.Random) -> dict:
    other = rng.choice(CLASSES)
    return {"messages": [
        {"role": "user", "content": sentence(other, rng)}, {"role": "assistant", "content": other},
        {"role": "user", "content": sentence(label, rng)}, {"role": "assistant", "content": label},
    ]}  # fmt: skip


def completed(label: str, rng: random.Random) -> dict:
    return {"source": sentence(label, rng), "target": f"{label} please"}


def classified(label: str, rng: random.Random) -> dict:
    return {"text": sentence(label, rng), "label": CLASSES.index(label)}


def several(label: str, rng: random.Random) -> dict:
    other = rng.choice(CLASSES)
    return {"text": f"{sentence(label, rng)} {sentence(other, rng)}", "labels": sorted({label, other})}


def measured(label: str, rng: random.Random) -> dict:
    """The share of words that are of no class."""
    text = sentence(label, rng)
    return {"text": text, "label": sum(w in FILLERS for w in text.split()) / 2 - 0.5}


# ---------------------------------------------------------------- models


def write_masked(folder: Path, spread: float = 0.1) -> str:
    """`spread` of its random weights: the larger, the more a frozen body makes of what it reads."""
    import torch
    from transformers import BertConfig, BertForMaskedLM

    tokenizer = write_tokenizer(folder, MORE, mask_token="[MASK]")
    torch.manual_seed(0)
    BertForMaskedLM(BertConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
        max_position_embeddings=64, initializer_range=spread,
    )).save_pretrained(folder)  # fmt: skip
    return str(folder)


def write_chatty(folder: Path, family: str = "llama") -> str:
    """A language model whose tokenizer has a chat template."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

    tokenizer = write_tokenizer(folder, MORE)
    tokenizer.chat_template = CHAT
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    more = {"bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 0, "initializer_range": 0.2}
    if family == "gpt2":
        model = GPT2LMHeadModel(GPT2Config(
            vocab_size=len(tokenizer), n_embd=32, n_layer=2, n_head=4, n_positions=64, **more,
        ))  # fmt: skip
    else:
        model = LlamaForCausalLM(LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=64, **more,
        ))  # fmt: skip
    model.save_pretrained(folder)
    return str(folder)


def write_t5(folder: Path) -> str:
    import torch
    from transformers import T5Config, T5ForConditionalGeneration

    tokenizer = write_tokenizer(folder, MORE)
    torch.manual_seed(0)
    T5ForConditionalGeneration(T5Config(
        vocab_size=len(tokenizer), d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, decoder_start_token_id=0,
        eos_token_id=3, pad_token_id=0, dropout_rate=0.0, n_positions=512,  # which the published ones say
    )).save_pretrained(folder)  # fmt: skip
    return str(folder)


def write_byte_level(folder: Path) -> str:
    """A tokenizer that takes the blank in front of a word as a part of the word, as GPT-2's and RoBERTa's do."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    texts = [" ".join([*FILLERS, *WORDS, *(w for ws in WORDS.values() for w in ws)])] * 3
    special = ["<pad>", "<s>", "</s>", "<mask>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    inner.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=500, special_tokens=special, initial_alphabet=alphabet)
    )
    PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", bos_token="<s>", eos_token="</s>", mask_token="<mask>"
    ).save_pretrained(folder)
    return str(folder)
