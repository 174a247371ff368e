"""The IR: a resolved method. Every definition is inlined, every name is a parameter, a tensor, a let or in scope.

A `Method` is a frozen value that prints as a ``.pelt`` text (`str`), which elaborates to the same value again, and goes
to JSON and back (`to_json`, `from_json`; schema `SCHEMA`, published by `json_schema`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

from .above import view
from .types.arguments import parameters
from .once import Remembers, once
from .report.diagnostics import Diagnostic, PeltError, error, near
from .types.fitting import argument, plain, takes
from .syntax.printer import to_text
from .versions import LANGUAGE_VERSION, SCHEMA, UPDATE, Version, named, refusal
from .syntax.nodes import (
    NOWHERE,
    Block,
    Compose,
    Expr,
    File,
    Form,
    Insert,
    Layers,
    MethodDef,
    Modify,
    Name,
    Param,
    Path,
    Require,
    RowBlock,
    Scope,
    Selection,
    Span,
    Statement,
    Tokens,
    Train,
    Use,
    rewrite,
    walk,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Columns:
    """The four columns as they were written, for tables; they carry no meaning."""

    modify: str = ""
    insert: str = ""
    form: str = ""
    compose: str = ""
    gate: str = ""


@dataclass(frozen=True, slots=True)
class Row(Remembers):
    """One row of the table. ``compose`` binds ``out``; ``gate`` (if any) binds ``g``: h + g (out - h)."""

    name: str
    sites: tuple[Path, ...]
    insert: Expr | None
    form: tuple[Statement, ...]
    compose: tuple[Statement, ...]
    gate: tuple[Statement, ...] | None = None
    layers: Selection | None = None
    tokens: tuple[Selection, ...] = ()
    columns: Columns = field(default=Columns(), compare=False)
    span: Span = field(default=NOWHERE, compare=False, repr=False)

    def __repr__(self) -> str:
        return f"<row {self.name} at {', '.join(map(str, self.sites))}>"

    @property
    def parts(self) -> tuple[Expr | Statement, ...]:
        """The insertion, where there is one, and the lines of form, gate and composition."""
        return (*([self.insert] if self.insert is not None else []), *self.form, *(self.gate or ()), *self.compose)

    @property
    @once
    def nodes(self) -> tuple[Any, ...]:
        """Everything that stands in its parts."""
        return tuple(n for part in self.parts for n in walk(part))

    @property
    @once
    def reads(self) -> frozenset[str]:
        """The names that its expressions mention."""
        return frozenset(n.id for n in self.nodes if isinstance(n, Name))


@dataclass(frozen=True, slots=True)
class Trained:
    """``train PATHS``: trained copies of base parameters, an edit like any row."""

    name: str
    paths: tuple[Path, ...]
    lr: Expr | None = None
    layers: Selection | None = None
    span: Span = field(default=NOWHERE, compare=False, repr=False)

    def __repr__(self) -> str:
        return f"<train {', '.join(map(str, self.paths))}>"


@dataclass(frozen=True, slots=True)
class Method(Remembers):
    """A resolved method: rows and trained parameters over parameters whose defaults are the bound arguments."""

    name: str
    params: tuple[Param, ...] = ()
    rows: tuple[Row, ...] = ()
    trains: tuple[Trained, ...] = ()
    requires: tuple[Require, ...] = ()
    doc: str | None = None
    source: str = field(default="", compare=False)
    span: Span = field(default=NOWHERE, compare=False, repr=False)

    def __repr__(self) -> str:
        """Short: `str` is the whole text."""
        return f"<method {self.name}({', '.join(f'{k}={v!r}' for k, v in self.arguments.items())})>"

    def torch_source(self) -> str:
        """The method as a plain PyTorch text, which needs torch alone: a module for each row (`unipelt show METHOD --torch`).

        Raises `PeltError` where an argument has no value.
        """
        return view("torch_source", "compiler.module")(self)

    def _repr_html_(self) -> str:
        return view("method_html")(self)

    def _repr_svg_(self) -> str | None:
        return view("method_svg")(self)

    def __call__(self, **arguments: Any) -> Method:
        """The method with arguments bound: ``method(r=4, act="gelu")``. Unknown names and wrong types are errors."""
        known = {p.name: p for p in self.params}
        for name in arguments:
            if name not in known:
                listed = ", ".join(f"{p.name}: {p.type}" for p in self.params) or "none"
                raise error(
                    "E0402",
                    f"`{self.name}` has no argument `{name}`",
                    help=" ".join(filter(None, [near(name, known), f"its arguments: {listed}"])),
                )
        new = tuple(
            replace(p, default=argument(p, arguments[p.name])) if p.name in arguments else p for p in self.params
        )
        _check(new)
        return replace(self, params=new)

    def __add__(self, other: Method) -> Method:
        """The union of two methods ("methods add up"): the rows of both.

        Parameters of one name with one type and value are shared; otherwise the other's is renamed ``METHOD_NAME``.
        """
        if not isinstance(other, Method):
            return NotImplemented
        params = {p.name: p for p in self.params}
        differing = {
            p.name: f"{other.name}_{p.name}" for p in other.params
            if p.name in params and (params[p.name].type, params[p.name].default) != (p.type, p.default)
        }  # fmt: skip
        other = renamed(other, differing)
        for p in other.params:
            if p.name in differing.values() and p.name in params:
                first = next(k for k, v in differing.items() if v == p.name)
                raise error("E0403", f"the argument `{first}` of `{other.name}` would be called `{p.name}` beside that of `{self.name}`, "
                            "and there is an argument of that name", help="write a method that uses both, and name its arguments there")  # fmt: skip
            params[p.name] = p
        taken = {r.name for r in self.rows} | {t.name for t in self.trains}
        clash = sorted(taken & {r.name for r in other.rows})
        if clash:
            raise error("E0404", f"both methods have a row named `{clash[0]}`", help="name one with `use … as NAME`")
        taken |= {r.name for r in other.rows}
        trains = list(self.trains)
        for t in other.trains:  # they accumulate, as with `use`
            label, n = t.name, 2
            while label in taken:
                label, n = f"{t.name}_{n}", n + 1
            taken.add(label)
            trains.append(replace(t, name=label))
        return Method(
            f"{self.name}_{other.name}", tuple(params.values()), self.rows + other.rows, tuple(trains),
            self.requires + other.requires, self.doc,
        )  # fmt: skip

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments in force, as plain Python values where they are plain."""
        return {p.name: plain(p.default) for p in self.params if p.default is not None}

    def __str__(self) -> str:
        return to_text(as_definition(self))


