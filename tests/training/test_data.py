"""Reading data: what is found by convention, and that each mistake is named with its file, line and remedy."""

import json

import pytest
from tiny_hf import write_rows

from unipelt.language.diagnostics import PeltError
from unipelt.training import data
from unipelt.training.config import TaskOptions
from unipelt.training.tasks import task_for


def mistake(code, call, *args, **kwargs):
    with pytest.raises(PeltError) as caught:
        call(*args, **kwargs)
    found = caught.value.diagnostics
    assert {d.code for d in found} == {code}, found
    assert all(d.help for d in found), "each mistake comes with a remedy"
    return [d.message for d in found], found


def rows(tmp_path, lines, name="train.jsonl"):
    path = tmp_path / name
    path.write_text("".join(lines))
    return data.read_file(path)


def good(n=20):
    return [{"text": f"text {i}", "label": ["a", "b"][i % 2]} for i in range(n)]


def classification(split, **kwargs):
    return task_for(split, TaskOptions(task="sequence-classification", max_length=16, **kwargs))


# ---------------------------------------------------------------- files


def test_a_folder_of_splits(tmp_path):
    write_rows(tmp_path / "train.jsonl", good())
    write_rows(tmp_path / "dev.jsonl", good(4))
    (tmp_path / "test.csv").write_text('text,label\n"one, two",a\n"three\nfour",b\n')
    (tmp_path / "README.md").write_text("notes")
    found = data.read(tmp_path)
    assert {k: len(v) for k, v in found.splits.items()} == {"train": 20, "validation": 4, "test": 2}
    assert found["test"].rows[1] == {"text": "three\nfour", "label": "b"}
    assert found["test"].lines == (2, 3)


def test_json_tsv_and_a_byte_order_mark(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps(good(3)))
    (tmp_path / "b.tsv").write_text("\ufefftext\tlabel\nx, y\ta\n", encoding="utf-8")
    assert len(data.read_file(tmp_path / "a.json")) == 3
    assert data.read_file(tmp_path / "b.tsv").rows == ({"text": "x, y", "label": "a"},)


def test_only_a_line_feed_ends_a_json_line(tmp_path):
    """U+2028 may stand inside a JSON string."""
    split = rows(tmp_path, ['{"text": "a\u2028b", "label": 1}\r\n', "\n", '{"text": "c", "label": 0}\n'])
    assert [r["text"] for r in split.rows] == ["a\u2028b", "c"]
    assert split.lines == (1, 3)


def test_missing_file_names_a_near_one(tmp_path):
    write_rows(tmp_path / "train.jsonl", good())
    _, found = mistake("E0601", data.read, tmp_path / "trian.jsonl")
    assert "train.jsonl" in found[0].help


def test_broken_lines_are_all_named(tmp_path):
    lines = ['{"text": "a", "label": 1}\n', '{"text": "b", \n', '{"text": "c", "label": 0}\n', "[1]\n"]
    messages, _ = mistake("E0602", rows, tmp_path, lines)
    assert "line 2" in messages[0] and "not JSON" in messages[0]
    assert "line 4" in messages[1] and "a list, not an object" in messages[1]


def test_many_broken_lines_are_counted(tmp_path):
    messages, _ = mistake("E0602", rows, tmp_path, ["{\n"] * 40)
    assert len(messages) == data.SHOWN and "35 more" in messages[-1]


def test_nested_json_does_not_overflow(tmp_path):
    messages, _ = mistake("E0602", rows, tmp_path, ["[" * 100_000 + "\n"])
    assert "line 1" in messages[0]


def test_broken_csv(tmp_path):
    messages, _ = mistake("E0609", rows, tmp_path, ["text,label\n", "a,b\n", "a,b,c\n"], "train.csv")
    assert "line 3" in messages[0] and "3 columns where the header has 2" in messages[0]
    messages, _ = mistake("E0609", rows, tmp_path, ["text,text\n", "a,b\n"], "train.csv")
    assert "`text` twice" in messages[0]
    mistake("E0609", rows, tmp_path, ["text,label\n", '"a,b\n'], "train.csv")


def test_other_files(tmp_path):
    mistake("E0605", rows, tmp_path, [])
    mistake("E0605", rows, tmp_path, ["text,label\n"], "train.csv")
    mistake("E0608", rows, tmp_path, ["x"], "train.parquet")
    (tmp_path / "latin.jsonl").write_bytes(b'{"text": "a"}\n{"text": "\xe9"}\n')
    messages, _ = mistake("E0610", data.read_file, tmp_path / "latin.jsonl")
    assert "line 2" in messages[0]
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "notes.txt").touch()
    messages, _ = mistake("E0608", data.read, empty)
    assert "notes.txt" in messages[0]


def test_two_files_of_one_split(tmp_path):
    write_rows(tmp_path / "dev.jsonl", good())
    write_rows(tmp_path / "validation.jsonl", good())
    messages, _ = mistake("E0608", data.read, tmp_path)
    assert "dev.jsonl" in messages[0] and "validation.jsonl" in messages[0]


# ---------------------------------------------------------------- columns and values


@pytest.mark.parametrize(
    "row, texts, label",
    [
        ({"sentence": "x", "label": 1}, ("sentence",), "label"),
        ({"id": 3, "utterance": "x", "intent": "a"}, ("utterance",), "intent"),
        ({"premise": "x", "hypothesis": "y", "label": 1}, ("premise", "hypothesis"), "label"),
        ({"question": "x", "sentence": "y", "label": 1}, ("question", "sentence"), "label"),
    ],
)
def test_columns_by_convention(tmp_path, row, texts, label):
    other = {**row, label: "b" if isinstance(row[label], str) else 0}
    task = classification(data.read_file(write_rows(tmp_path / "d.jsonl", [row, other])))
    assert (task.texts, task.label) == (texts, label)


