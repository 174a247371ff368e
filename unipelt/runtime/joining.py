"""Learned rows among the keys of an attention in steady passes (see `steady`), for kernels with masks: where there is one query, or a mask
says what each sees."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from .edits import Edit
from .kernels import Kernel, beside, freed
from .quick import left, of_rows
from .steady import Steady


def joining(
    base: Callable[..., Any], kernel: Kernel | None, edits: Sequence[tuple[str, Any]], steady: Steady, query: torch.Tensor
) -> Callable[..., Any] | bool | None:  # fmt: skip
    """The function ``(base, module, query, key, value, mask, kwargs)`` that gives what attention gives with the rows of these edits among
    the keys, and None where it is called in another way; False where there is none, None where it cannot be told."""
    if (
        kernel is None
        or not kernel.masked
        or not all(type(e) is Edit and e.lowered and e.lowered.keys for _, e in edits)
    ):
        return False
    if torch.is_autocast_enabled(query.device.type):
        return None
    if len(edits) > 1 and any(left(e) for _, e in edits):
        return False
    rows: list[Any] = [of_rows(e, steady, query) for _, e in edits]
    if not rows or None in rows:
        return False
    gated, flagged, own = any(e.lowered.gated for _, e in edits), kernel.flagged, base
    graded = torch.is_grad_enabled

    def quick(
        base: Callable[..., Any], module: nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: Any,
        kwargs: dict[str, Any],
    ) -> Any:  # fmt: skip
        if (
            graded()
            or base is not own
            or type(key) is not torch.Tensor
            or (mask is not None and type(mask) is not torch.Tensor)
        ):
            return None
        if query.shape[2] != 1 and (gated or mask is None):  # a flag may say what a query sees
            return None
        if not _OTHERWISE.isdisjoint(kwargs) and any(kwargs.get(n) is not None for n in _OTHERWISE):
            return None
        batch, groups, length, _ = key.shape
        keys, values, count = [], [], 0
        for of, same in rows:
            found = same or of()
            if found is None:
                return None
            k, v, on_scores, on_values = found
            if on_scores is not None:
                k = k * on_scores
            if on_values is not None:
                v = v * on_values
            shape = k.shape
            if shape[1] != groups or shape[0] != batch or k.dtype is not key.dtype:
                k = beside(k, key)
            count += shape[2]
            shape = v.shape
            if shape[1] != groups or shape[0] != batch or v.dtype is not value.dtype:
                v = beside(v, value)
            keys.append(k)
            values.append(v)
        keys.append(key)
        values.append(value)
        if mask is not None:
            mask = freed(mask[..., :length], count)
        if flagged:
            kwargs["is_causal"] = False
        return base(module, query, torch.cat(keys, 2), torch.cat(values, 2), mask, **kwargs)

    return quick


#: Arguments of a call whose rows are treated in another way.
_OTHERWISE = frozenset(("softcap", "position_bias", "cache"))
