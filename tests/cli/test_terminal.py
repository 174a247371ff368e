"""No text of a spec, label, record or file name reaches a terminal unescaped, and one module writes to it."""

from __future__ import annotations

import ast
import json
import re
import unicodedata
from pathlib import Path

import pytest
from test_commands import call
from typer.testing import CliRunner

import unipelt.cli
from unipelt.cli.app import app
from unipelt.cli.output import cut, pour, visible

#: Moves the cursor and clears the screen, sets the window's title, turns the direction of writing, is not seen; half a character.
NASTY = "\x1b[2J\x1b]0;title\x07 \u202eevil\u202c \u200b \x9b31m"
HALF = "\ud800"
#: In a docstring, in a text and in a comment. What a name may be the grammar says.
SPEC = f'''# a comment {NASTY}
method mine(r: int = 2) {{
  """A docstring {NASTY} of a method."""
  modify attn.q   insert parallel
  form {{ A: [d_in, r] ~ normal(0.3)  B: [r, d_out] ~ zeros  delta = z @ A @ B }}
  compose h + delta
}}
method words {{
  modify embed
  form {{ P: [2, d_out] ~ tokens("{NASTY}")   delta = P }}
  compose prepend(delta, h)
}}
method space {{
  """{NASTY}"""
  modify attn.q | attn.v   insert parallel
  form {{ A: [d_in, 2] ~ normal(0.3)  B: [2, d_out] ~ zeros  delta = z @ A @ B }}
  compose h + delta
}}
'''
WRONG = f'''method wrong {{
  """{NASTY}"""
  modify ffn   insert parallel
  form {{ delta = nosuch(z)  # {NASTY}
  }}
  compose h + delta
}}
'''


