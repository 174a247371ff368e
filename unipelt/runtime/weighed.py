"""Several adapters that act with weights: of each the change counts so much, ``h + w (edit(h) - h)``, one behind the other.

Where changes are added up, as those of LoRA and of all that reads what enters its module, that is the sum of the weighted changes.
What has no change that could be weighed is refused (`unweighable`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from ..compiler.plan import Plan, PlannedEdit
from ..language.syntax.nodes import Name, walk
from ..language.types.softmax import shares_softmax
from .copies import CopyEdit, with_parameters
from .edits import Edit
from .offload import value_of
from .weights import Use


class Weighed:
    """An edit of which a part of the change counts; asked for anything else, it is the edit."""

    lowered = None  # at heads it acts on what attention yields: keys beside the others would be no part of a change

    def __init__(self, edit: Edit | Use, weight: float):
        self.edit, self.weight = edit, weight

    def __getattr__(self, name: str) -> Any:
        if name == "edit":  # a copy that is being made has none yet
            raise AttributeError(name)
        return getattr(self.edit, name)

    @property
    def identity(self) -> tuple[int, float]:
        return (id(self.edit), self.weight)

    def __call__(self, h: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        found = self.edit(h, *args, **kwargs)
        if isinstance(found, tuple):  # with the mass of its scores
            return (self._part(h, found[0]), *found[1:])
        return self._part(h, found)

    def _part(self, h: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
        return torch.add(h, new - h, alpha=self.weight)


class WeighedCopies(CopyEdit):
    """Trained copies of one module's parameters, in adapters with weights: ``W + Σ w (copy - W)`` of each parameter W."""

    def __init__(self, copies: Sequence[tuple[CopyEdit, float]]):
        nn.Module.__init__(self)
        self.copies = tuple(copies)  # in a tuple: they must not become children a second time
        self.watchers: tuple[Any, ...] = tuple(w for c, _ in copies for w in c.watchers)

    @property
    def host(self) -> nn.Module:
        return self.copies[0][0].host

    def values(self) -> dict[str, torch.Tensor]:
        found: dict[str, torch.Tensor] = {}
        for c, weight in self.copies:
            for n, t in c.values().items():
                own = _own(c, n).to(t.dtype)
                found[n] = torch.add(found.get(n, own), t - own, alpha=weight)
        return found

    def _new(self, args: tuple, kwargs: Any, output: torch.Tensor, earlier: Sequence[CopyEdit]) -> Any:
        return with_parameters(self.host, self.values())(*args, **kwargs)


def _own(c: CopyEdit, name: str) -> torch.Tensor:
    """The module's own parameter, of which there is a copy."""
    child, _, attribute = name.rpartition(".")
    return value_of(c.host.get_submodule(child) if child else c.host, attribute)


def weighed(found: Sequence[tuple[str, Any]], weights: dict[str, float]) -> list[tuple[str, Any]]:
    """The edits of adapters at a host with their weights, copies first and as one."""
    copies = [(n, e) for n, e in found if isinstance(e, CopyEdit)]
    rest = [(n, e if weights[n] == 1 else Weighed(e, weights[n])) for n, e in found if not isinstance(e, CopyEdit)]
    if not copies:
        return rest
    return [(copies[-1][0], WeighedCopies([(e, weights[n]) for n, e in copies])), *rest]


def unweighable(plan: Plan) -> str:
    """Why the changes of an adapter have no weight; nothing where they have."""
    if plan.labels is not None:
        return "it has labels of its own"
    for e in plan.edits:
        if e.prompt is not None or e.site.side == "prompt":
            return f"`{e.row.name}` puts rows among the tokens, and there is no part of a row"
        if shares_softmax(e.row):
            return f"the keys of `{e.row.name}` share one softmax with the tokens, so what they change is no sum"
        if e.row.gate is None and not _reads_h(e):
            return f"`{e.row.name}` puts something in the place of what is there, and changes nothing of it"
    return ""


def _reads_h(e: PlannedEdit) -> bool:
    """Whether a row reads what it modifies (one of a weight knows it as W, too), so that there is a change."""
    parts = [*e.row.form, *e.row.compose, *([e.typing.insert] if e.typing.insert is not None else [])]
    names = {n.id for s in parts for n in walk(s) if isinstance(n, Name)}
    return bool(names & ({"h", "W"} if e.site.kind.is_weight else {"h"}))
