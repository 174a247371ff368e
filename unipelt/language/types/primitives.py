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
    mixing,
    placing,
    reductions,
    shapes,
    stepping,
    transforms,
)
from .placing import PLACING
from .primitive import PRIMITIVES, Primitive, Reporter, entry_of
from .reductions import DOMAINS

#: Words in the text of a row that ask which tokens are real.
OF_REAL_TOKENS = frozenset({"tokens", *(n for n, p in PRIMITIVES.items() if p.mixes)})
#: Words that ask where the parts of a picture lie.
OF_GRID = frozenset(n for n, p in PRIMITIVES.items() if p.grid)

__all__ = [
    "OF_GRID",
    "OF_REAL_TOKENS",
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
    "mixing",
    "placing",
    "reductions",
    "shapes",
    "stepping",
    "transforms",
]
