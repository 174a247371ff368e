"""`unipelt import` and `unipelt export --to peft`."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import peft
import pytest
import torch
from names import RENAMED
from safetensors.torch import load_file
from small import model, randomise
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast
from typer.testing import CliRunner

import unipelt
from unipelt.cli.app import app

pytestmark = pytest.mark.skipif(bool(RENAMED), reason="the declarations call methods by their names")


def call(*words: object, code: int = 0) -> str:
    done = CliRunner().invoke(app, [str(w) for w in words])
    assert done.exit_code == code, (done.output, done.stderr if done.stderr_bytes else "")
    return done.output


def written(folder: Path) -> torch.nn.Module:
    """A model, which lies in a folder with a tokenizer."""
    base = model("llama")
    base.save_pretrained(folder)
    words = Tokenizer(WordLevel({"<unk>": 0, "a": 1}, unk_token="<unk>"))
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>", pad_token="<unk>").save_pretrained(folder)
    return base


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_there_and_back(tmp_path: Path) -> None:
    base = written(tmp_path / "base")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        m = peft.get_peft_model(base, peft.LoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM"))
        with torch.no_grad():
            for p in m.parameters():
                if p.requires_grad:
                    p.add_(0.1)
        m.save_pretrained(tmp_path / "theirs")
    found = json.loads(call("import", tmp_path / "theirs", "-m", tmp_path / "base", "-o", tmp_path / "ours", "--json"))
    assert found["ok"] and found["peft_type"] == "LORA"
    assert "lora" in (tmp_path / "ours" / "method.pelt").read_text()
    call("export", tmp_path / "ours", "-m", tmp_path / "base", "--to", "peft", "-o", tmp_path / "again", "--serving")
    a, b = (load_file(tmp_path / d / "adapter_model.safetensors") for d in ("theirs", "again"))
    assert a.keys() == b.keys() and all(torch.equal(t, b[k]) for k, t in a.items())
    assert "E0611" in call("import", tmp_path / "theirs", "-m", tmp_path / "base", "-o", tmp_path / "ours", code=1)
    assert "E0840" in call("import", tmp_path / "their", "-m", tmp_path / "base", "-o", tmp_path / "new", code=1)
    call("export", tmp_path / "ours", "-m", tmp_path / "base", "--to", "peft", "--merge", "-o", tmp_path / "x", code=2)
    call("export", tmp_path / "ours", "-m", tmp_path / "base", "--serving", "-o", tmp_path / "x.onnx", code=2)
    assert not (tmp_path / "new").exists() and not (tmp_path / "x").exists()


def test_tensors_of_whole_numbers_come_in(tmp_path: Path) -> None:
    m = written(tmp_path / "base")
    unipelt.apply(m, unipelt.load("shira_r", arguments={"r": 2}), "mine")
    unipelt.export_peft(m, tmp_path / "theirs", "mine")
    call("import", tmp_path / "theirs", "-m", tmp_path / "base", "-o", tmp_path / "ours", "--task", "causal-lm")
    assert "scatter" in (tmp_path / "ours" / "method.pelt").read_text()


def test_what_peft_has_not_goes_as_two_factors(tmp_path: Path) -> None:
    m = written(tmp_path / "base")
    unipelt.apply(m, unipelt.load("lora+ia3"), "mine")
    randomise(m, "mine", scale=0.05)
    unipelt.save(m, tmp_path / "ours", "mine")
    here = (tmp_path / "ours", "-m", tmp_path / "base", "-o", tmp_path / "out")
    assert "--as lora --rank 8" in call("export", *here, "--to", "peft", code=1)
    found = json.loads(call("export", *here, "--to", "peft", "--as", "lora", "--rank", 3, "--json"))
    assert (
        found["ok"] and found["rank"] == 3 and 0 < found["overall"] < found["error"] == max(found["left_out"].values())
    )
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["peft_type"] == "LORA" and config["r"] == 3
    for wrong in (["--as", "lora"], ["--to", "peft", "--rank", 3], ["--to", "peft", "--as", "ia3"]):
        call("export", tmp_path / "ours", "-m", tmp_path / "base", "-o", tmp_path / "x.onnx", *wrong, code=2)
    assert "did you mean `peft`?" in call("export", *here, "--to", "pefft", code=2)


def test_a_gguf_file(tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf", reason="pip install 'unipelt[gguf]'")
    m = written(tmp_path / "base")
    for n, method in (("plain", "lora"), ("other", "ia3")):
        unipelt.apply(m, unipelt.load(method), n)
        randomise(m, n, scale=0.05)
        unipelt.save(m, tmp_path / n, n)
    to = ("-m", tmp_path / "base", "--to", "gguf-lora", "-o")
    assert "llama-cli" in call("export", tmp_path / "plain", *to, tmp_path / "a.gguf")
    found = json.loads(
        call("export", tmp_path / "other", *to, tmp_path / "b.gguf", "--as", "lora", "--rank", 2, "--json")
    )
    assert found["rank"] == 2 and found["folder"] == str(tmp_path / "b.gguf") and found["error"] > 0
    for file in ("a", "b"):
        assert gguf.GGUFReader(tmp_path / f"{file}.gguf").fields["general.type"].contents() == "adapter"
    assert "--as lora" in call("export", tmp_path / "other", *to, tmp_path / "c.gguf", code=1)
    assert "E0848" in call("export", tmp_path / "other", *to, tmp_path / "c", code=1)
    call("export", tmp_path / "plain", *to, tmp_path / "c.gguf", "--merge", code=2)
