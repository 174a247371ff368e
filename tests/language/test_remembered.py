"""Files in which all was well are remembered: nothing that is printed differs, and whatever a check depends on is heeded."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from unipelt.cli.methods import check_paths
from unipelt.language import cache, remembered
from unipelt.language.loading import check_file

ROOT = Path(__file__).resolve().parents[2]
SPECS = sorted(p.relative_to(ROOT) for p in (ROOT / "specs").rglob("*.pelt"))
WELL = "method m { modify ffn compose 2 * h }\n"
USES = 'import "forms.pelt"\nmethod m { modify ffn insert parallel form twice compose add }\n'
FORM = "form twice() { A: [d_in, d_out] ~ zeros  delta = 2 * z @ A }\n"


@pytest.fixture(autouse=True)
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv(cache.FOLDER, str(tmp_path / "kept"))
    monkeypatch.chdir(tmp_path)
    yield tmp_path / "kept"


@pytest.fixture
def checked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files that are checked, in turn."""
    done: list[str] = []
    monkeypatch.setattr(remembered, "check_file", lambda path: done.append(path.name) or check_file(path))
    return done


def said(capsys: pytest.CaptureFixture[str], *paths: Path | str, as_json: bool = False, sarif: bool = False) -> Any:
    good = check_paths([Path(p) for p in paths], as_json, sarif)
    return good, *capsys.readouterr()


