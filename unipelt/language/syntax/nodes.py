"""The syntax tree of a ``.pelt`` file: frozen values with spans. Equality ignores spans, so trees compare by meaning.

The tree is also the body of the IR (`unipelt.language.ir`): a resolved method is made of the same nodes, with every
definition inlined, and prints as a ``.pelt`` text again (`unipelt.language.syntax.printer`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, Union

from .tree import children as children, dotted as dotted, rewrite as rewrite, site_text as site_text, walk as walk


@dataclass(frozen=True, slots=True)
class Span:
    """A range of characters ``[start, end)`` of the source called ``file``."""

    file: str = ""
    start: int = 0
    end: int = 0

    def to(self, other: Span) -> Span:
        return Span(self.file, self.start, max(self.end, other.end))


NOWHERE = Span()


def _span() -> Any:
    return field(default=NOWHERE, compare=False, repr=False)


# ---------------------------------------------------------------- expressions


@dataclass(frozen=True, slots=True)
class Number:
    """A number as it was written; a percent sign is kept apart."""

    value: int | float
    percent: bool = False
    span: Span = _span()
    kind: Literal["number"] = "number"


@dataclass(frozen=True, slots=True)
class String:
    """A text in quotes."""

    value: str
    span: Span = _span()
    kind: Literal["string"] = "string"


@dataclass(frozen=True, slots=True)
class Name:
    """A name: what it means depends on where it stands."""

    id: str
    span: Span = _span()
    kind: Literal["name"] = "name"


@dataclass(frozen=True, slots=True)
class Attr:
    """``value.name``: a part of a site (``ffn.norm``), or ``.T``."""

    value: Expr
    name: str
    span: Span = _span()
    kind: Literal["attr"] = "attr"


@dataclass(frozen=True, slots=True)
class Arg:
    """One argument of a call, by position or by name."""

    value: Expr
    name: str | None = None
    span: Span = _span()


@dataclass(frozen=True, slots=True)
class Apply:
    """``function(args)``; the function is a `Name` or a dotted `Attr` (``attn.k(P)``)."""

    function: Expr
    args: tuple[Arg, ...] = ()
    span: Span = _span()
    kind: Literal["apply"] = "apply"


@dataclass(frozen=True, slots=True)
class Slice:
    """A range `low : high` of a size."""

    low: Expr | None = None
    high: Expr | None = None
    span: Span = _span()
    kind: Literal["slice"] = "slice"


@dataclass(frozen=True, slots=True)
class Index:
    """`value[items]`."""

    value: Expr
    items: tuple[Slice | Expr, ...]
    span: Span = _span()
    kind: Literal["index"] = "index"


@dataclass(frozen=True, slots=True)
class Negative:
    """`-value`."""

    value: Expr
    span: Span = _span()
    kind: Literal["negative"] = "negative"


@dataclass(frozen=True, slots=True)
class Binary:
    """An arithmetic operation."""

    op: Literal["+", "-", "*", "/", "@", "**"]
    left: Expr
    right: Expr
    span: Span = _span()
    kind: Literal["binary"] = "binary"


@dataclass(frozen=True, slots=True)
class Compare:
    """A comparison."""

    op: Literal["==", "!=", "<=", ">=", "<", ">"]
    left: Expr
    right: Expr
    span: Span = _span()
    kind: Literal["compare"] = "compare"


@dataclass(frozen=True, slots=True)
class Choose:
    """``then if test else other``."""

    then: Expr
    test: Expr
    other: Expr
    span: Span = _span()
    kind: Literal["choose"] = "choose"


@dataclass(frozen=True, slots=True)
class ListOf:
    """`[a, b, …]`."""

    items: tuple[Expr, ...]
    span: Span = _span()
    kind: Literal["list"] = "list"


Expr = Union[Number, String, Name, Attr, Apply, Index, Negative, Binary, Compare, Choose, ListOf]

# ---------------------------------------------------------------- statements of a body


@dataclass(frozen=True, slots=True)
class Scope:
    """One word behind ``per``: a place (model, kind, layer, layers(k), site) or an axis (head, group, …)."""

    name: str
    argument: Expr | None = None
    span: Span = _span()


@dataclass(frozen=True, slots=True)
class Tensor:
    """``[frozen] name: [sizes] ~ distribution`` or ``= exact value``, with its scope and learning-rate multiple."""

    name: str
    shape: tuple[Expr, ...]
    start: Expr
    exact: bool = False
    frozen: bool = False
    per: tuple[Scope, ...] = ()
    lr: Expr | None = None
    span: Span = _span()
    kind: Literal["tensor"] = "tensor"


@dataclass(frozen=True, slots=True)
class Let:
    """`name = expression`: no parameters."""

    names: tuple[str, ...]
    value: Expr
    span: Span = _span()
    kind: Literal["let"] = "let"


@dataclass(frozen=True, slots=True)
class Axis:
    """`axis name = size`: a declared axis."""

    name: str
    size: Expr
    span: Span = _span()
    kind: Literal["axis"] = "axis"


@dataclass(frozen=True, slots=True)
class Require:
    """`require condition, "message"`."""

    condition: Expr
    message: str | None = None
    span: Span = _span()
    kind: Literal["require"] = "require"


@dataclass(frozen=True, slots=True)
class Input:
    """``input name: index(n)`` or ``input name: [sizes]``: an argument of the model's forward, a value an example."""

    name: str
    index: Apply | None = None
    shape: tuple[Expr, ...] = ()
    span: Span = _span()
    kind: Literal["input"] = "input"


