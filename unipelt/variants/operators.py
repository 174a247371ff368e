"""New spaces from methods: `vary` a method's columns, `cross` two methods, the `neighbours` one column away.

Each gives a definition with alternatives, to be enumerated like any other space.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from ..language.syntax import nodes as S
from ..language.report.diagnostics import error, near
from ..language.check.inline import substitute
from ..language.check.elaborate import Draft, drafts, elaborate
from ..language.ir import Trained
from ..language.check.names import Names
from ..language.syntax.parser import parse
from ..language.sites import SITES

COLUMNS = ("modify", "insert", "form", "compose")
_SLOT = {"modify": S.Modify, "insert": S.Insert, "form": S.Form, "compose": S.Compose, "layers": S.Layers}
#: The insertions that `neighbours` tries.
INSERTIONS = ("sequential", "parallel")


def alternatives(slot: str, texts: Sequence[str]) -> tuple[Any, ...]:
    """The alternatives of a slot from their texts: ``("parallel", "sequential")``."""
    text = "method _ {\n" + f"{slot} {' | '.join(texts)}" + "\n}"
    clause: Any = parse(text, f"<{slot}>").definitions[0].clauses[0]  # type: ignore[union-attr]
    return clause.alternatives


def _rows(definition: S.MethodDef, names: Names) -> list[Draft]:
    found = drafts(definition, names)
    if not found:
        raise error("E0802", f"`{definition.name}` has no row: it only trains parameters", definition.name_span,
                    help="choose a method with the four columns")  # fmt: skip
    return found


def _one_row(definition: S.MethodDef, names: Names, row: str | None) -> Draft:
    found = _rows(definition, names)
    known = [d.name for d in found]
    if row is None and len(found) > 1:
        raise error("E0802", f"`{definition.name}` has {len(found)} rows, so one must be named", definition.name_span,
                    help=f"name one with `--row` (of two methods `--row-a`, `--row-b`): {', '.join(known)}")  # fmt: skip
    if row is not None and row not in known:
        raise error("E0802", f"`{definition.name}` has no row `{row}`", definition.name_span,
                    help=near(row, known) or f"its rows: {', '.join(known)}")  # fmt: skip
    return next(d for d in found if row is None or d.name == row)


def _clauses(slots: Mapping[str, Any]) -> tuple[Any, ...]:
    order = ("layers", "modify", "tokens", "insert", "form", "compose")
    return tuple(slots[s] for s in order if s in slots)


def _whole(
    definition: S.MethodDef, rows: Sequence[Draft], changed: str, slots: Mapping[str, Any], names: Names
) -> tuple[Any, ...]:
    """The clauses of the method with the slots of one row replaced: its requirements, rows and trained copies."""
    method = elaborate(definition, names)
    alone = len(rows) == 1 and rows[0].gate is None
    trains = tuple(_train(t, alone and "layers" in slots) for t in method.trains)
    if alone:
        return (*method.requires, *_clauses(slots), *trains)
    uses = []
    for d in rows:
        own = slots if d.name == changed else d.slots
        uses.append(S.Use(S.RowBlock(_clauses(own)), d.name, d.gate))
    return (*method.requires, *uses, *trains)


def _train(t: Trained, apart: bool) -> S.Train | S.Use:
    """Trained copies with their own layers; ``apart`` from layers that stand beside them."""
    train = S.Train(t.paths, t.lr)
    if t.layers is None and not apart:
        return train
    return S.Use(S.RowBlock((S.Layers((t.layers,)), train) if t.layers is not None else (train,)), t.name)


def vary(
    definition: S.MethodDef, names: Names, slots: Mapping[str, Sequence[str]], row: str | None = None, name: str = ""
) -> S.MethodDef:
    """The space of a method in which some columns of a row hold the given alternatives (as texts)."""
    if not any(slots.values()):
        raise error(
            "E0803", "nothing is varied", help="give alternatives for a column, such as --insert parallel,sequential"
        )
    new = {slot: _SLOT[slot](alternatives(slot, texts)) for slot, texts in slots.items() if texts}
    return _changed(definition, names, _one_row(definition, names, row), new, name or f"{definition.name}_varied")


def _changed(definition: S.MethodDef, names: Names, draft: Draft, slots: Mapping[str, Any], name: str) -> S.MethodDef:
    """The space of a method in which one row has these slots instead of its own."""
    clauses = _whole(definition, _rows(definition, names), draft.name, {**draft.slots, **slots}, names)
    return replace(definition, name=name, base=None, doc=None, clauses=clauses)


def cross(
    a: S.MethodDef, b: S.MethodDef, names: Names, row_a: str | None = None, row_b: str | None = None
) -> S.MethodDef:
    """The space whose members take each column from either parent. Parameters of one name that differ are renamed."""
    one, other = _one_row(a, names, row_a), _one_row(b, names, row_b)
    mine = {p.name: p for p in a.params}
    renamed = {
        p.name: f"{b.name}_{p.name}"
        for p in b.params
        if p.name in mine and (mine[p.name].type, mine[p.name].default) != (p.type, p.default)
    }
    mapping: dict[str, Any] = {old: S.Name(new) for old, new in renamed.items()}
    params = dict(mine)
    for p in b.params:
        q = replace(
            p,
            name=renamed.get(p.name, p.name),
            default=substitute(p.default, mapping) if p.default is not None else None,
        )
        params.setdefault(q.name, q)
    slots: dict[str, Any] = {}
    for slot in (*COLUMNS, "layers"):
        here, there = one.slots.get(slot), other.slots.get(slot)
        there = substitute(there, mapping) if there is not None else None
        if here is None or there is None:
            chosen = here or there
            if chosen is not None:
                slots[slot] = chosen
        else:
            slots[slot] = replace(here, alternatives=_distinct((*here.alternatives, *there.alternatives), names))
    return S.MethodDef(f"{a.name}_x_{b.name}", tuple(params.values()), None, None, _clauses(slots))


def _distinct(values: Sequence[Any], names: Names) -> tuple[Any, ...]:
    """Each alternative once. Equal texts that call different definitions are different alternatives."""
    found: dict[Any, Any] = {}
    for v in values:
        parts = v if isinstance(v, tuple) else (v,)  # sites, or an expression
        found.setdefault((v, tuple(id(d) for p in parts for d in names.called(p))), v)
    return tuple(found.values())


def neighbours(definition: S.MethodDef, names: Names, row: str | None = None) -> list[S.MethodDef]:
    """A space for each column: everything the language and the library offer there, the other columns as they are."""
    draft = _one_row(definition, names, row)
    out = []
    for slot in COLUMNS:
        if slot not in draft.slots:
            continue
        own = draft.slots[slot].alternatives[0]
        offered = _distinct((own, *alternatives(slot, _offered(slot, names))), names)[1:]
        if offered:
            out.append(_changed(definition, names, draft, {slot: _SLOT[slot](offered)}, f"{definition.name}_{slot}"))
    return out


#: Values for the arguments of forms and compositions that have no default.
_SIZES = {"int": "8", "float": "4.0"}


def _offered(slot: str, names: Names) -> list[str]:
    if slot == "modify":
        return [n for n, s in SITES.items() if s.times != "head"]
    if slot == "insert":
        return list(INSERTIONS)
    texts = []
    for name in names.names(slot):
        d = names.find(slot, S.Name(name))
        if not isinstance(d, S.BodyDef):
            continue
        needed = [p for p in d.params if p.default is None]
        if all(p.type in _SIZES for p in needed):
            texts.append(f"{name}({', '.join(_SIZES[p.type] for p in needed)})" if needed else name)
    return texts
