"""A space is checked before its members are made: a mistake of an alternative is reported where it stands, and parts that
do not fit together are none."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from unipelt.language.check.alternatives import check_space
from unipelt.language.check.names import names_of
from unipelt.language.loading import check_text
from unipelt.language.syntax.parser import parse
from unipelt.language.syntax.nodes import MethodDef
from unipelt.language.check.space import space_of
from unipelt.variants.generate import generate

ROOT = Path(__file__).resolve().parent.parent.parent
SPACES = sorted((ROOT / "examples" / "spaces").glob("*.pelt"))
WORDS = [
    (path, m.start(), m.end())
    for path in SPACES
    for slot in re.finditer(r"^  (?:modify|insert|form|compose) +(.*)$", path.read_text("utf-8"), re.MULTILINE)
    for m in re.compile(r"(?:^|(?<=\| ))\w+").finditer(slot.string, slot.start(1), slot.end(1))
]


def problems(text: str) -> list[tuple[str, str]]:
    """(code, the text at its place) of every mistake."""
    (found,) = check_text(text, "space.pelt")
    assert found.space and found.method is None
    return [(d.code, text[d.span.start : d.span.end]) for d in found.diagnostics]


@pytest.mark.parametrize("path", SPACES, ids=lambda p: p.stem)
def test_a_sound_space_has_no_mistake(path: Path) -> None:
    assert problems(path.read_text("utf-8")) == []


@pytest.mark.parametrize("path,start,end", WORDS, ids=[f"{p.stem}-{i}" for i, (p, _, _) in enumerate(WORDS)])
def test_each_misspelt_alternative_is_reported_alone_and_in_its_place(path: Path, start: int, end: int) -> None:
    text = path.read_text("utf-8")
    word = text[start:end]
    (found,) = problems(f"{text[:start]}{word}qq{text[end:]}")
    code, place = found
    assert code in ("E0221", "E0225", "E0301", "E0302", "E0320") and f"{word}qq" in place


def test_several_mistakes_are_all_reported_though_they_never_stand_in_one_member() -> None:
    text = """method m(r: int in {4, "x"}, l: int = 2) {
  modify attn | fffn
  insert sequental | parallel
  form bottlenek(r) | low_rank(rr) | { delta = z @ dwn } | attend(l)
  compose add | scaled("a") | h + g * delta
}"""
    assert sorted(problems(text)) == sorted(
        [("E0232", '"x"'), ("E0302", "fffn"), ("E0301", "sequental"), ("E0225", "bottlenek"), ("E0301", "rr"), ("E0301", "dwn"),
         ("E0209", '"a"'), ("E0301", "g")]
    )  # fmt: skip


def test_what_is_the_same_in_all_members_is_checked_as_a_method_is() -> None:
    text = """method m(r: int = 4) {
  use {
    modify ffn
    insert parallel
    form { down: [d_in, r] ~ zeros  up: [r, d_out] ~ zeros  delta = z @ down @ up.T }
    compose add
  } as sure
  use { modify attn | ffn  insert parallel  form low_rank(r)  compose add } as open
  require r + "x"
}"""
    assert [c for c, _ in problems(text)] == ["E0312"]
    assert [c for c, _ in problems(text.replace("up.T", "up"))] != []


def test_what_only_some_members_have_is_no_mistake() -> None:
    """Each alternative here is legal somewhere, and most members are not: `generate` finds which."""
    text = """method m(l: int = 2, r: int = 4) {
  modify attn.heads | ffn | embed
  insert parallel | sequential | mean(x, tokens)
  form attend(l) | low_rank(r) | { scores = z  delta = z }
  compose share_softmax | add | h + mean(scores, tokens)
}"""
    file = parse(text, "space.pelt")
    (definition,) = file.definitions
    assert isinstance(definition, MethodDef)
    names = names_of(file, None)
    assert check_space(definition, names) == []
    found = generate(space_of(definition, names))
    assert found.members and len(found.dropped) > len(found.members)
    kept = {(what, shown) for m in found.members for what, shown in m.columns}
    assert {("modify", "embed"), ("compose", "share_softmax"), ("insert", "mean(x, tokens)")} <= kept, (
        "legal somewhere, as said"
    )
