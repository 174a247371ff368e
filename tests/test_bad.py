"""The corpus of wrong programs: what is said of each.

``tests/bad/NAME.pelt`` is a wrong program, and the folder ``NAME`` holds what it imports. ``NAME.txt`` is what `unipelt check`
says of it: for some 60 programs the whole text, to the letter; for the rest a line for each mistake, with its code, its place
and the words that matter (names, numbers, code to write), so that a sentence can be worded better without changing them all.

An expected text is changed by a person who has read it: ``python tests/test_bad.py --write`` writes only those that are not
there (``--whole``: as whole texts), so that one that is to change is deleted first. What cannot lie in a repository (a pipe,
a link to itself, a mebibyte) is built where it is checked.
"""

from __future__ import annotations

import errno
import io
import os
import re
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from unipelt.language.loading import check
from unipelt.language.report import source
from unipelt.language.report.diagnostic import Diagnostic
from unipelt.language.report.pages import pages
from unipelt.language.report.render import remedy, render_all
from unipelt.language.report.texts import place

FOLDER = Path(__file__).parent / "bad"
PROGRAMS = sorted(FOLDER.glob("*.pelt"))


#: Words of a message that matter: code, and numbers that stand alone.
WORDS_THAT_MATTER = re.compile(r"`[^`\n]+`|(?<![\w.`])\d[\d,.]*(?![\w`])")


def found(path: Path) -> list[Diagnostic]:
    """What the check finds in a program that is named as one names it who stands in its folder."""
    before = Path.cwd()
    os.chdir(path.parent)
    try:
        return [d for c in check(Path(path.name)) for d in (*c.diagnostics, *c.hints)]
    finally:
        os.chdir(before)


def output(path: Path) -> str:
    """What is said of it, as one reads it."""
    diagnostics = found(path)
    before = Path.cwd()
    os.chdir(path.parent)
    try:
        return render_all(diagnostics) + "\n"
    finally:
        os.chdir(before)


def places(d: Diagnostic) -> list[str]:
    """FILE:LINE:COLUMN of a mistake and of what stands beside it; FILE alone where its text is not known."""
    found = [p for span in (d.span, *(m.span for m in d.labels)) if (p := place(span)) is not None]
    return [":".join(str(p[k]) for k in ("file", "line", "column") if p[k] is not None) for p in found]


def brief(d: Diagnostic) -> str:
    """A mistake on one line: its code, its places, and the words that matter."""
    texts = (d.message, d.label, *(m.text for m in d.labels), *d.where, remedy(d))
    words = [w for t in texts for w in ([t] if t in d.where else WORDS_THAT_MATTER.findall(t))]
    return " | ".join([d.code, " ".join(places(d)), *dict.fromkeys(words)])


def whole(text: str) -> bool:
    return text.startswith(("error[", "warning["))


@pytest.mark.parametrize("path", PROGRAMS, ids=lambda p: p.stem)
def test_what_is_said(path: Path) -> None:
    file = path.with_suffix(".txt")
    assert file.is_file(), "write it with `python tests/test_bad.py --write`, and read it"
    expected = file.read_text("utf-8")
    if whole(expected):
        assert output(path) == expected
        return
    diagnostics = found(path)
    assert [d.code for d in diagnostics] == codes(path), render_all(diagnostics)
    for d, line in zip(diagnostics, expected.splitlines()):
        _, where, *words = line.split(" | ")
        assert places(d) == where.split(), render_all([d])
        said = "\n".join((d.message, d.label, *(m.text for m in d.labels), *d.where, remedy(d)))
        assert [w for w in words if w not in said] == [], render_all([d])


# ---------------------------------------------------------------- what is built where it is checked

LOW = "form low(r: int) {\n  A: [d_in, r]  ~ normal(0.02)\n  B: [r, d_out] ~ zeros\n  delta = z @ A @ B\n}\n"
WORDS = "\n".join(f"compose c{i} = h" for i in range(6251))


def importing(*paths: str, then: str = "") -> str:
    return "".join(f'import "{p}"\n' for p in paths) + then + "compose twice = h + 2 * delta\n"


def written(path: Path, text: str | bytes = LOW) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())


