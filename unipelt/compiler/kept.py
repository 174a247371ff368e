"""What is computed of tensors once, and kept while they stay as they are."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable, Sequence
from operator import attrgetter, is_
from typing import Any, NamedTuple

import torch

_referent, _version, _place = weakref.ref.__call__, attrgetter("_version"), torch.Tensor.data_ptr


class _Value(NamedTuple):
    """What was computed on a device, in which modes, and of which tensors: their counts of changes, and where their data were.

    ``data`` holds the data themselves, so that no other data can come to lie at their place.
    """

    device: str
    inference: bool
    autocast: bool | torch.dtype
    tensors: list[weakref.ref]
    versions: list[int]
    places: list[int]
    data: list[torch.Tensor]
    value: Any


class Kept:
    """Values by keys. Without gradients a value is kept while its tensors stay as they are: the same ones, with their data at the
    same place, which torch did not see change. What is written past torch's count (``t.data.copy_``) shows after a pass with
    gradients or a call of ``train()`` or ``eval()`` (`forget`). Copies and pickles of it have nothing yet.
    """

    def __init__(self) -> None:
        self.values: dict[Hashable, _Value] = {}

    def __reduce__(self) -> Any:
        return Kept, ()

    def __deepcopy__(self, memo: dict) -> Kept:
        return Kept()

    def of(self, key: Hashable, tensors: Sequence[torch.Tensor], make: Callable[[Sequence[torch.Tensor]], Any]) -> Any:
        """What ``make`` yields of the tensors, now or when it was last asked for. Not for a compiler to see."""
        if torch.is_grad_enabled():
            self.values.clear()
            return make(tensors)
        found = self.values.get(key)
        # each of these is one call, however many tensors there are
        if (
            found is not None
            and all(map(is_, tensors, map(_referent, found.tensors)))
            and [*map(_version, tensors)] == found.versions
            and [*map(_place, tensors)] == found.places
            and found.inference == torch.is_inference_mode_enabled()
            and found.autocast == (torch.is_autocast_enabled(found.device) and torch.get_autocast_dtype(found.device))
        ):
            return found.value
        value = make(tensors)
        if any(t.is_inference() for t in tensors):  # torch counts no changes of these
            return value
        try:
            places = [*map(_place, tensors)]
        except RuntimeError:  # those that `torch.vmap` batches have no data of their own
            return value
        device = tensors[0].device.type
        self.values[key] = _Value(
            device, torch.is_inference_mode_enabled(), torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device),
            [*map(weakref.ref, tensors)], [*map(_version, tensors)], places, [t.detach() for t in tensors], value)  # fmt: skip
        return value

    def forget(self) -> None:
        self.values.clear()
