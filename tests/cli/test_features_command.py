"""`unipelt features`: a file of hidden states, with what it holds said on the terminal and as JSON."""

import json

from safetensors import safe_open
from safetensors.torch import load_file
from test_commands import call, parsed


def test_a_layer_and_a_run(bert, intents, spec, tmp_path):
    out, run = tmp_path / "deep" / "x.safetensors", tmp_path / "run"
    found = parsed("features", 1, "--model", bert, "--data", intents, "--max-length", 16, "--out", out)
    tensors = load_file(out)
    assert found["ok"] and found["tensors"] == {n: list(t.shape) for n, t in tensors.items()}
    assert found["about"]["layer"] == 1 and len(tensors["train.rows"]) == len(tensors["train.labels"]) == 90
    call("train", f"{spec}:small", "--model", bert, "--data", intents, "--out", run, "--max-steps", 2, "--max-length", 16,
         "--no-checkpoints")  # fmt: skip
    said, _ = call(
        "features", run, "--data", intents, "--split", "test", "--pool", "first", "--out", tmp_path / "y.safetensors"
    )
    assert "test.features" in said and "18 × 32" in said and "train" not in said
    with safe_open(tmp_path / "y.safetensors", "pt") as f:
        assert json.loads(f.metadata()["method"]) == "small"


def test_mistakes(bert, intents, tmp_path):
    data = ("--data", intents, "--max-length", 16, "--out", tmp_path / "x.safetensors")
    assert "error[E0785]" in call("features", 9, "--model", bert, *data, code=1)[1]
    assert "error[E0757]" in call("features", 1, *data, code=1)[1]
    assert "error[E0613]" in call("features", 1, "--model", tmp_path / "none", *data, code=1)[1]
    assert (
        "is one of mean, first, last, none" in call("features", 1, "--model", bert, *data, "--pool", "max", code=2)[1]
    )
    (tmp_path / "x.safetensors").write_text("mine")
    assert "error[E0611]" in call("features", 1, "--model", bert, *data, code=1)[1]
    assert [f.name for f in tmp_path.iterdir()] == ["x.safetensors"]
