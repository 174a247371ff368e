"""Typed rows as a text that fits on a page and as data, whose schema is published (`json_schema`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from ..ir import Method
from ..report.texts import shown
from ..sites import TensorType, axis_order
from ..syntax.printer import to_text
from ..types.declared import TensorTyping
from ..types.typed import Binding, TypedRow
from ..types.values import CONSTANT, NumberType, Value
from ..versions import LANGUAGE_VERSION, TYPES_SCHEMA

Degree = Literal["constant", "affine", "not affine"]
DEGREES: tuple[Degree, ...] = ("constant", "affine", "not affine")


@dataclass(frozen=True, slots=True)
class ValueData:
    """What is known of a value. A tensor has axes, in the order in which they are laid out, and sizes; a number may be a size or
    have a value, a word says what it is. ``degree``: how it depends on the input; ``reads``: the names of the scope and the tensors
    that it is made of; ``bends``, ``future``, ``padding``, ``chunk``: where it stops being affine, sees later tokens, sees
    padding, sees other tokens at all."""

    kind: Literal["tensor", "number", "word"]
    axes: list[str]
    sizes: list[str]
    value: float | int | bool | str | None
    degree: Degree
    learned: bool
    random: bool
    reads: list[str]
    bends: str
    future: str
    padding: str
    chunk: str


@dataclass(frozen=True, slots=True)
class BindingData:
    """A line: the name that it binds, in which part of the row, its expression (of ``z`` and of lets). Of a tensor: of what there
    is one each, how it starts and learns."""

    name: str
    part: Literal["insert", "form", "gate", "compose", "penalty", "after"]
    expression: str | None
    value: ValueData
    owner: list[str]
    start: str | None
    frozen: bool
    lr: float | None


@dataclass(frozen=True, slots=True)
class RowData:
    """A row at a site: its lines, and the new ``h``, after the gate."""

    row: str
    site: str
    bindings: list[BindingData]
    out: ValueData


@dataclass(frozen=True, slots=True)
class MethodData:
    """A method's rows, each at each of its sites."""

    schema: str
    language: str
    method: str
    rows: list[RowData]


def data(method: Method, rows: Sequence[TypedRow]) -> dict[str, Any]:
    """Typed rows as plain data, with the schema's name and the language's version."""
    found = [RowData(t.row.name, t.place, list(map(_binding, t.bindings)), _value(t.out)) for t in rows]
    return asdict(MethodData(TYPES_SCHEMA, LANGUAGE_VERSION, method.name, found))


def json_schema() -> dict[str, Any]:
    """The published schema of `data`."""
    from pydantic import TypeAdapter

    return {"$id": TYPES_SCHEMA, **TypeAdapter(MethodData).json_schema()}


def _binding(b: Binding) -> BindingData:
    e, t = b.expression, b.declared if isinstance(b.declared, TensorTyping) else None
    group = [f"layers({t.owner.span.text})"] if t is not None and t.owner.span is not None else []
    each = [t.owner.each] if t is not None and t.owner.each != "layers" else []
    owner = [*each, *group, *sorted(t.owner.axes, key=axis_order)] if t is not None else []
    return BindingData(b.name, b.part, to_text(e) if e is not None else None, _value(b.value), owner,
                       _start(t) if t is not None else None, t is not None and t.frozen, t.lr if t is not None else None)  # fmt: skip


def _value(v: Value) -> ValueData:
    t, places = v.type, [shown(span) if span is not None else "" for span in (v.bends, v.future, v.padding, v.chunk)]
    facts: tuple[Any, ...] = (DEGREES[v.degree], v.learned, v.random, sorted(v.reads), *places)
    if isinstance(t, TensorType):
        return ValueData("tensor", sorted(t.axes, key=axis_order), list(map(str, t.sizes)), None, *facts)
    if isinstance(t, NumberType):
        return ValueData("number", [], [str(t.size)] if t.size is not None else [], t.value, *facts)
    return ValueData("word", [], [], str(t), *facts)


def _start(t: TensorTyping) -> str:
    return f"{'=' if t.exact is not None else '~'} {to_text(t.declaration.start)}"


# ---------------------------------------------------------------- as text


def text(method: Method, rows: Sequence[TypedRow]) -> str:
    """Each row with its sites, then its lines: name, type, what is known, expression. Sites at which the lines are the same
    share them. Last what is trained as it is."""
    blocks: dict[tuple[str, str], list[str]] = {}
    for t in rows:
        blocks.setdefault((t.row.name, "\n".join(_lines(t))), []).append(t.place)
    found = [f"{row} at {', '.join(sites)}\n{lines}" for (row, lines), sites in blocks.items()]
    found += [f"{r.name} at {', '.join(map(str, r.sites))}" for r in method.rows if all(t.row is not r for t in rows)]
    found += [f"train {', '.join(map(str, t.paths))}" for t in method.trains]
    return "\n\n".join(found)


def _lines(t: TypedRow) -> list[str]:
    cells = [(f"{'gate ' * (b.part == 'gate')}{b.name}", str(b.value.type), *_said(b)) for b in t.bindings]
    if t.row.gate is not None:
        cells.append(("out", str(t.out.type), _known(t.out), "= h + g * (out - h)"))
    widths = [max(len(c[i]) for c in cells) for i in range(3)]
    return ["  " + "  ".join([*(c.ljust(w) for c, w in zip(cell, widths)), cell[3]]).rstrip() for cell in cells]


def _said(b: Binding) -> tuple[str, str]:
    """What is known of a line, and how it is written."""
    if isinstance(b.declared, TensorTyping):
        return f"one for each {b.declared.owner}", "frozen " * b.declared.frozen + _start(b.declared)
    return _known(b.value), f"= {to_text(b.expression)}" if b.expression is not None else ""


def _known(v: Value) -> str:
    """The facts of a value in words."""
    seen = "later tokens" if v.future else "padding" if v.padding else "other tokens" if v.chunk else ""
    seen += f"{' and ' * bool(seen)}other examples" if v.mixed else ""
    degree = ("learned" if v.learned else "") if v.degree == CONSTANT else DEGREES[v.degree]
    return ", ".join(filter(None, [degree, f"sees {seen}" if seen else "", "random" if v.random else ""]))
