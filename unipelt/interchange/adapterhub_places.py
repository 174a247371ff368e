"""Where the library `adapters` keeps the tensors of a method in a model, and the text that its configurations are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import groupby
from typing import Any

import torch
from torch import nn

from ..anatomy.find import find
from ..anatomy.sites import Site, SiteMap
from ..compiler.plan import Plan, PlannedEdit
from ..language.ir import Method
from ..language.report.diagnostics import error
from ..runtime.references import load
from .filling import Source, Sources
from .adapterhub_declared import LAYERS, REMEDY, Family, Meaning, architecture, family
from .places import host
from .texts import Part, union


@dataclass(frozen=True)
class Place:
    """A model as the library knows it."""

    map: SiteMap
    family: Family
    width: int

    @staticmethod
    def of(model: nn.Module) -> Place:
        """Raises `PeltError` for a model whose places are not known."""
        config = getattr(model, "config", None)
        return Place(
            find(model), family(str(getattr(config, "model_type", ""))), int(getattr(config, "hidden_size", 0))
        )

    def sites(self, at: str) -> list[Site]:
        """The sites of a name, in every stack or in the one that it names."""
        return [s for s in self.map.sites if at in (s.name, s.full_name) and not s.path]

    @cached_property
    def _starts(self) -> dict[str, int]:
        depths = {s.name: s.depth for s in self.map.stacks}
        return {name: sum(list(depths.values())[:i]) for i, name in enumerate(depths)}

    def number(self, site: Site) -> int:
        """The layer of a site as the library counts it: a decoder's layers behind those of its encoder. 0 outside of them."""
        return self._starts[site.stack] + site.layer if site.layer is not None else 0

    def layer(self, number: int, stack: str) -> int:
        """The layer of a stack that the library calls a number."""
        return number - self._starts[stack]

    def named(self, at: str) -> str:
        """The name of a site in a declaration, as this family has it."""
        f = self.family
        return at.format(self=f.self, intermediate=f.intermediate, output=f.output)

    def path(self, site: Site) -> str:
        """Where in the base the library hangs what it adds at a site."""
        place = self.family.places.get(site.name)
        if place is None:
            raise error(
                "E0841", f"where `adapters` keeps what it adds at `{site.full_name}` is not known here", help=REMEDY
            )
        return f"{site.block}.{place}" if site.block else place

    def inside(self, path: str) -> str:
        """A module's path in the base."""
        return path.removeprefix(f"{self.map.prefix}.") if self.map.prefix else path

    def again(self, meaning: Meaning) -> list[tuple[str, str]]:
        """The fronts of keys under which the tensors of another front stand once more: (that, this)."""
        said = meaning.architecture.again
        found = [self.path(s) for name in said.get("sites", ()) for s in self.sites(name)]
        return [(said["of"], said["at"].format(place=p)) for p in found]


@dataclass(frozen=True)
class Written:
    """The method that some configurations are, and what each of its rows is: (its name in the base of its meaning, the meaning)."""

    method: Method
    rows: Mapping[str, tuple[str, Meaning]]
    meanings: tuple[Meaning, ...]
    notes: tuple[str, ...] = ()

    def sources(self, plan: Plan, place: Place, adapter: str) -> Sources:
        """Where the tensors of the method's plan are found, by keys from the base on."""

        def found(e: PlannedEdit, label: str) -> tuple[str, str]:
            row, meaning = self.rows[e.row.name]
            template, how = meaning.tensors[f"{row}.{label}" if row else label]
            names: dict[str, str] = {"adapter": adapter, "module": place.inside(host(e))}
            if "{place}" in template:
                names["place"] = place.path(e.site)
            if "{kind}" in template:
                names["kind"] = place.family.kinds[e.site.full_name]
            return template.format(**names), how

        beside: dict[tuple[str, str], list[tuple[int, int, str]]] = {}
        for e in plan.edits:
            columns = e.site.view.columns
            start = columns.ranges[0][0] if columns is not None else 0
            for label in e.tensors:
                beside.setdefault((found(e, label)[0], label), []).append((e.site.layer or 0, start, e.site.label))
        order = {k: [label for _, _, label in sorted(v)] for k, v in beside.items()}

        def source(e: PlannedEdit, label: str) -> Source:
            key, how = found(e, label)
            same_key = order[key, label]
            lost = self.rows[e.row.name][1].lost.get(label, "")
            return Source(key, how, same_key.index(e.site.label), len(same_key), lost)

        return source


