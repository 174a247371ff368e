"""Diagnostics as text, with the lines they speak of, and as JSON.

Whatever comes from a spec is shown with its control characters escaped: a file must not be able to move the cursor.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from .diagnostic import Diagnostic
from .pages import remedy_of
from .texts import Source, lookup, place
from ..syntax.nodes import Span

_WIDEST = 160
_TAB = "    "
_COLORS = {"error": "1;31", "warning": "1;33", "frame": "1;34", "bold": "1"}


def render_all(diagnostics: Iterable[Diagnostic], color: bool = False) -> str:
    """All diagnostics, a blank line between them, without a line end at the end."""
    return "\n\n".join(render(d, color) for d in diagnostics)


def render(diagnostic: Diagnostic, color: bool = False) -> str:
    """One diagnostic in the layout of the page of the language."""

    def paint(text: str, style: str) -> str:
        return f"\x1b[{_COLORS[style]}m{text}\x1b[0m" if color and text else text

    d = diagnostic
    head = paint(f"{d.severity}[{escape(d.code)}]", d.severity) + paint(f": {escape(d.message)}", "bold")
    files = list(dict.fromkeys(m.span.file for m in _marks(d)))
    sources = {file: lookup(file) for file in files}
    width = max([1, *(len(str(s.position(m.span.start)[0])) for m in _marks(d) if (s := sources[m.span.file]))])
    lines = [head]
    for n, file in enumerate(files):
        marks = [m for m in _marks(d) if m.span.file == file]
        source = sources[file]
        arrow = paint(" " * (width + 1) + ("-->" if n == 0 else ":::"), "frame")
        if source is None:
            lines.append(f"{arrow} {escape(file)}")
            continue
        line, column = source.position(marks[0].span.start)
        lines.append(f"{arrow} {escape(file)}:{line}:{column}")
        lines += _frame(source, marks, width, d.severity, paint)
    gap = " " * (width + 2)
    for word, text in (("where", ", ".join(d.where)), ("help", remedy(d))):
        if text:
            more = "\n" + gap + " " * 10
            lines.append(f"{gap}{paint('=', 'frame')} {word:<7} {more.join(escape(t) for t in text.splitlines())}")
    return "\n".join(lines)


def to_json(diagnostic: Diagnostic) -> dict[str, Any]:
    """A diagnostic as plain values; lines and columns count from 1 and are null where the text is not known."""
    d = diagnostic
    return {
        "code": d.code,
        "severity": d.severity,
        "message": d.message,
        "place": place(d.span),
        "label": d.label,
        "labels": [{"place": place(m.span), "text": m.text} for m in d.labels],
        "where": list(d.where),
        "help": remedy(d),
        "edits": [{"place": place(e.span), "text": e.text} for e in d.edits],
    }


def remedy(d: Diagnostic) -> str:
    """What to do: what the diagnostic says, or else its code's page."""
    return d.help or remedy_of(d.code)


def escape(text: str) -> str:
    """The text with every character that is not seen, or that turns the direction of writing, as an escape."""
    return text if text.isascii() and text.isprintable() else "".join(_shown(c) for c in text)


def _shown(char: str) -> str:
    if char == "\t":
        return _TAB
    if char.isprintable():
        return char
    # The formatting characters (Cf: bidirectional controls, zero-width ones) are not printable either.
    code = ord(char)
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}" if code < 65536 else f"\\U{code:08x}"


def _columns(char: str) -> int:
    """How many columns of a terminal the character takes as shown."""
    if not char.isprintable():
        return len(_shown(char))
    if unicodedata.combining(char):
        return 0
    return 2 if unicodedata.east_asian_width(char) in "WF" else 1


# ---------------------------------------------------------------- the frame


@dataclass(frozen=True, slots=True)
class _Mark:
    span: Span
    text: str
    primary: bool


@dataclass(frozen=True, slots=True)
class _Range:
    """A mark on one line, in columns of the terminal."""

    start: int
    end: int
    text: str
    primary: bool


