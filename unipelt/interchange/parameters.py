"""Factors of the matrices of experts: a parameter that has a matrix for each, which peft wraps in the module that holds it.

peft stacks the factors of all experts: the first [experts · r, inputs], the second [outputs, r · experts]. Where several parameters of one
module have them, the wrappers stand in one another in the order of the parameters, the first one innermost; the key of a tensor
says how deep, and not which parameter it is. Here a parameter's tensors have its own path in their keys, and a matrix for each expert.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from ..anatomy.base import base_modules
from ..anatomy.find import find
from ..language.report.diagnostics import error
from .declared import MERGED_THERE, Declared, no_counterpart
from .places import FRONT, variants

#: How peft calls what a wrapper holds, in the key of a tensor.
_HELD = ".base_layer"
SHARED = (
    "the parts of a fused parameter of experts have one first factor in peft, and one each here, which are equal now: the same, "
    "and trained on they may come apart"
)


def matrices(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters of the base that have several matrices, by their paths, in the order in which their modules hold them."""
    return {
        f"{path}.{n}": p for path, m in base_modules(model) for n, p in m._parameters.items() if p is not None and p.dim() == 3
    }  # fmt: skip


def _wrapped(model: nn.Module, names: Iterable[str]) -> dict[str, list[str]]:
    """The parameters that peft wraps where it is given some ends of their paths, by their modules, in order. Raises `PeltError`."""
    ends = tuple(names)
    found: dict[str, list[str]] = {}
    matched = set()
    for path, m in base_modules(model):
        for n, p in m._parameters.items():
            full = f"{path}.{n}"
            hits = {e for e in ends for v in variants(model, full) if v == e or v.endswith(f".{e}")}
            if not hits or p is None:
                continue
            matched |= hits
            if p.dim() == 3:
                found.setdefault(path, []).append(full)
            elif not (isinstance(m, nn.Linear) and n == "weight"):  # a linear map's weight is its map
                raise error("E0841", f"peft's adapter changes `{full}`, which is no matrix of a map and has none for each expert",
                            help=MERGED_THERE)  # fmt: skip
    missing = sorted(set(ends) - matched)
    if missing:
        raise error("E0843", f"the adapter is for a parameter `{missing[0]}`, and this {type(model).__name__} has none of that name",
                    help="load the model that the adapter was trained on")  # fmt: skip
    return found


def _as_here(model: nn.Module, path: str) -> bool:
    """Whether peft takes the sizes of the matrices for inputs and outputs as they are."""
    view = next((s.view for s in find(model).sites if s.view.path == path), None)
    module, _, _ = path.rpartition(".")
    return view is None or view.turned is not bool(getattr(model.get_submodule(module), "is_transposed", False))


def _refused(path: str) -> str:
    return f"peft takes the inputs of the matrices of `{path}` for their outputs"


