"""Merging: an edit that is affine in its input is absorbed by the linear map beside it, exactly.

An affine map is known by its values at zero and on the basis, so no method needs a formula of its own: the edited map
is evaluated there in float64 and becomes the new weight and bias. A head with other labels stands in place of the
base's. Undoing puts the base back, bit for bit (it costs the memory of the merged weights).
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from ..anatomy.columns import Columns, joined, taken
from ..anatomy.interrupts import finish
from ..anatomy.sites import View
from ..anatomy.sizes import weight_shape
from ..anatomy.quantised import as_map, as_stored, is_quantised, stored_as_map
from ..compiler.drawn import SEED
from ..compiler.hosting import Parameter
from ..compiler.plan import PlannedEdit
from ..compiler.trained import parameters_of
from ..language.report.diagnostics import Diagnostic, PeltError, error
from ..language.analyse.row_verdicts import mergeable
from .edits import Edit
from .hanging import rehang
from .registry import Attached, Registry, record, refuse_in_use, registry, unwrapped
from .seam import edit_at
from .sharding import is_sharded
from .weights import Use, edited


@dataclass
class Merged:
    """Which adapter went into the base; the values that were written over, and the parameters that were taken out."""

    names: tuple[str, ...]
    originals: dict[str, torch.Tensor] = field(default_factory=dict)
    replaced: dict[str, nn.Parameter] = field(default_factory=dict)
    was_active: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return self.names[0]


def merge(model: nn.Module, name: str = "default") -> None:
    """Absorbs an adapter into the base's weights, or raises `PeltError` naming the part of the method that forbids it.

    Afterwards the base computes what base and adapter computed; the adapter stays attached and inactive until
    `unmerge`. Nothing is changed if anything fails.
    """
    model = unwrapped(model)
    attached = record(model, name)
    r = registry(model)
    assert r is not None
    if r.merged is not None:
        if r.merged.names == (name,):
            return  # merging twice is merging once
        raise error("E0554", f"the adapter `{r.merged.name}` is merged already",
                    help="unipelt.unmerge(model) takes it out; for both in one model, write this one with unipelt.save_merged, and attach "
                    "(with force=True) and merge the second on what it wrote")  # fmt: skip
    refuse_in_use(r, None)
    others = [n for n in r.switch.active if n != name]
    if others:
        raise error("E0560", f"the adapter `{others[0]}` is active too, and would act on the merged base",
                    help=f"unipelt.activate(model, {name!r}) first")  # fmt: skip
    if is_sharded(model):
        raise error("E0660", "the model is sharded, and merging writes whole weights",
                    help="unipelt.save the adapter, and attach and merge it on a model that is not sharded")  # fmt: skip
    _refuse(attached)
    _refuse_hosts(model, attached)
    if any(t.device.type == "meta" for t in attached.values().values()):
        raise error("E0574", f"the adapter `{name}` is on the meta device and has no values to merge")
    new = _merged_values(model, attached, name)
    bad = [n for n, t in new.items() if not torch.isfinite(t).all()]
    if bad:
        raise error("E0561", f"merging would put NaN or infinity into `{bad[0]}`",
                    help=f"check the training, or merge in a type that holds larger numbers than {new[bad[0]].dtype} does")  # fmt: skip
    merged = Merged((name,), was_active=r.switch.active)
    try:
        r.merged = merged
        _write(model, new, merged)
        r.heads.merge(attached.plan.labels)
        r.switch.active = ()
        rehang(model, r)
    except BaseException:
        finish(lambda: _undo(model, r, merged))
        raise


def refuse_changes(model: nn.Module, name: str) -> Attached:
    """Refuses as `merge` does what cannot be merged; else the adapter."""
    attached = record(model, name)
    r = registry(model)
    if r is not None and r.merged is not None:
        raise error("E0554", f"the adapter `{r.merged.name}` is merged already", help="unipelt.unmerge(model) first")
    _refuse(attached)
    _refuse_hosts(model, attached)
    return attached


def changes_of(model: nn.Module, name: str) -> Iterator[tuple[str, torch.Tensor]]:
    """New values of the base's parameters with an adapter merged, each with its path, and nothing written; refused as `merge` refuses.

    They come one after the other, so that not all need be in memory, and in float64: in the base's own type a small change would
    drown in rounding.
    """
    return _each_merged(model, refuse_changes(model, name), name, exact=True)


def unmerge(model: nn.Module, name: str | None = None) -> None:
    """Puts the base's own values back, bit for bit, and activates what was active.

    ``name``, where it is given, must be the adapter that is merged. Raises `PeltError` where it is another, or none is.
    """
    model = unwrapped(model)
    r = registry(model)
    if r is None or r.merged is None:
        raise error("E0562", "nothing is merged into this model", help="leave the call out")
    if name is not None and name not in r.merged.names:
        record(model, name)
        raise error("E0562", f"the adapter `{name}` is not merged; `{r.merged.name}` is", help="unipelt.unmerge(model)")
    merged = r.merged
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
            if t.shape == old.shape:
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


def _refuse(attached: Attached) -> None:
    problems: list[Diagnostic] = []
    seen: set[str] = set()
    for e in attached.plan.edits:
        verdict = mergeable(e.typing)
        if verdict.value != "yes" and e.row.name not in seen:
            seen.add(e.row.name)
            problems.append(Diagnostic(
                "E0563", f"the row `{e.row.name}` at `{e.site.name}` cannot be merged: {verdict.reason}", verdict.span,
                label="this forbids it", help="save the adapter instead: unipelt.save(model, folder, name)"))  # fmt: skip
    if problems:
        raise PeltError(problems)


def _refuse_hosts(model: nn.Module, attached: Attached) -> None:
    """Refuses to merge into what is no linear map of plain numbers."""
    for e in attached.plan.edits:
        absorber = _absorber(attached, e)
        if absorber is None:
            raise error("E0563", f"the row `{e.row.name}` at `{e.site.name}` cannot be merged: this model has no site `{e.site.kind.into}` "
                        "there, which could absorb it", e.row.span, help="save the adapter instead: unipelt.save(model, folder, name)")  # fmt: skip
        path = absorber.module
        host = model.get_submodule(path)
        weight = getattr(host, "weight", None)
        if weight_shape(host) is None and not (e.site.kind.of and not e.site.kind.has_weight):
            raise error("E0563", f"the row `{e.row.name}` at `{e.site.name}` cannot be merged: `{path}` is a {type(host).__name__}, which is no "
                        "single linear map", e.row.span, help="save the adapter instead: unipelt.save(model, folder, name)")  # fmt: skip
        if e.site.kind.into == e.site.name and "x" in e.typing.out.reads and e.site.x != path:
            raise error("E0563", f"the row `{e.row.name}` at `head` cannot be merged: it reads the last hidden states, and `{path}` may read "
                        "something else", e.row.span, help="save the adapter instead: unipelt.save(model, folder, name)")  # fmt: skip
        if not isinstance(weight, torch.Tensor) or is_quantised(weight):
            raise error("E0565", f"the weight of `{path}` is quantised, and a merged weight would be rounded to its codes", e.row.span,
                        help="load the base without quantisation, attach the adapter (with force=True) and merge it there")  # fmt: skip


def _merged_values(model: nn.Module, attached: Attached, name: str) -> dict[str, torch.Tensor]:
    """New values of base parameters, by their first path. A bias that is needed and absent is refused."""
    return dict(_each_merged(model, attached, name))


def _each_merged(
    model: nn.Module, attached: Attached, name: str, exact: bool = False
) -> Iterator[tuple[str, torch.Tensor]]:
    """New values of base parameters, in the base's type or, ``exact``, in float64; a later one stands for an earlier of its path."""
    trained = attached.values()
    copied = {c.parameter.path: trained[c.name].detach().to(model.get_parameter(c.parameter.path).dtype, copy=True).reshape(c.parameter.shape)
              for c in attached.plan.copies}  # fmt: skip
    known = {(m, a): p for p in parameters_of(model).values() for m, a in p.uses}
    by_host = _by_host(model, attached)
    yield from ((n, t.double() if exact else t) for n, t in copied.items())
    shared: dict[str, torch.Tensor] = {}
    for path, edits in by_host.items():
        host = model.get_submodule(path)
        row = edits[0].edit.row
        for attribute, t in _of_host(model, name, path, host, edits, copied, known).items():
            if t is None:
                raise error("E0564", f"the merged `{path}` would need a bias, and it has none", row.span)
            p = known[path, attribute]
            before = shared.setdefault(p.path, t) if len(p.uses) > 1 else t
            there = {id(model.get_submodule(h)) for h in by_host}
            others = [f"{m}.{a}" for m, a in p.uses if id(model.get_submodule(m)) not in there]
            if not others and _changed(before, t):
                others = [f"{m}.{a}" for m, a in p.uses if (m, a) != (path, attribute)]
            if others:
                raise error("E0749", f"`{path}.{attribute}` is tied to `{others[0]}`, which merging would change too", row.span,
                            help="save the adapter instead: unipelt.save(model, folder, name)")  # fmt: skip
            yield p.path, t if exact else t.to(model.get_parameter(p.path).dtype)


