"""Mistakes of a first day: wrong columns, models, methods, files and folders. One message each, with what to do about it."""

import pytest
import tiny_tasks
from test_commands import call

OTHER = """
method one(r: int = 2) { modify attn   insert parallel   form bottleneck(r)   compose add }
method two(r: int = 2) from one(r) { modify ffn }
"""


@pytest.fixture(scope="module")
def desk(spec, bert, gpt2, intents, tmp_path_factory):
    """A folder as a user's: models, data, methods beside each other."""
    place = tmp_path_factory.mktemp("desk")
    for name, there in (("bert", bert), ("gpt2", gpt2), ("intents", intents)):
        (place / name).symlink_to(there)
    (place / "mine.pelt").write_text(OTHER)
    (place / "none.pelt").write_text("form f { delta = z }\n")
    (place / "notes.txt").write_text("some notes\n")
    tiny_tasks.splits(place / "completed", tiny_tasks.completed, 6, 3)
    tiny_tasks.write_t5(place / "t5")
    (place / "runs").mkdir()
    (place / "models").mkdir()
    (place / "models" / "llama").mkdir()
    return place


TRAIN = ["-m", "bert", "-d", "intents", "-o", "run", "--max-length", "16", "--epochs", "1"]


@pytest.mark.parametrize("command, code, said", [
    (["show", "mine.pelt"], "E0406", "write `mine.pelt:NAME`"),
    (["show", "none.pelt"], "E0406", "none.pelt has no method"),
    (["show", "lora+"], "E0401", "a name is missing in `lora+`"),
    (["show", ""], "E0401", "`` names no method"),
    (["show", "unipelt"], "E0401", "methods that begin so: `unipelt_ap`, `unipelt_ap_ungated`, `unipelt_apl`"),
    (["vary", "prompt", "--insert", "x"], "E0401", "`prompt_tuning`"),
    (["show", "bert"], "E0401", "it has no method.pelt"),
    (["check", "runs"], "E0407", "a folder that holds some"),
    (["check", "--fix", "runs"], "E0407", "a folder that holds some"),
    (["fmt", "runs"], "E0407", "a folder that holds some"),
    (["plan", "lora", "-m", "models/lama"], "E0613", "in `models`: did you mean `llama`?"),
    (["plan", "lora", "-m", "someone/model"], "E0613", "check the spelling and the network"),
    (["plan", "lora", "-m", "bert", "--task", "causal-lm"], "E0633", "reads in both directions"),
    (["train", "lora", "-m", "bert", "-d", "completed", "-o", "run", "--max-length", "16"], "E0633", "reads in both directions"),
    (["eval", "--model", "bert", "-d", "completed", "--max-length", "16"], "E0633", "reads in both directions"),
    (["train", "bitfit", "-m", "t5", "-d", "completed", "-o", "run", "--max-length", "16"], "E0510", "there are no biases"),
    (["train", "lora", *TRAIN, "--scheduler", "cosin"], "E0620", "did you mean `cosine`?"),
    (["train", "lora", *TRAIN, "--task", "sequence-clasification"], "E0620", "did you mean `sequence-classification`?"),
    (["train", "lora", *TRAIN, "--optimizer", "adam"], "E0620", "`adamw_torch`"),
    (["train", "lora", *TRAIN, "-o", "notes.txt/run"], "E0611", "notes.txt` is a file"),
    (["train", "prompt_tuning", *TRAIN, "--set", 'start=tokens("")'], "E0522", "words that the tokenizer knows"),
    (["train", "full", *TRAIN, "--lr", "1e9", "--no-checkpoints"], "E0573", "a lower learning rate"),
    (["eval", "rns", "-d", "intents"], "E0615", "did you mean `runs`?"),
    (["push", "rns", "me/x", "--dry-run"], "E0577", "did you mean `runs`?"),
    (["predict", "notes.txt", "hello"], "E0615", "is a file, not a folder"),
    (["cross", "lora", "mam"], "E0802", "`--row-b`"),
])  # fmt: skip
def test_a_mistake_is_answered_with_its_remedy(desk, monkeypatch, command, code, said):
    monkeypatch.chdir(desk)
    before = sorted(f.name for f in desk.iterdir())
    _, err = call(*command, code=2 if code == "E0620" else 1)
    assert err.count("error[") == 1 and f"error[{code}]" in err and "= help" in err and said in err
    if "1e9" not in command:  # training had begun
        assert sorted(f.name for f in desk.iterdir()) == before


def test_a_file_that_defines_nothing_is_no_success(tmp_path):
    (tmp_path / "empty.pelt").touch()
    assert call("check", tmp_path / "empty.pelt")[0] == "nothing is defined here\n"
