"""The definitions in ``specs/``, and parsed files. Forms, compositions, gates, methods and anatomies have a namespace each.

The library is indexed by a scan for headers; a file of it is parsed only when one of its names is asked for, so that
checking one spec stays quick.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache
from os.path import realpath
from pathlib import Path

from ..resources import folder
from .syntax.parser import parse
from .report.source import read
from .syntax.nodes import AnatomyDef, Definition, File, MethodDef, Span

_HEADER = re.compile(r"^(method|form|gate|compose|anatomy)[ \t]+([A-Za-z_]\w*)", re.MULTILINE)
Key = tuple[str, str]
MAX_READ = 256  # files that are remembered
TITLES = {"compose": "composition"}  # where it is not their keyword


def title(kind: str) -> str:
    """What definitions of that kind are called in messages."""
    return TITLES.get(kind, kind)


def key_of(definition: Definition) -> Key:
    if isinstance(definition, MethodDef):
        return "method", definition.name
    if isinstance(definition, AnatomyDef):
        return "anatomy", definition.name
    return definition.what, definition.name


@lru_cache(maxsize=1)
def index() -> dict[Key, Path]:
    """Every definition of the library and the file it stands in."""
    found: dict[Key, Path] = {}
    for path in sorted(folder("specs").rglob("*.pelt")):
        for what, name in _HEADER.findall(path.read_text(encoding="utf-8")):
            found.setdefault((what, name), path)
    return found


def digest_of_library() -> str:
    """Of the texts of the library's files: what is worked out of them stays true as long as it is the same."""
    files = sorted(set(index().values()))
    text = "\n".join(f"{p.name}\n{p.read_text(encoding='utf-8')}" for p in files)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


_DOC = re.compile(r'\{\s*"""([\s\S]*?)"""')


@lru_cache(maxsize=1)
def summaries() -> dict[Key, str]:
    """The first line of each definition's docstring, found by a scan: a list of the library parses none of its files."""
    found: dict[Key, str] = {}
    for path in dict.fromkeys(index().values()):
        text = path.read_text(encoding="utf-8")
        headers = list(_HEADER.finditer(text))
        for header, after in zip(headers, [*headers[1:], None]):
            doc = _DOC.search(text, header.end(), after.start() if after is not None else len(text))
            first = doc[1].strip().split("\n")[0] if doc is not None else ""
            found.setdefault((header[1], header[2]), first)
    return found


_FILES: dict[tuple[Path, str, str], File] = {}
_NAMES: ContextVar[Mapping[Path, str] | None] = ContextVar("_NAMES", default=None)


@contextmanager
def called(files: Sequence[Path]) -> Iterator[None]:
    """Within it messages call these files as they are named here, also where the library or an import brings them in."""
    token = _NAMES.set({_resolved(f): str(f) for f in reversed(files)})
    try:
        yield
    finally:
        _NAMES.reset(token)


def _named(path: Path) -> str | None:
    return (_NAMES.get() or {}).get(path)


def _resolved(path: Path) -> Path:
    """Where a path leads; itself where nobody can say, which reading it then tells."""
    try:
        return Path(realpath(path))
    except ValueError:
        return path


def parse_path(path: Path) -> File:
    """A parsed file. The same file with the same text is parsed once in a process."""
    file = _resolved(path)
    source = read(path, _named(file))
    key = (file, source.file, source.text)
    if key not in _FILES:
        if len(_FILES) > MAX_READ:
            _FILES.clear()
        _FILES[key] = parse(source)
    return _FILES[key]


_CALLED: set[str] = set()  # the files of the library that were read, as spans call them


def of_library(span: Span) -> bool:
    """Whether a place lies in a file of the library."""
    return span.file in _CALLED


@lru_cache(maxsize=64)
def _parsed(path: Path, named: str | None) -> dict[Key, Definition]:
    found = parse_path(path).definitions
    _CALLED.update(d.span.file for d in found)
    return {key_of(d): d for d in found}


def library_names(what: str) -> list[str]:
    return sorted(name for kind, name in index() if kind == what)


def library_definition(what: str, name: str) -> Definition | None:
    path = index().get((what, name))
    return _parsed(path, _named(path)).get((what, name)) if path else None
