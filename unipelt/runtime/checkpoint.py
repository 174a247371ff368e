"""Adapters saved and attached again: what of a model goes into an adapter's folder, and how it comes back onto a base.

``method.pelt`` is the resolved method in canonical form, so a checkpoint contains its own definition. A folded save
stores what closed expressions yield (a prefix instead of its MLP), and the method as it then reads. The files themselves are
written, read and distrusted in `runtime.folder`.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..anatomy.find import find
from ..compiler.labels import labels_of_base, read_json
from ..compiler.plan import Plan
from ..language.diagnostics import error
from ..language.ir import Method, as_file
from ..language.initialisers import INITIALISERS
from ..language.printer import to_text
from ..language.syntax import Apply, Expr, Name, Statement, Tensor, rewrite
from ..language.versions import FORMAT, LANGUAGE_VERSION
from .attach import activate, apply, remove
from .card import model_card
from .folder import read_manifest, read_method, read_tensors
from .folder import write as write_folder
from .folding import folded
from .hub import MANIFEST, METHOD, README, located, public_name
from .offload import value_of
from .registry import Attached, record, registry, unwrapped
from .sharding import is_sharded, on_first, put, settle, whole


def state_dict(model: nn.Module, name: str = "default") -> dict[str, torch.Tensor]:
    """The adapter's tensors by name: block path, site, row, tensor – trained ones, kept frozen draws, trained copies.

    They are whole, also where the model is sharded (FSDP2); then every process of the group calls this together.
    """
    model = unwrapped(model)
    a = record(model, name)
    settle(model)
    return {n: whole(t.detach()).reshape(a.shape(n)) for n, t in a.values().items()}


# ---------------------------------------------------------------- fingerprints


def fingerprint(model: nn.Module) -> dict[str, Any]:
    """What a base is: a hash of its parameters' names and shapes, and a few of its values (the head left out)."""
    base = getattr(model, "base_model", model)
    r = registry(model)
    merged = {**r.merged.originals, **r.merged.replaced} if r is not None and r.merged is not None else {}
    sites = r.sites if r is not None else find(model)
    prefix = sites.prefix + "." if sites.prefix else ""
    head = tuple(f"{h}." for h in sites.head)  # some models are their own base
    shapes, samples = [], {}
    for n, p in sorted(base.named_parameters()):
        if "unipelt" in n.split(".") or n.startswith("pooler.") or f"{prefix}{n}".startswith(head):
            continue
        shapes.append(f"{n}:{list(p.shape)}")
        path, _, attribute = n.rpartition(".")
        kept = value_of(base.get_submodule(path), attribute)  # type: ignore[operator]
        if kept.device.type != "meta" and kept.numel():
            flat = whole(merged.get(f"{prefix}{n}", kept).detach()).reshape(-1)
            index = torch.linspace(0, flat.numel() - 1, min(4, flat.numel()), dtype=torch.float64).long()
            samples[n] = [float(f"{v:.6g}") for v in flat[index.to(flat.device)].float().tolist()]
    config = getattr(model, "config", None)
    return {
        "class": type(base).__name__,
        "model_type": getattr(config, "model_type", ""),
        "name": public_name(str(getattr(config, "_name_or_path", "") or "")),
        "architecture": hashlib.sha256("\n".join(shapes).encode()).hexdigest(),
        "samples": samples,
    }


def _compare_base(model: nn.Module, saved: Mapping[str, Any], folder: Path, force: bool) -> None:
    here = fingerprint(model)
    if here["architecture"] != saved.get("architecture"):
        raise error("E0570", f"the adapter in {folder} belongs to another architecture: {saved.get('class')} "
                    f"({saved.get('name') or 'unnamed'}), and this is {here['class']} of other shapes")  # fmt: skip
    samples = saved.get("samples")
    if force or not isinstance(samples, dict) or not here["samples"]:
        return
    for n, values in samples.items():
        mine = here["samples"].get(n, [])
        if not isinstance(values, list) or len(mine) != len(values) or not all(map(_alike, values, mine)):
            raise error("E0571", f"the adapter in {folder} was trained on other weights: `{n}` differs",
                        help="load the base it was trained on, or pass force=True")  # fmt: skip


