"""Adapters for the library `adapters` (AdapterHub), out: what its configurations can say becomes a folder that it opens."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..compiler.plan import Plan, PlannedEdit
from ..language.analyse.canonical import difference
from ..language.analyse.meaning import bound
from ..language.ir import Method, Row
from ..language.report.diagnostics import PeltError
from ..language.syntax.nodes import Number
from ..runtime.hub import public_name
from ..runtime.members import Resolved
from ..runtime.references import load
from ..runtime.registry import record, unwrapped
from ..runtime.saving import state_dict
from ..variants.recognise import arguments_of
from . import folders
from .filling import Apart, emptied
from .adapterhub_declared import Meaning, Sites, architectures, not_written
from .adapterhub_heads import written_head
from .adapterhub_places import Place, Written, written
from .texts import freed

#: The version whose layout is written.
VERSION = "adapters.1.3.0"


@dataclass(frozen=True)
class Piece:
    """Rows of a method that one configuration says: where they stand and their arguments in each layer."""

    meaning: Meaning
    sites: frozenset[str]
    arguments: Mapping[int, Mapping[str, Any]]

    def joined(self, other: Piece, place: Place) -> Piece | None:
        """Both in one configuration; None where it cannot say them."""
        if self.meaning is not other.meaning:
            return None
        sizes = {n for n, (_, how) in self.meaning.arguments.items() if how == "divides"}
        rest = [{n: v for n, v in a.items() if n not in sizes} for p in (self, other) for a in p.arguments.values()]
        if any(r != rest[0] for r in rest):
            return None
        mine, its = self.by_stack(place), other.by_stack(place)
        for stack in mine.keys() & its.keys():
            (sites, arguments), (others, more) = mine[stack], its[stack]
            further_layers = sites == others and not arguments.keys() & more.keys()
            if not further_layers and (sites & others or arguments != more):
                return None
        return replace(self, sites=self.sites | other.sites, arguments={**self.arguments, **other.arguments})

    def by_stack(self, place: Place) -> dict[str, tuple[set[str], dict[int, Mapping[str, Any]]]]:
        """The sites and the arguments by number of layer, of each stack."""
        found: dict[str, tuple[set[str], dict[int, Mapping[str, Any]]]] = {}
        for x in place.map.sites:
            if x.full_name in self.sites:
                sites, arguments = found.setdefault(x.stack, (set(), {}))
                sites.add(x.full_name)
                if (n := place.number(x)) in self.arguments:
                    arguments[n] = self.arguments[n]
        return found


def export_adapters(model: nn.Module, folder: str | Path, name: str = "default") -> Path:
    """Writes an attached adapter as a folder that version 1 of `adapters` opens (``model.load_adapter(folder)``), and returns its path.

    Rows are recognised by what they compute, whatever they are called; ``specs/adapters.toml`` lists what the library has. A trained
    head goes beside it: as that of the model's own class, or, where the base's pooler is trained with it, as one of the library's.
    The tensors are in ``pytorch_adapter.bin``, which the library reads by default. Raises `PeltError` for what it cannot say.
    """
    model = unwrapped(model)
    attached = record(model, name)
    plan = attached.plan
    besides = next((c.name for c in plan.copies if not c.head), None)
    if besides is not None:
        raise not_written(f"it trains `{besides}` besides")
    try:
        place = Place.of(model)
        groups = _groups(plan, place)
        pieces = _pieces(groups, place)
        configs = [_config(p, place) for p in pieces]
        method = written(configs, place)
    except PeltError as e:
        if any(d.code == "E0844" for d in e.diagnostics):
            raise
        raise not_written(e.diagnostics[0].message) from None
    own = bound(replace(plan.method, trains=(), requires=()))
    apart = difference(own, bound(method.method))
    if apart is not None:
        raise not_written(f"at {apart[0]} it has {apart[1]}, where the library has {apart[2]}")
    values = state_dict(model, name)
    rows = {r.name: (n, p.meaning) for of_piece, p in groups for r, n in zip(of_piece, p.meaning.rows)}
    tensors = _tensors(model, plan, rows, method, values, place, name)
    front = f"{place.map.prefix}." if place.map.prefix else ""
    base = getattr(model, "config", None)
    header = {
        "hidden_size": place.width,
        "model_type": getattr(base, "model_type", None),
        "model_name": public_name(str(getattr(base, "_name_or_path", "") or "")) or None,
        "version": VERSION,
    }
    head = None
    if plan.copies:
        trained = {c.parameter.path: values[c.name] for c in plan.copies}
        labels = (
            plan.labels.names if plan.labels is not None else list((getattr(base, "id2label", None) or {}).values())
        )
        head = written_head(model, trained, place.map.prefix, name, labels)
        if head is None:
            raise not_written(f"`adapters` has no head such as that of a {type(model).__name__}")
    at = Path(folder)
    if head is not None:
        folders.write(at, folders.HEAD, {**header, **head.config}, head.tensors)
    config = configs[0] if len(configs) == 1 else {"architecture": "union", "configs": configs}
    model_class = head.config["model_class"] if head is not None else type(model).__name__
    folders.write(at, folders.ADAPTERS, {**header, "name": name, "model_class": model_class, "config": config},
                  {f"{front}{k}": t for k, t in tensors.items()})  # fmt: skip
    return at


def _tensors(
    model: nn.Module, plan: Plan, rows: Mapping[str, tuple[str, Meaning]], method: Written, values: Mapping[str, torch.Tensor],
    place: Place, name: str,
) -> dict[str, torch.Tensor]:  # fmt: skip
    """Their tensors by keys from the base on, those that stand there again included; ``rows`` has what each of the plan's rows is, as
    `Written` has it."""
    again = Resolved(method.method).planned(
        model, head=False, allow_future=True, labels=None, problem_type=None, example=None
    )
    ours: dict[tuple[str, ...], torch.Tensor] = {}
    for e in plan.edits:
        row, meaning = rows[e.row.name]
        for label, n in e.tensors.items():
            ours[meaning.architecture.name, row, e.site.label, label] = values[n]
    given: dict[str, torch.Tensor] = {}
    for e in again.edits:
        row, meaning = method.rows[e.row.name]
        for label, n in e.tensors.items():
            t = ours[meaning.architecture.name, row, e.site.label, label]
            if n in given and not torch.equal(given[n], t):
                raise not_written(f"rows share `{label}` there, and here they differ")
            given[n] = t
    try:
        found = emptied(again, method.sources(again, place, name), given)
    except Apart as e:
        raise not_written(str(e)) from None
    for m in method.meanings:
        for of, at in place.again(m):
            found |= {at + k[len(of) :]: t for k, t in list(found.items()) if k.startswith(f"{of}.")}
    return found


# ---------------------------------------------------------------- recognising


def _edits(plan: Plan, row: Row) -> list[PlannedEdit]:
    return [e for e in plan.edits if e.row.name == row.name]


def _groups(plan: Plan, place: Place) -> list[tuple[Sequence[Row], Piece]]:
    """The method's rows, those together that one configuration says, with what they are. Raises `PeltError` for what none says."""
    if not plan.method.rows:
        raise not_written("it has no row")
    rows = list(plan.method.rows)
    known = [m for a in architectures().values() for m in a.meanings(place.family.norms)]
    found: list[tuple[Sequence[Row], Piece]] = []
    while rows:
        piece = next((p for m in known if (p := _as(m, rows[: len(m.rows)], plan, place)) is not None), None)
        if piece is None:
            raise not_written(f"its row `{rows[0].name}` is nothing that a configuration says")
        count = len(piece.meaning.rows)
        found.append((rows[:count], piece))
        rows = rows[count:]
    return found


