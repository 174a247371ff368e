"""Reading a `.pelt` file with bounds. Whatever is wrong with a file is a `PeltError`."""

from __future__ import annotations

from os import PathLike, fspath, stat
from pathlib import Path
from stat import S_ISREG

from .diagnostics import PeltError, error, near_path
from ..files import leaves
from ..syntax.nodes import Span
from .texts import MAX_BYTES, Source, half_of_a_character, normalised, remember


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


def too_large(file: str) -> PeltError:
    return error(
        "E0126", f"`{file}` is larger than {MAX_BYTES >> 20} MiB", Span(file), help="split it into several files"
    )
