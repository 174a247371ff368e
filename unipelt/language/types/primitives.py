"""All primitives: the files by topic fill the table when they are imported."""

from __future__ import annotations

from . import curves, placing, reductions, shapes
from .placing import PLACING
from .primitive import PRIMITIVES, Primitive, Reporter, entry_of
from .reductions import DOMAINS

__all__ = [
    "DOMAINS",
    "PLACING",
    "PRIMITIVES",
    "Primitive",
    "Reporter",
    "curves",
    "entry_of",
    "placing",
    "reductions",
    "shapes",
]
