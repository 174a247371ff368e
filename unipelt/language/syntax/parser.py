"""Text to syntax tree. `parse` reports every syntax error at once: each broken definition gives one, good ones none.

The whole text is parsed first. Only if that fails it is cut at its top-level definitions and each is parsed on its own.
Size, nesting and length are bounded before anything recurses, since a spec is untrusted text.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

from ..report import source as _source, texts as _texts
from . import nodes as S
from ..report.diagnostics import Diagnostic, TextEdit, PeltError, put
from .errors import explain
from .build import Transform

MAX_NESTING = 64
MAX_TOKENS = 25_000  # half a second; the hundred methods of the design have 11,000
MAX_ERRORS = 50

_DEFINITION = r"(?:method|gate|anatomy|form|compose)"
_SCAN = re.compile(
    # A docstring that would run over the head of a definition was never closed; its quotes then stand alone.
    rf'(?P<doc>"""(?:(?!"""|^{_DEFINITION}[ \t]+\w+[ \t]*[({{])[\s\S])*""")'
    r'|"(?!"")[^"\n]*"|\#[^\n]*'
    r"|(?P<bracket>[()\[\]{}])"
    # The head of a definition. `form f(…)` and `compose c` are slots, too: they need a `{` or `=` behind them.
    r"|(?<![\w.])(?P<head>(?:method|gate|anatomy)[ \t]+[A-Za-z_]|import(?=\s*\"(?!\"\"))"
    r"|form\s+\w+\s*(?:\([^(){}]*(?:\([^(){}]*\)[^(){}]*)*\)\s*)?\{"
    r"|compose\s+\w+\s*(?:\([^(){}]*(?:\([^(){}]*\)[^(){}]*)*\)\s*)?(?:\{|=(?!=)))",
    re.MULTILINE,
)
_TOKEN = re.compile(r'"""[\s\S]*?"""|"[^"\n]*"|#[^\n]*|\w+|[^\w\s]')


class Segment(NamedTuple):
    """A piece of the text that should hold one definition, and where it may be cut again if it does not parse."""

    start: int
    end: int
    cuts: tuple[int, ...] = ()


def parse(text: str | _texts.Source, file: str | None = None) -> S.File:
    """The syntax tree of a text or a source; raises `PeltError` with all its syntax errors."""
    if isinstance(text, _texts.Source):
        file = file or text.file
        text = text.text
    file = file or _texts.free_name("<text>", _texts.normalised(text))
    text = _prepare(text, file)
    deep = _too_deep(text, file)
    if not deep:
        tree, failure = _try(text, "start")
        if failure is None:
            errors: list[Diagnostic] = []
            result = Transform(text, file, 0, errors).file(tree)
            if errors:
                raise PeltError(errors[:MAX_ERRORS])
            return result
        fallback = explain(failure, text, file, 0)
    else:
        fallback = deep[0]
    raise PeltError(_errors_by_definition(text, file, deep) or [fallback])


def parse_expression(text: str, file: str = "<value>") -> S.Expr:
    """The syntax tree of one expression, as in `--set r=16`."""
    text = _prepare(text, file)
    deep = _too_deep(text, file)
    if deep:
        raise PeltError(deep[0])
    tree, failure = _try(text, "expr")
    if failure is not None:
        raise PeltError(explain(failure, text, file, 0))
    errors: list[Diagnostic] = []
    transform = Transform(text, file, 0, errors)
    result = transform.whole_expression(tree)
    if errors:
        raise PeltError(errors[:MAX_ERRORS])
    return result


def _prepare(text: str, file: str) -> str:
    source = _texts.Source(file, _texts.normalised(text))
    _source.check(source)
    _texts.remember(source)
    for count, token in enumerate(_TOKEN.finditer(source.text)):
        if count >= MAX_TOKENS:
            raise PeltError(
                Diagnostic(
                    "E0111",
                    f"the text has more than {MAX_TOKENS:,} words and signs",
                    S.Span(file, token.start(), token.end()),
                    label="the limit is here",
                    help="split it into several files",
                )
            )
    return source.text


def _try(text: str, start: str) -> tuple[Any, Any]:
    """The tree, or why there is none."""
    from lark.exceptions import UnexpectedInput

    from .tables import load

    try:
        return load().parse(text, start=start), None
    except UnexpectedInput as e:
        return None, e


def _too_deep(text: str, file: str) -> list[Diagnostic]:
    """An error for each place at which brackets are nested deeper than allowed."""
    found, depth = [], 0
    for match in _SCAN.finditer(text):
        before = depth
        # The head of a definition is one match, brackets and all.
        for sign in match["bracket"] or match["head"] or "":
            depth = depth + 1 if sign in "([{" else max(0, depth - 1) if sign in ")]}" else depth
        if before <= MAX_NESTING < depth:
            found.append(
                Diagnostic(
                    "E0108",
                    f"brackets are nested deeper than {MAX_NESTING}",
                    S.Span(file, match.end() - 1, match.end()),
                    label="one too deep",
                    help="leave out those that change nothing, or name parts of the expression with `name = …`",
                )
            )
    return found


def _segments(text: str) -> list[Segment]:
    """The text cut at its top-level definitions: after each closed one, and before each head outside of braces."""
    result: list[Segment] = []
    start, depth = 0, 0
    cuts: list[int] = []

    def close(end: int) -> None:
        nonlocal start, cuts
        if text[start:end].strip():
            result.append(Segment(start, end, tuple(cuts)))
        start, cuts = end, []

    for match in _SCAN.finditer(text):
        at = match.start()
        if match["head"]:
            if depth == 0 and (match["head"] == "import" or not text[text.rfind("\n", 0, at) + 1 : at].strip()):
                close(at)
            elif at == 0 or text[at - 1] == "\n":
                cuts.append(at)
            depth += match["head"].count("{")
        elif match["bracket"] == "{":
            depth += 1
        elif match["bracket"] == "}" and depth:
            depth -= 1
            if depth == 0:
                close(match.end())
    close(len(text))
    return result


def _moved_up(text: str, file: str, span: S.Span) -> tuple[TextEdit, ...]:
    return (*put("", span), *put(text[span.start : span.end] + "\n", S.Span(file, 0, 0)))


def _errors_by_definition(text: str, file: str, deep: list[Diagnostic]) -> list[Diagnostic]:
    """One syntax error for each broken definition, and what else is wrong in those that parse."""
    errors: list[Diagnostic] = []
    todo = _segments(text)[::-1]
    seen_definition = False
    while todo and len(errors) < MAX_ERRORS:
        segment = todo.pop()
        piece = text[segment.start : segment.end]
        too_deep = [d for d in deep if segment.start <= d.span.start < segment.end]
        if too_deep and not segment.cuts:
            errors.append(too_deep[0])
            seen_definition = True
            continue
        tree, failure = _try(piece, "start") if not too_deep else (None, True)
        if failure is not None:
            if segment.cuts:  # a brace that is never closed hides the definitions behind it
                bounds = [segment.start, *segment.cuts, segment.end]
                todo += [Segment(a, b) for a, b in zip(bounds, bounds[1:])][::-1]
                continue
            errors.append(explain(failure, piece, file, segment.start))
            seen_definition = True
            continue
        found = Transform(piece, file, segment.start, errors).file(tree)
        if found.imports and seen_definition:
            errors.append(
                Diagnostic(
                    "E0117",
                    "an import comes after a definition",
                    found.imports[0].span,
                    help="put imports at the top of the file",
                    edits=_moved_up(text, file, found.imports[0].span),
                )
            )
        seen_definition = seen_definition or bool(found.definitions)
    return errors[:MAX_ERRORS]
