"""Words that need data. `runtime.calibration` sums them over batches; here is what they are of one."""

from __future__ import annotations

from typing import Any

import torch

from ..code import Unwritten, Written
from ..named import Named, Value
from .evaluated import function
from .written import Writing, word


def real(a: Named, mask: torch.Tensor | None) -> torch.Tensor:
    """The vectors [n, d] of the real tokens. ``mask`` is [batch, token]."""
    data = a.data
    if mask is not None and a.axes == ("batch", "token") and mask.shape == data.shape[:2]:
        return data[mask.bool()]
    return data.reshape(-1, data.shape[-1])


@function("second_moment")
def _second_moment(context: Any, a: Named) -> Value:
    t = real(a, context.mask)
    return Named(t.T @ t / max(len(t), 1))


@function("data_mean")
def _data_mean(context: Any, a: Named) -> Value:
    t = real(a, context.mask)
    return Named(t.sum(0) / max(len(t), 1))


@function("mean_gradient")
def _mean_gradient(context: Any, a: Named) -> Value:
    raise NotImplementedError("a gradient is measured where a method is attached")


@word("second_moment", "data_mean", "mean_gradient")
def _measured(w: Writing, a: Written) -> Written:
    raise Unwritten("what is measured once, where a method is attached")
