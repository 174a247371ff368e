"""Folding: closed expressions over an adapter's own tensors become tensors, computed once after training.

Prefix tuning's MLP and P-tuning's encoder do not read the input: after training only what they yield is needed.
Non-goal: deciding whether folding pays; the plan does, by counting.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from ..types.owners import Owner, owner_of
from ..types.rows import RowTyping
from ..types.infer import Inference
from ..sites import TensorType
from ..syntax.tree import large
from ..syntax.nodes import Apply, Attr, Axis, Expr, Index, Let, Name, Statement, Tensor, dotted, rewrite, walk
from ..types.values import CONSTANT, NumberType, Value


@dataclass(frozen=True, slots=True)
class Fold:
    """A closed expression over learned tensors: computed once after training and stored in their place."""

    name: str
    value: Expr
    type: TensorType
    owner: Owner


#: What a fold may not read: the base, and what training changes.
_BASE = frozenset(("W", "bias", "scale", "log_mass", "training", "chance"))


def fold_form(t: RowTyping) -> tuple[tuple[Statement, ...], tuple[Fold, ...]]:
    """The form with its largest closed expressions replaced by names, and what those names stand for."""
    tensors = {x.name: x for x in t.tensors}
    closed: dict[str, Expr] = {}
    folds: list[Fold] = []
    out: list[Statement] = []
    late = {
        n.id for s in t.row.compose for n in walk(s) if isinstance(n, Name)
    }  # what the composition reads stays bound
    for s in _lines(t):
        if isinstance(s, Tensor):
            continue
        if isinstance(s, Axis):
            continue  # before the tensors that have it
        if not isinstance(s, Let):
            out.append(s)
            continue
        value = rewrite(s.value, lambda n: closed.get(n.id, n) if isinstance(n, Name) else n)
        if large(value):
            out.append(s)
            continue
        if s.names[0] != "delta" and _constant(value, t):
            closed[s.names[0]] = value
            if s.names[0] not in late and _closed(value, t):
                continue
        out.append(replace(s, value=_hoist(value, t, folds, tensors)))
    used = {n.id for s in (*out, *t.row.compose) for n in walk(s) if isinstance(n, Name)}
    kept = [s for s in t.row.form if isinstance(s, Axis) or (isinstance(s, Tensor) and s.name in used)]
    return (*kept, *out), tuple(folds)


def _lines(t: RowTyping) -> list[Statement]:
    """The form without lets that the composition does not come to read."""
    needed = {n.id for s in t.row.compose for n in walk(s) if isinstance(n, Name)}
    out: list[Statement] = []
    for s in reversed(t.row.form):
        if isinstance(s, Let):
            if not needed & set(s.names):
                continue
            needed |= {n.id for n in walk(s.value) if isinstance(n, Name)}
        out.append(s)
    return out[::-1]


def _constant(e: Expr, t: RowTyping) -> bool:
    """Whether it is made of the row's tensors and of numbers alone; lines that are so stand in it with what they bind."""
    names = {n.id for n in walk(e) if isinstance(n, Name)}
    calls = [dotted(n.function) or "" for n in walk(e) if isinstance(n, Apply)]
    bound = {n for s in t.row.form if isinstance(s, Let) for n in s.names}
    if any("." in c or c == "drop" for c in calls) or (_BASE | bound) & names:
        return False
    return all(v.degree == CONSTANT and not v.random for v in (t.values[n] for n in names if n in t.values))


def _closed(e: Expr, t: RowTyping) -> bool:
    """Whether learned tensors have a part in such an expression."""
    return _constant(e, t) and any(t.values[n.id].learned for n in walk(e) if isinstance(n, Name) and n.id in t.values)


def _hoist(e: Expr, t: RowTyping, folds: list[Fold], tensors: dict) -> Any:
    if isinstance(e, Name) or (isinstance(e, (Attr, Index)) and isinstance(e.value, Name)):
        return e
    if _closed(e, t) and isinstance(_type(e, t), TensorType):
        for f in folds:
            if f.value == e:
                return Name(f.name)
        reads = {n.id for n in walk(e) if isinstance(n, Name)} & set(tensors)
        name, made = f"folded_{len(folds) + 1}", _type(e, t)
        folds.append(Fold(name, e, made, owner_of((tensors[n].owner for n in reads), made.axes)))
        return Name(name)
    changes: dict[str, Any] = {}
    for field in e.__dataclass_fields__:
        part = getattr(e, field)
        if field in ("span", "kind", "op", "name", "function"):
            continue
        if isinstance(part, tuple):
            changes[field] = tuple(
                replace(p, value=_hoist(p.value, t, folds, tensors)) if hasattr(p, "value") and not hasattr(p, "kind")
                else _hoist(p, t, folds, tensors) if hasattr(p, "kind") else p
                for p in part
            )  # fmt: skip
        elif hasattr(part, "kind"):
            changes[field] = _hoist(part, t, folds, tensors)
    return replace(e, **changes) if changes else e


def _type(e: Expr, t: RowTyping) -> Any:
    inf = Inference(dict(t.values), dict(t.sizes), axes=dict(t.axes))
    value: Value = inf.infer(e)
    return value.type if not inf.problems and not isinstance(value.type, NumberType) else None
