"""Weight sites: what computes ``x @ W + bias`` computes ``x @ W_new + bias``, whatever W_new is made of."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import small
import torch
from torch import nn

import unipelt
from unipelt.anatomy.matrices import as_map, as_stored
from unipelt.runtime.registry import record
from unipelt.runtime.seam import seams

LOW = "form { A: [d_in, r] ~ kaiming_uniform(sqrt(5)) B: [r, d_out] ~ zeros delta = A @ B }"
DORA = "compose { m: [d_out] = norm(W, 0) V = W + 2 * delta out = m * V / stop_gradient(norm(V, 0)) }"
BASES = {"llama": "attn.k", "gpt2": "attn.v", "bert": "ffn.up"}


def method(sites: str, rest: str = f"{LOW} {DORA}", more: str = "") -> unipelt.Method:
    return unipelt.parse(f"method m(r: int = 4) {{ use {{ modify {sites} {rest} }} as w {more} }}")


def by_hand(
    kind: str, site: str, made: nn.Module, new: Callable[[torch.Tensor, dict[str, torch.Tensor]], torch.Tensor]
) -> nn.Module:
    """A base whose weights are written over with what ``new`` makes of them and of the adapter's tensors."""
    plain = small.model(kind, dtype=next(made.parameters()).dtype)
    attached = record(made, "default")
    values = attached.values()
    for e in attached.plan.edits:
        module = plain.get_submodule(e.site.view.module)
        tensors = {label: values[n].detach() for label, n in e.tensors.items()}
        W = as_map(module, module.weight.detach()).clone()
        columns = torch.arange(W.shape[1])
        at = (
            columns if e.site.view.columns is None else torch.cat([columns[a:b] for a, b in e.site.view.columns.ranges])
        )
        W[:, at] = new(W[:, at], tensors)
        with torch.no_grad():
            module.weight.copy_(as_stored(module, W))
    return plain


def dora(W: torch.Tensor, t: dict[str, torch.Tensor]) -> torch.Tensor:
    V = W + 2 * torch.einsum("ir,ro->io", t["A"], t["B"])
    return torch.stack([t["m"][j] * V[:, j] / V[:, j].pow(2).sum().sqrt() for j in range(V.shape[1])], 1)


@pytest.mark.parametrize("kind", BASES)
@pytest.mark.parametrize("lowering", [True, False])
def test_a_weight_edit_is_the_base_with_that_weight(kind: str, lowering: bool) -> None:
    model = small.model(kind, dtype=torch.float64)
    base, before = small.output(model), small.state(model)
    unipelt.apply(model, method(f"{BASES[kind]}.weight"), lowering=lowering)
    small.randomise(model)
    expected = small.output(by_hand(kind, BASES[kind], model, dora))
    assert not torch.allclose(expected, base, atol=1e-3)
    for _ in range(2):  # what is kept serves the second pass
        assert torch.allclose(small.output(model), expected, rtol=0, atol=1e-12)
    with unipelt.disabled(model):
        assert torch.equal(small.output(model), base)
    unipelt.merge(model)
    assert torch.allclose(small.output(model), expected, rtol=0, atol=1e-12)
    unipelt.unmerge(model)
    unipelt.remove(model)
    assert torch.equal(small.output(model), base) and small.state(model) == before


def test_an_edit_at_its_start_is_the_base_to_the_bit() -> None:
    model = small.model("llama")
    base = small.output(model)
    plan = unipelt.apply(model, method("attn.q.weight, ffn.down.weight", f"{LOW} compose add"))
    assert torch.equal(small.output(model), base)
    assert plan.properties["identity at start"] == "yes" and plan.properties["mergeable"] == "yes"


def test_new_values_are_seen_and_one_change_is_kept_for_each_host() -> None:
    model = small.model("gpt2", dtype=torch.float64)
    unipelt.apply(model, method("attn.q.weight, attn.v.weight", f"{LOW} compose add"))
    outputs = []
    for seed in range(3):
        small.randomise(model, seed=seed)
        outputs.append(small.output(model))
        expected = small.output(by_hand("gpt2", "", model, lambda W, t: W + t["A"] @ t["B"]))
        assert torch.allclose(outputs[-1], expected, rtol=0, atol=1e-12)
        kept = [seam.weights["weight"].kept.values for _, seam in seams(model)]
        assert [len(v) for v in kept] == [1] * small.LAYERS
    with torch.no_grad():
        model.get_submodule("transformer.h.0.attn.c_attn").weight.mul_(2)
    assert not torch.allclose(small.output(model), outputs[-1], atol=1e-3)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert all(not seam.weights["weight"].kept.values for _, seam in seams(other))
        assert torch.equal(small.output(other), small.output(model))


