"""What the base's parameters become with adapters merged into them: values alone, nothing is written.

An affine map is known by its values at zero and on the basis, so no method needs a formula of its own: the edited map is
evaluated there in float64 and becomes the new weight and bias.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from ..anatomy.columns import Columns, joined, taken
from ..anatomy.packed import at_map
from ..anatomy.matrices import as_map, as_stored, stored_as_map
from ..anatomy.quantised import plain_dtype, values
from ..compiler.absorbed import absorber
from ..compiler.drawn import SEED
from ..compiler.hosting import Parameter
from ..compiler.plan import PlannedEdit
from ..compiler.trained import parameters_of
from ..language.report.diagnostics import error
from .edits import Edit
from .registry import record
from .seam import edit_at
from .weights import Use, edited, rewritten_matrices


def merged_values(model: nn.Module, names: tuple[str, ...]) -> dict[str, torch.Tensor]:
    """New values of base parameters, by their first path. A bias that is needed and absent is refused."""
    return dict(each_merged(model, names))


def each_merged(model: nn.Module, names: tuple[str, ...], exact: bool = False) -> Iterator[tuple[str, torch.Tensor]]:
    """New values of base parameters with adapters in it, one after the other, in the base's type or, ``exact``, in float64; a later
    value stands for an earlier of its path. Of a quantised weight the values that it stands for are changed."""
    copied: dict[str, torch.Tensor] = {}
    for attached in (record(model, n) for n in names):
        trained = attached.values()
        copied |= {c.parameter.path: trained[c.name].detach().to(model.get_parameter(c.parameter.path).dtype, copy=True).reshape(c.parameter.shape)
                   for c in attached.plan.copies}  # fmt: skip
    everything = (replace(p, uses=tuple(at_map(model, use) for use in p.uses)) for p in parameters_of(model).values())
    known = {use: p for p in everything for use in p.uses}
    by_host = _by_host(model, names)
    yield from ((n, t.double() if exact else t) for n, t in copied.items())
    shared: dict[str, torch.Tensor] = {}
    for path, edits in by_host.items():
        host = model.get_submodule(path)
        row = edits[0].edit.row
        for attribute, t in _of_host(model, path, host, edits, copied, known).items():
            if t is None:
                raise error("E0564", f"the merged `{path}` would need a bias, and it has none", row.span,
                            help="save the adapter instead: unipelt.save(model, folder, name)")  # fmt: skip
            p = known[path, attribute]
            before = shared.setdefault(p.path, t) if len(p.uses) > 1 else t
            there = {id(model.get_submodule(h)) for h in by_host}
            others = [f"{m}.{a}" for m, a in p.uses if id(model.get_submodule(m)) not in there]
            if not others and _changed(before, t):
                others = [f"{m}.{a}" for m, a in p.uses if (m, a) != (path, attribute)]
            if others:
                raise error("E0749", f"`{path}.{attribute}` is tied to `{others[0]}`, which merging would change too", row.span,
                            help="save the adapter instead: unipelt.save(model, folder, name)")  # fmt: skip
            yield p.path, t if exact else t.to(plain_dtype(model, model.get_parameter(p.path)))


def _by_host(model: nn.Module, names: tuple[str, ...]) -> dict[str, list[Absorbed]]:
    """The edits that each module absorbs; those of a tied parameter, at every module that uses it."""
    found: dict[str, list[Absorbed]] = {}
    for name, attached in ((n, record(model, n)) for n in names):
        for e in attached.plan.edits:
            into = absorber(attached.plan.sites, e)
            assert into is not None  # else it was refused
            found.setdefault(into.module, []).append(Absorbed(name, e, into.columns))
            as_map_here = stored_as_map(model.get_submodule(into.module))
            for other in e.site.also:
                turned = stored_as_map(model.get_submodule(other)) is not as_map_here
                found.setdefault(other, []).append(Absorbed(name, e, None, turned))
    return found


def _of_host(
    model: nn.Module, path: str, host: nn.Module, edits: list[Absorbed], copied: dict[str, torch.Tensor],
    known: dict[tuple[str, str], Parameter],
) -> dict[str, torch.Tensor | None]:  # fmt: skip
    """The parameters of a module that edits change, as it stores them but in float64; None for a bias that it has not."""

    def own(attribute: str) -> torch.Tensor | None:
        found = getattr(host, attribute, None)
        p = known.get((path, attribute))
        if found is None:
            return None
        return copied[p.path] if p is not None and p.path in copied else values(host, attribute, found).detach()

    if held := [a for a in edits if a.edit.site.view.parameter]:
        return _of_experts(model, held, own) | (
            _of_host(model, path, host, rest, copied, known) if (rest := [a for a in edits if a not in held]) else {}
        )
    weight, bias = own("weight"), own("bias")
    assert weight is not None
    W = as_map(host, weight).double()
    b = bias.double() if bias is not None else W.new_zeros(W.shape[-1])
    others = [a for a in edits if not a.edit.site.kind.is_weight]
    with torch.no_grad():
        W_new, b_new = (
            _rewritten(model, t, [a for a in edits if a not in others and a.edit.site.kind.parameter == n])
            for n, t in (("weight", W), ("bias", b))
        )
        if others:
            probe = torch.cat([W.new_zeros(1, W.shape[0]), torch.eye(W.shape[0], dtype=W.dtype, device=W.device)])
            out = _edited(model, path, others, probe, W_new, b)
            b_new = _beside(others, b, out[0])
            W_new = _beside(others, W_new, out[1:] - out[0])
    found: dict[str, torch.Tensor | None] = {}
    if _changed(W_new, W):
        found["weight"] = as_stored(host, W_new)
    if _changed(b_new, b):
        found["bias"] = b_new if bias is not None else None
    return found


def _of_experts(
    model: nn.Module, edits: list[Absorbed], own: Callable[[str], torch.Tensor | None]
) -> dict[str, torch.Tensor | None]:
    """The parameters with a matrix for each expert that edits change."""
    found: dict[str, torch.Tensor | None] = {}
    for name in dict.fromkeys(a.edit.site.parameter for a in edits):
        before = own(name)
        assert before is not None
        with torch.no_grad():
            new = rewritten_matrices(
                before.double(), [_double(model, a) for a in edits if a.edit.site.parameter == name], {}
            )
        if _changed(new, before.double()):
            found[name] = new
    return found


def _rewritten(model: nn.Module, W: torch.Tensor, edits: list[Absorbed]) -> torch.Tensor:
    """What edits of a parameter itself make of it."""
    own = [Use(_double(model, a), a.turned) if a.turned else _double(model, a) for a in edits]
    for columns, (_, new) in edited(W, own, {}).items() if own else ():
        W = new if columns is None else columns.put(W, new)
    return W


def _changed(a: torch.Tensor, b: torch.Tensor) -> bool:
    # What is not a number has changed, too.
    return a.shape != b.shape or not bool((a - b).abs().max() <= 1e-12 * max(1.0, float(b.abs().max())))


@dataclass(frozen=True, slots=True)
class Absorbed:
    """An edit of an adapter and the columns of the map that absorbs it (all, where none are named)."""

    name: str
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
    model: nn.Module, path: str, edits: list[Absorbed], x: torch.Tensor, W: torch.Tensor, b: torch.Tensor
) -> torch.Tensor:  # fmt: skip
    """The edited map's values at rows ``x``: edits before the map, the map, edits on (columns of) its output."""
    before, after = ([a for a in edits if (a.edit.site.side in _AHEAD) is first] for first in (True, False))
    h = x[None]
    for a in before:
        edit = _double(model, a)
        h = _at_heads(edit, h) if a.edit.site.kind.has_heads else edit(h, _unread(edit, h), None)
    x_in = h
    h = h @ W + b
    # the row's own order: edits of the map itself, then those of the sublayer behind it
    for a in sorted(after, key=lambda a: a.edit.site.kind.is_sublayer):
        edit = _double(model, a)
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


def _double(model: nn.Module, a: Absorbed) -> Edit:
    """A float64 copy of the edit that hangs at a site."""
    found = edit_at(model, a.name, a.edit)
    double = copy.deepcopy(found, {id(found.bases): {}}).double().eval()  # the base's modules are not copied along
    for shared in double.shared:
        shared.double()
    double.bases = found.bases
    double.layout = None  # it is given rows
    return double
