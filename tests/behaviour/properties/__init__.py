"""What must hold of every method on every model: one function a property, written against a `Case`.

Each function puts the method on, with randomised tensors, asserts, and takes it off again; the model it was lent is
afterwards exactly what it was (the fixture `bases` holds that after every cell).
"""

from . import switching, keeping, counting, training, ways, positions, decoding
from .case import EFFECT, PROPERTIES, Case

__all__ = [
    "EFFECT",
    "PROPERTIES",
    "Case",
    "counting",
    "decoding",
    "keeping",
    "positions",
    "switching",
    "training",
    "ways",
]
