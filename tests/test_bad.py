"""The corpus of wrong programs: what is said of each, to the letter.

``tests/bad/NAME.pelt`` is a wrong program, ``NAME.txt`` what `unipelt check` says of it. An expected output is changed by
a person who has read it: ``python tests/test_bad.py --write`` writes only those that are not there, so that one that
is to change is deleted first.
"""

from __future__ import annotations

import os
import re
import sys
from collections import Counter
from pathlib import Path

import pytest

from unipelt.language.explain import pages
from unipelt.language.loading import check
from unipelt.language.render import render_all

FOLDER = Path(__file__).parent / "bad"
PROGRAMS = sorted(FOLDER.glob("*.pelt"))


def output(path: Path) -> str:
    """What the check says of a program, as one reads it who stands in its folder."""
    before = Path.cwd()
    os.chdir(path.parent)
    try:
        return render_all([d for c in check(Path(path.name)) for d in c.diagnostics]) + "\n"
    finally:
        os.chdir(before)


@pytest.mark.parametrize("path", PROGRAMS, ids=lambda p: p.stem)
def test_what_is_said(path: Path) -> None:
    expected = path.with_suffix(".txt")
    assert expected.is_file(), "write it with `python tests/test_bad.py --write`, and read it"
    assert output(path) == expected.read_text("utf-8")


def codes(path: Path) -> list[str]:
    return re.findall(r"^error\[(E\d{4})\]", path.with_suffix(".txt").read_text("utf-8"), re.MULTILINE)


def test_the_corpus_is_large_and_holds_every_code_that_a_check_can_raise() -> None:
    assert len(PROGRAMS) >= 200
    assert {p.stem for p in FOLDER.glob("*.txt")} == {p.stem for p in PROGRAMS}
    count = Counter(c for p in PROGRAMS for c in set(codes(p)))
    few = {p.code for p in pages().values() if p.example and count[p.code] < 2}
    assert not few, f"each code that has an example has two programs at least: {sorted(few)}"


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
            program.with_suffix(".txt").write_text(output(program), "utf-8")
            print(f"wrote {program.stem}.txt: read it")
