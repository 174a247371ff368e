"""Whole numbers that say where something stands: how they are drawn, kept, read, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import small
import torch
from names import spec
from safetensors.torch import load_file, save_file

import unipelt
from unipelt import PeltError
from unipelt.compiler.initialise import draw
from unipelt.compiler.random import Counted
from unipelt.language.syntax.nodes import Number
from unipelt.language.types.values import Distribution
from unipelt.runtime.folder import MANIFEST, WEIGHTS
from unipelt.runtime.registry import record

ROW = "modify attn.q insert parallel form {{ {} }} compose h + delta"


def method(form: str) -> unipelt.Method:
    return unipelt.parse("method m(n: int = 6) { " + ROW.format(form) + " }")


SPARSE = "frozen I: [n] ~ choice(d_in * d_out) c: [n] ~ normal(0.5) delta = z @ scatter(c, I, d_in, d_out)"


def drawn(name: str, below: int, *sizes: int, copies: tuple[int, ...] = (), seed: int = 0) -> torch.Tensor:
    return draw(Distribution(name, (Number(below),)), copies, sizes, Counted(seed, "t"))


@pytest.mark.parametrize("n, below", [(5, 5), (7, 20), (30, 31), (40, 10_000), (2_000, 1_000_000), (1, 1)])
def test_a_choice_is_of_distinct_numbers(n: int, below: int) -> None:
    found = drawn("choice", below, n, copies=(3,))
    assert found.dtype == torch.int64 and found.shape == (3, n)
    for copy in found:
        assert len(set(copy.tolist())) == n and 0 <= int(copy.min()) <= int(copy.max()) < below
    assert n == 1 or not torch.equal(found[0], found[1])
    assert torch.equal(found, drawn("choice", below, n, copies=(3,)))
    assert n == 1 or not torch.equal(found, drawn("choice", below, n, copies=(3,), seed=1))


def test_a_choice_is_even() -> None:
    """Of few among many each is as likely as any other, and at each place of the list."""
    times = torch.zeros(2, 40)
    for seed in range(3_000):
        found = drawn("choice", 40, 8, seed=seed)
        times[0].index_add_(0, found, torch.ones(8))
        times[1][found[0]] += 1
    # 600 expected with a deviation of 22, and 75 with one of 8.5
    assert 490 < float(times[0].min()) and float(times[0].max()) < 710
    assert 30 < float(times[1].min()) and float(times[1].max()) < 120


def test_a_permutation_has_all_numbers_and_integers_repeat() -> None:
    assert sorted(drawn("permutation", 50, 50).tolist()) == list(range(50))
    found = drawn("integers", 7, 20, 30)
    assert found.dtype == torch.int64 and set(found.flatten().tolist()) == set(range(7))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_they_stay_whole_numbers(dtype: torch.dtype, tmp_path: Path) -> None:
    model = small.model("llama", dtype=dtype)
    unipelt.apply(model, method(SPARSE))
    state = unipelt.state_dict(model)
    places = {n: t for n, t in state.items() if n.endswith(".I")}
    assert len(places) == small.LAYERS and all(t.dtype == torch.int64 and len(t.unique()) == 6 for t in places.values())
    before = small.output(model)
    unipelt.save(model, tmp_path / "a")
    again = small.model("llama", dtype=dtype)
    unipelt.attach(again, tmp_path / "a")
    assert torch.equal(small.output(again), before)
    assert all(torch.equal(t, unipelt.state_dict(again)[n]) for n, t in places.items())
    model.to(torch.float64)  # converts what is a floating number
    assert all(t.dtype == torch.int64 for n, t in unipelt.state_dict(model).items() if n.endswith(".I"))
    assert {n for n in record(model, "default").trained()} == {n for n in state if n.endswith(".c")}


@pytest.mark.parametrize("change", [lambda t: t + 10_000, lambda t: t - 10_000, lambda t: t.float()])
def test_saved_places_that_there_are_not_are_refused(change, tmp_path: Path) -> None:
    import hashlib

    model = small.model("llama")
    unipelt.apply(model, method(SPARSE))
    unipelt.save(model, tmp_path / "a", draws=True)
    path, manifest = tmp_path / "a" / WEIGHTS, json.loads((tmp_path / "a" / MANIFEST).read_text())
    tensors = load_file(path)
    name = next(n for n in tensors if n.endswith(".I"))
    save_file({**tensors, name: change(tensors[name])}, path)
    manifest["sha256"][WEIGHTS] = hashlib.sha256(path.read_bytes()).hexdigest()
    (tmp_path / "a" / MANIFEST).write_text(json.dumps(manifest))
    fresh = small.model("llama")
    before = small.state(fresh)
    with pytest.raises(PeltError, match="E0596"):
        unipelt.attach(fresh, tmp_path / "a")
    assert small.state(fresh) == before
    with pytest.raises(PeltError, match="E0596"):
        unipelt.restore(model, tmp_path / "a")


@pytest.mark.parametrize(
    "form, code",
    [
        ("frozen I: [n] ~ choice(5) c: [n] ~ zeros delta = z @ scatter(c, I, d_in, d_out)", "E0372"),
        ("frozen I: [n] ~ integers(500) b: [d_in] ~ zeros B: [n, d_out] ~ zeros delta = b[I] @ B", "E0363"),
        ("frozen I: [n] ~ choice(5000) c: [n] ~ zeros delta = z @ scatter(c, I, d_in, d_out)", "E0363"),
        ("frozen I: [2 * n] ~ permutation(n) c: [2 * n] ~ zeros delta = scatter(c, I, d_out)", "E0372"),
    ],
)
def test_what_only_a_model_tells_is_refused_there(form: str, code: str) -> None:
    found = method(form)  # a check does not know the sizes
    model = small.model("llama")
    before = small.state(model)
    with pytest.raises(PeltError, match=code):
        unipelt.apply(model, found)
    assert small.state(model) == before


def test_places_of_the_largest_are_found_once_and_kept(tmp_path: Path) -> None:
    found = method("frozen I: [n] = top_indices(abs(W), n) c: [n] ~ zeros delta = z @ scatter(c, I, d_in, d_out)")
    model = small.model("llama")
    unipelt.apply(model, found)
    small.randomise(model)
    for n, t in unipelt.state_dict(model).items():
        if n.endswith(".I"):
            W = model.model.layers[int(n.split(".")[1])].self_attn.q_proj.weight.detach().T
            flat = W.abs().flatten()
            assert torch.equal(flat[t], flat.sort(descending=True).values[:6])
            assert torch.equal(W.reshape(-1)[t], W[t // W.shape[1], t % W.shape[1]])
    unipelt.save(model, tmp_path / "a")
    after = small.output(model)
    unipelt.merge(model)  # the base is another one now; what was saved says where
    assert torch.allclose(small.output(model), after, atol=1e-5)
    unipelt.unmerge(model)
    again = small.model("llama")
    unipelt.attach(again, tmp_path / "a")
    assert torch.equal(small.output(again), after)


def test_what_meets_at_one_place_is_added_up_and_gradients_reach_each() -> None:
    found = unipelt.parse(
        "method m(n: int = 40) { modify ffn insert sequential form { frozen I: [n] ~ integers(d_out) c: [n] ~ zeros "
        "delta = scatter(c, I, d_out) } compose h + delta }"
    )
    model = small.model("llama", dtype=torch.float64)
    unipelt.apply(model, found)
    small.output(model)
    with torch.enable_grad():
        model(**small.inputs())[0].square().sum().backward()
    for n, p in record(model, "default").trained().items():
        I = unipelt.state_dict(model)[n[:-1] + "I"]
        same = [(a, b) for a in range(40) for b in range(a) if I[a] == I[b]]
        assert same and p.grad is not None and float(p.grad.abs().max()) > 0
        assert all(p.grad[a] == p.grad[b] for a, b in same)


def test_rows_are_read_by_whole_numbers_with_axes() -> None:
    """A bank of rows, of which each of a few copies takes its own."""
    found = unipelt.parse(spec(
        "method m(n: int = 5) { modify ffn insert parallel form { axis part = 3 frozen I: [4] ~ integers(n) per part "
        "bank: [n, d_in] ~ normal(1.0) B: [4, d_out] ~ normal(1.0) delta = sum(tanh(z @ bank[I].T) @ B, part) } compose h + delta }"
    ))  # fmt: skip
    model, literal = small.model("llama", dtype=torch.float64), small.model("llama", dtype=torch.float64)
    unipelt.apply(model, found)
    unipelt.apply(literal, found, lowering=False)
    assert torch.allclose(small.output(model), small.output(literal), atol=1e-9)
    state = unipelt.state_dict(model)
    places = next(t for n, t in state.items() if n.endswith(".I"))
    assert places.shape == (3, 4)
    z = torch.randn(2, small.WIDTH, dtype=torch.float64)
    front = next(n for n in state if n.endswith(".I"))[:-1]
    bank, B = state[f"{front}bank"], state[f"{front}B"]
    expected = sum(torch.tanh(torch.stack([z @ bank[i] for i in places[p]], -1)) @ B for p in range(3))
    from unipelt.compiler.evaluator import Context, evaluate
    from unipelt.compiler.named import Named
    from unipelt.language.syntax.parser import parse_expression

    names = {"z": Named(z, ("batch",)), "bank": Named(bank), "B": Named(B), "I": Named(places, ("part",))}
    out = evaluate(parse_expression("sum(tanh(z @ bank[I].T) @ B, part)"), Context(names, {}))
    assert torch.allclose(out.data, expected, atol=1e-12)  # type: ignore[union-attr]


def test_the_torch_text_runs() -> None:
    scope: dict = {"__name__": "text"}
    exec(method(SPARSE).torch_source(), scope)
    module = scope["M"](8, 6)
    assert module.I.dtype == torch.int64 and len(module.I.unique()) == 6
    assert module(torch.zeros(2, 3, 6), torch.ones(2, 3, 8)).shape == (2, 3, 6)
