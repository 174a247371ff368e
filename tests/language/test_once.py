"""A mistake is reported once, where it stands, however many definitions and files meet it."""

from __future__ import annotations

from pathlib import Path

import pytest

from unipelt.language.report.diagnostics import Diagnostic, PeltError
from unipelt.language.check.elaborate import drafts
from unipelt.language.check.names import Names
from unipelt.language.loading import Checked, check, check_all, check_text, load
from unipelt.language.syntax.parser import parse
from unipelt.resources import folder
from names import name as named

BROKEN = """form f(r: int) {
  A: [d_in, r] ~ zeros
  delta = z @ B
}
method a { modify ffn insert parallel form f(4) compose h + delta }
method b { modify attn insert parallel form f(4) compose h + delta }
"""


def mistakes(found: list[Checked]) -> list[Diagnostic]:
    return [d for c in found for d in c.diagnostics]


def test_a_broken_form_is_one_mistake_of_all_that_use_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bad.pelt").write_text(BROKEN)
    for name in ("one", "two"):
        (tmp_path / f"{name}.pelt").write_text(f'import "bad.pelt"\nmethod {name} {{ use a }}\n')
    (tmp_path / "below").mkdir()
    (tmp_path / "three.pelt").write_text('import "below/../bad.pelt"\nmethod three { use b }\n')
    monkeypatch.chdir(tmp_path)
    (d,) = mistakes(check(Path(".")))
    assert d.code == "E0301" and d.span.file == "bad.pelt"
    found = check_all([Path("bad.pelt"), Path("./one.pelt"), tmp_path / "two.pelt"])
    assert {c.name for c in found if c.spoilt} == {"a", "b", "one", "two"}
    assert not any(c.method for c in found if c.spoilt)
    (d,) = mistakes(check(Path("three.pelt")))
    assert d.span.file == "bad.pelt", "a file is called as the importing one would call it"


def test_an_import_that_does_not_parse_is_reported_once(tmp_path: Path) -> None:
    (tmp_path / "bad.pelt").write_text("form f { delta = ( }\n")
    for name in ("one", "two"):
        (tmp_path / f"{name}.pelt").write_text(f'import "bad.pelt"\nmethod {name} {{ modify ffn compose 2 * h }}\n')
    assert [d.code for d in mistakes(check(tmp_path))] == ["E0101"]


def test_a_circle_is_one_mistake(tmp_path: Path) -> None:
    text = "method a { use c }\nmethod b { use a }\nmethod c from b { }\nmethod d { use b }\n"
    found = check_text(text, "circle.pelt")
    (d,) = mistakes(found)
    assert d.code == "E0213" and "`a` → `c` → `b` → `a`" in d.message and text[d.span.start :].startswith("a }")
    assert [bool(c.diagnostics or c.spoilt) for c in found] == [True] * 4


def test_a_file_given_twice_has_its_mistakes_once(tmp_path: Path) -> None:
    path = tmp_path / "bad.pelt"
    path.write_text(BROKEN)
    assert len(mistakes(check_all([path, path, tmp_path]))) == 1


def test_files_of_the_library_are_called_as_they_were_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder("specs").parent)
    specs = folder("specs").name
    paths = [Path(specs, "adapters.pelt"), Path(specs, "blocks.pelt")]  # the first uses forms of the second
    methods = [c.method for c in check_all(paths) if c.method is not None]
    assert {line.span.file for m in methods for r in m.rows for line in r.form} == {*map(str, paths)}
    assert {m.span.file for m in methods} == {str(paths[0])}
    (row,) = load(named("pfeiffer")).rows
    assert {line.span.file for line in row.form} == {str(folder("specs") / "blocks.pelt")}


def test_sites_that_are_not_bound_are_no_mistake() -> None:
    text = "method part(at: sites) { modify at compose 2 * h }\nmethod m { use part(at = [attn, ffn.up]) }\n"
    assert mistakes(check_text(text, "at.pelt")) == []


def test_an_input_that_hides_a_tensor_does_not_cascade() -> None:
    form = "task: [d_out] ~ zeros input task: index(3) delta = z * task"
    text = f"method m {{ modify ffn insert parallel form {{ {form} }} compose h + delta }}"
    assert [d.code for d in mistakes(check_text(text, "input.pelt"))] == ["E0369"]


def test_a_mistake_in_one_clause_does_not_hide_those_of_others_and_is_not_forgotten() -> None:
    text = "method m {\n  use nothing_like_it as one\n  use nor_this as two\n  modify fnn\n  compose 2 * h\n}\n"
    assert [d.code for d in mistakes(check_text(text, "m.pelt"))] == ["E0225", "E0225", "E0302"]
    (definition,) = parse(text).definitions
    with pytest.raises(PeltError) as caught:
        drafts(definition, Names())
    assert [d.code for d in caught.value.diagnostics] == ["E0225", "E0225"]
