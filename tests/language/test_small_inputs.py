"""Small inputs that ask for much: bounded, or done in a time that grows as the input does."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import small
from names import name as named

import unipelt
from unipelt.compiler.labels import read_labels
from unipelt.language.report.diagnostics import PeltError, near, repeated
from unipelt.runtime.hub import MANIFEST, METHOD


class Counted(str):
    """A text that counts how often it is compared."""

    compared = 0

    def __eq__(self, other: object) -> bool:
        Counted.compared += 1
        return str.__eq__(self, other)

    __hash__ = str.__hash__


def test_repeated() -> None:
    assert repeated(["a", "b", "a", "c", "b", "a"]) == ["a", "b"] and repeated([]) == []


@pytest.mark.parametrize("use", [repeated, lambda names: pytest.raises(PeltError, read_labels, names)])
def test_finding_what_stands_twice_grows_as_the_names_do(use) -> None:
    names = [Counted(f"label {i}") for i in range(20_000)]
    Counted.compared = 0
    use([*names, names[-1]])
    assert Counted.compared < 10 * len(names)


def test_a_header_of_many_names(tmp_path: Path) -> None:
    from unipelt.training.data import read

    names = [f"column_{i}" for i in range(40_000)]
    (tmp_path / "a.csv").write_text(",".join([*names, "column_0"]) + "\n")
    with pytest.raises(PeltError, match="twice"):
        read(tmp_path / "a.csv")


def test_words_are_compared_with_so_many_at_most() -> None:
    asked = 0

    def known():
        nonlocal asked
        for i in range(10**9):
            asked += 1
            yield f"word{i}"

    assert near("nothing like it", known()) == "" and asked < 10**5


def test_a_space_that_is_too_large_is_refused_and_a_sample_of_it_is_not(tmp_path: Path) -> None:
    from unipelt.language.loading import definition
    from unipelt.language.check.space import space_of
    from unipelt.variants.generate import generate

    rows = "\n".join(f"  use {{ modify ffn | attn | attn.q  insert parallel | sequential  form {{ delta = tanh(z) }}  compose h + delta }} as r{i}"
                     for i in range(100))  # fmt: skip
    (tmp_path / "huge.pelt").write_text(f"method huge {{\n{rows}\n}}\n")
    found, names = definition(str(tmp_path / "huge.pelt"))
    space = space_of(found, names)
    with pytest.raises(PeltError, match="E0791.*10\\^77"):
        generate(space)
    with pytest.raises(PeltError, match="E0791"):
        generate(space, sample=10**7)
    assert generate(space, sample=2).tried == 2


def test_tensors_are_compared_before_any_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A method of a few bytes can ask for gigabytes that the folder does not hold."""
    import hashlib

    m = small.model("bert")
    unipelt.apply(m, unipelt.load(named("lora")))
    folder = unipelt.save(m, tmp_path / "a")
    unipelt.remove(m)
    text = (folder / METHOD).read_text().replace("r: int = 8", "r: int = 3000000")
    (folder / METHOD).write_text(text)
    record = json.loads((folder / MANIFEST).read_text())
    record["sha256"][METHOD] = hashlib.sha256(text.encode()).hexdigest()
    (folder / MANIFEST).write_text(json.dumps(record))
    before = small.state(m)
    monkeypatch.setattr("unipelt.runtime.attach.create", lambda *_: pytest.fail("tensors are made"))
    with pytest.raises(PeltError, match="E0587"):
        unipelt.attach(m, folder)
    assert small.state(m) == before
