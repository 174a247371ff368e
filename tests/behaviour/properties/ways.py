"""The same by other ways: as written, in another kernel, in other number formats."""

from __future__ import annotations

from typing import Any

import torch
from tiny import distance, look, loss, same, size, trained
from torch import Tensor, nn

import unipelt

from .case import EFFECT, Case, holds


@holds("literal")
def literal(case: Case) -> None:
    """Lowered and evaluated as written agree in float64, outputs and gradients."""
    lowered, written = case.acted(torch.float64), look(_as_written(case), case.inputs)
    fast, slow = _gradients(case, case.acting(torch.float64)), _gradients(case, case.base(torch.float64))
    unipelt.remove(case.base(torch.float64), "a")
    assert distance(lowered, written) <= 1e-10 * max(1.0, size(written))
    assert fast.keys() == slow.keys()
    for n in fast:
        assert (fast[n] - slow[n]).abs().max() <= 1e-10 * max(1.0, float(slow[n].abs().max())), n


def _as_written(case: Case) -> nn.Module:
    m = case.base(torch.float64)
    case.put(m, lowering=False)
    return m


def _gradients(case: Case, m: nn.Module) -> dict[str, Tensor]:
    loss(m, case.inputs).backward()
    own = trained(m, "a")
    found = {n: p.grad for n, p in own.items() if p.grad is not None}
    assert found.keys() == own.keys() - case.resting
    m.zero_grad()
    return found


def switches(case: Case) -> bool:
    """Whether the base, without any method, knows SDPA and eager attention and computes the same in both."""
    m: Any = case.bare(torch.float32)
    own = m.config._attn_implementation
    try:
        found = []
        for way in ("sdpa", "eager"):
            m.set_attn_implementation(way)
            if m.config._attn_implementation != way:  # of a model with an attention of its own nothing is switched
                return False
            found.append(look(m, case.inputs))
    except ValueError as e:
        if "does not support an attention implementation" not in str(e):
            raise
        return False
    finally:
        m.set_attn_implementation(own)
    return distance(*found) <= 1e-5 * max(1.0, size(found[0]))


@holds("attention")
def attention(case: Case) -> None:
    """SDPA and eager agree, with masks and without, switched by `set_attn_implementation` with the adapter on."""
    m, before = case.acting(), case.before()
    assert m.config._attn_implementation == "sdpa"
    given = [case.inputs, {n: t for n, t in case.inputs.items() if not n.endswith("mask")}]
    fused = [look(m, inputs) for inputs in given]
    assert same(fused[0], case.acted())
    try:
        m.set_attn_implementation("eager")
        eager = [look(m, inputs) for inputs in given]
        with unipelt.disabled(m):
            assert distance(look(m, case.inputs), before) <= 1e-5 * max(1.0, size(before))
    finally:
        m.set_attn_implementation("sdpa")
    for one, other in zip(fused, eager):
        assert distance(one, other) <= 1e-5 * max(1.0, size(other))


# ---------------------------------------------------------------- number formats

# bfloat16 has 8 bits: 2**-8 = 0.4 % a rounding, some dozens of them from the embeddings to the output. A tenth of the
# largest output for the worst entry, 3 % of it on average: a wrong edit is off by more than the effect, as asserted.
WORST, AVERAGE = 0.1, 0.03


def _near(rough: dict[str, Tensor], exact: dict[str, Tensor]) -> bool:
    return distance(rough, exact) <= WORST * size(exact) and all(
        float((rough[n].double() - t.double()).abs().mean()) <= AVERAGE * float(t.double().abs().max())
        for n, t in exact.items()
    )


def rounds(case: Case, name: str) -> bool:
    """Whether the base, without any method, is as near the float32 one in bfloat16 (or under autocast) as is asked of a method."""
    exact = case.before()
    if name == "autocast":
        with torch.autocast("cpu", torch.bfloat16):
            rough = look(case.bare(torch.float32), case.inputs)
    else:
        rough = case.before(torch.bfloat16)
    return _near(rough, exact)


@holds("bfloat16")
def bfloat16(case: Case) -> None:
    """A bfloat16 model with the adapter, which is float32 or whole numbers, is finite, near the float32 one, and stays bfloat16."""
    m, rough, inputs = case.acting(), case.base(torch.bfloat16), case.inputs
    rough_before = case.before(torch.bfloat16)
    case.put(rough)
    with torch.no_grad():
        for n, t in unipelt.state_dict(rough, "a").items():
            whole = n in case.plan.tensors and case.plan.tensors[n].below is not None
            assert t.dtype == (torch.int64 if whole else torch.float32), n
            t.copy_(unipelt.state_dict(m, "a")[n])
    exact, found = case.acted(), look(rough, inputs)
    for n, t in found.items():
        assert t.dtype == rough_before[n].dtype == torch.bfloat16
    assert _near(found, exact), distance(found, exact) / size(exact)
    assert distance(found, rough_before) > EFFECT
    loss(rough, inputs).backward()
    for n, p in trained(rough, "a").items():
        assert n in case.resting if p.grad is None else torch.isfinite(p.grad).all(), n
    unipelt.remove(rough, "a")


@holds("autocast")
def autocast(case: Case) -> None:
    """Under autocast a float32 model with the adapter is near float32, in the dtype that the base has there."""
    m, inputs, exact = case.acting(), case.inputs, case.acted()
    with torch.autocast("cpu", torch.bfloat16), unipelt.disabled(m):
        before = look(m, inputs)
    with torch.autocast("cpu", torch.bfloat16):
        found = look(m, inputs)
        total = loss(m, inputs)
    assert {n: t.dtype for n, t in found.items()} == {n: t.dtype for n, t in before.items()}
    assert distance(found, before) > EFFECT
    assert _near(found, exact), distance(found, exact) / size(exact)
    total.backward()
    for n, p in trained(m, "a").items():
        assert n in case.resting or (p.grad is not None and p.grad.dtype == torch.float32), n
        assert p.grad is None or torch.isfinite(p.grad).all(), n
    m.zero_grad()
