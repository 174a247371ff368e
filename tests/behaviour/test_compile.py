"""torch.compile in either order: a method applied before compiling, and to a model that was compiled before.

One layer: a compilation takes seconds, and layers are alike. Outputs are asked for with their graph throughout, as a pass
without gradients is compiled once more.
"""

from __future__ import annotations

import pytest
import torch
from tiny import batch, build, distance, loss, outputs, put, trained

import unipelt

EFFECT = 1e-3
NEAR = 1e-5


@pytest.fixture
def compiling():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def seen(model, inputs):
    return {n: t.detach().clone() for n, t in outputs(model, inputs).items()}


@pytest.mark.sampled(3)
@pytest.mark.long
@pytest.mark.parametrize(
    ("spec", "kind"),
    [
        ("unipelt_apl", "bert"),
        ("unipelt_apl_causal", "gpt2"),
        ("mam", "llama"),
        ("llama_adapter", "llama"),
        ("ln_tuning", "gpt2"),
    ],
)
def test_compiled_whole(spec, kind, compiling):
    """Compiled in one graph after `apply`: the same outputs and gradients, and switching takes effect."""
    m = build(kind, layers=1)
    inputs = batch(kind)
    before = seen(m, inputs)
    put(m, spec)
    plain = seen(m, inputs)
    assert distance(plain, before) > EFFECT
    compiled = torch.compile(m, fullgraph=True, backend="aot_eager")
    assert distance(seen(compiled, inputs), plain) <= NEAR
    with unipelt.disabled(m):
        assert distance(seen(compiled, inputs), before) <= NEAR
    assert distance(seen(compiled, inputs), plain) <= NEAR
    loss(compiled, inputs).backward()
    got = {n: p.grad for n, p in trained(m, "a").items()}
    for p in m.parameters():
        p.grad = None
    loss(m, inputs).backward()
    for n, p in trained(m, "a").items():
        assert (p.grad - got[n]).abs().max() <= NEAR * max(1.0, float(p.grad.abs().max())), n


# A hook of a model that was compiled without any is compiled by itself. Torch then looks at `.grad` of what it is given, and hides
# its own warning about that, which it cannot do with an error.
@pytest.mark.sampled(3)
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.long
@pytest.mark.parametrize("spec", ["lora", "prefix_tuning", "prompt_tuning", "ln_tuning"])
def test_applied_after_compiling(spec, compiling):
    """A model that was compiled and run before: the method takes effect through every seam, and so does removing it."""
    m = build("llama", layers=1)
    inputs = batch("llama")
    compiled = torch.compile(m, backend="eager")
    before = seen(compiled, inputs)
    assert distance(before, seen(m, inputs)) <= NEAR
    put(m, spec)
    plain = seen(m, inputs)
    assert distance(plain, before) > EFFECT
    assert distance(seen(compiled, inputs), plain) <= NEAR
    with unipelt.disabled(m):
        assert distance(seen(compiled, inputs), before) <= NEAR
    unipelt.remove(m, "a")
    assert distance(seen(compiled, inputs), before) <= NEAR


@pytest.mark.long
def test_switched_through_what_compile_returned(compiling):
    """Every change goes through the compiled wrapper: two adapters, merging and unmerging, removing."""
    m = build("llama", layers=1)
    inputs = batch("llama")
    compiled = torch.compile(m, backend="eager")
    before = seen(compiled, inputs)
    found = {}
    for name, spec in (("a", "lora"), ("b", "ln_tuning")):
        put(compiled, spec, name)
        found[name] = seen(m, inputs)
        assert distance(found[name], before) > EFFECT
        assert distance(seen(compiled, inputs), found[name]) <= NEAR
    assert distance(found["a"], found["b"]) > EFFECT
    for name in ("a", "b"):
        unipelt.activate(compiled, name)
        assert distance(seen(compiled, inputs), found[name]) <= NEAR
        unipelt.merge(compiled, name)
        assert distance(seen(compiled, inputs), found[name]) <= NEAR
        unipelt.unmerge(compiled)
        assert distance(seen(compiled, inputs), found[name]) <= NEAR
    unipelt.remove(compiled, "b")
    unipelt.remove(compiled, "a")
    assert distance(seen(compiled, inputs), before) <= NEAR


@pytest.mark.parametrize("spec", ["lora", "prefix_tuning"])
def test_a_second_pass_is_not_compiled_again(spec, compiling):
    m = build("llama", layers=1)
    put(m, spec)
    made = []

    def backend(graph, _):
        made.append(graph)
        return graph

    compiled = torch.compile(m, fullgraph=True, backend=backend)
    for _ in range(3):
        outputs(compiled, batch("llama"))
    assert len(made) == 1
