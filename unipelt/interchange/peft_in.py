"""peft's adapters, in: a folder of peft's becomes an adapter of the same method of the library."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..anatomy.find import find
from ..compiler.plan import Plan, PlannedEdit
from ..compiler.trained import select
from ..language.ir import Method
from ..language.loading import parse
from ..language.report.diagnostics import error
from ..language.report.warned import warn
from ..runtime.attach import install, unchanged
from ..runtime.checkpoint import fill
from ..runtime.members import Resolved
from ..runtime.references import load
from ..runtime.registry import unwrapped
from ..runtime.saving import state_dict
from . import folders
from .convolutions import flat
from .declared import MERGED_THERE, Declared, declared_for
from .filling import Source, filled, leftover, misshapen
from .parameters import SHARED, fused, matrices, unnested, where
from .peft_whole import Whole, apart
from .places import FRONT, depth, host, in_model, key, module_at, modules_of, of_base, sites, sourced, widest
from .several import each
from .texts import Part, like, union


def import_peft(model: nn.Module, folder: str | Path, name: str | None = None, *, trainable: bool = False) -> str:
    """Attaches an adapter that peft saved (active, not trained unless ``trainable``) and returns its name.

    ``folder`` is what ``save_pretrained`` of peft's model wrote; `unipelt.save` then writes the adapter in this library's form. Where it
    holds several (peft writes each that is not called ``default`` to a subfolder) the one called ``name`` is attached, or without a
    name all of them, and ``default`` or else the last one acts, whose name is returned; a single one gets the name.
    The values are peft's to the bit, and so are ranks and scales of single modules, and a head's. Raises `PeltError`, the model
    untouched, for another method or settings than ``specs/peft.toml`` lists, for other modules or shapes than the model has, and
    for broken files; a pickle is not read.
    """
    model = unwrapped(model)
    return each(model, Path(folder), name, lambda place, own: _import(model, place, own, trainable))


def _import(model: nn.Module, place: Path, name: str, trainable: bool) -> None:
    config, tensors = folders.read(place, folders.PEFT)
    d = declared_for(config)
    tensors, whole = apart(model, d, config, unnested(model, d, config, tensors), place)
    front = in_model(model, modules_of(d, tensors))
    tensors = flat(model, d, tensors, front)
    at_input = _listed(config, d.inputs, front)
    line = "" if d.copies else whole.lines(model)
    method, notes = (_training(model, d, whole), []) if d.copies else _method(model, d, config, front, at_input, line)
    found: dict[str, torch.Tensor] = {}

    def check(plan: Plan) -> None:
        found.update(_values(model, plan, d, config, tensors, front, whole, place))

    with unchanged(model):
        install(
            model,
            Resolved(method),
            name,
            0,
            check=check,
            head=whole.head or None,
            allow_future=False,
            labels=None,
            trainable=trainable,
        )
        kept = state_dict(model, name)
        fill(model, name, {n: found.get(n, t) for n, t in kept.items()})
    for note in notes:
        warn(note)


def _training(model: nn.Module, d: Declared, whole: Whole) -> Method:
    """The method that trains copies of some parameters: the library's, or one that names them."""
    plain = load(d.name)
    found, _ = select(model, find(model), plain.trains[0].paths, None)
    if {p.path for p in found} == set(whole.others):
        return plain
    return parse(f"method from_peft {{ {whole.lines(model)} }}", name="from_peft")


def _listed(config: Mapping[str, Any], field: str, front: Mapping[str, str]) -> frozenset[str]:
    """The modules, by their paths here, that a field of peft's lists by the ends of their paths."""
    ends = config.get(field) or [] if field else []
    ends = [ends] if isinstance(ends, str) else ends
    return frozenset(here for there, here in front.items() if any(there == e or there.endswith(f".{e}") for e in ends))


