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
from small import model
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast
from typer.testing import CliRunner

from unipelt.cli.app import app

pytestmark = pytest.mark.skipif(bool(RENAMED), reason="the declarations call methods by their names")


def call(*words: object, code: int = 0) -> str:
    done = CliRunner().invoke(app, [str(w) for w in words])
    assert done.exit_code == code, (done.output, done.stderr if done.stderr_bytes else "")
    return done.output


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_there_and_back(tmp_path: Path) -> None:
    base = model("llama")
    base.save_pretrained(tmp_path / "base")
    words = Tokenizer(WordLevel({"<unk>": 0, "a": 1}, unk_token="<unk>"))
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>", pad_token="<unk>").save_pretrained(
        tmp_path / "base"
    )
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
