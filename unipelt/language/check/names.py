"""What a name means: the definition that the file sees in which the name is written.

A file sees its own definitions, those of its imports, then the library. So a definition means the same whoever uses it:
a file that defines `scaled` changes neither the library's methods, which have a `scaled` of their own, nor what it imports.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from os.path import normpath, realpath
from pathlib import Path
from typing import Any

from ..report.diagnostics import Diagnostic, Label, PeltError, error, near_path
from ..library import Key, key_of, library_definition, library_names, of_library, parse_path, title
from ..syntax.parser import MAX_ERRORS
from ..report.source import is_file
from ..syntax.nodes import Apply, Compose, Definition, File, Import, Name, walk

MAX_FILES = 64
STANDS = {"method": "use", "form": "form", "compose": "compose", "gate": "gated by"}


@dataclass(frozen=True, slots=True)
class Scope:
    """A file's own definitions, and the files it imports."""

    own: dict[Key, Definition] = field(default_factory=dict)
    imports: tuple[str, ...] = ()


@dataclass
class Names:
    """The definitions that a file sees, and those that each file sees that it imports.

    A name that was written in none of them, such as an option's, means what it would mean in the file itself.
    """

    own: dict[Key, Definition] = field(default_factory=dict)
    imports: tuple[str, ...] = ()
    scopes: dict[str, Scope] = field(default_factory=dict)  # of every file, by what the spans in it call it
    inlined: dict[Any, Any] = field(
        default_factory=dict, repr=False, compare=False
    )  # by `calls`: what has been worked out
    lines: int = 0  # that bodies had once what they call was in its place: a measure of the work so far

    def find(self, what: str, name: Name) -> Definition | None:
        """The definition of a kind that a name means; raises `PeltError` where two imported files define it."""
        key = (what, name.id)
        scope = self.scopes.get(name.span.file)
        if scope is None:
            if of_library(name.span):
                return library_definition(*key)
            scope = Scope(self.own, self.imports)
        found = self._seen(key, scope)
        if len(found) > 1:
            one, other, *_ = found
            raise error("E0228", f"two imported files define the {title(what)} `{name.id}`", name.span,
                        labels=(Label(one.name_span, "one of them"), Label(other.name_span, "another")),
                        help="rename one, or define it in this file, too")  # fmt: skip
        return found[0] if found else library_definition(*key)

    def _seen(self, key: Key, scope: Scope) -> list[Definition]:
        """What a file sees under a name: its own definition, or else what the files that it imports see."""
        found: dict[int, Definition] = {}
        todo, seen = [scope], set[str]()
        while todo:
            scope = todo.pop()
            if key in scope.own:
                found[id(scope.own[key])] = scope.own[key]
                continue
            todo += [self.scopes[i] for i in reversed(scope.imports) if i in self.scopes and i not in seen]
            seen.update(scope.imports)
        return list(found.values())

    def called(self, node: Any) -> list[Definition]:
        """The definitions that a part of a method calls, of whatever kind they may be there."""
        calls = [n.function for n in walk(node) if isinstance(n, Apply)]
        bare = [a for n in walk(node) if isinstance(n, Compose) for a in n.alternatives]  # `compose add`
        named = [n for n in (*calls, *bare, node) if isinstance(n, Name)]
        return [d for n in named for kind in STANDS if (d := self.find(kind, n)) is not None]

    def definitions(self) -> Iterator[Definition]:
        """Every definition outside of the library, the file's own first."""
        seen = {id(d): d for own in (self.own, *(s.own for s in self.scopes.values())) for d in own.values()}
        return iter(seen.values())

    def names(self, what: str) -> list[str]:
        return sorted({k[1] for d in self.definitions() if (k := key_of(d))[0] == what} | set(library_names(what)))

    def elsewhere(self, name: Name) -> str:
        """What a name is that was looked for among definitions of another kind, and where such stand; empty if it is nothing."""
        kind = next((k for k in STANDS if self.find(k, name) is not None), None)
        return f"`{name.id}` is a {title(kind)}: write it after `{STANDS[kind]}`" if kind is not None else ""

    def and_of(self, other: Names) -> Names:
        """What two files see, each for itself; a name that was written in neither means what it does in the first."""
        return Names({**other.own, **self.own}, (*self.imports, *other.imports), {**other.scopes, **self.scopes})


