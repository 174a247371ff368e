"""Trained adapters as arguments of a method: found by name in the model or in a folder, written out in it, their values copied.

A method that reads adapters (`adapter_fusion(of=["first", "second"])`) has a copy of what it needs of them, frozen, from when it is
attached on: what happens to them later, it does not see, and it is saved with these values and needs none of their folders again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from os.path import isdir
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..compiler.labels import Labels
from ..compiler.plan import Plan, PlannedEdit
from ..compiler.planner import plan as make_plan
from ..language.ir import Method
from ..language.members import Member, Source, asks, written_out
from ..language.report.diagnostics import error, near
from ..language.syntax.nodes import ListOf, String
from .folder import listed_shapes, read_manifest, read_method, read_tensors
from .hub import located, public_name, repository
from .redrawn import drawn_again, listed
from .registry import record, refuse_merged, registry, unwrapped
from .same_base import compare_base
from .sharding import settle, whole


def plan(
    model: nn.Module, method: Method, head: bool | None = None, allow_future: bool = False,
    labels: int | Sequence[str] | Labels | None = None, problem_type: str | None = None, example: Mapping[str, Any] | None = None,
) -> Plan:  # fmt: skip
    """The plan of a method on a model; nothing is changed. Raises `PeltError` with every mistake.

    ``head``: whether the model's own head trains with the adapter; by default it does where the model has a task head
    (classification, not a language model's) and the method says nothing of the head. ``allow_future`` lets a method
    that sees later positions onto a causal model. ``labels`` (their number or names) gives the adapter a head with
    labels of its own, ``problem_type`` says what its loss is: see `compiler.labels.Labels`. ``example`` is as in `unipelt.sites`.
    Arguments that are adapters name those of the model, or their folders.
    """
    asked = {
        "head": head,
        "allow_future": allow_future,
        "labels": labels,
        "problem_type": problem_type,
        "example": example,
    }
    return resolved(model, method).planned(model, **asked)


@dataclass(frozen=True)
class Found:
    """An adapter that is an argument: its method, where its values are (attached under ``name``, or in a ``folder``)."""

    name: str
    method: Method
    plan: Plan | None = None
    folder: Path | None = None
    manifest: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Resolved:
    """A method with its members written out in it, what is to be said of that, and where the values of its tensors are."""

    method: Method
    members: Mapping[str, Sequence[Found]] = field(default_factory=dict)
    sources: Mapping[tuple[str, str], tuple[Source, ...]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def planned(self, model: nn.Module, **asked: Any) -> Plan:
        """The plan of the method, with what is to be said of its members; ``asked`` as in `plan`."""
        planned = make_plan(model, self.method, **asked)
        return replace(planned, warnings=(*planned.warnings, *self.notes)) if self.notes else planned

    def given(self, model: nn.Module, planned: Plan) -> dict[str, torch.Tensor]:
        """The values of the plan's tensors that are the members', by name; copies."""
        if not self.sources:
            return {}
        settle(model)
        values = {
            (of, i): _Values(model, m, self._rows(of, i))
            for of, found in self.members.items()
            for i, m in enumerate(found)
        }
        out: dict[str, torch.Tensor] = {}
        for e in planned.edits:
            for label, name in e.tensors.items():
                sources = self.sources.get((e.row.name, label))
                if sources is None or name in out:
                    continue
                parts = [values[s.of, s.member].of(s, e) for s in sources]
                t = planned.tensors[name]
                if len(sources) == 1 and parts[0].shape == t.shape:
                    out[name] = parts[0].clone()
                else:  # along the axis of which the members' own tensors know nothing
                    at = next(
                        i
                        for i in range(len(t.shape))
                        if (*t.shape[:i], *t.shape[i + 1 :]) == parts[0].shape and t.shape[i] == len(parts)
                    )
                    out[name] = torch.stack(parts, at)
        return out

    def _rows(self, of: str, i: int) -> frozenset[str]:
        return frozenset(s.row for found in self.sources.values() for s in found if (s.of, s.member) == (of, i))


class _Values:
    """The values of one member's tensors at the sites of a model."""

    def __init__(self, model: nn.Module, found: Found, rows: frozenset[str]):
        self.found = found
        if found.folder is None:
            attached = record(model, found.name)
            assert found.plan is not None
            self.plan = found.plan
            self.tensors = {n: whole(t.detach()).reshape(attached.shape(n)) for n, t in attached.values().items()}
            return
        # the rows that take part: a head, or places that this model lacks, are no part of it
        part = replace(found.method, rows=tuple(r for r in found.method.rows if r.name in rows), trains=(), requires=())
        self.plan = make_plan(model, part, head=False, allow_future=True)
        drawn = {
            n: d
            for n, d in listed(found.folder, found.manifest).items()
            if n in self.plan.tensors and self.plan.tensors[n].redrawn
        }
        saved = {**listed_shapes(found.folder, found.manifest), **{n: d.shape for n, d in drawn.items()}}
        for n, t in self.plan.tensors.items():
            if saved.get(n) != t.shape:
                is_there = f"has the shape {list(saved[n])}, here it is {list(t.shape)}" if n in saved else "is missing"
                raise error(
                    "E0587", f"`{n}` of the adapter `{found.name}` {is_there}", help="give an adapter of this base"
                )
        seed = int(found.manifest.get("seed") or 0)
        self.tensors = {
            **read_tensors(found.folder, found.manifest),
            **drawn_again(found.folder, self.plan, seed, drawn),
        }

    def of(self, source: Source, e: PlannedEdit) -> torch.Tensor:
        """The value of a tensor where an edit acts."""
        at = next((x for x in self.plan.edits if x.row.name == source.row and x.site.label == e.site.label), None)
        if at is None:
            raise error("E0421", f"the adapter `{self.found.name}` does nothing at `{e.site.label}`, where `{e.row.name}` reads what it does",
                        e.row.span, help="give adapters of the same sites and layers")  # fmt: skip
        return self.tensors[at.tensors[source.label]]


def resolved(model: nn.Module, method: Method) -> Resolved:
    """The method with the adapters that its arguments name written out in it; itself where it names none."""
    wanted = [p for p in method.params if p.name in asks(method) and p.default is not None]
    if not wanted:
        return Resolved(method)
    model = unwrapped(model)
    members = {p.name: [_found(model, name.value, p.name) for name in _names(p.default)] for p in wanted}
    written = written_out(method, {of: [Member(m.name, m.method) for m in found] for of, found in members.items()})
    said = [
        f"`{of}`: a copy, frozen, of {', '.join(f'{m.name} ({m.method.name})' for m in found)}"
        for of, found in members.items()
    ]
    return Resolved(written.method, members, written.sources, (*said, *written.apart))


def _names(given: Any) -> list[String]:
    return [i for i in given.items if isinstance(i, String)] if isinstance(given, ListOf) else []


def _found(model: nn.Module, name: str, of: str) -> Found:
    """An adapter by its name in the model, or by its folder."""
    r = registry(model)
    if r is not None and name in r.attached:
        attached = record(model, name)
        refuse_merged(r, name)
        return Found(name, attached.method, attached.plan)
    if not isdir(name) and repository(name) is None:
        there = list(r.attached) if r is not None else []
        raise error("E0599", f"`{of}` names `{name}`, which is neither an adapter of this model nor the folder of one",
                    help=near(name, there) or (f"this model has: {', '.join(there)}" if there else "give the folder of a saved adapter"))  # fmt: skip
    folder = located(name)
    manifest = read_manifest(folder)
    found = read_method(folder, manifest)
    compare_base(model, manifest.get("base") or {}, folder, force=False)
    return Found(public_name(name), found, folder=folder, manifest=manifest)