def _alike(saved: Any, here: float) -> bool:
    """Whether a sampled weight is the same, up to the rounding of a shorter dtype."""
    if not isinstance(saved, (int, float)) or abs(saved) > 1e300:
        return False
    return math.isclose(saved, here, rel_tol=2e-2, abs_tol=1e-3)


# ---------------------------------------------------------------- saving


def save(
    model: nn.Module, folder: str | Path, name: str = "default", *, fold: bool = True, card: Mapping[str, Any] | None = None
) -> Path:
    """Writes the adapter's folder, atomically: beside its place, synced, then renamed. An old folder survives a failure.

    ``fold`` stores what closed expressions yield in place of their tensors (smaller; no longer trained as before).
    ``card`` is kept in the manifest as it is (training arguments, metrics), and makes a model card, ``README.md`` (see
    `runtime.card.model_card` for what it reads). Other files of an existing folder are kept, among them a card that
    somebody has edited: then a warning says that none was written.
    Where the model is sharded (FSDP2), every process calls this and the first one writes, before any returns.
    """
    model = unwrapped(model)
    a = record(model, name)
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise error("E0572", f"{folder} is a file, and an adapter is saved as a folder")
    method, tensors = a.method, state_dict(model, name)
    if fold and a.plan.folds:
        method, tensors = folded(model, name, a.plan, tensors)
    bad = [n for n, t in tensors.items() if t.device.type != "meta" and not torch.isfinite(t).all()]
    if bad:
        raise error("E0573", f"`{bad[0]}` holds NaN or infinity; the adapter is not saved",
                    help="the training diverged: train again with a lower learning rate")  # fmt: skip
    if any(t.device.type == "meta" for t in tensors.values()):
        raise error("E0574", "the adapter is on the meta device and has no values to save")
    manifest = {
        "format": FORMAT, "language": LANGUAGE_VERSION, "adapter": name, "method": method.name,
        "arguments": method.arguments, "folded": bool(fold and a.plan.folds),
        "seed": a.seed, "base": fingerprint(model), "head": a.plan.counts.head,
        "copies": [c.name for c in a.plan.copies], "labels": _labels_json(model, a.plan),
        "tensors": {n: {"shape": list(t.shape), "dtype": str(t.dtype).removeprefix("torch.")} for n, t in tensors.items()},
        "card": dict(card or {}),
    }  # fmt: skip
    files = {METHOD: to_text(as_file(method))}
    if card is not None:
        files[README] = model_card(model, a.plan, card)

    def write() -> Path:
        try:
            write_folder(folder, tensors, files, manifest)
        except OSError as e:
            raise error("E0575", f"the adapter could not be written to {folder}: {e.strerror or e}",
                        help="what was there before is unchanged") from e  # fmt: skip
        return folder

    return on_first(write) if is_sharded(model) else write()


def _labels_json(model: nn.Module, plan: Plan) -> dict[str, Any] | None:
    """What the adapter's head scores, where it has one."""
    own = plan.labels or (labels_of_base(model) if plan.head in ("row", "copy") else None)
    return own.to_json() if own is not None else None


# ---------------------------------------------------------------- loading


def attach(
    model: nn.Module, folder: str | Path, name: str | None = None, *, force: bool = False, trainable: bool = False,
    tokenizer: Any = None, allow_future: bool = True, arguments: Mapping[str, Any] | None = None,
) -> str:  # fmt: skip
    """Attaches a saved adapter (active, not trained unless ``trainable``) and returns its name.

    ``folder`` is a folder, or a repository of the hub, ``"user/name"`` or ``"user/name@revision"``; a folder of that name wins.
    ``arguments`` binds some of the method's anew, those that leave its tensors as they are: a scale, how many layers drop.

    A wrong base, a truncated or changed file, a missing, surplus or misshapen tensor, NaN: a `PeltError`, the model
    untouched. ``force`` accepts a base of the same shapes and other weights. A head comes back with its labels, whatever
    the number of labels the base was loaded with.
    """
    model = unwrapped(model)
    folder = located(folder)
    manifest = read_manifest(folder)
    method = read_method(folder, manifest)
    if arguments:
        method = method(**arguments)
    _compare_base(model, manifest.get("base") or {}, folder, force)
    tensors = read_tensors(folder, manifest)
    chosen = name or str(manifest.get("adapter") or "default")
    head = True if manifest.get("copies") and manifest.get("head") else None
    labels = read_json(manifest.get("labels"), str(folder / MANIFEST))
    if labels == labels_of_base(model):
        labels = None  # the base's own head scores the same
    before = registry(model)
    was = before.switch.active if before is not None else ()
    apply(model, _without_data(method), chosen, int(manifest.get("seed") or 0), head=head, allow_future=allow_future,
          trainable=trainable, tokenizer=tokenizer, labels=labels)  # fmt: skip
    try:
        if arguments:
            _same_tensors(record(model, chosen), tensors, arguments)
        _fill(model, chosen, tensors, folder)
    except BaseException:
        remove(model, chosen)
        if was:
            activate(model, *was)
        raise
    return chosen


