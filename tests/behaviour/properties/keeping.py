"""Kept elsewhere: saved and attached again, merged into the base, copied."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from tiny import distance, footprint, look, randomise, same, same_values, size, values
from torch import nn

import unipelt

from .case import EFFECT, Case, holds


@holds("saved")
def saved(case: Case) -> None:
    """Saved and attached to a fresh base, unfolded and folded, it computes the same."""
    m, other, inputs = case.acting(), case.base(), case.inputs
    before, acting = case.before(), case.acted()
    tensors = {n: t.clone() for n, t in unipelt.state_dict(m, "a").items()}
    for fold in (False, True):
        folder = unipelt.save(m, case.folder / f"fold-{fold}", "a", fold=fold)
        assert same(look(other, inputs), before)
        assert unipelt.attach(other, folder, allow_future=True) == "a"
        again = look(other, inputs)
        if fold:
            assert distance(again, acting) <= 1e-5 * max(1.0, size(acting))
        else:
            assert same(again, acting)
            assert same_values(unipelt.state_dict(other, "a"), tensors)
        assert not any(p.requires_grad for p in other.parameters())  # attached to be used, not trained
        unipelt.remove(other, "a")


@holds("merged")
def merged(case: Case) -> None:
    """Merged computes what unmerged computed; unmerging puts the base's weights back bit for bit."""
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.float64, 1e-10)):
        m, inputs = case.base(dtype), case.inputs
        before, weights = look(m, inputs), values(m)
        case.put(m)
        acting = look(m, inputs)
        assert distance(acting, before) > EFFECT
        unipelt.merge(m, "a")
        once = look(m, inputs)
        # large outputs carry their rounding: the bound is relative above 1
        assert distance(once, acting) <= tolerance * max(1.0, size(acting))
        with unipelt.disabled(m):
            assert same(look(m, inputs), once)  # it is in the weights now
        unipelt.merge(m, "a")
        assert same(look(m, inputs), once)  # twice is once
        with pytest.raises(unipelt.PeltError, match="E0554"):
            unipelt.remove(m, "a")
        unipelt.unmerge(m)
        base = {n: t for n, t in values(m).items() if n in weights}
        assert same_values(base, weights)
        assert unipelt.active(m) == ("a",)
        assert same(look(m, inputs), acting)
        unipelt.remove(m, "a")
        assert same(look(m, inputs), before)


@holds("merge refused")
def merge_refused(case: Case) -> None:
    """What cannot be merged says which rows forbid it and why, and changes nothing."""
    m, inputs = case.acting(), case.inputs
    acting, weights = case.acted(), values(m)
    with pytest.raises(unipelt.PeltError) as caught:
        unipelt.merge(m, "a")
    codes = {d.code for d in caught.value.diagnostics}
    assert codes == ({"E0564"} if case.plan.unabsorbed else {"E0563"})
    from unipelt.language.analyse.row_verdicts import mergeable

    rows = {e.row.name for e in case.plan.edits if mergeable(e.typing).value != "yes"}
    assert rows or case.plan.unabsorbed
    for row in rows:
        assert f"`{row}`" in str(caught.value)
    assert all(
        d.help and "because" not in d.message and (":" in d.message or d.code == "E0564")
        for d in caught.value.diagnostics
    )
    assert same_values(values(m), weights)
    assert same(look(m, inputs), acting)


@holds("copies")
def copies(case: Case) -> None:
    """A deep copy and a pickled one compute the same, and share nothing with the original."""
    m, inputs = case.acting(), case.inputs
    before, acting = case.before(), case.acted()
    file = io.BytesIO()
    torch.save(m, file)
    file.seek(0)
    for twin in (copy.deepcopy(m), torch.load(file, weights_only=False)):
        assert same(look(twin, inputs), acting)
        assert not {t.data_ptr() for t in twin.state_dict().values()} & {t.data_ptr() for t in m.state_dict().values()}
        randomise(twin, "a", seed=5)
        assert distance(look(twin, inputs), acting) > EFFECT
        assert same(look(m, inputs), acting)
        with unipelt.disabled(twin):
            assert same(look(twin, inputs), before)
            assert same(look(m, inputs), acting)
        unipelt.remove(twin, "a")
        assert same(look(twin, inputs), before)
        assert _names(twin) == _names(case.base())
    assert same(look(m, inputs), acting)


def _names(m: nn.Module) -> tuple:
    found = footprint(m)
    return tuple(found["modules"].items()), tuple(found["state"].items()), tuple(found["parameters"])
