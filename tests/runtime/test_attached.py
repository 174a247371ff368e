"""Many attached adapters cost nothing while they do not act: the work of a call is counted, not timed."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from names import name as named
from small import inputs, model, output, randomise, state
from torch import nn

import unipelt

MANY = 40
#: Reads what enters and leaves other modules than its own, and stands at the same places as LoRA and at others.
METHODS = ("lora", "scaled_parallel_adapter")


def calls(call: Callable[[], Any]) -> int:
    """How many Python functions a call runs."""
    found = 0

    def count(frame: Any, event: str, _: Any) -> None:
        nonlocal found
        found += event == "call"

    before = sys.getprofile()
    gc.disable()  # what others left to be collected is not this call's work
    sys.setprofile(count)
    try:
        call()
    finally:
        sys.setprofile(before)
        gc.enable()
    return found


def block(context: Any) -> None:
    with context:
        pass


def work(m: nn.Module, method: Any, name: str) -> dict[str, int]:
    """The work of attaching one more adapter, of each way of switching to another one and back, of a pass, of taking it out."""
    done = {"apply": calls(lambda: unipelt.apply(m, method, name))}
    done["forward"] = calls(lambda: output(m))
    done["activate"] = calls(lambda: unipelt.activate(m, "a0"))
    done["deactivate"] = calls(lambda: unipelt.activate(m))
    done["using"] = calls(lambda: block(unipelt.using(m, "a0")))
    done["disabled"] = calls(lambda: block(unipelt.disabled(m)))
    done["base"] = calls(lambda: output(m))
    done["remove"] = calls(lambda: unipelt.remove(m, name))
    unipelt.activate(m, "a0")
    return done


@pytest.mark.sampled(2)
@pytest.mark.parametrize("name, kind", [*((n, "bert_labels") for n in METHODS), ("lora", "gpt2")])
def test_work_does_not_grow_with_the_number_of_attached_adapters(name: str, kind: str) -> None:
    """Of GPT-2's projections three are columns of one module."""
    m, method = model(kind), unipelt.load(named(name))(r=2)
    unipelt.apply(m, method, "a0")
    work(m, method, "warm")  # what is remembered from the first time is not counted
    few = work(m, method, "new")
    for i in range(1, MANY):
        unipelt.apply(m, method, f"a{i}")
    unipelt.activate(m, "a0")
    many = work(m, method, "new")
    exact = ("activate", "deactivate", "using", "disabled", "forward", "base")
    assert {k: many[k] for k in exact} == {k: few[k] for k in exact}
    assert many["apply"] <= 1.05 * few["apply"] and many["remove"] <= 1.3 * few["remove"]


def test_each_of_many_adapters_acts_as_alone() -> None:
    """Whichever was attached and taken out before, and wherever the others stand."""
    alone = {}
    for i in range(6):
        m = model("bert_labels")
        unipelt.apply(m, unipelt.load(named(METHODS[i % 2]))(r=2), f"a{i}", seed=i)
        randomise(m, f"a{i}", seed=i)
        alone[f"a{i}"] = output(m)
    m = model("bert_labels")
    before, base = state(m), output(m)
    for i in (3, 0, 5, 1, 4, 2):
        unipelt.apply(m, unipelt.load(named(METHODS[i % 2]))(r=2), f"a{i}", seed=i)
        randomise(m, f"a{i}", seed=i)
    for gone in ("a3", "a0"):
        unipelt.remove(m, gone)
        alone.pop(gone)
    for name, expected in alone.items():
        with unipelt.using(m, name):
            assert torch.equal(output(m), expected), name
        unipelt.activate(m, name)
        assert torch.equal(output(m), expected), name
        m(**inputs()).logits.sum().backward()
        got = {n for n, p in m.named_parameters() if p.grad is not None}
        assert got and all(f"adapter_{name}." in n for n in got)
        m.zero_grad()
    with unipelt.disabled(m):
        assert torch.equal(output(m), base)
    for name in alone:
        unipelt.remove(m, name)
    assert state(m) == before


def test_activate_trains_what_it_names_and_nothing_else() -> None:
    m = model("bert_labels")
    for name, trainable in (("a", True), ("b", True), ("c", False)):
        unipelt.apply(m, unipelt.load(named("lora"))(r=2), name, trainable=trainable)
    for names in (("a",), ("b", "a"), (), ("c",), ("b", "c")):
        unipelt.activate(m, *names)
        trained = {n.split("adapter_")[1][0] for n, p in m.named_parameters() if p.requires_grad}
        assert trained == set(names) - {"c"}
