"""A row at a site with the types of everything in it: one ordered list of bindings. `rows` makes it, by checking the row.

Who asks for the type of an expression looks it up here; nothing else infers one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from .declared import TensorTyping
from .infer import Inference, literal
from .inputs import InputTyping
from ..ir import Row
from ..once import Remembers, once
from ..sites import NUMBERS, SiteSignature
from ..sizes import Size
from ..syntax.lines import names_in
from ..syntax.nodes import Expr, Later, Let, Name, Number, Param, String, Tensor, Then, walk
from .selections import Chosen
from .values import Value


@dataclass(frozen=True, slots=True)
class Sizes:
    """What sizes and numbers stand for: nothing (symbols) or a model's values at one site."""

    values: Mapping[str, int] | None = None
    layer: int | None = None
    depth: int | None = None
    equal: tuple[tuple[str, Size], ...] = ()  # of symbols: what a row requires them to be

    def __hash__(self) -> int:
        return hash((frozenset((self.values or {}).items()), self.layer, self.depth, self.equal))

    def of(self, name: str) -> Size:
        return (
            Size.of(self.values[name]) if self.values is not None and name in self.values else self.bound(Size.of(name))
        )

    def bound(self, size: Size) -> Size:
        """A size of the site as far as it is known: numbers in place of symbols, or what symbols are required to be."""
        if self.values is not None:
            return size.bind(self.values)
        for name, other in self.equal:  # in turn: one may have led to the next
            size = size.bind({name: other})
        return size

    @property
    def numbers(self) -> dict[str, int]:
        """``layer`` and ``depth``, those that are known."""
        return {n: v for n, v in zip(NUMBERS, (self.layer, self.depth)) if v is not None}


SYMBOLS = Sizes()


Part = Literal["insert", "form", "gate", "compose", "penalty", "after"]


@dataclass(frozen=True, slots=True)
class Binding:
    """A line of a row: the name that it binds, its expression (of ``z`` and of lets), and what is known of it.

    ``declared`` is the tensor or the input that the line declares, ``axis`` the size of an axis; ``nodes`` is what is known
    of each expression in the line. ``result``: which of the expression's several results the name is.
    """

    name: str
    part: Part
    value: Value
    nodes: Mapping[int, tuple[Expr, Value]] = field(repr=False)
    expression: Expr | None = None
    axis: Expr | None = None
    declared: TensorTyping | InputTyping | None = None
    result: int | None = None

    def __reduce__(self) -> Any:
        parts = (self.name, self.part, self.value, self.expression, self.axis, self.declared, self.result)
        return _binding, (parts, tuple(self.nodes.values()))

    def of(self, e: Expr) -> Value:
        """What is known of an expression of this line; numbers and texts need not stand in it."""
        if isinstance(e, (Number, String)):
            return literal(e)
        node, value = self.nodes[id(e)]
        assert node is e
        return value


def _binding(parts: tuple, nodes: tuple[tuple[Expr, Value], ...]) -> Binding:
    """A binding from a pickle, or copied, whose nodes are others by then."""
    name, part, value, *rest = parts
    return Binding(name, part, value, {id(e): (e, v) for e, v in nodes}, *rest)


@dataclass(frozen=True, slots=True, eq=False)
class TypedRow(Remembers):
    """A row at a site with the type of everything in it: its bindings in the order of the text.

    ``values`` are the names in scope at the end, ``out`` is the new ``h`` (after the gate), ``sizes`` every size in scope,
    ``axes`` those that the row declares, ``stack`` the one that the site's path names, ``tokens`` those that it changes (none: all).
    """

    row: Row
    site: SiteSignature
    params: Sequence[Param]
    numbers: Sizes
    bindings: tuple[Binding, ...]
    values: Mapping[str, Value]
    out: Value
    sizes: Mapping[str, Size]
    bases: Mapping[str, tuple[Size, Size]]
    axes: Mapping[str, Size]
    stack: str | None = None
    tokens: tuple[Chosen, ...] = ()
    rows: tuple[Row, ...] = ()  # of the method, whose tensors it may read

    def __repr__(self) -> str:
        return f"<{self.row.name} at {self.place}>"

    @property
    def place(self) -> str:
        return f"{self.stack}.{self.site.name}" if self.stack else self.site.name

    @property
    def tensors(self) -> tuple[TensorTyping, ...]:
        return tuple(b.declared for b in self.bindings if isinstance(b.declared, TensorTyping))

    @property
    def inputs(self) -> tuple[InputTyping, ...]:
        return tuple(b.declared for b in self.bindings if isinstance(b.declared, InputTyping))

    @property
    @once
    def carried(self) -> Mapping[str, Value]:
        """What is carried along depth, by name."""
        return {b.name: b.value for b in self.bindings if isinstance(b.expression, Then)}

    @property
    def insert(self) -> Expr | None:
        """What z is, as an expression."""
        return next((b.expression for b in self.bindings if b.part == "insert"), None)

    @property
    @once
    def acting(self) -> Row:
        """The row as a forward pass computes it: without the lines that only exact starts read, or nothing."""
        row, lines = self.row, (*self.row.form, *(self.row.gate or ()), *self.row.compose)
        wanted, gone = {"out", "g", "delta", "scores"}, set[int]()
        for s in lines:
            if isinstance(s, Tensor):
                wanted |= names_in(*s.shape, *([] if s.exact else [s.start]), *([s.lr] if s.lr is not None else []))
            elif not isinstance(s, (Let, Later)):
                wanted |= names_in(s)
        for s in reversed(lines):
            if isinstance(s, (Let, Later)) and s.names and not wanted & {*s.names}:
                gone.add(id(s))
            elif isinstance(s, (Let, Later)):
                wanted |= names_in(s)
        if not gone:
            return row
        form, compose, gate = (
            tuple(s for s in part if id(s) not in gone) for part in (row.form, row.compose, row.gate or ())
        )
        return replace(row, form=form, compose=compose, gate=gate if row.gate is not None else None)

    @property
    @once
    def read_by_passes(self) -> frozenset[str]:
        """The names that a forward pass reads, which are fewer than those that it and the starts of tensors read."""
        row = self.acting
        lines = (s for s in (*row.form, *(row.gate or ()), *row.compose) if not isinstance(s, Tensor))
        return frozenset(names_in(*lines, *([self.insert] if self.insert is not None else [])))

    @property
    @once
    def reads(self) -> frozenset[str]:
        """The names that its expressions mention, with those that the words for insertions stand for."""
        z = walk(self.insert) if self.insert is not None else ()
        return self.row.reads | {n.id for n in z if isinstance(n, Name)}

    def lines(self, *parts: Part) -> list[Binding]:
        """The bindings of some parts, in order."""
        return [b for b in self.bindings if b.part in parts]

    def value(self, e: Expr) -> Value:
        """What is known of an expression of the row, or of a new one that is made of its expressions and names; one that is at
        fault is poison."""
        return _scope(self).infer(e)


@once
def _scope(t: TypedRow) -> Inference:
    """The names at the end of the row, with what is known of its expressions where they stand."""
    nodes: dict[int, tuple[Expr, Value]] = {}
    for b in t.lines("gate") + t.lines("insert", "form", "compose"):
        nodes |= b.nodes
    return Inference(dict(t.values), dict(t.sizes), dict(t.bases), axes=dict(t.axes), nodes=nodes)
