"""Adapters saved: what of a model goes into an adapter's folder. `checkpoint` brings it back onto a base.

``method.pelt`` is the resolved method in canonical form, so a checkpoint contains its own definition. A folded save
stores what closed expressions yield (a prefix instead of its MLP), and the method as it then reads. The files themselves are
written in `runtime.folder`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from os.path import exists, isdir
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..anatomy.base import base_modules, base_of, base_parameters
from ..anatomy.find import find
from ..anatomy.quantised import is_quantised, whole_shape, without_weight
from ..compiler.labels import labels_of_base
from ..compiler.plan import Plan
from ..language.report.diagnostics import error
from ..language.files import reason
from ..language.ir import Method, as_file
from ..language.syntax.nodes import ListOf, Name, Number, Selection, String
from ..language.syntax.printer import to_text
from ..language.versions import FORMAT, LANGUAGE_VERSION
from .card import check_card, model_card
from .folder import cut_short
from .folder import write as write_folder
from .folding import folded
from .hub import METHOD, README, public_name
from .offload import value_of
from .redrawn import left_out
from .registry import record, registry, unwrapped
from .sharding import is_sharded, on_first, settle, whole


def state_dict(model: nn.Module, name: str = "default") -> dict[str, torch.Tensor]:
    """The adapter's tensors by name: block path, site, row, tensor – trained ones, kept frozen draws, trained copies.

    They are whole, also where the model is sharded (FSDP2); then every process of the group calls this together.
    """
    model = unwrapped(model)
    a = record(model, name)
    settle(model)
    return {n: whole(t.detach()).reshape(a.shape(n)) for n, t in a.values().items()}


# ---------------------------------------------------------------- fingerprints


def fingerprint(model: nn.Module, state: Mapping[str, torch.Tensor] | None = None) -> dict[str, Any]:
    """What a base is: a hash of its parameters' names and shapes, and a few of its values (the head left out).

    ``state`` is the model's state dict, where one was gathered.
    """
    base = base_of(model)
    r = registry(model)
    merged = {**r.merged.originals, **r.merged.replaced} if r is not None and r.merged is not None else {}
    sites = r.sites if r is not None else find(model)
    prefix = sites.prefix + "." if sites.prefix else ""
    head = tuple(f"{h}." for h in sites.head)  # some models are their own base
    config = getattr(model, "config", None)
    shapes = [] if config is not None else [type(base).__name__]  # nothing else says what it computes
    samples = {}
    first: dict[int, tuple[str, nn.Parameter]] = {}  # of tied weights one
    for n, p in base_parameters(base):
        first.setdefault(id(p), (n, p))
    for n, p in sorted(first.values(), key=lambda named: named[0]):
        if n.startswith("pooler.") or f"{prefix}{n}".startswith(head):
            continue
        path, _, attribute = n.rpartition(".")
        shapes.append(f"{n}:{list(whole_shape(base.get_submodule(path), attribute, p))}")
        given = state.get(f"{prefix}{n}") if state is not None else None
        kept = given if given is not None else value_of(base.get_submodule(path), attribute)
        if kept.device.type != "meta" and kept.numel() and not is_quantised(kept):  # codes are no weights
            flat = whole(merged.get(f"{prefix}{n}", kept).detach()).reshape(-1)
            index = torch.linspace(0, flat.numel() - 1, min(4, flat.numel()), dtype=torch.float64).long()
            samples[n] = [float(f"{v:.6g}") for v in flat[index.to(flat.device)].float().tolist()]
    # maps that keep codes and no weight stand for one, too
    coded = [f"{n}.weight:{list(map_[::-1])}" for n, m in base_modules(base) if (map_ := without_weight(m)) is not None]
    coded = [s for s in coded if not f"{prefix}{s}".startswith(head)]
    shapes = sorted([*shapes, *coded], key=lambda s: s.partition(":")[0]) if coded else shapes
    return {
        "class": type(base).__name__,
        "model_type": getattr(config, "model_type", ""),
        "name": public_name(str(getattr(config, "_name_or_path", "") or "")),
        "architecture": hashlib.sha256("\n".join(shapes).encode()).hexdigest(),
        "samples": samples,
    }


# ---------------------------------------------------------------- saving


def save(
    model: nn.Module,
    folder: str | Path,
    name: str = "default",
    *,
    fold: bool = True,
    card: Mapping[str, Any] | None = None,
    draws: bool = False,
) -> Path:
    """Writes the adapter's folder, atomically: beside its place, synced, then renamed. An old folder survives a failure.

    ``fold`` stores what closed expressions yield in place of their tensors (smaller; no longer trained as before).
    ``card`` is kept in the manifest as it is (training arguments, metrics), and makes a model card, ``README.md`` (see
    `runtime.card.model_card` for what it reads). Other files of an existing folder are kept, among them a card that
    somebody has edited: then a warning says that none was written.
    Frozen tensors that are still as they were drawn are left out: the folder has their seed, and a check of each, by which other
    draws are noticed when it is attached. ``draws`` stores them all the same.
    Where the model is sharded (FSDP2), every process calls this and the first one writes, before any returns.
    """
    model = unwrapped(model)
    record(model, name)
    folder = Path(folder)
    if exists(folder) and not isdir(folder):
        raise error("E0572", f"{folder} is a file, and an adapter is saved as a folder")
    if folder.name in ("", ".."):  # it is replaced as a whole, and what lies around it is not ours
        raise error("E0572", f"`{folder}` is no name of a folder", help=f"give it a name, as in {folder / 'adapter'}")
    if card is not None:
        check_card(card)
    found = content(model, name, fold, card, draws=draws)

    def write() -> Path:
        found.write(folder)
        return folder

    return on_first(write) if is_sharded(model) else write()


@dataclass(frozen=True)
class Content:
    """What an adapter's folder is to hold."""

    tensors: dict[str, torch.Tensor]
    texts: dict[str, str]
    manifest: dict[str, Any]

    def write(self, folder: Path) -> None:
        """Writes it whole or not at all."""
        try:
            write_folder(folder, self.tensors, self.texts, self.manifest)
        except OSError as e:
            raise error("E0575", f"the adapter could not be written to {folder}: {reason(e)}",
                        help="" if cut_short(folder) else "what was there before is unchanged") from e  # fmt: skip


