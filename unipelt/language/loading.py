"""Methods by name or from files, and checks of whole files: what the command line and the API stand on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from operator import add
from os.path import exists, isdir, isfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .check.alternatives import check_space
from .check.definitions import called_definition, check_body
from .analyse.method import analyse
from .types.rows import distinct
from .report.diagnostics import Diagnostic, PeltError, counted, error, near
from .check.elaborate import elaborate, is_space
from .ir import Method
from .library import Key, called, index, key_of, library_definition, library_names, parse_path, summaries, title
from .check.names import Names, names_of
from .analyse.owned import hints
from .syntax.parser import parse as parse_file
from .check.space import space_of
from .syntax.nodes import BodyDef, Definition, File, MethodDef, Name, walk

if TYPE_CHECKING:
    from .analyse.row_verdicts import Verdict

MAX_LINES = 20_000  # of a file, once what its definitions call is in its place


@dataclass(frozen=True, slots=True)
class Checked:
    """What a check found of one definition: its mistakes, and the method if it has none."""

    name: str
    kind: str
    diagnostics: tuple[Diagnostic, ...] = ()
    method: Method | None = None
    space: bool = False
    members: int = 0  # of a space, before any is looked at
    spoilt: tuple[str, ...] = ()  # the definitions whose mistakes, reported there, break this one too
    hints: tuple[Diagnostic, ...] = ()  # of a method without mistakes: what may not be meant
    recalled: Mapping[str, Verdict] = field(
        default_factory=dict, repr=False
    )  # verdicts of a check before (`remembered`)

    def __repr__(self) -> str:
        return f"<checked: {self.kind} {self.name}, {counted(len(self.diagnostics), 'mistake') if self.diagnostics else 'no mistake'}>"

    @property
    def properties(self) -> Mapping[str, Verdict]:
        """The verdicts (`unipelt.language.analyse.verdicts`) of a method without mistakes."""
        from .analyse.verdicts import verdicts

        return verdicts(self.method) if self.method is not None else self.recalled


@dataclass(frozen=True, slots=True)
class Entry:
    """One definition of the library."""

    kind: str
    name: str
    doc: str
    file: str

    def __repr__(self) -> str:
        return f"<library: {self.kind} {self.name}>"


def load(name: str | Path, method: str | None = None) -> Method:
    """A checked method: of the library by name, or of a ``.pelt`` file (its only method, or the one named).

    ``a+b`` is the union of two methods. Raises `PeltError` with place and remedy.
    """
    return reduce(add, load_parts(name, method))


def load_parts(
    name: str | Path, method: str | None = None, other: Callable[[str], Method | None] = lambda name: None
) -> list[Method]:
    """The methods of a union. ``other`` is asked for what is neither of the library nor of a file."""
    found = []
    for part in [str(name)] if isinstance(name, Path) else parts_of(name):
        known = splits(part)[0] is not None or part in library_names("method")
        found.append((None if known else other(part)) or resolve(*definition(part, method)))
    return found


def parts_of(name: str) -> list[str]:
    """The names that ``+`` joins; a file or folder may have the sign in its own name."""
    if exists(name):
        return [name]
    names = [n.strip() for n in name.split("+")]
    if not all(names):
        raise error("E0401", f"`{name}` names no method" if not any(names) else f"a name is missing in `{name}`",
                    help="write `a`, or `a+b`; `unipelt list` shows the methods there are")  # fmt: skip
    return names


def _of_library(name: str) -> MethodDef:
    found = library_definition("method", name)
    if isinstance(found, MethodDef):
        return found
    raise error(
        "E0401", f"there is no method named `{name}` in the library", help=_meant(name, library_names("method"))
    )


def _meant(name: str, known: Sequence[str]) -> str:
    """What may have been meant by a name that no method has."""
    beside, bare = Path(f"{name}.pelt"), name.partition("(")[0].strip()
    if isfile(beside):
        return f"a file {beside} exists: give that name"
    longer = [n for n in known if n.startswith(f"{name}_")]
    if len(longer) > 1:
        return f"methods that begin so: {', '.join(f'`{n}`' for n in longer)}"
    if bare != name and bare in known:
        return f'arguments are given apart, as in `{bare}` with `--set r=16`, or in Python `load("{bare}")(r=16)`'
    if name.lower() in known:
        return f"did you mean `{name.lower()}`?"
    return near(name, known) or "`unipelt list` shows the methods there are; a file's name ends in .pelt"


def _refuse_of_library(path: Path) -> None:
    """A method of the library that is asked for as a file there is none of."""
    if len(path.parts) == 1 and not exists(path) and path.stem in library_names("method"):
        raise error(
            "E0121", f"there is no file `{path}`", help=f"`{path.stem}` is a method of the library: leave `.pelt` out"
        )


def splits(reference: str) -> tuple[Path | None, str | None]:
    """The file and the method that ``file.pelt`` and ``file.pelt:name`` name; no file where it is the name of a method."""
    front, sep, wanted = reference.rpartition(".pelt:")
    if reference.endswith(".pelt") and (not sep or exists(reference)):
        return Path(reference), None
    return (Path(f"{front}.pelt"), wanted.strip()) if sep else (None, None)


def definition(reference: str, method: str | None = None) -> tuple[MethodDef, Names]:
    """A method or a space as it is written, with the names its file sees: of the library, ``file.pelt``, ``file.pelt:name``.

    ``method`` is another way to name one of a file's.
    """
    path, wanted = splits(reference)
    if path is None:
        found = _of_library(reference)
        if method not in (None, reference):
            raise error("E0401", f"`{reference}` is one method of the library, not a file that has `{method}`",
                        help=f"leave `{method}` out, or name a `.pelt` file")  # fmt: skip
        return found, Names()
    if method is not None and wanted not in (None, method):
        raise error(
            "E0401",
            f"`{reference}` names the method `{wanted}`, and `{method}` is another name beside it",
            help="give one name",
        )
    _refuse_of_library(path)
    file = parse_path(path)
    return _chosen(file, wanted if method is None else method, str(path)), names_of(file, path)


def resolve(definition: MethodDef, names: Names) -> Method:
    """A definition elaborated and checked; raises `PeltError` with every mistake of both."""
    problems: list[Diagnostic] = []
    method = elaborate(definition, names, problems)
    try:
        analyse(method)
    except PeltError as e:
        problems += e.diagnostics
    if problems:
        raise PeltError(distinct([called_definition(d, names) for d in problems]))
    return method


def parse(text: str, name: str | None = None, file: str | None = None) -> Method:
    """The method of a text of the language, which messages call ``<text>`` unless a ``file`` is named."""
    parsed = parse_file(text, file)
    return resolve(_chosen(parsed, name, file), names_of(parsed, None))


def _chosen(file: File, name: str | None, path: str | None) -> MethodDef:
    """The method of a file that is named, or its only one."""
    shown, methods = path or "<text>", {d.name: d for d in file.definitions if isinstance(d, MethodDef)}
    if name is not None:
        if name not in methods:
            raise error(
                "E0401",
                f"{shown} has no method `{name}`",
                help=near(name, methods) or f"it has: {', '.join(methods) or 'none'}",
            )
        return methods[name]
    if len(methods) == 1:
        return next(iter(methods.values()))
    if not methods:
        raise error("E0406", f"{shown} has no method", help="write one: `unipelt show lora` shows how")
    raise error("E0406", f"{shown} has {len(methods)} methods, so one must be named: {', '.join(methods)}",
                help=f"write `{path}:NAME`" if path else f"name it: `parse(text, {next(iter(methods))!r})`")  # fmt: skip


def check(path: str | Path) -> list[Checked]:
    """Every definition of a ``.pelt`` file, or of every such file below a folder, with its mistakes."""
    return check_all([Path(path)])


def pelt_files(path: Path) -> list[Path]:
    """The file itself, or every ``.pelt`` file below a folder; refuses a folder without any."""
    if not isdir(path):  # also where it cannot be known, which reading it then says
        return [path]
    found = sorted(path.rglob("*.pelt"))
    if not found:
        raise error(
            "E0407", f"the folder {path} holds no .pelt file", help="name a `.pelt` file, or a folder that holds some"
        )
    return found


def check_all(paths: Sequence[Path]) -> list[Checked]:
    """Every definition of several files and folders, each mistake once."""
    files = [f for p in paths for f in pelt_files(p)]
    with called(files):
        return once([c for f in files for c in check_file(f)])


def check_file(path: Path) -> list[Checked]:
    """Every definition of a file."""
    try:
        file = parse_path(path)
    except PeltError as e:
        return [Checked(path.name, "file", e.diagnostics)]
    return _definitions(file, path)


def check_text(text: str, file: str) -> list[Checked]:
    """Every definition of a text that stands for the file of that name, with its mistakes."""
    try:
        parsed = parse_file(text, file)
    except PeltError as e:
        return [Checked(Path(file).name, "file", e.diagnostics)]
    return _definitions(parsed, Path(file))


def _definitions(file: File, path: Path) -> list[Checked]:
    try:
        names = names_of(file, path)
    except PeltError as e:
        return [Checked(path.name, "file", e.diagnostics)]
    found: dict[Key, Checked] = {}
    ends: list[str] = []  # the definition at which the file has grown too long
    for d in file.definitions:
        if isinstance(d, MethodDef):
            found[key_of(d)] = _too_long(d, names, ends) or _check_method(d, names)
    working = _used(
        [d for d in file.definitions if (c := found.get(key_of(d))) is not None and c.method is not None], names
    )
    out: list[Checked] = []
    for d in file.definitions:
        if isinstance(d, BodyDef):
            out.append(
                _too_long(d, names, ends)
                or Checked(d.name, title(d.what), tuple(check_body(d, names, key_of(d) in working)))
            )
        else:
            out.append(found.get(key_of(d)) or Checked(d.name, "anatomy"))
    return once(out)


def _too_long(d: Definition, names: Names, ends: list[str]) -> Checked | None:
    """A definition that is not checked any more, since those before it have grown so large: bounds the time of a check."""
    if names.lines <= MAX_LINES:
        return None
    if ends:  # which is one mistake
        return Checked(d.name, title(key_of(d)[0]), spoilt=(ends[0],))
    ends.append(d.name)
    problem = Diagnostic("E0227", f"the definitions of this file come to more than {MAX_LINES:,} lines once what they call is in its place",
                         d.name_span, help="split the file; the parts are brought together with `import`")  # fmt: skip
    return Checked(d.name, title(key_of(d)[0]), (problem,))


def _check_method(d: MethodDef, names: Names) -> Checked:
    if is_space(d):
        return Checked(d.name, "space", tuple(check_space(d, names)), space=True, members=space_of(d, names).size)
    try:
        method = resolve(d, names)
        return Checked(d.name, "method", method=method, hints=tuple(hints(method)))
    except PeltError as e:
        return Checked(d.name, "method", e.diagnostics)


def _used(definitions: Sequence[Definition], names: Names) -> set[Key]:
    """The forms, gates and compositions of a file that these definitions use, by themselves or through others."""
    used: set[Key] = set()
    todo: list[Any] = list(definitions)
    while todo:
        words = {n.id for n in walk(todo.pop()) if isinstance(n, Name)}
        new = [(k, d) for k, d in names.own.items() if k[1] in words and k not in used]
        used |= {k for k, _ in new}
        todo += [d for _, d in new]
    return used


def once(found: list[Checked]) -> list[Checked]:
    """Each mistake is reported where it is met first: a broken form is one mistake, however many methods use it, and what
    a method says of the same place is another view of it.

    A method that is broken by a mistake reported before has no `Checked.method` and no diagnostics of its own; it is
    ``spoilt`` by the definition that has them.
    """
    seen: dict[tuple, str] = {}
    out: list[Checked] = []
    for c in found:
        keys = [(d.span.file, d.span.start, d.span.end) if d.span.file else (d.code, d.message) for d in c.diagnostics]
        new = tuple(d for d, k in zip(c.diagnostics, keys) if k not in seen)
        spoilt = tuple(dict.fromkeys(seen[k] for k in keys if k in seen))
        for k in keys:
            seen.setdefault(k, c.name)
        told = [(h.code, h.span) for h in c.hints]
        hinted = tuple(h for h, k in zip(c.hints, told) if k not in seen)
        seen |= dict.fromkeys(told, c.name)
        out.append(replace(c, diagnostics=new, spoilt=(*c.spoilt, *spoilt), hints=hinted))
    return out


def library() -> list[Entry]:
    """Every definition of the library with the first line of its docstring."""
    out = [Entry(title(kind), name, doc, str(index()[kind, name])) for (kind, name), doc in summaries().items()]
    return sorted(out, key=lambda e: (e.kind != "method", e.kind, e.name))