def _by_host(model: nn.Module, attached: Attached) -> dict[str, list[Absorbed]]:
    """The edits that each module absorbs; those of a tied parameter, at every module that uses it."""
    found: dict[str, list[Absorbed]] = {}
    for e in attached.plan.edits:
        into = _absorber(attached, e)
        assert into is not None  # else it was refused
        found.setdefault(into.module, []).append(Absorbed(e, into.columns))
        as_map_here = stored_as_map(model.get_submodule(into.module))
        for other in e.site.also:
            turned = stored_as_map(model.get_submodule(other)) is not as_map_here
            found.setdefault(other, []).append(Absorbed(e, None, turned))
    return found


def _of_host(
    model: nn.Module, name: str, path: str, host: nn.Module, edits: list[Absorbed], copied: dict[str, torch.Tensor],
    known: dict[tuple[str, str], Parameter],
) -> dict[str, torch.Tensor | None]:  # fmt: skip
    """The parameters of a module that edits change, as it stores them but in float64; None for a bias that it has not."""

    def own(attribute: str) -> torch.Tensor | None:
        found = getattr(host, attribute, None)
        p = known.get((path, attribute))
        return None if found is None else copied.get(p.path, found.detach()) if p is not None else found.detach()

    weight, bias = own("weight"), own("bias")
    assert weight is not None
    W = as_map(host, weight).double()
    b = bias.double() if bias is not None else W.new_zeros(W.shape[-1])
    others = [a for a in edits if not a.edit.site.kind.is_weight]
    with torch.no_grad():
        W_new, b_new = (
            _rewritten(model, name, t, [a for a in edits if a not in others and a.edit.site.kind.parameter == n])
            for n, t in (("weight", W), ("bias", b))
        )
        if others:
            probe = torch.cat([W.new_zeros(1, W.shape[0]), torch.eye(W.shape[0], dtype=W.dtype, device=W.device)])
            out = _edited(model, name, path, others, probe, W_new, b)
            b_new = _beside(others, b, out[0])
            W_new = _beside(others, W_new, out[1:] - out[0])
    found: dict[str, torch.Tensor | None] = {}
    if _changed(W_new, W):
        found["weight"] = as_stored(host, W_new)
    if _changed(b_new, b):
        found["bias"] = b_new if bias is not None else None
    return found


