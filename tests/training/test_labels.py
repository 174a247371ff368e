"""Values of label columns: which of them are slips, which texts cannot be written down, and in which order labels stand."""

import csv
import json

import pytest
from mistakes import mistake, mistakes
from tiny_hf import write_rows

from unipelt.training import TrainConfig, data
from unipelt.training.config import TaskOptions
from unipelt.training.ranks import launched
from unipelt.training.run import examples
from unipelt.training.saved import Run, predict_run, read_texts
from unipelt.training.tasks import task_for
from unipelt.training.tasks.pet import words_for
from unipelt.training.tasks.template import parse
from unipelt.training.trainer import last_checkpoint

HALF = "\ud83d"  # of a pair of surrogates


def csv_of(tmp_path, labels):
    (tmp_path / "train.csv").write_text("text,label\n" + "".join(f"some text {i},{v}\n" for i, v in enumerate(labels)))
    return data.read_file(tmp_path / "train.csv")


def json_of(tmp_path, labels):
    return data.read_file(
        write_rows(tmp_path / "train.jsonl", [{"text": f"some text {i}", "label": v} for i, v in enumerate(labels)])
    )


def classification(split, **options):
    return task_for(split, TaskOptions(task="sequence-classification", **options))


# ---------------------------------------------------------------- numbers and slips


SCORES = [0.5, 1.5, 2.0, 3.25, 4.0, 0.25, 2.5, 3.5]


@pytest.mark.parametrize(
    "slip, said",
    [
        ("nan", "nan"),
        ("inf", "inf"),
        ("n/a", "`n/a`, not a number"),
        ("", "is missing"),
        ("3;5", "`3;5`, not a number"),
    ],
)
def test_one_bad_number_does_not_make_classes_of_a_csv_file(slip, said, tmp_path):
    split = csv_of(tmp_path, [*SCORES, slip, *SCORES])
    message, help_ = mistake("E0607", classification, split)
    assert "line 10" in message and said in message and "16 of 17 values are numbers" in help_
    assert "`--problem-type single_label`" in help_
    if slip:
        assert slip in classification(split, problem_type="single_label").labels


@pytest.mark.parametrize(
    "slip, said",
    [
        (None, "is null, not a number"),
        ("high", "`high`, not a number"),
        (True, "is true or false"),
        ({}, "is an object"),
    ],
)
@pytest.mark.parametrize("good", [SCORES, SCORES[:2]])
def test_in_json_the_odd_value_is_blamed_and_not_the_numbers(slip, said, good, tmp_path):
    message, _ = mistake("E0607", classification, json_of(tmp_path, [*good, slip]))
    assert f"line {len(good) + 1}" in message and said in message


def test_a_number_that_is_none_among_whole_ones_is_no_class(tmp_path):
    message, _ = mistake("E0607", classification, csv_of(tmp_path, [1, 2, 3, 1, 2, "nan"]))
    assert "line 7" in message and "is nan" in message


def test_a_fraction_among_whole_numbers_of_json_does_not_make_a_regression_of_classes(tmp_path):
    message, _ = mistake("E0607", classification, json_of(tmp_path, [0, 1, 0, 1, 0, 1, 0, 1.0]))
    assert "line 8" in message and "a number, not a name or an integer" in message


@pytest.mark.parametrize("labels, problem", [
    (["1", "2", "unknown", "1", "2", "1", "2", "1", "2"], "single_label"), (["0.5", "1.5", "low", "high"], "single_label"),
    (["1.0", "2.5"], "regression"), (["1", "2"], "single_label"), (["a", "nan", "b"], "single_label"),
])  # fmt: skip
def test_what_the_values_ask_for(labels, problem, tmp_path):
    assert classification(csv_of(tmp_path, labels)).problem == problem


def test_floats_of_json_are_numbers(tmp_path):
    assert classification(json_of(tmp_path, [1.0, 2.0, 1.0])).problem == "regression"
    assert classification(json_of(tmp_path, [1, 2, 1])).problem == "single_label"


def test_labels_that_differ_in_blanks_or_case_are_said_once():
    (note,) = data.alike(["Good", "bad", "good ", "BAD", "1", "1.0", "other"])
    assert (
        "`Good` and `good `" in note and "`bad` and `BAD`" in note and "`1` and `1.0`" in note and "other" not in note
    )
    assert data.alike(["a", "b", "1", "2"]) == data.alike([]) == []
    assert "and 2 more groups" in data.alike([f"{c}{blank}" for c in "abcde" for blank in ("", " ")])[0]


def test_a_run_says_which_labels_are_alike(bert, tmp_path):
    write_rows(
        tmp_path / "train.jsonl", [{"text": "some words", "label": ["yes", "no", "Yes"][i % 3]} for i in range(12)]
    )
    *_, notes = examples(TrainConfig(model=bert, method="x", data=str(tmp_path), out="o", max_length=16))
    assert [n for n in notes if "`Yes` and `yes`" in n]


# ---------------------------------------------------------------- the order of labels


