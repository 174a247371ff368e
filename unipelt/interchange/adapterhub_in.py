"""Adapters of the library `adapters` (AdapterHub), in: a folder of its becomes an adapter of the same methods of this library."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..compiler.plan import Plan
from ..language.report.diagnostics import error
from ..language.report.warned import warn
from ..runtime.attach import install, unchanged
from ..runtime.checkpoint import fill
from ..runtime.members import Resolved
from ..runtime.registry import unwrapped
from ..runtime.saving import state_dict
from . import folders
from .filling import filled, leftover, misshapen
from .adapterhub_declared import architecture
from .adapterhub_heads import Head, head_of
from .adapterhub_places import Place, Written, once, written
from .several import each


def import_adapters(
    model: nn.Module,
    folder: str | Path,
    name: str | None = None,
    *,
    trainable: bool = False,
    allow_future: bool = False,
) -> str:
    """Attaches an adapter that the library `adapters` saved (active, not trained unless ``trainable``) and returns its name.

    ``folder`` is what ``model.save_adapter`` of its version 1 wrote: a bottleneck adapter (Pfeiffer, Houlsby, parallel, with learned
    scales), Compacter, a prefix, a prompt, LoRA, (IA)³, LoReFT, or a union of them (MAM, UniPELT), with the head where there is
    one. Of a folder of ``save_all_adapters``, with an adapter in each subfolder, the one called ``name`` is attached, or without a name all
    of them, and the last acts, whose name is returned; a single one gets the name. The values are its own to the bit. A ``.bin`` file is read by torch's reader of plain tensors, which runs no code.
    ``allow_future`` is as in `unipelt.apply`: its gates read all positions, later ones too. Raises `PeltError`, the model untouched,
    for settings that ``specs/adapters.toml`` does not list, for another model, and for broken files.
    """
    model = unwrapped(model)
    return each(model, Path(folder), name, lambda at, own: _import(model, at, own, trainable, allow_future))


def _import(model: nn.Module, at: Path, name: str, trainable: bool, allow_future: bool) -> None:
    config, tensors = folders.read(at, folders.ADAPTERS)
    adapter, configs, notes = _checked(model, config)
    head = head_of(model, at)
    place = Place.of(model)
    method = written(configs, place)
    tensors = _from_base(model, tensors)
    tensors, differs = once(tensors, method.meanings, place)
    if differs is not None:
        raise error(
            "E0842", f"`{differs}` in {at} is shared, and elsewhere it has other numbers", help="copy the folder again"
        )
    found: dict[str, torch.Tensor] = {}

    def check(plan: Plan) -> None:
        found.update(_values(model, plan, method, place, adapter, tensors, head, at))

    with unchanged(model):
        install(
            model, Resolved(method.method), name, 0, check=check, head=True if head is not None else None, allow_future=allow_future,
            labels=head.labels if head is not None else None, trainable=trainable,
        )  # fmt: skip
        kept = state_dict(model, name)
        fill(model, name, {n: found.get(n, t) for n, t in kept.items()})
    for note in (*notes, *method.notes):
        warn(note)


def _checked(model: nn.Module, config: Mapping[str, Any]) -> tuple[str, Sequence[Mapping[str, Any]], list[str]]:
    """The adapter's name in the keys, its configurations, and what is to be said. Raises `PeltError`."""
    version = config.get("version")
    found = re.fullmatch(r"adapters\.(\d+)\.(\d+)\.\S+", version) if isinstance(version, str) else None
    if found is None or found[1] != "1":
        raise error("E0841", f"the folder was written by {version!r}, and version 1 of `adapters` is read",
                    help="open it with version 1 of `adapters` and save it again")  # fmt: skip
    adapter, given = config.get("name"), config.get("config")
    if not isinstance(adapter, str) or not isinstance(given, dict):
        raise error(
            "E0840",
            "the configuration of `adapters` has no name, or no `config` of its own",
            help="copy the folder again",
        )
    own = getattr(model, "config", None)
    for field in ("model_type", "hidden_size"):
        if config.get(field) is not None and config[field] != getattr(own, field, None):
            raise error("E0843", f"the adapter is for a model with `{field}` = {config[field]!r}, and this one has {getattr(own, field, None)!r}",
                        help="load the model that the adapter was trained on")  # fmt: skip
    configs = given.get("configs") if given.get("architecture") == "union" else [given]
    if not isinstance(configs, list) or not configs or not all(isinstance(c, dict) for c in configs):
        raise error("E0840", "the configuration of `adapters` is a union of nothing", help="copy the folder again")
    meant = [architecture(c).of_version(c, int(found[2])) for c in configs]
    return adapter, [c for c, _ in meant], [note for _, note in meant if note]


def _from_base(model: nn.Module, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors by their keys from the base on: a model with a head has the base under a name."""
    front = f"{getattr(model, 'base_model_prefix', '')}."
    return {k.removeprefix(front): t for k, t in tensors.items()}


def _values(
    model: nn.Module, plan: Plan, method: Written, place: Place, adapter: str, tensors: Mapping[str, torch.Tensor], head: Head | None,
    at: Path,
) -> dict[str, torch.Tensor]:  # fmt: skip
    """Our tensors by name. Everything that was saved is used, everything that the plan has is there."""
    found, used = filled(plan, method.sources(plan, place, adapter), tensors, at)
    given = dict(head.tensors) if head is not None else {}
    for c in plan.copies:
        t = given.pop(c.parameter.path, None)
        own = model.get_parameter(c.parameter.path) if t is None else t
        if tuple(own.shape) != tuple(c.parameter.shape):
            raise misshapen(at, c.parameter.path, own, tuple(c.parameter.shape))
        found[c.name] = own
    left = sorted(set(tensors) - used) or sorted(given)
    if left:
        raise leftover(at, left, method.method.name, "load the model that the adapter was trained on, with its head")
    return found
