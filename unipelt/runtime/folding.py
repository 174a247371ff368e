"""Folding at save: the method and the tensors of an adapter after its closed expressions were computed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from ..compiler.evaluator import evaluate
from ..compiler.named import Named, spread
from ..compiler.plan import Plan, PlannedFold
from ..language.check import check_row, sites_of
from ..language.fold import fold_form
from ..language.ir import Method
from ..language.parser import parse_expression
from ..language.sites import TensorType, signature, site_name
from ..language.syntax import Name, Scope, Tensor
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
    for folds in chosen.values():
        for f in folds:
            values[f.name] = _value(model, name, plan, f, tensors)
    rows = []
    for row in plan.method.rows:
        if row.name not in chosen:
            rows.append(row)
            continue
        typing = next(e.typing for e in plan.edits if e.row.name == row.name)
        form, folds_ = fold_form(typing)
        symbolic = {f.name: f for f in _symbolic_folds(plan.method, row)}
        declared = tuple(
            _declaration(f.name, symbolic[f.name].type, f.place, _axes(plan, chosen[row.name], f.name)) for f in folds_
        )
        rows.append(replace(row, form=(*declared, *form)))
    method = replace(plan.method, rows=tuple(rows))
    keep = _kept(plan, method)
    stored = {n: t for n, t in tensors.items() if n in keep}
    return method, {**stored, **values}


def _symbolic_folds(method: Method, row: Any) -> tuple:

    path = sites_of(row.sites, method.params)[0]
    found = signature(site_name(str(path))[1])
    assert found is not None
    return fold_form(check_row(row, found, method.params))[1]


def _axes(plan: Plan, folds: list[PlannedFold], name: str) -> tuple[str, ...]:
    return next(f.tensor.axes for f in folds if f.fold.name == name)


def _declaration(name: str, symbolic: TensorType, place: str, axes: tuple[str, ...]) -> Tensor:
    """A tensor declaration whose sizes are written in the method's own terms."""
    sizes = tuple(parse_expression(s.text) for s in symbolic.sizes)
    per = tuple(Scope(w) for w in (*axes, *(() if place == "site" else (place,))))
    return Tensor(name, sizes, Name("zeros"), per=per or (Scope("site"),))


def _value(
    model: nn.Module, name: str, plan: Plan, f: PlannedFold, tensors: Mapping[str, torch.Tensor]
) -> torch.Tensor:
    """The adapter's tensors are given whole; what the expression calls of the base may be sharded."""
    e = plan.edits[f.edit]
    edit = edit_at(model, name, e)
    training, edit.training = edit.training, False
    try:
        with torch.no_grad(), gathered(model, e.site.view.module):
            own = {label: tensors[n] for label, n in e.tensors.items()}
            value = evaluate(f.fold.value, edit.context({}, None, tensors=own))
    finally:
        edit.training = training
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