def content(
    model: nn.Module, name: str, fold: bool, card: Mapping[str, Any] | None = None,
    state: Mapping[str, torch.Tensor] | None = None, tensors: dict[str, torch.Tensor] | None = None, draws: bool = False,
) -> Content:  # fmt: skip
    """What is written of an adapter; `PeltError` where that is no adapter that could be read again.

    ``tensors`` are the adapter's, by name, and ``state`` is the model's state dict, where these were gathered before.
    """
    a = record(model, name)
    method = a.method
    tensors = state_dict(model, name) if tensors is None else tensors
    if fold and a.plan.folds:
        method, tensors = folded(model, name, a.plan, tensors)
    method = with_ids(method, a.texts)
    bad = [n for n, t in tensors.items() if t.device.type != "meta" and not torch.isfinite(t).all()]
    if bad:
        raise error("E0573", f"`{bad[0]}` holds NaN or infinity; the adapter is not saved",
                    help="the training diverged: train again with a lower learning rate")  # fmt: skip
    if any(t.device.type == "meta" for t in tensors.values()):
        raise error("E0574", "the adapter is on the meta device and has no values to save")
    drawn = {} if draws else left_out(a.plan, a.seed, tensors)
    tensors = {n: t for n, t in tensors.items() if n not in drawn}
    said = {
        "adapter": name, "seed": a.seed, "folded": bool(fold and a.plan.folds), "base": fingerprint(model, state),
        "drawn": {n: d.to_json() for n, d in drawn.items()}, "card": dict(card or {}),
    }  # fmt: skip
    found = as_saved(model, a.plan, method, tensors, said)
    return replace(found, texts={**found.texts, README: model_card(model, a.plan, card)}) if card is not None else found


def as_saved(
    model: nn.Module, plan: Plan, method: Method, tensors: dict[str, torch.Tensor], said: Mapping[str, Any]
) -> Content:
    """What is written of an adapter with these tensors; ``said`` are those fields of its manifest that plan and tensors do not tell."""
    manifest = {
        "format": FORMAT, "language": LANGUAGE_VERSION, "method": method.name, "arguments": method.arguments,
        "allow_future": bool(plan.leaks), "model": type(model).__name__, "head": plan.counts.head,
        "copies": [c.name for c in plan.copies], "labels": labels_json(model, plan),
        "tensors": {n: {"shape": list(t.shape), "dtype": str(t.dtype).removeprefix("torch.")} for n, t in tensors.items()},
        **said,
    }  # fmt: skip
    return Content(tensors, {METHOD: to_text(as_file(method))}, manifest)


def with_ids(method: Method, texts: Mapping[str, tuple[int, ...]]) -> Method:
    """The method with the ids of the texts by which rows select tokens, so that it needs no tokenizer to be read again."""
    if not texts:
        return method
    arguments = {p.name: p.default for p in method.params if isinstance(p.default, String)}

    def known(s: Selection) -> Selection:
        e = (
            arguments.get(s.values[0].id, s.values[0])
            if s.word == "since" and isinstance(s.values[0], Name)
            else s.values[0]
            if s.values
            else None
        )
        ids = texts.get(e.value) if s.word == "since" and isinstance(e, String) else None
        return s if ids is None else replace(s, values=(ListOf(tuple(map(Number, ids))),))

    return replace(method, rows=tuple(replace(r, tokens=tuple(map(known, r.tokens))) for r in method.rows))


def labels_json(model: nn.Module, plan: Plan) -> dict[str, Any] | None:
    """What the adapter's head scores, where it has one."""
    own = plan.labels or (labels_of_base(model) if plan.head in ("row", "copy") else None)
    return own.to_json() if own is not None else None
