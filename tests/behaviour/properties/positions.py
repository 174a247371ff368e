"""Which other positions of the sequence take part: pads, later tokens."""

from __future__ import annotations

import pytest
import torch
from tiny import MARK, distance, look, size, small, starting
from trained import among_members

import unipelt

from .case import EFFECT, Case, holds

SIDES = ("left", "right")


def _padding(case: Case, side: str) -> None:
    assert case.base_holds(side)
    wanted, _ = case.padded(case.base(torch.float64), side)
    acting, padded = case.padded(case.acting(torch.float64), side)
    assert distance(acting, wanted) > EFFECT
    # float64, but for rotary tables and the softmax that models keep in float32
    assert distance(acting, padded) <= 1e-6 * max(1.0, size(acting))


@holds("padding right")
def padding_right(case: Case) -> None:
    """Padding at the right changes nothing at the real tokens."""
    _padding(case, "right")


@holds("padding left")
def padding_left(case: Case) -> None:
    """Padding at the left changes nothing at the real tokens."""
    _padding(case, "left")


@holds("padding seen")
def padding_seen(case: Case) -> None:
    """Where the verdict says that pads take part, they do, and the plan warns of it."""
    sides = [side for side in SIDES if case.base_holds(side)]
    assert sides  # else the base alone would answer
    assert any("pad positions" in w for w in case.plan.warnings)
    assert max(distance(*case.padded(case.acting(torch.float64), side)) for side in sides) > 1e-6


@holds("later token")
def later_token(case: Case) -> None:
    """A later token changes an earlier output exactly where the verdict says so; such a method is refused unless allowed."""
    m = case.base()
    assert case.written is not None
    if case.plan.leaks:
        with pytest.raises(unipelt.PeltError, match="E0530"):
            with among_members(m, small(case.spec)) as method:
                unipelt.apply(m, method, name="b", **starting(m))
    inputs = case.text(rows=2, tokens=8)
    ids = inputs[case.written.ids].clone()
    early = ids.shape[1] - 3
    ids[:, early:] = 95 - ids[:, early:]
    ids[:, -1] = MARK  # the text from which a row may select stands here too
    changed = {**inputs, case.written.ids: ids}
    assert (look(m, inputs)["logits"][:, early:] - look(m, changed)["logits"][:, early:]).abs().max() > EFFECT
    m = case.acting()
    before, after = case.logits(m, inputs), case.logits(m, changed)
    seen = float((before[:, :early] - after[:, :early]).abs().max())
    if any(e.row.tokens for e in case.plan.edits):  # which are the last may depend on how long the text is
        whole = case.text(rows=2, tokens=24)
        cut = {n: t[:, :12] if n in (case.written.ids, case.written.mask) else t for n, t in whole.items()}
        short = case.logits(m, cut)
        seen = max(seen, float((short - case.logits(m, whole)[:, :12]).abs().max()))
    assert (seen > 1e-4) if case.plan.leaks else (seen <= 1e-6 * max(1.0, float(before.abs().max()))), seen
