"""Saving over a folder: nothing beside it is touched, what lies in it stays as it is, and what a kill left is found again."""

from __future__ import annotations

import os
import shutil
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import small
import torch

import unipelt
from unipelt.language.report.diagnostics import PeltError
from unipelt.runtime import folder as writing
from unipelt.runtime.hub import MANIFEST, METHOD, WEIGHTS

SPEC = """
method mine(r: int = 2) {
  modify attn.q   insert parallel
  form { A: [d_in, r] ~ normal(0.3)  B: [r, d_out] ~ zeros  delta = z @ A @ B }
  compose add
}
"""


class Killed(BaseException):
    """The process ends here: nothing is tidied up."""


def adapted(seed: int = 0) -> Any:
    model = small.model("bert")
    unipelt.apply(model, unipelt.parse(SPEC), "mine")
    small.randomise(model, "mine", seed)
    return model


def attached(folder: Path) -> torch.Tensor:
    model = small.model("bert")
    unipelt.attach(model, folder)
    return small.output(model)


@contextmanager
def killed_at(monkeypatch: pytest.MonkeyPatch, function: str, n: int) -> Iterator[None]:
    """The n-th call of a function of `os` is the last thing that the process does."""
    real, calls = getattr(os, function), []

    def counted(*arguments: Any, **options: Any) -> Any:
        calls.append(arguments)
        if len(calls) == n:
            raise Killed
        return real(*arguments, **options)

    with monkeypatch.context() as m:
        m.setattr(os, function, counted)
        m.setattr(shutil, "rmtree", lambda *a, **k: None)
        with pytest.raises(Killed):
            yield


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    folder = unipelt.save(adapted(), tmp_path / "out", "mine")
    (folder / "notes.txt").write_text("mine")
    return folder


# ---------------------------------------------------------------- neighbours


def test_a_neighbour_of_any_name_is_left_alone(saved: Path) -> None:
    names = (".out.old", ".out", "out.old", ".out.new", ".out.saving-", ".out.saving-mine", ".out.part")
    for name in names:
        (saved.parent / name).mkdir()
        (saved.parent / name / "notes.txt").write_text(name)
    unipelt.save(adapted(seed=3), saved, "mine")
    shutil.rmtree(saved)
    unipelt.save(adapted(seed=4), saved, "mine")
    assert {p.name for p in saved.parent.iterdir()} == {*names, "out"}
    assert all((saved.parent / name / "notes.txt").read_text() == name for name in names)


