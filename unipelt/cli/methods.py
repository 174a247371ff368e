"""The commands that read specs and the library: check and list."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from ..language.report.diagnostics import PeltError, counted, error, near, plural
from ..language.loading import Checked, Entry, library, pelt_files
from ..language.remembered import check_all
from .output import columns, cut, emit, report, say, tell


def check_paths(paths: list[Path], as_json: bool, as_sarif: bool = False, fix: bool = False) -> bool:
    """Check files and folders; with ``fix`` their mistakes are fixed first. Returns whether all is well."""
    try:
        if fix:
            _fix(paths, quiet=as_json or as_sarif)
        found = check_all(paths, lambda n: as_json or (n <= SHOWN and not as_sarif))
    except PeltError as e:
        if not as_sarif:
            raise
        found = [Checked("", "file", e.diagnostics)]
    diagnostics = [d for c in found for d in c.diagnostics]
    hints = [h for c in found for h in c.hints]
    good = not any(d.severity == "error" for d in diagnostics)
    if as_sarif:
        from .. import __version__
        from ..language.report.sarif import to_sarif

        emit(to_sarif([*diagnostics, *hints], __version__))
        return good
    if as_json:
        from ..language.report.render import to_json

        emit({"ok": good, "definitions": [
            {"name": c.name, "kind": c.kind, "diagnostics": [to_json(d) for d in c.diagnostics], "spoilt": list(c.spoilt),
             "hints": [to_json(h) for h in c.hints],
             **({"members": c.members} if c.space else {}),
             "properties": {k: v.to_json() for k, v in c.properties.items()}}
            for c in found
        ]})  # fmt: skip
        return good
    report([*diagnostics, *hints], False)
    broken = Counter(c.kind for c in found if c.spoilt or any(d.severity == "error" for d in c.diagnostics))
    if len(found) <= SHOWN:
        for c in found:
            if c.spoilt:
                tell(f"{c.kind} {c.name}: broken by {', '.join(c.spoilt)}")
            elif not c.diagnostics and c.kind == "method":
                verdicts = ", ".join(f"{k}: {v.value}" for k, v in c.properties.items())
                tell(f"{c.kind} {c.name}: ok ({verdicts})")
            elif not c.diagnostics and c.space:
                tell(f"{c.kind} {c.name}: ok ({c.members:,} {plural('member', c.members)})")
            elif not c.diagnostics:
                tell(f"{c.kind} {c.name}: ok")
    total = Counter(c.kind for c in found)
    words = ", ".join(counted(n, kind) for kind, n in total.items())
    mistakes = sum(d.severity == "error" for d in diagnostics)
    if good:
        also = f", {counted(len(hints), 'hint')}" if hints else ""
        tell(f"{words}: all well{also}" if found else "nothing is defined here")
    else:
        say(f"\n{words}: {counted(mistakes, 'mistake')} in {sum(broken.values())} of them")
    return good


def _fix(paths: list[Path], quiet: bool) -> None:
    """Apply the fixes that mistakes in the files come with. Line ends stay as they are."""
    from ..language.report.fixes import fixed
    from ..language.report.source import read
    from .layout import write

    for file in [f for p in paths for f in pelt_files(p)]:
        try:
            text, done = fixed(read(file).text, str(file))
        except PeltError:
            continue  # what is wrong with the file itself the check says
        if not done:
            continue
        raw = file.read_bytes()
        text = text.replace("\n", "\r\n") if b"\r\n" in raw else text
        write(file, "\ufeff" + text if raw.startswith(b"\xef\xbb\xbf") else text)
        if not quiet:
            say("".join(f"{file}: fixed {d.code}: {d.message}\n" for d in done))


#: Up to this many definitions, each gets a line of its own.
SHOWN = 12


def list_library(word: str | None, everything: bool, as_json: bool, as_table: bool = False) -> None:
    """The library's definitions by group, a line each; with a ``word`` those whose name, text or group has it."""
    entries = [e for e in library() if everything or e.kind == "method"]
    if word is not None:
        entries = [e for e in entries if word.casefold() in f"{e.name} {e.doc} {_group(e)}".casefold()]
        if not entries:
            names = [e.name for e in library()]
            raise error("E0401", f"nothing in the library has `{word}` in its name or its description",
                        help=near(word, names) or "`unipelt list --all` shows everything")  # fmt: skip
    if as_table:
        from .overview import show_table

        show_table(entries, as_json)
        return
    if as_json:
        emit({"ok": True, "definitions": [
            {"kind": e.kind, "name": e.name, "doc": e.doc, "file": Path(e.file).name, "group": _group(e)} for e in entries
        ]})  # fmt: skip
        return
    groups: dict[str, list[Entry]] = {}
    for e in sorted(entries, key=lambda e: (e.kind != "method", _group(e))):
        groups.setdefault(_group(e), []).append(e)
    width = max(len(e.name) for e in entries)
    for n, (group, members) in enumerate(groups.items()):
        tell(f"{chr(10) if n else ''}{group}")
        for e in members:
            front = f"  {e.name:<{width}}  "
            tell(front + cut(e.doc, columns() - len(front)))


def _group(e: Entry) -> str:
    """The heading of a definition: the family of a method, which is its file's name; the kind of anything else."""
    return Path(e.file).stem.replace("_", " ") if e.kind == "method" else plural(e.kind, 2)
