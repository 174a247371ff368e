"""What an error looks like."""

import json

import pytest

from unipelt.language.report.diagnostics import Diagnostic, Label, PeltError
from unipelt.language.loading import parse
from unipelt.language.analyse.verdicts import verdicts
from unipelt.language.report.render import render_all, to_json
from unipelt.language.report.texts import Source, remember, shown
from unipelt.language.syntax.nodes import Span

TEXT = """\
form x {
  down: [d_in, r]

  b: [r] ~ zeros
  up:   [r_out, d_out] ~ zeros
  delta = relu(z @ down) @ up
}
"""


def place(text, file="mine.pelt", source=TEXT, nth=0):
    at = -1
    for _ in range(nth + 1):
        at = source.index(text, at + 1)
    return Span(file, at, at + len(text))


def show(*diagnostics, source=TEXT, **more):
    remember(Source("mine.pelt", source))
    return render_all(diagnostics, **more)


def test_the_layout_of_the_page():
    d = Diagnostic(
        "E0312",
        "the sizes of `@` do not agree",
        place("@", nth=1),
        "last size r, first size r_out",
        (Label(place("[r_out, d_out]"), "first size: r_out"), Label(place("relu(z @ down)"), "batch, token, [r]")),
        ("r = 64 (parameter)", "r_out = 32 (parameter)"),
        "a parameter with a similar name exists: `r`",
    )
    expected = """\
error[E0312]: the sizes of `@` do not agree
  --> mine.pelt:6:26
   |
 5 |   up:   [r_out, d_out] ~ zeros
   |         -------------- first size: r_out
 6 |   delta = relu(z @ down) @ up
   |           -------------- ^ last size r, first size r_out
   |           |
   |           batch, token, [r]
   = where   r = 64 (parameter), r_out = 32 (parameter)
   = help    a parameter with a similar name exists: `r`"""
    assert show(d) == expected == str(PeltError(d))


def test_lines_between():
    d = Diagnostic(
        "E1", "m", place("down:"), "", (Label(place("b:"), "one"), Label(place("}"), "two")), severity="warning"
    )
    assert (
        show(d)
        == """\
warning[E1]: m
  --> mine.pelt:2:3
   |
 2 |   down: [d_in, r]
   |   ^^^^^
 3 |
 4 |   b: [r] ~ zeros
   |   -- one
...
 7 | }
   | - two"""
    )


def test_several_labels_hang():
    labels = (Label(place("relu"), "one"), Label(place("z @ down"), "two"))
    assert show(Diagnostic("E1", "m", place("delta"), "here", labels)).splitlines()[4:] == [
        "   |   ^^^^^   ---- -------- two",
        "   |   |       |",
        "   |   |       one",
        "   |   here",
    ]


def test_marks_that_lie_in_each_other():
    rows = show(Diagnostic("E1", "m", place("@"), "op", (Label(place("relu(z @ down)"), "all"),))).splitlines()[4:]
    assert rows == [
        "   |           -------^------",
        "   |           |      |",
        "   |           |      op",
        "   |           all",
    ]


def test_without_a_place():
    assert show(Diagnostic("E1", "m", help="do this")) == "error[E1]: m\n   = help    do this"
    assert show(Diagnostic("E1", "m", Span("unknown", 3, 4))) == "error[E1]: m\n  --> unknown"


def test_labels_in_another_file():
    remember(Source("other.pelt", "\n" * 11 + "form y {}"))
    d = Diagnostic("E1", "m", place("}"), "", (Label(Span("other.pelt", 16, 17), "there"),))
    assert show(d).splitlines()[1:] == [
        "   --> mine.pelt:7:1",
        "    |",
        "  7 | }",
        "    | ^",
        "   ::: other.pelt:12:6",
        "    |",
        " 12 | form y {}",
        "    |      - there",
    ]


def test_a_place_over_several_lines_and_behind_the_end():
    assert show(Diagnostic("E1", "m", Span("mine.pelt", 0, len(TEXT)))).splitlines()[-1] == "   | ^^^^^^^^"
    end = len(TEXT)
    assert show(Diagnostic("E1", "m", Span("mine.pelt", end, end))).splitlines()[-2:] == [" 8 |", "   | ^"]
    assert show(Diagnostic("E1", "m", Span("mine.pelt", end + 9, end + 99)))


def test_nothing_of_a_file_reaches_the_terminal_raw():
    text = "a \x1b[31m\t日本 \u202e e\u0301 x"
    d = Diagnostic("E1", "m\x07\n", place("x", source=text, nth=1 if "x" in text[:-1] else 0), "l\x1b", help="h\x00")
    shown = show(d, source=text)
    assert all(c.isprintable() or c == "\n" or c == "\u0301" for c in shown)
    line, mark = shown.splitlines()[-3:-1]
    assert r"a \x1b[31m    日本 \u202e" in line
    # Two columns for each wide character, none for a combining one.
    assert mark.index("^") == line.index("x", -1 + len(line)) + 2 - 1
    assert r"\x07" in shown and r"\x00" in shown


def test_very_long_lines_are_cut():
    text = "a" * 5000 + "X" + "b" * 5000
    shown = show(Diagnostic("E1", "m", place("X", source=text), "here"), source=text)
    line, mark = shown.splitlines()[-2:]
    assert len(line) < 200 and line[mark.index("^")] == "X"


def test_several_diagnostics_and_color():
    a, b = Diagnostic("E1", "one", place("up")), Diagnostic("W2", "two", place("b"), severity="warning")
    assert show(a, b).count("\n\n") == 1 and show() == ""
    colored = show(a, b, color=True)
    assert "\x1b[1;31m" in colored
    import re

    assert re.sub(r"\x1b\[[\d;]*m", "", colored) == show(a, b)


def test_json():
    d = Diagnostic("E1", "m", place("up"), "l", (Label(Span("unknown", 1, 2), "t"),), ("r = 1",), "h")
    remember(Source("mine.pelt", TEXT))
    value = json.loads(json.dumps(to_json(d)))
    assert value["place"] == {
        "file": "mine.pelt", "start": TEXT.index("up"), "end": TEXT.index("up") + 2,
        "line": 5, "column": 3, "end_line": 5, "end_column": 5,
    }  # fmt: skip
    assert value["labels"][0]["place"]["line"] is None and value["where"] == ["r = 1"] and value["help"] == "h"
    assert to_json(Diagnostic("E1", "m"))["place"] is None


def test_each_text_shows_its_own_lines():
    """Texts that lie in no file are told apart: what is said of the first later on quotes the first."""
    one = parse(
        "method one {\n  modify ffn\n  insert parallel\n  form { delta = mean(z, positions) }\n  compose h + delta\n}"
    )
    two = parse(
        "# another\n\nmethod two { modify ffn insert parallel form { delta = mean(z, tokens) } compose h + delta }"
    )
    assert [shown(verdicts(m)["causal"].span).rpartition(">")[2] for m in (one, two)] == [":4:26", ":3:64"], (
        "where `positions` and `tokens` stand"
    )
    assert parse("method two { use lora }").span.file == parse("method two { use lora }").span.file
    with pytest.raises(TypeError, match="a text is needed, not int"):
        parse(3)
