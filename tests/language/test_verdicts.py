"""Every verdict has a reason and a place: text of the method or of a definition that it uses; nearly all decide."""

from __future__ import annotations

from pathlib import Path

import pytest

from unipelt.language import syntax as S
from unipelt.language.library import library_definition
from unipelt.language.loading import library, load, parse
from unipelt.language.properties import RULES, Verdict, verdicts
from unipelt.language.source import lookup, place, shown

METHODS = [e.name for e in library() if e.kind == "method"]


@pytest.fixture(scope="module")
def found() -> dict[str, dict[str, Verdict]]:
    return {m: verdicts(load(m)) for m in METHODS}


def used(method: str) -> list[S.Span]:
    """The definitions that a method is made of: its own, and those it names."""
    todo, spans, seen = [("method", method)], [], set()
    while todo:
        kind, name = todo.pop()
        d = library_definition(kind, name)
        if d is None or (kind, name) in seen:
            continue
        seen.add((kind, name))
        spans.append(d.span)
        names = {n.id for n in S.walk(d) if isinstance(n, S.Name)}
        todo += [(k, n) for n in names for k in ("method", "form", "compose", "gate")]
    return spans


def test_nearly_all_verdicts_decide(found):
    everything = [v for own in found.values() for v in own.values()]
    decided = [v for v in everything if v.value in ("yes", "no")]
    assert len(everything) >= len(METHODS) * len(RULES)
    assert len(decided) >= 0.95 * len(everything)
    assert all(v.value in ("yes", "no", "depends", "unknown") and v.reason for v in everything)


@pytest.mark.parametrize("method", METHODS)
def test_each_place_is_text_that_matters(method, found):
    spans = used(method)
    for name, v in found[method].items():
        assert v.span.start < v.span.end, (name, v)
        assert any(s.file == v.span.file and s.start <= v.span.start and v.span.end <= s.end for s in spans), (name, v)


#: (form and composition, property, value, the text that decides)
PLACES = [
    ("form { A: [d_in, d_out] ~ normal(0.1) B: [d_out] ~ zeros delta = z @ A * B } compose h + delta", "identity at start", "yes", "B: [d_out] ~ zeros"),
    ("form { A: [d_in, d_out] ~ normal(0.1) delta = z @ A } compose h + delta", "identity at start", "no", "A: [d_in, d_out] ~ normal(0.1)"),
    ("form { A: [d_in, d_out] ~ zeros delta = tanh(z @ A) } compose h + delta", "mergeable", "no", "tanh(z @ A)"),
    ("form { A: [d_in, d_out] ~ zeros delta = z @ A } compose h + delta", "mergeable", "no", "parallel"),
    ("form { A: [d_in, d_out] ~ zeros delta = mean(z, tokens) @ A } compose h + delta", "causal", "no", "tokens"),
    ("form { A: [d_in, d_out] ~ zeros delta = mean(z, positions) @ A } compose h + delta", "padding-invariant", "no", "positions"),
    ("form { A: [d_in, d_out] ~ zeros delta = running_mean(z) @ A } compose h + delta", "cache-consistent", "no", "running_mean(z)"),
    ("form { A: [d_in, d_out] ~ zeros delta = drop(z, 0.1) @ A } compose h + delta", "deterministic in training", "no", "drop(z, 0.1)"),
    ("form { A: [d_in, d_out] ~ zeros delta = (drop(z, 0.1) if training else z) @ A } compose h + delta", "deterministic in training", "no", "drop(z, 0.1)"),
    ("form { A: [d_in, d_out] ~ zeros delta = (z if training else drop(z, 0.1)) @ A } compose h + delta", "deterministic in training", "yes", "modify ffn"),
    ("form { A: [d_in, d_out] ~ zeros p = 0.1 if training else 0.0 delta = drop(z, p) @ A } compose h + delta", "deterministic in training", "no", "drop(z, p)"),
    ("form { A: [d_in, d_out] ~ zeros delta = z @ A * chance } compose h + delta", "deterministic in training", "no", "chance"),
    ("form { A: [d_in, d_out] ~ zeros B: [d_out, d_out] ~ ones delta = z @ tanh(A @ B) } compose h + delta", "foldable", "yes", "tanh(A @ B)"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "name", "value", "place_"), PLACES)
def test_the_place_is_what_decides(text, name, value, place_):
    method = parse(f"method m {{\n  modify ffn\n  insert parallel\n  {text}\n}}\n", file="mine.pelt")
    v = verdicts(method)[name]
    source = lookup(v.span.file)
    assert v.value == value and source is not None
    assert source.text[v.span.start : v.span.end] == place_


def test_a_tie_is_decided_by_what_is_known():
    """A row that says no decides the method, though another does not know."""
    text = "method m(p: float = 0.1) { use { modify ffn insert parallel form { A: [d_in, d_out] ~ zeros delta = drop(z, p) @ A } compose h + delta } as one " \
           "use { modify ffn insert parallel form { A: [d_in, d_out] ~ zeros delta = drop(z, 0.5) @ A } compose h + delta } as two }"  # fmt: skip
    v = verdicts(parse(text))["deterministic in training"]
    assert v.value == "no" and text[v.span.start : v.span.end] == "drop(z, 0.5)"


def test_places_are_shown_from_here(tmp_path, monkeypatch):
    file = tmp_path / "mine.pelt"
    file.write_text("method mine {\n  modify ffn\n  insert parallel\n  form { b: [d_out] ~ zeros delta = b }\n  compose h + delta\n}\n")
    monkeypatch.chdir(tmp_path)
    v = verdicts(load(str(file)))["identity at start"]
    assert shown(v.span) == "mine.pelt:4:10"
    at = place(v.span)
    assert at is not None and (at["line"], at["column"], Path(str(at["file"])).name) == (4, 10, "mine.pelt")
    assert shown(S.NOWHERE) == "" and place(S.NOWHERE) is None
