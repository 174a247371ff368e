"""The torch side of the words of `after step`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from .. import helpers
from ..code import Code, Written
from ..named import Named, Value
from .evaluated import function
from .written import Writing, word


@function("gradient")
def gradient(context: Any, a: Named) -> Value:
    found = context.gradients.get(id(a.data))
    return Named(torch.zeros_like(a.data) if found is None else found.to(a.data.dtype).reshape(a.data.shape), a.axes)


@function("among")
def among(context: Any, a: Named, n: Value) -> Value:
    """Of one place; several are taken together by `largest_of`."""
    return largest_of([a], float(n.data if isinstance(n, Named) else n))[0]  # type: ignore[arg-type]


def largest_of(values: Sequence[Named], n: float) -> list[Named]:
    """1 at the entries that are among the ``n`` largest of each value on average, 0 elsewhere; of equal ones the first."""
    kept = helpers.largest_entries([v.data.detach() for v in values], n)
    return [Named(k, v.axes) for k, v in zip(kept, values)]


@word("gradient")
def _gradient(w: Writing, a: Written) -> Written:
    assert isinstance(a, Code)
    return Code(w.helper("gradient_of", a.text), a.axes, a.sizes)


@word("among")
def _among(w: Writing, a: Written, n: Written) -> Written:
    assert isinstance(a, Code)
    return w.asked(a, n)
