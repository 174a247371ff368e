"""The canonical layout of a `.pelt` text, comments and docstrings kept: what `unipelt fmt` writes.

Comments are put into the syntax tree as nodes, each in the list of clauses, statements or definitions in which it
stands, and the tree is printed. Non-goals: reordering anything, breaking long lines.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

from . import nodes as S
from .parser import parse
from .printer import Comment, as_it_stands
from ..report.texts import normalised

_PIECES = re.compile(r'"""[\s\S]*?"""|"[^"\n]*"|(?P<comment>#[^\n]*)|(?P<blank>\n[ \t\f]*(?=\n))')
#: The lists in which comments may stand.
_LISTS = ("definitions", "clauses", "overrides", "body")


def format_text(text: str, file: str = "<text>") -> str:
    """The text in canonical layout: `parse` of it is `parse` of the text, and it is its own layout. Raises `PeltError`."""
    text = normalised(text)
    tree = parse(text, file)
    notes = _notes(text)
    if not notes and not tree.definitions and not tree.imports:
        return ""
    laid = _File(text).file(tree, notes)
    return as_it_stands(laid)


def _notes(text: str) -> list[Comment]:
    """Comments and blank lines in order, with their places."""
    out: list[Comment] = []
    for m in _PIECES.finditer(text):
        span = S.Span("", m.start(), m.end())
        if m["comment"]:
            before = text[text.rfind("\n", 0, m.start()) + 1 : m.start()]
            out.append(Comment(m["comment"].rstrip(), bool(before.strip()), span))
        elif m["blank"] is not None:
            out.append(Comment("", False, S.Span("", m.start() + 1, m.start() + 1)))
    return out


class _File:
    """Puts notes into a tree, innermost list first."""

    def __init__(self, text: str):
        self.text = text

    def file(self, tree: S.File, notes: list[Comment]) -> S.File:
        definitions = self.laid(tree.definitions, notes, top=True)
        imports = tuple(tree.imports)
        return S.File(imports, definitions)

    def laid(self, nodes: Sequence[Any], notes: list[Comment], top: bool = False) -> tuple[Any, ...]:
        """The nodes with the notes of their list between them, and those inside a node in that node."""
        out: list[Any] = []
        left = list(notes)
        for node in nodes:
            start, end = node.span.start, node.span.end
            before = [n for n in left if n.span.start < start]
            inside = [n for n in left if start <= n.span.start < end]
            left = [n for n in left if n.span.start >= end]
            out += self.between(before, out)
            node, out_of_place = self.node(node, inside)
            out += out_of_place
            real = [n for n in out if not isinstance(n, Comment)]
            stands_on = out and isinstance(out[-1], Comment) and not out[-1].trailing
            if top and real and not stands_on and not self.together(real[-1], node):
                out.append(Comment(""))
            out.append(node)
        out += self.between(left, out)
        while out and isinstance(out[-1], Comment) and not out[-1].text:
            out.pop()
        return tuple(out)

    def between(self, notes: list[Comment], out: list[Any]) -> list[Comment]:
        """Notes between two nodes: no blank line at the beginning, never two in a row."""
        found: list[Comment] = []
        for n in notes:
            last = found[-1] if found else out[-1] if out else None
            if not n.text and (last is None or (isinstance(last, Comment) and not last.text)):
                continue
            trailing = n.trailing and not found and out and not isinstance(out[-1], Comment)
            if n.trailing and not trailing and last is not None and isinstance(last, Comment) and last.trailing:
                trailing = False
            found.append(replace(n, trailing=bool(trailing)))
        return found

    def together(self, a: Any, b: Any) -> bool:
        """One-liners that stood together stay together."""
        return "\n" not in as_it_stands(a) and "\n" not in as_it_stands(b)

    def node(self, node: Any, notes: list[Comment]) -> tuple[Any, list[Comment]]:
        """The node with its inner notes in its lists; those with no list to stand in are put before it."""
        if not notes:
            return node, []
        if isinstance(node, S.AnatomyDef):
            return self.anatomy(node, notes)
        changes: dict[str, Any] = {}
        left = notes
        for holder, name, bounds in self.lists(node):
            mine = [n for n in left if bounds[0] <= n.span.start < bounds[1]]
            if not mine:
                continue
            left = [n for n in left if n not in mine]
            inner = self.laid(getattr(holder, name), mine)
            if holder is node:
                changes[name] = inner
            else:
                node = _put(node, holder, replace(holder, **{name: inner}))
        node = replace(node, **changes) if changes else node
        return node, [replace(n, trailing=False) for n in left if n.text]

    def lists(self, node: Any) -> list[tuple[Any, str, tuple[int, int]]]:
        """(holder, field, place) of the lists of a node that stand between braces."""
        out: list[tuple[Any, str, tuple[int, int]]] = []
        for holder in (node, *_blocks(node)):
            for name in _LISTS:
                if any(f.name == name for f in fields(holder)):
                    place = self.braces(holder, name)
                    if place is not None:
                        out.append((holder, name, place))
        return out

    def braces(self, holder: Any, name: str) -> tuple[int, int] | None:
        """Where the list's braces stand in the text."""
        nodes = getattr(holder, name)
        start, end = holder.span.start, holder.span.end
        if name == "overrides":
            if not nodes:
                return None
            start = self.text.rfind("{", start, nodes[0].span.start)
        else:
            behind = max((c.span.end for c in getattr(holder, "choices", ())), default=start)
            at = self.first_brace(behind, end)
            if at is None:
                return None
            start = at
            if isinstance(holder, S.Use):
                return None
        return start + 1, end

    def first_brace(self, start: int, end: int) -> int | None:
        for m in re.finditer(r'"""[\s\S]*?"""|"[^"\n]*"|#[^\n]*|\{', self.text[start:end]):
            if m.group() == "{":
                return start + m.start()
        return None

    def anatomy(self, node: S.AnatomyDef, notes: list[Comment]) -> tuple[Any, list[Comment]]:
        """Entries have no places of their own: they are found again, in order."""
        start = self.first_brace(node.span.start, node.span.end)
        assert start is not None
        at = start + 1
        out: list[Any] = []
        outside = [replace(n, trailing=False) for n in notes if n.span.start < start and n.text]
        left = [n for n in notes if n.span.start > start]
        for path, value in node.entries:
            dotted = r"\s*\.\s*".join(map(re.escape, path.split(".")))
            found = re.compile(dotted + r'\s*:\s*"' + re.escape(value) + '"').search(self.text, at)
            begin, finish = (found.start(), found.end()) if found else (at, at)
            out += self.between([n for n in left if n.span.start < begin], out)
            left = [n for n in left if n.span.start >= begin]
            out.append((path, value))
            at = finish
        out += self.between(left, out)
        while out and isinstance(out[-1], Comment) and not out[-1].text:
            out.pop()
        return replace(node, entries=tuple(out)), outside


def _blocks(node: Any) -> list[Any]:
    """The inline blocks directly in a clause: of a form, composition, gate or row."""
    out: list[Any] = [a for a in getattr(node, "alternatives", ()) if isinstance(a, S.Block)]
    for name in ("gate", "target"):
        part = getattr(node, name, None)
        if isinstance(part, (S.Block, S.RowBlock)):
            out.append(part)
    return out


def _put(node: Any, old: Any, new: Any) -> Any:
    """The node with one of its blocks replaced."""
    for name in ("gate", "target"):
        if getattr(node, name, None) is old:
            return replace(node, **{name: new})
    return replace(node, alternatives=tuple(new if a is old else a for a in node.alternatives))
