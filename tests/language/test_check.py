"""The type checker on wrong methods (`mistaken`): each gives one error of the right code, at the right place, that says what to do."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from mistaken import CASES
from names import RENAMED, spec

from unipelt.language.report.diagnostics import Diagnostic, PeltError
from unipelt.language.loading import check, parse


def errors(text: str) -> list[Diagnostic]:
    with pytest.raises(PeltError) as caught:
        parse(text, name=None if text.count("method ") == 1 else re.findall(r"method (\w+)", text)[-1])
    return list(caught.value.diagnostics)


NEAR = {"near_form", "near_compose", "near_compose_call", "near_gate", "near_method", "near_base"}


@pytest.mark.parametrize("name", CASES)
def test_one_mistake_gives_one_error_at_its_place(name: str) -> None:
    code, marked, words = CASES[name]
    if RENAMED and name in NEAR:
        words = ""  # whose help names the nearest name, which is another one then
    start, end = marked.index("⟦"), marked.index("⟧") - 1
    text = marked.replace("⟦", "").replace("⟧", "")
    if name.startswith("cycle"):
        with pytest.raises(PeltError) as caught:
            parse(text, name="a")
        found = list(caught.value.diagnostics)
    else:
        found = errors(text)
    assert [d.code for d in found] == [code], [(d.code, d.message) for d in found]
    (d,) = found
    assert text[d.span.start : d.span.end] == text[start:end], text[d.span.start : d.span.end]
    assert (d.span.start, d.span.end) == (start, end)
    assert d.severity == "error" and d.message
    said = " | ".join([d.message, d.label, d.help, *d.where, *(x.text for x in d.labels)])
    for word in filter(None, words.split("; ")):
        assert word in said, f"{word!r} is not said in {said!r}"
    assert code in str(PeltError(d)) and text[start:end].split("\n")[0] in str(PeltError(d))


def test_the_corpus_is_large() -> None:
    assert len(CASES) >= 100 and len({c for c, _, _ in CASES.values()}) >= 40


# ---------------------------------------------------------------- several mistakes, and what a mistake does not cause


def test_every_mistake_of_a_method_is_reported_at_once() -> None:
    text = spec("""method m(r: int = 4) {
  use {
    modify ffn
    insert parallel
    form {
      A: [d_in, r] ~ cauchy
      B: [r, d_out] ~ zeros per galaxy
      delta = z @ A @ C
    }
    compose { out = h + dleta }
  } as one
  use { modify wing insert parallel form low_rank(r) compose add } as two
}""")
    found = errors(text)
    assert [d.code for d in found] == ["E0341", "E0342", "E0301", "E0301", "E0302"]
    assert [text[d.span.start : d.span.end] for d in found] == ["cauchy", "galaxy", "C", "dleta", "wing"]


def test_mistakes_of_rows_that_cannot_be_put_together_are_collected() -> None:
    text = spec("""method m {
  use { modify ffn insert parallel form low_rankk(4) compose add } as a
  use { modify ffn insert parallel form low_rank(4) compose addd } as b
  use { insert parallel form low_rank(4) compose add } as c
}""")
    assert [d.code for d in errors(text)] == ["E0225", "E0221", "E0218"]


def test_one_mistake_at_several_sites_is_one_error() -> None:
    (d,) = errors(spec("method m { modify attn, ffn, attn.q insert parallel form { delta = nothing } compose add }"))
    assert d.code == "E0301"


def test_a_mistake_does_not_cascade() -> None:
    """Everything below reads the unknown; nothing of it is reported."""
    body = "A: [d_in, unknown] ~ zeros b: [unknown] ~ zeros a = z @ A c = relu(a + b) * 2 delta = softmax(c) @ A.T"
    found = errors(f"method m {{ modify ffn insert parallel form {{ {body} }} compose {{ out = mean(delta) + h }} }}")
    assert [d.code for d in found] == ["E0301", "E0301"], "once for each place at which the name is written"


def test_definitions_of_a_file_are_checked_each_on_its_own(tmp_path: Path) -> None:
    path = tmp_path / "some.pelt"
    path.write_text(
        spec(
            "method good { use lora }\nmethod bad { use lorra }\nmethod several { modify attn | ffn insert parallel "
            "form low_rank(4) compose add }\nform f { delta = z }\n"
        )
    )
    found = {c.name: c for c in check(path)}
    assert [(c.kind, len(c.diagnostics), c.space) for c in found.values()] == [
        ("method", 0, False),
        ("method", 1, False),
        ("space", 0, True),
        ("form", 0, False),
    ]
    assert found["good"].method is not None and found["bad"].method is None
    assert found["several"].members == 2


def test_a_misspelt_insertion_is_one_mistake() -> None:
    with pytest.raises(PeltError) as caught:
        parse(
            "method m { modify ffn insert sequental form { A: [d_in, d_out] ~ zeros delta = z @ A } compose h + delta }"
        )
    (found,) = caught.value.diagnostics
    assert found.code == "E0301" and "`sequential`" in found.help


# ---------------------------------------------------------------- growth: small texts that would become huge


def test_rows_that_double_with_every_use_are_refused() -> None:
    lines = [spec("method m0 { use lora as a }")]
    lines += [f"method m{i} {{ use m{i - 1} as a use m{i - 1} as b }}" for i in range(1, 31)]
    with pytest.raises(PeltError) as caught:
        parse("\n".join(lines), name="m30")
    assert [d.code for d in caught.value.diagnostics] == ["E0227"]


def test_arguments_that_double_with_every_from_are_refused() -> None:
    lines = [spec("method m0(s: float) { modify ffn insert parallel form low_rank(4) compose scaled(s) }")]
    lines += [f"method m{i}(s: float) from m{i - 1}(s + s) {{ }}" for i in range(1, 31)]
    with pytest.raises(PeltError) as caught:
        parse("\n".join(lines), name="m30")
    assert [d.code for d in caught.value.diagnostics] == ["E0227"]


def test_deep_but_finite_nesting_is_refused_with_its_depth() -> None:
    lines = [spec("method m0 { use lora }")] + [f"method m{i} from m{i - 1} {{ }}" for i in range(1, 60)]
    assert parse("\n".join(lines), name="m20").rows
    with pytest.raises(PeltError) as caught:
        parse("\n".join(lines), name="m59")
    (d,) = caught.value.diagnostics
    assert d.code == "E0213" and "deep" in d.message
