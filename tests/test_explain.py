"""Every error code has a page, and what a page shows is what the checker says."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

import unipelt
from names import spec
from unipelt.cli.app import app
from unipelt.cli.explain import mistakes
from unipelt.language.report.diagnostics import PeltError
from unipelt.language.report.explain import page
from unipelt.language.report.pages import Page, pages
from unipelt.language.report.render import render_all
from unipelt.language.loading import check_text
from unipelt.language.sites import signature
from unipelt.language.words import words

PACKAGE = Path(unipelt.__file__).parent


def constants() -> Iterator[tuple[str, str]]:
    """Every error code written down in the package, with its place."""
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if (
                isinstance(node, ast.Constant)
                and isinstance(node.value, str)
                and re.fullmatch(r"[EW]\d{4}", node.value)
            ):
                yield node.value, f"{path.relative_to(PACKAGE)}:{node.lineno}"


def call(*arguments: str, code: int = 0) -> str:
    done = CliRunner().invoke(app, ["explain", *arguments])
    assert done.exit_code == code, done.output
    return done.output


def test_a_site_is_explained_too() -> None:
    lines = {
        name.strip(): text
        for name, _, text in (line.strip().partition("  ") for line in call("attn.heads").splitlines()[1:])
    }
    types = "h: batch, head, token, [d_head]; x: batch, token, [d_model]; q: batch, head, token, [d_head]; log_mass: batch, head, token, []"
    assert {n: t.strip() for n, t in lines.items()} == {**signature("attn.heads").described(), "types": types}  # type: ignore[union-attr]
    assert "log_mass, scale, attn.q(…)" in lines["also"] and json.loads(call("embed", "--json"))["x"] == ""
    assert call("attn.q.weight").startswith("attn.q.weight\n")


def test_every_code_that_is_raised_has_a_page_and_every_page_a_code() -> None:
    raised = dict(constants())
    assert len(raised) > 250
    lacking = [f"{code} ({place})" for code, place in raised.items() if code not in pages()]
    assert not lacking, f"write a page in unipelt/language/report/codes for: {', '.join(lacking)}"
    assert not set(pages()) - set(raised), "pages of codes that nothing raises"


def test_every_code_that_is_raised_is_named_by_a_test() -> None:
    """So that no error path is one that nothing has ever gone: a test asserts the code, or an output of tests/bad shows it."""
    below = Path(__file__).parent
    files = [*below.rglob("*.py"), *(below / "bad").glob("*.txt")]
    named = {code for path in files for code in re.findall(r"[EW]\d{4}", path.read_text("utf-8"))}
    untested = [f"{code} ({place})" for code, place in dict(constants()).items() if code not in named]
    assert not untested, f"write a test that reaches: {', '.join(untested)}"


@pytest.mark.parametrize("found", [p for p in pages().values() if p.example], ids=lambda p: p.code)
def test_an_example_raises_its_code_and_nothing_else(found: Page) -> None:
    said = mistakes(found)
    assert [d.code for d in said] == [found.code], render_all(said)
    assert not found.needs and not found.command


def test_pages_without_an_example_say_why() -> None:
    commands = {c.name or c.callback.__name__ for c in app.registered_commands}
    static = [p.code for p in pages().values() if p.code < "E0400" and not p.example]
    assert len(static) < 15, "what the checker can say without a model has an example"
    for p in pages().values():
        assert p.title[0].islower() or p.title.startswith(("`", "NaN")), p.code
        assert p.meaning.endswith((".", "…")) and p.remedy and not p.title.endswith("."), p.code
        if p.example:
            continue
        assert p.needs and p.command, p.code
        for name in re.findall(r"\bunipelt\.(\w+)\(", p.command):
            assert name in unipelt.__all__, f"{p.code}: there is no unipelt.{name}"
        for name in re.findall(r"\bunipelt ([a-z]+)", p.command):
            assert name in commands, f"{p.code}: there is no command {name}"


def test_a_page_shows_the_output_of_today() -> None:
    text = call("E0312")
    found = page("E0312")
    flat = re.sub(r"\s+", " ", text)
    assert text.startswith(f"E0312: {found.title}\n") and found.meaning in flat and found.remedy in flat
    for line in (render_all(mistakes(found)) + "\n" + found.example).splitlines():
        assert f"  {line}".rstrip() in text.splitlines(), line
    for written in ("e0312", "E312", "312"):
        assert call(written) == text
    assert "\x1b" not in text


def test_a_page_that_cannot_be_run_says_so() -> None:
    text = call("E0530")
    assert "not run here" in text and "needs a model" in text and pages()["E0530"].command in text


def test_the_page_and_the_list_as_data() -> None:
    data = json.loads(call("E0312", "--json"))
    assert data["ok"] and data["code"] == "E0312" and data["diagnostics"][0]["place"]["line"] == 7
    assert data["diagnostics"][0]["code"] == "E0312" and data["example"] == page("E0312").example
    listed = json.loads(call("--json"))["codes"]
    assert [c["code"] for c in listed] == sorted(pages())
    lines = call().splitlines()
    assert len(lines) == len(pages()) and "E0312  the sizes of a matrix product do not agree" in lines


@pytest.mark.parametrize("wrong,near", [("E0321x", "E0321"), ("E03122", "E0312"), ("E3012", "E0312"), ("W0312", "")])
def test_codes_that_are_close(wrong: str, near: str) -> None:
    if not near:
        assert call(wrong) == call("E0312")
        return
    text = call(wrong, code=1)
    assert "error[E0409]" in text and f"`{wrong}`" in text and near in text


def test_a_site_that_is_misspelt() -> None:
    with pytest.raises(PeltError) as caught:
        page("attn.headz")
    assert caught.value.diagnostics[0].help == "did you mean `attn.heads`?"


def test_a_code_that_is_like_none() -> None:
    with pytest.raises(PeltError) as caught:
        page("banana")
    assert caught.value.diagnostics[0].code == "E0409" and "`unipelt explain`" in caught.value.diagnostics[0].help


def test_no_page_knows_a_method_of_the_library() -> None:
    """The library can be another one (its names are data), so examples define what they use."""
    names = {e.name for e in unipelt.library() if e.kind != "anatomy"} - {
        "adapter",
        "add",
        "replace",
        "linear",
        "prefix",
    }
    for p in pages().values():
        assert not {w for w in re.findall(r"\w+", p.example) if w in names}, p.code


@pytest.mark.parametrize("word", words().values(), ids=words())
def test_a_word_is_explained_with_an_example_that_checks_and_uses_it(word) -> None:
    assert word.doc and re.search(rf"\b{word.name}\b", word.example), (
        f"write an example of `{word.name}` in unipelt/language/words"
    )
    found = check_text(spec(word.example), "example.pelt")
    assert not [d for c in found for d in c.diagnostics], render_all([d for c in found for d in c.diagnostics])
    shown = call(word.name)
    assert shown.startswith(f"{word.name} (") and all(line.strip() in shown for line in word.example.splitlines())
    assert json.loads(call(word.name, "--json"))["kind"] == word.kind


def test_a_misspelt_word_is_told_from_a_code() -> None:
    assert "did you mean `softmax`?" in call("softmux", code=1)
    assert "did you mean `attn.q`?" in call("att.q", code=1)
