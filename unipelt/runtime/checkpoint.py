"""Saved adapters attached again: what is in an adapter's folder comes back onto a base.

The files are read, and distrusted, in `runtime.folder`; `saving` writes them.
"""

from __future__ import annotations

from collections.abc import Mapping
from os.path import isfile
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..anatomy.interrupts import finish
from ..compiler.labels import labels_of_base, read_json
from ..compiler.plan import Plan
from ..compiler.trained import has_head
from ..language.above import view
from ..language.report.diagnostics import error
from ..language.report.warned import warn
from .acting import activate
from .attach import install, unchanged
from .save_pretrained import Beside, beside, inside
from .folder import foreign, listed_shapes, read_manifest, read_method, read_tensors
from .hub import MANIFEST, located
from .members import Resolved
from .redrawn import drawn_again, listed
from .registry import record, unwrapped
from .same_base import compare_base
from .sharding import put, settle
from .starts import Tokenizer
from .switch import Weighted


def attach(
    model: nn.Module, folder: str | Path, name: str | None = None, *, force: bool = False, trainable: bool = False,
    tokenizer: Tokenizer | None = None, allow_future: bool | None = None, arguments: Mapping[str, Any] | None = None, dtype: torch.dtype | None = None,
) -> str:  # fmt: skip
    """Attaches a saved adapter (active, not trained unless ``trainable``) and returns its name.

    ``folder`` is a folder, or a repository of the hub, ``"user/name"`` or ``"user/name@revision"``; a folder of that name wins.
    A folder that ``model.save_pretrained`` wrote, of a model with adapters, will do: the one called ``name`` is attached, or
    without a name all of them, and those act that acted then; returned is the name of the last of these.
    ``dtype`` and ``allow_future`` are as in `unipelt.apply`; without ``allow_future`` it is what was given when the adapter was made.
    A folder of peft's or of AdapterHub's `adapters`, or one of several of these, will do too; it comes in as by `unipelt.import_peft` and `unipelt.import_adapters`.
    ``arguments`` binds some of the method's anew, those that leave its tensors as they are:
    a scale, how many layers drop.

    A wrong base, a truncated or changed file, a missing, surplus or misshapen tensor, NaN: a `PeltError`, the model
    untouched. ``force`` accepts a base of the same shapes and other weights. A head comes back with its labels, whatever
    the number of labels the base was loaded with.
    """
    model = unwrapped(model)
    options = {"trainable": trainable, "tokenizer": tokenizer, "allow_future": allow_future, "dtype": dtype}
    attached: list[str] = []
    at = located(folder)
    if foreign(at):
        given = {"force": force or None, "tokenizer": tokenizer, "arguments": arguments or None, "dtype": dtype}
        for argument in (n for n, v in given.items() if v is not None):
            raise error(
                "E0593",
                f"`{argument}` is for a folder that `unipelt.save` wrote, and {at} is another library's",
                help="leave it out",
            )
        bring = view("import_adapter", "interchange.brought")
        return str(bring(model, at, name, trainable=trainable, allow_future=bool(allow_future)))
    found = _adapters_in(at, name)
    with unchanged(model):
        for own, place in found.folders.items():
            attached.append(_attach(model, place, own, force, arguments, options))
        if len(attached) > 1:
            activate(model, *([found.active.weights] if isinstance(found.active, Weighted) else found.active))
    return [*attached, *(found.active if len(attached) > 1 else ())][-1]


def _adapters_in(folder: Path, name: str | None) -> Beside:
    """The adapter of a folder, or those beside a base; ``name`` is what one is to be called, and chooses it."""
    found = beside(folder) if not isfile(folder / MANIFEST) else None
    if found is not None:
        return found.named(folder, name)
    problem = inside(folder) if not isfile(folder / MANIFEST) else None
    if problem is not None:
        raise problem
    return Beside({name or "": folder}, ())


def _attach(
    model: nn.Module, folder: Path, name: str, force: bool, arguments: Mapping[str, Any] | None, options: dict[str, Any]
) -> str:
    """One adapter of a folder of its own, called as it was saved where ``name`` is empty; ``options`` are those of `apply`."""
    manifest = read_manifest(folder)
    method = read_method(folder, manifest)
    if arguments:
        method = method(**arguments)
    compare_base(model, manifest.get("base") or {}, folder, force)
    tensors: dict[str, torch.Tensor] = {}

    def check(plan: Plan) -> None:
        """Shapes first: a few bytes may call for gigabytes."""
        tensors.update(tensors_in(plan, folder, manifest, arguments))

    chosen = name or str(manifest.get("adapter") or "default")
    allowed = options["allow_future"] if options["allow_future"] is not None else manifest.get("allow_future")
    with unchanged(model):
        plan = install(model, Resolved(method), chosen, int(manifest.get("seed") or 0), check=check,
                       **{**head_of(model, folder, manifest), **options, "allow_future": allowed is None or bool(allowed)})  # fmt: skip
        if allowed is None and plan.leaks:
            warn(f"the adapter in {folder} sees later positions of a causal model, and its record, which is an older one, does not "
                 "say that this was allowed: pass allow_future=True, without which it will be refused", DeprecationWarning)  # fmt: skip
        fill(model, chosen, tensors)
    return chosen