def test_weight_edits_chain_and_come_before_the_others() -> None:
    """Each reads what the one before leaves as W and as h; a row at the projection reads the last one."""
    scaled = "form { c: [d_out] ~ ones delta = c } compose { out = W * delta }"
    after = "use { modify attn.q insert parallel form { s: [] ~ ones delta = s * (x @ W) } compose add } as act"
    both = f"use {{ modify attn.q.weight {scaled} }} as c"
    model = small.model("llama", dtype=torch.float64)
    unipelt.apply(model, method("attn.q.weight", f"{LOW} {DORA}", f"{after} {both}"))
    small.randomise(model)
    values = record(model, "default").values()
    plain = small.model("llama", dtype=torch.float64)
    for i in range(small.LAYERS):
        front = f"layers.{i}.attn.q"
        t = {n: values[f"{front}.weight.w.{n}"].detach() for n in ("A", "B", "m")}
        module = plain.model.layers[i].self_attn.q_proj
        W = dora(module.weight.detach().T, t) * values[f"{front}.weight.c.c"].detach()
        with torch.no_grad():
            module.weight.copy_((W * (1 + values[f"{front}.act.s"].detach())).T)
    expected = small.output(plain)
    assert torch.allclose(small.output(model), expected, rtol=0, atol=1e-12)
    unipelt.merge(model)
    assert torch.allclose(small.output(model), expected, rtol=0, atol=1e-12)


def test_a_part_and_the_whole_of_a_fused_weight_meet() -> None:
    model = small.model("gpt2", dtype=torch.float64)
    whole = (
        'use { modify module(".*c_attn").weight form { c: [d_out] ~ ones delta = c } compose { out = W * delta } } as c'
    )
    unipelt.apply(model, method("attn.k.weight", f"{LOW} compose add", whole))
    small.randomise(model)
    values = record(model, "default").values()
    plain = small.model("gpt2", dtype=torch.float64)
    for i in range(small.LAYERS):
        t = {n: v.detach() for n, v in values.items() if n.startswith(f"h.{i}.")}
        A, B, c = (next(v for n, v in t.items() if n.endswith(f".{end}")) for end in ("w.A", "w.B", "c.c"))
        W = plain.transformer.h[i].attn.c_attn.weight
        with torch.no_grad():
            W[:, small.WIDTH : 2 * small.WIDTH] += A @ B
            W *= c
    assert torch.allclose(small.output(model), small.output(plain), rtol=0, atol=1e-12)


def test_a_trained_copy_of_the_weight_is_what_is_edited() -> None:
    model = small.model("llama", dtype=torch.float64)
    unipelt.apply(model, method("attn.q.weight", f"{LOW} {DORA}", "train attn.q.weight"))
    small.randomise(model)
    after = small.output(model)
    unipelt.merge(model)
    assert torch.allclose(small.output(model), after, rtol=0, atol=1e-12)


def test_gradients_are_those_of_the_base_with_that_weight() -> None:
    model = small.model("bert", dtype=torch.float64)
    unipelt.apply(model, method("attn.v.weight", f"{LOW} {DORA.replace('stop_gradient', 'identity_map')}"))
    small.randomise(model)
    own = record(model, "default").trained()
    model(**small.inputs())[0].square().sum().backward()
    plain = small.model("bert", dtype=torch.float64)
    leaves = {n: p.detach().clone().requires_grad_() for n, p in own.items()}
    weights = {}
    for i in range(small.LAYERS):
        t = {n: leaves[f"encoder.layer.{i}.attn.v.weight.w.{n}"] for n in "ABm"}
        path = f"encoder.layer.{i}.attention.self.value.weight"
        weights[path] = dora(plain.get_parameter(path).detach().T, t).T
    torch.func.functional_call(plain, weights, (), small.inputs())[0].square().sum().backward()
    for n, p in own.items():
        assert p.grad is not None and torch.allclose(p.grad, leaves[n].grad, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_half_base_gets_what_is_added_with_its_digits(dtype: torch.dtype) -> None:
    """The base is the same to the bit where nothing is changed, and a change far below the weight's last digit is not lost."""
    model = small.model("llama", dtype=dtype)
    base = small.output(model)
    plan = unipelt.apply(model, method("attn.o.weight", f"{LOW} compose add"))
    assert plan.counts.trained and torch.equal(small.output(model), base)
    own = record(model, "default").trained()
    assert {p.dtype for p in own.values()} == {torch.float32}
    model(**small.inputs())[0].float().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in own.values())


