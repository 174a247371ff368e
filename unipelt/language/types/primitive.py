"""The table of primitives: one entry each – name, type rule with its facts, what it does to the input's degree.

The entries stand in files by topic, which `primitives` brings together. The torch side of the same names stands in
`unipelt.compiler.words`; a test holds that the two agree. A rule gets the checker (for diagnostics), the call's span and
the argument values, and returns the result's value.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from ..sizes import Size
from ..syntax.nodes import Apply, Expr, Name, Span
from .values import Value


class Reporter(Protocol):
    """What a rule may ask of the checker."""

    def infer(self, e: Expr) -> Value: ...

    def bindings(self, *sizes: Size) -> tuple[str, ...]: ...

    def fail(self, code: str, message: str, span: Span, **more) -> Value: ...

    def axis_size(self, name: str) -> Size | None: ...

    def aligned(self, name: str, a: Value, b: Value, left: Span, right: Span) -> Value: ...

    @property
    def names(self) -> Mapping[str, Value]: ...

    @property
    def bases(self) -> Mapping[str, tuple[Size, Size]]: ...

    @property
    def axes(self) -> Mapping[str, Size]: ...


Rule = Callable[[Reporter, Span, list[Value], list[Expr]], Value]


@dataclass(frozen=True, slots=True)
class Primitive:
    """``arity`` is (least, most) arguments. ``elementwise`` primitives may be passed as an `activation`.

    Further facts: zero where the first argument is (``linear``; all that is linear, and more); the first argument itself
    outside training (``still``); random in training unless the second argument is 0 (``draws``); entries that sum to one
    number, whatever the argument (``shares``); entries added up (``totals``); one of the tokens (``picks``); linear in each of the
    first two arguments (``bilinear``); entries that obey equations of their own, of which the algebra knows nothing, such as those of
    a rotation (``tied``). Computed from batches of
    data while the method is attached (``data``). Only one that ``indexes`` is given whole numbers that say where something stands. Tokens read one another, but no pads (``mixes``),
    or their neighbours in a picture (``grid``).
    """

    name: str
    rule: Rule
    arity: tuple[int, int]
    doc: str
    elementwise: bool = False
    linear: bool = False
    still: bool = False
    draws: bool = False
    shares: bool = False
    totals: bool = False
    picks: bool = False
    bilinear: bool = False
    tied: bool = False
    indexes: bool = False
    mixes: bool = False
    grid: bool = False
    data: bool = False


PRIMITIVES: dict[str, Primitive] = {}


def primitive(name: str, arity: tuple[int, int], doc: str, **facts: bool) -> Callable[[Rule], Rule]:
    def add(rule: Rule) -> Rule:
        PRIMITIVES[name] = Primitive(name, rule, arity, doc, **facts)
        return rule

    return add


def entry_of(call: Expr) -> Primitive | None:
    """The entry of the primitive that an expression calls, if it calls one by its name."""
    name = call.function.id if isinstance(call, Apply) and isinstance(call.function, Name) else ""
    return PRIMITIVES.get(name)
