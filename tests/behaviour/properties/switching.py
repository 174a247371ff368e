"""Switched on and off, beside others, and taken out without a trace."""

from __future__ import annotations

import pytest
from tiny import distance, footprint, look, loss, same, same_values, size, trained, values

import unipelt

from .case import EFFECT, Case, holds


@holds("disabled")
def disabled(case: Case) -> None:
    """Disabled is the base, bit for bit: nested, after an exception, and with no adapter active."""
    m, inputs = case.acting(), case.inputs
    before, acting = case.before(), case.acted()
    with unipelt.disabled(m):
        assert same(look(m, inputs), before)
        with unipelt.disabled(m):
            assert same(look(m, inputs), before)
        assert same(look(m, inputs), before)
    assert same(look(m, inputs), acting)
    with pytest.raises(ZeroDivisionError):
        with unipelt.disabled(m):
            raise ZeroDivisionError
    assert same(look(m, inputs), acting)
    unipelt.activate(m)
    assert unipelt.active(m) == ()
    assert same(look(m, inputs), before)
    unipelt.activate(m, "a")
    assert same(look(m, inputs), acting)


@holds("removed")
def removed(case: Case) -> None:
    """Removed leaves the base bit for bit, and no hook, name or flag."""
    m, inputs = case.base(), case.inputs
    flags = {n: p.requires_grad for n, p in m.named_parameters()}
    try:
        for i, p in enumerate(m.parameters()):
            p.requires_grad_(i % 3 != 0)  # the user's own freezing comes back too
        traces, weights, before = footprint(m), values(m), look(m, inputs)
        case.put(m)
        assert footprint(m) != traces
        assert distance(look(m, inputs), before) > EFFECT
        case.put(m, "b", noise=1)
        look(m, inputs)
        unipelt.remove(m, "a")
        unipelt.remove(m, "b")
        assert footprint(m) == traces
        assert same_values(values(m), weights)
        assert same(look(m, inputs), before)
        assert not unipelt.adapters(m) and unipelt.active(m) == ()
    finally:
        for n, p in m.named_parameters():
            p.requires_grad_(flags.get(n, True))


@holds("side by side")
def side_by_side(case: Case) -> None:
    """Two adapters: each alone computes what it computes alone; both together act in the order they are named."""
    m, inputs = case.base(), case.inputs
    case.put(m, "two", noise=1)
    alone = case.acted(), look(m, inputs)
    unipelt.remove(m, "two")
    assert distance(*alone) > EFFECT
    case.put(m, "one", noise=0)
    case.put(m, "two", noise=1)
    own = {n: list(unipelt.state_dict(m, n)) for n in ("one", "two")}
    assert own["one"] == own["two"]
    assert unipelt.active(m) == ("two",)
    for name, wanted in zip(("one", "two"), alone):
        unipelt.activate(m, name)
        assert same(look(m, inputs), wanted)
        loss(m, inputs).backward()
        idle = "two" if name == "one" else "one"
        mine = {n: id(p) for n, p in trained(m, name).items()}
        assert not trained(m, idle)
        assert {*mine.values()} == {id(p) for p in m.parameters() if p.requires_grad}
        learning = {i for n, i in mine.items() if n not in case.resting}
        assert learning == {id(p) for p in m.parameters() if p.grad is not None}
        for p in m.parameters():
            p.grad = None
    unipelt.activate(m, "one", "two")
    both = look(m, inputs)
    assert same(look(m, inputs), both)
    assert len(trained(m, "one")) == len(trained(m, "two")) > 0
    replaced = [e.site.name == "head" or (e.prompt is not None and e.prompt.word == "fill") for e in case.plan.edits]
    if all(replaced):  # copies, heads and fillings stand in place of what was there: the later one replaces the earlier
        assert distance(both, alone[1]) <= 1e-5 * max(1.0, size(alone[1]))
    else:
        assert distance(both, alone[0]) > EFFECT and distance(both, alone[1]) > EFFECT
    unipelt.remove(m, "one")
    assert unipelt.active(m) == ("two",)
    assert same(look(m, inputs), alone[1])
    unipelt.remove(m, "two")


@holds("names")
def names(case: Case) -> None:
    """Names that contain one another, or are methods of containers, stay apart."""
    m, inputs = case.base(), case.inputs
    chosen = ("a", "a_b", ("keys", "values", "items", "pop", "forward", "training")[len(case.spec) % 6])
    alone = {}
    for noise, name in enumerate(chosen):
        case.put(m, name, noise=noise)
        alone[name] = look(m, inputs)
    assert all(distance(alone[a], alone[b]) > EFFECT for a, b in zip(chosen, chosen[1:]))
    for name in chosen:
        unipelt.activate(m, name)
        assert same(look(m, inputs), alone[name])
    unipelt.remove(m, "a")
    for name in chosen[1:]:
        unipelt.activate(m, name)
        assert same(look(m, inputs), alone[name])
    for name in chosen[1:]:
        unipelt.remove(m, name)
