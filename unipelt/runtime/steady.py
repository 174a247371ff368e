"""Passes that follow one another while nothing changes: in them each host calls one function, which was written for it.

Where arithmetic is cheap, finding out at each edit what acts, whether its folded tensors still hold and where its arguments are costs more
than the edit. So that is asked once, when a pass begins: no gradients, no adapter added, dropped, watched or switched, no change between
training and evaluation, every tensor the same one with its data at the same place, which torch did not see change. What holds for the
last pass holds for this one, and the functions that hosts have made meanwhile (`quick`) are called in the place of everything else.

A pass that is the first of its kind computes as ever, the second one makes the functions, so that who switches at every pass pays nothing.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from itertools import chain
from operator import attrgetter, is_
from typing import Any

import torch
from torch import nn
from torch.nn.modules import module as of_all_modules

_version, _place = attrgetter("_version"), torch.Tensor.data_ptr
#: So many choices of adapters are remembered.
MOST = 8


class Steady:
    """What hosts do in passes of one kind. Each mapping has, by the seam or the tap, its function; False where there is none.

    When a pass begins, no tensor lies in a processor's cache, so a look at one costs more than all else that `holds` does. It looks only at
    those from which something was computed beforehand.
    """

    def __init__(self, holder: Any) -> None:
        self.holder = holder
        self.learns = False
        self.outputs: dict[Any, Any] = {}
        self.inputs: dict[Any, Any] = {}
        self.heads: dict[Any, Any] = {}
        self.taps: dict[Any, tuple[str, ...]] = {}
        self.device: str | None = None
        self._met: set[int] = set()  # modules and tensors, by their identities
        self._hooks: list[Mapping[int, Any]] = []
        self._homes: list[dict[str, Any]] = []  # where modules have their tensors
        self._there: list[Any] = []  # what is there, of one after the other
        self._folded: list[torch.Tensor] = []
        self._versions: list[int] = []
        self._places: list[int] = []
        self._data: list[torch.Tensor] = []  # no other data can come to lie at their places

    def rests_on(
        self, module: nn.Module, names: Iterable[str], computed: Container[str] = (), *, passed_by: bool = False
    ) -> bool:
        """Notes that a function reads the tensors of a module by these names, and keeps what was made of the ``computed`` ones.
        ``passed_by``: it takes the place of a call of the module, whose hooks would not run. False where changes would not be seen."""
        homes = module._parameters, module._buffers
        if id(module) not in self._met:
            self._met.add(id(module))
            for home in homes:
                if home:
                    self._homes.append(home)
                    self._there += home.values()
            if passed_by:
                self._hooks += [module._forward_hooks, module._forward_pre_hooks]
        for n in names:
            t: Any = next((home[n] for home in homes if home.get(n) is not None), None)
            if type(t) not in (torch.Tensor, nn.Parameter) or t.is_inference() or t.is_meta:
                return False
            self.device = t.device.type
            if n in computed and id(t) not in self._met:
                try:
                    place = t.data_ptr()
                except RuntimeError:  # one that `torch.vmap` batches has no data of its own
                    return False
                self._met.add(id(t))
                self._folded.append(t)
                self._versions.append(t._version)
                self._places.append(place)
                self._data.append(t.detach())
        return not (passed_by and (any(self._hooks) or "forward" in vars(module)))

    def holds(self) -> bool:
        """Whether all that the functions rest on is as it was. Each of these is one call, however many tensors there are."""
        return (
            all(map(is_, chain.from_iterable(map(dict.values, self._homes)), self._there))
            and sum(map(len, self._homes)) == len(self._there)
            and [*map(_version, self._folded)] == self._versions
            and [*map(_place, self._folded)] == self._places
            and not any(self._hooks)
        )


class Kinds:
    """The kinds of passes that have been of late. Copies and pickles of it know none: functions belong to the process that wrote them."""

    def __init__(self) -> None:
        self.known: dict[tuple[tuple[str, ...], bool], Steady] = {}

    def __reduce__(self) -> Any:
        return Kinds, ()

    def __deepcopy__(self, memo: dict) -> Kinds:
        return Kinds()

    def forget(self) -> None:
        """Something has changed that no tensor tells."""
        self.known = {}

    def of(self, acting: tuple[str, ...], holder: Any) -> Steady | None:
        """That of a pass that begins now, in which these adapters act; None where each host must ask for itself. In the ``holder`` is
        what hooks leave for one another."""
        if torch.is_grad_enabled():
            self.known = {}
            return None
        if (
            type(acting) is not tuple
            or of_all_modules._global_forward_hooks
            or of_all_modules._global_forward_pre_hooks
        ):
            return None
        key = acting, torch.is_inference_mode_enabled()
        found = self.known.get(key)
        if found is None or not found.holds():
            found = Steady(holder)
            self.known = {**dict([*self.known.items()][1 - MOST :]), key: found}
            return found
        if found.device is not None and torch.is_autocast_enabled(found.device):
            return None
        found.learns = True
        return found
