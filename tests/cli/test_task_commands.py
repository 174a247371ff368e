"""The commands for every kind of task: what they print, and what a wrong column, model, label or option is answered with."""

import json

import pytest
import tiny_tasks as tiny
from test_commands import call, parsed


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("place")
    (folder / "full.pelt").write_text(tiny.FULL)
    tiny.write_masked(folder / "masked")
    tiny.write_chatty(folder / "llama")
    tiny.write_t5(folder / "t5")
    for name in ("tagged", "asked", "talked", "completed", "classified", "several", "measured"):
        tiny.splits(folder / name, getattr(tiny, name), 24, 6)
    return folder


def trained(place, model, rows, *options):
    out = place / f"run-{model}-{rows}"
    if not out.exists():
        call("train", place / "full.pelt", "--model", place / model, "--data", place / rows, "--out", out, "--epochs", 1,
             "--max-length", 48, "--batch-size", 8, "--lr", "5e-3", *options)  # fmt: skip
    return out


PET = ["--pattern", "{text} type : {mask} .", "--words", "refund,arrival,closing"]


@pytest.mark.sampled(2)
@pytest.mark.parametrize("model, rows, options, metric, texts, columns", [
    ("masked", "tagged", [], "entity_f1", ["my money is late ."], ["text", "entities"]),
    ("masked", "asked", [], "exact_match", ["refund", "my money is late"], ["question", "answer"]),
    ("masked", "classified", PET, "macro_f1", ["my money"], ["label", "word"]),
    ("masked", "several", [], "micro_f1", ["my money"], ["text", "labels"]),
    ("masked", "measured", [], "spearman", ["my money"], ["text", "value"]),
    ("llama", "talked", [], "perplexity", ["my money"], []),
    ("t5", "completed", ["--max-target-length", "6"], "rougeL", ["my money"], []),
])  # fmt: skip
def test_train_eval_predict(place, model, rows, options, metric, texts, columns):
    out = trained(place, model, rows, *options)
    record = json.loads((out / "metrics.json").read_text())
    found = parsed("eval", out, "--data", place / rows)
    assert found["metrics"] == record["metrics"]["test"] and metric in found["metrics"]
    printed, _ = call("eval", out, "--data", place / rows)
    assert metric in printed
    (one,) = parsed("predict", out, *texts)["predictions"]
    printed, _ = call("predict", out, *texts, "--max-new-tokens", 4)
    assert all(c in one and c in printed for c in columns)
    rows_ = parsed("predict", out, "--file", place / rows / "test.jsonl")["predictions"]
    assert len(rows_) == 6
    if columns == ["question", "answer"]:
        assert "reads 2 texts each: question, context" in call("predict", out, "refund", code=1)[1]


def test_a_model_as_it_was_pretrained(place):
    found = parsed("eval", "--model", place / "masked", "--data", place / "classified", *PET, "--max-length", 48)
    assert found["split"] == "test" and found["metrics"]["examples"] == 6
    found = parsed("eval", "--model", place / "llama", "--data", place / "talked", "--max-length", 48, "--generate",
                   "--max-target-length", 4)  # fmt: skip
    assert {"perplexity", "bleu"} <= set(found["metrics"])
    assert "needs a trained head" in call("eval", "--model", place / "masked", "--data", place / "tagged", code=1)[1]
    assert "--model" in call("eval", "--data", place / "tagged", code=2)[1]


def test_generation_is_asked_for(place):
    out = trained(place, "t5", "completed", "--max-target-length", "6")
    assert "bleu" not in parsed("eval", out, "--data", place / "completed", "--no-generate")["metrics"]
    tagged = trained(place, "masked", "tagged")
    assert "generates nothing" in call("eval", tagged, "--data", place / "tagged", "--generate", code=2)[1]
    assert "has its task already" in call("eval", tagged, "--data", place / "tagged", "--task", "pet", code=2)[1]


@pytest.mark.parametrize("rows, options, code, said", [
    ("tagged", ["--label", "ner_tag"], "E0603", "did you mean `ner_tags`?"),
    ("asked", ["--text", "question,contxt"], "E0603", "did you mean `context`?"),
    ("classified", ["--pattern", "{txt} {mask}", "--words", "a,b,c"], "E0603", "did you mean `text`?"),
    ("classified", ["--pattern", "{text} {mask}", "--words", "refund,zebra,closing"], "E0644", "not in the model's vocabulary"),
    ("classified", ["--pattern", "{text} {mask}"], "E0643", "`--words`"),
    ("tagged", ["--task", "tokens"], "E0620", "token-classification"),
    ("tagged", ["--stride", "3"], "E0620", "question-answering"),
    ("completed", ["--chat"], "E0637", "no chat template"),
    ("tagged", ["--shots", "3"], "E0620", "--train-size"),
    ("classified", ["--shots", "50"], "E0616", "8 rows of the class"),
    ("classified", ["--shots", "2", "--train-size", "4"], "E0620", "exclude each other"),
    ("talked", ["--stride", "0"], "E0620", "at least 1"),
    ("nothing", [], "E06", "check the"),
])  # fmt: skip
def test_mistakes(place, tmp_path, rows, options, code, said):
    command = [
        "train",
        place / "full.pelt",
        "--model",
        place / "masked",
        "--data",
        place / rows,
        "--out",
        tmp_path / "run",
    ]
    if rows in ("talked", "completed"):
        command[3] = place / ("masked" if "--stride" in options else "t5")
        options = [*options, *(["--task", "causal-lm"] if "--chat" in options else [])]
    status = 2 if code == "E0620" else 1  # an option that does not fit is wrong usage
    _, err = call(*command, "--max-length", 48, *options, code=status)
    assert f"error[{code}" in err and said in err and not (tmp_path / "run").exists()
    found = parsed(*command, "--max-length", 48, *options, code=status)
    assert not found["ok"] and found["diagnostics"][0]["code"].startswith(code)


def test_mistakes_name_file_and_line(place, tmp_path):
    rows = (place / "tagged" / "train.jsonl").read_text().splitlines()
    (tmp_path / "train.jsonl").write_text(
        "\n".join([*rows[:3], '{"tokens": ["a", "b"], "ner_tags": ["O"]}', *rows[3:]])
    )
    command = ["train", place / "full.pelt", "--model", place / "masked", "--out", tmp_path / "run", "--data"]
    _, err = call(*command, tmp_path / "train.jsonl", code=1)
    assert "train.jsonl`, line 4: `ner_tags` has 1 labels for 2 words" in err
    (tmp_path / "empty.jsonl").touch()
    assert "has no rows" in call(*command, tmp_path / "empty.jsonl", code=1)[1]
    command[3] = str(place / "maskd")
    assert "`masked`" in call(*command, place / "tagged", code=1)[1]
    out = trained(place, "masked", "tagged")
    unknown = tmp_path / "unknown.jsonl"
    unknown.write_text('{"tokens": ["a"], "ner_tags": ["B-refnud"]}\n')
    _, err = call("eval", out, "--data", unknown, code=1)
    assert "unknown.jsonl`, line 1: the label `B-refnud`" in err and "`B-refund`" in err
