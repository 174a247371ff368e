"""`using`: which adapters act in a thread, and what other threads make of it."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import small
import torch
from names import name as named
from torch import nn

import unipelt
from unipelt.language.report.diagnostics import PeltError

PROMPT, LORA, UNIPELT = named("prompt_tuning"), named("lora"), named("unipelt_apl")


@pytest.fixture(scope="module")
def model() -> nn.Module:
    """A model with an adapter of each kind: edits, rows among the tokens, a gated union."""
    m = small.model("bert")
    for i, (name, method) in enumerate((("ann", LORA), ("bob", UNIPELT), ("carl", PROMPT))):
        unipelt.apply(m, unipelt.load(method), name, seed=i)
        small.randomise(m, name, seed=i)
    return m.eval()


@pytest.fixture(scope="module")
def alone(model: nn.Module) -> dict[str | None, torch.Tensor]:
    """What each adapter answers by itself."""
    found: dict[str | None, torch.Tensor] = {}
    for name in ("ann", "bob", "carl"):
        unipelt.activate(model, name)
        found[name] = small.output(model)
    unipelt.activate(model)
    found[None] = small.output(model)
    assert len({t.sum().item() for t in found.values()}) == 4
    return found


def test_a_block_chooses_and_restores(model: nn.Module, alone: dict[str | None, torch.Tensor]) -> None:
    unipelt.activate(model, "ann")
    with unipelt.using(model, "bob") as same:
        assert same is model and unipelt.active(model) == ("bob",)
        assert torch.equal(small.output(model), alone["bob"])
        with unipelt.using(model, None):
            assert unipelt.active(model) == () and torch.equal(small.output(model), alone[None])
            with unipelt.using(model, "carl"):
                assert torch.equal(small.output(model), alone["carl"])
        with unipelt.disabled(model):
            assert torch.equal(small.output(model), alone[None])
        assert torch.equal(small.output(model), alone["bob"])
    assert unipelt.active(model) == ("ann",) and torch.equal(small.output(model), alone["ann"])


def test_several_act_together_as_when_they_are_activated(model: nn.Module) -> None:
    unipelt.activate(model, "bob", "ann")
    both = small.output(model)
    unipelt.activate(model, "carl")
    with unipelt.using(model, "bob", "ann"):
        assert torch.equal(small.output(model), both)


def test_an_exception_restores(model: nn.Module, alone: dict[str | None, torch.Tensor]) -> None:
    unipelt.activate(model, "ann")
    with pytest.raises(KeyboardInterrupt), unipelt.using(model, "bob"):
        raise KeyboardInterrupt
    assert torch.equal(small.output(model), alone["ann"])


def test_a_pass_that_is_broken_off_leaves_nothing(model: nn.Module, alone: dict[str | None, torch.Tensor]) -> None:
    """By an exception, or by Ctrl-C, for which torch runs no hook."""
    for kind in (RuntimeError, KeyboardInterrupt):

        def stop(*_: object, kind: type[BaseException] = kind) -> None:
            raise kind

        handle = model.encoder.layer[1].register_forward_hook(stop)
        with pytest.raises(kind), unipelt.using(model, "bob"):
            small.output(model)
        unipelt.activate(model, "ann")
        with pytest.raises(kind):
            small.output(model)
        handle.remove()
        with unipelt.using(model, "carl"):
            assert torch.equal(small.output(model), alone["carl"])
        assert torch.equal(small.output(model), alone["ann"])


@pytest.mark.parametrize("names, code", [
    ((), "E0589"), ((None, "ann"), "E0589"), (("nobody",), "E0551"), (("ann", "ann"), "E0558"), ((3,), "E0551"),
])  # fmt: skip
def test_what_cannot_be_used(model: nn.Module, names: tuple, code: str) -> None:
    unipelt.activate(model, "ann")
    before = small.output(model)
    with pytest.raises(PeltError, match=code), unipelt.using(model, *names):
        pass
    assert torch.equal(small.output(model), before)


def test_a_model_without_adapters_is_its_base() -> None:
    m = small.model("bert")
    before = small.output(m)
    with unipelt.using(m, None):
        assert torch.equal(small.output(m), before)
    with pytest.raises(PeltError, match="E0550"), unipelt.using(m, "ann"):
        pass


def test_threads_get_their_own_answers(model: nn.Module, alone: dict[str | None, torch.Tensor]) -> None:
    unipelt.activate(model, "carl")

    def ask(i: int) -> bool:
        name = ("ann", "bob", None, "carl")[i % 4]
        with unipelt.using(model, name):
            return torch.equal(small.output(model), alone[name])

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(ask, range(200)))
    assert torch.equal(small.output(model), alone["carl"])


def test_what_is_activated_in_the_middle_of_a_pass_acts_from_the_next_one_on(
    model: nn.Module, alone: dict[str | None, torch.Tensor]
) -> None:
    unipelt.activate(model, "ann")
    layer = model.encoder.layer[1].attention.self

    def switch(*_: object) -> None:
        thread = threading.Thread(target=unipelt.activate, args=(model, "bob"))
        thread.start()
        thread.join()

    handle = layer.register_forward_pre_hook(switch)
    assert torch.equal(small.output(model), alone["ann"])
    handle.remove()
    assert torch.equal(small.output(model), alone["bob"])


def test_no_interleaving_of_activations_raises_or_mixes(
    model: nn.Module, alone: dict[str | None, torch.Tensor]
) -> None:
    stop = threading.Event()

    def activate() -> None:
        i = 0
        while not stop.is_set():
            unipelt.activate(model, *((), ("ann",), ("bob",), ("carl",))[i % 4])
            i += 1

    switching = threading.Thread(target=activate)
    switching.start()
    try:
        with ThreadPoolExecutor(3) as pool:
            answers = list(pool.map(lambda _: small.output(model), range(120)))
    finally:
        stop.set()
        switching.join()
    nearest = [min((a - t).abs().max().item() for t in alone.values()) for a in answers]
    assert max(nearest) == 0, nearest


def test_gradients_are_those_of_activate(model: nn.Module) -> None:
    unipelt.activate(model, "ann")
    with unipelt.using(model, "bob"):
        trained = {n for n, p in model.named_parameters() if p.requires_grad}
    assert trained and all("ann" in n for n in trained)


@pytest.mark.parametrize("compiled", [False, True])
def test_copies_and_compiled_models_have_blocks_of_their_own(compiled: bool) -> None:
    import copy

    m = small.model("gpt2")
    unipelt.apply(m, unipelt.load(LORA), "ann")
    small.randomise(m, "ann", seed=3)
    unipelt.activate(m)
    base = small.output(m)
    twin = copy.deepcopy(m)
    run = torch.compile(m, backend="eager", fullgraph=True) if compiled else m
    with torch.no_grad(), unipelt.using(run, "ann"):
        changed = run(**small.inputs())[0]
        assert not torch.allclose(changed, base) and torch.equal(small.output(twin), base)
    with torch.no_grad():
        torch.testing.assert_close(run(**small.inputs())[0], base)


def test_activate_takes_names_and_no_list(model) -> None:
    with pytest.raises(PeltError, match="E0588"):
        unipelt.activate(model, ["ann", "bob"])
