"""Methods of the library against the recordings of two public libraries, the frozen draws among them.

The recordings and what reads them are those of `tests/fidelity`, whose list (`test_recordings`) leaves to this folder those
that a file `refs_*.py` here names.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from reference import apart, compare_counts

import unipelt
from unipelt.runtime.registry import record

sys.path.append(str(Path(__file__).parents[1] / "fidelity"))
from fidelity_kit import variant
from recordings import FOLDER

__all__ = ["by_recording", "variant"]

#: How far a gradient may be from the recorded one, as a share of its largest entry.
GRADIENTS = 1e-4
View = Callable[[torch.Tensor], torch.Tensor]


def by_recording(
    name: str, method: unipelt.Method, source: Callable[[str], tuple[str, View]], trained: bool = True, examples: int | None = None,
    unused: str = "",
) -> float:  # fmt: skip
    """How far our outputs are from the recorded ones, every tensor of ours being the recorded one.

    ``source(our name)`` says which recorded tensor fills one of ours, frozen draws included, and by which view of it: the
    part of a recorded name behind `adapter.`, `buffer.` or `aux.`; no name leaves a frozen tensor of ours as it is. Every recorded
    tensor must be used. The gradients of
    trained tensors must agree too, unless ``trained`` is false (where the recorded ones are known to be wrong, or of other tensors).
    ``examples``: only so many, the first ones, are compared. ``unused``: what is part of the names of recorded tensors that ours has none for.
    """
    if FOLDER is None:
        pytest.skip("the recordings are not here")
    from test_recordings import build, read

    metadata, tensors = read(name)
    model, key = build(metadata, tensors), metadata["output_key"]
    inputs = {n.removeprefix("input."): t for n, t in tensors.items() if n.startswith("input.")}
    cotangent = inputs.pop("cotangent")
    unipelt.apply(model, method, head=False, allow_future=True)
    learned = [
        t for n, t in tensors.items() if n.startswith("grad.") and t.any()
    ]  # what has no gradient is read nowhere
    found = {n: source(n) for n in unipelt.state_dict(model)}
    unread = {
        n for n, (recorded, _) in found.items() if (g := tensors.get(f"grad.{recorded}")) is not None and not g.any()
    }
    own = record(model, "default").trained()
    assert all(found[n][0] for n in own), "every trained tensor has a source"
    compare_counts([p for n, p in own.items() if n not in unread], learned)
    _fill(unipelt.state_dict(model), found, tensors)
    given = {n.removeprefix("adapter.") for n in tensors if n.startswith("adapter.")}
    given = {n for n in given if not unused or unused not in n}
    assert given <= {s for s, _ in found.values()}, sorted(given - {s for s, _ in found.values()})
    out = model(**inputs)[key]
    if trained:
        (out * cotangent).sum().backward()
        for n, p in record(model, "default").trained().items():
            recorded, view = found[n]
            assert p.grad is not None, n
            assert (worst := apart(p.grad, view(tensors[f"grad.{recorded}"]))) <= GRADIENTS, f"{n}: {worst:.1e}"
    assert apart(out.detach(), tensors["output.base"]) > 1e-3, "the method does nothing here"
    return apart(out.detach()[:examples], tensors[f"output.{key}"][:examples])


def _fill(
    ours: Mapping[str, torch.Tensor], found: Mapping[str, tuple[str, View]], tensors: Mapping[str, torch.Tensor]
) -> None:
    for n, t in ours.items():
        recorded, view = found[n]
        if not recorded:
            continue
        value = view(next(tensors[f] for k in ("adapter", "buffer", "aux") if (f := f"{k}.{recorded}") in tensors))
        assert value.shape == t.shape, f"{n} is {list(t.shape)}, its source {list(value.shape)}"
        with torch.no_grad():
            t.copy_(value)