@dataclass(frozen=True, slots=True)
class Later:
    """What belongs to training, and no line of the new `h`: `penalty` (a value) and `after step` (lines). And `carry`, which binds a name
    to one of two values: at the first layer, and at each further one."""

    word: str
    names: tuple[str, ...] = ()
    values: tuple[Expr, ...] = ()
    body: tuple[Let, ...] = ()
    span: Span = _span()
    kind: Literal["later"] = "later"


@dataclass(frozen=True, slots=True)
class Then:
    """What a `carry` line binds, as the checker knows it: ``first`` at the first layer, ``next`` at each further one, where ``name`` is
    what the layer before had. No text has it by itself."""

    name: str
    first: Any
    next: Any
    span: Span = _span()
    kind: Literal["then"] = "then"


Statement = Union[Tensor, Let, Axis, Require, Input, Later]


@dataclass(frozen=True, slots=True)
class Block:
    """An inline ``{ … }`` body of a form, composition or gate."""

    body: tuple[Statement, ...]
    span: Span = _span()
    kind: Literal["block"] = "block"


# ---------------------------------------------------------------- slots and clauses of a method


@dataclass(frozen=True, slots=True)
class Path:
    """A dotted site or parameter path: ``attn.q``, ``*.norm.weight``."""

    parts: tuple[str, ...]
    span: Span = _span()

    def __str__(self) -> str:
        return ".".join(self.parts)


@dataclass(frozen=True, slots=True)
class Modify:
    """The slot `modify`: what is changed."""

    alternatives: tuple[tuple[Path, ...], ...]
    span: Span = _span()
    kind: Literal["modify"] = "modify"


@dataclass(frozen=True, slots=True)
class Insert:
    """The slot `insert`: what z is."""

    alternatives: tuple[Expr, ...]
    span: Span = _span()
    kind: Literal["insert"] = "insert"


@dataclass(frozen=True, slots=True)
class Form:
    """The slot `form`: delta as a function of z."""

    alternatives: tuple[Apply | Block, ...]
    span: Span = _span()
    kind: Literal["form"] = "form"


@dataclass(frozen=True, slots=True)
class Compose:
    """The slot `compose`: how delta meets h."""

    alternatives: tuple[Expr | Block, ...]
    span: Span = _span()
    kind: Literal["compose"] = "compose"


