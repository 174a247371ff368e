"""Code that lies beside a base is never run, weights are never unpickled, and a base that a record names is named before it is loaded."""

from __future__ import annotations

import ast
import io
import json
from pathlib import Path

import pytest
import tiny_hf

import unipelt
from unipelt.language.report.diagnostics import PeltError
from unipelt.training import models

LOADERS = ("from_pretrained", "from_config")


def test_every_loader_is_told_not_to_trust_code() -> None:
    met = 0
    for path in Path(unipelt.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in LOADERS:
                met += 1
                given = [ast.unparse(k.value) for k in node.keywords if k.arg is None]
                named = {k.arg: ast.unparse(k.value) for k in node.keywords if k.arg is not None}
                assert {"TRUSTED", "WEIGHTS_ONLY"} & set(given) or named.get("trust_remote_code") == "False", (
                    f"{path}:{node.lineno}"
                )
    assert met >= 5
    assert models.TRUSTED == {"trust_remote_code": False} and models.WEIGHTS_ONLY == {
        "trust_remote_code": False,
        "weights_only": True,
    }


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    """A base whose configuration names code that lies beside it."""
    folder = Path(tiny_hf.write_bert(tmp_path / "base"))
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "unheard-of", "auto_map": {n: f"code.{c}" for n, c in (
        ("AutoConfig", "C"), ("AutoModel", "M"), ("AutoModelForSequenceClassification", "M"))}}  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\nclass C: pass\nclass M: pass\n")
    return folder


@pytest.mark.parametrize("load", [
    lambda f: models.load_config(f), lambda f: models.load_config_model(f, "base"), lambda f: models.load_plain(f, "base"),
    lambda f: models.load_plain(f, "sequence-classification"),
])  # fmt: skip
def test_code_of_a_base_is_not_run_whatever_stands_on_stdin(
    load, hostile: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n" * 10))
    with pytest.raises(PeltError):
        load(str(hostile))
    assert not (hostile.parent / "ran").exists()


def test_code_of_a_tokenizer_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Path(tiny_hf.write_bert(tmp_path / "base"))
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config |= {"tokenizer_class": "Unheard", "auto_map": {"AutoTokenizer": ["code.T", None]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\nclass T: pass\n")
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n" * 10))
    try:
        models.load_tokenizer(str(folder))
    except PeltError:
        pass
    assert not (tmp_path / "ran").exists()


def test_a_pickle_of_weights_is_not_unpickled(tmp_path: Path) -> None:
    import torch

    folder = Path(tiny_hf.write_bert(tmp_path / "base"))
    (folder / "model.safetensors").unlink()

    class Bomb:
        def __reduce__(self):
            return open, (str(tmp_path / "ran"), "w")

    torch.save({"bert.pooler.dense.bias": Bomb()}, folder / "pytorch_model.bin")
    with pytest.raises(PeltError):
        models.load_plain(str(folder), "base")
    assert not (tmp_path / "ran").exists()


def test_a_base_that_the_record_names_is_said_before_it_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from unipelt.training import saved

    (tmp_path / "task.json").write_text(json.dumps({"version": 1, "model": "someone/base", "task": {}, "seed": 0}))
    said: list[str] = []

    def load(base: str) -> None:
        said.append(f"loading {base}")
        raise KeyboardInterrupt

    monkeypatch.setattr(saved, "task_from_json", lambda record: None)
    monkeypatch.setattr(saved, "load_config", load)
    with pytest.raises(KeyboardInterrupt):
        saved.load_run(tmp_path, say=said.append)
    assert said == [f"base: someone/base, as the record in {tmp_path} says", "loading someone/base"]
    said.clear()
    with pytest.raises(KeyboardInterrupt):
        saved.load_run(tmp_path, "mine", say=said.append)
    assert said == ["loading mine"]
