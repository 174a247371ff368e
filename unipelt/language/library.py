"""Where names come from: a file's own definitions, its imports, then the library in ``specs/``.

Forms, compositions, gates, methods and anatomies have a namespace each. The library is indexed by a scan for headers;
a file of it is parsed only when one of its names is asked for, so that checking one spec stays quick.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import lru_cache
from os.path import normpath, realpath
from pathlib import Path
from typing import Any

from ..resources import folder
from .diagnostics import Diagnostic, Label, PeltError, error, near_path
from .parser import parse
from .source import is_file, read
from .syntax import AnatomyDef, BodyDef, Definition, File, MethodDef

_HEADER = re.compile(r"^(method|form|gate|compose|anatomy)[ \t]+([A-Za-z_]\w*)", re.MULTILINE)
Key = tuple[str, str]
MAX_FILES = 64
TITLES = {"compose": "composition"}  # where it is not their keyword
STANDS = {"method": "use", "form": "form", "compose": "compose", "gate": "gated by"}


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


_FILES: dict[tuple[Path, str], File] = {}


def parse_path(path: Path) -> File:
    """A parsed file. The same file with the same text is parsed once in a process."""
    source = read(path)
    key = (path.resolve(), source.text)
    if key not in _FILES:
        if len(_FILES) > 4 * MAX_FILES:
            _FILES.clear()
        _FILES[key] = parse(source.text, str(path))
    return _FILES[key]


@lru_cache(maxsize=64)
def _parsed(path: Path) -> dict[Key, Definition]:
    return {key_of(d): d for d in parse_path(path).definitions}


def library_names(what: str) -> list[str]:
    return sorted(name for kind, name in index() if kind == what)


def library_definition(what: str, name: str) -> Definition | None:
    path = index().get((what, name))
    return _parsed(path).get((what, name)) if path else None


@dataclass
class Names:
    """The definitions that a file sees."""

    own: dict[Key, Definition] = field(default_factory=dict)
    imported: dict[Key, Definition] = field(default_factory=dict)
    inlined: dict[Any, Any] = field(default_factory=dict, repr=False, compare=False)  # by `calls`: what has been worked out

    lines: int = 0  # that bodies had once what they call was in its place: a measure of the work so far

    def find(self, what: str, name: str) -> Definition | None:
        return self.own.get((what, name)) or self.imported.get((what, name)) or library_definition(what, name)

    def names(self, what: str) -> list[str]:
        local = {n for w, n in (*self.own, *self.imported) if w == what}
        return sorted(local | set(library_names(what)))

    def elsewhere(self, name: str) -> str:
        """What a name is that was looked for among definitions of another kind, and where such stand; empty if it is nothing."""
        kind = next((k for k in STANDS if self.find(k, name) is not None), None)
        return f"`{name}` is a {title(kind)}, which stands behind `{STANDS[kind]}`" if kind is not None else ""

    def library(self, what: str) -> Iterator[Definition]:
        """The library's definitions of a kind that are not hidden by the file's own."""
        hidden = {n for w, n in (*self.own, *self.imported) if w == what}
        return (d for n in library_names(what) if n not in hidden and (d := library_definition(what, n)) is not None)

    def bodies(self) -> Iterator[BodyDef]:
        return (d for d in self.own.values() if isinstance(d, BodyDef))


def names_of(file: File, path: Path | None) -> Names:
    """The names a parsed file sees; a name defined twice is an error. Imports stay inside the file's own folder."""
    names = Names(_definitions(file))
    if file.imports:
        _imports(file, path, names.imported)
    return names


def _definitions(file: File) -> dict[Key, Definition]:
    found: dict[Key, Definition] = {}
    problems: list[Diagnostic] = []
    for d in file.definitions:
        if key_of(d) in found:
            problems.append(Diagnostic(
                "E0201", f"the {title(key_of(d)[0])} `{d.name}` is defined twice", d.name_span,
                labels=(Label(found[key_of(d)].name_span, "the first one"),), help="rename or delete one of them"))  # fmt: skip
        found[key_of(d)] = d
    if problems:
        raise PeltError(problems)
    return found


def _imports(file: File, path: Path | None, into: dict[Key, Definition]) -> None:
    if path is None:
        raise error("E0202", "a text without a file cannot import", file.imports[0].span,
                    help="save the text in a file beside what it imports, and load that")  # fmt: skip
    root = path.resolve().parent
    todo = [(i, path) for i in file.imports]
    seen = {path.resolve()}
    while todo:
        item, importer = todo.pop()
        shown = Path(normpath(importer.parent / item.path))  # as the user would name it: relative where the spec is
        target = Path(realpath(importer.resolve().parent / item.path))  # which goes on where a link leads to itself
        if not target.is_relative_to(root):
            raise error(
                "E0203", f"the import `{item.path}` leaves the folder of the spec", item.span,
                help="put the file beside the spec, or into a folder below it",
            )  # fmt: skip
        if target in seen:
            continue
        seen.add(target)
        if len(seen) > MAX_FILES:
            raise error("E0204", f"a spec may import at most {MAX_FILES} files", item.span)
        if not is_file(target, item.path, item.span):
            raise error("E0205", f"the imported file `{item.path}` does not exist", item.span,
                        help=near_path(shown) or f"its path begins in the folder of `{importer.name}`")  # fmt: skip
        shown = shown if shown.resolve() == target else target
        try:
            inner = parse_path(shown)
            found = _definitions(inner)
        except PeltError as e:
            raise PeltError(replace(d, labels=(*d.labels, Label(item.span, "imported here"))) for d in e.diagnostics) from None
        for key, d in found.items():
            into.setdefault(key, d)
        todo += [(i, shown) for i in inner.imports]