def written(configs: Sequence[Mapping[str, Any]], place: Place) -> Written:
    """The method that the configurations of a union are. Raises `PeltError` with what has no counterpart."""
    parts: list[Part] = []
    rows: dict[str, tuple[str, Meaning]] = {}
    meanings, notes = [], []
    for config in configs:
        kind = architecture(config)
        given = kind.whole(config)
        meaning = kind.meant(given, place.family.norms)
        meanings.append(meaning)
        own = _parts(given, meaning, place)
        taken = {p.name for p in parts}
        for i, part in enumerate(own):
            number = "" if len(own) == 1 else f"_{i + 1}"
            for row, fixed in meaning.rows.items():
                name = "_".join(filter(None, [kind.row, row])) + number
                name = f"{name}_of_{len(meanings)}" if name in taken else name
                parts.append(Part(part.base, name, {**part.arguments, **fixed}, part.lines, part.gate))
                rows[name] = (row, meaning)
        notes += meaning.notes(given, config)
        for name in kind.training:
            if given[name]:
                notes.append(f"`{name}` = {given[name]!r} of `adapters` acts in training alone, and is left out here")
    method = replace(union(parts, "from_adapters"), trains=())  # the base's own parameters stay frozen there
    return Written(method, rows, tuple(meanings), tuple(notes))


def _parts(config: Mapping[str, Any], meaning: Meaning, place: Place) -> list[Part]:
    """The rows of one configuration: one for each run of layers with the same arguments, and for each site that the lines name."""
    meant = [place.named(at) for s in meaning.architecture.sites if s.on(config) for at in s.at]
    at = [name for name in dict.fromkeys(meant) if place.sites(name)]
    if not at:
        raise error("E0843", f"the adapter stands at {', '.join(f'`{n}`' for n in meant) or 'no site'}, and this model has no such site",
                    help="load the model that the adapter was trained on")  # fmt: skip
    sites = [s for name in at for s in place.sites(name)]
    layers = _layers(config, sites, place)
    arguments = {n: meaning.values(config, n, place.width) for n in layers or [0]}
    known = {p.name for p in load(meaning.base).params}
    found = []
    for names, where, own in _runs(arguments, at, sites, place) if layers else [(at, "", arguments[0])]:
        for group in [[name] for name in names] if "{site}" in meaning.lines else [names]:
            lines = meaning.lines.replace("{site}", place.sites(group[0])[0].name)
            for n, v in own.items():
                lines = lines.replace(f"{{{n}}}", repr(v))
            inside = {n: v for n, v in own.items() if n in known}
            found.append(Part(meaning.base, "", inside, f"modify {', '.join(group)}\n{where}{lines}", meaning.gate))
    return found


def _runs(
    arguments: Mapping[int, Mapping[str, Any]], at: Sequence[str], sites: Sequence[Site], place: Place
) -> Iterator[tuple[Sequence[str], str, Mapping[str, Any]]]:
    """For each run of layers with the same arguments the sites, the line that says which layers, and the arguments."""
    values = list(arguments.values())
    if arguments.keys() == {place.number(s) for s in sites} and all(v == values[0] for v in values):
        yield at, "", values[0]
        return
    for stack in dict.fromkeys(s.stack for s in sites):
        here = [s for s in sites if s.stack == stack]
        names = at if len(place.map.stacks) == 1 else list(dict.fromkeys(s.full_name for s in here))
        there = {place.number(s) for s in here}
        own = sorted(there & arguments.keys())
        for _, run in groupby(enumerate(own), key=lambda x: (x[1] - x[0], tuple(arguments[x[1]].items()))):
            numbers = [n for _, n in run]
            first, last = (place.layer(n, stack) for n in (numbers[0], numbers[-1]))
            yield names, f"layers {first} .. {last + 1}\n" if len(numbers) < len(there) else "", arguments[numbers[0]]


def _layers(config: Mapping[str, Any], sites: Sequence[Site], place: Place) -> list[int]:
    """The layers that a configuration means, as the library counts them; none where its sites are outside of them."""
    there = sorted({place.number(s) for s in sites if s.layer is not None})
    left_out, only = config.get("leave_out") or [], config.get("layers", "all")
    for name in LAYERS:
        value = config.get(name) or []
        if value != "all" and not (isinstance(value, list) and all(type(n) is int for n in value)):
            raise error("E0840", f"`{name}` in a configuration of `adapters` is {value!r}, and no list of layers")
    found = [n for n in there if n not in left_out and (only == "all" or n in only)]
    if there and not found:
        raise error(
            "E0841",
            "the adapter stands in no layer of this model",
            help="load the model that the adapter was trained on",
        )
    return found


def once(
    tensors: Mapping[str, torch.Tensor], meanings: Sequence[Meaning], place: Place
) -> tuple[dict[str, torch.Tensor], str | None]:
    """The tensors without those that stand there again, and the key of one that differs from what it is said to be again."""
    found = dict(tensors)
    for of, at in (pair for m in meanings for pair in place.again(m)):
        for key in [k for k in found if k.startswith(f"{at}.")]:
            main = of + key[len(at) :]
            t = found.pop(key)
            if not torch.equal(found.setdefault(main, t), t):
                return found, key
    return found, None
