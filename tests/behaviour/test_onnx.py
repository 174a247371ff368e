"""An adapted model as an ONNX file: what onnxruntime computes from it is what the model computes.

An ONNX file takes seconds to make: `benchmarks/export.py` has every method.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch
from names import name as named
from small import declared
from tiny import VOCAB, batch, build, put
from transformers import BertConfig, BertForSequenceClassification, ResNetConfig, ResNetForImageClassification

import unipelt
from unipelt.runtime import exporting
from unipelt.runtime.registry import registry

#: Another order of sums, as a share of the largest entry.
NEAR, EFFECT = 1e-5, 1e-3
pytestmark = pytest.mark.long


def run(file: Path, given: dict[str, torch.Tensor]) -> tuple[list[str], torch.Tensor]:
    """The names of the inputs, and the first output."""
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    names = [i.name for i in session.get_inputs()]
    return names, torch.from_numpy(session.run(None, {n: given[n].numpy() for n in names})[0])


def apart(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).abs().max()) / max(1.0, float(a.abs().max())) if a.shape == b.shape else float("inf")


def refused(code: str, call: Any, *args: Any, **options: Any) -> str:
    with pytest.raises(unipelt.PeltError) as e:
        call(*args, **options)
    assert [d.code for d in e.value.diagnostics] == [code], str(e.value)
    return str(e.value)


def test_the_file_gives_what_the_model_gives(tmp_path):
    """Free rows and tokens, padding, rows among the tokens, an input that the adapter declares; modes are as they were."""
    m = build("bert", layers=1)
    put(m, named("prompt_ensemble"))
    m.train()
    m.encoder.eval()  # in two modes at once
    modes = [x.training for x in m.modules()]
    file = tmp_path / "new" / "m.onnx"
    found = unipelt.export_onnx(m, file)
    assert found is not None and found <= NEAR and [f.name for f in file.parent.iterdir()] == ["m.onnx"]
    assert [x.training for x in m.modules()] == modes
    m.eval()
    for rows, tokens in ((3, 9), (1, 5)):
        given = batch("bert", rows, tokens, seed=rows)
        given |= declared(m, given["input_ids"])
        with torch.no_grad():
            wanted = m(**given)[0]
        names, output = run(file, given)
        assert names == ["input_ids", "attention_mask", "member"] and apart(wanted, output) <= NEAR


def test_rows_that_enter_a_later_block(tmp_path):
    """The mask that hides them is computed in the file, from the places that are free there."""
    m = build("bert", layers=2)
    put(m, unipelt.load(named("late_prompt_tuning"))(l=3, before=1))
    assert unipelt.export_onnx(m, tmp_path / "m.onnx") <= NEAR
    for rows, tokens in ((3, 9), (1, 5)):
        given = batch("bert", rows, tokens, seed=rows)
        assert apart(m(**given)[0].detach(), run(tmp_path / "m.onnx", given)[1]) <= NEAR


@pytest.fixture(scope="module")
def pictures():
    """A model with its adapter, one of the two traces that it takes to test what is done with one, and its translation."""
    m = build("vit_head", layers=1)
    before = m(**batch("vit_head")).logits.detach()
    put(m, named("lora"))
    with exporting.evaluating(m):
        traced = exporting.trace(m)
        return m, before, traced, exporting._translate(traced)


@pytest.fixture
def write(pictures, monkeypatch):
    """`export_onnx` of that model, with what was made of it before."""
    m, _, traced, made = pictures
    monkeypatch.setattr(exporting, "trace", lambda *a: traced)
    monkeypatch.setattr(exporting, "_translate", lambda *a: made)
    return lambda path: unipelt.export_onnx(m, path)


def test_of_pictures(tmp_path, pictures, write):
    m, before, *_ = pictures
    assert write(tmp_path / "m.onnx") <= NEAR
    given = batch("vit_head", 5, seed=3)
    with torch.no_grad():
        assert apart(m(**given).logits, run(tmp_path / "m.onnx", given)[1]) <= NEAR
    assert apart(before, run(tmp_path / "m.onnx", batch("vit_head"))[1]) > EFFECT


def test_half_a_file_or_another_one_is_not_kept(tmp_path, pictures, write, monkeypatch):
    m, _, _, made = pictures
    (tmp_path / "file").touch()
    refused("E0753", write, tmp_path / "file" / "m.onnx")
    save, norm = type(made).save, m.vit.layernorm.bias

    def other(self: Any, file: Path) -> None:
        """Of the model with another bias."""
        kept = norm.detach().clone()
        with torch.no_grad():
            norm.add_(0.01)
            save(self, file)
            norm.copy_(kept)

    with monkeypatch.context() as patch:
        patch.setattr(type(made), "save", other)
        assert "other `logits` than the model" in refused("E0756", write, tmp_path / "m.onnx")
    with monkeypatch.context() as patch:
        patch.setattr(type(made), "save", lambda self, file: Path(file).write_bytes(b"half"))
        assert "onnxruntime cannot run the file" in refused("E0756", write, tmp_path / "m.onnx")
    assert [f.name for f in tmp_path.iterdir()] == ["file"]


def test_tensors_of_gigabytes_lie_beside_the_file(tmp_path, pictures, write, monkeypatch):
    m, _, _, made = pictures
    save = type(made).save
    monkeypatch.setattr(type(made), "save", lambda self, file: save(self, file, external_data=True))
    (tmp_path / "m.onnx.data").write_text("mine")
    refused("E0611", write, tmp_path / "m.onnx")
    assert (tmp_path / "m.onnx.data").read_text() == "mine"
    assert write(tmp_path / "n.onnx") <= NEAR
    assert sorted(f.name for f in tmp_path.iterdir()) == ["m.onnx.data", "n.onnx", "n.onnx.data"]
    given = batch("vit_head", 2, seed=4)
    with torch.no_grad():
        assert apart(m(**given).logits, run(tmp_path / "n.onnx", given)[1]) <= NEAR


def test_without_onnxruntime_the_file_is_not_compared(tmp_path, write, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda n, *a: None if n == "onnxruntime" else found(n, *a))
    assert write(tmp_path / "m.onnx") is None
    assert run(tmp_path / "m.onnx", batch("vit_head", 2))[1].shape == (2, 3)


# ---------------------------------------------------------------- what does not go


def test_what_is_seen_before_tracing(tmp_path, monkeypatch):
    m = build("bert", layers=1)
    assert "does not end in `.onnx`" in refused("E0751", unipelt.export_onnx, m, tmp_path / "model.pt")
    (tmp_path / "there.onnx").write_text("mine")
    refused("E0611", unipelt.export_onnx, m, tmp_path / "there.onnx")
    assert (tmp_path / "there.onnx").read_text() == "mine"
    assert "`input_features`" in refused("E0754", unipelt.export_onnx, build("whisper", layers=1), tmp_path / "m.onnx")
    pictures = ResNetForImageClassification(ResNetConfig(embedding_size=8, hidden_sizes=[8], depths=[1]))  # of any size
    assert "`pixel_values`" in refused("E0754", unipelt.export_onnx, pictures, tmp_path / "m.onnx")
    refused("E0501", unipelt.export_onnx, torch.nn.Linear(2, 2), tmp_path / "m.onnx")
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda n, *a: None if n.startswith("onnx") else found(n, *a))
    assert "onnx and onnxscript" in refused("E0752", unipelt.export_onnx, m, tmp_path / "m.onnx")
    assert [f.name for f in tmp_path.iterdir()] == ["there.onnx"]


class Deciding(BertForSequenceClassification):
    """Decides by its input's values, which no trace can follow: always, or while an adapter acts."""

    always = False

    def forward(self, input_ids: Any = None, attention_mask: Any = None, **more: Any) -> Any:
        if (self.always or registry(self).switch.live) and (input_ids > 5).sum() > 3:
            attention_mask = None
        return super().forward(input_ids, attention_mask, **more)


def test_what_cannot_be_traced_is_told_apart(tmp_path, monkeypatch):
    """Whether it is the model, which cannot without an adapter either, or what the adapter does there."""
    m = Deciding(
        BertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, vocab_size=VOCAB)
    ).eval()
    unipelt.apply(m, unipelt.load(named("lora")), name="mine")
    text = refused("E0755", unipelt.export_onnx, m, tmp_path / "m.onnx")
    assert "`mine`" in text and "data-dependent" in text and "it can without" in text
    monkeypatch.setattr(Deciding, "always", True)
    text = refused("E0755", unipelt.export_onnx, m, tmp_path / "m.onnx")
    assert "`mine`" not in text and "without an adapter either" in text
    assert unipelt.active(m) == ("mine",) and not list(tmp_path.iterdir())