def _rewritten(model: nn.Module, name: str, W: torch.Tensor, edits: list[Absorbed]) -> torch.Tensor:
    """What edits of a parameter itself make of it."""
    own = [Use(_double(model, name, a.edit), a.turned) if a.turned else _double(model, name, a.edit) for a in edits]
    for columns, (_, new) in edited(W, own, {}).items() if own else ():
        W = new if columns is None else columns.put(W, new)
    return W


def _changed(a: torch.Tensor, b: torch.Tensor) -> bool:
    # What is not a number has changed, too.
    return a.shape != b.shape or not bool((a - b).abs().max() <= 1e-12 * max(1.0, float(b.abs().max())))


def _absorber(attached: Attached, e: PlannedEdit) -> View | None:
    """The linear map that absorbs an edit; None where the model has none there."""
    into = e.site.kind.into
    if into == e.site.name or e.site.kind.is_weight:
        return e.site.view
    found = (s.view for s in attached.plan.sites.named(into, e.site.stack) if s.layer == e.site.layer)
    return next(found, None)


@dataclass(frozen=True, slots=True)
class Absorbed:
    """An edit and the columns of the map that absorbs it (all, where none are named)."""

    edit: PlannedEdit
    columns: Columns | None
    turned: bool = False  # whether the parameter is the transpose of what the edit makes