def renamed(method: Method, names: Mapping[str, str]) -> Method:
    """The method with parameters renamed, wherever they are read."""
    if not names:
        return method

    def change(node: Any) -> Any:
        if isinstance(node, Name) and node.id in names:
            return replace(node, id=names[node.id])
        if isinstance(node, Scope) and node.name in names:
            return replace(node, name=names[node.name])
        if isinstance(node, Path) and len(node.parts) == 1 and node.parts[0] in names:
            return replace(node, parts=(names[node.parts[0]],))
        if isinstance(node, Param) and node.name in names:
            return replace(node, name=names[node.name])
        return node

    return rewrite(method, change)


# ---------------------------------------------------------------- arguments


def _check(params: tuple[Param, ...]) -> None:
    """Whether bound arguments are what their parameters take: what can be said before there is a model."""
    problems: list[Diagnostic] = []
    parameters(params, False, problems=problems)
    if problems:
        known = {f"<{p.name}>": p for p in params}
        raise PeltError([replace(d, help=takes(known[d.span.file])) if d.code == "E0301" and not d.edits and d.span.file in known else d
                         for d in problems])  # fmt: skip


# ---------------------------------------------------------------- back to syntax


def row_clauses(row: Row) -> tuple:
    clauses: list = []
    if row.layers is not None:
        clauses.append(Layers((row.layers,)))
    clauses.append(Modify((row.sites,)))
    if row.tokens:
        clauses.append(Tokens(row.tokens))
    if row.insert is not None:
        clauses.append(Insert((row.insert,)))
    if row.form:
        clauses.append(Form((Block(row.form),)))
    clauses.append(Compose((Block(row.compose),)))
    return tuple(clauses)


def as_definition(method: Method) -> MethodDef:
    """The method as a definition that stands alone: inline bodies only."""
    if (
        len(method.rows) == 1
        and not method.trains
        and method.rows[0].gate is None
        and method.rows[0].name == method.name
    ):
        clauses = (*method.requires, *row_clauses(method.rows[0]))
        return MethodDef(method.name, method.params, None, method.doc, clauses)
    uses: list = [
        Use(RowBlock(row_clauses(r)), r.name, Block(r.gate) if r.gate is not None else None) for r in method.rows
    ]
    for t in method.trains:
        train = Train(t.paths, t.lr)
        uses.append(Use(RowBlock((Layers((t.layers,)), train) if t.layers else (train,)), t.name))
    return MethodDef(method.name, method.params, None, method.doc, (*method.requires, *uses))


def as_file(method: Method) -> File:
    return File((), (as_definition(method),))


# ---------------------------------------------------------------- JSON


@lru_cache(maxsize=1)
def _adapter():
    from pydantic import TypeAdapter

    return TypeAdapter(Method)


def to_json(method: Method) -> dict[str, Any]:
    """The IR as plain data, with the schema's name and the language's version."""
    return {"schema": SCHEMA, "language": LANGUAGE_VERSION, "method": _adapter().dump_python(method, mode="json")}


def from_json(data: str | Mapping[str, Any]) -> Method:
    """The inverse of `to_json`; another schema or broken data is a `PeltError`."""
    try:
        parsed = json.loads(data) if isinstance(data, str) else dict(data)
    except (ValueError, RecursionError) as e:
        raise error("E0410", f"the IR is not JSON: {e}") from None
    schema = parsed.get("schema") if isinstance(parsed, dict) else type(parsed).__name__
    version = named(schema, SCHEMA)
    if version is None:
        raise error("E0411", f"the IR's schema is {schema!r}, this version reads {SCHEMA!r}")
    if refusal(version, SCHEMA):
        raise error("E0411", f"the IR's schema {refusal(version, SCHEMA)}", help=UPDATE)
    language = Version.of(parsed.get("language"))
    if language is None:
        raise error("E0410", f"the IR's language is {parsed.get('language')!r}, which is no version")
    if refusal(language, LANGUAGE_VERSION):
        raise error("E0720", f"the IR's language {refusal(language, LANGUAGE_VERSION)}", help=UPDATE)
    from pydantic import ValidationError

    try:
        return _adapter().validate_python(_tuples(parsed["method"]))
    except (ValidationError, KeyError, RecursionError) as e:
        first = str(e).splitlines()[0]
        raise error("E0410", f"the IR does not fit its schema: {first}") from None


def _tuples(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(_tuples(v) for v in value)
    if isinstance(value, dict):
        return {k: _tuples(v) for k, v in value.items()}
    return value


def json_schema() -> dict[str, Any]:
    """The published schema of the IR."""
    schema = _adapter().json_schema()
    return {"$id": SCHEMA, **schema}