def _same_tensors(a: Attached, saved: Mapping[str, torch.Tensor], arguments: Mapping[str, Any]) -> None:
    """Whether a method with some arguments bound anew still has the tensors that were saved."""
    here = {n: tuple(t.shape) for n, t in a.plan.tensors.items()}
    copies = {c.name for c in a.plan.copies}
    there = {n: tuple(t.shape) for n, t in saved.items() if n not in copies}
    if here != there:
        n = next(n for n in sorted({*here, *there}) if here.get(n) != there.get(n))
        found = [f"is {list(s)}" if s is not None else "is missing" for s in (there.get(n), here.get(n))]
        raise error("E0722", f"with {', '.join(f'{k}={v}' for k, v in arguments.items())} the method has other tensors than those "
                    f"saved: `{n}` {found[0]} there and {found[1]} here", help="bind only what leaves the tensors as they are")  # fmt: skip


def restore(model: nn.Module, folder: str | Path, name: str = "default") -> None:
    """Loads an unfolded save into the attached adapter of that name, all or nothing (resuming, best checkpoints)."""
    model = unwrapped(model)
    folder = located(folder)
    manifest = read_manifest(folder)
    if manifest.get("folded"):
        raise error("E0576", f"{folder} holds a folded adapter; only an unfolded one can be trained on")
    _fill(model, name, read_tensors(folder, manifest), folder)


def _fill(model: nn.Module, name: str, tensors: Mapping[str, torch.Tensor], folder: Path) -> None:
    a = record(model, name)
    settle(model)
    own = a.values()
    missing, surplus = sorted(set(own) - set(tensors)), sorted(set(tensors) - set(own))
    if missing:
        raise error("E0585", f"{folder} lacks the tensor `{missing[0]}`" + _more(missing))
    if surplus:
        raise error("E0586", f"{folder} has a tensor that this method has no place for: `{surplus[0]}`" + _more(surplus))
    for n, t in tensors.items():
        if t.shape != a.shape(n):
            raise error("E0587", f"`{n}` in {folder} has the shape {list(t.shape)}, here it is {list(a.shape(n))}",
                        help="a head has as many rows as there are labels: load the model with the same num_labels"
                        if n not in a.plan.tensors else "")  # fmt: skip
    for n in own:
        put(own[n], tensors[n].reshape(own[n].shape))


def _more(names: list[str]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""


def _without_data(method: Method) -> Method:
    """The method with starts that need data replaced by zeros: the saved values follow."""

    def change(n: Any) -> Any:
        return replace(n, start=Name("zeros")) if isinstance(n, Tensor) and not n.exact and _reads_data(n.start) else n

    def changed(lines: Iterable[Statement]) -> tuple[Statement, ...]:
        return tuple(rewrite(line, change) for line in lines)

    rows = tuple(
        replace(r, form=changed(r.form), compose=changed(r.compose), gate=changed(r.gate) if r.gate is not None else None)
        for r in method.rows
    )
    params = tuple(replace(p, default=Name("zeros")) if p.type == "init" and _reads_data(p.default) else p for p in method.params)
    return replace(method, rows=rows, params=params)


def _reads_data(start: Expr | None) -> bool:
    name = start.function if isinstance(start, Apply) else start
    known = INITIALISERS.get(name.id) if isinstance(name, Name) else None
    return known is not None and bool(known.data)
