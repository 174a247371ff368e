"""A folder that may come from anyone: only plain files of a sane size are read, each of them once, and what is checked is what is used."""

from __future__ import annotations

import builtins
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import small
import torch

import unipelt
from unipelt.language import files
from unipelt.language.report.diagnostics import PeltError
from unipelt.runtime.card import replaceable
from unipelt.runtime.hub import INDEX, MANIFEST, METHOD, README, WEIGHTS

SPEC = """
method mine(r: int = 2) {
  modify attn.q   insert parallel
  form { A: [d_in, r] ~ normal(0.3)  B: [r, d_out] ~ zeros  delta = z @ A @ B }
  compose add
}
"""


def adapted(seed: int = 0) -> Any:
    model = small.model("bert")
    unipelt.apply(model, unipelt.parse(SPEC), "mine")
    small.randomise(model, "mine", seed)
    return model


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    return unipelt.save(adapted(), tmp_path / "out", "mine")


def refused(folder: Path) -> tuple[str, str]:
    """The code and the text of what attaching is answered with; the model is left as it was."""
    model = small.model("bert")
    before = small.state(model)
    with pytest.raises(PeltError) as caught:
        unipelt.attach(model, folder)
    assert small.state(model) == before and not unipelt.adapters(model)
    return caught.value.diagnostics[0].code, str(caught.value)


def special(path: Path, kind: str) -> None:
    """Puts something there that reading would never end of, or block on."""
    path.unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "link to a pipe":
        os.mkfifo(path.with_name("pipe"))
        path.symlink_to("pipe")
    else:
        path.symlink_to("/dev/zero")


# ---------------------------------------------------------------- plain files


@pytest.mark.parametrize("kind", ["pipe", "link to a pipe", "link to a device"])
@pytest.mark.parametrize("name", [MANIFEST, METHOD, WEIGHTS])
def test_what_is_no_plain_file_is_not_read(saved: Path, name: str, kind: str) -> None:
    special(saved / name, kind)
    code, text = refused(saved)
    assert code == ("E0790" if kind == "link to a device" else "E0780") and name in text


@pytest.mark.parametrize("kind", ["pipe", "link to a pipe", "link to a device"])
def test_nor_is_it_as_a_list_of_adapters(tmp_path: Path, kind: str) -> None:
    adapted().save_pretrained(tmp_path / "out")
    special(tmp_path / "out" / INDEX, kind)
    assert refused(tmp_path / "out")[0] == ("E0790" if kind == "link to a device" else "E0532")


@pytest.mark.parametrize("name", [MANIFEST, METHOD, WEIGHTS])
def test_a_link_to_itself_is_a_missing_file(saved: Path, name: str) -> None:
    (saved / name).unlink()
    (saved / name).symlink_to(name)
    assert refused(saved)[0] == "E0577"


