"""Runs of methods whose start data decide: the training data are read for it, the same for the same seed."""

from __future__ import annotations

from pathlib import Path

import pytest
import small
import torch
from calibrated import batches
from names import name
from safetensors.torch import load_file
from together import together
from torch import nn

import unipelt
from unipelt.training import TrainConfig, ranks, starting, train


def run(method: Path, model: str, data: str, out: Path, seed: int = 0) -> dict[str, torch.Tensor]:
    train(TrainConfig(method=str(method), model=model, data=data, out=str(out), epochs=1, lr=1e-3, batch_size=8, max_length=16, seed=seed,
                      checkpoints=False))  # fmt: skip
    return load_file(out / "adapter.safetensors")


def test_a_run_reads_its_own_data_for_the_start(bert: str, intents: str, tmp_path: Path) -> None:
    text = """
method m(r: int = 2) {
  modify attn.q  insert parallel
  form {
    E, L, T = svd(second_moment(x))
    U, S, V = svd(mean_gradient(W))
    A: [d_in, r]  = E[:, : r]
    B: [r, d_out] = V[:, : r].T
    frozen A0: [d_in, r]  = A
    frozen B0: [r, d_out] = B
    delta = z @ A @ B - z @ A0 @ B0
  }
  compose add
}"""
    method = tmp_path / "m.pelt"
    method.write_text(text)
    first, again = run(method, bert, intents, tmp_path / "a"), run(method, bert, intents, tmp_path / "b")
    own = {n: t for n, t in first.items() if n.rpartition(".")[2] in ("A", "B")}
    assert own and all(t.abs().max() > 1e-3 for t in own.values())
    assert all(torch.equal(t, again[n]) for n, t in own.items())


def test_data_are_read_where_the_run_trains(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unless the model is to be sharded: then it need not fit on one device."""
    monkeypatch.setattr(ranks, "device", lambda: torch.device("meta"))
    assert starting.reads_data(unipelt.load(name("eva"))) and starting.reads_data(unipelt.load(name("lora_ga")))
    assert not starting.reads_data(unipelt.load(name("pissa")))
    model = nn.Linear(2, 2)
    assert starting._to_its_device(model) == [] and model.weight.is_meta
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setattr(ranks, "on_cpu", lambda: False)
    model = nn.Linear(2, 2)
    (note,) = starting._to_its_device(model)
    assert "on the CPU" in note and not model.weight.is_meta


def begun(rank: int, method: str) -> dict[str, list]:
    """A start from data on a base in bfloat16, then one that differs between the processes."""
    model = small.model("llama", dtype=torch.bfloat16)
    unipelt.apply(model, unipelt.load(name(method))(r=4), seed=2, data=batches(), batches=2)
    first = {n: t.clone() for n, t in unipelt.state_dict(model).items()}
    other = small.model("llama")
    unipelt.apply(other, unipelt.load(name("vera"))(r=4), seed=rank)
    before = {f"before {n}": t.clone() for n, t in unipelt.state_dict(other).items()}
    ranks.same([*unipelt.state_dict(other).values()])
    found = {**first, **before, **{f"same {n}": t for n, t in unipelt.state_dict(other).items()}}
    return {n: t.tolist() for n, t in found.items()}


def test_processes_start_the_same() -> None:
    for method in ("eva", "lora_ga"):
        one, other = together(begun, method)
        alone = small.model("llama", dtype=torch.bfloat16)
        unipelt.apply(alone, unipelt.load(name(method))(r=4), seed=2, data=batches(), batches=2)
        mine = unipelt.state_dict(alone)
        assert all(t.dtype == torch.float32 and t.isfinite().all() for t in mine.values())
        assert all(one[n] == other[n] == t.tolist() for n, t in mine.items())
        assert any(t != other[n] for n, t in one.items() if n.startswith("before"))
        assert all(t == other[n] for n, t in one.items() if n.startswith("same"))
