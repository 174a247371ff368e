"""Edits of a parameter: a host that computes ``x @ W + bias`` computes ``x @ W_new + bias``, and its own weight stays as it is.

Each edit makes of the weight, as the edits before have left it, the next; what the host yields becomes
``h + x @ (W_new - W)``, at a table of embeddings ``h + (W_new - W)[ids]``. What is added is 0 to the bit where nothing is
changed, and keeps its digits where the base has few. Other hosts (norms) are called once more, with the new parameter.
Outside training ``W_new - W`` is computed once, and the rows' own lines are not kept beside it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce
from itertools import combinations
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from ..compiler.drawn import SEED
from ..anatomy.columns import Columns, joined, taken
from ..anatomy.layout import Layout
from ..anatomy.matrices import as_map, as_stored, matrix
from ..anatomy.quantised import unreadable, values, without_weight
from ..anatomy.sizes import weight_shape
from ..compiler.kept import Kept
from .copies import CopyEdit, with_parameters
from .edits import Edit
from .offload import kept_elsewhere, value_of

#: What is added to a weight, by the columns of the output that it belongs to (None: all).
Changes = Mapping[Columns | None, torch.Tensor]


class Use(nn.Module):
    """An edit of a tied parameter at another module that uses it, where it is the transpose if ``turned``."""

    of_weight, side, columns, alone, prompt, batched = True, "output", None, False, None, False
    chosen: tuple[Any, ...] = ()
    carries: tuple[str, ...] = ()  # a weight is the same at every pass
    indices: frozenset[str] = frozenset()
    watchers: tuple[Any, ...] = ()  # what watches the edit sees it where it is

    def __init__(self, edit: Edit, turned: bool):
        super().__init__()
        self.edit = [edit]  # in a list: it must not become a child
        self.turned = turned
        self.shared, self.inputs, self.penalised = edit.shared, edit.inputs, False
        self.needs, self.kind, self.lies, self.parameter = edit.needs, edit.kind, None, edit.parameter

    @property
    def identity(self) -> int:
        return id(self)

    def registered(self) -> list[torch.Tensor]:
        return self.edit[0].registered()

    def forward(self, h: torch.Tensor, given: Mapping[str, Any], mask: torch.Tensor | None = None) -> torch.Tensor:
        """The new parameter as this module has it."""
        if not self.turned:
            return self.edit[0](h, given, mask)
        return self.edit[0](h.T, {**given, "W": h.T}, mask).T


#: What makes of a parameter the next.
Rewriting = Edit | Use


class Weights:
    """What the edits of one parameter of a host make of it."""

    def __init__(self, name: str = "weight") -> None:
        self.name = name
        self.kept = Kept()

    def changes(
        self,
        host: nn.Module,
        edits: Sequence[Rewriting],
        given: Mapping[str, Any],
        like: torch.dtype,
        copies: Sequence[CopyEdit] = (),
    ) -> Changes:
        """``W_new - W`` of all edits together, in a dtype; ``given`` is what else they read, ``copies`` are trained ones of W."""
        still = not any(e.training or e.watchers or e.inputs or e.needs & {"chance", SEED} for e in edits)
        if (
            not still
            or torch.compiler.is_compiling()
            or kept_elsewhere(host)
            or any(kept_elsewhere(m) for e in edits for m in (e, *e.shared))
        ):
            return self._computed(host, edits, given, like, copies)
        read = self._own(host)
        read += [t for m in copies for t in m.values().values()]
        read += [t for e in edits for t in e.registered()]
        key = (like, *(e.identity for e in edits), *map(id, copies))
        if key not in self.kept.values:
            self.kept.forget()  # one for each host, whatever acts
        return self.kept.of(key, read, lambda _: self._computed(host, edits, given, like, copies))

    def _own(self, host: nn.Module) -> list[torch.Tensor]:
        """What the parameter is made of."""
        if self.name in host._parameters:
            return [value_of(host, self.name)]
        coded = without_weight(host) is not None
        return [b for b in host._buffers.values() if b is not None] if coded else [matrix(host)]

    def _computed(
        self,
        host: nn.Module,
        edits: Sequence[Rewriting],
        given: Mapping[str, Any],
        like: torch.dtype,
        copies: Sequence[CopyEdit],
    ) -> Changes:
        W = value_in(host, self.name, copies)
        with torch.autocast(W.device.type, enabled=False):
            return {c: (new - old).to(like) for c, (old, new) in edited(W, edits, given).items()}


def value_in(host: nn.Module, name: str = "weight", copies: Sequence[CopyEdit] = ()) -> torch.Tensor:
    """A parameter of a module, a linear map's weight as [d_in, d_out], or the trained copy that takes its place."""
    trained = [t for c in copies for n, t in c.values().items() if n == name]
    if trained:
        return as_map(host, trained[-1])
    own = host._parameters.get(name)
    if own is None:  # one that is made anew at each call, as a parametrised one is
        return matrix(host)
    found = values(host, name, value_of(host, name))
    if not isinstance(found, torch.Tensor):
        raise unreadable(host, name)
    return as_map(host, found)


