"""What peft keeps whole beside an adapter's own tensors: trained biases, modules that are saved as they are, norms, a head; copies of parameters here."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..anatomy.base import base_parameters
from ..anatomy.find import find
from ..anatomy.heads import is_language_model
from ..compiler.plan import Plan, PlannedCopy
from ..compiler.hosting import Parameter
from ..compiler.trained import copy_name, head_parameters, numbers_of, parameters_of, select
from ..language.loading import parse
from ..language.report.diagnostics import PeltError, error
from .declared import MERGED_THERE, Declared, no_counterpart
from .parameters import runs
from .places import FRONT, in_model, variants

BIAS = ".bias"
#: How peft calls a map that a row stands at, and both modules of one that it saves, where it lists biases.
_BASE, _SAVED, _ORIGINAL = ".base_layer", ".modules_to_save", ".original_module"


@dataclass(frozen=True)
class Whole:
    """The values of trained copies by the paths of their parameters here, and whether the head is among them, trained as a whole."""

    values: Mapping[str, torch.Tensor] = field(default_factory=dict)
    head: bool = False
    others: tuple[str, ...] = ()  # the paths of those that are not the head's

    def lines(self, model: nn.Module) -> str:
        """The lines of a method that train those beside the head; nothing where there are none."""
        return training(model, self.others) if self.others else ""

    def missed(self, plan: Plan) -> str | None:
        """A parameter that a plan trains, and the folder does not, or the other way about: no lines name just those."""
        found = {c.parameter.path for c in plan.copies if not c.head}
        return min(found ^ {*self.others}, default=None)


def apart(
    model: nn.Module, d: Declared, config: Mapping[str, Any], tensors: Mapping[str, torch.Tensor], place: Path
) -> tuple[dict[str, torch.Tensor], Whole]:
    """The tensors of rows (and what has no place at all), and those of whole parameters. Raises `PeltError`."""
    setting = config.get("bias") if d.biases else None
    trained, everywhere = setting in d.biases[1:], setting in d.biases[1:2]
    everything = _by_use(model)
    rows: dict[str, torch.Tensor] = {}
    values: dict[str, torch.Tensor] = {}
    biases: set[str] = set()
    for k, t in tensors.items():
        there = k.removeprefix(FRONT)
        if everywhere and there.endswith((_SAVED + BIAS, _ORIGINAL + BIAS)):
            own = there.removesuffix(BIAS).rpartition(".")[0] + BIAS
            copy = tensors.get(FRONT + own)
            if copy is not None and (there.endswith(_ORIGINAL + BIAS) or torch.equal(copy, t)):
                continue  # the one of the base's own, which acts without the adapter; and one that is there twice
        plain = there.replace(f".{d.copies}.", ".") if d.copies else there
        if trained and plain.endswith(_BASE + BIAS):
            plain = plain.removesuffix(_BASE + BIAS) + BIAS
        p = next((everything[v] for v in variants(model, plain) if v in everything), None)
        module, mark, _ = there.partition(f".{d.copies}.")
        if p is None and d.copies and mark:
            in_model(model, [module])
        if p is None or not k.startswith(FRONT):
            rows[k] = t
            continue
        in_place = plain.endswith(BIAS) and trained
        if len(p.uses) > 1 and not in_place:
            other = next(f"{m}.{n}" for m, n in p.uses if f"{m}.{n}" != plain)
            raise error(
                "E0841", f"peft's adapter changes `{plain}` alone, which is tied to `{other}`", help=MERGED_THERE
            )
        if p.path in values and not torch.equal(values[p.path], t):
            raise error("E0842", f"`{k}` in {place} is there twice, with other numbers", help="copy the folder again")
        values[p.path] = t
        biases |= {p.path} if p.path.endswith(BIAS) and everywhere else set()
    of_head = _head(model)
    return rows, Whole(values, bool(of_head & (values.keys() - biases)), tuple(p for p in values if p not in of_head))


def _by_use(model: nn.Module) -> dict[str, Parameter]:
    """The parameters by each path at which they are used: one for each of those that are tied."""
    return {f"{m}.{n}" if m else n: p for p in parameters_of(model).values() for m, n in p.uses}


def _head(model: nn.Module) -> set[str]:
    """The paths of the parameters of a head that is not the model's words."""
    sites = find(model)
    return set() if is_language_model(model) else {p.path for p in head_parameters(sites, parameters_of(model))}


