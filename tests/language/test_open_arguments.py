"""Methods with arguments that have no value: what is wrong whatever they are is a mistake, and what depends on them is unknown."""

from __future__ import annotations

import pytest
from names import spec

import unipelt
from unipelt.language.analyse.canonical import difference
from unipelt.language.analyse.counts import formula
from unipelt.language.report.diagnostics import PeltError
from unipelt.language.loading import check_text, parse
from unipelt.language.analyse.method import analyse
from unipelt.language.analyse.owned import owned
from unipelt.language.analyse.verdicts import verdicts
from unipelt.language.write.diagram import diagram

SOUND = "form { A: [d_in, 2] ~ normal(0.1)  B: [2, d_out] ~ zeros  delta = z @ A @ B } compose h + delta"


def said(text: str) -> list[tuple[str, str]]:
    return [(d.code, " ".join(d.where)) for c in check_text(spec(text), "x.pelt") for d in c.diagnostics]


def method(row: str, parameters: str = "at: sites") -> str:
    return f"method m({parameters}) {{ {row} }}"


def values(text: str) -> dict[str, str]:
    return {name: v.value for name, v in verdicts(parse(spec(text))).items()}


# ---------------------------------------------------------------- sites


@pytest.mark.parametrize(("row", "code"), [
    ("modify at insert parallel form { A: [d_in, 2] ~ zeros  delta = nosuch(z @ A) @ A.T } compose h + delta", "E0320"),
    ("modify at insert parallel form { A: [d_in, 2] ~ zeros  delta = z @ A } compose h + nosuch", "E0301"),
    ("modify at insert sideways form { delta = z } compose h + delta", "E0301"),
    ("modify at insert parallel form { A: [d_in, 0] ~ zeros  delta = z @ A @ A.T } compose h + delta", "E0343"),
    ("modify at insert parallel form { A: [d_in, 3] ~ zeros B: [2, d_out] ~ zeros delta = z @ A @ B } compose h + delta", "E0312"),
    ("modify at insert parallel form { delta = softmax(log_mass) + W } compose h + delta", "E0301"),
    ("use { modify at insert parallel form { delta = z } compose h + delta } gated by { w: [d_in] ~ zeros  g = sigmoid(z @ v) }", "E0301"),
    ("modify ffn, at insert parallel form { A: [d_in, 2] ~ zeros  delta = nosuch(z @ A) @ A.T } compose h + delta", "E0320"),
])  # fmt: skip
def test_what_is_wrong_at_every_site_is_a_mistake(row: str, code: str) -> None:
    found = said(method(row))
    assert [c for c, _ in found] == [code]
    if "ffn" not in row:
        assert "there is no site at which this row has no mistake" in found[0][1]


def test_a_space_with_open_sites_has_its_mistakes_too() -> None:
    row = "modify at insert parallel | sequential form { delta = nosuch(z) } compose h + delta"
    assert [c for c, _ in said(method(row))] == ["E0320"]


def test_what_is_right_at_some_sites_is_no_mistake() -> None:
    assert said(method(f"modify at insert parallel {SOUND}")) == []
    assert (
        said(method("modify at insert parallel form { m: [d_in] = norm(W, 1)  delta = (z * m) @ W } compose h + delta"))
        == []
    )
    assert said(method("modify at form { P: [3, d_out] ~ normal(1)  delta = P } compose prepend(delta, h)")) == []


def test_what_depends_on_the_sites_is_unknown() -> None:
    found = values(method(f"modify at insert parallel {SOUND}"))
    assert (found["mergeable"], found["identity at start"], found["causal"]) == ("unknown", "yes", "yes")
    why = verdicts(parse(method(f"modify at insert parallel {SOUND}")))["mergeable"].reason
    assert "`at`, which has no value" in why
    bent = "modify at insert parallel form { A: [d_in, d_out] ~ normal(1) delta = relu(z @ A) } compose h + delta"
    assert (values(method(bent))["mergeable"], values(method(bent))["identity at start"]) == ("no", "no")
    pooled = method(
        "modify at insert parallel form { A: [d_in, d_out] ~ zeros delta = mean(z, tokens) @ A } compose h + delta"
    )
    assert (
        values(pooled)["causal"] == "unknown"
    )  # the encoder's tokens, which a decoder's keys are made of, are all there


