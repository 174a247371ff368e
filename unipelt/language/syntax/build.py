"""Lark's tree to the syntax tree, after parsing. What the grammar cannot say is checked here, with its place:
reserved words as names, brackets on another line than what they apply to, numbers out of bounds, endless chains.

Not done here: anything that needs to know what a name means.
"""

from __future__ import annotations

import inspect
import re
from dataclasses import replace
from typing import Any, cast

from . import nodes as S
from ..report.diagnostics import Diagnostic, put

MAX_DEPTH = 100
MAX_DIGITS = 20

# Words that the lexer may read as keywords where a tensor or a let can begin.
RESERVED = frozenset(
    [
        "import",
        "method",
        "form",
        "gate",
        "compose",
        "anatomy",
        "modify",
        "insert",
        "layers",
        "tokens",
        "train",
        "use",
        "as",
        "gated",
        "axis",
        "input",
        "carry",
        "then",
        "after",
        "penalty",
        "require",
        "frozen",
        "per",
        "lr",
        "if",
        "else",
    ]
)
_BINARY = {"add": "+", "sub": "-", "mul": "*", "div": "/", "matmul": "@", "pow": "**"}
_NESTING = frozenset({*_BINARY, "compare", "choose", "neg", "attr", "apply", "index", "list"})
_BLANK = re.compile(r"(?:\s|#[^\n]*)*")


def docstring(text: str) -> str | None:
    """Dedented, without trailing blanks; nothing for an empty one."""
    lines = [line.rstrip() for line in inspect.cleandoc(text).split("\n")]
    return "\n".join(lines).strip("\n") or None


def _next(e: S.Expr) -> S.Expr:
    """The number behind another."""
    if isinstance(e, S.Number) and isinstance(e.value, int) and not e.percent:
        return S.Number(e.value + 1, span=e.span)
    return S.Binary("+", e, S.Number(1, span=e.span), e.span)