def edited(
    W: torch.Tensor, edits: Sequence[Rewriting], given: Mapping[str, Any]
) -> dict[Columns | None, tuple[torch.Tensor, torch.Tensor]]:
    """The weight before and after the edits, which act in their order, in the columns of each; of all columns where some meet.

    It is computed in the dtype of the edits' tensors, float32 at least; W is taken in that dtype, too, so that what the edits
    leave alone is the same before and after.
    """
    own = list(dict.fromkeys(e.columns for e in edits))
    whole = None in own or any(a.meets(b) for a, b in combinations([c for c in own if c is not None], 2))
    known = [t.dtype for e in edits for t in e.registered()] or [W.dtype]
    W = W.to(reduce(torch.promote_types, known, torch.float32))
    parts: dict[Columns | None, tuple[torch.Tensor, torch.Tensor]] = {}
    for e in edits:
        at, inner = (None, e.columns) if whole else (e.columns, None)
        before, h = parts[at] if at in parts else (taken(W, at),) * 2
        own_part = taken(h, inner)
        new = e(own_part, {**given, "W": own_part}, None)
        parts[at] = before, new if inner is None else inner.put(h, new)
    return parts


def acts(host: nn.Module) -> str:
    """How a module takes another parameter: as a ``map`` or a ``table``, or else it is ``called`` with it."""
    if isinstance(host, nn.Embedding):
        plain = type(host).forward is nn.Embedding.forward and host.max_norm is None
        return "table" if plain else "called"
    return "map" if weight_shape(host) is not None else "called"


def looked_up(h: torch.Tensor, ids: torch.Tensor, changes: Changes, host: nn.Embedding) -> torch.Tensor:
    """What a table yields with the rows that are added to its own."""
    (change,) = changes.values()
    rows = functional.embedding(ids, change, host.padding_idx, None, 2.0, host.scale_grad_by_freq)
    return h + rows.to(h.dtype)


def called(
    host: nn.Module, new: Mapping[str, Changes], copies: Sequence[CopyEdit], args: tuple, kwargs: Mapping[str, Any]
) -> Any:
    """What a module yields with other parameters, from what enters it: those that are edited, and trained copies of others."""
    trained = {n: t for c in copies for n, t in c.values().items()}
    changed = {n: as_stored(host, rewritten(value_in(host, n, copies), c)) for n, c in new.items()}
    return with_parameters(host, {**trained, **changed})(*args, **kwargs)


def of_experts(
    host: nn.Module, edits: Sequence[Rewriting], given: Mapping[str, Any], trained: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """The parameters of a module of experts as edits make them, by its names, of the module's own or of ``trained`` copies.

    They are made anew at each call: kept beside the base's, they would be most of a model once more."""
    found: dict[str, torch.Tensor] = {}
    for name in dict.fromkeys(e.parameter for e in edits):
        own = [e for e in edits if e.parameter == name]
        before = trained[name] if name in trained else value_of(host, name)
        with torch.autocast(before.device.type, enabled=False):
            found[name] = rewritten_matrices(before, own, given)
    return found


def rewritten_matrices(before: torch.Tensor, edits: Sequence[Any], given: Mapping[str, Any]) -> torch.Tensor:
    """A parameter with a matrix for each expert as edits make it, stored as it was."""
    view = edits[0].site.view
    W = view.turn(before)
    new = {c: part for c, (_, part) in edited(W, edits, given).items()}
    W = new[None] if None in new else joined(W, {c: t.to(W.dtype) for c, t in new.items() if c is not None})
    return view.turn(W).to(before.dtype).contiguous()


def added(h: torch.Tensor, x: torch.Tensor, changes: Changes, layout: Layout | None) -> torch.Tensor:
    """``h + x @ change`` in the columns of each change."""
    if layout is not None:
        return layout.back(added(layout.into(h), layout.entering(x), changes, None), h)
    for columns, change in changes.items():
        part = x @ change
        if columns is None:
            h = h + part.to(h.dtype)
        else:
            h = columns.put(h, columns.of(h) + part.to(h.dtype))
    return h


def rewritten(W: torch.Tensor, changes: Changes) -> torch.Tensor:
    """The weight with what is added to it."""
    for columns, change in changes.items():
        W = W + change if columns is None else columns.put(W, columns.of(W) + change)
    return W