def hidden(text: str) -> list[str]:
    """The characters of a text, line ends apart, that a terminal acts on or does not show."""
    return [c for c in text if c != "\n" and (unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp"))]


@pytest.fixture
def desk(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("mine.pelt").write_text(SPEC, "utf-8")
    Path("wrong.pelt").write_text(WRONG, "utf-8")
    Path(f"n{NASTY.replace('/', '')}.pelt").write_text(WRONG, "utf-8")
    return tmp_path


def everything(*arguments: object) -> str:
    """What a command prints, all of it; as on a terminal where that makes a difference."""
    done = CliRunner().invoke(app, [str(a) for a in arguments])
    assert "this is a mistake in unipelt" not in done.output, done.output
    return done.output


@pytest.mark.parametrize("command", [
    "check .", "check . --json", "check . --sarif", "check mine.pelt", "fmt --check .", "fmt --diff mine.pelt", "fmt --diff mine.pelt --json",
    "show mine.pelt:mine", "show mine.pelt:mine --json", "show mine.pelt:mine --format markdown", "show mine.pelt:mine --format latex",
    "show mine.pelt:words", "show mine.pelt:words --json", "show mine.pelt:mine mine.pelt:words", "diff mine.pelt:mine mine.pelt:words",
    "equal mine.pelt:mine mine.pelt:words", "equal mine.pelt:mine mine.pelt:words --json", "generate mine.pelt:space",
    "generate mine.pelt:space --json", "vary mine.pelt:mine --insert parallel,sequential", "neighbours mine.pelt:mine",
    "cross mine.pelt:mine mine.pelt:words", "plan mine.pelt:mine --model BERT", "plan mine.pelt:words --model BERT",
    "plan mine.pelt:mine --model BERT --json", "list NASTY", "explain NASTY", "show NASTY", "show mine.pelt:mine --set NASTY=1",
    "plan mine.pelt:mine --model NASTY", "eval NASTY --data NASTY", "predict NASTY x", "merge NASTY --out x", "push NASTY me/x --dry-run",
    "export NASTY --out x.onnx", "train mine.pelt:mine --model BERT --data NASTY --out x", "check NASTY", "fmt NASTY",
])  # fmt: skip
def test_every_command_escapes_what_it_prints(command, desk, bert, monkeypatch):
    monkeypatch.setattr("unipelt.cli.output.on_terminal", lambda stream: True)
    words = [
        NASTY if w == "NASTY" else w.replace("NASTY", NASTY) if "NASTY" in w else bert if w == "BERT" else w
        for w in command.split()
    ]
    said = everything(*words)
    assert said.strip() and not hidden(said), (command, hidden(said), said)
    if "--json" in words or "--sarif" in words:
        json.loads(said)  # escaped as JSON may


def test_json_keeps_the_text_that_it_escapes(desk):
    out, _ = call("show", "mine.pelt:mine", "--json")
    assert NASTY in json.loads(out)["doc"]


def test_a_formatted_text_is_exact_in_a_pipe_and_escaped_on_a_terminal(desk, monkeypatch):
    done = CliRunner().invoke(app, ["fmt", "-"], input=SPEC)
    assert NASTY in done.stdout  # a filter changes nothing but the layout
    monkeypatch.setattr("unipelt.cli.output.on_terminal", lambda stream: True)
    assert not hidden(CliRunner().invoke(app, ["fmt", "-"], input=SPEC).stdout)


def test_predictions_are_escaped(tmp_path, intents, bert, monkeypatch, capsys):
    """Labels come from the data, and stay in the run's record."""
    from unipelt.cli import runs
    from unipelt.training.options import Opening, TaskOptions

    monkeypatch.setattr("unipelt.cli.output.on_terminal", lambda stream: True)
    label = f"in{NASTY}tent"

    class Task:
        inputs, table, max_length = ("text",), ("text", "label"), 8

    class Run:
        task = Task()

    monkeypatch.setattr("unipelt.training.saved.load_run", lambda *a, **k: Run())
    monkeypatch.setattr(
        "unipelt.training.saved.predict_run", lambda run, texts, *a: [{"text": t[0], "label": label} for t in texts]
    )
    for as_json in (False, True):
        runs.predict("x", [f"hello {NASTY}"], opening=Opening(), task=TaskOptions(), as_json=as_json)
        assert not hidden(capsys.readouterr().out)
    Task.table = ()
    monkeypatch.setattr(
        "unipelt.training.saved.predict_run", lambda run, texts, *a: [{"completion": NASTY + HALF} for t in texts]
    )
    runs.predict("x", ["hello"], opening=Opening(), task=TaskOptions())
    assert not hidden(capsys.readouterr().out)


def test_half_a_character_is_printed_as_an_escape(capsys):
    pour(f"a{HALF}b\n")
    assert capsys.readouterr().out == "a\\ud800b\n"


def test_a_usage_error_quotes_what_was_typed_escaped(monkeypatch, capsys):
    from unipelt.cli import main

    monkeypatch.setattr("sys.argv", ["unipelt", "show", "--" + NASTY])
    with pytest.raises(SystemExit) as e:
        main.main()
    said = capsys.readouterr().err
    assert e.value.code == 2 and "No such option" in said and not hidden(said)


def test_one_module_writes_to_the_terminal():
    folder = Path(unipelt.cli.__file__).parent
    for file in folder.glob("*.py"):
        if file.name == "output.py":
            continue
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                assert called not in ("print", "typer.echo", "typer.secho") and not re.search(
                    r"std(out|err)(\.buffer)?\.write", called
                ), (file, node.lineno)


@pytest.mark.parametrize(
    "text, width", [("a b  c\nd", 20), ("word " * 20, 30), ("一二三四五六七八九十", 9), (NASTY, 12), ("", 5)]
)
def test_a_line_is_cut_to_its_width(text, width):
    from rich.cells import cell_len

    line = cut(text, width)
    assert cell_len(line) <= width and "\n" not in line and not hidden(line)
    assert line == visible(" ".join(text.split())) or line.endswith("…")