def locked(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that the system refuses to read, also to the superuser, whom permissions do not hold back."""

    def refuse(wanted: Path, *more: object) -> io.BytesIO:
        if wanted.name == path.name:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(wanted))
        return io.BytesIO(wanted.read_bytes())

    written(path)
    monkeypatch.setattr(source, "open", refuse, raising=False)


def pipe(path: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    os.mkfifo(path)  # whoever opens it waits for a writer, and there is none


def link(path: Path, target: str) -> None:
    path.parent.mkdir(exist_ok=True)
    path.symlink_to(target)


#: What is wrong: the code, what lies there, what is checked, the place that is named, what is said.
BUILT: dict[str, tuple[str, Callable[[pytest.MonkeyPatch], object], str, str, str]] = {
    "words": ("E0111", lambda _: written(Path("a.pelt"), WORDS), "a.pelt", "a.pelt:6251:1", "more than 25,000 words"),
    "words-in-one-line": (
        "E0111", lambda _: written(Path("a.pelt"), importing(then=f"compose c = h * [{'1, ' * 12500}1]\n")),
        "a.pelt", "a.pelt:1:37509", "split it into several files"),
    "words-in-an-import": (
        "E0111", lambda _: (written(Path("p/a.pelt"), WORDS), written(Path("b.pelt"), importing("p/a.pelt"))),
        "b.pelt", "p/a.pelt:6251:1", "::: b.pelt:1:1"),
    "gone": ("E0121", lambda _: written(Path("part.pelt")), "parts.pelt", "parts.pelt", "did you mean `part.pelt`?"),
    "without-its-ending": ("E0121", lambda _: written(Path("p/part.pelt")), "p/part", "p/part", "in `p`: did you mean `part.pelt`?"),
    "unlike": ("E0121", lambda _: written(Path("gone.pelt")), "wrong.pelt", "wrong.pelt", "check the path and the spelling"),
    "folder-gone": ("E0121", lambda _: None, "p/a.pelt", "p/a.pelt", "check the path and the spelling"),
    "file-as-folder": ("E0121", lambda _: written(Path("a.pelt")), "a.pelt/b.pelt", "a.pelt/b.pelt", "there is no file"),
    "link-to-nothing": ("E0121", lambda _: link(Path("a.pelt"), "c.pelt"), "a.pelt", "a.pelt", "there is no file `a.pelt`"),
    "device": ("E0122", lambda _: None, os.devnull, os.devnull, "name a `.pelt` file"),
    "pipe": ("E0122", lambda _: pipe(Path("a.pelt")), "a.pelt", "a.pelt", "is not a file"),
    "import-of-a-pipe": (
        "E0122", lambda _: (pipe(Path("p/a.pelt")), written(Path("b.pelt"), importing("p/a.pelt"))), "b.pelt", "b.pelt:1:1",
        "`p/a.pelt` is not a file"),
    "locked": ("E0123", lambda m: locked(Path("a.pelt"), m), "a.pelt", "a.pelt", "Permission denied"),
    "import-of-a-locked-file": (
        "E0123", lambda m: (locked(Path("p/a.pelt"), m), written(Path("b.pelt"), importing("p/a.pelt"))),
        "b.pelt", "p/a.pelt", "::: b.pelt:1:1"),
    "link-to-itself": ("E0123", lambda _: link(Path("a.pelt"), "a.pelt"), "a.pelt", "a.pelt", "check its name"),
    "import-of-a-link-to-itself": (
        "E0123", lambda _: (link(Path("p/a.pelt"), "a.pelt"), written(Path("b.pelt"), importing("p/a.pelt"))),
        "b.pelt", "b.pelt:1:1", "`p/a.pelt` cannot be read"),
    "name-too-long": ("E0123", lambda _: None, "a" * 300 + ".pelt", "a" * 300, os.strerror(errno.ENAMETOOLONG)),
    "latin-1": ("E0124", lambda _: written(Path("a.pelt"), LOW.encode() + b"# \xe9"), "a.pelt", "a.pelt", "(line 6)"),
    "large": ("E0126", lambda _: written(Path("a.pelt"), LOW + " " * (1 << 20)), "a.pelt", "a.pelt", "larger than 1 MiB"),
    "large-in-bytes": (
        "E0126", lambda _: written(Path("a.pelt"), "#" + "é" * (1 << 19)), "a.pelt", "a.pelt", "split it into several files"),
    "import-too-large": (
        "E0126", lambda _: (written(Path("p/a.pelt"), "\n" * (1 << 20) + LOW), written(Path("b.pelt"), importing("p/a.pelt"))),
        "b.pelt", "p/a.pelt", "::: b.pelt:1:1"),
    "imports": (
        "E0204", lambda _: [written(Path(f"p/{i}.pelt"), "") for i in range(65)]
        and written(Path("b.pelt"), importing(*(f"p/{i}.pelt" for i in range(65)))), "b.pelt", "b.pelt:65:1", "at most 64 files"),
    "chain-of-imports": (
        "E0204", lambda _: [written(Path(f"p/{i}.pelt"), importing(f"{i + 1}.pelt")) for i in range(65)]
        and written(Path("b.pelt"), importing("p/0.pelt")), "b.pelt", "p/63.pelt:1:1", "put several definitions into one file"),
}  # fmt: skip


@pytest.mark.parametrize("name", BUILT)
def test_what_is_said_of_what_no_repository_holds(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code, build, path, place, said = BUILT[name]
    monkeypatch.chdir(tmp_path)
    build(monkeypatch)
    diagnostics = [d for c in check(Path(path)) for d in c.diagnostics]
    text = render_all(diagnostics)
    assert [d.code for d in diagnostics] == [code], text
    assert f"--> {place}" in text and said in text and "= help" in text


# ---------------------------------------------------------------- what the corpus holds

#: What no check of files says, with the test that holds it.
ELSEWHERE = {
    "E0127": "cli/test_layout.py::test_stdin_stands_alone",
    "E0130": "language/test_printer.py::test_what_cannot_be_written_is_refused",
    "E0202": "language/test_loading.py::test_a_text_that_lies_in_no_file_cannot_import",
    "E0366": "compiler/test_by_layer.py::test_a_list_of_another_length",
    "E0393": "language/test_large_terms.py::test_whether_two_such_are_equal_is_not_known",
}


def codes(path: Path) -> list[str]:
    return re.findall(r"^(?:(?:error|warning)\[)?(E\d{4})\b", path.with_suffix(".txt").read_text("utf-8"), re.MULTILINE)


def test_the_corpus_is_large_and_holds_every_code_that_a_check_can_raise() -> None:
    assert len(PROGRAMS) >= 200
    assert 50 <= sum(whole(p.with_suffix(".txt").read_text("utf-8")) for p in PROGRAMS) <= 80
    assert {p.stem for p in FOLDER.glob("*.txt")} == {p.stem for p in PROGRAMS}
    assert {p.name for p in FOLDER.iterdir() if p.is_dir()} <= {p.stem for p in PROGRAMS}
    count = Counter(c for p in PROGRAMS for c in set(codes(p))) + Counter(code for code, *_ in BUILT.values())
    few = {
        code
        for code, p in pages().items()
        if (p.example or code < "E0400") and code not in ELSEWHERE and count[code] < 2
    }
    assert not few, f"each code of a check has two programs at least: {sorted(few)}"
    assert not [code for code in ELSEWHERE if count[code]]


@pytest.mark.parametrize("code", ELSEWHERE)
def test_what_no_check_of_files_says_is_held_by_another_test(code: str) -> None:
    file, name = ELSEWHERE[code].split("::")
    text = (Path(__file__).parent / file).read_text("utf-8")
    assert f"\ndef {name}(" in text and code in text


def test_programs_are_named_after_what_is_wrong() -> None:
    """``E0312-…`` has one mistake, of that code; ``several-…`` has more, and ``mutant-…`` is a spec with one change."""
    for path in PROGRAMS:
        first = path.stem.split("-")[0]
        found = codes(path)
        assert found, path.name
        if first == "several":
            assert len(found) > 1, path.name
        elif first == "mutant":
            assert len(found) == 1, f"{path.name}: one change gives {found}"
        else:
            assert found == [first], path.name


if __name__ == "__main__":
    for program in PROGRAMS if "--write" in sys.argv else ():
        if not program.with_suffix(".txt").exists():
            lines = "".join(f"{brief(d)}\n" for d in found(program))
            program.with_suffix(".txt").write_text(output(program) if "--whole" in sys.argv else lines, "utf-8")
            print(f"wrote {program.stem}.txt: read it")
