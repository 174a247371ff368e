"""Texts by the names they go by in messages, and the places in them. Raises no error of the language.

Reading a file with bounds is `source`; this is what the messages themselves stand on.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections import OrderedDict
from dataclasses import dataclass, field
from os.path import isfile
from pathlib import Path
from threading import Lock

from ...resources import folder
from ..files import leaves
from ..syntax.nodes import Span

MAX_BYTES = 1 << 20
_MAX_REMEMBERED = 256


@dataclass(frozen=True, slots=True)
class Source:
    """A text and the name it goes by in messages."""

    file: str
    text: str
    _starts: list[int] = field(default_factory=list, init=False, repr=False, compare=False)

    def position(self, offset: int) -> tuple[int, int]:
        """Line and column of an offset, both counted from 1."""
        if not self._starts:
            self._starts.append(0)
            self._starts.extend(i + 1 for i, c in enumerate(self.text) if c == "\n")
        offset = min(max(offset, 0), len(self.text))
        line = bisect_right(self._starts, offset)
        return line, offset - self._starts[line - 1] + 1

    def line(self, number: int) -> str:
        """The text of a line, counted from 1, without its end."""
        self.position(0)
        start = self._starts[number - 1]
        end = self._starts[number] - 1 if number < len(self._starts) else len(self.text)
        return self.text[start:end]


def normalised(text: str) -> str:
    """Without a byte order mark, with `\\n` as the only line end."""
    if not isinstance(text, str):
        raise TypeError(f"a text is needed, not {type(text).__name__}")
    return text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")


def half_of_a_character(text: str) -> int | None:
    """Where a text holds one surrogate of a pair, which can neither be written nor saved."""
    try:
        text.encode()
    except UnicodeEncodeError as e:
        return e.start
    return None


# ---------------------------------------------------------------- places that no node has


def inside(span: Span, pattern: str) -> Span | None:
    """Where a pattern's first group stands within a span, as far as the text is known."""
    source = lookup(span.file)
    found = re.compile(pattern).search(source.text[span.start : span.end]) if source is not None else None
    return Span(span.file, span.start + found.start(1), span.start + found.end(1)) if found else None


def text_of(span: Span) -> str:
    """The text at a span, empty where it is not known."""
    source = lookup(span.file)
    return source.text[span.start : span.end] if source is not None else ""


def after(span: Span) -> Span:
    """The empty place behind a span."""
    return Span(span.file, span.end, span.end)


def before(span: Span, word: str) -> Span | None:
    """From a word that stands directly before a span to the span's end."""
    source = lookup(span.file)
    found = re.compile(rf"\b{word}\s+$").search(source.text[: span.start]) if source is not None else None
    return Span(span.file, found.start(), span.end) if found else None


# ---------------------------------------------------------------- the registry

_known: OrderedDict[str, Source] = OrderedDict()
_lock = Lock()


def remember(source: Source) -> None:
    """Keeps a source for messages. The newest of a name wins; the oldest names are forgotten."""
    with _lock:
        _known.pop(source.file, None)
        _known[source.file] = source
        while len(_known) > _MAX_REMEMBERED:
            _known.popitem(last=False)


def free_name(name: str, text: str) -> str:
    """A name for a text that lies in no file: ``<text>``, or ``<text 2>`` where another text goes by that."""
    with _lock:
        found, n = name, 1
        while (known := _known.get(found)) is not None and known.text != text:
            found, n = f"{name[:-1]} {n + 1}>", n + 1
    return found


def lookup(file: str) -> Source | None:
    """The source of that name; a file that was forgotten is read again."""
    with _lock:
        found = _known.get(file)
    if found is None and isfile(file) and not leaves(Path(file)):
        try:
            with open(file, "rb") as f:
                found = Source(file, normalised(f.read(MAX_BYTES).decode("utf-8")))
        except (OSError, UnicodeDecodeError):
            return None
        remember(found)
    return found


def place(span: Span) -> dict[str, object] | None:
    """Where a span lies, as plain values: lines and columns count from 1 and are null where the text is not known."""
    if not span.file:
        return None
    source = lookup(span.file)
    line, column = source.position(span.start) if source else (None, None)
    end_line, end_column = source.position(span.end) if source else (None, None)
    return {
        "file": span.file, "start": span.start, "end": span.end, "line": line, "column": column, "end_line": end_line,
        "end_column": end_column,
    }  # fmt: skip


def shown(span: Span) -> str:
    """``file:line:column`` for people: a file below the present folder or of the library by its path from there."""
    found = place(span)
    if found is None:
        return ""
    path = Path(span.file)
    for base in (Path.cwd(), folder("specs").parent):
        if path.is_absolute() and path.is_relative_to(base):
            path = path.relative_to(base)
            break
    return f"{path}:{found['line']}:{found['column']}" if found["line"] is not None else str(path)
