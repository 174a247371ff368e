"""Tiny models and data sets for the kinds of tasks; what they say is about the words of `tiny_hf`."""

from __future__ import annotations

import io
import math
import random
import wave
from collections.abc import Sequence
from pathlib import Path

from tiny_hf import FILLERS, WORDS, sentence, write_rows, write_tokenizer

CHAT = (
    "{% for m in messages %}{{ m['role'] }} : {{ m['content'] }} [SEP] {% endfor %}"
    "{% if add_generation_prompt %}assistant : {% endif %}"
)
MORE = ("[MASK]", "user", "assistant", "system", ":", "type", ".", "is", "no")
CLASSES = list(WORDS)
ENDINGS = {"image": ".png", "audio": ".wav"}
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
        rows = [make(CLASSES[i % 3], rng) for i in range(size)]
        for i, row in enumerate(rows):  # bytes become files
            for column, value in row.items():
                if isinstance(value, bytes):
                    row[column] = f"{name}-{i}{ENDINGS[column]}"
                    folder.mkdir(parents=True, exist_ok=True)
                    (folder / row[column]).write_bytes(value)
        write_rows(folder / f"{name}.jsonl", rows)
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


def drawn(label: str, rng: random.Random) -> dict:
    """A grey picture of 16 × 16 with a bright bar: lying, standing, or from corner to corner."""
    from PIL import Image

    kind, at = CLASSES.index(label), rng.randrange(2, 14)
    picture = Image.new("L", (16, 16))
    for i in range(16):
        for j in range(16):
            inside = abs((i, j, i - j + at)[kind] - at) < 2
            picture.putpixel((j, i), (200 if inside else 20) + rng.randrange(40))
    out = io.BytesIO()
    picture.save(out, "PNG")
    return {"image": out.getvalue(), "label": label}


def described(label: str, rng: random.Random) -> dict:
    """The picture of a class, a prompt that says nothing of it, and the class."""
    return {"image": drawn(label, rng)["image"], "prompt": rng.choice(FILLERS), "completion": label}


def wav(values: Sequence[float], rate: int = 4000, width: int = 2, channels: int = 1) -> bytes:
    """Values between −1 and 1 as a WAV file; those of several channels take turns."""
    out = io.BytesIO()
    with wave.open(out, "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(width)
        file.setframerate(rate)
        whole = [min(round(v * 2 ** (8 * width - 1)), 2 ** (8 * width - 1) - 1) for v in values]
        file.writeframes(
            b"".join((w + 128 if width == 1 else w).to_bytes(width, "little", signed=width > 1) for w in whole)
        )
    return out.getvalue()


def sounded(label: str, rng: random.Random) -> dict:
    """A generated tone, low, middle or high, of 0.5 to 1 second with some noise."""
    pitch = (300, 700, 1300)[CLASSES.index(label)] * rng.uniform(0.9, 1.1)
    length = rng.randint(2000, 4000)
    values = [0.5 * math.sin(2 * math.pi * pitch * t / 4000) + rng.gauss(0, 0.05) for t in range(length)]
    return {"audio": wav(values), "label": label}


# ---------------------------------------------------------------- models


def write_vit(folder: Path, size: int = 16, channels: int = 3, processor: bool = True) -> str:
    import torch
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

    torch.manual_seed(0)
    ViTForImageClassification(ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, image_size=size, patch_size=4,
        num_channels=channels, initializer_range=0.1,
    )).save_pretrained(folder)  # fmt: skip
    if processor:
        half = [0.5] * channels
        ViTImageProcessor(size={"height": size, "width": size}, image_mean=half, image_std=half).save_pretrained(folder)
    return str(folder)


def write_llava(folder: Path) -> str:
    """A picture of 16 × 16 becomes 16 tokens of a Llama; its processor has no chat template."""
    import torch
    from transformers import CLIPImageProcessor, LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor

    tokenizer = write_tokenizer(folder, MORE, extra_special_tokens={"image_token": "<image>"})
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    torch.manual_seed(0)
    model = LlavaForConditionalGeneration(LlavaConfig(
        text_config={"model_type": "llama", **sizes, "vocab_size": len(tokenizer), "num_key_value_heads": 2, "pad_token_id": 0,
                     "bos_token_id": 2, "eos_token_id": 3, "max_position_embeddings": 128, "initializer_range": 0.2},
        vision_config={"model_type": "clip_vision_model", **sizes, "image_size": 16, "patch_size": 4, "projection_dim": 32},
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"), pad_token_id=0, initializer_range=0.2,
    ))  # fmt: skip
    model.save_pretrained(folder)
    size = {"height": 16, "width": 16}
    LlavaProcessor(
        image_processor=CLIPImageProcessor(size=size, do_center_crop=False), tokenizer=tokenizer, patch_size=4,
        vision_feature_select_strategy="default", num_additional_image_tokens=1,
    ).save_pretrained(folder)  # fmt: skip
    return str(folder)


def write_whisper(folder: Path, extractor: bool = True) -> str:
    """A second of sound becomes 20 frames of 8 values, of which the encoder makes 10."""
    import torch
    from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperForAudioClassification

    torch.manual_seed(0)
    WhisperForAudioClassification(WhisperConfig(
        d_model=32, encoder_layers=2, decoder_layers=1, encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=64,
        decoder_ffn_dim=64, num_mel_bins=8, max_source_positions=10, max_target_positions=8, vocab_size=40, pad_token_id=0,
        bos_token_id=1, eos_token_id=2, decoder_start_token_id=1, init_std=0.1, begin_suppress_tokens=None,
    )).save_pretrained(folder)  # fmt: skip
    if extractor:
        WhisperFeatureExtractor(feature_size=8, hop_length=800, chunk_length=1).save_pretrained(folder)
    return str(folder)


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
