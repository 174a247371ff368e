"""Arithmetic on adapters: what the sum does is the sum of what they do, and the rest against other code."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from names import name as named
from small import model, output, randomise, state
from torch import nn

import unipelt
from unipelt.language.report.diagnostics import PeltError
from unipelt.runtime.arithmetic import _joined

Q = "model.layers.0.self_attn.q_proj"


def lora(r: int = 2, at: str = "[attn.q, attn.v]") -> unipelt.Method:
    return unipelt.load(named("lora"), arguments={"r": r, "alpha": 2.0 * r, "at": at})


def with_adapters(kind: str = "llama", **methods: unipelt.Method) -> nn.Module:
    m = model(kind)
    for i, (name, method) in enumerate(methods.items()):
        unipelt.apply(m, method, name=name, seed=i, allow_future=True)
        randomise(m, name)
    return m


def change(m: nn.Module, name: str, path: str = Q) -> torch.Tensor:
    """W_new - W, [out, in], by merging."""
    weight = m.get_submodule(path).weight
    before = weight.detach().clone()
    unipelt.activate(m, name)
    unipelt.merge(m, name)
    found = weight.detach() - before
    unipelt.unmerge(m)
    return found


def test_a_sum_of_two_ranks_is_exact_and_saved_as_an_adapter(tmp_path: Path) -> None:
    m = with_adapters(a=lora(2), b=lora(3))
    base = state(m)
    found = unipelt.combine(m, {"a": 0.7, "b": -0.4}, name="c")
    assert (
        found.rank == 5
        and found.error < 1e-6
        and set(found.left_out) == {f"model.layers.{i}.self_attn.{p}_proj" for i in range(3) for p in "qv"}
    )
    assert unipelt.active(m) == ("c",)
    torch.testing.assert_close(change(m, "c"), 0.7 * change(m, "a") - 0.4 * change(m, "b"), rtol=1e-4, atol=1e-5)
    unipelt.activate(m, "c")
    unipelt.save(m, tmp_path / "c", "c")
    other = model("llama")
    unipelt.attach(other, tmp_path / "c")
    torch.testing.assert_close(output(other), output(m))
    unipelt.remove(m, "c")
    unipelt.activate(m, "b")
    assert state(m) == base


def test_different_methods_and_sites_add_up() -> None:
    """(IA)³ rescales, LoRA adds, DoRA does both: each is a change of weights."""
    m = with_adapters(
        a=lora(2, "[attn.q]"),
        b=unipelt.load(named("lora"), arguments={"r": 2, "at": "[ffn.up]"}),
        c=unipelt.load(named("ia3")),
    )
    found = unipelt.combine(m, {"a": 1.0, "b": 1.0, "c": 0.5}, name="all")
    assert "model.layers.0.mlp.up_proj" in found.left_out and found.error < 1e-5
    k = "model.layers.1.self_attn.k_proj"
    torch.testing.assert_close(change(m, "all", k), 0.5 * change(m, "c", k), rtol=1e-3, atol=1e-5)


def test_a_fused_map_is_one_map() -> None:
    m = with_adapters("gpt2", a=lora(2), b=lora(2))
    unipelt.combine(m, {"a": 1.0, "b": 1.0}, name="c")
    path = "transformer.h.0.attn.c_attn"
    torch.testing.assert_close(change(m, "c", path), change(m, "a", path) + change(m, "b", path), rtol=1e-4, atol=1e-5)


def test_compression_is_the_best_of_its_rank_and_says_what_it_leaves_out() -> None:
    m = with_adapters(a=lora(4))
    found = unipelt.combine(m, {"a": 1.0}, name="c", rank=2)
    D = change(m, "a")
    U, S, V = torch.linalg.svd(D.double())
    torch.testing.assert_close(change(m, "c").double(), (U[:, :2] * S[:2]) @ V[:2], rtol=1e-4, atol=1e-5)
    assert found.rank == 2 and found.left_out[Q] == pytest.approx(float(S[2:].norm() / S.norm()), abs=1e-5)
    assert found.error == max(found.left_out.values())


def test_negation_takes_away_what_was_added() -> None:
    m = with_adapters(a=lora())
    with unipelt.disabled(m):
        base = output(m)
    unipelt.combine(m, {"a": -1.0}, name="less")
    unipelt.activate(m, "a", "less")
    torch.testing.assert_close(output(m), base, rtol=1e-4, atol=1e-4)


def by_loop(parts: list[torch.Tensor], density: float) -> torch.Tensor:
    """TIES entry by entry: trim, elect a sign, take the mean of those that agree."""
    flat = [p.flatten().tolist() for p in parts]
    kept = []
    for values in flat:
        least = sorted(map(abs, values), reverse=True)[max(1, round(density * len(values))) - 1]
        kept.append([v if abs(v) >= least else 0.0 for v in values])
    out = []
    for column in zip(*kept):
        total = sum(column)
        agree = [v for v in column if v * total > 0]
        out.append(sum(agree) / len(agree) if agree else 0.0)
    return torch.tensor(out, dtype=torch.float64).reshape(parts[0].shape)


@pytest.mark.parametrize("density", [0.2, 0.5, 1.0])
def test_ties(density: float) -> None:
    g = torch.Generator().manual_seed(1)
    parts = [torch.randn(7, 5, generator=g, dtype=torch.float64) for _ in range(3)]
    found = _joined([(w, p) for w, p in zip((1.0, 0.5, -2.0), parts)], "ties", density, g)
    torch.testing.assert_close(found, by_loop([1.0 * parts[0], 0.5 * parts[1], -2.0 * parts[2]], density))


def test_dare_drops_a_share_and_keeps_the_mean() -> None:
    one = torch.ones(400, 400, dtype=torch.float64)
    found = _joined([(2.0, one)], "dare", 0.25, torch.Generator().manual_seed(3))
    assert set(found.unique().tolist()) == {0.0, 8.0} and abs(float(found.mean()) - 2.0) < 0.05
    both = _joined([(1.0, one), (-1.0, 2 * one)], "dare_ties", 0.5, torch.Generator().manual_seed(3))
    assert set(both.unique().tolist()) == {-4.0, 0.0, 2.0}
    m = with_adapters(a=lora(), b=lora())
    first = unipelt.combine(m, {"a": 1.0, "b": 1.0}, name="c", how="dare", seed=5)
    unipelt.combine(m, {"a": 1.0, "b": 1.0}, name="d", how="dare", seed=5)
    assert torch.equal(change(m, "c"), change(m, "d")) and first.error < 1e-5


@pytest.mark.parametrize("method", ["parallel_adapter", "prefix_tuning", "lora"])
def test_an_average_is_of_the_tensors(method: str) -> None:
    """A soup, also of methods that do not merge."""
    small = {"r": 2} if method != "prefix_tuning" else {"l": 3}
    made = unipelt.load(named(method), arguments=small)
    m = with_adapters(a=made, b=made)
    found = unipelt.combine(m, {"a": 3.0, "b": 1.0}, name="c", how="average")
    a, b, c = (unipelt.state_dict(m, n) for n in "abc")
    assert all(torch.allclose(c[k], 0.75 * a[k] + 0.25 * b[k], atol=1e-6) for k in c) and found.rank is None


@pytest.mark.parametrize(
    "call, code",
    [
        (dict(weights={"a": 1.0}, how="mean"), "E0850"), (dict(weights={}), "E0850"), (dict(weights={"a": float("nan")}), "E0850"),
        (dict(weights={"a": 1.0}, rank=0), "E0850"), (dict(weights={"a": 1.0}, density=0.0), "E0850"),
        (dict(weights={"a": 1.0, "b": -1.0}, how="average"), "E0850"), (dict(weights={"none": 1.0}), "E0551"),
        (dict(weights={"a": 1.0, "n": 1.0}), "E0563"), (dict(weights={"a": 1.0, "n": 1.0}, how="average"), "E0851"),
        (dict(weights={"bias": 1.0}), "E0851"), (dict(weights={"a": 1.0}, name="b"), "E0553"), (dict(weights={"a": 1.0}, name="no name"), "E0552"),
    ],
    ids=str,
)  # fmt: skip
def test_what_cannot_be_combined(call: dict, code: str) -> None:
    m = with_adapters(
        "bert",
        a=lora(),
        b=lora(),
        n=unipelt.load(named("parallel_adapter"), arguments={"r": 2}),
        bias=unipelt.load(named("bitfit")),
    )
    before, active, given = state(m), unipelt.active(m), output(m)
    with pytest.raises(PeltError) as caught:
        unipelt.combine(m, **call)
    assert caught.value.diagnostics[0].code == code, caught.value
    assert state(m) == before and unipelt.active(m) == active and torch.equal(output(m), given)