def unnested(model: nn.Module, d: Declared, config: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:  # fmt: skip
    """The tensors of peft's, those of the matrices of experts by the parameters' paths, [experts, …]. Raises `PeltError`."""
    names = config.get(d.parameters["field"]) if d.parameters else None
    found = dict(tensors)
    if not names:
        return found
    if not isinstance(names, list) or not all(isinstance(n, str) for n in names):
        raise error(
            "E0840", f"the folder of peft's says `{d.parameters['field']}` = {names!r}, and that is no list of names"
        )
    of, down = matrices(model), d.tensors[d.parameters["down"]][0]
    for module, own in _wrapped(model, names).items():
        there = next((v for v in variants(model, module) if any(k.startswith(f"{FRONT}{v}.") for k in tensors)), module)
        renamed = {}
        for i, path in enumerate(own):
            if not _as_here(model, path):
                raise error("E0841", _refused(path), help=MERGED_THERE)
            for suffix in (s for s, _ in d.tensors.values()):
                k = f"{FRONT}{there}{_HELD * (len(own) - 1 - i)}.{suffix}"
                if k in found:
                    at = f"{there}.{path.rpartition('.')[2]}"
                    renamed[f"{FRONT}{at}.{suffix}"] = _split(found.pop(k), len(of[path]), suffix == down, k)
        found |= renamed
    return found


def _split(t: torch.Tensor, experts: int, down: bool, k: str) -> torch.Tensor:
    """The factors of all experts, one behind the other: [experts, r, inputs], or [experts, outputs, r]."""
    if t.dim() != 2 or t.shape[0 if down else 1] % experts:
        raise error("E0842", f"the tensor `{k}` has the shape {list(t.shape)}, and is to be the factors of {experts} experts",
                    help="load the model that the adapter was trained on")  # fmt: skip
    if down:
        return t.reshape(experts, -1, t.shape[1])
    return t.reshape(t.shape[0], -1, experts).permute(2, 0, 1)


def nested(model: nn.Module, d: Declared, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors for peft, of those by the paths of parameters. Raises `PeltError`."""
    found = dict(tensors)
    own = [p for p in matrices(model) if any(f"{FRONT}{p}.{s}" in tensors for s, _ in d.tensors.values())]
    for path in own:
        if not _as_here(model, path):
            raise no_counterpart(_refused(path))
        module = path.rpartition(".")[0]
        beside = [p for p in own if p.rpartition(".")[0] == module]
        for label, (suffix, _) in d.tensors.items():
            t = found.pop(f"{FRONT}{path}.{suffix}")
            whole = t.flatten(0, 1) if label == d.parameters["down"] else t.permute(1, 2, 0).flatten(1)
            found[f"{FRONT}{module}{_HELD * (len(beside) - 1 - beside.index(path))}.{suffix}"] = whole
    return found


def named(model: nn.Module, paths: Iterable[str]) -> list[str]:
    """Parameters as peft names them: by the last part of their paths where that means no other, else by whole paths."""
    wanted = set(paths)
    ends: dict[str, set[str]] = {}
    for path, m in base_modules(model):
        for n in m._parameters:
            ends.setdefault(n, set()).add(f"{path}.{n}")
    short = {end for end, own in ends.items() if own <= wanted}
    return sorted(short) + sorted(p for p in wanted if p.rpartition(".")[2] not in short)


def where(model: nn.Module, paths: Iterable[str]) -> dict[str, list[str]]:
    """The sites that are some parameters, by the layers of which they are, as a text of the language says it (nothing: all). Raises `PeltError`."""
    of = matrices(model)
    left = {path: of[path].numel() for path in paths}
    layers: dict[str, set[int]] = {}
    every: dict[str, set[int]] = {}
    for s in find(model).sites:
        if s.view.parameter and s.layer is not None:
            every.setdefault(s.full_name, set()).add(s.layer)
            if s.view.path in left:
                layers.setdefault(s.full_name, set()).add(s.layer)
                W = s.view.turn(of[s.view.path])
                left[s.view.path] -= W[..., 0].numel() * (s.view.columns.width if s.view.columns else W.shape[-1])
    unknown = sorted(path for path, rest in left.items() if rest)
    if unknown:
        raise error("E0841", f"the adapter changes `{unknown[0]}`, and no sites are these matrices", help=MERGED_THERE)
    found: dict[str, list[str]] = {}
    for name, own in layers.items():
        for run in [""] if own == every[name] else runs(sorted(own)):
            found.setdefault(run, []).append(name)
    return found


def fused(model: nn.Module, paths: Iterable[str]) -> bool:
    """Whether a parameter among these is several sites, by its columns."""
    wanted = set(paths)
    return any(s.view.parameter and s.view.columns is not None and s.view.path in wanted for s in find(model).sites)


def runs(layers: list[int]) -> list[str]:
    """Numbers of layers as selections, one for each run without a gap."""
    found: list[list[int]] = []
    for n in layers:
        if found and n == found[-1][-1] + 1:
            found[-1].append(n)
        else:
            found.append([n])
    return [f"layers {r[0]}..{r[-1] + 1}" for r in found]
