"""Frozen draws that an adapter's folder leaves out: it has the seed, and a check of each, so that other draws are noticed.

VeRA's frozen pair, the places of FourierFT's coefficients: what they are follows from the seed and the tensor's name. A draw that is no
longer what was drawn (`after step` lines changed it, it came from an older folder, it was rounded on the way) is stored.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..compiler.helpers import mixed_bits
from ..compiler.initialise import start
from ..compiler.plan import Plan
from ..language.report.diagnostics import error
from .folder import DTYPES, shape_of

#: By how much a check may differ, as a share of the draw's norm: a sum of last bits of another processor's functions.
_TOLERANCE = 1e-5
#: So many entries are looked at together.
_PART = 2**20
#: How many sums of a draw are compared. Other draws agree with one in some 1e5.
_SUMS = 3
#: So many entries may be drawn for any base, and for a larger one as many as it has: a folder of a few bytes must not call for more.
_MOST = 2**24


@dataclass(frozen=True)
class Redrawn:
    """A draw that is left out: its shape, the dtype in which it was held, and `check` of it."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    check: tuple[float, ...]

    def to_json(self) -> dict[str, Any]:
        return {"shape": list(self.shape), "dtype": str(self.dtype).removeprefix("torch."), "check": list(self.check)}


def check(t: torch.Tensor) -> tuple[float, ...]:
    """Sums of a draw's entries with signs that depend on their place, and its norm."""
    total, at = torch.zeros(_SUMS + 1, dtype=torch.float64, device=t.device), 0
    for part in t.reshape(-1).split(_PART):
        values, bits = part.double(), mixed_bits(torch.arange(at, at + len(part), device=part.device))
        signed = [values * (((bits >> i) & 1) * 2 - 1) for i in range(_SUMS)]
        total += torch.stack([v.sum() for v in (*signed, values * values)])
        at += len(part)
    return (*total[:-1].tolist(), math.sqrt(total[-1]))


def left_out(plan: Plan, seed: int, tensors: Mapping[str, torch.Tensor]) -> dict[str, Redrawn]:
    """Those of an adapter's tensors that are still what is drawn."""
    found = {n: plan.tensors[n] for n in tensors if n in plan.tensors and plan.tensors[n].redrawn}
    if sum(t.count for t in found.values()) > most(plan):
        return {}
    out = {}
    for n, t in found.items():
        drawn, held = start(t, seed), tensors[n]
        if torch.equal(drawn.to(held.dtype), held.cpu()):
            out[n] = Redrawn(t.shape, held.dtype, check(drawn))
    return out


def most(plan: Plan) -> int:
    """How many entries may be drawn for an adapter."""
    return max(plan.counts.base, _MOST)


def listed(folder: Path, manifest: Mapping[str, Any]) -> dict[str, Redrawn]:
    """The draws that a folder leaves out, as its manifest tells them; none in formats before 1.2."""
    found = {}
    for n, said in (manifest.get("drawn") or {}).items():
        shape, given = shape_of(folder, n, said), said.get("check")
        dtype = next((d for d in DTYPES if str(d) == f"torch.{said.get('dtype')}"), None)
        sums = isinstance(given, list) and len(given) == _SUMS + 1 and all(type(v) in (int, float) for v in given)
        if dtype is None or not sums or n in manifest["tensors"]:
            raise error(
                "E0578",
                f"{folder} is broken: what its manifest says of the draw `{n}` is not a shape, a type and a check",
            )
        found[n] = Redrawn(shape, dtype, tuple(map(float, given)))
    return found


def drawn_again(folder: Path, plan: Plan, seed: int, wanted: Mapping[str, Redrawn]) -> dict[str, torch.Tensor]:
    """The draws that a folder leaves out. `PeltError` where other ones are drawn here than were there."""
    count = sum(math.prod(w.shape) for w in wanted.values())
    if count > most(plan):
        raise error(
            "E0578",
            f"{folder} is broken: it leaves out {count:,} drawn numbers, and no more than {most(plan):,} are left out",
        )
    out = {}
    for n, w in wanted.items():
        drawn = start(plan.tensors[n], seed)
        here = check(drawn)
        close = _TOLERANCE * here[-1] if drawn.is_floating_point() else 0.0
        if not all(abs(a - b) <= close for a, b in zip(here, w.check)):
            raise error("E0597", f"`{n}` of the adapter in {folder} is drawn from a seed, and this version draws other numbers than the one that saved it",
                        help="where it was saved, save it with its draws: unipelt.save(model, folder, draws=True)")  # fmt: skip
        out[n] = drawn.to(w.dtype)
    return out
