"""Reading data: what is found by convention, and that each mistake is named with its file, line and remedy."""

import json
import sys

import pytest
from mistakes import mistakes
from tiny_hf import write_rows

from unipelt.training import data
from unipelt.training.config import TaskOptions
from unipelt.training.tasks import task_for


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
    _, help_ = mistakes("E0601", data.read, tmp_path / "trian.jsonl")
    assert "train.jsonl" in help_


def test_broken_lines_are_all_named(tmp_path):
    lines = ['{"text": "a", "label": 1}\n', '{"text": "b", \n', '{"text": "c", "label": 0}\n', "[1]\n"]
    messages, _ = mistakes("E0602", rows, tmp_path, lines)
    assert "line 2" in messages[0] and "not JSON" in messages[0]
    assert "line 4" in messages[1] and "a list, not an object" in messages[1]


def test_many_broken_lines_are_counted(tmp_path):
    messages, _ = mistakes("E0602", rows, tmp_path, ["{\n"] * 40)
    assert len(messages) == data.SHOWN and "35 more" in messages[-1]


def test_nested_json_does_not_overflow(tmp_path):
    messages, _ = mistakes("E0602", rows, tmp_path, ["[" * 100_000 + "\n"])
    assert "line 1" in messages[0]


def test_broken_csv(tmp_path):
    messages, _ = mistakes("E0609", rows, tmp_path, ["text,label\n", "a,b\n", "a,b,c\n"], "train.csv")
    assert "line 3" in messages[0] and "3 columns where the header has 2" in messages[0]
    messages, _ = mistakes("E0609", rows, tmp_path, ["text,text\n", "a,b\n"], "train.csv")
    assert "`text` twice" in messages[0]
    mistakes("E0609", rows, tmp_path, ["text,label\n", '"a,b\n'], "train.csv")


def test_other_files(tmp_path):
    mistakes("E0605", rows, tmp_path, [])
    mistakes("E0605", rows, tmp_path, ["text,label\n"], "train.csv")
    mistakes("E0608", rows, tmp_path, ["x"], "train.xlsx")
    (tmp_path / "latin.jsonl").write_bytes(b'{"text": "a"}\n{"text": "\xe9"}\n')
    messages, _ = mistakes("E0610", data.read_file, tmp_path / "latin.jsonl")
    assert "line 2" in messages[0]
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "notes.txt").touch()
    messages, _ = mistakes("E0608", data.read, empty)
    assert "notes.txt" in messages[0]


def test_two_files_of_one_split(tmp_path):
    write_rows(tmp_path / "dev.jsonl", good())
    write_rows(tmp_path / "validation.jsonl", good())
    messages, _ = mistakes("E0608", data.read, tmp_path)
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
    messages, help_ = mistakes("E0603", classification, split)
    assert "`Sentence`, `lable`" in messages[0] and "--label lable" in help_
    _, help_ = mistakes("E0603", classification, split, label="lable")
    assert "--text Sentence" in help_
    _, help_ = mistakes("E0603", classification, split, label="lable", text=("sentense",))
    assert "Sentence" in help_
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
    messages, _ = mistakes("E0604", classification, split)
    assert "`spam`" in messages[0]


@pytest.mark.parametrize("value", [None, 3, "", "  ", ["a"], {"a": 1}])
def test_texts_are_texts(tmp_path, value):
    split = data.read_file(write_rows(tmp_path / "d.jsonl", [{"text": "a"}, {"text": value}]))
    messages, _ = mistakes("E0607", data.texts_of, split, "text")
    assert "line 2" in messages[0]


@pytest.mark.parametrize("value", [None, 1.5, "", ["a"]])
def test_labels_are_names_or_integers(tmp_path, value):
    split = data.read_file(write_rows(tmp_path / "d.jsonl", [{"label": "a"}, {"label": value}, {}]))
    messages, _ = mistakes("E0607", data.labels_of, split, "label")
    assert "line 2" in messages[0] and "line 3" in messages[1]