class Transform:
    """Builds syntax nodes of one parsed text that begins at ``offset`` of its file; mistakes go to ``errors``."""

    def __init__(self, text: str, file: str, offset: int, errors: list[Diagnostic]):
        self.text, self.name, self.offset, self.errors = text, file, offset, errors

    # ------------------------------------------------------------ places and mistakes

    def span(self, node: Any) -> S.Span:
        """The place of a token or a tree; brackets around an expression are not part of it."""
        meta = getattr(node, "meta", node)
        if getattr(meta, "start_pos", None) is None:
            return S.Span(self.name, self.offset, self.offset)
        return S.Span(self.name, self.offset + meta.start_pos, self.offset + meta.end_pos)

    def wrong(self, code: str, message: str, span: S.Span, **more: Any) -> None:
        self.errors.append(Diagnostic(code, message, span, **more))

    def new_name(self, token: Any, what: str) -> str:
        if token.value in RESERVED:
            self.wrong(
                "E0105",
                f"`{token.value}` is a word of the language and cannot name {what}",
                self.span(token),
                label="reserved",
                help=f"choose another name, for example `{token.value}_`",
            )
        return str(token.value)

    def same_line(self, before: Any, word: str) -> None:
        """The bracket behind ``before`` must stand on its line."""
        meta = getattr(before, "meta", before)
        end = getattr(meta, "container_end_pos", meta.end_pos)
        blank = _BLANK.match(self.text, end)
        if blank and "\n" in blank.group():
            place = S.Span(self.name, self.offset + blank.end(), self.offset + blank.end() + 1)
            self.wrong(
                "E0106",
                f"`{self.text[blank.end() : blank.end() + 1]}` is on another line than what it applies to",
                place,
                label=f"this {word} must begin on the line above",
                help="put the bracket on the line of the name; the rest may go on in the next lines",
                edits=put("", S.Span(self.name, self.offset + end, self.offset + blank.end())),
            )

    def shallow(self, tree: Any) -> bool:
        """Whether expressions are no deeper than allowed; must be asked before anything recurses."""
        todo = [(tree, 0)]
        while todo:
            node, depth = todo.pop()
            if depth > MAX_DEPTH:
                self.wrong(
                    "E0109",
                    f"an expression is a chain of more than {MAX_DEPTH} operations",
                    self.span(node),
                    label="too long from here",
                    help="name parts of the expression with `name = …`",
                )
                return False
            if hasattr(node, "children"):
                deeper = depth + (node.data in _NESTING)
                todo += [(child, deeper) for child in node.children]
        return True

    # ------------------------------------------------------------ files and definitions

    def file(self, tree: Any) -> S.File:
        imports, definitions = [], []
        for node in tree.children:
            if node.data == "import_":
                imports.append(S.Import(node.children[0].value[1:-1], self.span(node)))
            elif self.shallow(node):
                definitions.append(getattr(self, f"_{node.data}")(node))
        return S.File(tuple(imports), tuple(definitions))

    def whole_expression(self, tree: Any) -> Any:
        return self.expr(tree) if self.shallow(tree) else None

    def _head(self, node: Any, what: str) -> tuple[dict[str, Any], list[Any]]:
        """Name, parameters, docstring and span of a definition, and what else it holds."""
        name, *rest = node.children
        head: dict[str, Any] = {
            "name": self.new_name(name, what),
            "span": self.span(node),
            "name_span": self.span(name),
        }
        body = []
        for part in rest:
            kind = getattr(part, "data", "")
            if kind == "params":
                head["params"] = tuple(self._param(p) for p in part.children)
                choices = tuple(c for i, p in enumerate(part.children) for c in self._choices(p, i))
                if choices and what == "a method":
                    head["choices"] = choices
                elif choices:
                    self.wrong("E0118", f"the parameter `{choices[0].name}` has alternatives, and this is {what}", choices[0].span,
                               help="only a method is a space: give the alternatives there")  # fmt: skip
            elif kind == "doc":
                head["doc"] = docstring(part.children[0].value[3:-3])
            else:
                body.append(part)
        return head, body

    def _param(self, node: Any) -> S.Param:
        name, type_, *rest = node.children
        default = [r for r in rest if getattr(r, "data", "") != "choices"]
        return S.Param(str(name), str(type_), self.expr(default[0]) if default else None, self.span(node))

    def _choices(self, node: Any, place: int) -> list[S.Choices]:
        name, _, *rest = node.children
        found = [r for r in rest if getattr(r, "data", "") == "choices"]
        return [S.Choices(str(name), tuple(self.expr(c) for c in r.children), place, self.span(r)) for r in found]

    def _method(self, node: Any) -> S.MethodDef:
        head, body = self._head(node, "a method")
        base = None
        if body and body[0].data == "base":
            base = self.call(body.pop(0).children[0])
        return S.MethodDef(base=base, clauses=self.clauses(body), **head)

    def _body_def(self, node: Any, what: Any) -> S.BodyDef:
        head, body = self._head(node, "a composition" if what == "compose" else f"a {what}")
        return S.BodyDef(what=what, body=cast("tuple[S.Statement, ...]", self.clauses(body)), **head)

    def _form_def(self, node: Any) -> S.BodyDef:
        return self._body_def(node, "form")

    def _gate_def(self, node: Any) -> S.BodyDef:
        return self._body_def(node, "gate")

    def _compose_def(self, node: Any) -> S.BodyDef:
        return self._body_def(node, "compose")

    def _compose_short(self, node: Any) -> S.BodyDef:
        head, (value,) = self._head(node, "a composition")
        return S.BodyDef(what="compose", body=(S.Let(("out",), self.expr(value), self.span(value)),), **head)

    def _anatomy(self, node: Any) -> S.AnatomyDef:
        head, body = self._head(node, "an anatomy")
        models, *entries = body
        if entries and getattr(entries[0], "type", "") == "LONGSTRING":
            head["doc"] = docstring(entries.pop(0).value[3:-3])
        pairs = tuple((str(self.path(e.children[0])), e.children[1].value[1:-1]) for e in entries)
        return S.AnatomyDef(models=tuple(str(m) for m in models.children), entries=pairs, **head)

    # ------------------------------------------------------------ clauses

    def clauses(self, nodes: list[Any]) -> tuple[Any, ...]:
        return tuple(getattr(self, f"_{node.data}")(node) for node in nodes)

    def _modify(self, node: Any) -> S.Modify:
        return S.Modify(tuple(self.paths(c) for c in node.children), self.span(node))

    def _insert(self, node: Any) -> S.Insert:
        return S.Insert(tuple(self.expr(c) for c in node.children), self.span(node))

    def _form_slot(self, node: Any) -> S.Form:
        return S.Form(tuple(self.call_or_block(c) for c in node.children), self.span(node))

    def _compose_slot(self, node: Any) -> S.Compose:
        values = tuple(self.block(c) if c.data == "block" else self.expr(c) for c in node.children)
        return S.Compose(values, self.span(node))

    def _layers(self, node: Any) -> S.Layers:
        return S.Layers(tuple(self.selection(c) for c in node.children), self.span(node))

    def _tokens(self, node: Any) -> S.Tokens:
        return S.Tokens(tuple(self.selection(c) for c in node.children), self.span(node))

    def _train(self, node: Any) -> S.Train:
        paths, *lr = node.children
        return S.Train(self.paths(paths), self.expr(lr[0].children[0]) if lr else None, self.span(node))

    def _use(self, node: Any) -> S.Use:
        target, *rest = node.children
        more: dict[str, Any] = {}
        for part in rest:
            if part.data == "name_as":
                more["name"] = str(part.children[0])
            elif part.data == "gated":
                more["gate"] = self.call_or_block(part.children[0])
            else:
                more["overrides"] = self.clauses(part.children)
        if target.data == "row":
            row: S.Apply | S.RowBlock = S.RowBlock(self.clauses(target.children), self.span(target))
        else:
            row = self.call(target)
        return S.Use(row, span=self.span(node), **more)

    def selection(self, node: Any) -> S.Selection:
        values = tuple(self.expr(c) for c in node.children)
        word = node.data.removeprefix("sel_")
        if word == "one":  # short for the range that holds it alone
            return S.Selection("range", (*values, _next(values[0])), self.span(node))
        return S.Selection(word, values, self.span(node))

    def block(self, node: Any) -> S.Block:
        return S.Block(self.clauses(node.children), self.span(node))

    def call_or_block(self, node: Any) -> Any:
        return self.block(node) if node.data == "block" else self.call(node)

    def paths(self, node: Any) -> tuple[S.Path, ...]:
        return tuple(self.path(c) for c in node.children)

    def path(self, node: Any) -> S.Path:
        parts = []
        for part in node.children:
            word = part.children[0]
            if len(part.children) > 1:
                if word != "module":
                    self.wrong("E0107", f"`{word}(…)` is not a site", self.span(part), **self._dotted(part, str(word)))
                self.same_line(word, "call")
                word = "".join(part.children)
            parts.append(str(word))
        return S.Path(tuple(parts), self.span(node))

    def _dotted(self, part: Any, word: str) -> dict[str, Any]:
        """Help about `attn("q")`, which may mean `attn.q`."""
        inner = part.children[2].value[1:-1]
        if not re.fullmatch(r"[A-Za-z_]\w*", inner):
            return {"help": 'only `module("regex")` takes an argument'}
        return {
            "help": f"separate the parts of a site with dots: `{word}.{inner}`",
            "edits": put(f"{word}.{inner}", self.span(part)),
        }

    # ------------------------------------------------------------ statements

    def _tensor(self, node: Any) -> S.Tensor:
        children = list(node.children)
        frozen = getattr(children[0], "type", "") == "FROZEN"
        if frozen:
            children.pop(0)
        name, shape, start, *rest = children
        more: dict[str, Any] = {}
        for part in rest:
            if part.data == "per":
                more["per"] = tuple(self._scope(c) for c in part.children)
            else:
                more["lr"] = self.expr(part.children[0])
        return S.Tensor(
            self.new_name(name, "a tensor"),
            tuple(self.expr(c) for c in shape.children),
            self.expr(start.children[0]),
            exact=start.data == "exact",
            frozen=frozen,
            span=self.span(node),
            **more,
        )

    def _scope(self, node: Any) -> S.Scope:
        name, *argument = node.children
        if argument:
            self.same_line(name, "argument")
        return S.Scope(str(name), self.expr(argument[0]) if argument else None, self.span(node))

    def _let(self, node: Any) -> S.Let:
        names, value = node.children
        return S.Let(tuple(self.new_name(n, "a value") for n in names.children), self.expr(value), self.span(node))

    def _axis(self, node: Any) -> S.Axis:
        name, size = node.children
        return S.Axis(self.new_name(name, "an axis"), self.expr(size), self.span(node))

    def _require(self, node: Any) -> S.Require:
        condition, *message = node.children
        return S.Require(self.expr(condition), message[0].value[1:-1] if message else None, self.span(node))

    def _input(self, node: Any) -> S.Input:
        name, kind = node.children
        named = self.new_name(name, "an input")
        if kind.data == "shape":
            return S.Input(named, None, tuple(self.expr(c) for c in kind.children), span=self.span(node))
        return S.Input(named, self.call(kind), span=self.span(node))

    def _carry(self, node: Any) -> S.Later:
        name, first, then = node.children
        names = (self.new_name(name, "a carried value"),)
        return S.Later("carry", names, values=(self.expr(first), self.expr(then)), span=self.span(node))

    def _after(self, node: Any) -> S.Later:
        lets = cast("tuple[S.Let, ...]", self.clauses(node.children))
        return S.Later("after step", body=lets, span=self.span(node))

    def _penalty(self, node: Any) -> S.Later:
        return S.Later("penalty", values=(self.expr(node.children[0]),), span=self.span(node))

    # ------------------------------------------------------------ expressions

    def call(self, node: Any) -> S.Apply:
        name, *arguments = node.children
        if arguments:
            self.same_line(name, "call")
        return S.Apply(S.Name(str(name), self.span(name)), self.arguments(arguments), self.span(node))

    def arguments(self, nodes: list[Any]) -> tuple[S.Arg, ...]:
        result = []
        for arg in nodes[0].children if nodes else ():
            *name, value = arg.children
            result.append(S.Arg(self.expr(value), str(name[0]) if name else None, self.span(arg)))
        return tuple(result)

    def expr(self, node: Any) -> Any:
        kind, children, span = node.data, node.children, self.span(node)
        if kind == "name":
            return S.Name(str(children[0]), span)
        if kind == "number":
            return self.number(children[0], span)
        if kind == "string":
            return S.String(children[0].value[1:-1], span)
        if kind in _BINARY:
            return S.Binary(cast(Any, _BINARY[kind]), self.expr(children[0]), self.expr(children[1]), span)
        if kind == "neg":
            return S.Negative(self.expr(children[0]), span)
        if kind == "compare":
            left, op, right = children
            return S.Compare(op.value, self.expr(left), self.expr(right), span)
        if kind == "choose":
            return S.Choose(self.expr(children[0]), self.expr(children[1]), self.expr(children[2]), span)
        if kind == "list":
            return S.ListOf(tuple(self.expr(c) for c in children), span)
        if kind == "attr":
            return S.Attr(self.expr(children[0]), str(children[1]), span)
        if kind == "apply":
            return self._apply(children[0], children[1], span)
        if kind == "index":
            value, *items = children
            self.same_line(value, "index")
            return S.Index(self.expr(value), tuple(self.item(c) for c in items), span)
        raise AssertionError(f"the grammar has a rule that the transform does not know: {kind}")

    def _apply(self, function: Any, arguments: Any, span: S.Span) -> S.Apply:
        self.same_line(function, "call")
        callee = self.expr(function)
        if S.dotted(callee) is None:
            self.wrong("E0115", "only a name can be called", self.span(function), help="use `*` or `@` for a product")
        return S.Apply(callee, self.arguments([arguments]), span)

    def item(self, node: Any) -> Any:
        if node.data != "slice":
            return self.expr(node)
        colon = next(i for i, c in enumerate(node.children) if getattr(c, "type", "") == "COLON")
        low, high = node.children[:colon], node.children[colon + 1 :]
        return S.Slice(self.expr(low[0]) if low else None, self.expr(high[0]) if high else None, self.span(node))

    def _zero_in_front(self, text: str, span: S.Span) -> None:
        """`0,02` is a decimal number with a comma; any other zero in front is too much."""
        comma = re.search(r"(?<![\d.])\d+,$", self.text[: span.start - self.offset])
        meant = f"{comma[0][:-1]}.{text}" if comma else text.lstrip("0") or "0"
        place = replace(span, start=self.offset + comma.start()) if comma else span
        why = ": a comma separates arguments" if comma else ""
        self.wrong(
            "E0112",
            f"the number `{text}` begins with a zero",
            span,
            help=f"write {meant}{why}",
            edits=put(meant, place),
        )

    def number(self, token: Any, span: S.Span) -> S.Number:
        text = token.value.removesuffix("%")
        percent = text != token.value
        digits = "".join(c for c in text[: 4 * MAX_DIGITS] if c.isdigit()).lstrip("0")  # 0.000123… has few
        if len(digits) > MAX_DIGITS or len(text) > 2 * MAX_DIGITS:
            self.wrong("E0110", f"a number has more than {MAX_DIGITS} digits", span, help="write it with an exponent")
            return S.Number(0, percent, span)
        if text[:2].isdigit() and text[0] == "0" and len(text) > 1:
            self._zero_in_front(token.value, span)
            return S.Number(0, percent, span)
        value = int(text) if text.isdigit() else float(text)
        if value == float("inf"):
            self.wrong("E0110", "a number is larger than any float", span, help="write one of at most about 1.8e308")
            return S.Number(0, percent, span)
        return S.Number(value, percent, span)
