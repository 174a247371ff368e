"""Weights that are elsewhere: offloaded, on the meta device; copies for DDP."""

from __future__ import annotations

import pytest
import torch
from tiny import KINDS, batch, build, distance, footprint, look, put, same, small, trained

import unipelt


EFFECT = 1e-3
#: Methods that use every seam between them: projections, sublayers, heads (fused and not), gates, copies, prompts.
CHOSEN = ("lora", "ia3", "mam", "unipelt_apl_causal", "llama_adapter", "prompt_tuning", "ln_tuning")


# ---------------------------------------------------------------- offloaded


@pytest.mark.parametrize("where", ["cpu", "dispatch", "disk"])
@pytest.mark.parametrize("spec", [*CHOSEN, "bitfit"])
def test_offloaded(spec, where, tmp_path):
    """Weights that accelerate brings only for the call: the output is exactly the same."""
    from accelerate import cpu_offload, disk_offload, dispatch_model

    kind = "gpt2"
    m = build(kind)
    inputs = batch(kind)
    before = look(m, inputs)
    put(m, spec)
    plain = look(m, inputs)
    assert distance(plain, before) > EFFECT
    if where == "cpu":
        cpu_offload(m, torch.device("cpu"))
    elif where == "disk":
        disk_offload(m, str(tmp_path), torch.device("cpu"))
    else:
        device_map = {"transformer.wte": "cpu", "lm_head": "cpu", "transformer.wpe": "cpu", "transformer.drop": "cpu",
                      "transformer.h": "disk", "transformer.ln_f": "cpu", "unipelt": "cpu"}  # fmt: skip
        dispatch_model(m, device_map, main_device="cpu", offload_dir=str(tmp_path))
    assert any(p.device.type == "meta" for p in m.parameters())
    # where only biases are trained, their difference is added in memory, and the copy is computed when offloaded
    tolerance = 1e-6 if spec == "bitfit" else 0.0
    assert distance(look(m, inputs), plain) <= tolerance
    with unipelt.disabled(m):
        assert same(look(m, inputs), before)
    assert distance(look(m, inputs), plain) <= tolerance


@pytest.mark.parametrize(("kind", "spec"), [*(("gpt2", spec) for spec in CHOSEN), ("t5", "mam"), ("albert", "ia3")])
def test_applied_to_an_offloaded_model(kind, spec, tmp_path):
    """The base is offloaded first, as `device_map` does: the method acts as it does on a model in memory."""
    from accelerate import cpu_offload

    m = build(kind)
    inputs = batch(kind)
    before = look(m, inputs)
    put(m, spec)
    plain = look(m, inputs)
    unipelt.remove(m, "a")
    cpu_offload(m, torch.device("cpu"))
    put(m, spec)
    assert same(look(m, inputs), plain)
    with unipelt.disabled(m):
        assert same(look(m, inputs), before)
    unipelt.remove(m, "a")
    assert same(look(m, inputs), before)


@pytest.mark.parametrize("where", ["cpu", "disk"])
@pytest.mark.parametrize("spec", ["mam", "prompt_tuning", "ln_tuning"])
def test_a_saved_adapter_on_an_offloaded_model(spec, where, tmp_path):
    from accelerate import cpu_offload, disk_offload

    m = build("gpt2")
    inputs = batch("gpt2")
    put(m, spec)
    acting = look(m, inputs)
    folder = unipelt.save(m, tmp_path / "adapter", "a")
    right, wrong = build("gpt2"), build("gpt2", initializer_range=0.2)
    for other in (right, wrong):
        if where == "cpu":
            cpu_offload(other, torch.device("cpu"))
        else:
            disk_offload(other, str(tmp_path / str(id(other))), torch.device("cpu"))
    with pytest.raises(unipelt.PeltError, match="E0571"):
        unipelt.attach(wrong, folder)
    unipelt.attach(right, folder)
    assert distance(look(right, inputs), acting) <= 1e-5


# ---------------------------------------------------------------- DDP


def test_what_is_inactive_does_not_train(bases):
    """DDP waits for every parameter that requires a gradient: only the active adapter's may."""
    m = bases.get("bert_head")
    for i, spec in enumerate(("lora", "mam", "bitfit")):
        put(m, spec, f"n{i}")
    for names in (("n0",), ("n1",), ("n2",), ("n0", "n1"), ()):
        unipelt.activate(m, *names)
        wanted = {id(p) for n in names for p in trained(m, n).values()}
        assert {id(p) for p in m.parameters() if p.requires_grad} == wanted
        assert bool(wanted) is bool(names)
    for i in range(3):
        unipelt.remove(m, f"n{i}")


# ---------------------------------------------------------------- the meta device


@pytest.mark.parametrize(("kind", "spec"), [
    *((kind, spec) for kind in ("bert", "bert_head", "gpt2", "llama") for spec in (*CHOSEN, "full", "unipelt_apl")),
    *((kind, "mam") for kind in ("t5", "bart", "whisper", "distilbert_head", "albert", "opt", "vit_head")),
])  # fmt: skip
def test_on_the_meta_device(kind, spec):
    """Applied on the meta device: the same tensors by name and shape, and nothing is left after removing."""
    real = build(kind)
    with torch.device("meta"):
        m = KINDS[kind][0](real.config).eval()
    assert {p.device.type for p in m.parameters()} == {"meta"}
    traces = footprint(m)
    unipelt.apply(m, small(spec), allow_future=True)
    unipelt.apply(real, small(spec), allow_future=True)
    shapes = {n: t.shape for n, t in unipelt.state_dict(real).items()}
    found = unipelt.state_dict(m)
    assert {n: t.shape for n, t in found.items()} == shapes and shapes
    assert {t.device.type for t in found.values()} == {"meta"}
    with pytest.raises(unipelt.PeltError, match="E0574"):
        unipelt.save(m, "nowhere")
    unipelt.remove(m, "default")
    assert footprint(m) == traces
