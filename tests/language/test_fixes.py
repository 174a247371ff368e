"""Twenty mistakes that beginners make, each put right by what its help says alone: the edits are applied as they stand."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from unipelt.language.report.diagnostics import Diagnostic, TextEdit
from unipelt.language.report.fixes import edited, fixed
from unipelt.language.loading import check_text
from unipelt.language.report.render import to_json
from unipelt.language.report.texts import Source
from unipelt.language.syntax.nodes import Span

ROOT = Path(__file__).parents[2]
GOOD = """form narrow(r: int, act: activation = relu) {
  down: [d_in, r]  ~ normal(0.02)
  up:   [r, d_out] ~ zeros
  delta = act(z @ down) @ up
}

compose doubled(s: float) = h + s * delta

method mine(r: int = 8, s: float = 2.0) {
  modify  ffn
  insert  parallel
  form    narrow(r)
  compose doubled(s)
}
"""
#: What a beginner writes instead of what; the first is found once in the good program.
MISTAKES = {
    "a site misspelt": ("modify  ffn", "modify  fnn"),
    "a form misspelt": ("form    narrow(r)", "form    narow(r)"),
    "a composition misspelt": ("compose doubled(s)\n}", "compose doubeld(s)\n}"),
    "a tensor misspelt": ("z @ down", "z @ dwon"),
    "a distribution misspelt": ("~ normal(0.02)", "~ nromal(0.02)"),
    "a type misspelt": ("act: activation", "act: activaton"),
    "a keyword misspelt": ("insert  parallel", "inser  parallel"),
    "a definition's keyword misspelt": ("method mine", "metod mine"),
    "an insertion misspelt": ("insert  parallel", "insert  paralel"),
    "an argument's name misspelt": ("narrow(r)", "narrow(r, atc = gelu)"),
    "an activation misspelt": ("= relu)", "= rleu)"),
    "a function misspelt": ("= act(z @ down)", "= tahn(z @ down)"),
    "sizes swapped": ("down: [d_in, r] ", "down: [r, d_in] "),
    "a matrix turned that need not be": ("@ up\n", "@ up.T\n"),
    "`@` with a number": ("s * delta", "s @ delta"),
    "a number in quotes": ("r: int = 8", 'r: int = "8"'),
    "a float where a whole number is wanted": ("r: int = 8", "r: int = 8.0"),
    "a size that is a float": ("r: int = 8", "r: float = 8"),
    "the result called otherwise": ("  delta = act", "  y = act"),
    "`h` in a form": ("act(z @ down)", "act(h @ down)"),
    "a colon behind a clause": ("modify  ffn", "modify: ffn"),
    "an equals sign behind a clause": ("insert  parallel", "insert = parallel"),
    "a semicolon": ("modify  ffn\n", "modify  ffn;\n"),
    "a power as in other languages": ("s * delta", "s^2 * delta"),
    "no sizes' brackets": ("up:   [r, d_out] ~ zeros\n", "up:   [r, d_out] ~ zeros\n  b: d_out ~ zeros\n"),
    "`=` where `~` is meant": ("up:   [r, d_out] ~ zeros", "up:   [r, d_out] = zeros"),
    "a brace left out": ("compose doubled(s)\n}", "compose doubled(s)\n"),
    "a brace too many": ("compose doubled(s)\n}", "compose doubled(s)\n}\n}"),
    "a bracket left out": ("form    narrow(r)", "form    narrow(r"),
    "no composition": ("  compose doubled(s)\n}", "}"),
    "a keyword as a name": (
        "= act(z @ down) @ up",
        "= act(z @ down) @ up\n  gate: [d_out] ~ zeros\n  delta = delta * gate",
    ),
    "two sites without a comma": ("modify  ffn", "modify  attn ffn"),
    "`per head` at a sublayer": ("up:   [r, d_out] ~ zeros", "up:   [r, d_out] ~ zeros per head"),
    "an import at the end": ("compose doubled(s)\n}", 'compose doubled(s)\n}\nimport "others.pelt"'),
}


def mistakes(text: str) -> list[Diagnostic]:
    return [d for c in check_text(text, "mine.pelt") for d in c.diagnostics]


@pytest.mark.parametrize("name", MISTAKES)
def test_the_help_alone_puts_it_right(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("others.pelt").write_text("compose others = 3 * h\n")
    good, bad = MISTAKES[name]
    assert GOOD.count(good) == 1 and not mistakes(GOOD)
    text = GOOD.replace(good, bad)
    found = mistakes(text)
    assert len(found) == 1, "one mistake, one error"
    seen = []
    while found:
        assert len(seen) < 4, "each remedy brings the text nearer to a good one"
        (d,) = found
        assert d.edits and d.help and to_json(d)["edits"], f"the help `{d.help}` cannot be applied"
        new = edited(text, d.edits)
        for e in d.edits:  # it is what the help says, or a piece of the text that moves
            assert e.text.strip(" \n,:") in d.help or e.text.strip() in text, (e.text, d.help)
        assert new != text
        text, found = new, mistakes(new)
        seen.append(d.code)
    assert fixed(GOOD.replace(good, bad), "mine.pelt")[0] == text


def test_there_are_twenty() -> None:
    assert len(MISTAKES) >= 20


def test_edits_that_touch_the_same_text_are_not_both_applied() -> None:
    def edit(a: int, b: int, text: str) -> TextEdit:
        return TextEdit(Span("f", a, b), text)

    assert edited("abcdef", [edit(0, 2, "X"), edit(1, 3, "Y"), edit(4, 4, "+"), edit(5, 6, "")]) == "Xcd+e"
    assert edited("abc", [edit(0, 1, "X"), edit(0, 1, "X")]) == "Xbc"


def test_what_would_not_get_better_is_left_alone() -> None:
    text = "method m {\n  modify ffn\n  insert parallel\n  form { A: [d_in, 4] ~ zeros delta = A @ z.T }\n  compose h + delta\n}\n"
    assert fixed(text, "mine.pelt") == (text, [])


def run(*arguments: str, cwd: Path) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "unipelt.cli.main", *arguments], cwd=cwd, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)}, timeout=60,
    )  # fmt: skip


def test_check_fix_changes_files_and_says_what(tmp_path: Path) -> None:
    bad = GOOD.replace("modify  ffn", "modify  fnn").replace("z @ down", "z @ dwon")
    (tmp_path / "mine.pelt").write_bytes(b"\xef\xbb\xbf" + bad.replace("\n", "\r\n").encode())
    (tmp_path / "good.pelt").write_text(GOOD)
    before = (tmp_path / "good.pelt").stat().st_mtime_ns
    done = run("check", "--fix", ".", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "mine.pelt: fixed E0302: there is no site `fnn`" in done.stderr and "fixed E0301" in done.stderr
    assert (tmp_path / "mine.pelt").read_bytes() == b"\xef\xbb\xbf" + GOOD.replace("\n", "\r\n").encode()
    assert (tmp_path / "good.pelt").stat().st_mtime_ns == before, "a good file is not written"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["good.pelt", "mine.pelt"]


def test_check_fix_leaves_what_it_cannot_mend(tmp_path: Path) -> None:
    text = "method m {\n  modify ffn\n  compose nothing_like_it\n}\n"
    (tmp_path / "mine.pelt").write_text(text)
    done = run("check", "--fix", "mine.pelt", cwd=tmp_path)
    assert done.returncode == 1 and "error[E0221]" in done.stderr and (tmp_path / "mine.pelt").read_text() == text


def test_colour_is_for_terminals(tmp_path: Path) -> None:
    (tmp_path / "mine.pelt").write_text(GOOD.replace("ffn", "fnn"))
    assert "\x1b" not in run("check", "mine.pelt", cwd=tmp_path).stderr
    for plain in ({}, {"NO_COLOR": "1"}):
        ours, theirs = pty.openpty()
        with subprocess.Popen(
            [sys.executable, "-m", "unipelt.cli.main", "check", "mine.pelt"], cwd=tmp_path, stderr=theirs, stdout=subprocess.DEVNULL,
            env={**{k: v for k, v in os.environ.items() if k != "NO_COLOR"}, "PYTHONPATH": str(ROOT), **plain},
        ):  # fmt: skip
            os.close(theirs)
            shown = b""
            try:
                while chunk := os.read(ours, 4096):
                    shown += chunk
            except OSError:
                pass  # the other end is closed
        os.close(ours)
        assert b"E0302" in shown and (b"\x1b[1;31m" in shown) == (not plain)


def test_offsets_are_those_of_the_text_that_was_read() -> None:
    """A byte order mark and other line ends do not shift edits."""
    bad = GOOD.replace("modify  ffn", "modify  fnn")
    assert fixed("\ufeff" + bad.replace("\n", "\r\n"), "mine.pelt")[0] == GOOD
    assert Source("x", bad).position(bad.index("fnn")) == (10, 11)


def test_a_text_that_can_be_read_is_better_than_one_that_cannot() -> None:
    """A decimal comma hides every other mistake of its definition; putting it right shows them."""
    bad = "method m {\n  modify fnn\n  insert parallel\n  form {\n    A: [d_in, d_out] ~ normal(0,02)\n    delta = z @ A\n  }\n  compose add\n}\n"
    now, done = fixed(bad, "mine.pelt")
    assert [d.code for d in done] == ["E0112", "E0302"] and now == bad.replace("0,02", "0.02").replace("fnn", "ffn")
    unknown = bad.replace("fnn", "nowhere_at_all")
    assert fixed(unknown, "mine.pelt")[0] == unknown.replace("0,02", "0.02"), (
        "what cannot be put right stays, and is seen now"
    )
