"""Starts that are computed of a weight: once for each site, of its own part of a fused map, stored and never computed again."""

from __future__ import annotations

from pathlib import Path

import pytest
import small
import torch

import unipelt
from unipelt.compiler.words import FUNCTIONS
from unipelt.language.loading import parse

FACTORS = """
method m(r: int = 3) {
  modify attn.q, attn.v
  insert parallel
  form {
    U, S, V = svd(W)
    A: [d_in, r]  = U[:, : r] * sqrt(S[: r])
    B: [r, d_out] = (V[:, : r] * sqrt(S[: r])).T
    frozen A0: [d_in, r]  = A
    frozen B0: [r, d_out] = B
    delta = z @ A @ B - z @ A0 @ B0
  }
  compose add
}
"""


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """What is taken apart."""
    found: list[torch.Tensor] = []
    svd = FUNCTIONS["svd"]
    monkeypatch.setitem(FUNCTIONS, "svd", lambda c, a: (found.append(a.data), svd(c, a))[1])
    return found


def parts(model: torch.nn.Module, kind: str) -> dict[str, torch.Tensor]:
    """The weights [d_in, d_out] of the queries and values of each layer, read by hand."""
    found = {}
    for i in range(small.LAYERS):
        if kind == "gpt2":
            whole = model.get_submodule(f"transformer.h.{i}.attn.c_attn").weight.detach()
            q, _, v = whole.split(small.WIDTH, 1)
        else:
            q, v = (model.get_submodule(f"model.layers.{i}.self_attn.{n}_proj").weight.detach().T for n in "qv")
        found |= {f"{i}.attn.q": q, f"{i}.attn.v": v}
    return found


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_a_weight_is_taken_apart_once_at_each_site(kind: str, counted: list[torch.Tensor]) -> None:
    model = small.model(kind, dtype=torch.float64)
    base, weights = small.output(model), parts(model, kind)
    plan = unipelt.apply(model, parse(FACTORS))
    assert plan.properties["identity at start"] == "yes"
    assert len(counted) == len(weights) == 6
    state = unipelt.state_dict(model)
    for site, W in weights.items():
        U, S, Vh = torch.linalg.svd(W.double(), full_matrices=False)
        best = (U[:, :3] * S[:3]) @ Vh[:3]
        A, B, A0, B0 = (
            next(t for n, t in state.items() if n.endswith(f"{site}.m.{x}")) for x in ("A", "B", "A0", "B0")
        )
        assert torch.allclose((A @ B).double(), best, atol=1e-5) and torch.allclose(
            (A.T @ A).double(), torch.diag(S[:3]), atol=1e-5
        )
        assert torch.equal(A, A0) and torch.equal(B, B0)
    assert torch.allclose(small.output(model), base, rtol=0, atol=1e-12)
    assert {n.rpartition(".")[2] for n, p in model.named_parameters() if p.requires_grad} == {"tensor_A", "tensor_B"}


def test_what_was_computed_is_stored_and_not_computed_again(tmp_path: Path, counted: list[torch.Tensor]) -> None:
    model = small.model("llama")
    unipelt.apply(model, parse(FACTORS))
    small.randomise(model)
    out, state = small.output(model), unipelt.state_dict(model)
    unipelt.save(model, tmp_path / "a")
    before = len(counted)
    again = small.model("llama")
    unipelt.attach(again, tmp_path / "a")
    assert len(counted) == before
    assert torch.equal(small.output(again), out)
    unipelt.save(again, tmp_path / "b")
    third = small.model("llama")
    unipelt.attach(third, tmp_path / "b", trainable=True)
    assert len(counted) == before and all(torch.equal(t, state[n]) for n, t in unipelt.state_dict(third).items())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_starts_are_computed_in_32_bits_at_least(dtype: torch.dtype, counted: list[torch.Tensor]) -> None:
    model = small.model("llama", dtype=dtype)
    base = small.output(model)
    unipelt.apply(model, parse(FACTORS))
    assert {t.dtype for t in counted} == {torch.float64 if dtype == torch.float64 else torch.float32}
    assert torch.equal(small.output(model), base)


def test_a_pass_reads_no_weight_where_only_starts_do(counted: list[torch.Tensor]) -> None:
    model = small.model("llama")
    unipelt.apply(model, parse(FACTORS), lowering=False)
    edits = [m for m in model.modules() if isinstance(m, unipelt.runtime.edits.Edit)]
    before = len(counted)
    small.output(model)
    assert edits and not any(e.needs & {"W", "bias"} for e in edits) and len(counted) == before


def test_more_than_there_is_is_refused() -> None:
    with pytest.raises(unipelt.PeltError, match="leaves the size 16") as caught:
        unipelt.apply(small.model("llama"), parse(FACTORS)(r=20))
    assert caught.value.diagnostics[0].code == "E0319"


@pytest.mark.parametrize("start", ["U[:, : r]", "P"])
def test_a_tensor_of_all_sites_starts_of_none(start: str) -> None:
    text = f"""
method m(r: int = 3) {{
  modify attn.q  insert parallel
  form {{
    U, S, V = svd(W)
    P: [d_in, r] = U[:, : r]
    Q: [d_in, r] = {start} per layer
    R: [r, d_out] ~ zeros
    delta = z @ (P - Q) @ R
  }}
  compose add
}}"""
    model = small.model("llama")
    unipelt.apply(model, parse(text))
    unipelt.remove(model)
    with pytest.raises(unipelt.PeltError) as caught:
        unipelt.apply(model, parse(text.replace("modify attn.q", "modify attn.q, attn.o")))
    assert caught.value.diagnostics[0].code == "E0513"
    with pytest.raises(unipelt.PeltError) as caught:
        parse(text.replace("per layer", "per model"))
    assert caught.value.diagnostics[0].code == "E0367"


def test_a_folded_save_keeps_what_was_computed(tmp_path: Path) -> None:
    text = FACTORS.replace("delta = z @ A @ B - z @ A0 @ B0", "delta = z @ (A * 2) @ B - z @ (A0 * 2) @ B0")
    model = small.model("llama", dtype=torch.float64)
    unipelt.apply(model, parse(text))
    small.randomise(model)
    out = small.output(model)
    for folder in ("a", "b"):  # a second time from what the first one stored
        unipelt.save(model, tmp_path / folder)
        model = small.model("llama", dtype=torch.float64)
        unipelt.attach(model, tmp_path / folder)
        assert torch.allclose(small.output(model), out, atol=1e-12)


@pytest.mark.parametrize("start", ["nearest_indices(b, d_out)", "top_indices(b, 3)"])
def test_a_folded_save_keeps_what_whole_numbers_start_from(tmp_path: Path, start: str) -> None:
    """They are known by it: which numbers they can be, and that they are whole."""
    text = f"""method m {{
      modify attn.v   insert x
      form {{
        b: [5] ~ normal(1)   frozen I: [3] = {start if "top" in start else start.replace("b,", "b[: 3],")}
        A: [d_in, 30] ~ normal(0.3)   B: [30, 3] ~ normal(0.3)
        delta = scatter(x @ (tanh(A) @ B), I, d_out)
      }}
      compose h + delta
    }}"""
    model = small.model("llama", dtype=torch.float64)
    plan = unipelt.apply(model, parse(text))
    assert plan.folds
    small.randomise(model)
    out = small.output(model)
    unipelt.save(model, tmp_path / "a")
    model = small.model("llama", dtype=torch.float64)
    unipelt.attach(model, tmp_path / "a")
    assert torch.allclose(small.output(model), out, atol=1e-12)