def _method(
    model: nn.Module, d: Declared, config: Mapping[str, Any], front: Mapping[str, str], at_input: frozenset[str],
    line: str,
) -> tuple[Method, list[str]]:  # fmt: skip
    """The method of the library with peft's arguments, at the modules that peft has; of several rows where arguments differ, with a
    line for what is trained besides."""
    plain = load(d.name)
    groups: dict[tuple[tuple[str, Any], ...], list[str]] = {}
    for path in front or ("",):
        values = {n: like(plain.arguments[n], v, "peft") for n, v in d.values(config, path).items()} | d.entries(
            config, _rows(model, front.get(path))
        )
        groups.setdefault(tuple(values.items()), []).append(path)
    notes = [d.note.format(**dict(arguments)) for arguments in groups if d.note]
    parts: list[Part] = []
    for arguments, paths in groups.items():
        given = {**dict(arguments), **({d.widest: widest(model, front.values())} if d.widest else {})}
        places = [("", [])] if not front or d.at == "own" else _places(model, d, [front[p] for p in paths], at_input)
        for layers, names in places:
            where = f"modify {', '.join(names)} {layers}" if names else ""
            parts.append(Part(d.name, f"{d.name}_{len(parts) + 1}", given, f"{where}\n{d.lines}"))
    if len(parts) == 1:
        parts = [replace(parts[0], name=d.name)]
    return union(parts, "from_peft", line), notes + ([SHARED] if fused(model, front.values()) else [])


def _places(
    model: nn.Module, d: Declared, paths: Sequence[str], at_input: frozenset[str]
) -> list[tuple[str, list[str]]]:
    """The sites of some paths, those of some layers apart: each with the line that says of which layers."""
    of = matrices(model)
    found = {"": sites(model, [p for p in paths if p not in of], d, at_input)}
    for layers, names in where(model, [p for p in paths if p in of]).items():
        found[layers] = [*found.get(layers, []), *names]
    return [(layers, names) for layers, names in found.items() if names]


def _rows(model: nn.Module, path: str | None) -> int:
    """How many rows the table of a module has."""
    weight = getattr(module_at(model, path), "weight", None)
    return len(weight) if isinstance(weight, torch.Tensor) and weight.dim() else 0


def _values(
    model: nn.Module, plan: Plan, d: Declared, config: Mapping[str, Any], tensors: Mapping[str, torch.Tensor], front: Mapping[str, str],
    whole: Whole, place: Path,
) -> dict[str, torch.Tensor]:  # fmt: skip
    """Our tensors by name. Everything that peft saved is used, everything that the plan has is there."""
    there = {here: path for path, here in front.items()}
    layers = depth(model)

    def source(e: PlannedEdit, label: str) -> Source:
        try:
            path = there.get(host(e), host(e))
            return sourced(d, plan, config, e, label, path, layers, d.values(config, path))
        except RuntimeError as reason:
            field = d.decided[label][0]
            raise error("E0840", f"`{field}` = {config.get(field)!r} in {place} decides nothing: {reason}") from None

    found, used = filled(plan, source, tensors, place)
    for suffix, how in d.of_base.items():
        for path, here in front.items():
            k = key(d, suffix, path)
            own = of_base(model.get_submodule(here), how)
            if k in tensors and (
                own.shape != tensors[k].shape or not torch.allclose(own.to(tensors[k]), tensors[k], rtol=1e-3)
            ):
                raise error("E0842", f"`{k}` in {place} is of another base: this model's weight has other norms",
                            help="load the model that the adapter was trained on")  # fmt: skip
            used.add(k)
    for label, suffix in d.copied.items():
        once = d.tensors[label][0]
        for k in (key(d, suffix, path) for path in front):
            if k in tensors and not torch.equal(tensors[k], tensors[once]):
                raise error("E0842", f"`{k}` in {place} is to be a copy of `{once}`, and has other numbers",
                            help="copy the folder again")  # fmt: skip
            used.add(k)
    missed = whole.missed(plan)
    if missed is not None:
        raise error("E0841", f"peft's adapter trains parameters that cannot be named here without others, `{missed}` among them",
                    help=MERGED_THERE)  # fmt: skip
    for c in plan.copies:
        t = whole.values.get(c.parameter.path, model.get_parameter(c.parameter.path))
        if tuple(t.shape) != tuple(c.parameter.shape):
            raise misshapen(place, f"{FRONT}{c.parameter.path}", t, tuple(c.parameter.shape))
        found[c.name] = t
    left = sorted(tensors.keys() - used)
    if left:
        raise leftover(place, left, d.name, MERGED_THERE)
    return found
