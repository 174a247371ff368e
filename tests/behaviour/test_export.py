"""torch.export takes an adapted model as any other: free rows and tokens, padding, with the adapter beside the base or merged.

One method of each way into a model, and one layer: a trace takes seconds, and layers are alike. `benchmarks/export.py` has
every method.
"""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from names import name as named
from tiny import batch, build, put

import unipelt

NEAR, EFFECT = 1e-5, 1e-3
FREE = torch.export.Dim.DYNAMIC


def export(model: torch.nn.Module, kind: str) -> Any:
    """The exported model; rows are free, and tokens where there are tokens."""
    fixed = (
        {"use_cache": False} if "use_cache" in inspect.signature(model.forward).parameters else {}
    )  # a cache is no tensor
    inputs = batch(kind)
    shapes = {n: {0: FREE} | ({1: FREE} if t.dim() == 2 else {}) for n, t in inputs.items()}
    program = torch.export.export(
        model, (), {**inputs, **fixed}, dynamic_shapes={**shapes, **dict.fromkeys(fixed)}
    ).module()
    return lambda **inputs: program(**inputs, **fixed)


def apart(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    """The largest difference, as a share of the largest entry where that is above 1."""
    assert a.keys() == b.keys()
    found = 0.0
    for n in a:
        if a[n].shape != b[n].shape:
            return float("inf")
        found = max(found, float((a[n] - b[n]).abs().max()) / max(1.0, float(a[n].abs().max())))
    return found


def outputs(model: Any, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    with torch.no_grad():
        o = model(**inputs)
    return {n: o[n] for n in ("logits", "last_hidden_state", "pooler_output") if n in o and o[n] is not None}


def check(
    model: torch.nn.Module, kind: str, sizes: tuple[tuple[int, int], ...] = ((5, 4), (1, 11))
) -> tuple[Any, float]:
    """Exports a model and compares on batches of other sizes. Gives the program, and the largest difference."""
    program, worst = export(model, kind), 0.0
    for i, (rows, tokens) in enumerate(sizes, 1):
        other = batch(kind, rows, tokens, seed=i)
        worst = max(worst, apart(outputs(model, other), outputs(program, other)))
    assert worst <= NEAR
    return program, worst


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    ("kind", "method", "options"),
    [
        ("bert_head", "unipelt_apl", {"labels": 5}),  # gates that pool over the text, and a head of its own
        ("gpt2", "lora", {}),  # at a part of a fused projection
        ("llama", "mam", {}),
        ("t5", "prefix_tuning", {}),  # in each of its three kinds of attention
        ("vit_head", "lora", {}),
    ],
)
def test_the_program_gives_what_the_model_gives(kind, method, options):
    model = build(kind, layers=1)
    inputs = batch(kind)
    before = outputs(model, inputs)
    put(model, named(method), **options)
    program, _ = check(model, kind)
    assert apart(before, outputs(program, inputs)) > EFFECT


def test_what_acts_when_it_is_exported_is_exported():
    """Switching and removing afterwards does not reach into the program."""
    model, inputs = build("bert", layers=1), batch("bert")
    before = outputs(model, inputs)
    put(model, named("lora"), "a")
    put(model, named("ia3"), "b", noise=1)
    with unipelt.disabled(model):
        none, _ = check(model, "bert")
    unipelt.activate(model, "a")
    beside, wanted = outputs(model, inputs), check(model, "bert")[0]
    unipelt.merge(model, "a")
    merged, _ = check(model, "bert")
    assert apart(beside, outputs(merged, inputs)) <= NEAR
    unipelt.unmerge(model)  # writes the base's tensors, which a program shares with its model
    unipelt.remove(model, "b")
    unipelt.remove(model, "a")
    assert apart(before, outputs(model, inputs)) == 0.0
    assert apart(before, outputs(none, inputs)) <= NEAR and apart(beside, outputs(wanted, inputs)) <= NEAR
    assert apart(before, beside) > EFFECT
