"""Words that are a helper of one tensor, which leaves its axes: both sides of such a word at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ...language.sizes import Size
from .. import helpers
from ..code import Code, Written
from ..named import Named, Value
from .evaluated import FUNCTIONS
from .written import WORDS, Writing


def of_one(name: str, sizes: Callable[[tuple[Size, ...]], tuple[Size, ...]]) -> None:
    """A helper of one tensor that leaves its axes; ``sizes`` are those that it gives."""
    compute = getattr(helpers, name)

    def found(context: Any, a: Named) -> Value:
        return Named(compute(a.data), a.axes)

    def written(w: Writing, a: Written) -> Written:
        assert isinstance(a, Code)
        return Code(w.helper(name, a.text), a.axes, sizes(a.sizes))

    FUNCTIONS[name], WORDS[name] = found, written