def test_a_verdict_that_is_known_holds_wherever_the_sites_are() -> None:
    text = method(f"modify at insert parallel {SOUND}")
    found = values(text)
    for site in ("attn", "attn.q", "attn.heads", "ffn.hidden", "block", "attn.q.weight"):
        if site.endswith("weight"):
            continue  # no insertion there
        there = values(text.replace("at: sites", f"at: sites = {site}"))
        assert all(found[name] in ("unknown", there[name]) for name in found), site


def test_counts_and_equality_do_without_no_site() -> None:
    m = parse(method(f"modify at insert parallel {SOUND}"))
    assert formula(m)["trained"] == "what `m` learns at `at`"
    for asked in (lambda: difference(m, m), lambda: diagram(m)):
        with pytest.raises(PeltError) as caught:
            asked()
        (d,) = caught.value.diagnostics
        assert d.code == "E0408" and "`at`" in d.message and d.help == "write m(at=…)"
    assert str(analyse(m)) == "m at at"
    assert difference(m(at="ffn"), m(at="ffn")) is None
    two = method(f"use {{ modify at insert parallel {SOUND} }} as a use {{ modify ffn insert parallel {SOUND} }} as b")
    assert values(two)["rows commute"] == "unknown"
    open_twice = method(
        f"use {{ modify at insert parallel {SOUND} }} as a use {{ modify to insert parallel {SOUND} }} as b",
        "at: sites, to: sites",
    )
    assert set(values(open_twice).values()) == {"unknown"}


# ---------------------------------------------------------------- other arguments


@pytest.mark.parametrize(("parameters", "calls", "expected"), [
    ("r: int", "low_rank(r)", "yes"), ("i: init", "low_rank(2, init = i)", "yes"), ("s: float", "low_rank(2, dropout = s)", "unknown"),
    ("f: activation", "bottleneck(2, f)", "no"),
])  # fmt: skip
def test_rows_that_meet_are_compared_without_the_values(parameters: str, calls: str, expected: str) -> None:
    """What an argument has no value for is a symbol: a method that is right has no mistake."""
    sites = "attn.q" if "low" in calls else "ffn"
    insert = "parallel" if "low" in calls else "sequential"
    rows = " ".join(f"use {{ modify {sites} insert {insert} form {calls} compose add }} as {n}" for n in "ab")
    text = method(rows, parameters)
    assert said(text) == [] and values(text)["rows commute"] == expected
    m = parse(spec(text))
    assert difference(m, m) is None


def test_how_a_tensor_starts_may_be_what_decides() -> None:
    text = method(
        "modify attn.q insert parallel form { A: [d_in, d_out] ~ i  delta = z @ A } compose h + delta", "i: init"
    )
    found = verdicts(parse(text))["identity at start"]
    assert found.value == "unknown" and "argument" in found.reason
    assert values(text.replace("i: init", "i: init = zeros"))["identity at start"] == "yes"
    assert values(text.replace("i: init", "i: init = normal(1)"))["identity at start"] == "no"


def test_who_owns_a_tensor_may_be_an_argument() -> None:
    form = "form { A: [d_in, d_out] ~ zeros per p  delta = z @ A } compose h + delta"
    m = parse(method(f"modify attn.heads insert parallel {form}", "p: scope"))
    assert [o.owner for o in owned(m)] == ["p"] and formula(m)["trained"] == "what `m` learns per `p`"
    other = parse(method(f"modify attn.heads insert parallel {form.replace('per p', 'per site')}", "p: scope"))
    assert difference(m, m) is None and difference(m, other) is not None
    assert unipelt.parse(method(f"modify attn.heads insert parallel {form}", "p: scope"))(p="layer").arguments == {
        "p": "layer"
    }
