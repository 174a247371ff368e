"""All primitives: the files by topic fill the table when they are imported."""

from __future__ import annotations

from . import (
    blocks,
    calibration,
    curves,
    decompositions,
    integers,
    largest,
    matrices,
    placing,
    reductions,
    shapes,
    stepping,
    transforms,
)
from .placing import PLACING
from .primitive import PRIMITIVES, Primitive, Reporter, entry_of
from .reductions import DOMAINS

__all__ = [
    "DOMAINS",
    "PLACING",
    "PRIMITIVES",
    "Primitive",
    "Reporter",
    "blocks",
    "calibration",
    "curves",
    "decompositions",
    "entry_of",
    "integers",
    "largest",
    "matrices",
    "placing",
    "reductions",
    "shapes",
    "stepping",
    "transforms",
]
