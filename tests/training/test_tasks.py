"""Every kind of task from end to end on tiny models: it learns, evaluates, goes on after an interruption, and predicts."""

from dataclasses import replace
from pathlib import Path

import pytest
import tiny_tasks as tiny
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

from unipelt.training import TrainConfig, evaluate_run, load_run, predict_run, read, train
from unipelt.training.tasks import KINDS
from unipelt.training.tasks.language import LanguageTask

PATTERN = "{text} type : {mask} ."
WORDS = ",".join(tiny.CLASSES)
#: Rows and how many, model, options, epochs, and what the metric must at least be on rows not seen in training.
JOBS = {
    "tokens": (tiny.tagged, 180, "masked", {}, 8, 0.8),
    "questions": (tiny.asked, 240, "masked", {}, 9, 0.7),
    "chat": (tiny.talked, 90, "llama", {}, 4, 0.5),
    "packed": (tiny.talked, 180, "llama", {"pack": True, "max_length": 40}, 6, 0.5),
    "seq2seq": (tiny.completed, 90, "t5", {"max_target_length": 8}, 6, 0.5),
    "pet": (tiny.classified, 90, "masked", {"pattern": PATTERN, "words": WORDS}, 4, 0.8),
    "pet-causal": (tiny.classified, 90, "gpt2", {"pattern": PATTERN, "words": WORDS}, 5, 0.7),
    "pet-several-tokens": (tiny.classified, 90, "gpt2", {"pattern": PATTERN, "words": "refund no,arrival no|arrival,closing"}, 4, 0.7),
    "multi-label": (tiny.several, 180, "masked", {}, 6, 0.75),
    "regression": (tiny.measured, 90, "masked", {}, 4, 0.8),
    "pictures": (tiny.drawn, 180, "vit", {}, 8, 0.8),
    "sounds": (tiny.sounded, 90, "whisper", {}, 6, 0.8),
}  # fmt: skip
KIND = {
    "tokens": "token-classification", "questions": "question-answering", "chat": "causal-lm", "packed": "causal-lm",
    "seq2seq": "seq2seq", "multi-label": "sequence-classification", "regression": "sequence-classification",
    "pictures": "image-classification", "sounds": "audio-classification",
}  # fmt: skip


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bases")
    (folder / "full.pelt").write_text(tiny.FULL)
    return {
        "method": str(folder / "full.pelt"), "masked": tiny.write_masked(folder / "masked"),
        "llama": tiny.write_chatty(folder / "llama"), "gpt2": tiny.write_chatty(folder / "gpt2", "gpt2"),
        "t5": tiny.write_t5(folder / "t5"), "vit": tiny.write_vit(folder / "vit"),
        "whisper": tiny.write_whisper(folder / "whisper"),
    }  # fmt: skip


@pytest.fixture(scope="module", params=JOBS)
def job(request, bases, tmp_path_factory):
    make, rows, model, options, epochs, least = JOBS[request.param]
    folder = tmp_path_factory.mktemp(request.param)
    config = TrainConfig(
        method=bases["method"], model=bases[model], data=tiny.splits(folder / "data", make, rows), out=str(folder / "run"),
        epochs=epochs, lr=3e-3 if model in ("masked", "vit") else 5e-3, batch_size=8, dropout=0.0, checkpoints=False,
        **{"max_length": 48, **options},
    )  # fmt: skip
    return request.param, config, train(config), least


def test_it_learns(job):
    name, _, result, least = job
    assert result.task.kind == KIND.get(name, "pet")
    metric, more = result.task.metric
    found = result.metrics["test"][metric]
    assert found > least if more else found < least, result.metrics["test"]
    assert result.metrics["test"]["examples"] == 18
    if name == "seq2seq":
        assert result.metrics["test"]["exact_match"] > 0.8 < result.metrics["test"]["rougeL"]


def test_what_is_saved_says_the_same(job):
    _, config, result, _ = job
    run = load_run(config.out)
    assert run.task == result.task
    ticks = []
    metrics, split, cut = evaluate_run(run, config.data, tick=lambda *given: ticks.append(given))
    assert (split, cut) == ("test", 0) and metrics == result.metrics["test"]
    assert ticks[-1] == (18, 18)


class Cut(TrainerCallback):
    def on_step_end(self, args, state, control, **_):
        if state.global_step == 7:
            raise KeyboardInterrupt


@pytest.mark.sampled(3)
def test_it_goes_on_after_an_interruption(job, tmp_path):
    """Packed rows are few: an epoch may end before the interruption, or not."""
    _, config, _, _ = job
    config = replace(config, max_steps=8, save_steps=6, dropout=0.1, checkpoints=True)
    whole = train(replace(config, out=str(tmp_path / "whole")))
    halted = replace(config, out=str(tmp_path / "run"))
    with pytest.raises(KeyboardInterrupt):
        train(halted, callbacks=[Cut()])
    said = []
    resumed = train(replace(halted, resume=True), say=said.append)
    assert any(line.startswith("resuming at step") for line in said), said
    a, b = (load_file(Path(r.folder) / "adapter.safetensors") for r in (whole, resumed))
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
    assert resumed.metrics == whole.metrics and resumed.history == whole.history


def test_it_predicts(job):
    name, config, result, _ = job
    run = load_run(config.out)
    split = read(config.data)["test"]
    found = predict_run(run, run.task.read_inputs(split), 8)
    assert len(found) == len(split)
    rows = split.rows
    if name == "tokens":
        right = [t == w for f, r in zip(found, rows) for t, w in zip(f["labels"], r["ner_tags"], strict=True)]
        assert sum(right) / len(right) == pytest.approx(result.metrics["test"]["accuracy"])
        assert all(" ".join(f["words"][slice(*e["words"])]) == e["text"] for f in found for e in f["entities"])
    elif name == "questions":
        assert all(
            r["context"][slice(*f["characters"])] == f["answer"] and 0 < f["probability"] <= 1
            for f, r in zip(found, rows)
        )
        right = sum(f["answer"] == r["answers"]["text"][0] for f, r in zip(found, rows))
        assert right / 18 == pytest.approx(result.metrics["test"]["exact_match"])
    elif isinstance(run.task, LanguageTask):
        wanted = [r["messages"][-1]["content"] if "messages" in r else r["target"] for r in rows]
        assert sum(f["completion"] == w for f, w in zip(found, wanted)) > 13
    elif name == "multi-label":
        right = sum(sorted(f["labels"]) == r["labels"] for f, r in zip(found, rows))
        assert right / 18 == pytest.approx(result.metrics["test"]["accuracy"])
    elif name == "regression":
        mse = sum((f["value"] - r["label"]) ** 2 for f, r in zip(found, rows)) / 18
        assert mse == pytest.approx(result.metrics["test"]["mse"], rel=1e-3)
    else:
        right = sum(f["label"] == str(r["label"]) for f, r in zip(found, rows))
        assert right / 18 == pytest.approx(result.metrics["test"]["accuracy"])


def test_every_kind_is_tried():
    elsewhere = {"image-text-to-text"}  # in `test_pictured`, with an anatomy of its own
    assert {KIND.get(name, "pet") for name in JOBS} | elsewhere == set(KINDS)
