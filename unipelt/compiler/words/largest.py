"""The largest and the smallest."""

from __future__ import annotations

from typing import Any

from .. import helpers
from ..code import Code, Written, text_of
from ..named import Named, Value
from .evaluated import dim_of, function
from .written import Writing, word


@function("top")
def top(context: Any, a: Named, k: Value, over: Value = -1) -> Value:
    return Named(helpers.top(a.data, int(k), dim_of(a, over)[0]), a.axes)  # type: ignore[arg-type]


@word("top")
def _top(w: Writing, a: Written, k: Written, over: Written = -1) -> Written:
    assert isinstance(a, Code)
    return Code(w.helper("top", a.text, text_of(k), w.dim(a, over)[0]), a.axes, a.sizes)
