"""Where peft's tensors are: the key of each of an adapter's tensors, and the sites that the modules of its keys are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from ..anatomy.base import base_parameters
from ..anatomy.find import find
from ..anatomy.spelled import spelled
from ..compiler.plan import Plan, PlannedEdit
from ..language.report.diagnostics import error
from .declared import MERGED_THERE, Declared, no_counterpart
from .filling import Source
from .shapes import decided

FRONT = "base_model.model."
#: How the key of a tensor begins that all modules share.
WHOLE = "base_model."


def of_base(module: nn.Module, how: str) -> torch.Tensor:
    """What peft saves of the base's own weight: ``norms`` are those of the weights of each input. Raises `TypeError`."""
    if how != "norms" or not isinstance(module, nn.Linear):
        raise TypeError(f"a {type(module).__name__} has no {how} there")
    return torch.norm(module.weight.detach(), dim=0)


def host(edit: PlannedEdit) -> str:
    """The path of the module that an edit hangs on, or of its parameter that has a matrix for each expert."""
    return edit.site.view.path


def refuse_uncalled(model: nn.Module, paths: Iterable[str]) -> None:
    """An error (E0844) for a map of torch's attention: that calls none of its maps, so nothing of peft's beside one of them would act."""
    for path in paths:
        if isinstance(model.get_submodule(path.rpartition(".")[0]), nn.MultiheadAttention):
            raise no_counterpart(f"`{path}` is a map of torch's attention, and peft has no place for one of these maps alone",
                                "where the adapter merges, hand on the merged model: `unipelt merge`, or `unipelt.save_merged`")  # fmt: skip


def key(d: Declared, suffix: str, path: str) -> str:
    return f"{FRONT}{path}.{suffix}" if d.of_modules and not suffix.startswith(WHOLE) else suffix


def sourced(
    d: Declared, plan: Plan, config: Mapping[str, Any], e: PlannedEdit, label: str, path: str, layers: int,
    arguments: Mapping[str, Any],
) -> Source:  # fmt: skip
    """Where a tensor of an edit is found in peft's folder; ``path`` is its module's there, ``arguments`` are ours at it. Raises
    `RuntimeError` for a field that decides nothing."""
    if label in d.decided:
        field, how = d.decided[label][:2]
        return Source(field, how, given=decided(config.get(field), how, e, plan.tensors[e.tensors[label]].shape))
    suffix, how = d.tensors[label]
    of_maps = _of_maps(plan) if "padded" in how else {}
    return Source(key(d, suffix, path), how, e.site.layer or 0, layers, sizes={**arguments, **of_maps})


def _of_maps(plan: Plan) -> dict[str, int]:
    """The largest number of inputs and of outputs of a plan's maps, and the smaller and the larger of the two."""
    d_in, d_out = (max(e.sizes[n] for e in plan.edits) for n in ("d_in", "d_out"))
    return {"d_in": d_in, "d_out": d_out, "least": min(d_in, d_out), "most": max(d_in, d_out)}


def widest(model: nn.Module, paths: Iterable[str]) -> int:
    """The largest side of the maps among some modules."""
    weights = [getattr(module_at(model, p), "weight", None) for p in paths]
    return max((n for w in weights if isinstance(w, torch.Tensor) for n in w.shape), default=1)


def depth(model: nn.Module) -> int:
    """How many layers peft counts: those of the deepest tower."""
    return max((s.depth for s in find(model).stacks), default=1)


def module_of(d: Declared, k: str) -> str | None:
    """The module that a key of peft's is of, as peft calls it; None where it is none's, or no key of the method's tensors."""
    found = (k[len(FRONT) : -len(s) - 1] for s, _ in d.tensors.values() if k.startswith(FRONT) and k.endswith(f".{s}"))
    return next(found, None) if d.of_modules else None


def modules_of(d: Declared, keys: Iterable[str]) -> list[str]:
    """The modules of peft's keys, as peft calls them; what has no place here is left out."""
    return list(dict.fromkeys(path for k in keys if (path := module_of(d, k)) is not None))


def variants(model: nn.Module, path: str) -> tuple[str, str, str]:
    """A path as it is, and as it would be where a model is the base of this one, or holds it."""
    front = str(getattr(model, "base_model_prefix", "") or "")
    return path, f"{front}.{path}", path.removeprefix(f"{front}.")


def module_at(model: nn.Module, path: str | None) -> nn.Module | None:
    """The module of a path; none where the path is a parameter's."""
    try:
        return model.get_submodule(path) if path is not None else None
    except AttributeError:
        return None


def in_model(model: nn.Module, paths: Iterable[str]) -> dict[str, str]:
    """For each of peft's paths the module's in this model, which may be the base of the one it was trained on, or hold it."""
    own = {n for n, _ in model.named_modules()} | {n for n, p in base_parameters(model) if p.dim() > 2}
    found = {}
    for path in paths:
        place = next((p for p in variants(model, path) if p in own), None)
        if place is None:
            raise error("E0843", f"the adapter is for a module `{path}`, and this {type(model).__name__} has none of that path",
                        help="load the model that the adapter was trained on")  # fmt: skip
        found[path] = place
    return found


def sites(model: nn.Module, places: Iterable[str], d: Declared, at_input: frozenset[str]) -> list[str]:
    """How a text of the language names the modules of some paths (`anatomy.spelled`), or their weights."""
    named, inputs = spelled(model, places, at_input)
    if inputs:
        raise error("E0841", f"the input of `{min(inputs)}` is rescaled, and no site is there",
                    help=MERGED_THERE)  # fmt: skip
    return [f"{name}.weight" if d.at == "weight" else name for name in named]


def sizes(edits: Iterable[PlannedEdit], layers: int) -> Mapping[str, Any]:
    """The sizes of the model by their names, and its number of layers."""
    found: dict[str, Any] = {"layers": layers}
    for e in edits:
        found = {**e.site.sizes, **found}
    return found
