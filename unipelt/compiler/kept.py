"""What is computed of tensors once, and kept while they stay as they are."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch


class Kept:
    """Values by keys. Without gradients a value is kept while its tensors stay as they are: the same ones, with their data at the
    same place, which torch did not see change. What is written past torch's count (``t.data.copy_``) shows after a pass with
    gradients or a change between training and evaluation (`forget`). Copies and pickles of it have nothing yet.
    """

    def __init__(self) -> None:
        self.values: dict[Hashable, tuple[Any, tuple, Any]] = {}  # what was computed, when, and of what

    def __reduce__(self) -> Any:
        return Kept, ()

    def __deepcopy__(self, memo: dict) -> Kept:
        return Kept()

    def of(self, key: Hashable, tensors: Sequence[torch.Tensor], make: Callable[[], Any]) -> Any:
        """What ``make`` yields of the tensors, now or when it was last asked for."""
        if torch.is_grad_enabled():
            self.values.clear()
        if torch.is_grad_enabled() or torch.compiler.is_compiling() or any(t.is_inference() for t in tensors):
            return make()
        device = tensors[0].device.type
        state = (
            torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device),
            torch.is_inference_mode_enabled(),
        )
        found = self.values.get(key)
        if found is not None and found[0] == state and len(found[1]) == len(tensors):
            for t, (ref, version, at) in zip(tensors, found[1], strict=True):
                if ref() is not t or t._version != version or t.data_ptr() != at:
                    break
            else:
                return found[2]
        value = make()
        self.values[key] = state, tuple((weakref.ref(t), t._version, t.data_ptr()) for t in tensors), value
        return value

    def forget(self) -> None:
        self.values.clear()
