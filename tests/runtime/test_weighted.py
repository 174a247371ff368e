"""Several adapters that act with weights: of each change so much, and a reason where there is no change to weigh."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from names import name as named
from small import inputs, model, output, randomise
from torch import nn

import unipelt
from unipelt.language.report.diagnostics import PeltError
from unipelt.runtime.registry import record

#: Methods of every kind of change: added, scaled, of a weight, of copied parameters, attention beside the tokens'.
METHODS: dict[str, dict[str, Any]] = {
    "lora": {"r": 2}, "ia3": {}, "pfeiffer": {"r": 3}, "parallel_adapter": {"r": 3}, "dora": {"r": 2}, "ln_tuning": {}, "llama_adapter": {"l": 2},
    "oft": {},
}  # fmt: skip


def with_adapters(kind: str, *names: str, dtype: torch.dtype = torch.float64) -> nn.Module:
    m = model(kind, dtype=dtype)
    for i, n in enumerate(names):
        method, _, _ = n.partition(".")
        unipelt.apply(
            m, unipelt.load(named(method), arguments=METHODS.get(method)), name=_name(n), seed=i, allow_future=True
        )
        randomise(m, _name(n), seed=i + 1)
    return m


def _name(n: str) -> str:
    return n.replace(".", "_")


def only_at(m: nn.Module, path: str, *which: Any) -> torch.Tensor:
    """What leaves a module, whatever its input, while these act."""
    x = torch.randn(2, 5, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad(), unipelt.using(m, *which):
        return m.get_submodule(path)(x)  # type: ignore[no-any-return]


@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_the_sum_of_low_rank_changes_is_exact(kind: str) -> None:
    m = with_adapters(kind, "lora.a", "lora.b", "dora")
    path = "encoder.layer.0.attention.self.query" if kind == "bert" else "model.layers.0.self_attn.q_proj"
    base, a, b = (only_at(m, path, n) for n in (None, "lora_a", "lora_b"))
    for wa, wb in ((0.7, 0.3), (1.0, -0.5), (0.0, 2.0)):
        both = only_at(m, path, {"lora_a": wa, "lora_b": wb})
        torch.testing.assert_close(both, base + wa * (a - base) + wb * (b - base), rtol=1e-10, atol=1e-10)
    d = only_at(m, path, "dora")
    torch.testing.assert_close(only_at(m, path, {"dora": 0.25}), base + 0.25 * (d - base), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kind", ["bert", "llama"])
@pytest.mark.parametrize("name", METHODS)
def test_weight_1_is_the_adapter_0_the_base_and_between_them_it_moves(kind: str, name: str) -> None:
    m = with_adapters(kind, name)
    whole = {w: _at(m, {name: w}) for w in (1, 1 - 1e-9, 0.5, 0)}
    torch.testing.assert_close(whole[1], _at(m, name), rtol=0, atol=0)
    torch.testing.assert_close(whole[1 - 1e-9], whole[1], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(whole[0], _at(m, None), rtol=1e-10, atol=1e-10)
    assert not torch.allclose(whole[0.5], whole[0], atol=1e-4) and not torch.allclose(whole[0.5], whole[1], atol=1e-4)


def _at(m: nn.Module, which: Any) -> torch.Tensor:
    with unipelt.using(m, which):
        return output(m)


def test_copies_of_parameters_are_added_by_their_weights() -> None:
    m = with_adapters("bert", "ln_tuning.a", "ln_tuning.b")
    path = "encoder.layer.0.output.LayerNorm"
    host = m.get_submodule(path)
    values = {
        n: {k.rsplit(".", 1)[-1]: t for k, t in unipelt.state_dict(m, n).items() if path in k}
        for n in ("ln_tuning_a", "ln_tuning_b")
    }
    want = {p: getattr(host, p) + sum(w * (values[n][p] - getattr(host, p)) for n, w in (("ln_tuning_a", 0.7), ("ln_tuning_b", 0.3)))
            for p in ("weight", "bias")}  # fmt: skip
    x = torch.randn(2, 5, 32, dtype=torch.float64)
    with torch.no_grad(), unipelt.using(m, {"ln_tuning_a": 0.7, "ln_tuning_b": 0.3}):
        found = host(x)
    torch.testing.assert_close(
        found, nn.functional.layer_norm(x, (32,), want["weight"], want["bias"], host.eps), rtol=1e-9, atol=1e-9
    )


def test_other_weights_are_not_remembered_as_these() -> None:
    """What is computed once outside training is kept for the weights it was computed with."""
    m = with_adapters("llama", "dora", "oft")
    weights = [{"dora": 0.2, "oft": 0.9}, {"dora": 0.9, "oft": 0.2}, {"dora": 0.2, "oft": 0.9}]
    found = []
    for w in weights:
        unipelt.activate(m, w)
        found.append(output(m))
    assert torch.equal(found[0], found[2]) and not torch.allclose(found[0], found[1], atol=1e-4)
    assert torch.equal(output(copy.deepcopy(m)), found[2])


def test_gradients_are_those_of_the_weighted_change() -> None:
    m = with_adapters("llama", "lora.a", "lora.b")
    unipelt.activate(m, {"lora_a": 0.5, "lora_b": 2.0})
    m(**inputs())[0].square().mean().backward()
    for n in ("lora_a", "lora_b"):
        assert all(p.requires_grad and p.grad.abs().max() > 0 for p in record(m, n).trained().values())
    p = next(p for k, p in record(m, "lora_b").trained().items() if k.endswith("B"))
    with torch.no_grad():
        step, before = 1e-3, p[0, 0].item()
        p[0, 0] = before + step
        high = m(**inputs())[0].square().mean()
        p[0, 0] = before - step
        low = m(**inputs())[0].square().mean()
    torch.testing.assert_close(p.grad[0, 0], (high - low) / (2 * step), rtol=1e-2, atol=1e-4)


def test_what_acts_with_weights_is_taken_out_saved_and_not_merged(tmp_path: Path) -> None:
    m = with_adapters("llama", "lora.a", "lora.b", "ia3", dtype=torch.float32)
    unipelt.activate(m, {"lora_a": 0.7, "lora_b": 0.3, "ia3": 0.5})
    assert unipelt.active(m) == ("lora_a", "lora_b", "ia3")
    unipelt.remove(m, "ia3")
    both = output(m)
    assert torch.equal(both, _at(m, {"lora_a": 0.7, "lora_b": 0.3}))
    with pytest.raises(PeltError, match=r"E0858.*0\.7"):
        unipelt.save_merged(m, tmp_path / "merged", ["lora_a", "lora_b"])
    m.save_pretrained(tmp_path / "model")
    again = model("llama")
    unipelt.attach(again, tmp_path / "model")
    torch.testing.assert_close(output(again), both)
    unipelt.activate(m, {"lora_a": 0.7})
    with pytest.raises(PeltError, match="E0858"):
        unipelt.merge(m, "lora_a")
    unipelt.combine(m, {"lora_a": 0.7, "lora_b": 0.3}, name="sum")
    unipelt.merge(m, "sum")
    torch.testing.assert_close(output(m), both, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("given, code, why", [
    ({"prompt_tuning": 0.5}, "E0858", "among the tokens"), ({"prefix_tuning": 0.5}, "E0858", "softmax"), ({"mam": 0.5}, "E0858", "softmax"),
    ({"probing": 0.5}, "E0858", "labels of its own"), ({"lora": float("nan")}, "E0858", "finite"), ({"lora": True}, "E0858", "finite"),
    ({"nobody": 0.5}, "E0551", "nobody"), ({}, "E0858", "names"),
])  # fmt: skip
def test_what_has_no_weight(given: dict[str, Any], code: str, why: str) -> None:
    m = model("bert_labels")
    for n in ("lora", "prompt_tuning", "prefix_tuning", "mam"):
        unipelt.apply(m, unipelt.load(named(n)), name=n)
    unipelt.apply(m, unipelt.load(named("probing")), name="probing", labels=5)
    unipelt.activate(m, "lora")
    before = output(m)
    for call in (lambda: unipelt.activate(m, given), lambda: unipelt.using(m, given).__enter__()):
        with pytest.raises(PeltError, match=f"(?s){code}.*{why}"):
            call()
    assert unipelt.active(m) == ("lora",) and torch.equal(output(m), before)
    unipelt.activate(m, {"mam": 1, "lora": 0.5})
    assert output(m).isfinite().all()