def _pieces(groups: Sequence[tuple[Sequence[Row], Piece]], place: Place) -> list[Piece]:
    """What each configuration says. Raises `PeltError` where they cannot be used together."""
    pieces: list[Piece] = []
    for _, piece in groups:
        both = next(((i, p) for i, old in enumerate(pieces) if (p := old.joined(piece, place)) is not None), None)
        if both is not None:
            pieces[both[0]] = both[1]
        else:
            pieces.append(piece)
    for i, p in enumerate(pieces):
        for q in pieces[:i]:
            if p.meaning.architecture is q.meaning.architecture and (
                not p.meaning.architecture.several or p.sites & q.sites
            ):
                raise not_written(
                    f"it has several rows of the architecture `{p.meaning.architecture.name}` that differ"
                )
    return pieces


def _as(meaning: Meaning, rows: Sequence[Row], plan: Plan, place: Place) -> Piece | None:
    """Some rows as what a meaning says; None where they are not."""
    if len(rows) != len(meaning.rows):
        return None
    found: dict[str, Any] = {}
    where: set[tuple[frozenset[str], tuple[int, ...]]] = set()
    for row, (name, fixed) in zip(rows, meaning.rows.items()):
        edits = _edits(plan, row)
        front = f"{name}." if name else ""
        labels = {label.removeprefix(front) for label in meaning.tensors if label.startswith(front)}
        if not edits or any(set(e.tensors) != labels for e in edits) or bool(row.gate) != bool(meaning.gate):
            return None
        sites = frozenset(e.site.full_name for e in edits)
        layers: dict[str, list[set[int]]] = {}
        for s in sites:
            own = [e.site for e in edits if e.site.full_name == s]
            layers.setdefault(own[0].stack, []).append({place.number(x) for x in own})
        numbers = {n for of_stack in layers.values() for n in of_stack[0]}
        alike = all(n == of_stack[0] for of_stack in layers.values() for n in of_stack)
        if not alike or (stated := _stated(meaning, sites, numbers, place)) is None:
            return None
        where.add((sites, tuple(sorted(numbers))))
        try:
            arguments = arguments_of(plan.method, row, _candidate(meaning, stated, fixed))
        except PeltError:
            return None
        if arguments is None:
            return None
        of_tokens = _of_tokens(plan, row)
        if bool(of_tokens) != bool(meaning.tokens) or any(
            of_tokens.get(meaning.tokens[n], 0) != v for n, v in fixed.items()
        ):
            return None
        defaults = load(meaning.base).arguments
        whole = {n: arguments.get(n, defaults.get(n)) for n in meaning.arguments if n not in meaning.tokens}
        whole |= {n: of_tokens.get(word, 0) for n, word in meaning.tokens.items() if n not in fixed}
        if any(found.get(n, v) != v for n, v in whole.items()):
            return None
        found |= whole
    if len(where) != 1:
        return None
    ((sites, own_numbers),) = where
    return Piece(meaning, sites, {n: found for n in own_numbers})


