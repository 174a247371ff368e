"""Predictions of classifiers with heads of their own and of adapters that share the base's: what `unipelt predict` says."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from fastapi.testclient import TestClient
from served import Heard, adapted, write_adapter

import unipelt
from unipelt.serve.app import make_app
from unipelt.serve.jobs import Prediction
from unipelt.serve.opening import open_engine
from unipelt.serve.options import ServeOptions
from unipelt.serve.refusals import Refusal
from unipelt.training.saved import load_run, predict_run
from unipelt.training.tasks.classification import SequenceClassification

TEXTS = ["please refund my money", "when", "i want to close my account please", "the parcel is late"]
PAIRED = [["when", "the parcel"], ["my money", "i want it"]]
LABELS = {"two": ("bad", "good"), "three": ("refund", "arrival", "closing")}


def record(folder: Path, base: str, **task: Any) -> None:
    """What a run writes of its task."""
    made = SequenceClassification(**{"texts": ("text",), "label": "label", "max_length": 12, **task})
    (folder / "task.json").write_text(json.dumps({"version": 1, "model": base, "task": made.to_json()}))


@pytest.fixture(scope="session")
def classifiers(bert: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``two`` and ``three``: heads of their own; ``pairs``: the same for pairs; ``plain``: no run's."""
    folder = tmp_path_factory.mktemp("classifiers")
    model = adapted(bert, "AutoModelForSequenceClassification")
    for i, (name, labels) in enumerate(LABELS.items()):
        write_adapter(model, folder / name, "lora", {"r": 2}, i, labels=labels)
        record(folder / name, bert, labels=labels, titles=labels)
    write_adapter(model, folder / "pairs", "pfeiffer", {"r": 2}, 5, labels=LABELS["two"])
    record(folder / "pairs", bert, labels=LABELS["two"], titles=LABELS["two"], texts=("premise", "claim"))
    write_adapter(model, folder / "plain", "ia3", {}, 6, labels=("x", "y"))
    return folder


@pytest.fixture
def client(bert: str, classifiers: Path, heard: Heard) -> Iterator[TestClient]:
    options = ServeOptions(reload=0, max_batch=8, task="sequence-classification", max_adapters=3)
    engine = open_engine(bert, [classifiers], options, heard)
    with TestClient(make_app(engine, runs=True), raise_server_exceptions=False) as c:
        yield c


def ask(client: TestClient, model: str, inputs: Any, **more: Any) -> Any:
    return client.post("/predict", json={"model": model, "inputs": inputs, **more})


def close(found: list[dict[str, Any]], wanted: list[dict[str, Any]]) -> bool:
    def plain(answer: dict[str, Any]) -> list[Any]:
        return [
            answer["text"],
            answer["label"],
            *(pytest.approx(p, abs=2e-6) for p in answer["probabilities"].values()),
        ]

    return [[a["text"], a["label"], *a["probabilities"].values()] for a in found] == [plain(a) for a in wanted]


def test_predictions_are_those_of_the_command(client: TestClient, classifiers: Path, bert: str) -> None:
    for name, inputs in (("two", TEXTS), ("three", TEXTS), ("pairs", PAIRED)):
        wanted = predict_run(load_run(classifiers / name), [[t] if isinstance(t, str) else t for t in inputs])
        r = ask(client, name, inputs)
        assert r.status_code == 200, r.text
        assert close(r.json()["predictions"], wanted) and r.json()["model"] == name
    by_name = [dict(zip(("claim", "premise"), reversed(pair))) for pair in PAIRED]
    assert ask(client, "pairs", by_name).json() == r.json()
    assert {a["label"] for a in ask(client, "plain", TEXTS).json()["predictions"]} <= {"x", "y"}
    model = client.app.state.server.engine.shelf.model  # type: ignore[attr-defined]
    assert not unipelt.adapters(model), "with heads of their own, too, they stand in banks"