def head_of(model: nn.Module, folder: Path, manifest: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments ``head`` and ``labels`` with which an adapter's method is planned as it was when it was saved."""
    head = (has_head(model, manifest["copies"]) if manifest["copies"] else None) if manifest["head"] else False
    labels = read_json(manifest.get("labels"), str(folder / MANIFEST))
    # the base's own head scores the same
    return {"head": head, "labels": None if labels == labels_of_base(model) else labels}


def _same_tensors(plan: Plan, saved: Mapping[str, tuple[int, ...]], arguments: Mapping[str, Any]) -> None:
    """Whether a method with some arguments bound anew still has the tensors that were saved."""
    here = {n: tuple(t.shape) for n, t in plan.tensors.items()}
    copies = {c.name for c in plan.copies}
    there = {n: shape for n, shape in saved.items() if n not in copies}
    if here != there:
        n = next(n for n in sorted({*here, *there}) if here.get(n) != there.get(n))
        found = [f"is {list(s)}" if s is not None else "is missing" for s in (there.get(n), here.get(n))]
        raise error("E0722", f"with {', '.join(f'{k}={v}' for k, v in arguments.items())} the method has other tensors than those "
                    f"saved: `{n}` {found[0]} there and {found[1]} here", help="bind only what leaves the tensors as they are")  # fmt: skip


def restore(model: nn.Module, folder: str | Path, name: str = "default") -> None:
    """Loads an unfolded save into the attached adapter of that name, all or nothing (resuming, best checkpoints)."""
    model = unwrapped(model)
    folder = next(iter(_adapters_in(located(folder), name).folders.values()))
    manifest = read_manifest(folder)
    if manifest.get("folded"):
        raise error("E0576", f"{folder} holds a folded adapter; only an unfolded one can be trained on")
    fill(model, name, tensors_in(record(model, name).plan, folder, manifest))


def tensors_in(
    plan: Plan, folder: Path, manifest: Mapping[str, Any], arguments: Mapping[str, Any] | None = None
) -> dict[str, torch.Tensor]:
    """All of an adapter's tensors: those that were saved, and those that are drawn again."""
    drawn = {n: d for n, d in listed(folder, manifest).items() if n not in plan.tensors or plan.tensors[n].redrawn}
    compare_shapes(
        plan, {**listed_shapes(folder, manifest), **{n: d.shape for n, d in drawn.items()}}, folder, arguments
    )
    return {**read_tensors(folder, manifest), **drawn_again(folder, plan, int(manifest["seed"]), drawn)}


def compare_shapes(
    plan: Plan, saved: Mapping[str, tuple[int, ...]], folder: Path | str, arguments: Mapping[str, Any] | None = None
) -> None:
    """Whether a plan has tensors of the shapes that were saved: asked before any is read or made."""
    if arguments:
        _same_tensors(plan, saved, arguments)
    own = {n: tuple(t.shape) for n, t in plan.tensors.items()} | {c.name: tuple(c.parameter.shape) for c in plan.copies}
    missing, surplus = sorted(set(own) - set(saved)), sorted(set(saved) - set(own))
    if missing:
        raise error("E0585", f"{folder} lacks the tensor `{missing[0]}`" + _more(missing))
    if surplus:
        raise error(
            "E0586", f"{folder} has a tensor that this method has no place for: `{surplus[0]}`" + _more(surplus)
        )
    for n, shape in saved.items():
        if shape != own[n]:
            raise error("E0587", f"`{n}` in {folder} has the shape {list(shape)}, here it is {list(own[n])}",
                        help="a head has as many rows as there are labels: load the model with the same num_labels"
                        if n not in plan.tensors else "")  # fmt: skip


def fill(model: nn.Module, name: str, tensors: Mapping[str, torch.Tensor]) -> None:
    """Gives an attached adapter the values of all its tensors, all or nothing."""
    a = record(model, name)
    settle(model)
    own = a.values()
    check_whole_numbers(a.plan, tensors)
    new = {n: tensors[n].reshape(own[n].shape) for n in own}
    before = {n: t.detach().clone() for n, t in own.items()}
    try:
        for n in own:
            put(own[n], new[n])
    except BaseException:
        finish(lambda: [own[n].detach().copy_(t) for n, t in before.items()])
        raise


def check_whole_numbers(plan: Plan, tensors: Mapping[str, torch.Tensor]) -> None:
    """Whole numbers say where something stands, so they must be less than there are places; what else is saved is none of them."""
    for n, t in tensors.items():
        below = plan.tensors[n].below if n in plan.tensors else None
        whole = t.dtype == torch.int64
        if below is None and whole:
            raise error("E0582", f"the tensor `{n}` was saved as whole numbers, and the method has others there")
        if below is not None and not (whole and bool(((t >= 0) & (t < below)).all())):
            raise error("E0596", f"the tensor `{n}` is to hold whole numbers from 0 to {below - 1}, and others were saved",
                        help="copy the folder again, as a whole")  # fmt: skip


def _more(names: list[str]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""
