"""A search leaves nothing behind: in a model that trains, has hooks of its own, is compiled, or lies on several devices."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import transformers as T
from test_finder import OTHERS, model_of
from test_shown_sites import Blocks
from torch import nn

import unipelt
from unipelt.anatomy import stored
from unipelt.anatomy.sites import NOT_YET


@pytest.fixture(autouse=True)
def searched_anew() -> None:
    stored.forget()


def state(model: nn.Module) -> list[Any]:
    """All that a search could change: attributes, hooks, modes, weights and buffers bit for bit."""
    told: list[Any] = [torch.is_grad_enabled(), torch.backends.mha.get_fastpath_enabled()]
    for path, m in model.named_modules():
        hooks = [list(d.items()) for n, d in sorted(vars(m).items()) if n.endswith("_hooks") and isinstance(d, dict)]
        own = {n: id(v) for n, v in vars(m).items() if not n.startswith("_") and n != "training"}
        told.append((path, id(m), m.training, hooks, own, list(m._modules), list(m._parameters), list(m._buffers)))
    for n, p in [*model.named_parameters(), *model.named_buffers()]:
        grad = p.grad if isinstance(p, nn.Parameter) else None
        told.append(
            (n, id(p), p.requires_grad, grad is None, p.device, None if p.is_meta else p.detach().clone().tolist())
        )
    return told


def randomness() -> list[Any]:
    return [torch.get_rng_state().tolist(), random.getstate(), [str(x) for x in np.random.get_state()]]


def unchanged_by_a_search(model: nn.Module, **given: Any) -> unipelt.Sites:
    before, drawn = state(model), randomness()
    found = unipelt.sites(model, **given)
    assert state(model) == before and randomness() == drawn
    return found


@pytest.mark.parametrize("kind", OTHERS)
def test_a_model_that_trains_stays_as_it_was(kind: str) -> None:
    model = model_of(OTHERS[kind]).train()
    next(iter(model.children())).eval()  # a part that does not
    assert unchanged_by_a_search(model).map.sites


def test_hooks_of_its_own_stay_and_the_sites_are_the_same() -> None:
    plain, model = model_of(OTHERS["granite"]), model_of(OTHERS["granite"])
    seen: list[str] = []
    for m in (model, model.layers[0], model.layers[1].mlp.down_proj):
        m.register_forward_pre_hook(lambda module, args: seen.append("in"))
        m.register_forward_hook(lambda module, args, out: seen.append("out"))
    model.layers[0].register_forward_hook(lambda module, args, out: out)  # one that takes the output and yields it
    assert unchanged_by_a_search(model).map == unipelt.sites(plain).map and seen


def test_a_hook_that_fails_is_named_and_leaves_nothing() -> None:
    model = model_of(OTHERS["granite"])

    def fails(*_: Any) -> None:
        raise RuntimeError("not now")

    handle = model.layers[1].register_forward_hook(fails)
    found = unchanged_by_a_search(model)
    assert [d.code for d in found.map.unknown] == ["E0595"] and "not now" in found.map.unknown[0].message
    handle.remove()
    assert unipelt.sites(model).map.sites  # nothing of the failure is remembered


def test_a_compiled_model_and_a_compiled_block() -> None:
    model, plain = model_of(OTHERS["granite"]), model_of(OTHERS["granite"])
    unchanged_by_a_search(model)
    assert unchanged_by_a_search(torch.compile(model, backend="eager")).map == unipelt.sites(plain).map


def test_a_model_without_some_of_its_weights() -> None:
    """A block on meta, as while a large model is put together: the sites are those of the whole, and not yet proved."""
    model = model_of(OTHERS["granite"])
    model.layers[1].to("meta")
    found = unchanged_by_a_search(model).map
    assert found == unipelt.sites(model_of(OTHERS["granite"], meta=True)).map and found.untried


@pytest.mark.parametrize("kind", ["granite", "gemma2", "mixtral", "gpt2"])
def test_an_offloaded_model(kind: str) -> None:
    """accelerate's hooks bring the weights, as other tensors; the sites are those of the model itself, and proved but for experts' weights."""
    accelerate = pytest.importorskip("accelerate")
    config = {**OTHERS, "gpt2": T.GPT2Config(n_layer=2, n_embd=32, n_head=4, vocab_size=64)}[kind]
    model, plain = model_of(config), model_of(config)
    with torch.no_grad():
        for p, q in zip(model.parameters(), plain.parameters()):
            p.copy_(q)
    accelerate.cpu_offload(model, torch.device("cpu"))
    wanted = unipelt.sites(plain).map
    sites = tuple(replace(s, proof=NOT_YET) if s.view.parameter else s for s in wanted.sites)
    assert unchanged_by_a_search(model).map == replace(wanted, sites=sites)


def test_an_example_that_fails_leaves_nothing() -> None:
    torch.manual_seed(0)
    model = Blocks().train()
    example = {"readings": torch.randn(1, 4, 8), "secret": "open"}
    found = unchanged_by_a_search(model, example=example)
    assert [d.code for d in found.map.unknown] == ["E0595"] and set(example) == {"readings", "secret"}
