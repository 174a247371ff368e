"""Taps: hooks that leave what enters a module of the base, or leaves it, for edits that read it elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.compiler import is_dynamo_compiling

from ..anatomy.passed import first_tensor
from ..compiler.plan import PlannedEdit
from .copies import element
from .edits import needs
from .hooks import Hook, moved
from .switch import Switch


def first_entered(args: tuple, kwargs: Mapping[str, Any]) -> torch.Tensor:
    """What enters a module of the base."""
    found = first_tensor(args, kwargs)
    if found is None:
        raise RuntimeError("a module of the base was called without a tensor")
    return found


class Tap:
    """A hook of a module of the base that leaves what enters it, or leaves it, in the holder, for the adapters that act.

    One for all adapters that read there: ``keys`` says under which names each of them looks for it.
    """

    def __init__(self, switch: Switch):
        self.switch = switch
        self.keys: dict[str, tuple[str, ...]] = {}

    def hook(self, module: nn.Module, kind: str) -> Hook:
        """``enters``: the tensor that enters the module, as edits of its input leave it (``before``: as it was before them),
        ``leaves``: the one that leaves it, ``shape``: batch and tokens of the first, ``cells``: rows and columns of what leaves it."""
        if kind in ("leaves", "cells"):
            return Hook(module, self.leaves if kind == "leaves" else self.cells)
        if kind == "before":
            return Hook(module, self.before, before=True, named=True, first=True)
        return Hook(module, self.enters if kind == "enters" else self.shape, before=True, named=True)

    def _acting(self) -> list[str]:
        keys = self.keys
        return [key for name in self.switch.live if name in keys for key in keys[name]]

    def enters(self, module: nn.Module, args: tuple, kwargs: dict | None = None) -> None:
        if kwargs is None:
            raise moved(module)
        if not is_dynamo_compiling() and (steady := (holder := self.switch.holder).steady) is not None:
            entered = args[0] if args else kwargs.get("hidden_states")
            if type(entered) is torch.Tensor:
                keys = steady.taps.get(self)
                if keys is None:
                    keys = steady.taps[self] = tuple(self._acting())
                for key in keys:
                    holder.values[key] = entered
                return
        for key in self._acting():
            self.switch.holder.values[key] = first_entered(args, kwargs)

    def before(self, module: nn.Module, args: tuple, kwargs: dict | None = None) -> None:
        self.enters(module, args, kwargs)

    def shape(self, module: nn.Module, args: tuple, kwargs: dict | None = None) -> None:
        if kwargs is None:
            raise moved(module)
        for key in self._acting():
            self.switch.holder.values[key] = first_entered(args, kwargs).shape[:-1]

    def cells(self, module: nn.Module, args: tuple, output: Any) -> None:
        for key in self._acting():
            self.switch.holder.values[key] = (output.shape[-2], output.shape[-1])

    def leaves(self, module: nn.Module, args: tuple, output: Any) -> None:
        for key in self._acting():
            self.switch.holder.values[key] = element(output), torch.is_grad_enabled()


def shape_key(path: str) -> str:
    """Under which name the holder keeps batch and tokens of what entered a module."""
    return f"rows:{path}"


def cells_key(path: str) -> str:
    """Under which name the holder keeps in how many rows and columns a convolution cut the picture."""
    return f"cells:{path}"


def taps(planned: PlannedEdit, adapter: str) -> list[tuple[str, str, str]]:
    """What hooks leave in the holder for an edit: the path of the module, what of it (see `Tap.hook`), under which name."""
    site = planned.site
    found = [(site.rows, "shape", shape_key(site.rows))] if site.rows is not None else []
    if planned.grid is not None:
        found.append((planned.grid.module, "cells", cells_key(planned.grid.module)))
    for need, source in (("x", site.x), ("residual", site.residual)):
        itself = need == "x" and source == site.view.module and site.side == "output"
        if need in needs(planned) and source is not None and not itself:
            kind = "leaves" if need == "x" and site.x_leaves else "enters"
            if need == "residual" and source == site.x:
                kind = "before"  # the stream itself, which edits of the sublayer's input do not change
            found.append((source, kind, tap_key(planned, adapter, need)))
    return found


def tap_key(planned: PlannedEdit, adapter: str, need: str) -> str:
    return f"{need}:{adapter}:{planned.site.view.module}:{planned.site.name}:{planned.row.name}"