@pytest.mark.parametrize("names, order", [
    (["10", "2", "-1"], ["-1", "2", "10"]), (["²", "10", "3"], ["10", "3", "²"]), (["²", "³"], ["²", "³"]), (["--1", "2"], ["--1", "2"]),
    (["01", "1", "0"], ["0", "01", "1"]), (["9" * 5000, "10"], ["10", "9" * 5000]), (["②", "1"], ["1", "②"]),
])  # fmt: skip
def test_labels_that_look_like_numbers_and_are_none(names, order, tmp_path):
    assert data.in_order(names) == data.in_order(names[::-1]) == order
    rows = [{"text": "x", "label": n} for n in names]
    assert list(classification(data.read_file(write_rows(tmp_path / "one.jsonl", rows))).labels) == order
    rows = [{"text": "x", "label": [n]} for n in names]
    assert list(classification(data.read_file(write_rows(tmp_path / "several.jsonl", rows))).labels) == order
    rows = [{"tokens": ["x"], "tags": [n]} for n in names]
    split = data.read_file(write_rows(tmp_path / "tokens.jsonl", rows))
    assert list(task_for(split, TaskOptions(task="token-classification")).labels) == order


def test_other_places_where_a_number_is_read(tmp_path, monkeypatch):
    mistakes("E0640", parse, "{prompt:²} {text}")
    mistakes("E0643", words_for, None, ["1", "2"], ["1", "2"])
    assert words_for(None, ["²", "³"], ["²", "³"]) == (("²",), ("³",))
    (tmp_path / "checkpoint-²").mkdir()
    assert last_checkpoint(tmp_path) is None and (tmp_path / "checkpoint-²").is_dir()
    monkeypatch.setenv("WORLD_SIZE", "²")
    assert not launched()
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert launched()


# ---------------------------------------------------------------- text that is no Unicode


@pytest.mark.parametrize("row", [
    {"text": f"a {HALF} b", "label": "x"}, {"text": "a", "label": HALF}, {"tokens": ["a", HALF], "tags": ["O", "O"]},
    {HALF: "a"}, {"messages": [{"role": "user", "content": HALF}]}, HALF,
])  # fmt: skip
def test_half_a_character_is_named_with_its_line(row, tmp_path):
    good = {"text": "\ud83d\ude00 whole".encode("utf-16", "surrogatepass").decode("utf-16"), "label": "y"}
    lines = [json.dumps(r) for r in (good, row, good)]
    (tmp_path / "train.jsonl").write_text("\n".join(lines))
    message, help_ = mistake("E0649", data.read, tmp_path)
    assert "line 2" in message and "take it out" in help_ and (message + help_).encode()
    (tmp_path / "rows.json").write_text(f"[{lines[0]}, {lines[1]}]")
    if isinstance(row, dict):
        assert "row 2" in mistake("E0649", data.read_file, tmp_path / "rows.json")[0]
    (tmp_path / "train.jsonl").write_text(lines[0])
    assert data.read(tmp_path)["train"].rows[0] == good


def test_bytes_of_parquet_that_are_no_unicode(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    bad = pyarrow.Array.from_buffers(
        pyarrow.string(), 1, [None, pyarrow.py_buffer(b"\0\0\0\0\1\0\0\0"), pyarrow.py_buffer(b"\xff")]
    )
    column = pyarrow.chunked_array([pyarrow.array(["fine"]), bad])
    parquet.write_table(pyarrow.table({"text": column}), tmp_path / "train.parquet")
    message, _ = mistake("E0649", data.read, tmp_path)
    assert "row 2" in message and "`text`" in message


def test_half_a_character_in_what_is_predicted(tmp_path):
    class Reads:
        inputs = ("text",)

    run = Run(None, None, Reads(), "", 8)
    assert "text 2 of 2" in mistake("E0649", predict_run, run, [["fine"], [f"not {HALF}"]])[0]
    (tmp_path / "lines.txt").write_bytes(b"fine\n\xff\n")
    assert "line 2" in mistake("E0610", read_texts, run, str(tmp_path / "lines.txt"))[0]


def test_half_a_character_in_an_option_and_in_a_file_of_words(tmp_path):
    asked = TrainConfig(model="m", method="x", data="d", out="o", task="pet", pattern=f"{{text}} {HALF} {{mask}}")
    assert "`--pattern`" in mistake("E0649", asked.check)[0]
    (tmp_path / "words.json").write_text(json.dumps({"0": HALF, "1": "good"}))
    assert "words.json" in mistake("E0649", words_for, str(tmp_path / "words.json"), ["0", "1"], ["0", "1"])[0]


# ---------------------------------------------------------------- long cells


def test_a_cell_may_be_long(tmp_path):
    before = csv.field_size_limit()
    (tmp_path / "train.csv").write_text(f'text,label\n"{"word " * 60_000}",a\nshort,b\n')
    assert [len(r["text"]) for r in data.read_file(tmp_path / "train.csv").rows] == [300_000, 5]
    assert csv.field_size_limit() == before


def test_a_quote_that_does_not_end_is_named_where_it_begins(tmp_path):
    (tmp_path / "train.csv").write_text('text,label\nfine,a\n"not,b\n' + "more,c\n" * 30)
    message, _ = mistake("E0609", data.read_file, tmp_path / "train.csv")
    assert "line 3" in message
