"""What the fidelity tests share: methods, tensors filled by a mapping (`mappings`), and how far two sides are apart.

`check_mapping` demands that every one of our tensors is given and that every element of every one of theirs is used
exactly once, so that nothing is left out of a comparison.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from mappings import Mapped
from names import name as in_force
from torch import Tensor, nn

import unipelt
from unipelt.runtime.registry import record

OUTPUTS = 1e-5  # largest absolute difference of outputs
GRADIENTS = 1e-4  # largest difference of a gradient, as a share of the tensor's largest entry
EFFECT = 1e-3  # an adapter that does less tests nothing

SPECS = Path(__file__).parent / "specs"


def library(name: str, **arguments: Any) -> unipelt.Method:
    """A method of the library of specs."""
    return unipelt.load(in_force(name))(**arguments)


def variant(file: str, name: str, **arguments: Any) -> unipelt.Method:
    """A method of the specs beside these tests."""
    return unipelt.load(SPECS / f"{file}.pelt", name)(**arguments)


# ---------------------------------------------------------------- comparing


def check_mapping(mapped: Mapped, ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> None:
    """Every tensor of ours has a source of its shape; every element of theirs is used exactly once."""
    assert set(mapped) == set(ours), f"not mapped: {sorted(set(ours) ^ set(mapped))}"
    assert {t for t, _ in mapped.values()} == set(theirs), sorted({t for t, _ in mapped.values()} ^ set(theirs))
    used: dict[str, list[Tensor]] = {}
    for name, (source, view) in mapped.items():
        index = view(torch.arange(theirs[source].numel()).view(theirs[source].shape))
        assert index.shape == ours[name].shape, f"{name} is {list(ours[name].shape)}, its source {list(index.shape)}"
        used.setdefault(source, []).append(index.reshape(-1))
    for source, parts in used.items():
        assert torch.equal(torch.cat(parts).sort().values, torch.arange(theirs[source].numel())), f"not all of {source}"


def fill(model: nn.Module, adapter: str, mapped: Mapped, theirs: Mapping[str, Tensor]) -> None:
    ours = unipelt.state_dict(model, adapter)
    check_mapping(mapped, ours, theirs)
    with torch.no_grad():
        for name, (source, view) in mapped.items():
            ours[name].copy_(view(theirs[source]))


def gradients(model: nn.Module, adapter: str) -> dict[str, Tensor]:
    """The gradient of every trained tensor; no other parameter may have one."""
    trained = record(model, adapter).trained()
    own = {id(p) for p in trained.values()}
    stray = [n for n, p in model.named_parameters() if p.grad is not None and id(p) not in own]
    assert not stray, f"gradients on the base: {stray}"
    missing = [n for n, p in trained.items() if p.grad is None]
    assert not missing, f"no gradient on {missing}"
    return {n: p.grad for n, p in trained.items() if p.grad is not None}


def output_error(ours: Tensor, theirs: Tensor) -> float:
    assert ours.shape == theirs.shape, f"{list(ours.shape)} and {list(theirs.shape)}"
    return float((ours - theirs).detach().abs().max())


def gradient_error(ours: Mapping[str, Tensor], mapped: Mapped, theirs: Mapping[str, Tensor]) -> tuple[float, str]:
    """The largest error as a share of the largest entry of their whole tensor's part, and where it is."""
    worst = (0.0, "")
    for name, (source, view) in mapped.items():
        expected = view(theirs[source])
        largest = float(expected.abs().max())
        assert largest > 0, f"the gradient of {source} is zero, so it would test nothing"
        worst = max(worst, (float((ours[name] - expected).abs().max()) / largest, name))
    return worst


def effect(out: Tensor, base: Tensor) -> float:
    """How far an adapter moves the output (at the last positions, where a prompt made it longer)."""
    return float((out[:, -base.shape[1] :] - base).abs().max())
