"""`unipelt fmt`: files in the canonical layout, each written whole or not at all."""

from __future__ import annotations

import difflib
import sys
from pathlib import Path

from ..language.files import replace
from ..language.report.diagnostics import Diagnostic, PeltError, counted, error
from ..language.syntax.format import format_text
from ..language.loading import pelt_files
from ..language.report.source import read, refuse_link
from .output import emit, pour, report, say, tell


def fmt_paths(paths: list[str], check_only: bool, diff: bool, as_json: bool) -> bool:
    """Formats files and folders, or stdin to stdout; whether all is well (with ``check_only`` or ``diff``: as it was)."""
    if "-" in paths:
        if len(paths) > 1:
            raise error("E0127", "`-` is stdin: use it alone", help="format the files in another call")
        return _stdin(check_only, diff, as_json)
    files = [f for p in paths for f in pelt_files(Path(p))]
    changed: list[str] = []
    differences: list[str] = []
    problems: list[Diagnostic] = []
    broken = 0
    for file in files:
        try:
            text = read(file).text
            new = format_text(text, str(file))
        except PeltError as e:
            problems += e.diagnostics
            broken += 1
            continue
        if new.encode() == file.read_bytes():
            continue
        changed.append(str(file))
        if diff:
            differences.append(_difference(text, new, str(file)))
        elif not check_only:
            write(file, new)
    if as_json:
        from ..language.report.render import to_json

        emit({"ok": not problems, "changed": changed, "files": len(files), "diagnostics": [to_json(d) for d in problems],
              **({"diff": "".join(differences)} if diff else {})})  # fmt: skip
    else:
        pour("".join(differences))
        report(problems, False)
        verb = "would change" if check_only or diff else "changed"
        for name in changed if not diff else ():
            tell(f"{name}: {verb}")
        left = f", {broken} left as {'it is' if broken == 1 else 'they are'}" if broken else ""
        say(f"{counted(len(files), 'file')}: {len(changed)} {verb}{left}")
    return not problems and not (changed and (check_only or diff))


def _stdin(check_only: bool, diff: bool, as_json: bool) -> bool:
    try:
        text = sys.stdin.buffer.read(1 << 21).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise error("E0124", "the text on stdin is not UTF-8", help="save it with the encoding UTF-8") from None
    new = format_text(text, "<stdin>")
    if as_json:
        emit({"ok": True, "changed": ["<stdin>"] if new != text else [], "files": 1, "diagnostics": [], "text": new,
              **({"diff": _difference(text, new, "<stdin>")} if diff else {})})  # fmt: skip
    elif diff:
        pour(_difference(text, new, "<stdin>"))
    elif not check_only:
        pour(new)
    return new == text or not (check_only or diff)


def _difference(old: str, new: str, name: str) -> str:
    lines = difflib.unified_diff(old.splitlines(keepends=True), new.splitlines(keepends=True), name, name)
    return "".join(line if line.endswith("\n") else line + "\n\\ No newline at end of file\n" for line in lines)


def write(file: Path, text: str) -> None:
    """Replace a file in one step. A link inside the folder is followed, the mode is kept."""
    refuse_link(file)
    target = file.resolve()
    replace(target, text.encode(), target.stat().st_mode & 0o777)
