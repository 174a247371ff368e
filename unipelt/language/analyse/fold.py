"""Folding: closed expressions over an adapter's own tensors become tensors, computed once after training.

Prefix tuning's MLP and P-tuning's encoder do not read the input: after training only what they yield is needed.
Non-goal: deciding whether folding pays; the plan does, by counting.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from ..once import once
from ..types.owners import Owner, owner_of
from ..types.primitives import entry_of
from ..types.typed import Binding, TypedRow
from ..sites import TensorType
from ..sizes import Size
from ..syntax.lines import lines_for, names_in
from ..syntax.tree import descend, large
from ..syntax.nodes import Attr, Axis, Choose, Expr, Index, Later, Let, Name, Statement, Tensor, Then, rewrite, walk
from ..types.values import CONSTANT, Value


@dataclass(frozen=True, slots=True)
class Fold:
    """A closed expression over learned tensors: computed once after training and stored in their place."""

    name: str
    value: Expr
    type: TensorType
    owner: Owner


#: What a fold may not read: the base (at a weight, `h` is the base's too), and what each forward pass draws.
_BASE = frozenset(("W", "bias", "h", "scale", "log_mass", "chance"))


def is_decided(e: Any) -> bool:
    """Whether an expression is a choice that sizes and arguments decide, not whether the model trains."""
    return isinstance(e, Choose) and Name("training") not in set(walk(e.test))


@once
def fold_form(t: TypedRow) -> tuple[tuple[Statement, ...], tuple[Fold, ...]]:
    """The form with its largest closed expressions replaced by names, and what those names stand for."""
    folder = _Folder(t)
    return folder.form(), tuple(folder.folds)


def sizes_written(places: Sequence[TypedRow]) -> dict[str, tuple[str, ...]] | None:
    """The sizes of what a row folds as texts that are true at each of its sites, where `d_in` and `d_out` may differ; None where there
    is none for some: the row is then stored as it is."""
    found: dict[str, list[tuple[TypedRow, TensorType]]] = {}
    for t in places:
        for f in fold_form(t)[1]:
            found.setdefault(f.name, []).append((t, f.type))
    texts = {name: tuple(_written(i, at) for i in range(len(at[0][1].sizes))) for name, at in found.items()}
    if any(None in of for of in texts.values()):
        return None
    return {name: tuple(t for t in of if t is not None) for name, of in texts.items()}


def _written(i: int, places: Sequence[tuple[TypedRow, TensorType]]) -> str | None:
    """The i-th size of a fold as a text that is true at each of its sites."""
    typing, type_ = places[0]
    ends = [n for n in ("d_out", "d_in") if all(n in t.sizes for t, _ in places)]  # a z that is a number has no d_in
    symbols = {n: next((s for s in typing.sizes[n].symbols if typing.sizes[n] == Size.of(s)), None) for n in ends}
    named = {s: Size.of(n) for n, s in symbols.items() if s is not None}
    size = type_.sizes[i]
    texts = [size, *(size.bind({s: n}) for s, n in named.items()), size.bind(named)]
    own = [{n: t.sizes[n] for n in ends} for t, _ in places]
    fits = (w for w in texts if all(w.bind(n) == t.sizes[i] for n, (_, t) in zip(own, places)))
    return next((w.text for w in fits), None)


class _Folder:
    """Goes through the lines of a row. ``constant`` are lets that read the row's tensors and numbers alone, written without lets."""

    def __init__(self, t: TypedRow):
        self.row, self.folds = t.acting, list[Fold]()
        self.lines = {id(b.expression): b for b in t.lines("form")}
        self.carried = {b.name: b for b in t.lines("form") if isinstance(b.expression, Then)}
        self.tensors = {x.name: x for x in t.tensors if not x.part}
        self.bound = {b.name for b in t.lines("form") if b.expression is not None}
        self.constant: dict[str, Expr] = {}

    def form(self) -> tuple[Statement, ...]:
        out: list[Statement] = []
        choices = (n for s in self.row.form if isinstance(s, Let) for n in walk(s.value) if is_decided(n))
        late = names_in(*self.row.compose, *choices)  # what the composition or a choice reads stays bound
        for s in lines_for(self.row.form, *self.row.compose, training=True):
            if isinstance(s, (Tensor, Axis)):
                continue  # axes stand before the tensors that have them
            if not isinstance(s, Let):
                out.append(self.later(s) if isinstance(s, Later) else s)
                continue
            name, line, whole = s.names[0], self.lines[id(s.value)], self.whole(s.value)
            self.constant.pop(name, None)
            if large(whole):
                out.append(s)
                continue
            if name != "delta" and self.is_constant(whole, line.value):
                self.constant[name] = whole
                if name not in late and line.value.learned:
                    continue
            out.append(replace(s, value=descend(s.value, partial(self.hoist, line))))
        used = names_in(*out, *self.row.compose)
        for s in self.row.form[::-1]:  # whole numbers are told by what they start from, which stays
            if isinstance(s, Tensor) and s.name in used and s.exact and self.tensors[s.name].below is not None:
                used |= names_in(self.whole(s).start)
        kept = [s for s in self.row.form if isinstance(s, Axis) or (isinstance(s, Tensor) and s.name in used)]
        return (*(self.alone(s, used) for s in kept), *out)

    def later(self, s: Later) -> Later:
        """A line that binds no value of this layer alone: without the lets that may be gone."""
        if not s.names:
            return self.whole(s)  # type: ignore[no-any-return]
        line = self.carried[s.names[0]]
        return replace(s, values=tuple(descend(v, partial(self.hoist, line)) for v in s.values))

    def alone(self, s: Axis | Tensor, used: set[str]) -> Statement:
        """A declaration without lets, which stand behind it now. What a trained tensor started from may be gone."""
        whole = self.whole(s)
        gone = self.bound | (self.tensors.keys() - used)
        lost = isinstance(s, Tensor) and s.exact and gone & names_in(whole.start)
        return replace(whole, start=Name("zeros"), exact=False) if lost else whole

    def whole(self, e: Any) -> Any:
        """An expression with constant lets in place of their names."""
        return rewrite(e, lambda n: self.constant.get(n.id, n) if isinstance(n, Name) else n)

    def is_constant(self, whole: Expr, value: Value) -> bool:
        if value.degree != CONSTANT or value.random or any(n in _BASE or "." in n for n in value.reads):
            return False
        draws = any((entry := entry_of(n)) is not None and entry.draws for n in walk(whole))
        return not draws and not self.bound & names_in(whole)

    def hoist(self, line: Binding, e: Any) -> Any:
        """What takes the place of an expression; None where it is looked into."""
        whole = self.whole(e)
        if is_decided(e):
            return e  # a site's sizes may decide against a branch, which need not fit them
        if isinstance(whole, Name) or (isinstance(whole, (Attr, Index)) and isinstance(whole.value, Name)):
            return whole
        value = line.nodes[id(e)][1] if id(e) in line.nodes else None
        if value is None or not (
            isinstance(value.type, TensorType) and value.learned and self.is_constant(whole, value)
        ):
            return whole if isinstance(e, Name) else None
        known = next((f.name for f in self.folds if f.value == whole), None)
        if known is None:
            known = f"folded_{len(self.folds) + 1}"
            owners = (self.tensors[n].owner for n in names_in(whole) & set(self.tensors))
            self.folds.append(Fold(known, whole, value.type, owner_of(owners, value.type.axes)))
        return Name(known)
