"""Every remedy of the corpus of wrong programs is carried out: the mistake is gone, and what is left checks or is another one.

Where a help is an edit, the edit is made. Where it is a sentence that says what to write, `RULES` write that in the place
of the mistake, as a reader does who knows nothing else. Where it leaves the change to the reader, `remedies_by_hand` has it.
"""

from __future__ import annotations

import os
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from remedies_by_hand import BY_HAND
from test_bad import PROGRAMS, found

from unipelt.language.report.diagnostics import Diagnostic
from unipelt.language.report.fixes import edited
from unipelt.language.loading import check
from unipelt.language.report.render import remedy

#: What a help says, and what may then stand in the place of the mistake: the first that helps is taken.
RULES: list[tuple[str, Callable[[re.Match[str], str, Diagnostic], list[str]]]] = [
    (r"for example (.+)", lambda m, s, d: [m[1], re.sub(r"= .*", f"= {m[1]}", s)]),
    (r"remove it|do without it for now|leave this index out: .*", lambda m, s, d: [""]),
    (r"(?:known|types|sites|owners|in scope|modules here|parameters): (.+)", lambda m, s, d: m[1].split(", ")),
    (r"choose another name, for example `(\w+)`", lambda m, s, d: [m[1]]),
    (r"choose another name|rename one of them|rename the parameter|give one of them another name",
     lambda m, s, d: [re.sub(rf"\b{w}\b", f"{w}_2", s) for w in re.findall(r"`(\w+)`", d.message)]),
    (r"write `([\w.]+)\(…\)`", lambda m, s, d: [f"{m[1]}(z)"]),
    (r"write `(\w+)\(…, tokens\)` or .*", lambda m, s, d: ["tokens"]),
    (r"write `input task: (index\(8\))` for .*", lambda m, s, d: [m[1]]),
    (r"write `per site` after it .*", lambda m, s, d: [f"{s} per site", f"{s} per head"]),
    (r"write `([^`…]+)`", lambda m, s, d: [m[1]]),
    (r"correct the number", lambda m, s, d: ["1", re.sub(r"\(.*\)", "(1)", s)]),
    (r"write a size of at least 1|give it one|write a number of at least 0", lambda m, s, d: ["1", re.sub(r"\(.*\)", "(A)", s)]),
    (r"write a share, for example `([\d.]+)` or .*", lambda m, s, d: [m[1]]),
    (r"round it.* `floor\(…\)`.*", lambda m, s, d: [f"floor({s})"]),
    (r"select all, first k, (last) k, every k or a .. b", lambda m, s, d: ["all", "last 1"]),
    (r"share it `per (kind)` .*", lambda m, s, d: [m[1]]),
    (r"call it, as in `\w+\(z\)`", lambda m, s, d: [f"{s}(z)"]),
    (r"reduce it, for example with `sum\(…, (\w+)\)`", lambda m, s, d: [s.replace("delta", f"sum(delta, {m[1]})")]),
    (r"choose a smaller size", lambda m, s, d: [re.sub(r"10 ?\*\* ?\d+", "10", s)]),
    (r"bind other arguments, or correct the requirement|write a comparison, or `divides\(a, b\)`", lambda m, s, d: ["require 1 < 2", "1 < 2"]),
    (r"compute it: `(g = sigmoid\(b\))`", lambda m, s, d: [f"b: [] ~ zeros  {m[1]}"]),
    (r"give both branches the same type: `(0 \* z)` is .*", lambda m, s, d: [m[1]]),
    (r"write a range that lies within the size", lambda m, s, d: ["0 : 1", "1", "b[0 : 1]"]),
    (r"leave the names of the arguments out", lambda m, s, d: [re.sub(r"\w+ = ", "", s)]),
    (r"give it 1; what it is: .*", lambda m, s, d: [re.sub(r", [^)]*", "", s)]),
]  # fmt: skip


@dataclass
class Desk:
    """A program with what it imports, where it can be changed."""

    program: Path

    def mistakes(self) -> list[Diagnostic]:
        before = Path.cwd()
        os.chdir(self.program.parent)
        try:
            return [d for c in check(Path(self.program.name)) for d in (*c.diagnostics, *c.hints)]
        finally:
            os.chdir(before)

    def file(self, d: Diagnostic) -> Path:
        return self.program.parent / d.span.file

    def with_text(self, file: Path, text: str, back: bool = True) -> list[Diagnostic]:
        """What is said once the file has that text."""
        old = file.read_bytes()
        file.write_text(text, "utf-8")
        try:
            return self.mistakes()
        finally:
            if back:
                file.write_bytes(old)


def text_of(file: Path) -> str:
    return file.read_text("utf-8", errors="replace")


def gone(d: Diagnostic, before: list[Diagnostic], after: list[Diagnostic]) -> bool:
    """Whether the mistake is gone, and not because the text can no longer be read."""
    was, now = (Counter((x.code, x.message) for x in those) for those in (before, after))
    if now[d.code, d.message] >= was[d.code, d.message]:
        return False
    return d.code < "E02" or not any(x.code < "E02" and not was[x.code, x.message] for x in after)


def by_rule(text: str, d: Diagnostic) -> Iterator[str]:
    for pattern, write in RULES:
        match = re.fullmatch(pattern, remedy(d))
        if match:
            for new in write(match, text[d.span.start : d.span.end], d):
                yield text[: d.span.start] + new + text[d.span.end :]
            return


@pytest.mark.parametrize("path", PROGRAMS, ids=lambda p: p.stem)
def test_every_remedy_is_carried_out(path: Path, tmp_path: Path) -> None:
    shutil.copy(path, tmp_path)
    if path.with_suffix("").is_dir():
        shutil.copytree(path.with_suffix(""), tmp_path / path.stem)
    desk = Desk(tmp_path / path.name)
    before = desk.mistakes()
    assert before
    for d in before:
        said = remedy(d)
        assert said, f"{d.code} has no remedy"
        if d.edits:
            file = tmp_path / d.edits[0].span.file
            assert gone(d, before, desk.with_text(file, edited(text_of(file), d.edits))), said
        elif path.stem in BY_HAND.get(said, {}):
            change = BY_HAND[said][path.stem]
            for old, new, *where in change if isinstance(change, list) else [change]:
                file = tmp_path / where[0] if where else desk.file(d)
                if callable(new):
                    new(file)
                    continue
                text = text_of(file)
                assert old in text, (old, "is not in", file.name)
                file.write_text(text.replace(old, new), "utf-8")
            assert gone(d, before, desk.mistakes()), (said, [str(x) for x in desk.mistakes()])
            shutil.copy(path, tmp_path)
            if path.with_suffix("").is_dir():
                shutil.rmtree(tmp_path / path.stem)
                shutil.copytree(path.with_suffix(""), tmp_path / path.stem)
        else:
            file = desk.file(d)
            tried = list(by_rule(text_of(file), d))
            assert tried, f"write what a reader does who is told `{said}` into remedies_by_hand"
            assert any(gone(d, before, desk.with_text(file, new)) for new in tried), (said, tried)


def test_nothing_is_done_by_hand_that_nobody_is_told() -> None:
    said = {p.stem: {remedy(d) for d in found(p)} for p in PROGRAMS}
    untold = [(help_, p) for help_, programs in BY_HAND.items() for p in programs if help_ not in said[p]]
    assert untold == []