def names_of(file: File, path: Path | None) -> Names:
    """The names a parsed file sees; raises `PeltError` with every name that is defined twice and every import that fails."""
    problems: list[Diagnostic] = []
    names = Names(_definitions(file, problems))
    names.scopes = {_called(file): Scope(names.own)} if names.own else {}
    if file.imports and path is None:
        problems.append(Diagnostic("E0202", "a text without a file cannot import", file.imports[0].span,
                                   help="save the text in a file beside what it imports, and load that"))  # fmt: skip
    elif file.imports and path is not None:
        names.scopes = _Imports(path, problems).scopes_of(file, names.own)
    if problems:
        raise PeltError(problems)
    names.imports = names.scopes[_called(file)].imports if file.imports else ()
    return names


def _definitions(file: File, problems: list[Diagnostic]) -> dict[Key, Definition]:
    found: dict[Key, Definition] = {}
    for d in file.definitions:
        if key_of(d) in found:
            problems.append(Diagnostic(
                "E0201", f"the {title(key_of(d)[0])} `{d.name}` is defined twice", d.name_span,
                labels=(Label(found[key_of(d)].name_span, "the first one"),), help="rename or delete one of them"))  # fmt: skip
        found[key_of(d)] = d
    return found


def _called(file: File) -> str:
    """What spans call a file; nothing where it is empty."""
    return next((d.span.file for d in (*file.definitions, *file.imports)), "")


class _Imports:
    """The files that a spec imports, and those that they import: each is read once, and all lie in the spec's folder."""

    def __init__(self, path: Path, problems: list[Diagnostic]) -> None:
        self.folder = path.resolve().parent
        self.called = {path.resolve(): ""}  # what spans call each file; nothing where it cannot be read, or is empty
        self.path = path
        self.problems = problems

    def scopes_of(self, file: File, own: dict[Key, Definition]) -> dict[str, Scope]:
        """The scope of the spec and of each file that it brings in."""
        self.called[self.path.resolve()] = _called(file)
        scopes: dict[str, Scope] = {}
        todo = [(file, self.path, own)]
        while todo:
            file, path, own = todo.pop()
            imports: list[str] = []
            for item in file.imports:
                if len(self.problems) >= MAX_ERRORS:
                    return scopes
                try:
                    target, shown = self._found(item, path)
                    if target not in self.called:
                        if len(self.called) > MAX_FILES:  # itself is one of them
                            self.problems.append(
                                Diagnostic("E0204", f"a spec may import at most {MAX_FILES} files", item.span)
                            )
                            return scopes
                        self.called[target] = ""
                        inner, defined = self._read(item, shown)
                        self.called[target] = _called(inner)
                        todo.append((inner, shown, defined))
                    imports.append(self.called[target])
                except PeltError as e:
                    self.problems += e.diagnostics
            if called := _called(file):
                scopes[called] = Scope(own, tuple(imports))
        return scopes

    def _found(self, item: Import, importer: Path) -> tuple[Path, Path]:
        """The file that an import names, and as the user would name it: relative where the spec is."""
        shown = Path(normpath(importer.parent / item.path))
        target = Path(realpath(importer.resolve().parent / item.path))  # which goes on where a link leads to itself
        if not target.is_relative_to(self.folder):
            raise error("E0203", f"the import `{item.path}` leaves the folder of the spec", item.span,
                        help="put the file beside the spec, or into a folder below it")  # fmt: skip
        if target in self.called:
            return target, shown
        if not is_file(target, item.path, item.span):
            raise error("E0205", f"the imported file `{item.path}` does not exist", item.span,
                        help=near_path(shown) or f"its path begins in the folder of `{importer.name}`")  # fmt: skip
        return target, shown if shown.resolve() == target else target

    def _read(self, item: Import, path: Path) -> tuple[File, dict[Key, Definition]]:
        problems: list[Diagnostic] = []
        try:
            file = parse_path(path)
            defined = _definitions(file, problems)
        except PeltError as e:
            problems += e.diagnostics
        if problems:
            raise PeltError(replace(d, labels=(*d.labels, Label(item.span, "imported here"))) for d in problems)
        return file, defined
