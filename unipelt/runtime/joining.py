"""Learned rows among the keys of an attention in steady passes (see `steady`), for kernels with masks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from .edits import Edit
from .kernels import Call, Kernel, beside, freed
from .quick import left, of_rows
from .rows_in_cache import WithRows, layer_of
from .steady import Steady


def joining(
    base: Callable[..., Any], kernel: Kernel | None, edits: Sequence[tuple[str, Any]], steady: Steady, query: torch.Tensor
) -> Callable[..., Any] | bool | None:  # fmt: skip
    """The function ``(wrapped, seam, module, query, key, value, mask, kwargs)`` that gives what attention gives with the rows of these edits
    among the keys, and where it is called in another way what the ``wrapped`` function gives as ever; False where there is none, None where
    it cannot be told."""
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
    graded, holder = torch.is_grad_enabled, steady.holder
    stay = all(same is not None for _, same in rows)  # whether they can stay in a cache
    many = sum(same[0].shape[2] for _, same in rows) if stay else 0

    def quick(
        wrapped: Any, seam: Any, module: nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: Any,
        kwargs: dict[str, Any],
    ) -> Any:  # fmt: skip
        plain = wrapped.base is own and (mask is None or type(mask) is torch.Tensor)
        if not _OTHERWISE.isdisjoint(kwargs) and any(kwargs.get(n) is not None for n in _OTHERWISE):
            plain = False
        if stay and key is holder.with_rows_in:  # there is one query, in a pass of this kind
            if not plain:
                return wrapped.as_ever(seam, module, query, key[:, :, many:], value[:, :, many:], mask, kwargs)
            if flagged:
                kwargs["is_causal"] = False
            if mask is not None:
                mask = freed(mask[..., : key.shape[2] - many], many)
            return own(module, query, key, value, mask, **kwargs)
        if not plain or graded() or type(key) is not torch.Tensor or (gated and query.shape[2] != 1):
            return wrapped.as_ever(seam, module, query, key, value, mask, kwargs)
        batch, groups, length, _ = key.shape
        keys, values = [], []
        count = 0
        for of, same in rows:
            found = same or of()
            if found is None:
                return wrapped.as_ever(seam, module, query, key, value, mask, kwargs)
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
        if mask is None and query.shape[2] != 1:  # a flag may say what a query sees
            return kernel.join(Call(module, query, key, value, None, kwargs), [*zip(keys, values)]).run(own)
        keys.append(key)
        values.append(value)
        if flagged:
            kwargs["is_causal"] = False
        if mask is not None:
            mask = freed(mask[..., :length], count)
        all_keys, all_values = torch.cat(keys, 2), torch.cat(values, 2)
        if stay and query.shape[2] == 1 and seam.veils is None:  # veils count the keys
            layer = layer_of(holder, module, key, value)
            if layer is not None:
                WithRows.put(layer, (all_keys, all_values), count, steady)
        return own(module, query, all_keys, all_values, mask, **kwargs)

    return quick


#: Arguments of a call whose rows are treated in another way.
_OTHERWISE = frozenset(("softcap", "position_bias", "cache"))