def test_two_that_save_at_once_do_not_harm_each_other(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both have written their files before either renames: each save is whole, and one of them is there in the end."""
    meet, real = threading.Barrier(2), writing._swap

    def together(*places: Any) -> None:
        meet.wait(10)
        real(*places)

    monkeypatch.setattr(writing, "_swap", together)
    models, failed = [adapted(seed=5), adapted(seed=6)], []

    def save(model: Any) -> None:
        try:
            unipelt.save(model, saved, "mine")
        except PeltError as e:
            failed.append(e)

    threads = [threading.Thread(target=save, args=(m,)) for m in models]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert len(failed) < 2 and all(e.diagnostics[0].code == "E0575" for e in failed)
    monkeypatch.undo()
    found = attached(saved)
    assert any(torch.equal(found, small.output(m)) for m in models)
    assert any(p.read_text() == "mine" for p in saved.parent.rglob("notes.txt"))


def test_a_folder_that_another_save_put_there_meanwhile(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.rename

    def rename(a: Any, b: Any) -> None:
        real(a, b)
        if Path(b).name == "old":  # between the two renames
            monkeypatch.setattr(os, "rename", real)
            unipelt.save(adapted(seed=6), saved.parent / "theirs", "mine")
            real(saved.parent / "theirs", saved)

    monkeypatch.setattr(os, "rename", rename)
    with pytest.raises(PeltError, match="E0575.*could not be put back") as caught:
        unipelt.save(adapted(seed=5), saved, "mine")
    assert torch.equal(attached(saved), small.output(adapted(seed=6)))
    (room,) = [p for p in saved.parent.iterdir() if p != saved]
    assert (room / "old" / "notes.txt").read_text() == "mine" and str(room / "old") in str(caught.value)


def test_the_rights_of_the_folder_stay(saved: Path, tmp_path: Path) -> None:
    saved.chmod(0o700)
    unipelt.save(adapted(seed=3), saved, "mine")
    assert stat.S_IMODE(saved.stat().st_mode) == 0o700
    new = unipelt.save(adapted(), tmp_path / "new", "mine")
    (tmp_path / "plain").mkdir()
    assert new.stat().st_mode == (tmp_path / "plain").stat().st_mode


# ---------------------------------------------------------------- links, and what is no file


def test_links_stay_links(saved: Path, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "big.bin").write_bytes(b"x")
    (saved / "sub").mkdir()
    links = {"data": "../data", "file": "../data/big.bin", "own": "notes.txt", "broken": "nowhere", "loop": "loop", "up": "..",
             "sub/data": "../../data", "sub/broken": "nowhere"}  # fmt: skip
    for name, target in links.items():
        (saved / name).symlink_to(target)
    for seed in (3, 4):
        unipelt.save(adapted(seed), saved, "mine")
        assert {n: os.readlink(saved / n) for n in links} == links
        assert torch.equal(attached(saved), small.output(adapted(seed)))
    assert (saved / "file").read_bytes() == b"x" and (saved / "own").read_text() == "mine"
    assert {p.name for p in tmp_path.iterdir()} == {"out", "data"}


@pytest.mark.parametrize("place", ["", "sub"])
def test_a_pipe_is_kept_and_never_opened(saved: Path, place: str) -> None:
    (saved / place).mkdir(exist_ok=True)
    os.mkfifo(saved / place / "pipe")
    unipelt.save(adapted(seed=3), saved, "mine")
    assert stat.S_ISFIFO(os.lstat(saved / place / "pipe").st_mode)


def test_where_there_are_no_hard_links_files_are_copied_and_a_pipe_is_an_error(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(*arguments: Any, **options: Any) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", none)
    unipelt.save(adapted(seed=3), saved, "mine")
    assert (saved / "notes.txt").read_text() == "mine"
    os.mkfifo(saved / "pipe")
    with pytest.raises(PeltError, match="E0575"):
        unipelt.save(adapted(seed=4), saved, "mine")
    assert torch.equal(attached(saved), small.output(adapted(seed=3))) and [p.name for p in saved.parent.iterdir()] == [
        "out"
    ]


@pytest.mark.parametrize("there", [True, False])
def test_a_folder_that_is_a_link_is_written_where_it_leads(tmp_path: Path, there: bool) -> None:
    (tmp_path / "disk").mkdir()
    if there:
        unipelt.save(adapted(), tmp_path / "disk" / "real", "mine")
    (tmp_path / "out").symlink_to("disk/real")
    unipelt.save(adapted(seed=3), tmp_path / "out", "mine")
    assert os.readlink(tmp_path / "out") == "disk/real"
    assert torch.equal(attached(tmp_path / "disk" / "real"), small.output(adapted(seed=3)))
    assert sorted(p.name for p in tmp_path.rglob("*") if p.is_dir()) == ["disk", "real"] or (tmp_path / "out").is_dir()
    assert [p.name for p in (tmp_path / "disk").iterdir()] == ["real"]


def test_an_own_file_that_is_a_link_is_replaced_and_not_written_through(saved: Path, tmp_path: Path) -> None:
    for name in (MANIFEST, METHOD, WEIGHTS):
        (saved / name).unlink()
        (tmp_path / name).write_text("not mine")
        (saved / name).symlink_to(tmp_path / name)
    unipelt.save(adapted(seed=3), saved, "mine")
    assert all((tmp_path / name).read_text() == "not mine" for name in (MANIFEST, METHOD, WEIGHTS))
    assert torch.equal(attached(saved), small.output(adapted(seed=3)))


# ---------------------------------------------------------------- killed


@pytest.mark.parametrize(("function", "n"), [("fsync", 1), ("fsync", 3), ("rename", 1)])
def test_killed_before_the_old_folder_moves(
    saved: Path, monkeypatch: pytest.MonkeyPatch, function: str, n: int
) -> None:
    with killed_at(monkeypatch, function, n):
        unipelt.save(adapted(seed=3), saved, "mine")
    assert torch.equal(attached(saved), small.output(adapted())) and (saved / "notes.txt").read_text() == "mine"
    unipelt.save(adapted(seed=4), saved, "mine")
    assert torch.equal(attached(saved), small.output(adapted(seed=4))) and (saved / "notes.txt").read_text() == "mine"


def test_killed_between_the_renames_attach_names_what_is_left(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with killed_at(monkeypatch, "rename", 2):
        unipelt.save(adapted(seed=3), saved, "mine")
    assert not saved.exists()
    with pytest.raises(PeltError, match="E0577.*was cut short") as caught:
        unipelt.attach(small.model("bert"), saved)
    (found,) = caught.value.diagnostics
    (room,) = saved.parent.iterdir()
    assert found.help.endswith(f"mv {room / 'new'} {saved}") and found.help.startswith("move it to its place")
    (room / "new").rename(saved)
    assert torch.equal(attached(saved), small.output(adapted(seed=3))) and (saved / "notes.txt").read_text() == "mine"


def test_saving_again_after_a_kill_loses_nothing(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (saved.parent / ".out.saving-older" / "old").mkdir(parents=True)  # another's, without an adapter
    with killed_at(monkeypatch, "rename", 2):
        unipelt.save(adapted(seed=3), saved, "mine")
    unipelt.save(adapted(seed=4), saved, "mine")
    assert torch.equal(attached(saved), small.output(adapted(seed=4))) and (saved / "notes.txt").read_text() == "mine"
    assert sorted(p.name for p in saved.parent.iterdir()) == [".out.saving-older", "out"]


def test_killed_where_there_was_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with killed_at(monkeypatch, "fsync", 2):
        unipelt.save(adapted(), tmp_path / "out", "mine")
    with pytest.raises(PeltError, match="E0577") as caught:
        unipelt.attach(small.model("bert"), tmp_path / "out")
    assert "cut short" not in str(caught.value), "half an adapter is none"
    with killed_at(monkeypatch, "rename", 1):
        unipelt.save(adapted(), tmp_path / "out", "mine")
    with pytest.raises(PeltError, match="E0577.*was cut short"):
        unipelt.attach(small.model("bert"), tmp_path / "out")
    unipelt.save(adapted(seed=3), tmp_path / "out", "mine")
    assert torch.equal(attached(tmp_path / "out"), small.output(adapted(seed=3)))


def test_what_an_earlier_version_left_is_named_and_kept(saved: Path) -> None:
    """It moved the old folder to `.out.old`: after a kill that is the only copy."""
    old = saved.rename(saved.with_name(".out.old"))
    with pytest.raises(PeltError, match="E0577.*was cut short") as caught:
        unipelt.attach(small.model("bert"), saved)
    assert str(old) in caught.value.diagnostics[0].help
    unipelt.save(adapted(seed=3), saved, "mine")
    assert (old / "notes.txt").read_text() == "mine" and torch.equal(attached(old), small.output(adapted()))


@pytest.mark.parametrize("name", ["[a]", "a*", "a b", "é?"])
def test_names_with_signs_of_a_pattern(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    folder = unipelt.save(adapted(), tmp_path / name, "mine")
    with killed_at(monkeypatch, "rename", 2):
        unipelt.save(adapted(seed=3), folder, "mine")
    with pytest.raises(PeltError, match="E0577.*was cut short"):
        unipelt.attach(small.model("bert"), folder)


def test_a_failure_that_cannot_be_undone_leaves_the_only_copy(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = os.rename, []

    def once(a: Any, b: Any) -> None:
        calls.append(a)
        if len(calls) > 1:
            raise OSError(5, "Input/output error")
        real(a, b)

    monkeypatch.setattr(os, "rename", once)
    with pytest.raises(PeltError) as caught:
        unipelt.save(adapted(seed=3), saved, "mine")
    monkeypatch.undo()
    (room,) = saved.parent.iterdir()
    assert (room / "old" / "notes.txt").read_text() == "mine"
    (found,) = caught.value.diagnostics
    assert found.code == "E0575" and str(room / "old") in found.message and "unchanged" not in found.help
    unipelt.save(adapted(seed=4), saved, "mine")
    assert (saved / "notes.txt").read_text() == "mine" and [p.name for p in saved.parent.iterdir()] == ["out"]