def _of_tokens(plan: Plan, row: Row) -> dict[str, Any]:
    """How many first and last tokens a row selects."""
    selected = bound(replace(plan.method, rows=(row,), trains=(), requires=())).rows[0].tokens
    return {s.word: v.value for s in selected for v in s.values if isinstance(v, Number)}


def _candidate(meaning: Meaning, at: Sequence[str], fixed: Mapping[str, Any]) -> Method:
    """The method that a meaning is, its arguments free."""
    free = [n for n in meaning.arguments if n not in meaning.tokens]
    lines = meaning.lines.replace("{site}", at[0])
    for n in free:
        lines = lines.replace(f"{{{n}}}", n)
    return freed(meaning.base, free, f"modify {', '.join(at)}\n{lines}", fixed)


def _entries(
    meaning: Meaning, sites: frozenset[str], numbers: Collection[int], place: Place
) -> list[tuple[Sites, list[tuple[str, set[str]]], bool]]:
    """For each entry of its sites the names that this model has, with the sites in some layers that they are, and whether all are among some."""
    found = []
    for s in meaning.architecture.sites:
        ats = [
            (at, {x.full_name for x in place.sites(at) if place.number(x) in numbers}) for at in map(place.named, s.at)
        ]
        ats = [(at, m) for at, m in ats if m]
        found.append((s, ats, bool(ats) and all(m <= sites for _, m in ats)))
    return found


def _stated(meaning: Meaning, sites: frozenset[str], numbers: Collection[int], place: Place) -> list[str] | None:
    """The names of the sites in some layers, where the fields of a configuration say exactly them."""
    entries = _entries(meaning, sites, numbers, place)
    ats = [x for _, found, on in entries if on for x in found]
    if (
        any(not s.field and found and not on for s, found, on in entries)
        or set().union(*(m for _, m in ats)) != sites
        or ("{site}" in meaning.lines and len(ats) != 1)
    ):
        return None
    return [at for at, _ in ats]


def _config(piece: Piece, place: Place) -> dict[str, Any]:
    """The whole configuration that says a piece."""
    kind = piece.meaning.architecture
    config = dict(kind.fields)
    try:
        config |= piece.meaning.written(piece.arguments, place.width)
    except KeyError as e:
        raise not_written(f"`adapters` has no word for {e}") from None
    config |= dict.fromkeys(kind.training, 0.0)
    for s, found, on in _entries(piece.meaning, piece.sites, piece.arguments, place):
        if s.entry:
            rest = [x for x in config[s.field] if x != s.entry]
            config[s.field] = [*rest, s.entry] if on else rest
        elif s.field:
            config[s.field] = on if found else kind.fields[s.field]
    meant = [place.named(at) for s in kind.sites if s.on(config) for at in s.at]
    there = sorted({place.number(x) for name in meant for x in place.sites(name) if x.layer is not None})
    layers = sorted(piece.arguments)
    if there and layers != there:
        config |= {"layers": layers} if "layers" in config else {"leave_out": [n for n in there if n not in layers]}
    return config