def training(model: nn.Module, paths: Iterable[str]) -> str:
    """The lines of a method that train some parameters: all biases, all norms, by the ends of their paths, or by their layers too."""
    wanted, sites, of_head = set(paths), find(model), _head(model)
    ends = sorted({".".join(p.split(".")[-2:]) for p in wanted})
    for said in ("*.bias", "*.norm.*", ", ".join(f"*.{e}" for e in ends)):
        try:
            clause = parse(f"method m {{ train {said} }}").trains[0]
            if {p.path for p in select(model, sites, clause.paths, None)[0]} - of_head == wanted:
                return f"train {said}"
        except PeltError:
            continue
    layers: dict[str, set[int]] = {}
    everything = parameters_of(model)
    for path in sorted(wanted):
        *front, last = re.split(r"\.\d+\.", copy_name(path, sites))
        of = layers.setdefault(f"*.{last}" if front else last, set())
        of |= {n for k, n in numbers_of(everything[path], sites).items() if k == "layer"}
    by_run: dict[str, list[str]] = {}
    for said, numbers in layers.items():
        for run in runs(sorted(numbers)) if numbers else [""]:
            by_run.setdefault(run, []).append(said)
    return "  ".join(f"use {{ {run} train {', '.join(said)} }}" for run, said in by_run.items())


def besides(
    model: nn.Module, d: Declared, copies: Sequence[PlannedCopy], trained: Mapping[str, torch.Tensor], rows: set[str]
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The tensors and the fields of peft's for copies that are trained beside rows at some modules. Raises `PeltError`.

    Of a head those modules are written that have moved: peft saves by modules, and here a head is trained as a whole.
    """
    heads = {c.parameter.path for c in copies if c.head}
    plain = [c.parameter.path for c in copies if not c.head]
    setting, biases = _biases(model, d, plain, heads, rows)
    covered = set(biases.values())
    tied = next((c for c in copies if len(c.parameter.uses) > 1 and c.parameter.path not in covered), None)
    if tied is not None:
        raise no_counterpart(f"it trains `{tied.parameter.path}`, which is tied to another parameter")
    moved = {p for p in heads if not torch.equal(trained[p], model.get_parameter(p))} - covered
    modules = {p.rpartition(".")[0] for p in (*moved, *(p for p in plain if p not in covered))}
    tensors: dict[str, torch.Tensor] = {}
    for module in sorted(modules):
        own_plain = [p for p in plain if p.rpartition(".")[0] == module]
        if module in rows and any(not p.endswith(BIAS) for p in own_plain):
            raise no_counterpart(f"it trains `{module}`, where it has a row too, and peft takes one of the two")
        own = dict(base_parameters(model.get_submodule(module)))
        missing = next((n for n in own if f"{module}.{n}" not in trained), None)
        if missing is not None:
            raise _not_whole(d, module, missing, own_plain)
        if d.at not in ("output", "weight") and not any(f"{module}.{n}" in heads for n in own):
            raise no_counterpart(f"it trains `{module}` besides")
        tensors |= {f"{FRONT}{module}.{n}": trained[f"{module}.{n}"] for n in own}
    for use, path in sorted(biases.items()):
        module = use.rpartition(".")[0]
        tensors[f"{FRONT}{module}{_BASE if module in rows else ''}{BIAS}"] = trained[path]
        if module in modules:  # a module that peft saves is there twice
            tensors[f"{FRONT}{module}{_SAVED}{BIAS}"] = trained[path]
            tensors[f"{FRONT}{module}{_ORIGINAL}{BIAS}"] = model.get_parameter(path)
    fields: dict[str, Any] = {"modules_to_save": sorted(modules)} if modules else {}
    of_head = {p.rpartition(".")[0] for p in _head(model)}
    if of_head and not of_head & modules:
        fields["task_type"] = None  # peft asks for the head of a model of such a task
    return tensors, {**fields, **({"bias": setting} if biases else {})}


def _biases(
    model: nn.Module, d: Declared, plain: Iterable[str], heads: set[str], rows: set[str]
) -> tuple[str, dict[str, str]]:
    """Which value of peft's `bias` says what of some copies, and these, by each path at which they are used."""
    found = {*plain}
    if not d.biases or not any(p.endswith(BIAS) for p in found):
        return "none", {}
    of_none, of_all, of_modules = d.biases
    every = {use: p.path for use, p in _by_use(model).items() if use.endswith(BIAS)}
    if {*every.values()} <= found | heads:
        return of_all, every
    own = {use: path for use, path in every.items() if use.removesuffix(BIAS) in rows}
    return (of_modules, own) if own and {*own.values()} <= found else (of_none, {})


def _not_whole(d: Declared, module: str, missing: str, trained: list[str]) -> PeltError:
    if d.biases and any(p.endswith(BIAS) for p in trained):
        known = ", ".join(f"`{b}`" for b in d.biases)
        return no_counterpart(
            f"it trains `{module}{BIAS}`: peft's `bias` has {known}, so all biases or those of the maps with rows"
        )
    return no_counterpart(
        f"it trains `{trained[0] if trained else module}` and not `{module}.{missing}`, and peft trains modules whole"
    )
