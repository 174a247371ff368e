"""Syntax trees to text, in the canonical form: two blanks a level, one clause a line, as few parentheses as can be.

`parse(to_text(x)) == canonical(x)`: the slots of a method are printed in the order layers, modify, insert, form,
compose. All else keeps its order, so `canonical(x) == x` for a text that has the slots in that order.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from . import nodes as S
from ..report.diagnostics import error

# How tightly an expression binds; an operand looser than its place asks for gets parentheses.
CHOOSE, COMPARE, SUM, PRODUCT, UNARY, POWER, POSTFIX, ATOM = range(8)
_LEVEL = {"+": SUM, "-": SUM, "*": PRODUCT, "/": PRODUCT, "@": PRODUCT, "**": POWER}
_SLOTS = ("layers", "modify", "insert", "form", "compose")
_SELECTION_WORDS = ("all", "first", "last", "every", "since", "inserted")


@dataclass(frozen=True, slots=True)
class Comment:
    """A comment, or with an empty text a blank line. Only in trees made for printing (`format`)."""

    text: str
    trailing: bool = False  # behind what stands before it, on the same line
    span: S.Span = field(default=S.NOWHERE, compare=False, repr=False)
    kind: str = "comment"


def to_text(node: Any) -> str:
    """A file, definition, clause, statement, block or expression as text; a file ends with a newline."""
    return as_it_stands(canonical(node) if isinstance(node, _ORDERED) else node)


def as_it_stands(node: Any) -> str:
    """The text of a node with its slots in the order in which they are."""
    kind = type(node)
    if kind is S.File:
        return _file(node)
    if kind in _DEFINITIONS:
        return _DEFINITIONS[kind](node)
    if kind in _CLAUSES:
        return _CLAUSES[kind](node)
    if kind in _PARTS:
        return _PARTS[kind](node)
    return expression(node)


def canonical(node: Any) -> Any:
    """The tree with the slots of every method and row in canonical order, each in a place where a slot stood."""

    def change(n: Any) -> Any:
        if isinstance(n, (S.MethodDef, S.RowBlock)):
            return replace(n, clauses=_ordered(n.clauses))
        if isinstance(n, S.Number) and repr(n.value).startswith("-"):
            return S.Negative(replace(n, value=-n.value), n.span)  # the language has no negative literals
        return replace(n, overrides=_ordered(n.overrides)) if isinstance(n, S.Use) else n

    return S.rewrite(node, change)


#: What may hold the slots of a row.
_ORDERED = (S.File, S.MethodDef, S.RowBlock, S.Use)


def _file(node: S.File) -> str:
    parts = ["\n".join(f"import {_string(i.path)}" for i in node.imports)] if node.imports else []
    if any(isinstance(d, Comment) for d in node.definitions):  # laid out: blank lines are in the tree
        parts.append("\n".join(_lines(node.definitions)))
    else:
        parts += [as_it_stands(d) for d in node.definitions]
    return "\n\n".join(parts) + "\n" if parts else ""


# ---------------------------------------------------------------- expressions


class Style:
    """How an expression is spelled: a method for each kind of node gives its text and how tightly it binds.

    This is the language's own spelling; `write.formula` has those of mathematics.
    """

    def text(self, node: Any, least: int = CHOOSE) -> str:
        """The text of an expression in a place that asks for something that binds at least as tightly as ``least``."""
        spelled = getattr(self, getattr(node, "kind", ""), None)
        if spelled is None:
            raise TypeError(f"not a node of the syntax tree: {type(node).__name__}")
        text, level = spelled(node)
        return text if level >= least else self.group(text)

    def group(self, text: str) -> str:
        return f"({text})"

    def number(self, e: S.Number) -> tuple[str, int]:
        if isinstance(e.value, float) and not math.isfinite(e.value):
            raise error("E0130", f"the number {e.value} cannot be written", e.span)
        text = repr(e.value) + ("%" if e.percent else "")
        return text, UNARY if text.startswith("-") else ATOM

    def string(self, e: S.String) -> tuple[str, int]:
        return _string(e.value), ATOM

    def name(self, e: S.Name) -> tuple[str, int]:
        return e.id, ATOM

    def attr(self, e: S.Attr) -> tuple[str, int]:
        return f"{self.text(e.value, POSTFIX)}.{e.name}", POSTFIX

    def apply(self, e: S.Apply) -> tuple[str, int]:
        return f"{self.text(e.function, POSTFIX)}({_arguments(e.args)})", POSTFIX

    def index(self, e: S.Index) -> tuple[str, int]:
        return f"{self.text(e.value, POSTFIX)}[{', '.join(_item(i) for i in e.items)}]", POSTFIX

    def negative(self, e: S.Negative) -> tuple[str, int]:
        return f"-{self.text(e.value, UNARY)}", UNARY

    def binary(self, e: S.Binary) -> tuple[str, int]:
        level = _LEVEL[e.op]
        left, right = (POSTFIX, UNARY) if e.op == "**" else (level, level + 1)
        return f"{self.text(e.left, left)}{self.sign(e.op)}{self.text(e.right, right)}", level

    def compare(self, e: S.Compare) -> tuple[str, int]:
        return f"{self.text(e.left, SUM)}{self.sign(e.op)}{self.text(e.right, SUM)}", COMPARE

    def sign(self, op: str) -> str:
        """An operator with the room around it."""
        return f" {op} "

    def choose(self, e: S.Choose) -> tuple[str, int]:
        parts = self.text(e.then, COMPARE), self.text(e.test, COMPARE), self.text(e.other)
        return f"{parts[0]}{self.word('if')}{parts[1]}{self.word('else')}{parts[2]}", CHOOSE

    def then(self, e: S.Then) -> tuple[str, int]:
        return f"{self.text(e.first)}{self.word('then')}{self.text(e.next)}", CHOOSE

    def word(self, word: str) -> str:
        return f" {word} "

    def list(self, e: S.ListOf) -> tuple[str, int]:
        return f"[{_list(e.items)}]", ATOM


_PELT = Style()
expression = _PELT.text


def _string(value: str) -> str:
    if '"' in value or "\n" in value or "\0" in value:
        raise error("E0130", "a string with a quote or a line end cannot be written")
    return f'"{value}"'


def _list(items: Iterable[Any]) -> str:
    return ", ".join(expression(i) for i in items)


def _arguments(args: Sequence[S.Arg]) -> str:
    return ", ".join((f"{a.name} = " if a.name else "") + expression(a.value) for a in args)


def _item(node: Any) -> str:
    if not isinstance(node, S.Slice):
        return expression(node)
    low = "" if node.low is None else expression(node.low) + " "
    high = "" if node.high is None else " " + expression(node.high)
    return f"{low}:{high}"


def _call(node: S.Apply) -> str:
    """A call where a definition is named: without arguments the brackets may be missing."""
    return expression(node) if node.args else expression(node.function)


def _selection(node: S.Selection) -> str:
    if node.word == "range":
        low, high = node.values
        text = expression(low)
        # `first .. 4` would begin like the selection `first 4`.
        leftmost = text.split(" ", 1)[0]
        if any(leftmost == w or leftmost.startswith((w + ".", w + "(", w + "[")) for w in _SELECTION_WORDS):
            text = f"({text})"
        return f"{text} .. {expression(high)}"
    return " ".join([node.word, *(expression(v) for v in node.values)])


# ---------------------------------------------------------------- statements


def _origin(node: S.Tensor) -> str:
    return ("= " if node.exact else "~ ") + expression(node.start)


def _tail(node: S.Tensor) -> str:
    parts = []
    if node.per:
        parts.append("per " + ", ".join(_scope(s) for s in node.per))
    if node.lr is not None:
        parts.append("lr " + expression(node.lr))
    return " ".join(parts)


def _scope(node: S.Scope) -> str:
    return node.name if node.argument is None else f"{node.name}({expression(node.argument)})"


def _tensors(nodes: Sequence[S.Tensor]) -> list[str]:
    """Declarations below each other, in columns: name, sizes, start, scope."""
    rows = [(f"{'frozen ' if n.frozen else ''}{n.name}:", f"[{_list(n.shape)}]", _origin(n), _tail(n)) for n in nodes]
    names = max(len(r[0]) for r in rows)
    shapes = max(len(r[1]) for r in rows)
    starts = max((len(r[2]) for r in rows if r[3]), default=0)
    return [f"{a:{names}} {b:{shapes}} {c:{starts if d else 0}} {d}".rstrip() for a, b, c, d in rows]


def _input(node: S.Input) -> str:
    return f"input {node.name}: {_call(node.index) if node.index is not None else f'[{_list(node.shape)}]'}"


def _later(node: S.Later) -> str:
    if node.word == "carry":
        first, then = node.values
        return f"carry {node.names[0]} = {expression(first)} then {expression(then)}"
    if node.word == "penalty":
        return f"penalty {expression(node.values[0])}"
    return f"after step {_braces(node.body)}"


def _require(node: S.Require) -> str:
    return f"require {expression(node.condition)}" + (f", {_string(node.message)}" if node.message is not None else "")


# ---------------------------------------------------------------- clauses


def _lines(nodes: Sequence[Any]) -> list[str]:
    """The text of definitions, clauses or statements: tensors that follow each other in columns, slots too, and the
    comments behind lines that follow each other below each other."""
    trailing = {i - 1: n.text for i, n in enumerate(nodes) if isinstance(n, Comment) and n.trailing}
    kept = [(i, n) for i, n in enumerate(nodes) if not (isinstance(n, Comment) and n.trailing)]
    width = max((len(_word(n)) for _, n in kept if _word(n)), default=0)
    lines: list[tuple[str, str]] = []  # text and the comment behind it
    run: list[tuple[int, S.Tensor]] = []
    for i, node in [*kept, (-1, None)]:
        if isinstance(node, S.Tensor):
            run.append((i, node))
            continue
        if run:
            lines += [(text, trailing.get(k, "")) for (k, _), text in zip(run, _tensors([n for _, n in run]))]
            run = []
        if node is not None:
            text = as_it_stands(node)
            word = _word(node)
            if word and width > len(word):
                text = f"{word:{width}}{text[len(word) :]}"
            lines.append((text, trailing.get(i, "")))
    return _commented(lines)


def _word(node: Any) -> str:
    """The word of a slot that stands on one line with what follows it."""
    if getattr(node, "kind", "") not in (*_SLOTS, "train") or any(
        isinstance(a, S.Block) for a in getattr(node, "alternatives", ())
    ):
        return ""
    return node.kind


def _commented(lines: list[tuple[str, str]]) -> list[str]:
    out: list[str] = []
    start = 0
    while start < len(lines):
        end = start
        while end < len(lines) and lines[end][1]:
            end += 1
        column = max((len(text.rsplit("\n", 1)[-1]) for text, _ in lines[start:end]), default=0)
        for text, comment in lines[start:end]:
            out.append(f"{text}{' ' * (column - len(text.rsplit(chr(10), 1)[-1]))}  {comment}")
        if end < len(lines):
            out.append(lines[end][0])
        start = end + 1
    return out


def _braces(nodes: Sequence[Any], doc: str | None = None) -> str:
    lines = ([_doc(doc)] if doc is not None else []) + _lines(nodes)
    if not lines:
        return "{}"
    return "{\n" + "\n".join(_indented(line) for line in lines) + "\n}"


def _indented(text: str) -> str:
    return "\n".join("  " + line if line else line for line in text.split("\n"))


def _doc(doc: str) -> str:
    if '"""' in doc or "\0" in doc:
        raise error("E0130", "a docstring with three quotes cannot be written")
    # A first line that is itself indented, or a last quote, must keep its distance from the quotes.
    head = "\n" if doc[:1].isspace() else ""
    tail = "\n" if "\n" in doc or head or doc.endswith('"') else ""
    return f'"""{head}{doc}{tail}"""'