def test_a_label_that_training_lacks(tmp_path):
    split = data.read_file(write_rows(tmp_path / "d.jsonl", [{"label": "cat"}, {"label": "dgo"}]))
    messages, help_ = mistakes("E0606", data.known_labels, split, "label", ["cat", "dog"])
    assert "line 2" in messages[0] and "`dog`" in help_


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
    messages, _ = mistakes("E0616", data.prepare, data.read(tmp_path), 6, 0)
    assert "5 rows" in messages[0]
    mistakes("E0605", data.prepare, data.read(tmp_path), 1, 0)
    mistakes("E0608", data.prepare, data.Data({"test": data.read(tmp_path)["train"]}), None, 0)


def test_so_many_rows_of_each_class(tmp_path):
    write_rows(tmp_path / "train.jsonl", good(50))
    whole = data.read(tmp_path)
    classes = data.labels_of(whole["train"], "label")
    few, again, other = (data.prepare(whole, None, seed, shots=4, classes=classes) for seed in (0, 0, 1))
    assert few["train"].rows == again["train"].rows != other["train"].rows
    for split in ("train", "validation"):
        labels = [r["label"] for r in few[split].rows]
        assert labels.count("a") == labels.count("b") == 4 == len(labels) / 2
    assert not {r["text"] for r in few["train"].rows} & {r["text"] for r in few["validation"].rows}
    assert any("4 rows of each of 2 classes" in n for n in few.notes) and any("held out" in n for n in few.notes)
    write_rows(tmp_path / "validation.jsonl", good(6))
    given = data.prepare(data.read(tmp_path), None, 0, shots=25, classes=classes)
    assert len(given["train"]) == 50 and len(given["validation"]) == 6
    messages, help_ = mistakes("E0616", data.prepare, whole, None, 0, shots=13, classes=classes)
    assert "25 rows of the class" in messages[0] and "26" in messages[0]


# ---------------------------------------------------------------- parquet and the hub

FEATURES = {
    "text": {"dtype": "string", "_type": "Value"},
    "label": {"names": ["bad", "good"], "_type": "ClassLabel"},
    "tags": {"feature": {"names": ["O", "B-x"], "_type": "ClassLabel"}, "_type": "List"},
}


def write_parquet(path, rows, features=None):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    table = pyarrow.Table.from_pylist(rows)
    if features:
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    parquet.write_table(table, path)
    return path


def test_parquet_with_the_names_of_its_classes(tmp_path):
    rows_ = [{"text": "x", "label": 1, "tags": [0, 1]}, {"text": "y", "label": -1, "tags": []}]
    split = data.read_file(write_parquet(tmp_path / "train.parquet", rows_, FEATURES))
    assert split.rows[0] == {"text": "x", "label": "good", "tags": ["O", "B-x"]}
    assert split.rows[1] == {"text": "y", "label": None, "tags": []}
    plain = data.read_file(write_parquet(tmp_path / "test.parquet", rows_))
    assert plain.rows == tuple(rows_)
    messages, _ = mistakes("E0607", data.labels_of, split, "label")
    assert "train.parquet`, row 2: `label` is missing" in messages[0]


def test_parquet_shards_are_one_split(tmp_path):
    for i in range(2):
        write_parquet(tmp_path / f"train-0000{i}-of-00002.parquet", [{"text": f"{i}{j}"} for j in range(3)])
    write_rows(tmp_path / "test.jsonl", good(3))
    found = data.read(tmp_path)
    assert [r["text"] for r in found["train"].rows] == ["00", "01", "02", "10", "11", "12"] and len(found["test"]) == 3
    write_rows(tmp_path / "train.jsonl", good(3))
    mistakes("E0608", data.read, tmp_path)


def test_parquet_that_is_none(tmp_path, monkeypatch):
    pytest.importorskip("pyarrow")
    (tmp_path / "train.parquet").write_bytes(b"PAR1 and nothing else")
    mistakes("E0631", data.read, tmp_path)
    mistakes("E0605", data.read_file, write_parquet(tmp_path / "none.parquet", []))
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    _, help_ = mistakes("E0630", data.read, tmp_path)
    assert "unipelt[data]" in help_


