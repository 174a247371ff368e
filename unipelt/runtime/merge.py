"""Merging: an edit that is affine in its input is absorbed by the linear map beside it, exactly (`absorbing`).

A head with other labels stands in place of the base's. Undoing puts the base back, bit for bit (it costs the memory of the
merged weights).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import nn

from ..anatomy.interrupts import finish
from ..anatomy.sizes import weight_shape
from ..anatomy.quantised import is_quantised
from ..language.report.diagnostics import Diagnostic, PeltError, error
from ..language.analyse.row_verdicts import mergeable
from ..compiler.absorbed import absorber
from ..compiler.plan import PlannedEdit
from .absorbing import each_merged, merged_values
from .hanging import rehang
from .heads import agree
from .registry import Attached, Registry, record, refuse_in_use, refuse_merged, registry, unwrapped
from .replaced import refuse_replaced
from .sharding import is_sharded
from .switch import Weighted


@dataclass
class Merged:
    """Which adapters went into the base, in what order; the values that were written over, and the parameters that were taken out.

    ``unwritten`` are new values of quantised weights, by path: codes would round them, so they are for a folder alone.
    """

    names: tuple[str, ...]
    originals: dict[str, torch.Tensor] = field(default_factory=dict)
    replaced: dict[str, nn.Parameter] = field(default_factory=dict)
    unwritten: dict[str, torch.Tensor] = field(default_factory=dict)
    was_active: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return self.names[0]


def merge(model: nn.Module, name: str = "default") -> None:
    """Absorbs an adapter into the base's weights, or raises `PeltError` naming the part of the method that forbids it.

    Afterwards the base computes what base and adapter computed; the adapter stays attached and inactive until `unmerge`. A second
    adapter can follow: then the base computes what both computed when they were active together, in this order. Nothing is
    changed if anything fails.
    """
    absorb(model, name)


def absorb(model: nn.Module, name: str, quantised: bool = False) -> None:
    """As `merge`. Where ``quantised`` weights are allowed, their new values are put down beside the model, which does not compute
    with them: `Merged.unwritten`."""
    model = unwrapped(model)
    record(model, name)
    r = registry(model)
    assert r is not None
    before: Merged | None = r.merged
    if before is not None and name in before.names:
        return  # merging twice is merging once
    refuse_in_use(r, None)
    refuse_weighed(r, [name])
    others = [n for n in r.switch.active if n != name]
    if others:
        raise error("E0560", f"the adapter `{others[0]}` is active too, and would act on the merged base",
                    help=f"unipelt.activate(model, {name!r}) first")  # fmt: skip
    if is_sharded(model):
        raise error("E0660", "the model is sharded, and merging writes whole weights",
                    help="unipelt.save the adapter, and attach and merge it on a model that is not sharded")  # fmt: skip
    _refuse(model, name, quantised)
    if before is None:
        _absorb(model, r, (name,), r.switch.active)
        return
    agree(model, {n: r.attached[n].plan for n in (*before.names, name)})
    _instead(model, r, (*before.names, name), before)


def refuse_weighed(r: Registry, names: Sequence[str]) -> None:
    """An error where adapters that are to be merged act with weights: merging absorbs them whole."""
    acting = r.switch.active
    if isinstance(acting, Weighted) and (found := [n for n in names if n in acting.weights]):
        raise error("E0858", f"the adapter `{found[0]}` acts with the weight {acting.weights[found[0]]:g}, and merging absorbs it whole",
                    help=f"make the sum an adapter, unipelt.combine(model, {acting.weights!r}), and merge that")  # fmt: skip


def _absorb(model: nn.Module, r: Registry, names: tuple[str, ...], active: tuple[str, ...]) -> None:
    """Merges adapters into the plain base; ``active`` are those that act once they are taken out."""
    new = merged_values(model, names)
    bad = [n for n, t in new.items() if not torch.isfinite(t).all()]
    if bad:
        raise error("E0561", f"merging would put NaN or infinity into `{bad[0]}`",
                    help=f"check the training, or merge in a type that holds larger numbers than {new[bad[0]].dtype} does")  # fmt: skip
    merged = Merged(names, was_active=active)
    try:
        r.merged = merged
        _write(model, new, merged)
        r.heads.merge(r.heads.of(names))
        r.switch.active = ()
        rehang(model, r)
    except BaseException:
        finish(lambda: _undo(model, r, merged))
        raise


def _instead(model: nn.Module, r: Registry, names: tuple[str, ...], before: Merged) -> None:
    """Merges adapters in place of those that are merged, from the base's own values; if anything fails, those stay."""
    kept = {n: model.get_parameter(n).detach().clone() for n in (*before.originals, *before.replaced)}

    def back() -> None:
        if r.merged is not None:
            _undo(model, r, r.merged)
        r.merged = again = Merged(before.names, unwritten=before.unwritten, was_active=before.was_active)
        _write(model, kept, again)
        r.heads.merge(r.heads.of(before.names))
        r.switch.active = ()
        rehang(model, r)

    try:
        _undo(model, r, before)
        _absorb(model, r, names, before.was_active)
    except BaseException:
        finish(back)
        raise


def refuse_changes(model: nn.Module, name: str) -> Attached:
    """Refuses as `merge` does what cannot be merged; else the adapter."""
    r = registry(model)
    if r is not None:
        refuse_merged(r)
    return _refuse(model, name)


