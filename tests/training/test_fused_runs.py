"""Runs of methods over adapters that other runs trained."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from names import name
from safetensors.torch import load_file

import unipelt
from unipelt.runtime.push import prepared
from unipelt.training import TrainConfig, train
from unipelt.training.saved import load_run, predict_run


def config(method: str, model: str, data: str, out: Path, **arguments: str) -> TrainConfig:
    return TrainConfig(method=name(method), model=model, data=data, out=str(out), set=arguments, epochs=1, lr=1e-2, batch_size=16,
                       max_length=16, checkpoints=False)  # fmt: skip


def test_two_runs_are_fused_by_a_third(bert: str, intents: str, tmp_path: Path) -> None:
    """Its folder has all that it needs: those of its members may go."""
    members = [tmp_path / "first", tmp_path / "second"]
    for seed, out in enumerate(members):
        train(config("pfeiffer", bert, intents, out, r=str(4 + seed)))
    before = [load_file(out / "adapter.safetensors") for out in members]
    both = tmp_path / "both"
    result = train(config("adapter_fusion", bert, intents, both, of=",".join(map(str, members))))
    assert any("a copy, frozen, of first (" in note for note in result.notes)
    saved = load_file(both / "adapter.safetensors")
    for own, label in zip(before, ("first", "second")):
        kept = {
            n.rpartition(f".{label}_")[2]: t
            for n, t in saved.items()
            if f".0.ffn.{name('adapter_fusion')}.{label}_" in n
        }
        assert len(kept) == 4
        assert all(torch.equal(t, own[f"encoder.layer.0.ffn.{name('pfeiffer')}.{n}"]) for n, t in kept.items())
    trained = saved[f"encoder.layer.0.ffn.{name('adapter_fusion')}.V"]
    assert not torch.allclose(trained, torch.eye(len(trained)), atol=1e-4)
    run = load_run(str(both))
    texts = [["move it to monday"], ["what is the weather"]]
    wanted = predict_run(run, texts)
    for out in members:
        shutil.rmtree(out)
    assert predict_run(load_run(str(both)), texts) == wanted
    text = (both / "README.md").read_text()
    assert "Frozen in it: first (" in text and str(tmp_path) not in text
    assert str(tmp_path) not in (both / "method.pelt").read_text() + (both / "adapter.json").read_text()
    assert prepared(str(both), "someone/fused").files


def test_members_that_are_not_there_are_said_before_anything_is_trained(
    bert: str, intents: str, tmp_path: Path
) -> None:
    with pytest.raises(unipelt.PeltError) as caught:
        train(config("adapter_fusion", bert, intents, tmp_path / "both", of=str(tmp_path / "none")))
    assert [d.code for d in caught.value.diagnostics] == ["E0599"] and not (tmp_path / "both").exists()
