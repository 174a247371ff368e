"""Source texts: reading a `.pelt` file with bounds, and finding the text of a span's file again."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections import OrderedDict
from dataclasses import dataclass, field
from os import PathLike, fspath, stat
from os.path import isfile
from pathlib import Path
from stat import S_ISREG
from threading import Lock

from ...resources import folder
from .diagnostics import PeltError, error, near_path
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


def read(path: str | PathLike[str], name: str | None = None) -> Source:
    """The source in a file; whatever is wrong with the file is a `PeltError`. ``name`` is shown in messages."""
    shown = fspath(path) if name is None else name
    nowhere = Span(shown)
    try:
        if not is_file(path, shown, nowhere):
            raise FileNotFoundError
        # One byte more than allowed is enough to know; an endless file is never read whole.
        with open(path, "rb") as f:
            data = f.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise error("E0121", f"there is no file `{shown}`", nowhere,
                    help=near_path(Path(path)) or "check the path and the spelling") from None  # fmt: skip
    except OSError as e:
        raise _unreadable(shown, e, nowhere) from None
    return source_of(data, shown)


def source_of(data: bytes, shown: str) -> Source:
    """The source in the bytes of a file, which goes by the name ``shown``."""
    nowhere = Span(shown)
    if len(data) > MAX_BYTES:
        raise too_large(shown)
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as e:
        line = data.count(b"\n", 0, e.start) + 1
        raise error(
            "E0124", f"`{shown}` is not UTF-8 (line {line})", nowhere, help="save the file with the encoding UTF-8"
        ) from None
    source = Source(shown, normalised(text))
    check(source)
    remember(source)
    return source


def refuse_link(path: Path) -> None:
    """Raises `PeltError` for a link that leads out of the folder it lies in (see `files`)."""
    if leaves(path):
        raise error("E0790", f"`{path}` is a link that leads out of its folder",
                    help="put the file itself there, or name the file that is meant")  # fmt: skip


def is_file(path: str | PathLike[str], shown: str, span: Span) -> bool:
    """Whether a file lies there, or nothing. Another thing there, and a path that cannot be asked about, is a `PeltError`."""
    try:
        mode = stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return False
    except (OSError, ValueError) as e:  # a name that is too long, a link to itself, a folder that is closed
        raise _unreadable(shown, e, span) from None
    refuse_link(Path(path))
    if not S_ISREG(mode):
        raise error("E0122", f"`{shown}` is not a file", span, help="name a `.pelt` file, not a folder")
    return True


def _unreadable(shown: str, e: Exception, span: Span) -> PeltError:
    reason = getattr(e, "strerror", None) or str(e)
    return error("E0123", f"`{shown}` cannot be read: {reason}", span, help="check its name and its permissions")


def check(source: Source) -> None:
    """Refuses a text that is too large, or holds NUL or what is no Unicode."""
    if len(source.text) > MAX_BYTES:
        raise too_large(source.file)
    nul = source.text.find("\0")
    if nul >= 0:
        remember(source)
        raise error("E0125", "the text holds a NUL character", Span(source.file, nul, nul + 1), help="remove it")
    half = half_of_a_character(source.text)
    if half is not None:  # its line cannot be shown, since it cannot be written
        line, column = source.position(half)
        raise error("E0125", f"line {line}, column {column} of the text holds half of a character, which is no Unicode", Span(source.file),
                    help="remove it, or complete the pair of surrogates")  # fmt: skip


def half_of_a_character(text: str) -> int | None:
    """Where a text holds one surrogate of a pair, which can neither be written nor saved."""
    try:
        text.encode()
    except UnicodeEncodeError as e:
        return e.start
    return None


def too_large(file: str) -> PeltError:
    return error(
        "E0126", f"`{file}` is larger than {MAX_BYTES >> 20} MiB", Span(file), help="split it into several files"
    )


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
    if found is None and isfile(file):
        try:
            return read(file)
        except PeltError:
            return None
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
