"""What a check found of files in which all was well, kept in the user's cache folder: the same text is not checked again.

An entry is found by a file's text, by the names of the files that are checked together (places are told by them), and by all that
every check reads: the language with its tables of words, the grammar, the library. What the file imports stands in the entry, which
is not used once an import has changed. A file with mistakes or hints is checked every time.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..resources import folder
from . import cache, loading
from .analyse.row_verdicts import Verdict
from .library import called, index, parse_path
from .loading import Checked, check_file, pelt_files
from .report.diagnostics import PeltError
from .report.source import read
from .syntax.nodes import Span

#: The kind of the entries, and how many are kept.
KIND, FILES = "checked", 512


@dataclass(frozen=True, slots=True)
class _Seen:
    """What was found of a file, whether with the verdicts, and if it is to be kept: the name of its entry and what it imports."""

    found: list[Checked]
    verdicts: bool = True
    name: str = ""
    imports: tuple[tuple[str, str, str], ...] = ()

    def entry(self, verdicts: bool) -> dict[str, Any]:
        definitions = [[c.name, c.kind, c.space, c.members, _data(c) if verdicts else {}] for c in self.found]
        return {"definitions": definitions, "imports": self.imports}


def check_all(paths: Sequence[Path], verdicts: Callable[[int], bool]) -> list[Checked]:
    """As `loading.check_all`, where nobody needs the methods. ``verdicts``: whether they are asked for, of so many definitions."""
    files = list(dict.fromkeys(f for p in paths for f in pelt_files(p)))
    always = _always_read(files) if cache.folder() is not None else None
    if always is None:
        return loading.check_all(paths)
    with called(files):
        seen = [_recalled(f, always) or _checked(f, always) for f in files]
        asked = verdicts(sum(len(s.found) for s in seen))
        if asked:
            seen = [s if s.verdicts else _checked(f, always) for f, s in zip(files, seen)]
        cache.put(KIND, {s.name: s.entry(asked) for s in seen if s.name}, FILES)
        return loading.once([c for s in seen for c in s.found])


def _checked(path: Path, always: str) -> _Seen:
    before = _reads(path)
    found = check_file(path)
    well = not any(c.diagnostics or c.spoilt or c.hints for c in found)
    # A text that was saved meanwhile may not be the one that was checked.
    if not well or not before or before != _reads(path):
        return _Seen(found)
    (*_, text), *imports = before
    return _Seen(found, True, _name(path, always, text), tuple(imports))


def _recalled(path: Path, always: str) -> _Seen | None:
    """What was found of a file before; None where nothing is known, or something in the entry is not as a check writes it."""
    try:
        entry = cache.get(_name(path, always, _digest(path)))
        if all(os.path.realpath(at) == file and _digest(Path(file)) == text for at, file, text in entry["imports"]):
            found = [_from_data(*d) for d in entry["definitions"]]
            return _Seen(found, all(c.recalled for c in found if c.kind == "method"))
    except (PeltError, ValueError, TypeError, KeyError, AttributeError):
        pass
    return None


# ---------------------------------------------------------------- what a check depends on


def _always_read(files: Sequence[Path]) -> str | None:
    """Of what every check reads, and of what the files are called; None where something of it cannot be read."""
    language = [f for f in Path(__file__).parent.rglob("*") if "__pycache__" not in f.parts and f.is_file()]
    tables = folder("grammar") / "pelt.tables.json"
    lark = find_spec("lark")
    try:
        read_there = cache.digest([*language, tables, *set(index().values())])
        parser = os.stat(lark.origin).st_mtime_ns if lark is not None and lark.origin is not None else 0
    except OSError:  # a file that has gone meanwhile
        return None
    return cache.name_of(KIND, read_there, parser, sys.version, [(str(f), os.path.realpath(f)) for f in files])


def _name(path: Path, always: str, text: str) -> str:
    return cache.name_of(KIND, always, str(path), os.path.realpath(path), text)


def _digest(path: Path) -> str:
    return sha256(read(path).text.encode()).hexdigest()


def _reads(path: Path) -> list[tuple[str, str, str]]:
    """A file and those that it brings in: where each is looked for, where it lies, a digest of its text. Empty where one is broken."""
    found: dict[str, tuple[str, str, str]] = {}
    todo = [str(path)]
    try:
        while todo:
            at = todo.pop()
            if at in found:
                continue
            file = os.path.realpath(at)
            found[at] = (at, file, _digest(Path(file)))
            todo += [os.path.join(os.path.dirname(file), i.path) for i in parse_path(Path(file)).imports]
    except PeltError:
        return []
    return list(found.values())


# ---------------------------------------------------------------- as JSON


def _data(c: Checked) -> dict[str, Any]:
    return {n: [v.value, v.reason, v.span.file, v.span.start, v.span.end] for n, v in c.properties.items()}


def _from_data(name: str, kind: str, space: bool, members: int, verdicts: dict[str, Any]) -> Checked:
    told = {n: Verdict(value, reason, Span(*span)) for n, (value, reason, *span) in verdicts.items()}
    texts = [name, kind, *(t for v in told.values() for t in (v.value, v.reason, v.span.file))]
    numbers = [members, *(n for v in told.values() for n in (v.span.start, v.span.end))]
    if not all(isinstance(t, str) for t in texts) or not all(isinstance(n, int) for n in numbers):
        raise TypeError
    return Checked(name, kind, space=bool(space), members=members, recalled=told)