@pytest.mark.parametrize("size", [100 * 2**20, 2**40])
@pytest.mark.parametrize("name", [MANIFEST, METHOD, WEIGHTS])
def test_a_file_larger_than_what_it_may_hold_is_not_read(
    saved: Path, name: str, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open(saved / name, "r+b") as f:
        f.truncate(size)  # it takes no room on the disk
    seen: list[int] = []
    real = files.contents

    def counted(path: Path, most: int) -> bytes:
        data = real(path, most)
        seen.append(len(data))
        return data

    monkeypatch.setattr("unipelt.runtime.folder.contents", counted)
    code, text = refused(saved)
    assert code == "E0780" and f"{size:,} bytes" in text and sum(seen) < 2**20


def test_shapes_are_compared_before_the_tensors_are_read(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = json.loads((saved / MANIFEST).read_text())
    for said in manifest["tensors"].values():
        said["shape"] = [2**31]
    (saved / MANIFEST).write_text(json.dumps(manifest))
    with open(saved / WEIGHTS, "r+b") as f:
        f.truncate(2**33)
    monkeypatch.setattr("unipelt.runtime.folder.read_tensors", lambda *a: pytest.fail("read"))
    assert refused(saved)[0] == "E0587"
    model = adapted()
    before = small.state(model)
    with pytest.raises(PeltError, match="E0587"):
        unipelt.restore(model, saved, "mine")
    assert small.state(model) == before


@pytest.mark.parametrize("shape", [3, None, "x", [-1, 4], [1.5], [True], [[2]], {"0": 2}])
def test_a_shape_in_the_manifest_that_is_none(saved: Path, shape: Any) -> None:
    manifest = json.loads((saved / MANIFEST).read_text())
    next(iter(manifest["tensors"].values()))["shape"] = shape
    (saved / MANIFEST).write_text(json.dumps(manifest))
    assert refused(saved)[0] == "E0578"


@pytest.mark.parametrize(
    "name",
    ["x" * 300, "y" * 5000, "a\0b", "a\0/b", f"me/{'x' * 300}", f"{'x' * 5000}/mine", "me/mine@" + "r" * 5000, ""],
)
def test_a_folder_of_an_impossible_name(name: str) -> None:
    assert refused(name)[0] in ("E0577", "E0594", "E0820", "E0823")  # type: ignore[arg-type]


# ---------------------------------------------------------------- read once


@pytest.mark.parametrize("name", [MANIFEST, METHOD, WEIGHTS])
def test_what_is_hashed_is_what_is_used(
    saved: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another file takes the place of one as soon as that has been opened: what comes is all of the first."""
    other = unipelt.save(adapted(seed=7), tmp_path / "other", "mine")
    (other / METHOD).write_text((other / METHOD).read_text().replace("normal(0.3)", "zeros"))
    wanted = small.output(adapted())
    real, opened = os.open, []

    def swap(path: Any, *more: Any, **options: Any) -> int:
        handle = real(path, *more, **options)
        if os.path.basename(path) == name:
            opened.append(path)
            shutil.copy(other / name, saved / "next")
            os.replace(saved / "next", saved / name)
        return handle

    monkeypatch.setattr(os, "open", swap)
    model = small.model("bert")
    unipelt.attach(model, saved)
    assert len(opened) == 1 and torch.equal(small.output(model), wanted)
    assert unipelt.adapters(model)["mine"] == unipelt.parse(SPEC)


def test_nothing_is_opened_twice(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    for module in (os, builtins):
        real = module.open

        def noted(path: Any, *more: Any, real: Any = real, **options: Any) -> Any:
            if isinstance(path, (str, Path)) and Path(path).parent == saved:
                opened.append(Path(path).name)
            return real(path, *more, **options)

        monkeypatch.setattr(module, "open", noted)
    unipelt.attach(small.model("bert"), saved)
    assert sorted(opened) == sorted([MANIFEST, METHOD, WEIGHTS])


# ---------------------------------------------------------------- a card that is none of ours


@pytest.mark.parametrize("kind", ["pipe", "link to a pipe", "link to a device", "huge", "link to a card", "folder"])
def test_a_card_that_is_no_plain_file_is_kept(tmp_path: Path, kind: str) -> None:
    folder = unipelt.save(adapted(), tmp_path / "out", "mine", card={})
    card = folder / README
    assert replaceable(card)
    if kind == "huge":
        with open(card, "r+b") as f:
            f.truncate(2**40)
    elif kind == "link to a card":
        shutil.move(card, tmp_path / "mine.md")
        card.symlink_to("../mine.md")
    elif kind == "folder":
        card.unlink()
        card.mkdir()
    else:
        special(card, kind)
    assert not replaceable(card)
    before = os.lstat(card)
    with pytest.warns(UserWarning, match="it is kept"):
        unipelt.save(adapted(seed=3), folder, "mine", card={})
    after = os.lstat(card)
    assert (after.st_mode, after.st_size) == (before.st_mode, before.st_size)
    assert kind != "link to a card" or os.readlink(card) == "../mine.md"
    model = small.model("bert")
    unipelt.attach(model, folder)
    assert torch.equal(small.output(model), small.output(adapted(seed=3)))


# ---------------------------------------------------------------- a card that is none


@pytest.mark.parametrize("card", [
    [1], "x", 3, {"metrics": [1]}, {"metrics": {"test": 3}}, {"data": "x"}, {"data": ["x"]}, {"training": 7}, {"tags": "x"}, {(1, 2): 3},
])  # fmt: skip
def test_a_card_of_another_kind_is_not_saved(saved: Path, card: Any) -> None:
    before = {p.name: p.read_bytes() for p in saved.iterdir()}
    with pytest.raises(PeltError, match="E059"):
        unipelt.save(adapted(seed=3), saved, "mine", card=card)
    assert {p.name: p.read_bytes() for p in saved.iterdir()} == before


@pytest.mark.parametrize(
    "change", [{"card": [1]}, {"card": "x"}, {"arguments": []}, {"method": 3}, {"allow_future": "no"}]
)
def test_a_record_of_another_kind_is_neither_attached_nor_pushed(saved: Path, change: dict[str, Any]) -> None:
    (saved / MANIFEST).write_text(json.dumps({**json.loads((saved / MANIFEST).read_text()), **change}))
    assert refused(saved)[0] == "E0578"
    with pytest.raises(PeltError, match="E0578"):
        unipelt.push(saved, "me/mine", dry_run=True)


@pytest.mark.parametrize("card", [{"data": []}, {"data": {"name": 3}}, {"data": None, "metrics": []}, {}])
def test_a_card_in_a_record_may_hold_anything(saved: Path, card: Any) -> None:
    (saved / MANIFEST).write_text(json.dumps({**json.loads((saved / MANIFEST).read_text()), "card": card}))
    assert unipelt.push(saved, "me/mine", dry_run=True).files
    unipelt.attach(small.model("bert"), saved)