def changes_of(model: nn.Module, name: str) -> Iterator[tuple[str, torch.Tensor]]:
    """New values of the base's parameters with an adapter merged, each with its path, and nothing written; refused as `merge` refuses.

    They come one after the other, so that not all need be in memory, and in float64: in the base's own type a small change would
    drown in rounding.
    """
    refuse_changes(model, name)
    return each_merged(model, (name,), exact=True)


def unmerge(model: nn.Module, name: str | None = None) -> None:
    """Puts the base's own values back, bit for bit, and activates what was active.

    ``name``, where it is given, must be an adapter that is merged: it is taken out, and others that are merged stay. Raises
    `PeltError` where it is none of them, or none is.
    """
    model = unwrapped(model)
    r = registry(model)
    if r is None or r.merged is None:
        raise error("E0562", "nothing is merged into this model", help="leave the call out")
    merged: Merged = r.merged
    if name is not None and name not in merged.names:
        record(model, name)
        raise error("E0562", f"the adapter `{name}` is not merged; `{merged.name}` is", help="unipelt.unmerge(model)")
    left = tuple(n for n in merged.names if name is not None and n != name)
    if left:
        _instead(model, r, left, merged)
    else:
        finish(lambda: _undo(model, r, merged))


def _undo(model: nn.Module, r: Registry, merged: Merged) -> None:
    """Takes a merge back, as far as it went; may be repeated."""
    _write_back(model, merged)
    r.switch.active = merged.was_active
    r.heads.unmerge()
    rehang(model, r)
    r.merged = None


def _write(model: nn.Module, values: dict[str, torch.Tensor], merged: Merged) -> None:
    with torch.no_grad():
        for n, t in values.items():
            old = model.get_parameter(n)
            if is_quantised(old):
                merged.unwritten[n] = t
            elif t.shape == old.shape:
                merged.originals[n] = old.detach().clone()
                old.copy_(t)
            else:
                merged.replaced[n] = old
                _put(model, n, nn.Parameter(t.clone(), requires_grad=old.requires_grad))


def _write_back(model: nn.Module, merged: Merged) -> None:
    with torch.no_grad():
        for n, p in merged.replaced.items():
            _put(model, n, p)
        for n, t in merged.originals.items():
            model.get_parameter(n).copy_(t)


def _put(model: nn.Module, path: str, p: nn.Parameter) -> None:
    host, _, attribute = path.rpartition(".")
    module = model.get_submodule(host)
    module._parameters[attribute] = p
    if isinstance(module, nn.Linear) and attribute == "weight":
        module.out_features = len(p)


def _refuse(model: nn.Module, name: str, quantised: bool = False) -> Attached:
    attached = record(model, name)
    refuse_replaced(model, name)
    _refuse_rows(attached)
    _refuse_hosts(model, attached, quantised)
    if any(t.device.type == "meta" for t in attached.values().values()):
        raise error("E0574", f"the adapter `{name}` is on the meta device and has no values to merge")
    return attached


#: What to do with an adapter that cannot be merged.
_SAVE = "save the adapter instead: unipelt.save(model, folder, name)"


def _refuse_rows(attached: Attached) -> None:
    problems: list[Diagnostic] = []
    seen: set[str] = set()
    for e in attached.plan.edits:
        verdict = mergeable(e.typing)
        if verdict.value != "yes" and e.row.name not in seen:
            seen.add(e.row.name)
            problems.append(Diagnostic(
                "E0563", f"the row `{e.row.name}` at `{e.site.name}` cannot be merged: {verdict.reason}", verdict.span,
                label="this forbids it", help=_SAVE))  # fmt: skip
    if problems:
        raise PeltError(problems)


def _refuse_hosts(model: nn.Module, attached: Attached, quantised: bool) -> None:
    """Refuses to merge into what is no linear map of plain numbers or, where that is allowed, of codes that can be read."""

    def no_map(e: PlannedEdit, why: str, remedy: str = _SAVE) -> PeltError:
        return error(
            "E0563", f"the row `{e.row.name}` at `{e.site.name}` cannot be merged: {why}", e.row.span, help=remedy
        )

    for e in attached.plan.edits:
        into = absorber(attached.plan.sites, e)
        if into is None:
            raise no_map(e, f"this model has no site `{e.site.kind.into}` there, which could absorb it")
        path = into.module
        host = model.get_submodule(path)
        attribute = e.site.parameter if e.site.kind.is_weight else "weight"
        weight = getattr(host, attribute, None)
        if weight_shape(host) is None and not (e.site.kind.is_weight and not e.site.kind.has_weight):
            raise no_map(e, f"`{path}` is a {type(host).__name__}, which is no single linear map")
        if e.site.kind.into == e.site.name and "x" in e.typing.out.reads and e.site.x != path:
            raise no_map(e, f"it reads the last hidden states, and `{path}` may read something else")
        if isinstance(weight, torch.Tensor) and not isinstance(weight, nn.Parameter):
            raise no_map(e, f"the weight of `{path}` is made of other parameters at each call",
                         "take the parametrisation away first: torch.nn.utils.parametrize.remove_parametrizations")  # fmt: skip
        if not isinstance(weight, torch.Tensor) or (not quantised and is_quantised(weight)):
            raise error("E0565", f"the weight of `{path}` is quantised, and a merged weight would be rounded to its codes", e.row.span,
                        help="unipelt.save_merged(model, folder, name), which writes the merged model with dequantised weights")  # fmt: skip
