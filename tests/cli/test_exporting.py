"""`unipelt export`: what a trained run or a saved adapter gives, from a file without unipelt and torch."""

import json

import numpy as np
import onnxruntime
import pytest
from test_commands import call, parsed

import unipelt
from unipelt.training.models import load_plain, load_tokenizer

pytestmark = pytest.mark.long
TEXTS = ["money return please", "when can my parcel arrive"]


@pytest.fixture(scope="module")
def trained(spec, bert, intents, tmp_path_factory):
    out = tmp_path_factory.mktemp("exported") / "run"
    call("train", f"{spec}:small", "--model", bert, "--data", intents, "--out", out, "--max-steps", 3, "--lr", "1e-2",
         "--max-length", 16, "--no-checkpoints")  # fmt: skip
    return out


@pytest.fixture(scope="module")
def saved(spec, bert, tmp_path_factory):
    """An adapter that no run made."""
    folder = tmp_path_factory.mktemp("saved") / "adapter"
    model = load_plain(bert, "base")
    unipelt.apply(model, unipelt.load(spec, "bent")(r=3), name="mine")
    unipelt.save(model, folder, "mine")
    return folder


def answers(file, folder):
    """Probabilities of the labels, by onnxruntime and the tokenizer alone."""
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    batch = load_tokenizer(folder)(TEXTS, padding=True, return_tensors="np")
    logits = session.run(["logits"], {i.name: batch[i.name] for i in session.get_inputs()})[0]
    odds = np.exp(logits - logits.max(-1, keepdims=True))
    return odds / odds.sum(-1, keepdims=True)


def test_a_run(trained, bert, tmp_path):
    file = tmp_path / "deep" / "model.onnx"
    found = parsed("export", trained, "--out", file)
    assert found["ok"] and found["checked"] and found["difference"] < 1e-5 and found["bytes"] == file.stat().st_size
    predicted = parsed("predict", trained, *TEXTS)["predictions"]
    labels = json.loads((trained / "task.json").read_text())["task"]["labels"]
    for odds, wanted in zip(answers(file, bert), predicted, strict=True):
        assert dict(zip(labels, odds)) == pytest.approx(wanted["probabilities"], abs=1e-5)


def test_mistakes(trained, saved, bert, tmp_path):
    assert "error[E0751]" in call("export", trained, "--out", tmp_path / "model.pt", code=1)[1]
    assert "error[E0615]" in call("export", tmp_path / "nothing", "--out", tmp_path / "m.onnx", code=1)[1]
    assert (
        "has its task already"
        in call("export", trained, "--task", "causal-lm", "--out", tmp_path / "m.onnx", code=2)[1]
    )
    assert (
        "error[E0615]"
        in call("export", tmp_path / "nothing", "--task", "base", "--out", tmp_path / "m.onnx", code=1)[1]
    )
    assert (
        "error[E0633]"
        in call("export", saved, "--model", bert, "--task", "causal-lm", "--out", tmp_path / "m.onnx", code=1)[1]
    )
    err = call("export", saved, "--out", tmp_path / "m.onnx", code=1)[1]
    assert "error[E0757]" in err and "--model" in err
    err = call("export", saved, "--model", bert, "--merge", "--out", tmp_path / "m.onnx", code=1)[1]
    assert "error[E0563]" in err and "`bent`" in err
    assert not list(tmp_path.iterdir())
    (tmp_path / "m.onnx").write_text("mine")
    found = parsed("export", trained, "--out", tmp_path / "m.onnx", code=1)
    assert found["diagnostics"][0]["code"] == "E0611" and (tmp_path / "m.onnx").read_text() == "mine"
