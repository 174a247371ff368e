"""Runs of methods whose start data decide: the training data are read for it, the same for the same seed."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file

from unipelt.training import TrainConfig, train


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