@dataclass(frozen=True, slots=True)
class Selection:
    """``all | first e | last e | e .. e | every e | since e | inserted``."""

    word: Literal["all", "first", "last", "range", "every", "since", "inserted"]
    values: tuple[Expr, ...] = ()
    span: Span = _span()


@dataclass(frozen=True, slots=True)
class Layers:
    """The slot `layers`: which layers."""

    alternatives: tuple[Selection, ...]
    span: Span = _span()
    kind: Literal["layers"] = "layers"


@dataclass(frozen=True, slots=True)
class Tokens:
    """The slot `tokens`: which tokens."""

    selections: tuple[Selection, ...]
    span: Span = _span()
    kind: Literal["tokens"] = "tokens"


@dataclass(frozen=True, slots=True)
class Train:
    """`train PATHS`: trained copies of base parameters."""

    paths: tuple[Path, ...]
    lr: Expr | None = None
    span: Span = _span()
    kind: Literal["train"] = "train"


@dataclass(frozen=True, slots=True)
class RowBlock:
    """``use { modify … insert … }``."""

    clauses: tuple[Clause, ...]
    span: Span = _span()
    kind: Literal["row"] = "row"


@dataclass(frozen=True, slots=True)
class Use:
    """`use METHOD` or `use { … }`: a row of its own."""

    target: Apply | RowBlock
    name: str | None = None
    gate: Apply | Block | None = None
    overrides: tuple[Clause, ...] = ()
    span: Span = _span()
    kind: Literal["use"] = "use"


Clause = Union[Modify, Insert, Form, Compose, Layers, Tokens, Train, Use, Statement]

# ---------------------------------------------------------------- definitions


@dataclass(frozen=True, slots=True)
class Param:
    """A parameter of a definition."""

    name: str
    type: str
    default: Expr | None = None
    span: Span = _span()


@dataclass(frozen=True, slots=True)
class Choices:
    """``in { a, b }`` behind a parameter: the arguments it takes in a space of methods.

    ``place`` is the parameter's among the parameters: a definition with a name twice is wrong, but may be written.
    """

    name: str
    values: tuple[Expr, ...]
    place: int
    span: Span = _span()


@dataclass(frozen=True, slots=True)
class MethodDef:
    """A `method`: a row of the table, or a union of rows; with alternatives in slots or ``choices``, a space of methods."""

    name: str
    params: tuple[Param, ...] = ()
    base: Apply | None = None
    doc: str | None = None
    clauses: tuple[Clause, ...] = ()
    choices: tuple[Choices, ...] = ()
    span: Span = _span()
    name_span: Span = _span()
    kind: Literal["method"] = "method"


@dataclass(frozen=True, slots=True)
class BodyDef:
    """A ``form``, a ``compose`` or a ``gate`` definition. A short composition ``= e`` is the body ``out = e``."""

    what: Literal["form", "compose", "gate"]
    name: str
    params: tuple[Param, ...] = ()
    doc: str | None = None
    body: tuple[Statement, ...] = ()
    span: Span = _span()
    name_span: Span = _span()
    kind: Literal["body"] = "body"


@dataclass(frozen=True, slots=True)
class AnatomyDef:
    """Where the architectures ``models`` (``config.model_type``) keep their sites."""

    name: str
    models: tuple[str, ...] = ()
    doc: str | None = None
    entries: tuple[tuple[str, str], ...] = ()
    span: Span = _span()
    name_span: Span = _span()
    kind: Literal["anatomy"] = "anatomy"


Definition = Union[MethodDef, BodyDef, AnatomyDef]


@dataclass(frozen=True, slots=True)
class Import:
    """`import "file"`."""

    path: str
    span: Span = _span()


@dataclass(frozen=True, slots=True)
class File:
    """A whole file."""

    imports: tuple[Import, ...] = ()
    definitions: tuple[Definition, ...] = ()
