"""Evaluation in two halves: shared by processes it gives what one process gives; earlier runs' records still open."""

from dataclasses import replace

import math
import pytest

from unipelt.language.report.diagnostics import PeltError
from unipelt.training import data as reading
from unipelt.training.config import TaskOptions
from unipelt.training.models import load_model, load_tokenizer
from unipelt.training.tasks import KINDS, kind, task_for, task_from_json
from unipelt.training.tasks.evaluation import Collator, evaluate, outputs_of, score


@pytest.fixture(scope="module", params=["intents-bert", "completions-gpt2"])
def trial(request):
    data, model = request.param.split("-")
    folder = request.getfixturevalue(model)
    tokenizer = load_tokenizer(folder)
    splits = reading.read(request.getfixturevalue(data))
    task = task_for(splits["train"], TaskOptions(max_length=16))
    model = load_model(folder, task, tokenizer, seed=0)
    return task, model, task.encode(splits["train"], tokenizer), Collator(tokenizer, task)


@pytest.mark.parametrize("world", [2, 3, 50])
def test_processes_share_the_examples(trial, world):
    task, model, encoded, collator = trial
    calls = []
    watch = model.register_forward_pre_hook(lambda *_: calls.append(1))
    found, each = {}, set()
    for rank in range(world):
        calls.clear()
        mine = outputs_of(model, task, encoded, collator, 8, rank=rank, world=world)
        each.add(len(calls))
        found |= mine
    watch.remove()
    assert each == {math.ceil(math.ceil(len(encoded) / 8) / world)}, "each process calls the model equally often"
    assert sorted(found) == list(range(len(encoded)))
    assert score(task, encoded, found, collator.tokenizer) == evaluate(model, task, encoded, collator, 8)


def test_outputs_of_others_are_asked_for(trial):
    task, model, encoded, collator = trial
    others = outputs_of(model, task, encoded, collator, 8, rank=1, world=2)
    metrics = evaluate(model, task, encoded, collator, 8, rank=0, world=2, gather=lambda mine: mine | others)
    assert metrics == evaluate(model, task, encoded, collator, 8)
    assert metrics["examples"] == len(encoded)


def test_the_batch_size_changes_no_metric(trial):
    task, model, encoded, collator = trial
    one, many = (evaluate(model, task, encoded, collator, size) for size in (1, 64))
    assert one == pytest.approx(many, rel=1e-5)


@pytest.mark.parametrize("name", KINDS)
def test_the_table_of_kinds(name):
    found = kind(name)
    assert found.kind == name and found.__doc__
    task = found(("question", "context") if name == "question-answering" else ("text",), "label")
    if hasattr(task, "stride"):
        task = replace(task, stride=32)
    if hasattr(task, "labels"):  # which every record has: they are found before anything is trained
        task = replace(task, labels=("0", "1"), **({"titles": ("no", "yes")} if hasattr(task, "titles") else {}))
    if hasattr(task, "words"):
        task = replace(task, pattern="{text} {mask}", words=(("no",), ("yes",)), tokens=(((1,),), ((2,),)))
    assert task_from_json(task.to_json()) == task


def test_records_of_earlier_runs_open():
    """As written by version 0.1 before kinds were files of their own."""
    record = {
        "kind": "sequence-classification", "texts": ["text"], "label": "label", "labels": ["0", "1"], "titles": ["no", "yes"],
        "loss": "all", "max_length": 16, "padding": "longest", "separator": "\n",
    }  # fmt: skip
    task = task_from_json(record)
    assert task.texts == ("text",) and task.titles == ("no", "yes") and task.max_length == 16
    task = task_from_json({**record, "kind": "causal-lm", "label": "answer", "loss": "completion"})
    assert task.loss == "completion" and task.separator == "\n" and task.label == "answer"


def test_records_that_are_none():
    for record in ({}, {"kind": 3}):
        with pytest.raises(PeltError, match="names no kind"):
            task_from_json(record)
    with pytest.raises(PeltError, match="no task `poetry`"):
        task_from_json({"kind": "poetry"})