@pytest.fixture
def hub(monkeypatch):
    """The library `datasets` with one data set behind it."""
    datasets = pytest.importorskip("datasets")
    asked = []

    def load(name, configuration=None):
        asked.append((name, configuration))
        if name != "owner/reviews":
            raise datasets.exceptions.DatasetNotFoundError(f"Dataset '{name}' doesn't exist on the Hub")
        features = datasets.Features(
            {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["bad", "good"])}
        )
        rows = {"text": ["x", "y"], "label": [1, 0]}
        part = datasets.Dataset.from_dict(rows, features=features)
        secret = datasets.Dataset.from_dict({"text": ["z"], "label": [-1]}, features=features)
        return datasets.DatasetDict({"train": part, "test": secret, "unsupervised": part})

    monkeypatch.setattr(datasets, "load_dataset", load)
    return asked


def test_a_data_set_of_the_hub(hub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = data.read("hub:owner/reviews")
    assert found["train"].rows == ({"text": "x", "label": "good"}, {"text": "y", "label": "bad"})
    assert set(found.splits) == {"train"}
    assert "`unsupervised`" in found.notes[1] and "no labels" in found.notes[0]
    assert found["train"].place(1) == "`hub:owner/reviews/train`, row 2"
    data.read("hub:owner/reviews:small")
    assert hub == [("owner/reviews", None), ("owner/reviews", "small")]
    assert "doesn't exist on the Hub" in mistakes("E0632", data.read, "hub:owner/review")[0][0]


def test_a_path_that_is_not_there_is_never_a_name_of_the_hub(hub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "examples").mkdir()
    (tmp_path / "notes.txt").write_text("not data")
    messages, help_ = mistakes("E0601", data.read, "exmaples/reviews")
    assert "no file or folder `exmaples/reviews`" in messages[0] and "`examples`" in help_
    assert "`hub:owner/reviews`" in mistakes("E0601", data.read, "owner/reviews")[1]
    for path in ("text", "json", "imdb", "train.jsonl", "./reviews", "/reviews", "a/b/c", "", " ", "x" * 5000):
        mistakes("E0601", data.read, path)
    assert not hub


@pytest.mark.parametrize("name", ["text", "json", "csv", ".", "..", "", "./reviews", "../up/reviews", "/etc/reviews", "a/b/c", "owner/",
                                  "owner/..", "hf://datasets/owner/reviews", "owner/reviews:", "x" * 5000, "owner/" + "x" * 5000])  # fmt: skip
def test_what_is_no_name_of_a_data_set_is_not_given_to_the_library(name, hub, tmp_path, monkeypatch):
    """`text` and its like are its builders: they would read every file below the current folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes.txt").write_text("not data")
    _, help_ = mistakes("E0632", data.read, f"hub:{name}")
    assert "`hub:user/name`" in help_ and not hub


def test_a_folder_here_does_not_stand_in_for_a_data_set_of_the_hub(hub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_rows_of_two(tmp_path / "owner" / "reviews")
    assert "lies here" in mistakes("E0632", data.read, "hub:owner/reviews")[0][0] and not hub
    assert len(data.read("owner/reviews")["train"]) == 2


def write_rows_of_two(folder):
    folder.mkdir(parents=True)
    (folder / "train.jsonl").write_text('{"text": "x", "label": "a"}\n{"text": "y", "label": "b"}\n')


def test_without_the_library_of_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "datasets", None)
    _, help_ = mistakes("E0630", data.read, "hub:owner/reviews")
    assert "unipelt[data]" in help_
    messages, _ = mistakes("E0601", data.read, "imdb")
    assert "no file or folder `imdb`" in messages[0]


def test_the_real_library_reads_the_splits(tmp_path, monkeypatch):
    """The real loader, on files that stand for a data set: only the name is another."""
    datasets = pytest.importorskip("datasets")
    (tmp_path / "reviews").mkdir()
    write_parquet(tmp_path / "reviews" / "train.parquet", [{"text": "x", "label": 1, "tags": [0]}], FEATURES)
    load = datasets.load_dataset
    monkeypatch.setattr(
        datasets, "load_dataset", lambda name, configuration: load(str(tmp_path / "reviews"), configuration)
    )
    found = data.read("hub:owner/reviews")
    assert found["train"].rows[0]["text"] == "x"
