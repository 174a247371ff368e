"""Whether a saved adapter belongs to a model: by the shapes of the base that it was saved with, and by some of its weights."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from ..language.report.diagnostics import error
from .saving import fingerprint


def compare_base(model: nn.Module, saved: Mapping[str, Any], folder: Path, force: bool) -> None:
    """Raises `PeltError` where an adapter of a folder is of other shapes than this model, or, without ``force``, of other weights."""
    compare_fingerprints(fingerprint(model), saved, folder, force)


def compare_fingerprints(here: Mapping[str, Any], saved: Mapping[str, Any], folder: Path, force: bool) -> None:
    """`compare_base` of a model whose fingerprint is known."""
    if here["architecture"] != saved.get("architecture"):
        raise error("E0570", f"the adapter in {folder} belongs to another architecture: {saved.get('class')} "
                    f"({saved.get('name') or 'unnamed'}), and this is {here['class']} of other shapes")  # fmt: skip
    samples = saved.get("samples")
    if force or not isinstance(samples, dict) or not here["samples"]:
        return
    for n, values in samples.items():
        mine = here["samples"].get(n, [])
        if not isinstance(values, list) or len(mine) != len(values) or not all(map(_alike, values, mine)):
            raise error("E0571", f"the adapter in {folder} was trained on other weights: `{n}` differs",
                        help="load the base it was trained on, or pass force=True")  # fmt: skip


def _alike(saved: Any, here: float) -> bool:
    """Whether a sampled weight is the same, up to the rounding of a shorter dtype."""
    if not isinstance(saved, (int, float)) or abs(saved) > 1e300:
        return False
    return math.isclose(saved, here, rel_tol=2e-2, abs_tol=1e-3)