def test_under_autocast_the_weight_is_made_in_its_own_dtype() -> None:
    model = small.model("bert")
    unipelt.apply(model, method("attn.q.weight"))
    small.randomise(model)
    expected = small.output(model)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.allclose(small.output(model).float(), expected, atol=0.2)
    assert torch.equal(small.output(model), expected)


def test_saving_and_loading(tmp_path: Path) -> None:
    model = small.model("gpt2")
    unipelt.apply(model, method("attn.q.weight, ffn.down.weight"))
    small.randomise(model)
    unipelt.save(model, tmp_path / "a")
    other = small.model("gpt2")
    unipelt.attach(other, tmp_path / "a")
    assert torch.equal(small.output(other), small.output(model))


def test_tied_weights_and_modules_that_are_no_maps_are_refused() -> None:
    def refused(kind: str, sites: str) -> str:
        with pytest.raises(unipelt.PeltError) as e:
            unipelt.plan(
                small.model(kind), method(sites, "form { c: [] ~ ones delta = c } compose { out = W * delta }")
            )
        (d,) = e.value.diagnostics
        return f"{d.code} {d.message}"

    assert refused("llama", 'module("model.norm").weight').startswith("E0529")
    assert refused("gpt2", 'module(".*wte").weight').startswith("E0529")


def test_a_plan_needs_no_weights() -> None:
    with torch.device("meta"):
        model = small.model("llama")
    plan = unipelt.apply(model, method("attn.q.weight"))
    r, d = 4, small.WIDTH
    assert plan.counts.trained == small.LAYERS * (2 * r * d + d)


def test_the_printed_module_takes_the_weight() -> None:
    from unipelt.compiler.module import torch_source

    source = torch_source(method("attn.q.weight"))
    scope: dict = {}
    exec(compile(source, "shown", "exec"), scope)
    made = next(v for v in scope.values() if isinstance(v, type) and issubclass(v, nn.Module) and v is not nn.Module)
    module = made(d_model=6, d_q=8) if "d_q" in source else made(d_in=6, d_out=8)
    W = torch.randn(6, 8)
    with torch.no_grad():
        module.m.copy_(torch.randn(8))
        module.B.copy_(torch.randn(4, 8))
    t = {n: p.detach() for n, p in module.named_parameters()}
    assert torch.allclose(module(W), dora(W, t), atol=1e-5)


def test_weights_come_first_whichever_adapter_is_named_first() -> None:
    model = small.model("gpt2", dtype=torch.float64)
    unipelt.apply(model, method("attn.q.weight"), name="a")
    unipelt.apply(model, unipelt.load("lora"), name="b")
    for name in "ab":
        small.randomise(model, name)
    unipelt.activate(model, "b", "a")
    before = small.output(model)
    unipelt.activate(model, "a", "b")
    assert torch.equal(small.output(model), before)


def test_whole_graphs_and_checkpointed_activations() -> None:
    model = small.model("llama")
    unipelt.apply(model, method("attn.q.weight"))
    small.randomise(model)
    expected = small.output(model)
    whole = torch.compile(model, backend="eager", fullgraph=True)
    with torch.no_grad():
        assert torch.allclose(whole(**small.inputs())[0], expected, atol=1e-5)
    torch.compiler.reset()
    own = record(model, "default").trained()
    found = []
    for _ in range(2):
        model.train()
        model(**small.inputs())[0].sum().backward()
        found.append({n: p.grad.clone() for n, p in own.items()})
        model.zero_grad()
        small.checkpoint_activations(model)
    assert all(torch.equal(found[0][n], found[1][n]) for n in own)
