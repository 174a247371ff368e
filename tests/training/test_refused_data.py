"""Columns, files and options that do not fit a task, beside those of `test_data`: one message each, with what to do about it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from mistakes import mistake
from tiny_hf import write_rows

from unipelt.training import TrainConfig, data, saved
from unipelt.training.config import TaskOptions
from unipelt.training.folder import read_json
from unipelt.training.tasks import KINDS, kind, task_for
from unipelt.training.tasks.pet import words_for

DEEP = "[" * 100_000
ROW = {"a": "x", "b": "y", "c": "z", "label": "w", "tokens": ["x"], "tags": ["O"], "none": []}


@pytest.mark.parametrize("task, options, code, said, remedy", [
    ("sequence-classification", {"text": ("a", "b", "c")}, "E0603", "one or two texts, not 3: `a`, `b`, `c`", "one or two columns"),
    ("sequence-classification", {"text": ("a",), "label": "none", "problem_type": "multi_label"}, "E0604", "no row of", "the label column"),
    ("causal-lm", {"text": ("a", "b")}, "E0603", "a language model reads one text, not 2: `a`, `b`", "the completion with `--label`"),
    ("question-answering", {"text": ("a",)}, "E0603", "reads a question and a context", "--text question,context"),
    ("question-answering", {"text": ("a", "b", "c")}, "E0603", "reads a question and a context", "--text question,context"),
    ("seq2seq", {"text": ("a",)}, "E0603", "has no column of answers; it has `a`, `b`", "--label"),
    ("token-classification", {"text": ("tokens", "a")}, "E0603", "reads one column of words, not 2", "name one"),
    ("pet", {"pattern": "{a} {mask}", "text": ("a",)}, "E0620", "`--text` is one too many", "give one of them"),
])  # fmt: skip
def test_columns_that_do_not_fit_a_task(
    task: str, options: dict[str, Any], code: str, said: str, remedy: str, tmp_path: Path
) -> None:
    split = data.read_file(write_rows(tmp_path / "d.jsonl", [ROW, ROW]))
    message, help_ = mistake(code, task_for, split, TaskOptions(task=task, max_length=16, **options))
    assert said in message and remedy in help_


@pytest.mark.parametrize("change, said", [
    ({"resume": True}, "without checkpoints a run cannot be resumed"), ({"save_steps": 4}, "without checkpoints"),
    ({"patience": 2}, "no run is stopped early"),
])  # fmt: skip
def test_options_that_need_checkpoints(change: dict[str, Any], said: str, tmp_path: Path) -> None:
    config = TrainConfig(method="m", model="m", data="d", out=str(tmp_path / "run"), checkpoints=False)
    message, help_ = mistake("E0620", replace(config, **change).check)
    assert said in message and "leave `--no-checkpoints`" in help_


def test_a_parquet_file_that_names_a_column_twice(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet

    table = pa.Table.from_arrays([pa.array(["x"]), pa.array(["y"])], names=["text", "text"])
    pyarrow.parquet.write_table(table, tmp_path / "train.parquet")
    message, help_ = mistake("E0609", data.read_file, tmp_path / "train.parquet")
    assert "train.parquet" in message and "`text` twice" in message and "rename" in help_


def test_a_data_set_of_the_hub_without_a_split_for_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    part = datasets.Dataset.from_dict({"text": ["x"], "label": ["y"]})
    monkeypatch.setattr(
        datasets, "load_dataset", lambda *_: datasets.DatasetDict({"unsupervised": part, "extra": part})
    )
    monkeypatch.chdir(tmp_path)
    message, help_ = mistake("E0608", data.read, "hub:owner/reviews")
    assert (
        "`owner/reviews`" in message
        and "it has `unsupervised`, `extra`" in message
        and "save its rows as files" in help_
    )


# ---------------------------------------------------------------- files beside the data


@pytest.mark.parametrize("text, said", [
    ('{"0": 3}', "something other than words"), ('["a", []]', "something other than words"), ('["a", " "]', "something other than words"),
    ("3", "neither an object nor a list"), ('"a"', "neither an object nor a list"), ("{", "cannot be read"), (DEEP, "cannot be read"),
])  # fmt: skip
def test_files_of_words_that_hold_none(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "words.json").write_text(text)
    message, _ = mistake("E0643", words_for, str(tmp_path / "words.json"), ["0", "1"], ["bad", "good"])
    assert "words.json" in message and said in message


@pytest.mark.parametrize("text", ["{", "3", DEEP, "\ufeff"])
def test_records_of_a_run_that_are_none(text: str, tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(text)
    message, help_ = mistake("E0615", read_json, tmp_path / "run.json")
    assert "run.json" in message and "is damaged" in message and "--overwrite" in help_


WHOLE = {"texts": ["text"], "label": "label", "labels": ["a", "b"], "max_length": 16}
#: What a record of a kind has besides.
MORE: dict[str, dict[str, Any]] = {
    "pet": {"pattern": "{text} {mask}", "words": [["x"], ["y"]], "tokens": [[[1]], [[2]]]}, "question-answering": {"texts": ["a", "b"], "stride": 8},
}  # fmt: skip


@pytest.mark.parametrize("change, said", [
    ({"texts": []}, "incomplete: it has no `texts`"), ({"texts": None}, "incomplete: it has no `texts`"),
    ({"texts": "text"}, "damaged: `texts` is "), ({"texts": [3]}, "damaged: `texts.0` is "), ({"max_length": "16"}, "damaged: `max_length` is "),
    ({"label": ["a"]}, "damaged: `label` is "), ({"padding": None}, "damaged: `padding` is "),
])  # fmt: skip
@pytest.mark.parametrize("name", KINDS)
def test_a_task_whose_record_is_incomplete_or_damaged(name: str, change: dict[str, Any], said: str) -> None:
    message, help_ = mistake("E0615", kind(name).from_json, {**WHOLE, **MORE.get(name, {}), **change})
    assert said in message and "train again" in help_
    if "labels" in kind(name).__dataclass_fields__:
        assert (
            "no `labels`"
            in mistake("E0615", kind(name).from_json, {k: v for k, v in WHOLE.items() if k != "labels"})[0]
        )
    whole = kind(name).from_json({**WHOLE, **MORE.get(name, {}), "kind": name, "of a later version": 3})
    assert kind(name).from_json(json.loads(json.dumps(whole.to_json()))) == whole


@pytest.mark.parametrize("name, change, said", [
    *((name, {"max_length": n}, f"`max_length` is {n}: input should be greater than or equal to 2") for name in KINDS for n in (0, 1, -5)),
    *((name, {"padding": "right"}, "`padding` is 'right': input should be 'longest'") for name in KINDS),
    ("sequence-classification", {"titles": []}, "0 titles for 2 labels"), ("sequence-classification", {"titles": ["a"]}, "1 title for 2 labels"),
    ("sequence-classification", {"problem": "guess"}, "`problem` is 'guess'"), ("sequence-classification", {"texts": ["a", "b", "c"]}, "two at most"),
    ("sequence-classification", {"pattern": "{other}"}, "reads other columns"), ("pet", {"pattern": "{other} {mask}"}, "reads other columns"),
    ("pet", {"pattern": None}, "no `{mask}`"), ("pet", {"pattern": "{text}"}, "no `{mask}`"), ("pet", {"words": []}, "a word for each label"),
    ("pet", {"words": [["x"], []]}, "a word for each label"), ("pet", {"tokens": []}, "a word for each label"),
    ("pet", {"tokens": [[[1]], [[]]]}, "tokens for each word"), ("pet", {"tokens": [[[1]], [[1], [2]]]}, "tokens for each word"),
    ("question-answering", {"texts": ["a"]}, "1 column"), ("question-answering", {"stride": 9}, "more than half"),
    ("question-answering", {"stride": 0}, "or equal to 1"), ("causal-lm", {"loss": "none"}, "`loss` is 'none'"),
    ("causal-lm", {"max_target_length": 0}, "or equal to 1"), ("seq2seq", {"max_target_length": -1}, "or equal to 1"),
])  # fmt: skip
def test_a_task_whose_record_no_run_can_have_written(name: str, change: dict[str, Any], said: str) -> None:
    message, help_ = mistake("E0615", kind(name).from_json, {**WHOLE, **MORE.get(name, {}), **change})
    assert said in message and "is damaged" in message and "train again" in help_


@pytest.mark.parametrize("name", ["sequence-classification", "pet"])
def test_a_task_without_titles_shows_its_labels(name: str) -> None:
    found: Any = kind(name).from_json({**WHOLE, **MORE.get(name, {})})
    assert found.titles == ("a", "b")


@pytest.mark.parametrize("wrong", [{"seed": "three"}, {"seed": -1}, {"eval_batch_size": 0}, {"eval_batch_size": None}])
def test_numbers_of_a_run_that_are_none(wrong: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "task.json").write_text(
        json.dumps({"model": "m", "task": {**WHOLE, "kind": "sequence-classification"}, **wrong})
    )
    message, help_ = mistake("E0615", saved.load_run, tmp_path)
    assert f"`{next(iter(wrong))}` is {next(iter(wrong.values()))!r}" in message and "train again" in help_


def test_texts_to_predict_that_cannot_be_read(tmp_path: Path) -> None:
    run: Any = None  # lines of a plain file are read without asking what the run's task is
    message, help_ = mistake("E0601", saved.read_texts, run, str(tmp_path / "none.txt"))
    assert "none.txt" in message and "spelling" in help_
    (tmp_path / "latin.txt").write_bytes("café\n".encode("latin-1"))
    message, help_ = mistake("E0610", saved.read_texts, run, str(tmp_path / "latin.txt"))
    assert "latin.txt" in message and "UTF-8" in help_
    (tmp_path / "good.txt").write_text(json.dumps("café") + "\n\n", "utf-8")
    assert saved.read_texts(run, str(tmp_path / "good.txt")) == [['"caf\\u00e9"']]