def _alternatives(word: str, values: Iterable[Any], show: Callable[[Any], str]) -> str:
    return f"{word} " + " | ".join(show(v) for v in values)


def _paths(paths: Iterable[S.Path]) -> str:
    return ", ".join(str(p) for p in paths)


def _block_or(show: Callable[[Any], str]) -> Callable[[Any], str]:
    return lambda v: _braces(v.body) if isinstance(v, S.Block) else show(v)


def _train(node: S.Train) -> str:
    return f"train {_paths(node.paths)}" + (f" lr {expression(node.lr)}" if node.lr is not None else "")


def _use(node: S.Use) -> str:
    target = node.target
    parts = ["use", _braces(target.clauses) if isinstance(target, S.RowBlock) else _call(target)]
    if node.name is not None:
        parts.append(f"as {node.name}")
    if node.gate is not None:
        parts.append("gated by " + _block_or(_call)(node.gate))
    if node.overrides:
        parts.append(_braces(node.overrides))
    return " ".join(parts)


def _ordered(clauses: tuple[Any, ...]) -> tuple[Any, ...]:
    places = [i for i, c in enumerate(clauses) if c.kind in _SLOTS]
    slots = sorted((clauses[i] for i in places), key=lambda c: _SLOTS.index(c.kind))
    result = list(clauses)
    for i, slot in zip(places, slots):
        result[i] = slot
    return tuple(result)


