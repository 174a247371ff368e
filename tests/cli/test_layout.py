"""`unipelt fmt` as its users meet it: what is written, what is only shown, and files that are left alone."""

import json

import pytest
from typer.testing import CliRunner

from unipelt.cli.app import app

LOOSE = "compose   twice=h+2*delta # why\n"
TIDY = "compose twice = h + 2 * delta  # why\n"


def fmt(*arguments, code=0, text=None):
    done = CliRunner().invoke(app, ["fmt", *arguments], input=text)
    assert done.exit_code == code and "Traceback" not in done.output, done.output
    return done.stdout, done.stderr


@pytest.fixture(autouse=True)
def desk(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "loose.pelt").write_text(LOOSE)
    (tmp_path / "tidy.pelt").write_text(TIDY)
    return tmp_path


def held(place):
    return {p.name: p.read_text() for p in place.iterdir()}


def test_files_are_written_once(desk):
    (desk / "loose.pelt").chmod(0o640)
    assert fmt("loose.pelt", "tidy.pelt") == ("loose.pelt: changed\n", "2 files: 1 changed\n")
    assert (
        held(desk) == {"loose.pelt": TIDY, "tidy.pelt": TIDY} and (desk / "loose.pelt").stat().st_mode & 0o777 == 0o640
    )
    assert fmt(".") == ("", "2 files: 0 changed\n")


def test_what_would_change_is_shown_and_nothing_written(desk):
    before = held(desk)
    assert "1 would change" in fmt("--check", "loose.pelt", "tidy.pelt", code=1)[1]
    assert json.loads(fmt("--check", "--json", ".", code=1)[0])["changed"] == ["loose.pelt"]
    shown, _ = fmt("--diff", "loose.pelt", code=1)
    assert f"-{LOOSE}+{TIDY}" in shown and held(desk) == before


@pytest.mark.parametrize("text, code, said", [("form f {", "E0102", "bad.pelt:1:8"), ("# \xe9", "E0124", "(line 1)")])
def test_a_file_that_cannot_be_read_is_left_and_the_others_are_written(desk, text, code, said):
    (desk / "bad.pelt").write_bytes(text.encode("latin-1"))
    _, err = fmt("bad.pelt", "loose.pelt", code=1)
    assert f"error[{code}]" in err and said in err and "= help" in err
    assert (desk / "bad.pelt").read_bytes() == text.encode("latin-1") and (desk / "loose.pelt").read_text() == TIDY


def test_stdin_to_stdout():
    assert fmt("-", text=LOOSE) == (TIDY, "")
    assert fmt("-", "--check", text=TIDY) == ("", "") and fmt("-", "--check", text=LOOSE, code=1) == ("", "")
    for data, code in ((b"# \xe9", "E0124"), (b"form f {", "E0102"), (b"#" * (1 << 20) + b"\n", "E0126")):
        out, err = fmt("-", text=data, code=1)
        assert not out and f"error[{code}]" in err and "stdin" in err and "= help" in err


@pytest.mark.parametrize("paths", [["-", "loose.pelt"], ["loose.pelt", "-"], ["-", "-"]])
def test_stdin_stands_alone(desk, paths):
    before = held(desk)
    out, err = fmt(*paths, text=LOOSE, code=1)
    assert "error[E0127]" in err and "`-` is stdin" in err and "= help" in err
    assert not out and held(desk) == before


def test_stdin_as_json():
    said = json.loads(fmt("-", "--json", text=LOOSE)[0])
    assert said["ok"] and said["changed"] == ["<stdin>"] and said["text"] == TIDY


def test_a_file_with_a_mistake_is_counted_apart(desk):
    (desk / "wrong.pelt").write_text("methd m {}\n")
    _, err = fmt(str(desk / "wrong.pelt"), code=1)
    assert err.splitlines()[-1] == "1 file: 0 changed, 1 left as it is"
