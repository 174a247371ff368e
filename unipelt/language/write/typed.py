"""Typed rows as a text that fits on a page and as data, whose schema is published (`json_schema`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from ..ir import Method
from ..report.texts import shown
from ..sites import TensorType, axis_order
from ..syntax.nodes import Span
from ..syntax.printer import to_text
from ..types.declared import TensorTyping
from ..types.typed import Binding, TypedRow
from ..types.values import AFFINE, CONSTANT, NumberType, Type, Value, WordType
from ..versions import LANGUAGE_VERSION, TYPES_SCHEMA

DEGREES: tuple[Literal["constant", "affine", "other"], ...] = ("constant", "affine", "other")


@dataclass(frozen=True, slots=True)
class TypeData:
    """A tensor has axes, in the order in which they are laid out, and sizes; a number may be a size or have a value, a word says of what kind it is."""

    kind: Literal["tensor", "number", "word"]
    axes: tuple[str, ...] = ()
    sizes: tuple[str, ...] = ()
    size: str | None = None
    value: float | int | bool | str | None = None


@dataclass(frozen=True, slots=True)
class FactsData:
    """What is known besides the type. ``degree``: how the value depends on the input; ``bends``, ``future``, ``padding`` and
    ``chunk``: where it stops being affine, sees later tokens, sees padding, and reads other tokens at all."""

    degree: Literal["constant", "affine", "other"]
    learned: bool
    random: bool
    reads: tuple[str, ...]
    bends: str | None
    future: str | None
    padding: str | None
    chunk: str | None


@dataclass(frozen=True, slots=True)
class TensorData:
    """Of what there is one tensor each (a site, a layer and so on, and axes), how it starts and learns."""

    each: str
    axes: tuple[str, ...]
    start: str
    frozen: bool
    lr: float | None


@dataclass(frozen=True, slots=True)
class BindingData:
    """A line: the name that it binds, in which part of the row, its expression (of ``z`` and of lets), the tensor that it declares."""

    name: str
    part: Literal["insert", "form", "gate", "compose"]
    expression: str | None
    type: TypeData
    facts: FactsData
    tensor: TensorData | None


@dataclass(frozen=True, slots=True)
class RowData:
    """A row at a site: its lines, and the new ``h``, after the gate."""

    row: str
    site: str
    bindings: tuple[BindingData, ...]
    out: TypeData
    facts: FactsData


@dataclass(frozen=True, slots=True)
class MethodData:
    """A method's rows, each at each of its sites."""

    schema: str
    language: str
    method: str
    rows: tuple[RowData, ...]


def data(method: Method, rows: Sequence[TypedRow]) -> dict[str, Any]:
    """Typed rows as plain data, with the schema's name and the language's version."""
    found = tuple(
        RowData(t.row.name, t.place, tuple(map(_binding, t.bindings)), _type(t.out.type), _facts(t.out)) for t in rows
    )
    return asdict(MethodData(TYPES_SCHEMA, LANGUAGE_VERSION, method.name, found))


def json_schema() -> dict[str, Any]:
    """The published schema of `data`."""
    from pydantic import TypeAdapter

    return {"$id": TYPES_SCHEMA, **TypeAdapter(MethodData).json_schema()}


def _binding(b: Binding) -> BindingData:
    t = b.declared if isinstance(b.declared, TensorTyping) else None
    tensor = None
    if t is not None:
        axes = tuple(sorted(t.owner.axes, key=axis_order))
        tensor = TensorData(t.owner.each, axes, _start(t), t.frozen, t.lr)
    expression = to_text(b.expression) if b.expression is not None else None
    return BindingData(b.name, b.part, expression, _type(b.value.type), _facts(b.value), tensor)


def _type(t: Type) -> TypeData:
    if isinstance(t, TensorType):
        return TypeData("tensor", tuple(sorted(t.axes, key=axis_order)), tuple(map(str, t.sizes)))
    if isinstance(t, NumberType):
        return TypeData("number", size=str(t.size) if t.size is not None else None, value=t.value)
    assert isinstance(t, WordType)  # a checked row has no mistake
    return TypeData("word", value=str(t))


def _facts(v: Value) -> FactsData:
    def at(span: Span | None) -> str | None:
        return shown(span) if span is not None else None

    places = (at(v.bends), at(v.future), at(v.padding), at(v.chunk))
    return FactsData(DEGREES[v.degree], v.learned, v.random, tuple(sorted(v.reads)), *places)


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
    cells = [(f"{'gate ' * (b.part == 'gate')}{b.name}", str(b.value.type), _said(b), _shown(b)) for b in t.bindings]
    if t.row.gate is not None:
        cells.append(("out", str(t.out.type), _known(t.out), "= h + g * (out - h)"))
    widths = [max(len(c[i]) for c in cells) for i in range(3)]
    return ["  " + "  ".join([*(c.ljust(w) for c, w in zip(cell, widths)), cell[3]]).rstrip() for cell in cells]


def _said(b: Binding) -> str:
    t = b.declared
    return f"one for each {t.owner}" if isinstance(t, TensorTyping) else _known(b.value)


def _known(v: Value) -> str:
    """The facts of a value in words."""
    seen = "later tokens" if v.future else "padding" if v.padding else "other tokens" if v.chunk else ""
    words = [
        "learned" if v.degree == CONSTANT and v.learned else "affine" if v.degree == AFFINE else "not affine" if v.degree else "",
        f"sees {seen}" if seen else "",
        "random" if v.random else "",
    ]  # fmt: skip
    return ", ".join(filter(None, words))


def _shown(b: Binding) -> str:
    if isinstance(b.declared, TensorTyping):
        return " ".join(filter(None, ["frozen" if b.declared.frozen else "", _start(b.declared)]))
    return f"= {to_text(b.expression)}" if b.expression is not None else ""