# ---------------------------------------------------------------- definitions


def _params(params: Sequence[S.Param], choices: Sequence[S.Choices] = ()) -> str:
    values = {c.place: f" in {{{_list(c.values)}}}" for c in choices}
    return f"({', '.join(_param(p, values.get(i, '')) for i, p in enumerate(params))})" if params else ""


def _param(node: S.Param, choices: str = "") -> str:
    default = f" = {expression(node.default)}" if node.default is not None else ""
    return f"{node.name}: {node.type}{choices}{default}"


def _method(node: S.MethodDef) -> str:
    base = f" from {_call(node.base)}" if node.base is not None else ""
    return f"method {node.name}{_params(node.params, node.choices)}{base} {_braces(node.clauses, node.doc)}"


def _body_def(node: S.BodyDef) -> str:
    head = f"{node.what} {node.name}{_params(node.params)}"
    match node:
        case S.BodyDef(what="compose", doc=None, body=(S.Let(names=("out",), value=value),)):
            return f"{head} = {expression(value)}"
    return f"{head} {_braces(node.body, node.doc)}"


def _anatomy(node: S.AnatomyDef) -> str:
    width = max((len(e[0]) for e in node.entries if isinstance(e, tuple)), default=0) + 1
    doc = [_doc(node.doc)] if node.doc is not None else []
    entries: list[tuple[str, str]] = []
    for e in node.entries:
        if isinstance(e, tuple):
            entries.append((f"{e[0] + ':':{width}} {_string(e[1])}", ""))
        elif e.trailing and entries:
            entries[-1] = (entries[-1][0], e.text)
        else:
            entries.append((e.text, ""))
    lines = doc + _commented(entries)
    body = "{\n" + "\n".join(_indented(line) for line in lines) + "\n}" if lines else "{}"
    return f"anatomy {node.name} for {', '.join(node.models)} {body}"


