"""Lines that read the one before several times: with each in its place they have no end, so what depends on that is unknown."""

from __future__ import annotations

import pytest
from names import CLASSICS, name as named
from typer.testing import CliRunner

from unipelt.cli.app import app
from unipelt.language.types.algebra import MOST, TooLarge
from unipelt.language.analyse.canonical import difference
from unipelt.language.loading import library, load, parse
from unipelt.language.analyse.meaning import meaning
from unipelt.language.analyse.verdicts import verdicts

STEPS = [
    "relu(_) + gelu(_) * _",
    "_ * _",
    "_ @ A + _ * _",
    "sum(_) * _ - mean(_) * z",
    "(_ + z) * (_ - z)",
    "_ if 1 < 2 else _ * _",
]
PLACES = ["form", "of tensors", "compose", "gate", "insert"]


def text(step: str, place: str = "form", n: int = 60, name: str = "m") -> str:
    def lines(first: str) -> str:
        return f"y0 = {first} " + " ".join(f"y{i} = {step.replace('_', f'y{i - 1}')}" for i in range(1, n))

    A, last = "A: [d_in, d_in] ~ normal(1)", f"y{n - 1}"
    tail = "compose h + delta"
    body = {
        "form": f"form {{ {A} {lines('z')} delta = {last} }} {tail}",
        "of tensors": f"form {{ {A} b: [d_in] ~ normal(1) {lines('b').replace('z)', 'b)')} delta = z * {last} }} {tail}",
        "compose": f"form {{ delta = z }} compose {{ {A} {lines('delta')} out = h + {last} }}",
        "gate": f"form {{ delta = z }} {tail}",
        "insert": f"form {{ {A} {lines('z')} delta = {last} }} compose {{ {lines('delta').replace('y', 'w')} out = h + w{n - 1} }}",
    }[place]
    gate = f"gated by {{ {A} {lines('z')} g = sigmoid(mean({last})) }}" if place == "gate" else ""
    return f"method {name} {{ use {{ modify ffn insert parallel {body} }} {gate} }}"


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("place", PLACES)
def test_a_check_ends_and_says_what_is_unknown(step: str, place: str) -> None:
    found = verdicts(parse(text(step, place)))
    assert found["causal"].value == "yes" and found["batch-independent"].value == "yes"
    if "if" not in step:
        assert found["identity at start"].value == "unknown"
        assert f"more than {MOST:,} characters" in found["identity at start"].reason


def test_whether_two_such_are_equal_is_not_known() -> None:
    a, b = parse(text(STEPS[0])), parse(text(STEPS[0]).replace("gelu", "silu"))
    for one, other in ((a, a), (a, b), (a, load("lora"))):
        with pytest.raises(TooLarge) as caught:
            difference(one, other)
        assert [d.code for d in caught.value.diagnostics] == ["E0393"]
    short = parse(text(STEPS[0], n=2))
    assert difference(short, short) is None


def test_rows_that_meet_and_are_large() -> None:
    one = text(STEPS[0]).removeprefix("method m { ").removesuffix("}")
    assert verdicts(parse(f"method m {{ {one} as a {one} as b }}"))["rows commute"].value == "unknown"


@pytest.mark.parametrize("command", ["check", "show", "equal", "diff"])
def test_every_command_answers(command: str, tmp_path) -> None:
    path = tmp_path / "x.pelt"
    path.write_text(text(STEPS[0], n=9))
    given = [str(path), "lora"] if command in ("equal", "diff") else [str(path)]
    done = CliRunner().invoke(app, [command, *given])
    assert (done.exit_code in (0, 1)) and done.output
    if command == "equal":
        assert "E0393" in done.output and done.exit_code == 1
    if command == "check":
        assert "identity at start: unknown" in done.output


def test_the_library_is_far_from_the_bound() -> None:
    for e in library():
        if e.kind == "method":
            longest = max((len(s.out.text) for s in meaning(load(e.name)).sites), default=0)
            assert longest < (MOST / 4 if e.name in map(named, CLASSICS) else MOST), e.name
