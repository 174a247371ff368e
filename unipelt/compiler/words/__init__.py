"""The torch side of the language's primitives. ``FUNCTIONS`` evaluates them; ``WORDS`` writes them as torch code.

The first ones stand in two files, `evaluated` and `written`. A newer file has a topic, with both sides of its words beside each other.
"""

from . import blocks, calibration, decompositions, integers, largest, matrices, mixing, stepping, transforms
from .evaluated import FUNCTIONS
from .written import WORDS

__all__ = [
    "FUNCTIONS",
    "WORDS",
    "blocks",
    "calibration",
    "decompositions",
    "integers",
    "largest",
    "matrices",
    "mixing",
    "stepping",
    "transforms",
]
