"""Links that lead out of a folder are refused by all that read and write; those inside it are not."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import small
from names import name as named
from test_commands import call

import unipelt
from unipelt.language.report.diagnostics import PeltError
from unipelt.language.files import leaves
from unipelt.runtime.hub import MANIFEST, METHOD, WEIGHTS

SECRET = "method m { modify ffn  insert parallel  form { delta = SECRET }  compose h + delta }\n"


@pytest.fixture
def desk(tmp_path, monkeypatch):
    """A downloaded folder beside what is none of its author's business."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "secret.txt").write_text(SECRET)
    (tmp_path / "secret.jsonl").write_text('{"text": "SECRET"\n')
    (tmp_path / "got").mkdir()
    return tmp_path


@pytest.mark.parametrize(
    "command",
    ["check got", "check got/a.pelt", "check --fix got", "fmt got", "fmt --diff got/a.pelt", "show got/a.pelt"],
)
def test_a_spec_that_links_out_of_its_folder(command, desk):
    (desk / "got" / "a.pelt").symlink_to(desk / "secret.txt")
    out, err = call(*command.split(), code=1)
    assert "E0790" in out + err and "SECRET" not in out + err
    assert (desk / "secret.txt").read_text() == SECRET and (desk / "got" / "a.pelt").is_symlink()


def test_a_link_inside_the_folder_is_followed(desk):
    (desk / "got" / "real.pelt").write_text(
        "method  m { modify ffn  insert parallel  form { delta = tanh(z) }  compose h + delta }\n"
    )
    (desk / "got" / "a.pelt").symlink_to("real.pelt")
    call("check", "got")
    call("fmt", "got/a.pelt")
    assert (desk / "got" / "a.pelt").is_symlink() and "method m {" in (desk / "got" / "real.pelt").read_text()


def test_a_folder_that_the_user_links_is_the_users_affair(desk):
    (desk / "far").mkdir()
    (desk / "far" / "a.pelt").write_text(
        "method m { modify ffn  insert parallel  form { delta = tanh(z) }  compose h + delta }\n"
    )
    (desk / "near").symlink_to(desk / "far")
    call("check", "near/a.pelt")
    call("check", "near")


@pytest.mark.parametrize("name", ["got/train.jsonl", "got"])
def test_data_that_link_out_of_their_folder(name, desk, bert, spec):
    (desk / "got" / "train.jsonl").symlink_to(desk / "secret.jsonl")
    _, err = call("train", f"{spec}:small", "-m", bert, "-d", name, "-o", "run", code=1)
    assert "E0790" in err and "SECRET" not in err


def test_the_hubs_cache_links_inside_itself(desk):
    cache = desk / "cache" / "models--me--x"
    (cache / "blobs").mkdir(parents=True)
    (cache / "snapshots" / "abc").mkdir(parents=True)
    (cache / "blobs" / "1").write_text("x")
    (cache / "snapshots" / "abc" / "a.pelt").symlink_to("../../blobs/1")
    (cache / "snapshots" / "abc" / "b.pelt").symlink_to(desk / "secret.txt")
    (cache / "blobs" / "2").symlink_to(desk / "secret.txt")
    (cache / "snapshots" / "abc" / "c.pelt").symlink_to("../../blobs/2")
    assert [leaves(cache / "snapshots" / "abc" / f"{n}.pelt") for n in "abc"] == [False, True, True]


@pytest.fixture
def adapter(desk):
    m = small.model("bert")
    unipelt.apply(m, unipelt.load(named("lora")))
    return unipelt.save(m, desk / "got" / "adapter")


@pytest.mark.parametrize("name", ["report.png", "metrics.json", "run.json", "README.md", MANIFEST, METHOD, WEIGHTS])
def test_what_links_out_of_the_folder_is_not_pushed(name, desk, adapter):
    data = (adapter / name).read_bytes() if (adapter / name).exists() else b'{"SECRET": 1}'
    (desk / "secret").write_bytes(data)
    (adapter / name).unlink(missing_ok=True)
    (adapter / name).symlink_to(desk / "secret")
    with pytest.raises(PeltError, match="E0790"):
        unipelt.push(adapter, "me/x", dry_run=True)


def test_a_link_to_itself_is_said_plainly(desk):
    os.symlink("a.pelt", desk / "got" / "a.pelt")
    _, err = call("check", "got/a.pelt", code=1)
    assert "error[" in err


@pytest.mark.parametrize("name", [MANIFEST, METHOD, WEIGHTS])
def test_an_adapter_that_links_out_of_its_folder_is_not_attached(name, desk, adapter):
    (desk / "secret").write_bytes((adapter / name).read_bytes())
    (adapter / name).unlink()
    (adapter / name).symlink_to(desk / "secret")
    m = small.model("bert")
    before = small.state(m)
    with pytest.raises(PeltError, match="E0790"):
        unipelt.attach(m, adapter)
    assert small.state(m) == before and Path(adapter).is_dir()