def _marks(d: Diagnostic) -> list[_Mark]:
    """The primary mark first; places without a file have no frame."""
    marks = [_Mark(d.span, d.label, True), *(_Mark(m.span, m.text, False) for m in d.labels)]
    return [m for m in marks if m.span.file]


def _frame(source: Source, marks: Sequence[_Mark], width: int, severity: str, paint: Any) -> list[str]:
    by_line: dict[int, list[_Mark]] = {}
    for mark in marks:
        by_line.setdefault(source.position(mark.span.start)[0], []).append(mark)
    empty = paint(" " * (width + 2) + "|", "frame")
    lines, last = [empty], None
    for number in sorted(by_line):
        if last is not None and number == last + 2:
            lines.append(_numbered(last + 1, _clipped(source.line(last + 1), [])[0], width, paint))
        elif last is not None and number > last + 2:
            lines.append(paint("...", "frame"))
        last = number
        text = source.line(number)
        places = []
        for mark in by_line[number]:
            start = source.position(mark.span.start)[1] - 1
            places.append((start, min(start + max(1, mark.span.end - mark.span.start), max(len(text), start + 1))))
        shown, columns = _clipped(text, places)
        lines.append(_numbered(number, shown, width, paint))
        ranges = [_Range(a, b, escape(m.text), m.primary) for (a, b), m in zip(columns, by_line[number])]
        lines += [f"{empty} {row}" for row in _underlines(ranges, severity, paint)]
    return lines


def _numbered(number: int, text: str, width: int, paint: Any) -> str:
    return f"{paint(f' {number:>{width}} |', 'frame')} {text}".rstrip()


def _clipped(text: str, places: Sequence[tuple[int, int]]) -> tuple[str, list[tuple[int, int]]]:
    """The line as shown and the columns of the places in it; of a very long line only what lies around them."""
    first, before, behind = 0, "", ""
    if len(text) > _WIDEST:
        first = max(0, min((a for a, _ in places), default=0) - _WIDEST // 3)
        before = "…" if first else ""
        behind = "…" if first + _WIDEST < len(text) else ""
        text = text[first : first + _WIDEST]
    offsets = [len(before)]
    for char in text:
        offsets.append(offsets[-1] + _columns(char))

    def column(index: int) -> int:
        index -= first
        return offsets[min(max(index, 0), len(text))] + max(0, index - len(text) if not behind else 0)

    columns = [(column(a), max(column(b), column(a) + 1)) for a, b in places]
    return before + escape(text) + behind, columns


def _underlines(ranges: list[_Range], severity: str, paint: Any) -> list[str]:
    """The marks below a line. The rightmost label stands beside its mark, the others hang below theirs."""
    cells: list[tuple[str, str]] = [(" ", "")] * max(r.end for r in ranges)
    for r in sorted(ranges, key=lambda r: r.primary):  # where marks overlap, the primary one is seen
        for i in range(r.start, r.end):
            cells[i] = ("^", severity) if r.primary else ("-", "frame")
    right = max(ranges, key=lambda r: (r.start, r.primary))
    beside = right if right.end == len(cells) else None
    row = "".join(paint(sign, style) if style else sign for sign, style in cells)
    rows = [f"{row} {paint(beside.text, _style(beside, severity))}".rstrip() if beside else row]
    hanging = sorted((r for r in ranges if r is not beside and r.text), key=lambda r: r.start)
    if hanging:
        rows.append(_bars(hanging, severity, paint))
    while hanging:
        r = hanging.pop()
        left = [h for h in hanging if h.start < r.start]
        bars = _bars(left, severity, paint)
        used = max((h.start + 1 for h in left), default=0)
        rows.append(bars + " " * (r.start - used) + paint(r.text, _style(r, severity)))
    return rows


def _bars(ranges: Sequence[_Range], severity: str, paint: Any) -> str:
    text, at = "", 0
    for start, style in sorted({r.start: _style(r, severity) for r in ranges}.items()):
        text += " " * (start - at) + paint("|", style)
        at = start + 1
    return text


def _style(r: _Range, severity: str) -> str:
    return severity if r.primary else "frame"
