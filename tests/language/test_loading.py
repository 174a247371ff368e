"""Where definitions come from: imports between files, and asking for methods by name, file and argument."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from names import name as named, spec

from unipelt import load
from unipelt.language.report.diagnostics import PeltError
from unipelt.language.library import index, library_definition, summaries
from unipelt.language.loading import check, definition, parse, resolve

# ---------------------------------------------------------------- imports

GOOD = spec("method {} {{ modify ffn insert parallel form low_rank(4) compose add }}\n")


def write(folder: Path, **files: str) -> None:
    for name, text in files.items():
        path = folder / f"{name.replace('__', '/')}.pelt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def test_imports_bring_definitions_of_files_beside_and_below(tmp_path: Path) -> None:
    write(
        tmp_path,
        main='import "one.pelt"\nimport "sub/two.pelt"\nmethod m { use one as a use two as b use three as c }\n',
        one=GOOD.format("one"),
        sub__two='import "three.pelt"\n' + GOOD.format("two"),
        sub__three=GOOD.format("three"),
    )
    assert [r.name for r in load(tmp_path / "main.pelt").rows] == ["a", "b", "c"]


def test_own_definitions_go_before_imported_ones_and_those_before_the_library(tmp_path: Path) -> None:
    write(
        tmp_path,
        main='import "one.pelt"\nmethod m { use '
        + named("lora")
        + " as a use "
        + named("ia3")
        + " as b }\n"
        + GOOD.format(named("lora")),
        one=GOOD.format(named("ia3")),
    )
    assert [str(r.sites[0]) for r in load(tmp_path / "main.pelt", "m").rows] == ["ffn", "ffn"]


def test_imports_in_a_circle_are_read_once(tmp_path: Path) -> None:
    write(tmp_path, main='import "one.pelt"\nmethod m { use one }\n', one='import "main.pelt"\n' + GOOD.format("one"))
    assert len(load(tmp_path / "main.pelt").rows) == 1


@pytest.mark.parametrize("target", ["../outside.pelt", "sub/../../outside.pelt", "link.pelt"])
def test_imports_do_not_leave_the_folder(tmp_path: Path, target: str) -> None:
    write(tmp_path, outside=GOOD.format("outside"))
    inside = tmp_path / "in"
    write(inside, main=f'import "{target}"\nmethod m {{ use outside }}\n', sub__x="")
    (inside / "link.pelt").symlink_to(tmp_path / "outside.pelt")
    with pytest.raises(PeltError) as caught:
        load(inside / "main.pelt")
    (d,) = caught.value.diagnostics
    assert d.code == "E0203" and target in d.message


def test_an_absolute_import_leaves_the_folder_too(tmp_path: Path) -> None:
    write(tmp_path, outside=GOOD.format("outside"))
    write(tmp_path / "in", main=f'import "{tmp_path / "outside.pelt"}"\nmethod m {{ use outside }}\n')
    with pytest.raises(PeltError) as caught:
        load(tmp_path / "in" / "main.pelt")
    assert caught.value.diagnostics[0].code == "E0203"


def test_a_text_that_lies_in_no_file_cannot_import() -> None:
    text = spec('import "x.pelt"\nmethod a { use lora }')
    with pytest.raises(PeltError) as caught:
        parse(text, name="a")
    (d,) = caught.value.diagnostics
    assert d.code == "E0202" and "cannot import" in d.message
    assert d.span is not None and text[d.span.start : d.span.end] == 'import "x.pelt"'


def test_a_missing_import_and_a_broken_one_are_told_apart(tmp_path: Path) -> None:
    write(
        tmp_path,
        main='import "gone.pelt"\n' + GOOD.format("m"),
        other='import "broken.pelt"\n' + GOOD.format("m"),
        broken="method {",
    )
    with pytest.raises(PeltError) as caught:
        load(tmp_path / "main.pelt")
    assert [d.code for d in caught.value.diagnostics] == ["E0205"] and "gone.pelt" in str(caught.value)
    with pytest.raises(PeltError) as caught:
        load(tmp_path / "other.pelt")
    assert caught.value.diagnostics[0].code.startswith("E01") and "broken.pelt" in str(caught.value)


def test_too_many_imports_are_refused(tmp_path: Path) -> None:
    for i in range(80):
        write(tmp_path, **{f"f{i}": f'import "f{i + 1}.pelt"\n' if i < 79 else ""})
    write(tmp_path, main='import "f0.pelt"\n' + GOOD.format("m"))
    with pytest.raises(PeltError) as caught:
        load(tmp_path / "main.pelt")
    assert [d.code for d in caught.value.diagnostics] == ["E0204"]


# ---------------------------------------------------------------- asking for methods


@pytest.mark.parametrize(
    ("ask", "code", "words"),
    [
        (lambda d: load(named("lora") + "x"), "E0401", named("lora")),
        (lambda d: load("qwertyuiop"), "E0401", "unipelt list"),
        (lambda d: load(d / "two.pelt"), "E0406", "one, other"),
        (lambda d: load(d / "two.pelt", "onee"), "E0401", "`one`"),
        (lambda d: load(d / "none.pelt"), "E0406", "none"),
        (lambda d: load(f"{d}/two.pelt:onee"), "E0401", "`one`"),
        (lambda d: load(f"{d}/two.pelt:"), "E0401", "it has: one, other"),
        (lambda d: load(f"{d}/gone.pelt:one"), "E0121", "no file"),
        (lambda d: load(f"{d}/two.pelt:one", "other"), "E0401", "give one name"),
        (lambda d: load(named("lora"), "one"), "E0401", "not a file that has `one`"),
        (lambda d: load(f"{named('lora')}+"), "E0401", "a name is missing"),
        (lambda d: load(" + "), "E0401", "names no method"),
        (lambda d: load(d / "empty"), "E0401", "no adapter"),
        (lambda d: parse(GOOD.format("one") + GOOD.format("other")), "E0406", "parse(text, 'one')"),
        (lambda d: load(d / "gone.pelt"), "E0121", "no file"),
        (lambda d: load(d / "latin.pelt"), "E0124", "line 2"),
        (lambda d: check(d / "empty"), "E0407", "no .pelt file"),
        (lambda d: load(named("lora"))(rr=3), "E0402", "`r`"),
        (lambda d: load(named("lora"))(r="x+"), "E0405", "cannot be read"),
        (lambda d: load(named("lora"))(r=2.5), "E0405", "a whole number"),
        (lambda d: load(named("lora"))(alpha=float("nan")), "E0405", "a number"),
        (lambda d: load(named("adapter"))(act="softmax"), "E0405", "gelu"),
        (lambda d: load(named("adapter"))(act="geluu"), "E0405", "gelu"),
        (lambda d: load(named("prompt_tuning"))(start="normall(1)"), "E0405", "normal(0.02)"),
        (lambda d: load(named("lora")) + load(named("lora")), "E0404", "as NAME"),
    ],
)
def test_asking_for_what_there_is_not(tmp_path: Path, ask, code: str, words: str) -> None:
    write(tmp_path, two=GOOD.format("one") + GOOD.format("other"), none="form f { delta = z }\n")
    (tmp_path / "latin.pelt").write_bytes(b"method m { }\n# \xe9\n")
    (tmp_path / "empty").mkdir()
    with pytest.raises(PeltError) as caught:
        ask(tmp_path)
    (d,) = caught.value.diagnostics
    assert d.code == code and words in f"{d.message} {d.help}"


def test_a_method_is_named_in_each_of_these_ways(tmp_path: Path) -> None:
    write(tmp_path, two=GOOD.format("one") + GOOD.format("other"))
    write(tmp_path, **{"a+b": GOOD.format("single")})
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "method.pelt").write_text(GOOD.format("kept"), encoding="utf-8")
    lora = named("lora")
    references = {
        f"{tmp_path}/two.pelt:one": ["one"], f"{tmp_path}/two.pelt: other": ["other"], f"{tmp_path}/a+b.pelt": ["single"],
        f"{tmp_path}/saved": ["kept"], lora: [lora], f"{lora} + {tmp_path}/two.pelt:one": [lora, "one"],
        f"{tmp_path}/two.pelt:one+{lora}+{tmp_path}/saved": ["one", lora, "kept"],
    }  # fmt: skip
    for reference, parts in references.items():
        assert load(reference).name == "_".join(parts)
    with pytest.raises(PeltError) as caught:
        load(tmp_path / "two.pelt")
    remedy = re.fullmatch(r"write `(.+):NAME`", caught.value.diagnostics[0].help or "")
    assert remedy and load(f"{remedy[1]}:other").name == "other"
    assert resolve(*definition(f"{tmp_path}/two.pelt:other")).name == "other"  # as spaces are named


def test_arguments_are_bound_in_each_part_that_has_them() -> None:
    lora, wide = named("lora"), named("parallel_adapter")
    both = f"{lora}+{wide}"
    assert load(both, arguments={"r": 3}) == load(lora)(r=3) + load(wide)(r=3)
    assert load(both, arguments={f"{lora}.r": 3, "alpha": 2.0}) == load(lora)(r=3, alpha=2.0) + load(wide)
    assert load(lora, arguments={"r": 3}, head=named("mean_head")) == load(lora)(r=3) + load(named("mean_head"))
    with pytest.raises(PeltError, match="none of .* has an argument `rr`"):
        load(both, arguments={"rr": 3})


def test_a_sum_renames_arguments_that_differ_and_shares_those_that_agree() -> None:
    low, wide = load(named("lora"))(r=4), load(named("parallel_adapter"))(r=64)
    both = low + wide
    other = f"{wide.name}_r"
    assert both.arguments["r"] == 4 and both.arguments[other] == 64
    assert both(**{other: 3}).arguments[other] == 3
    assert parse(str(both)) == both
    shared = {"r": 4, "alpha": 16.0, "dropout": 0.0, "at": "[attn.q, attn.v]", "init": "kaiming_uniform(sqrt(5))"}
    assert (low + load(named("rslora"))(r=4)).arguments == shared


def test_a_source_that_was_forgotten_is_read_again(tmp_path: Path) -> None:
    """Messages about the library keep their excerpts in long sessions."""
    from unipelt.language.report.texts import lookup

    path = tmp_path / "mine.pelt"
    path.write_text("method m {\n  modify wing\n  compose { out = h }\n}\n")
    with pytest.raises(PeltError) as caught:
        load(path)
    for i in range(300):
        with pytest.raises(PeltError):
            parse("method", file=f"text {i}")
    assert "modify wing" in str(caught.value) and lookup(str(tmp_path / "gone.pelt")) is None


@pytest.mark.parametrize(
    "given, meant", [({"act": "rleu"}, "relu"), ({"start": "zeors"}, "zeros"), ({"start": "nromal(0.1)"}, "normal")]
)
def test_a_misspelt_argument_is_answered_with_the_name_that_is_close(given, meant):
    m = parse("method m(act: activation = relu, start: init = ones) { modify ffn  insert parallel  "
              "form { b: [d_out] ~ start   delta = act(z) * b }  compose h + delta }")  # fmt: skip
    with pytest.raises(PeltError, match=f"E0405(.|\\n)*did you mean `{meant}`?"):
        m(**given)


def test_a_method_is_short_where_python_shows_it():
    m = parse(
        "method m(r: int = 4, act: activation = relu) { modify ffn  insert parallel  form { delta = act(z) }  compose h + delta }"
    )
    assert repr(m(r=2)) == "<method m(r=2, act='relu')>" and str(m).startswith("method m(r: int = 4")


def test_a_list_of_the_library_says_what_the_definitions_say() -> None:
    """It is made by a scan that parses nothing, so it is held against what parsing finds."""
    assert summaries() == {
        k: (getattr(library_definition(*k), "doc", None) or "").strip().split("\n")[0] for k in index()
    }
