"""Vision-language models train on text with the picture passed through."""

from __future__ import annotations

import math
import os
import random
from dataclasses import replace
from pathlib import Path

import pytest
import tiny_hf
import tiny_tasks as tiny
import torch
from mistakes import mistake
from names import name
from PIL import Image
from safetensors.torch import load_file

from unipelt.training import TrainConfig, evaluate_run, load_run, predict_run, train
from unipelt.training import data as reading
from unipelt.training.models import load_config, load_model
from unipelt.training.options import TaskOptions
from unipelt.training.readers import load_reader
from unipelt.training.tasks import task_for
from unipelt.training.tasks.evaluation import Collator, evaluate
from unipelt.training.tasks.task import IGNORED

#: The language model of LLaVA: what the finder is to find by itself.
ANATOMY = """
anatomy pictured for llava {
  block:         "language_model.layers.*"
  attn:          "self_attn"
  attn.x:        "self_attn"
  attn.residual: "input_layernorm"
  attn.norm:     "input_layernorm"
  attn.heads:    "self_attn"
  attn.q:        "self_attn.q_proj"
  attn.k:        "self_attn.k_proj"
  attn.v:        "self_attn.v_proj"
  attn.o:        "self_attn.o_proj"
  ffn:           "mlp"
  ffn.x:         "mlp"
  ffn.residual:  "post_attention_layernorm"
  ffn.norm:      "post_attention_layernorm"
  ffn.up:        "mlp.up_proj"
  ffn.gate:      "mlp.gate_proj"
  ffn.down:      "mlp.down_proj"
  embed:         "language_model.embed_tokens"
  final:         "language_model.norm"
  embed.words:   "language_model.embed_tokens"
}
"""


@pytest.fixture(scope="module")
def llava(tmp_path_factory):
    return tiny.write_llava(tmp_path_factory.mktemp("llava"))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiny.splits(tmp_path_factory.mktemp("data"), tiny.described, 90, 18)


@pytest.fixture(scope="module", autouse=True)
def anatomy(tmp_path_factory):
    file = tmp_path_factory.mktemp("anatomy") / "pictured.pelt"
    file.write_text(ANATOMY)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(
            "UNIPELT_ANATOMIES", os.pathsep.join(filter(None, [os.environ.get("UNIPELT_ANATOMIES"), str(file)]))
        )
        yield


@pytest.fixture(scope="module")
def encoded(llava, data):
    config = load_config(llava)
    split = reading.read(data)["test"]
    task = task_for(split, TaskOptions(), config)
    reader = load_reader(llava, task, config)
    return task, reader, task.encode(split, reader), load_model(llava, task, reader, 0).eval()


def test_the_answer_alone_is_learned(encoded):
    task, reader, found, _ = encoded
    assert task.kind == "image-text-to-text" and (task.texts, task.label) == (("image", "prompt"), "completion")
    example = found[0]
    tokenizer = reader.processor.tokenizer
    learned = [t for t in example["labels"] if t != IGNORED]
    assert tokenizer.decode(learned) == f"{tiny.CLASSES[0]} [SEP]"
    assert example["input_ids"].count(reader.processor.image_token_id) == 16
    assert example["input_ids"][: -len(learned)][-1] == tokenizer.convert_tokens_to_ids(example["prompt"])
    whole = replace(task, loss="all").encode(reading.read(str(Path(example["file"]).parent))["test"], reader)[0]
    assert whole["labels"] == whole["input_ids"]


def test_a_batch_is_what_the_processor_makes_of_it(encoded):
    """Its own batch of two prompts, up to the answers, and each example's loss does not depend on the other."""
    task, reader, found, model = encoded
    a, b = (
        found[0],
        next(e for e in found.examples if len(e["input_ids"]) == len(found[0]["input_ids"]) and e is not found[0]),
    )
    pictures = [Image.open(e["file"]).convert("RGB") for e in (a, b)]
    texts = [f"<image>\n{e['prompt']}\n" for e in (a, b)]
    own = reader.processor(text=texts, images=[[p] for p in pictures], return_tensors="pt")
    batch = task.collate([a, b], reader)
    assert torch.equal(batch["pixel_values"], own["pixel_values"])
    n = own["input_ids"].shape[1] - 1  # the tokenizer ends every text
    assert torch.equal(batch["input_ids"][:, :n], own["input_ids"][:, :n])
    with torch.no_grad():
        together = model(**{k: v for k, v in batch.items() if k != "labels"}).logits
        for row, example in zip(together, (a, b), strict=True):
            alone = model(**{k: v for k, v in task.collate([example], reader).items() if k != "labels"}).logits[0]
            assert torch.allclose(row[: len(alone)], alone, atol=1e-5)


