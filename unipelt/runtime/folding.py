"""Folding at save: the method and the tensors of an adapter after its closed expressions were computed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import nn

from ..compiler.evaluator import evaluate
from ..compiler.named import Named, spread
from ..compiler.plan import Plan, PlannedFold
from ..language.analyse.method import analyse
from ..language.analyse.fold import fold_form
from ..language.ir import Method, Row
from ..language.syntax.parser import parse_expression
from ..language.types.owners import Owner
from ..language.types.typed import TypedRow
from ..language.sites import TensorType
from ..language.sizes import Size
from ..language.syntax.nodes import Axis, Name, Scope, Tensor
from .seam import edit_at
from .sharding import gathered


def folded(
    model: nn.Module, name: str, plan: Plan, tensors: Mapping[str, torch.Tensor]
) -> tuple[Method, dict[str, torch.Tensor]]:
    """The method after folding and its tensors: closed expressions evaluated once, what they read left out."""
    chosen: dict[str, list[PlannedFold]] = {}
    for f in plan.folds:
        chosen.setdefault(plan.edits[f.edit].row.name, []).append(f)
    values: dict[str, torch.Tensor] = {}
    rows = []
    for row in plan.method.rows:
        if row.name not in chosen:
            rows.append(row)
            continue
        typing = next(e.typing for e in plan.edits if e.row.name == row.name)
        form, folds_ = fold_form(typing)
        symbolic = _symbolic_folds(plan.method, row)
        declared = tuple(
            _declaration(f.name, symbolic[f.name], f.owner, _axes(plan, chosen[row.name], f.name)) for f in folds_
        )
        if None in declared:
            rows.append(row)  # its tensors are stored as they are
            continue
        values |= {f.name: _value(model, name, plan, f, tensors) for f in chosen[row.name]}
        axes = tuple(s for s in form if isinstance(s, Axis))
        rows.append(
            replace(row, form=(*axes, *(d for d in declared if d is not None), *(s for s in form if s not in axes)))
        )
    method = replace(plan.method, rows=tuple(rows))
    keep = _kept(plan, method)
    stored = {n: t for n, t in tensors.items() if n in keep}
    return method, {**stored, **values}


def _symbolic_folds(method: Method, row: Row) -> dict[str, list[tuple[TypedRow, TensorType]]]:
    """The row at each of its sites with the type, in symbols, that each fold has there."""
    found: dict[str, list[tuple[TypedRow, TensorType]]] = {}
    for typing in analyse(method).of(row):
        for f in fold_form(typing)[1]:
            found.setdefault(f.name, []).append((typing, f.type))
    return found


def _axes(plan: Plan, folds: list[PlannedFold], name: str) -> tuple[str, ...]:
    return next(f.tensor.axes for f in folds if f.fold.name == name)


def _declaration(
    name: str, places: list[tuple[TypedRow, TensorType]], owner: Owner, axes: tuple[str, ...]
) -> Tensor | None:
    """A tensor declaration whose sizes are written in the method's own terms; None where no text is true at all its places."""
    texts = [_size(i, places) for i in range(len(places[0][1].sizes))]
    if None in texts:
        return None
    sizes = tuple(parse_expression(t) for t in texts if t is not None)
    per = [Scope(w) for w in (*axes, *([owner.each] if owner.shared and owner.each != "layers" else []))]
    per += [Scope("layers", parse_expression(owner.span.text))] if owner.span is not None else []
    return Tensor(name, sizes, Name("zeros"), per=tuple(per) or (Scope("site"),))


def _size(i: int, places: list[tuple[TypedRow, TensorType]]) -> str | None:
    """The i-th size of a fold as a text that is true at each site of the row: there `d_in` and `d_out` may differ. None where there is none."""
    typing, type_ = places[0]
    written = [type_.sizes[i]]
    symbols = {
        n: next((s for s in typing.sizes[n].symbols if typing.sizes[n] == Size.of(s)), None) for n in ("d_out", "d_in")
    }
    named = {s: Size.of(n) for n, s in symbols.items() if s is not None}
    written += [type_.sizes[i].bind({s: n}) for s, n in named.items()] + [type_.sizes[i].bind(named)]
    own_names = [{n: t.sizes[n] for n in ("d_in", "d_out")} for t, _ in places]
    fits = (w for w in written if all(w.bind(n) == t.sizes[i] for n, (_, t) in zip(own_names, places)))
    return next((w.text for w in fits), None)


def _value(
    model: nn.Module, name: str, plan: Plan, f: PlannedFold, tensors: Mapping[str, torch.Tensor]
) -> torch.Tensor:
    """The adapter's tensors are given whole; what the expression calls of the base may be sharded."""
    e = plan.edits[f.edit]
    edit = edit_at(model, name, e)
    own = {label: tensors[n] for label, n in e.tensors.items()}
    with torch.no_grad(), gathered(model, e.site.view.module):
        value = evaluate(f.fold.value, edit.context({}, None, still=True, tensors=own))
    assert isinstance(value, Named)
    return spread(value, f.tensor.axes, len(f.tensor.sizes)).expand(f.tensor.shape).contiguous()


def _kept(plan: Plan, method: Method) -> set[str]:
    """Names of tensors that the folded method still declares."""
    declared = {
        r.name: {s.name for s in (*r.form, *r.compose) if isinstance(s, Tensor)} | {
            f"gate.{s.name}" for s in r.gate or () if isinstance(s, Tensor)
        } for r in method.rows
    }  # fmt: skip
    kept = {n for e in plan.edits for label, n in e.tensors.items() if label in declared[e.row.name]}
    return kept | {c.name for c in plan.copies}
