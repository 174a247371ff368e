"""Frozen draws are not stored: a folder has their seed, they are drawn again as they were, and other draws are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import small
import torch
from names import name
from safetensors.torch import load_file
from torch import nn

import unipelt
from unipelt.compiler import initialise
from unipelt.compiler.random import Counted
from unipelt.language.report.diagnostics import PeltError
from unipelt.runtime import redrawn
from unipelt.runtime.hub import MANIFEST, WEIGHTS

#: Methods with frozen draws, small: of the whole model, of a kind, of a site, and beside what is computed at the start.
DRAWING: dict[str, dict[str, Any]] = {
    "vera": {"r": 4},
    "nola": {"n": 5},
    "lori": {"r": 4},
    "fourierft": {"n": 20},
    "shira": {},
    "lora_fa": {"init": "orthogonal"},
}
METHODS = pytest.mark.parametrize("method", DRAWING)


def adapted(method: str, seed: int = 4, kind: str = "bert", dtype: torch.dtype = torch.float32) -> nn.Module:
    m = small.model(kind, dtype=dtype)
    unipelt.apply(m, unipelt.load(name(method))(**DRAWING[method]), seed=seed)
    small.randomise(m)
    return m


def frozen(m: nn.Module) -> dict[str, torch.Tensor]:
    from unipelt.runtime.registry import record

    plan = record(m, "default").plan
    return {n: t.clone() for n, t in unipelt.state_dict(m).items() if n in plan.tensors and plan.tensors[n].frozen}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(
        torch.equal(t, other[n]) and t.dtype == other[n].dtype for n, t in one.items()
    )


@METHODS
def test_they_are_left_out_and_come_back(method: str, tmp_path: Path) -> None:
    m = adapted(method)
    drawn = frozen(m)
    folder = unipelt.save(m, tmp_path / "a")
    manifest = json.loads((folder / MANIFEST).read_text())
    assert drawn and set(manifest["drawn"]) == set(drawn) and manifest["seed"] == 4
    assert set(load_file(folder / WEIGHTS)) == set(unipelt.state_dict(m)) - set(drawn)
    other = small.model("bert")
    unipelt.attach(other, folder)
    assert same(unipelt.state_dict(m), unipelt.state_dict(other))
    assert torch.equal(small.output(m), small.output(other))
    again = unipelt.save(other, tmp_path / "b")
    assert json.loads((again / MANIFEST).read_text())["drawn"] == manifest["drawn"]


@METHODS
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_they_are_the_same_in_each_dtype(method: str, dtype: torch.dtype, tmp_path: Path) -> None:
    """Also where the adapter was held in a shorter dtype than that in which it is attached, as if it had been stored."""
    m, plain = adapted(method, dtype=dtype), frozen(adapted(method))
    if dtype is torch.bfloat16:
        m.to(torch.bfloat16)
    assert all(torch.equal(t, plain[n].to(t.dtype)) for n, t in frozen(m).items())
    left, stored = unipelt.save(m, tmp_path / "a"), unipelt.save(m, tmp_path / "b", draws=True)
    assert not set(load_file(left / WEIGHTS)) & set(plain) and set(load_file(stored / WEIGHTS)) >= set(plain)
    found = []
    for folder in (left, stored):
        other = small.model("bert")
        unipelt.attach(other, folder)
        found.append(unipelt.state_dict(other))
    assert same(*found)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@METHODS
def test_they_are_the_same_on_a_gpu(method: str, tmp_path: Path) -> None:
    m, plain = small.model("bert").to("cuda"), adapted(method)
    unipelt.apply(m, unipelt.load(name(method))(**DRAWING[method]), seed=4)
    assert same({n: t.cpu() for n, t in frozen(m).items()}, frozen(plain))
    folder = unipelt.save(plain, tmp_path / "a")
    other = small.model("bert").to("cuda")
    unipelt.attach(other, folder)
    assert same({n: t.cpu() for n, t in unipelt.state_dict(other).items()}, unipelt.state_dict(plain))


def test_one_that_was_changed_is_stored(tmp_path: Path) -> None:
    m = adapted("vera")
    n, t = next(iter(frozen(m).items()))
    unipelt.state_dict(m)[n].mul_(2)
    folder = unipelt.save(m, tmp_path / "a")
    assert n in load_file(folder / WEIGHTS) and n not in json.loads((folder / MANIFEST).read_text())["drawn"]
    other = small.model("bert")
    unipelt.attach(other, folder)
    assert torch.equal(unipelt.state_dict(other)[n], 2 * t) and same(unipelt.state_dict(m), unipelt.state_dict(other))


def test_what_steps_change_is_stored(tmp_path: Path) -> None:
    """A frozen tensor of zeros that keeps a mean of gradients is one too, until it holds something."""
    text = """method m { modify attn.q insert parallel
      form { A: [d_in, 2] ~ normal(0.1) B: [2, d_out] ~ normal(0.1) frozen s: [d_in, 2] ~ zeros
             delta = z @ (A + 0 * s) @ B
             after step { s = 0.9 * s + 0.1 * abs(gradient(A)) } }
      compose h + delta }"""
    m = small.model("bert")
    unipelt.apply(m, unipelt.parse(text))
    before = json.loads((unipelt.save(m, tmp_path / "a", fold=False) / MANIFEST).read_text())
    m(**small.inputs())[0].square().mean().backward()
    unipelt.after_step(m)
    folder = unipelt.save(m, tmp_path / "b", fold=False)
    assert len(before["drawn"]) == small.LAYERS and not json.loads((folder / MANIFEST).read_text())["drawn"]
    other = small.model("bert")
    unipelt.attach(other, folder)
    assert same(unipelt.state_dict(m), unipelt.state_dict(other)) and all(t.any() for t in frozen(other).values())


def test_other_numbers_than_were_drawn_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Other(Counted):
        def __init__(self, seed: int, name: str):
            super().__init__(seed, f"{name}, drawn otherwise")

    for method in DRAWING:
        m = adapted(method)
        left, stored = unipelt.save(m, tmp_path / method), unipelt.save(m, tmp_path / f"{method}_b", draws=True)
        with monkeypatch.context() as patch:
            patch.setattr(initialise, "Counted", Other)
            bare = small.model("bert")
            before = small.state(bare)
            with pytest.raises(PeltError, match="E0597.*draws other numbers"):
                unipelt.attach(bare, left)
            assert small.state(bare) == before and not unipelt.adapters(bare)
            unipelt.attach(bare, stored)
            assert same(unipelt.state_dict(bare), unipelt.state_dict(m))


def test_an_adapter_of_another_seed_takes_the_saved_ones(tmp_path: Path) -> None:
    m, other = adapted("vera"), adapted("vera", seed=9)
    folder = unipelt.save(m, tmp_path / "a", fold=False)
    assert not same(frozen(m), frozen(other))
    unipelt.restore(other, folder)
    assert same(unipelt.state_dict(m), unipelt.state_dict(other))
    again = unipelt.save(other, tmp_path / "b")  # its seed is another, so they are stored
    third = small.model("bert")
    unipelt.attach(third, again)
    assert same(unipelt.state_dict(m), unipelt.state_dict(third))


def test_a_model_with_adapters_beside_it(tmp_path: Path) -> None:
    m = adapted("vera")
    m.save_pretrained(tmp_path / "checkpoint-2")
    inner = next(tmp_path.glob(f"checkpoint-2/**/{WEIGHTS}"))
    assert not set(load_file(inner)) & set(frozen(m))
    other = small.model("bert")
    unipelt.attach(other, tmp_path / "checkpoint-2")
    assert same(unipelt.state_dict(m), unipelt.state_dict(other))


def test_a_folded_adapter(tmp_path: Path) -> None:
    """What folds does not read the draw that stays."""
    text = """method m { modify ffn insert sequential
      form { P: [2, d_in] ~ normal(0.1) W1: [d_in, d_in] ~ normal(0.1) frozen A: [d_in, 2] ~ normal(1.0)
             K = tanh(P @ W1)
             delta = z @ A @ K }
      compose h + delta }"""
    m = small.model("bert")
    unipelt.apply(m, unipelt.parse(text))
    small.randomise(m)
    folder = unipelt.save(m, tmp_path / "a")
    manifest = json.loads((folder / MANIFEST).read_text())
    assert manifest["folded"] and len(manifest["drawn"]) == small.LAYERS
    other = small.model("bert")
    unipelt.attach(other, folder)
    assert (small.output(m) - small.output(other)).abs().max() < 1e-5


def test_a_pair_is_one_tensor_in_memory() -> None:
    from unipelt.runtime.registry import registry

    m = adapted("vera")
    r = registry(m)
    assert r is not None
    edits = [e for a in r.attached.values() for e in a.plan.edits]
    held = [b for n, b in m.named_buffers() if "unipelt" in n and b.dim() == 2]
    assert len(edits) == 2 * small.LAYERS and [tuple(b.shape) for b in held] == [(small.WIDTH, 4), (4, small.WIDTH)]


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda d: d["drawn"].pop("vera.A"), "E0585"),
        (lambda d: d["drawn"]["vera.A"].pop("check"), "E0578"),
        (lambda d: d["drawn"]["vera.A"].update(check=[1.0]), "E0578"),
        (lambda d: d["drawn"]["vera.A"].update(check=["a"] * 4), "E0578"),
        (lambda d: d["drawn"]["vera.A"].update(dtype="str"), "E0578"),
        (lambda d: d["drawn"]["vera.A"].update(shape=[4]), "E0587"),
        (lambda d: d["drawn"]["vera.A"].update(check=[float("nan")] * 4), "E0597"),
        (lambda d: d["drawn"].update(other=d["drawn"]["vera.A"]), "E0586"),
        (lambda d: d["drawn"].update({n: d["drawn"]["vera.A"] for n in list(d["tensors"])[:1]}), "E0578"),
        (lambda d: d["drawn"].update({n: {**d["drawn"]["vera.A"], **d["tensors"].pop(n)} for n in list(d["tensors"])[:1]}), "E0585"),
        (lambda d: d.update(drawn=[]), "E0578"),
        (lambda d: d.update(seed=5), "E0597"),
    ],
)  # fmt: skip
def test_a_folder_that_says_something_else_is_refused(change: Any, code: str, tmp_path: Path) -> None:
    folder = unipelt.save(adapted("vera"), tmp_path / "a")
    manifest = json.loads((folder / MANIFEST).read_text())
    renamed = json.loads(json.dumps(manifest).replace(f'"{name("vera")}.', '"vera.'))
    change(renamed)
    (folder / MANIFEST).write_text(json.dumps(renamed).replace('"vera.', f'"{name("vera")}.'))
    bare = small.model("bert")
    before = small.state(bare)
    with pytest.raises(PeltError) as caught:
        unipelt.attach(bare, folder)
    assert [d.code for d in caught.value.diagnostics] == [code], str(caught.value)
    assert small.state(bare) == before


def test_a_small_folder_does_not_call_for_gigabytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    m = adapted("vera")
    folder = unipelt.save(m, tmp_path / "a")
    monkeypatch.setattr(redrawn, "most", lambda plan: 100)
    with pytest.raises(PeltError, match="E0578.*256 drawn numbers, and no more than 100"):
        unipelt.attach(small.model("bert"), folder)
    assert set(frozen(m)) <= set(load_file(unipelt.save(m, tmp_path / "b") / WEIGHTS)), "they are stored instead"