@pytest.mark.parametrize(
    "model, inputs, status, code, words",
    [
        ("bert", TEXTS, 400, "no_head", "name an adapter"),
        ("tow", TEXTS, 404, "model_not_found", "`two`"),
        ("two", [], 400, "wrong_value", "`inputs`"),
        ("two", ["a"] * 9, 400, "too_many_inputs", "at most 8 texts"),
        ("two", ["a", " "], 400, "wrong_inputs", "none of them empty"),
        ("two", PAIRED, 400, "wrong_inputs", "1 text for each input"),
        ("pairs", TEXTS, 400, "wrong_inputs", "premise, claim"),
        ("pairs", [{"premise": "a", "clam": "b"}], 400, "wrong_inputs", "did you mean `claim`?"),
        ("pairs", [{"premise": "a"}], 400, "wrong_inputs", "2 texts"),
        ("two", [3], 400, "wrong_value", "`inputs`"),
        ("two", ["a", "my " * 30], 400, "context_length_exceeded", "1 of 2 inputs is longer than the 12 tokens"),
        ("two", ["\ud83d"], 400, "invalid_text", "Unicode"),
    ],
)
def test_what_is_refused(client: TestClient, model: str, inputs: Any, status: int, code: str, words: str) -> None:
    r = client.post("/predict", content=json.dumps({"model": model, "inputs": inputs}), headers={"Content-Type": "application/json"})  # fmt: skip
    assert (r.status_code, r.json()["error"]["code"]) == (status, code) and words in r.json()["error"]["message"]
    assert ask(client, "two", TEXTS).status_code == 200


def test_what_never_fits_the_queue_is_not_told_to_try_again(bert: str, classifiers: Path) -> None:
    engine = open_engine(bert, [classifiers], ServeOptions(reload=0, task="sequence-classification", max_queue=2))
    with engine, pytest.raises(Refusal, match="at most 2 texts") as caught:
        engine.submit(Prediction("two", 60, 3, inputs=TEXTS[:3]))
    assert caught.value.status == 400


def test_long_texts_are_cut_where_the_client_says_so(client: TestClient) -> None:
    long, cut = "my " * 30, "my " * 10
    found = ask(client, "two", [long], truncate=True).json()["predictions"][0]
    assert found["probabilities"] == ask(client, "two", [cut.strip()]).json()["predictions"][0]["probabilities"]
    assert (
        client.post("/v1/completions", json={"model": "two", "prompt": "a"}).json()["error"]["code"] == "wrong_endpoint"
    )


def test_adapters_with_the_base_s_head_share_a_batch(bert: str, tmp_path: Path, heard: Heard) -> None:
    """Four of different methods on a base with a trained head, their requests mixed with the base's."""
    base = str(tmp_path / "headed")
    shutil.copytree(bert, base)
    torch.manual_seed(3)
    model = adapted(bert, "AutoModelForSequenceClassification")
    model.save_pretrained(base)
    model = adapted(base, "AutoModelForSequenceClassification")
    methods = {"a": ("lora", {"r": 2}), "b": ("ia3", {}), "c": ("prefix_tuning", {"l": 2}), "d": ("pfeiffer", {"r": 2})}
    titles = ("LABEL_0", "LABEL_1")
    for i, (name, (method, arguments)) in enumerate(methods.items()):
        write_adapter(model, tmp_path / "all" / name, method, arguments, i, head=False)
        record(tmp_path / "all" / name, base, labels=titles, titles=titles)
    engine = open_engine(base, [tmp_path / "all"], ServeOptions(reload=0), heard)
    names = [*methods, None, *methods]
    jobs = [Prediction(n, 60, len(TEXTS), inputs=TEXTS, cut=True) for n in names]
    with engine:
        for name in methods:  # read before, so that all are there when the batch begins
            engine.submit(Prediction(name, 60, 1, inputs=["a"])).future.result(60)
        heard.batches.clear()
        first = engine.submit(jobs[0])
        for job in jobs[1:]:
            engine.submit(job)
        found = {id(j): j.future.result(60) for j in jobs}
    assert first.future.done() and max(n for _, n in heard.batches) >= 3
    for job in jobs:
        if job.adapter is not None:
            wanted = predict_run(load_run(tmp_path / "all" / job.adapter), [[t] for t in TEXTS])
            assert close(found[id(job)], wanted)
    answers = [found[id(j)] for j in jobs[:5]]
    assert len({a[0]["probabilities"]["LABEL_0"] for a in answers}) == 5, "each has its own"