def test_specs_are_shown_alike_with_and_without(
    capsys: pytest.CaptureFixture[str], checked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    files = SPECS if os.environ.get("UNIPELT_ALL") else SPECS[::4]
    first = [said(capsys, *files), said(capsys, *files, as_json=True), said(capsys, files[0])]
    assert checked  # so that what follows is no comparison of nothing with nothing
    checked.clear()
    again = [said(capsys, *files), said(capsys, *files, as_json=True), said(capsys, files[0])]
    assert again == first and checked == []
    monkeypatch.setenv(cache.FOLDER, "off")
    assert [said(capsys, *files), said(capsys, *files, as_json=True), said(capsys, files[0])] == first
    assert all(good for good, *_ in first)


@pytest.mark.parametrize("shown", [{}, {"as_json": True}, {"sarif": True}], ids=str)
def test_wrong_programs_are_shown_alike_with_and_without(
    shown: dict[str, bool], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT / "tests")
    folder = Path("bad") if os.environ.get("UNIPELT_ALL") else Path("bad/E0101-in-an-import")
    files = [folder, *sorted(Path("bad").glob("E0[1-9]0*.pelt"))[::3]]
    first, again = said(capsys, *files, **shown), said(capsys, *files, **shown)
    monkeypatch.setenv(cache.FOLDER, "off")
    assert first == again == said(capsys, *files, **shown) and first[0] is False


def test_what_has_mistakes_or_hints_is_checked_every_time(
    capsys: pytest.CaptureFixture[str], checked: list[str], kept: Path
) -> None:
    Path("bad.pelt").write_text("method m { modify ffn compose nothing }\n")
    Path("hinted.pelt").write_text(
        "method m { modify attn.heads insert parallel form { s: [] ~ zeros  delta = s * q } compose add }\n"
    )
    first = said(capsys, "bad.pelt", "hinted.pelt")
    assert said(capsys, "bad.pelt", "hinted.pelt") == first
    assert checked == ["bad.pelt", "hinted.pelt"] * 2 and not kept.exists()


@pytest.mark.parametrize(
    ("change", "anew"),
    [
        (lambda: Path("uses.pelt").write_text(USES.replace("add", "h + delta")), True),
        (lambda: Path("forms.pelt").write_text(FORM.replace("2", "3")), True),
        (lambda: Path("forms.pelt").unlink(), True),
        (lambda: (Path("forms.pelt").unlink(), Path("forms.pelt").symlink_to(Path("below/others.pelt"))), True),
        (lambda: Path("forms.pelt").write_text('import "empty.pelt"\n' + FORM), True),
        (lambda: Path("unrelated.pelt").write_text(FORM), False),
        (lambda: os.utime("uses.pelt", (0, 0)), False),
        (lambda: Path("uses.pelt").write_bytes(USES.replace("\n", "\r\n").encode()), False),
    ],
    ids=["text", "import", "import gone", "import a link", "import imports", "another file", "time", "line ends"],
)
def test_texts_of_a_file_and_of_what_it_imports_are_heeded(
    change: Callable[[], Any], anew: bool, capsys: pytest.CaptureFixture[str], checked: list[str]
) -> None:
    Path("below").mkdir()
    Path("empty.pelt").write_text("")
    for name, text in (("uses.pelt", USES), ("forms.pelt", FORM), ("below/others.pelt", FORM)):
        Path(name).write_text(text)
    said(capsys, "uses.pelt")
    change()
    said(capsys, "uses.pelt")
    assert checked == ["uses.pelt"] * (2 if anew else 1)


def test_a_link_on_the_way_to_an_import_is_heeded(capsys: pytest.CaptureFixture[str], checked: list[str]) -> None:
    for name, text in (("a", FORM), ("b", FORM.replace("twice", "thrice"))):
        (Path(name) / "deep").mkdir(parents=True)
        (Path(name) / "forms.pelt").write_text(text)
    Path("at").symlink_to("a/deep")
    Path("uses.pelt").write_text(USES.replace("forms", "at/../forms"))
    assert said(capsys, "uses.pelt")[0]
    Path("at").unlink()
    Path("at").symlink_to("b/deep")
    assert not said(capsys, "uses.pelt")[0]


def test_an_import_that_was_empty_is_heeded(capsys: pytest.CaptureFixture[str]) -> None:
    Path("forms.pelt").write_text("")
    Path("m.pelt").write_text('import "forms.pelt"\n' + WELL)
    assert said(capsys, "m.pelt")[0]
    Path("forms.pelt").write_text("form broken { delta = }\n")
    assert not said(capsys, "m.pelt")[0]


def test_a_text_that_is_saved_during_its_check_is_not_remembered(
    capsys: pytest.CaptureFixture[str], kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def check_and_save(path: Path) -> Any:
        found = check_file(path)
        path.write_text("method m { nonsense }\n")
        return found

    Path("m.pelt").write_text(WELL)
    monkeypatch.setattr(remembered, "check_file", check_and_save)
    assert said(capsys, "m.pelt")[0] and not kept.exists()


def test_names_in_what_is_printed_are_those_that_were_given(capsys: pytest.CaptureFixture[str]) -> None:
    Path("m.pelt").write_text(WELL)
    for path in (Path("m.pelt"), Path("m.pelt").resolve()):
        _, out, _ = said(capsys, path, as_json=True)
        (definition,) = json.loads(out)["definitions"]
        assert {v["at"]["file"] for v in definition["properties"].values() if v["at"]} == {str(path)}


def test_verdicts_that_nobody_asked_for_are_found_later(
    capsys: pytest.CaptureFixture[str], checked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("m.pelt").write_text(WELL)
    with monkeypatch.context() as patch:
        patch.setattr("unipelt.cli.methods.SHOWN", 0)
        assert said(capsys, "m.pelt")[1] == said(capsys, "m.pelt")[1] == "1 method: all well\n"
    assert checked == ["m.pelt"]
    first = said(capsys, "m.pelt", as_json=True)
    assert json.loads(first[1])["definitions"][0]["properties"] and said(capsys, "m.pelt", as_json=True) == first
    assert checked == ["m.pelt"] * 2


DAMAGE: list[Callable[[Any], Any]] = [
    lambda e: "", lambda e: "[]", lambda e: "null", lambda e: json.dumps(e)[:-9], lambda e: "[" * 100_000, lambda e: "\0\udc80",
    lambda e: json.dumps({**e, "definitions": [[]]}), lambda e: json.dumps({**e, "definitions": [[7, "method", False, 0, {}]]}),
    lambda e: json.dumps({**e, "definitions": [["m", "method", False, 0, {"causal": ["yes", "", "f", "x", 0]}]]}),
    lambda e: json.dumps({**e, "definitions": [["m", "method", False, 0, []]]}), lambda e: json.dumps({**e, "imports": [[1, 2, 3]]}),
    lambda e: json.dumps({**e, "imports": [["\0", "\0", ""]]}), lambda e: json.dumps({**e, "imports": 1}),
]  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGE)
def test_an_entry_that_a_check_did_not_write_is_replaced(
    damage: Callable[[Any], Any], capsys: pytest.CaptureFixture[str], checked: list[str], kept: Path
) -> None:
    Path("m.pelt").write_text(WELL)
    first = said(capsys, "m.pelt")
    (file,) = kept.iterdir()
    good = file.read_text()
    file.write_bytes(damage(json.loads(good)).encode(errors="surrogateescape"))
    assert said(capsys, "m.pelt") == first and checked == ["m.pelt"] * 2 and file.read_text() == good


@pytest.mark.parametrize("spoil", ["a file", "an entry is a folder", "closed", "off"])
def test_a_folder_that_serves_nothing_changes_nothing(
    spoil: str, capsys: pytest.CaptureFixture[str], kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("m.pelt").write_text(WELL)
    first = said(capsys, "m.pelt")
    (file,) = kept.iterdir()
    file.unlink()
    if spoil == "an entry is a folder":
        file.mkdir()
    elif spoil == "a file":
        kept.rmdir()
        kept.write_text("")
    elif spoil == "closed":
        kept.rmdir()
        monkeypatch.setenv(cache.FOLDER, "/proc/no/such")
    else:
        monkeypatch.setenv(cache.FOLDER, "off")
    assert said(capsys, "m.pelt") == first == said(capsys, "m.pelt")
    assert not kept.is_dir() or list(kept.iterdir()) == [file] * (spoil == "an entry is a folder")


def test_where_something_that_a_check_reads_has_gone_meanwhile_nothing_is_remembered(
    capsys: pytest.CaptureFixture[str], kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("m.pelt").write_text(WELL)
    real = cache.digest
    monkeypatch.setattr(cache, "digest", lambda paths: real([*paths, Path("gone.py")]))
    assert said(capsys, "m.pelt")[0] and not kept.exists()


def test_the_folder_stays_small(
    capsys: pytest.CaptureFixture[str], kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remembered, "FILES", 2)
    kept.mkdir()
    old, new = kept / ".checked-1.json.part-0a", kept / ".checked-2.json.part-0b"
    foreign = kept / "sites-1.json"
    for file in (old, new, foreign):
        file.write_text("")
    os.utime(old, (0, 0))
    for n in range(4):
        Path("m.pelt").write_text(f"# {n}\n{WELL}")
        said(capsys, "m.pelt")
    assert len(list(kept.glob("checked-*"))) == 2 and new.exists() and foreign.exists() and not old.exists()


def run(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-m", "unipelt", "check", *arguments], text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE)  # fmt: skip


def test_a_change_of_the_language_or_the_library_is_heeded_and_two_may_check_at_once(
    kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for part in ("unipelt/language", "unipelt/cli", "grammar", "specs"):
        shutil.copytree(ROOT / part, Path(part), ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("__init__", "__main__", "resources"):
        shutil.copy(ROOT / "unipelt" / f"{file}.py", Path("unipelt"))
    monkeypatch.setenv("PYTHONPATH", str(Path.cwd()))
    Path("m.pelt").write_text(WELL)
    first, second = run("m.pelt"), run("m.pelt")
    outcome = first.communicate()
    assert second.communicate() == outcome and first.returncode == second.returncode == 0
    known = 1
    assert len(list(kept.iterdir())) == known
    for changed in ("unipelt/language/types/blocks.py", "unipelt/language/words/blocks.toml", "specs/blocks.pelt"):
        with open(changed, "a") as f:
            f.write("# another\n")
        known += 1
        assert run("m.pelt").communicate() == outcome and len(list(kept.iterdir())) == known
