"""The base keeps the dtype in which it is stored; `--dtype` chooses another."""

import json

import pytest
import torch
from safetensors.torch import load_file
from test_commands import call, parsed
from transformers import AutoModel, AutoTokenizer


@pytest.fixture(scope="module")
def half(bert, tmp_path_factory):
    folder = tmp_path_factory.mktemp("half")
    AutoModel.from_pretrained(bert, dtype=torch.bfloat16).save_pretrained(folder)
    AutoTokenizer.from_pretrained(bert).save_pretrained(folder)
    return folder


def dtypes(folder):
    return {t.dtype for t in load_file(folder / "model.safetensors").values()}


def run(spec, half, intents, out, *more):
    call("train", f"{spec}:small", "--model", half, "--data", intents, "--out", out, "--max-steps", 2, "--max-length", 16,
         "--no-checkpoints", *more)  # fmt: skip


def test_a_run_and_its_merge_keep_it(spec, half, intents, tmp_path):
    run(spec, half, intents, tmp_path / "run")
    trained = {t.dtype for t in load_file(tmp_path / "run" / "adapter.safetensors").values()}
    assert trained == {torch.float32}
    call("merge", tmp_path / "run", "--out", tmp_path / "plain")
    assert dtypes(tmp_path / "plain") == {torch.bfloat16}
    assert json.loads((tmp_path / "plain" / "config.json").read_text())["dtype"] == "bfloat16"
    call("merge", tmp_path / "run", "--dtype", "float32", "--out", tmp_path / "wide")
    assert dtypes(tmp_path / "wide") == {torch.float32}


def test_what_a_run_chose_its_other_commands_keep(spec, half, intents, tmp_path):
    run(spec, half, intents, tmp_path / "run", "--dtype", "float32")
    assert json.loads((tmp_path / "run" / "task.json").read_text())["dtype"] == "float32"
    call("merge", tmp_path / "run", "--out", tmp_path / "plain")
    assert dtypes(tmp_path / "plain") == {torch.float32}
    a = parsed("predict", tmp_path / "run", "money please")["predictions"]
    b = parsed("predict", tmp_path / "run", "--dtype", "bfloat16", "money please")["predictions"]
    assert a[0]["probabilities"] != b[0]["probabilities"]


@pytest.mark.parametrize("command", ["train", "eval", "predict", "merge", "export"])
def test_an_unknown_dtype_is_refused_before_anything_is_loaded(command, spec, half, intents, tmp_path):
    given = {
        "train": (f"{spec}:small", "--model", half, "--data", intents, "--out", tmp_path / "run"),
        "eval": (tmp_path, "--data", intents), "predict": (tmp_path, "money"), "merge": (tmp_path, "--out", tmp_path / "out"),
        "export": (tmp_path, "--out", tmp_path / "model.onnx"),
    }[command]  # fmt: skip
    err = call(command, *given, "--dtype", "bf16", code=2)[1]
    assert "error[E0620]" in err and "bfloat16" in err and not list(tmp_path.iterdir())