@pytest.mark.parametrize(
    "row, kind",
    [
        ({"text": "a", "label": 1}, "sequence-classification"),
        ({"mr": "a", "ref": "b"}, "causal-lm"),
        ({"question": "a", "answer": "b"}, "causal-lm"),
        ({"text": "a"}, "causal-lm"),
    ],
)
def test_task_by_the_columns(tmp_path, row, kind):
    other = {**row, **({"label": 0} if "label" in row else {})}
    split = data.read_file(write_rows(tmp_path / "d.jsonl", [row, other]))
    assert task_for(split, TaskOptions()).kind == kind


def test_missing_columns_name_those_there_are(tmp_path):
    split = data.read_file(write_rows(tmp_path / "d.jsonl", [{"Sentence": "x", "lable": 1}]))
    messages, found = mistake("E0603", classification, split)
    assert "`Sentence`, `lable`" in messages[0] and "--label lable" in found[0].help
    _, found = mistake("E0603", classification, split, label="lable")
    assert "--text Sentence" in found[0].help
    _, found = mistake("E0603", classification, split, label="lable", text=("sentense",))
    assert "Sentence" in found[0].help
    assert classification(
        data.read_file(write_rows(tmp_path / "e.jsonl", [{"s": "x", "y": 1}, {"s": "x", "y": 2}])),
        text=("s",),
        label="y",
    ).labels == ("1", "2")


def test_labels_are_ordered_and_titled(tmp_path):
    rows_ = [{"text": "t", "label": i, "label_name": f"name {i}"} for i in (10, 2, 0)]
    task = classification(data.read_file(write_rows(tmp_path / "d.jsonl", rows_)))
    assert task.labels == ("0", "2", "10") and task.titles == ("name 0", "name 2", "name 10")
    rows_[0]["label_name"] = "name 2"
    assert classification(data.read_file(write_rows(tmp_path / "d.jsonl", rows_))).titles == ("0", "2", "10")


def test_one_class(tmp_path):
    split = data.read_file(write_rows(tmp_path / "d.jsonl", [{"text": "t", "label": "spam"}] * 3))
    messages, _ = mistake("E0604", classification, split)
    assert "`spam`" in messages[0]


@pytest.mark.parametrize("value", [None, 3, "", "  ", ["a"], {"a": 1}])
def test_texts_are_texts(tmp_path, value):
    split = data.read_file(write_rows(tmp_path / "d.jsonl", [{"text": "a"}, {"text": value}]))
    messages, _ = mistake("E0607", data.texts_of, split, "text")
    assert "line 2" in messages[0]


@pytest.mark.parametrize("value", [None, 1.5, "", ["a"]])
def test_labels_are_names_or_integers(tmp_path, value):
    split = data.read_file(write_rows(tmp_path / "d.jsonl", [{"label": "a"}, {"label": value}, {}]))
    messages, _ = mistake("E0607", data.labels_of, split, "label")
    assert "line 2" in messages[0] and "line 3" in messages[1]


def test_a_label_that_training_lacks(tmp_path):
    split = data.read_file(write_rows(tmp_path / "d.jsonl", [{"label": "cat"}, {"label": "dgo"}]))
    messages, found = mistake("E0606", data.known_labels, split, "label", ["cat", "dog"])
    assert "line 2" in messages[0] and "`dog`" in found[0].help


# ---------------------------------------------------------------- sampling


def test_sampling_is_seeded_and_said(tmp_path):
    write_rows(tmp_path / "train.jsonl", good(50))
    whole = data.read(tmp_path)
    first, again, other = (data.prepare(whole, 20, seed) for seed in (0, 0, 1))
    assert first["train"].rows == again["train"].rows != other["train"].rows
    assert len(first["train"]) == 18 and len(first["validation"]) == 2
    chosen = [r["text"] for s in ("train", "validation") for r in first[s].rows]
    assert len(set(chosen)) == 20, "no row is in both"
    assert any("20 of 50" in n for n in first.notes) and any("held out" in n for n in first.notes)


def test_a_given_validation_split_is_kept(tmp_path):
    write_rows(tmp_path / "train.jsonl", good(50))
    write_rows(tmp_path / "validation.jsonl", good(5))
    prepared = data.prepare(data.read(tmp_path), None, 0)
    assert len(prepared["train"]) == 50 and len(prepared["validation"]) == 5 and prepared.notes == ()


def test_smaller_samples_lie_in_larger_ones(tmp_path):
    write_rows(tmp_path / "train.jsonl", good(50))
    write_rows(tmp_path / "validation.jsonl", good(5))
    small, large = (data.prepare(data.read(tmp_path), k, 0)["train"].rows for k in (10, 30))
    assert large[:10] == small


def test_too_few_rows(tmp_path):
    write_rows(tmp_path / "train.jsonl", good(5))
    messages, _ = mistake("E0616", data.prepare, data.read(tmp_path), 6, 0)
    assert "5 rows" in messages[0]
    mistake("E0605", data.prepare, data.read(tmp_path), 1, 0)
    mistake("E0608", data.prepare, data.Data({"test": data.read(tmp_path)["train"]}), None, 0)
