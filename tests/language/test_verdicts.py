"""Every verdict has a reason and a place: text of the method or of a definition that it uses; nearly all decide."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from names import spec

from unipelt.language.syntax import nodes as S
from unipelt.language.analyse.method import analyse
from unipelt.language.report.diagnostics import PeltError
from unipelt.language.library import library_definition
from unipelt.language.loading import library, load, parse
from unipelt.language.analyse.meaning import bound
from unipelt.language.analyse.verdicts import verdicts
from unipelt.language.analyse.row_verdicts import RULES, Verdict
from unipelt.language.report.texts import lookup, place, shown

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
    # What is made of trained adapters is so, or not, as these are: it is decided once they are given.
    open_until = [
        v for m, own in found.items() if any(p.type == "adapters" for p in load(m).params) for v in own.values()
    ]
    left = [v for v in open_until if v.value == "depends"]
    assert len(decided) >= 0.95 * (len(everything) - len(left)) and len(left) < len(open_until)
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
    file.write_text(
        "method mine {\n  modify ffn\n  insert parallel\n  form { b: [d_out] ~ zeros delta = b }\n  compose h + delta\n}\n"
    )
    monkeypatch.chdir(tmp_path)
    v = verdicts(load(str(file)))["identity at start"]
    assert shown(v.span) == "mine.pelt:4:10"
    at = place(v.span)
    assert at is not None and (at["line"], at["column"], Path(str(at["file"])).name) == (4, 10, "mine.pelt")
    assert shown(S.NOWHERE) == "" and place(S.NOWHERE) is None


#: What random methods have refuted (see tests/proof): what it is about, a row, the verdict, its value.
LOW = "A: [d_in, r] ~ normal(0.1) B: [r, d_out] ~ normal(0.1)"
REFUTED = [
    ("what is inserted and not read", "modify attn.q insert mean(x, tokens) form { b: [d_out] ~ zeros delta = b } compose h + delta", "cache-consistent", "yes"),
    ("a mean is affine, and no map of a token", f"modify attn.q insert mean(x, tokens) form {{ {LOW} delta = z @ A @ B }} compose h + delta", "mergeable", "no"),
    ("what comes before", f"modify ffn insert sequential form {{ {LOW} delta = running_mean(z) @ A @ B }} compose h + delta", "mergeable", "no"),
    ("behind heads", f"modify attn.heads insert sequential form {{ {LOW} delta = z @ A @ B }} compose h + delta", "mergeable", "yes"),
    ("behind a head", f"modify head insert sequential form {{ {LOW} delta = z @ A @ B }} compose h + delta", "mergeable", "yes"),
    ("the attention's own number", "modify attn.heads insert sequential form { delta = z * scale } compose h + delta", "mergeable", "unknown"),
    ("a gate on what is added", "modify attn.q insert parallel form { b: [d_out] ~ zeros delta = b } compose h + delta gated by { w: [d_in] ~ zeros g = z @ w }", "mergeable", "yes"),
    ("a gate on what replaces", "modify attn.q insert parallel form { b: [d_out] ~ zeros delta = b } compose h * delta gated by { w: [d_in] ~ zeros g = z @ w }", "mergeable", "no"),
    ("an encoder's tokens", f"modify cross.v insert parallel form {{ {LOW} delta = running_mean(z) @ A @ B }} compose h + delta", "cache-consistent", "yes"),
    ("an encoder's stack", f"modify encoder.ffn insert parallel form {{ {LOW} delta = mean(z, tokens) @ A @ B }} compose h + delta", "causal", "yes"),
    ("a number is not dropped", "modify ffn form { b: [d_out] ~ zeros delta = b * drop(2, 0.5) } compose h + delta", "deterministic in training", "yes"),
    ("a line that nothing reads", "modify ffn form { b: [d_out] ~ zeros u = tanh(b) delta = b } compose h + delta", "foldable", "no"),
    ("a line that the composition reads", "modify ffn form { b: [d_out] ~ zeros u = tanh(b) delta = u * b } compose h + delta + u", "foldable", "yes"),
    ("a number among closed lines", "modify ffn form { b: [d_out] ~ zeros u = sqrt(2) delta = tanh(b * u) } compose h + delta", "foldable", "yes"),
    ("a line that a choice reads", "modify ffn form { b: [d_out] ~ zeros u = tanh(b) delta = u if depth > 1 else b } compose h + delta", "foldable", "yes"),
    ("a line that a part of a choice reads", "modify ffn insert sequential form { b: [d_out] ~ zeros u = tanh(b) v = exp(u) delta = z * (v if depth > 1 else u) } compose h + delta", "foldable", "yes"),
    ("what a choice computes", "modify ffn form { b: [d_out] ~ zeros delta = tanh(b) if depth > 1 else b } compose h + delta", "foldable", "no"),
    ("matrices of zeros in planes", "modify attn.q insert x form { M: [d_in - 1, 2, 2] ~ zeros C: [d_in, d_out] ~ normal(0.1) delta = givens(z, M) @ C } compose h + delta", "identity at start", "yes"),
    ("angles of zeros in planes", "modify attn.q insert x form { t: [d_in - 1] ~ zeros C: [d_in, d_out] ~ normal(0.1) delta = givens(z, t) @ C } compose h + delta", "identity at start", "no"),
    ("a line with a dropout", "modify ffn form { b: [d_out] ~ zeros u = b + drop(1, 0.0) delta = tanh(u) } compose h + delta", "foldable", "no"),
    ("a norm of zeros", "modify ffn insert parallel form { A: [d_in, d_out] ~ zeros B: [d_in, d_out] ~ normal(0.1) delta = norm(z @ A) * (z @ B) } compose h + delta", "identity at start", "yes"),
    ("rows that are the same meet weights that add up to 0", "modify attn.heads insert parallel form { R: [4, d_model] ~ zeros per site b: [4] ~ normal(0.3) delta = (b - mean(b)) @ heads(attn.v(R)) } compose h + delta", "identity at start", "unknown"),
    ("the next whole number of zero", "modify ffn insert parallel form { A: [d_in, d_out] ~ zeros b: [] ~ normal(0.1) delta = ceil(z @ A * b) } compose h + delta", "identity at start", "yes"),
    ("zeros side by side", "modify ffn insert parallel form { A: [d_in, 2] ~ zeros b: [2] ~ zeros C: [4, d_out] ~ ones delta = concat(z @ A, b) @ C } compose h + delta", "identity at start", "yes"),
    ("a part of zeros", "modify attn.k insert parallel form { A: [d_in, d_model] ~ zeros B: [d_in, d_model] ~ normal(0.1) delta = z @ (A * B)[:, : d_out] } compose h + delta", "identity at start", "yes"),
    ("a part of zeros beside what is drawn", "modify attn.k insert parallel form { A: [d_in, d_model] ~ zeros B: [d_in, d_model] ~ normal(0.1) delta = z @ A[:, : d_out] + z @ B[:, : d_out] } compose h + delta", "identity at start", "no"),
    ("the branch of training", "modify ffn insert parallel form { A: [d_in, d_out] ~ zeros B: [d_in, d_out] ~ normal(0.1) delta = z @ B if training else z @ A } compose h + delta", "identity at start", "yes"),
    ("a draw that ones take away", "modify ffn insert parallel form { A: [d_in, 2] ~ ones B: [2, d_out] ~ normal(0.1) delta = (z - mean(z)) @ A @ B } compose h + delta", "identity at start", "unknown"),
    ("a choice between two zeros in a weight", "modify attn.v.weight form { b: [] ~ zeros c: [4] ~ normal(0.3) e: [4] ~ normal(0.3) delta = b } compose h + c @ e * delta", "identity at start", "yes"),
    ("rows that are one number less their mean", "modify attn.v insert parallel form { A: [d_in, 4] ~ normal(0.3) B: [4, d_out] ~ zeros u = z @ A @ (B - 0.3) delta = u - mean(u) } compose h + delta", "identity at start", "unknown"),
    ("noise outside training", "modify attn.heads insert parallel form { delta = noise[batch, token, d_out] * exp(q) } compose h * delta", "mergeable", "unknown"),
    ("a draw that meets no noise outside training", "modify ffn insert parallel form { b: [d_out] ~ normal(0.1) delta = (b < chance[d_out]) * noise[d_out] } compose h + delta", "cache-consistent", "yes"),
    ("a draw outside training", "modify ffn insert parallel form { b: [d_out] ~ normal(0.1) delta = (b < chance[d_out]) * b } compose h + delta", "cache-consistent", "no"),
    ("what bends and cancels out", "modify attn.q insert parallel form { B: [d_in, d_out] ~ zeros delta = tanh(z) @ B + z @ B - tanh(z) @ B } compose h + delta", "mergeable", "unknown"),
    ("what is read and cancels out", "modify attn.heads insert parallel form { delta = q - z } compose h + delta", "mergeable", "yes"),
    ("shares of one number among other positions", "modify ffn.up insert parallel form { frozen C: [d_in, d_out] ~ constant(0.5) b: [] ~ normal(0.1) delta = softmax(running_mean(z @ C)) * b } compose h + delta", "mergeable", "unknown"),
    ("what one map alone may read", f"modify cross.input insert sequential form {{ {LOW} delta = z @ A @ B }} compose h + delta", "mergeable", "unknown"),
    ("what several maps read", f"modify attn.input insert sequential form {{ {LOW} delta = z @ A @ B }} compose h + delta", "mergeable", "no"),
    ("a matrix that starts as the identity", "modify ffn insert sequential form { A: [d_in, d_out] ~ identity delta = z @ A } compose delta", "identity at start", "unknown"),
]  # fmt: skip


@pytest.mark.parametrize(("about", "row", "name", "value"), REFUTED, ids=[r[0] for r in REFUTED])
def test_what_random_methods_refuted(about, row, name, value):
    row, _, gate = row.partition(" gated by ")
    method = parse(f"method m(r: int = 3) {{ use {{ {row} }} as a{' gated by ' + gate if gate else ''} }}")
    assert verdicts(method)[name].value == value


ADDED = "modify ffn insert sequential form { A: [d_in, d_out] ~ normal(0.1) delta = tanh(z @ A) } compose h + delta"
PUT = "modify embed form {{ P: [2, d_out] ~ normal(0.1) delta = P }} compose {}"
ORDERS = [
    ("rows that are alike", ADDED, ADDED, "no"),
    ("rows at places of their own", PUT.format("fill(delta, h)"), PUT.format("append(delta, h)"), "yes"),
    ("rows at one place", PUT.format("prepend(delta, h)"), PUT.format("prepend(delta, h)"), "no"),
    ("other layers, in sums", "layers every 2 " + ADDED.replace("tanh(z @ A)", "x @ A"), ADDED.replace("tanh(z @ A)", "x @ A"), "yes"),
    ("other layers", "layers every 2 " + ADDED, ADDED, "unknown"),
    ("a mean of what is scaled", "modify ffn insert sequential form { b: [] ~ normal(0.1) delta = b } compose h * delta",
     "modify ffn insert sequential form { delta = mean(z, tokens) } compose h + delta", "unknown"),
]  # fmt: skip


@pytest.mark.parametrize(("about", "one", "other", "value"), ORDERS, ids=[o[0] for o in ORDERS])
def test_orders_of_rows(about, one, other, value):
    assert verdicts(parse(f"method m {{ use {{ {one} }} as a use {{ {other} }} as b }}"))["rows commute"].value == value


def test_an_activation_that_is_an_argument_may_start_anywhere():
    text = "method m(act: activation = gelu) { modify ffn insert parallel form { A: [d_in, 2] ~ zeros B: [2, d_out] ~ normal(0.1) delta = act(z @ A) @ B } compose h + delta }"
    assert verdicts(parse(text))["identity at start"].value == "unknown"
    assert verdicts(bound(parse(text)))["identity at start"].value == "yes"


def test_heads_are_split_once():
    with pytest.raises(PeltError, match="E0336.*has heads already"):
        analyse(
            parse(
                "method m { modify attn.heads insert parallel form { A: [d_head, d_model] ~ zeros delta = heads(attn.q(q @ A)) } compose h + delta }"
            )
        )


def test_a_running_mean_is_of_a_tensor():
    with pytest.raises(PeltError, match="E0331.*a tensor, not the number 2"):
        analyse(
            parse("method m { modify ffn form { b: [d_out] ~ zeros delta = b * running_mean(2) } compose h + delta }")
        )


# ---------------------------------------------------------------- what random methods refuted


def said(
    form: str, compose: str = "add", sites: str = "ffn", insert: str = "parallel", gate: str = ""
) -> dict[str, str]:
    text = f"method m(r: int = 3) {{ use {{ modify {sites} insert {insert} form {{ {form} }} compose {compose} }} as a {gate} }}"
    return {k: v.value for k, v in verdicts(parse(text)).items()}


def test_a_comparison_may_be_false_everywhere():
    found = said("A: [d_in, d_out] ~ zeros B: [d_out] ~ normal(0.3) delta = (z @ A > exp(B)) * B")
    assert found["identity at start"] == "unknown"


def test_a_power_of_zero_is_zero_and_so_is_either_of_two_zeros():
    squared = "gated by { A: [d_model] ~ zeros  g = (x @ A) ** 2 }"
    assert said("b: [] ~ normal(0.3) delta = z * b", gate=squared)["identity at start"] == "yes"
    assert (
        said("b: [] ~ zeros c: [] ~ normal(0.3) delta = z * c * (b if layer >= 1 else 0 * b)")["identity at start"]
        == "yes"
    )


def test_shares_may_come_to_a_number():
    found = said(
        "A: [d_in, r] ~ normal(0.3) frozen C: [r, d_out] ~ constant(0.5) delta = softmax(z @ A) @ C", sites="attn.q"
    )
    assert found["mergeable"] == "unknown"
    assert (
        said("A: [d_in, r] ~ normal(0.3) C: [r, d_out] ~ normal(0.3) delta = softmax(z @ A) @ C", sites="attn.q")[
            "mergeable"
        ]
        == "no"
    )
    assert said("b: [d_out] ~ zeros delta = sum(softmax(x)) * b")["mergeable"] == "unknown"
    assert (
        said(
            "A: [d_in, r] ~ normal(0.3) C: [r, d_out] ~ normal(0.3) delta = drop(softmax(z @ A), 0.1) @ C",
            sites="attn.q",
        )["mergeable"]
        == "no"
    )
    form = "A: [d_in, r] ~ normal(0.3) frozen C: [r, r] ~ ones B: [r, d_out] ~ zeros delta = softmax(running_mean(z @ A) @ C) @ B"
    assert said(form)["cache-consistent"] == "unknown"


def test_what_is_read_of_other_positions_may_never_cross_a_threshold():
    form = "A: [d_in, d_out] ~ normal(0.3) b: [d_out] ~ normal(0.3) delta = (running_mean(z @ A) > exp(b)) * b"
    assert said(form)["cache-consistent"] == "unknown"


def test_what_is_read_of_other_positions_may_cancel_out():
    form = "A: [d_in, d_out] ~ normal(0.3) delta = x @ A + z - z"
    for verdict in ("causal", "cache-consistent"):
        assert said(form, insert="mean(h, positions)")[verdict] == "unknown"
        assert said(form + " + z", insert="mean(h, positions)")[verdict] == "no"


def test_words_and_embeddings_are_one_place_on_some_models():
    text = """method m { use { modify embed.words form { P: [3, d_model] ~ normal(0.3) delta = P } compose prepend(delta, h) } as a
    use { modify embed form { Q: [2, d_model] ~ normal(0.3) delta = Q } compose prepend(delta, h) } as b }"""
    assert verdicts(parse(text))["rows commute"].value == "unknown"


def test_what_another_row_throws_away_is_not_seen():
    """A row that passes on nothing of its input may hide what others read or draw; an edit of a weight passes its input on."""
    pools = "use { modify attn.q insert parallel form { delta = mean(x, positions) @ W } compose h + delta } as a "
    hides = (
        "use { modify attn insert parallel form { B: [d_out] ~ normal(0.1) delta = B } compose { out = delta } } as b "
    )
    keeps = hides.replace("{ out = delta }", "h + delta")
    weight = "use { modify attn.o.weight form { B: [d_out] ~ zeros delta = B } compose { out = h * 0 + delta } } as b "
    drops = pools.replace("mean(x, positions) @ W", "drop(x, 0.5) @ W")
    for name, first in (
        ("causal", pools),
        ("padding-invariant", pools),
        ("cache-consistent", pools),
        ("deterministic in training", drops),
    ):
        for other, value in ((hides, "unknown"), (keeps, "no"), (weight, "no"), ("", "no")):
            for rows in (first + other, other + first):
                assert verdicts(parse(f"method m {{ {rows} }}"))[name].value == value, (name, rows)


def test_the_token_that_is_picked_may_be_one_that_another_row_adds():
    picks = "use { modify embed insert sequential form { delta = last(z, tokens) } compose h + delta } as b "
    adds = "use { modify embed insert sequential form { P: [4, d_out] ~ normal(0.1) delta = P } compose { out = append(delta, h) } } as a "
    pools = picks.replace("last(", "mean(")
    for rows, value in ((adds + picks, "unknown"), (picks, "no"), (adds + pools, "no"), (pools, "no")):
        assert verdicts(parse(f"method m {{ {rows} }}"))["causal"].value == value, rows


def test_what_is_dropped_may_meet_a_zero():
    for factor, value in (("B - (B if r > 2 else B)", "unknown"), ("B", "no"), ("B - (B if r > 2 else C)", "no")):
        form = f"B: [d_out] ~ normal(0.1) C: [d_out] ~ normal(0.1) delta = drop(z, 0.5) * ({factor})"
        assert said(form)["deterministic in training"] == value, factor


ROWS = """
method m(r: int = 2) {
  use { modify attn.q   insert parallel   form { B: [d_in, d_out] ~ zeros   delta = z @ B }   compose h + delta } as low
  use { modify ffn   insert parallel
        form { C: [d_in, d_out] ~ zeros   delta = mean(z, positions) @ C }   compose h + delta } as pooled
  use { modify attn.heads   insert sequential   form { s: [d_head] ~ ones per head   delta = s * z }   compose delta } as heads
}
"""


def test_of_several_rows_the_reason_names_the_one_that_decides():
    found = verdicts(parse(ROWS))
    assert (
        found["causal"].reason == "`pooled`: this pools over the whole sequence, so every position sees the later ones"
    )
    assert found["identity at start"].reason == (
        "`low`: `B` starts as zeros, so the output is `h`; `pooled`: `C` starts as zeros, so the output is `h`; "
        "`heads`: `s` starts as ones, so the output is `h`")  # fmt: skip
    assert "`" not in found["deterministic in training"].reason  # the same for all
    merged = verdicts(parse(re.sub(r"  use { modify ffn .* pooled\n", "", ROWS, flags=re.DOTALL)))["mergeable"]
    assert merged.reason.endswith(
        "`heads`: affine in the input of `attn.o`, which absorbs it"
    )  # a head is what `attn.o` reads


@pytest.mark.parametrize("form, name, reason, place_", [
    ("a = running_mean(z)   B: [d_in, d_out] ~ zeros   delta = a @ B", "causal", "positions that it reads are not later ones", "running_mean(z)"),
    ("input who: index(3)   B: [3, d_in, d_out] ~ zeros   delta = z @ B[who]", "mergeable", "`who`, which each call gives anew", "input who"),
    ("B: [d_in, d_out] = abs(W)   delta = z @ B", "identity at start", "nothing is drawn", "h + delta"),
])  # fmt: skip
def test_a_reason_does_not_contradict_another(form, name, reason, place_):
    text = f"method m {{ modify ffn.up   insert parallel   form {{ {form} }}   compose h + delta }}"
    found = verdicts(parse(text))[name]
    assert reason in found.reason and text[found.span.start :].startswith(place_)


@pytest.mark.parametrize(
    ("a", "b", "verdict"),
    [("ffn", "decoder.ffn", "no"), ("encoder.ffn", "decoder.ffn", "yes"), ("decoder.ffn", "ffn", "no")],
)
def test_rows_meet_in_the_stacks_of_both(a, b, verdict):
    rows = f"use adapter(3) as a {{ modify {a} }} use parallel_adapter(3) as b {{ modify {b} }}"
    assert verdicts(parse(spec(f"method m {{ {rows} }}")))["rows commute"].value == verdict


def test_what_a_form_makes_of_the_weight_is_not_folded():
    """At a weight `z` and `h` are the base's: only what learned tensors make by themselves is computed once and stored."""
    text = "method m {{ modify attn.q.weight form {{ A: [d_in, d_out] ~ zeros  delta = {} }} compose h + delta }}"
    said = {e: verdicts(parse(text.format(e)))["foldable"].value for e in ("tanh(z + A)", "z * tanh(A)")}
    assert said == {"tanh(z + A)": "no", "z * tanh(A)": "yes"}


def test_rows_of_a_method_whose_own_values_are_too_large_are_not_compared() -> None:
    """It has a meaning for smaller values."""
    method = parse("""method m(r: int = 999999999999) {
      use { modify ffn  insert parallel  form { A: [64, r] ~ zeros  B: [r, d_out] ~ zeros  delta = sum(A, 0) @ B }  compose h + delta } as a
      use { modify ffn  insert sequential  form { c: [d_out] ~ ones  delta = c }  compose h * delta } as b
    }""")
    found = verdicts(method)["rows commute"]
    assert found.value == "unknown" and "entries" in found.reason
    assert "entries" not in verdicts(method(r=4))["rows commute"].reason