def test_the_loss_is_the_models_own(encoded):
    task, reader, found, model = encoded
    metrics = evaluate(model, task, found, Collator(reader, task), 4)
    with torch.no_grad():
        batches = [task.collate([e], reader) for e in found.examples]
        counts = [int((b["labels"] != IGNORED).sum()) for b in batches]
        total = sum(model(**b).loss.item() * n for b, n in zip(batches, counts))
    assert metrics["loss"] == pytest.approx(total / sum(counts), rel=1e-5) and metrics["tokens"] == sum(counts)


def test_the_answer_is_in_the_picture(llava, data, tmp_path):
    """The prompts say nothing of the answer: a loss below that of guessing one of three comes from the pictures."""
    (tmp_path / "full.pelt").write_text(tiny.FULL)
    config = TrainConfig(
        method=str(tmp_path / "full.pelt"), model=llava, data=data, out=str(tmp_path / "run"), epochs=8, lr=3e-3, batch_size=8,
        checkpoints=False,
    )  # fmt: skip
    result = train(config)
    assert result.task.kind == "image-text-to-text"
    guessing = math.log(3) / 2  # of two tokens, the second of which ends the answer
    assert result.metrics["test"]["loss"] < 0.8 * guessing
    run = load_run(config.out)
    metrics, _, _ = evaluate_run(run, data)
    assert metrics == result.metrics["test"]
    split = reading.read(data)["test"]
    found = predict_run(run, run.task.read_inputs(split), 4)
    right = sum(f["completion"] == row["completion"] for f, row in zip(found, split.rows, strict=True))
    assert right > 9, f"{right} of 18, and 6 by guessing"


def test_an_adapter_of_the_language_model(llava, data, tmp_path):
    """It acts in the language model alone, and is what a run keeps."""
    config = TrainConfig(
        method=name("lora"), model=llava, data=data, out=str(tmp_path / "run"), epochs=2, lr=1e-2, batch_size=8
    )
    result = train(config)
    losses = [h["loss"] for h in result.history]
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
    tensors = load_file(tmp_path / "run" / "adapter.safetensors")
    assert sum(t.numel() for t in tensors.values()) == result.counts["stored"] == 4 * 2 * 8 * 32 - 2 * 8 * 16
    assert evaluate_run(load_run(config.out), data)[0] == result.metrics["test"]


def test_what_is_wrong_with_pictures_and_prompts(llava, tmp_path):
    config = load_config(llava)
    rng = random.Random(0)
    (tmp_path / "1.png").write_bytes(tiny.drawn(tiny.CLASSES[0], rng)["image"])
    row = {"image": "1.png", "prompt": "please", "completion": "refund"}

    def asked(*rows, **options):
        split = reading.read_file(tiny_hf.write_rows(tmp_path / "train.jsonl", list(rows)))
        task = task_for(split, TaskOptions(task="image-text-to-text", **options), config)
        return task.encode(split, load_reader(llava, task, config))

    assert asked(row).truncated == 0 and asked(row, max_length=19).truncated == 1
    message, help_ = mistake("E0607", asked, row, max_length=10)
    assert "line 1" in message and "18 tokens" in message and "--max-length" in help_
    assert "line 2" in mistake("E0650", asked, row, {**row, "image": "2.png"})[0]
    mistake("E0603", asked, {"prompt": "please", "completion": "refund"})
    mistake("E0603", asked, {"image": "1.png", "text": "please"})
    mistake("E0603", asked, row, text=("image",))
    mistake("E0620", asked, row, pack=True)
    split = reading.read_file(tmp_path / "train.jsonl")
    bare = tiny_hf.write_gpt2(tmp_path / "gpt2")
    assert task_for(split, TaskOptions(), load_config(bare)).kind == "causal-lm"
    mistake("E0651", load_reader, bare, task_for(split, TaskOptions(task="image-text-to-text")), load_config(bare))