_DEFINITIONS: dict[type, Callable[[Any], str]] = {S.MethodDef: _method, S.BodyDef: _body_def, S.AnatomyDef: _anatomy}
_CLAUSES: dict[type, Callable[[Any], str]] = {
    S.Modify: lambda n: _alternatives("modify", n.alternatives, _paths),
    S.Insert: lambda n: _alternatives("insert", n.alternatives, expression),
    S.Form: lambda n: _alternatives("form", n.alternatives, _block_or(_call)),
    S.Compose: lambda n: _alternatives("compose", n.alternatives, _block_or(expression)),
    S.Layers: lambda n: _alternatives("layers", n.alternatives, _selection),
    S.Tokens: lambda n: "tokens " + ", ".join(_selection(s) for s in n.selections),
    S.Train: _train,
    S.Use: _use,
    S.Tensor: lambda n: _tensors([n])[0],
    S.Let: lambda n: f"{', '.join(n.names)} = {expression(n.value)}",
    S.Axis: lambda n: f"axis {n.name} = {expression(n.size)}",
    S.Require: _require,
    S.Input: _input,
    S.Later: _later,
    Comment: lambda n: n.text,
}
_PARTS: dict[type, Callable[[Any], str]] = {
    S.Block: lambda n: _braces(n.body),
    S.RowBlock: lambda n: _braces(n.clauses),
    S.Path: str,
    S.Param: _param,
    S.Scope: _scope,
    S.Selection: _selection,
    S.Slice: _item,
    S.Arg: lambda n: _arguments((n,)),
    S.Import: lambda n: f"import {_string(n.path)}",
}