#: The sides of a map at which an edit comes before it.
_AHEAD = ("input", "attention")


def _beside(edits: list[Absorbed], old: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
    """``new`` with the columns that no edit changes as they were, to the bit."""
    own = [a.columns for a in edits]
    if any(a.edit.site.side in _AHEAD for a in edits) or None in own:
        return new
    for c in dict.fromkeys(c for c in own if c is not None):
        old = c.put(old, c.of(new))
    return old


def _edited(
    model: nn.Module, name: str, path: str, edits: list[Absorbed], x: torch.Tensor, W: torch.Tensor, b: torch.Tensor
) -> torch.Tensor:  # fmt: skip
    """The edited map's values at rows ``x``: edits before the map, the map, edits on (columns of) its output."""
    before, after = ([a for a in edits if (a.edit.site.side in _AHEAD) is first] for first in (True, False))
    h = x[None]
    for a in before:
        edit = _double(model, name, a.edit)
        h = _at_heads(edit, h) if a.edit.site.kind.has_heads else edit(h, _unread(edit, h), None)
    x_in = h
    h = h @ W + b
    # the row's own order: edits of the map itself, then those of the sublayer behind it
    for a in sorted(after, key=lambda a: a.edit.site.kind.is_sublayer):
        edit = _double(model, name, a.edit)
        given: dict[str, Any] = {"x": x_in} if a.edit.site.kind.into == a.edit.site.name else _unread(edit, h)
        if edit.needs & {"W", "bias"}:
            given |= {"W": taken(W, a.columns), "bias": taken(b, a.columns)}
        own = edit(taken(h, a.columns), given | _undrawn(edit), None)
        h = own if a.columns is None else joined(h, {a.columns: own})
    return h[0]


def _unread(edit: Edit, h: torch.Tensor) -> dict[str, Any]:
    """What lines of the row name and its out does not read (it would not merge then): zeros of the right sizes."""
    n, s = h.shape[1], edit.site.sizes
    vector = (1, n, s["d_model"])
    shapes: dict[str, tuple[int, ...]] = {"x": vector, "residual": vector}
    if edit.site.kind.has_heads:
        shapes |= {"q": (1, s["heads"], n, s["d_head"]), "log_mass": (1, s["heads"], n)}
    return {name: h.new_zeros(shape) for name, shape in shapes.items() if name in edit.needs} | _undrawn(edit)


def _undrawn(edit: Edit) -> dict[str, Any]:
    """What lines of the row draw from: nothing of it is in its out, either."""
    found = {"chance": torch.zeros(()), SEED: torch.zeros((), dtype=torch.int64)}
    return {name: t for name, t in found.items() if name in edit.needs}


def _at_heads(edit: Edit, h: torch.Tensor) -> torch.Tensor:
    """The edit of h [1, rows, all heads], which the map reads side by side."""
    split = h.unflatten(-1, (edit.site.sizes["heads"], -1)).transpose(1, 2)
    return edit(split, _unread(edit, h), None).transpose(1, 2).flatten(-2)


def _double(model: nn.Module, name: str, e: PlannedEdit) -> Edit:
    """A float64 copy of the edit that hangs at a site."""
    found = edit_at(model, name, e)
    double = copy.deepcopy(found, {id(found.bases): {}}).double().eval()  # the base's modules are not copied along
    for shared in double.shared:
        shared.double()
    double.bases = found.bases
    double.layout = None  # it is given rows
    return double
