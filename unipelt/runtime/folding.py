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
from ..language.analyse.fold import fold_form, sizes_written
from ..language.ir import Method
from ..language.syntax.parser import parse_expression
from ..language.types.owners import Owner
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
        sizes = sizes_written(analyse(plan.method).of(row))
        assert sizes is not None  # the plan folds no others
        declared = tuple(
            _declaration(f.name, sizes[f.name], f.owner, _axes(plan, chosen[row.name], f.name)) for f in folds_
        )
        values |= {f.name: _value(model, name, plan, f, tensors) for f in chosen[row.name]}
        axes = tuple(s for s in form if isinstance(s, Axis))
        rows.append(replace(row, form=(*axes, *declared, *(s for s in form if s not in axes))))
    method = replace(plan.method, rows=tuple(rows))
    keep = _kept(plan, method)
    stored = {n: t for n, t in tensors.items() if n in keep}
    return method, {**stored, **values}


def _axes(plan: Plan, folds: list[PlannedFold], name: str) -> tuple[str, ...]:
    return next(f.tensor.axes for f in folds if f.fold.name == name)


def _declaration(name: str, sizes: tuple[str, ...], owner: Owner, axes: tuple[str, ...]) -> Tensor:
    """A tensor declaration whose sizes are written in the method's own terms."""
    per = [Scope(w) for w in (*axes, *([owner.each] if owner.shared and owner.each != "layers" else []))]
    per += [Scope("layers", parse_expression(owner.span.text))] if owner.span is not None else []
    return Tensor(name, tuple(map(parse_expression, sizes)), Name("zeros"), per=tuple(per) or (Scope("site"),))


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
