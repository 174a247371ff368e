"""Adapters in a longer dtype than the base: what is computed in which, that it learns, merges and is saved."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from names import methods
from names import name as named
from small import declared, inputs, model, output, randomise

import unipelt
from unipelt.runtime.registry import record

HALVES = [torch.bfloat16, torch.float16]
COPIES = unipelt.parse("method copies { train *.bias, *.norm.*, attn.q }")
LORA = unipelt.load(named("lora"))(r=2)
FORMS = {
    "norm": "method calls { modify ffn  insert parallel  form { A: [d_in, d_out] ~ normal(0.1)  delta = ffn.norm(z) @ A }  compose add }",
    "keys": """method calls { modify attn.heads  insert parallel
      form { P: [3, d_model] ~ normal(1) per site  delta = softmax(q @ heads(attn.k(P)).T * scale) @ heads(attn.v(P)) } compose add }""",
    "weight": "method calls { modify attn.q  insert parallel  form { n: [d_in] ~ normal(0.1)  delta = (z * n) @ W + bias }  compose add }",
}


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("kind", ["bert_labels", "llama"])
def test_every_method_trains_in_float32_on_a_base_in_half_precision(dtype: torch.dtype, kind: str) -> None:
    """Also those whose forms call frozen modules of the base (a norm, the keys' projection). Each method meets one of the four."""
    m, batch = model(kind, dtype=dtype), inputs()
    batch["input_ids"][0, :3] = torch.arange(3)  # words that a method may train by their ids
    turn = HALVES.index(dtype) * 2 + (kind == "llama")
    for n in methods()[turn::4]:
        method = unipelt.load(n)
        try:
            plan = unipelt.plan(m, method, allow_future=True)
        except unipelt.PeltError:
            continue  # nothing of the kind in this model, such as biases
        if plan.needs:
            continue
        unipelt.apply(m, method, allow_future=True, dtype=torch.float32)
        out = m(**batch, **declared(m, batch["input_ids"]))
        assert out.logits.dtype == dtype and torch.isfinite(out.logits).all(), n
        out.logits.float().square().mean().backward()
        own = record(m, "default").trained()
        assert {p.dtype for p in own.values()} == {torch.float32}, n
        assert any(p.grad is not None and float(p.grad.abs().max()) > 0 for p in own.values()), n
        unipelt.remove(m, "default")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("lowering", [True, False])
@pytest.mark.parametrize(
    "base, own", [(torch.bfloat16, torch.float32), (torch.float32, torch.bfloat16), (torch.float32, torch.float64)]
)
def test_forms_that_call_the_base(form: str, lowering: bool, base: torch.dtype, own: torch.dtype) -> None:
    """Whatever the two dtypes are, the result is near that of one."""
    method = unipelt.parse(FORMS[form])
    exact, mixed = model("bert"), model("bert", dtype=base)
    before = output(exact)
    for m, dtype in ((exact, torch.float32), (mixed, own)):
        unipelt.apply(m, method, dtype=dtype, lowering=lowering)
    expected, found = output(exact), output(mixed)
    assert found.dtype == base and {t.dtype for t in unipelt.state_dict(mixed).values()} == {own}
    assert (expected - before).abs().max() > 0.1
    assert (found.float() - expected).abs().max() < 0.15 * expected.abs().max()
    assert (found.float() - expected).abs().mean() < 0.02 * expected.abs().max()


@pytest.mark.parametrize("method", [LORA, COPIES], ids=["rows", "copies"])
def test_by_default_an_adapter_has_at_least_float32(method: unipelt.Method) -> None:
    for base, wanted, expected in [
        (torch.bfloat16, None, torch.float32), (torch.float16, None, torch.float32), (torch.float32, None, torch.float32),
        (torch.float64, None, torch.float64), (torch.bfloat16, torch.bfloat16, torch.bfloat16), (torch.bfloat16, torch.float64, torch.float64),
    ]:  # fmt: skip
        m = model("bert", dtype=base)
        before = output(m)
        unipelt.apply(m, method, dtype=wanted)
        assert {p.dtype for p in record(m, "default").trained().values()} == {expected}, (base, wanted)
        assert torch.equal(output(m), before) and before.dtype == base  # the start is the base itself, to the last bit


def test_a_copy_has_no_fewer_bits_than_what_it_is_a_copy_of() -> None:
    m = model("bert")
    before = output(m)
    unipelt.apply(m, COPIES, dtype=torch.bfloat16)
    assert torch.equal(output(m), before)


@pytest.mark.parametrize("method", [LORA, COPIES], ids=["rows", "copies"])
def test_small_steps_are_not_rounded_away(method: unipelt.Method) -> None:
    """Every weight with a gradient moves by each of its steps; in bfloat16 most would stay where they are."""
    m = model("bert", dtype=torch.bfloat16)
    unipelt.apply(m, method)
    randomise(m)
    own = record(m, "default").trained()
    before = {n: p.detach().clone() for n, p in own.items()}
    optimiser = torch.optim.AdamW(own.values(), lr=1e-5, weight_decay=0.0)
    m(**inputs())[0].float().square().mean().backward()
    optimiser.step()
    moved = [
        (p != before[n])[p.grad.abs() > 1e-6].float().mean()
        for n, p in own.items()
        if p.grad is not None and p.grad.abs().max() > 1e-6
    ]
    assert len(moved) > 5 and min(moved) > 0.95


@pytest.mark.parametrize("method", [LORA, COPIES], ids=["rows", "copies"])
def test_what_was_trained_in_float32_merges_into_a_base_in_half_precision(
    method: unipelt.Method, tmp_path: Path
) -> None:
    m = model("bert", dtype=torch.bfloat16)
    plain = output(m)
    unipelt.apply(m, method)
    randomise(m, scale=0.05)
    acting = output(m)
    assert (acting - plain).abs().max() > 0.1
    unipelt.save(m, tmp_path / "a")
    unipelt.merge(m, "default")
    assert {p.dtype for n, p in m.named_parameters() if "unipelt" not in n.split(".")} == {torch.bfloat16}
    assert (output(m) - acting).abs().mean() < 0.1 * (acting - plain).abs().mean() + 0.02
    unipelt.unmerge(m)
    assert torch.equal(output(m), acting)
    again = model("bert", dtype=torch.bfloat16)
    unipelt.attach(again, tmp_path / "a")
    assert torch.equal(output(again), acting)  # saved and attached, to the last bit
    short = model("bert", dtype=torch.bfloat16)
    unipelt.attach(short, tmp_path / "a", dtype=torch.bfloat16)
    assert {t.dtype for t in unipelt.state_dict(short).values()} == {torch.bfloat16}
    assert (output(short) - acting).abs().mean() < 0.1 * (acting - plain).abs().mean() + 0.02


def test_a_copy_that_half_precision_cannot_hold_is_not_merged() -> None:
    m = model("bert", dtype=torch.float16)
    unipelt.apply(m, COPIES)
    with torch.no_grad():
        record(m, "default").trained()["encoder.layer.1.attention.self.query.weight"].fill_(1e6)
    before = {n: p.detach().clone() for n, p in m.named_parameters()}
    with pytest.raises(unipelt.PeltError, match="E0561"):
        unipelt.merge(m, "default")
    assert all(torch.equal(p, before[n]) for n, p in m.named_parameters())


@pytest.mark.parametrize("order", [(LORA, COPIES), (COPIES, LORA), (COPIES, COPIES)])
def test_two_adapters_of_different_dtypes_act_together(order: tuple[unipelt.Method, unipelt.Method]) -> None:
    m = model("bert", dtype=torch.bfloat16)
    for n, method, dtype in zip("ab", order, (torch.float32, torch.bfloat16)):
        unipelt.apply(m, method, name=n, dtype=dtype)
        randomise(m, n, scale=0.05)
    unipelt.activate(m, "a", "b")
    out = m(**inputs())[0]
    assert out.dtype == torch.bfloat16 and torch.isfinite(out).all()
    out.float().square().mean().backward()
    unipelt.activate(m, "b", "a")
    assert torch.isfinite(output(m)).all()


@pytest.mark.sampled(2)
@pytest.mark.parametrize("method", [LORA, COPIES], ids=["rows", "copies"])
def test_compiled_whole(method: unipelt.Method) -> None:
    m = model("bert", dtype=torch.bfloat16)
    unipelt.apply(m, method)
    randomise(m, scale=0.05)
    acting = output(m)
    compiled = torch.compile(m, fullgraph=True, backend="aot_eager")
    assert torch.allclose(output(compiled), acting, atol=0.02, rtol=0.02)
