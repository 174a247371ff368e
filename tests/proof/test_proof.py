"""Every verdict on every method of the library, in both directions, by numbers; and that each judge can tell."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from judges import HOLDS, JUDGES, SHOWS
from names import members, RENAMED, spec
from proof import KINDS, arguments, prove
from random_expressions import words
from random_methods import text
from random_proof import MORE, proved
from tiny import small
from trial import base, trial

import unipelt
from unipelt.language.loading import parse
from unipelt.language.analyse.verdicts import verdicts
from unipelt.language.analyse.row_verdicts import RULES
from unipelt.language.types.draws import DRAWN as DRAWN_WORDS
from unipelt.language.types.initialisers import INITIALISERS
from unipelt.language.types.owners import OWNERS
from unipelt.language.types.primitives import PRIMITIVES
from unipelt.language.types.selections import WORDS as SELECTIONS

METHODS = members()
DECODERS, OTHERS = ("gpt2", "llama"), [k for k in KINDS if k not in ("gpt2", "llama")]


NOT_COMMUTING = spec("method m { use lora(4, at = [attn.k]) use ia3 }")


def in_turn(i: int) -> list[str]:
    """A decoder and another model, taking turns (`benchmarks/proof.py` takes all of them)."""
    return [DECODERS[i % 2], OTHERS[i % len(OTHERS)]]


def taker(method: unipelt.Method) -> str:
    """A model that takes a method."""
    for kind in ("llama", *KINDS):
        try:
            unipelt.plan(base(kind), method, head=False, allow_future=True)
            return kind
        except unipelt.PeltError:
            continue
    raise AssertionError(f"no model takes {method.name}")


def test_there_is_a_judge_for_every_verdict():
    assert set(JUDGES) == {*RULES, "rows commute"}


def test_the_library_asks_every_judge_both_ways():
    """None of the classics reduces over a batch, so none says no there; the judge is tried by itself below."""
    said = {(n, v.value) for m in [*map(unipelt.load, METHODS), parse(NOT_COMMUTING)] for n, v in verdicts(m).items()}
    assert {(n, value) for n in JUDGES for value in ("yes", "no")} - said <= {("batch-independent", "no")}


def test_the_judge_of_batches_can_tell(monkeypatch):
    from unipelt.compiler.words import FUNCTIONS
    from unipelt.compiler.named import Named

    method = parse(
        "method m { modify ffn insert parallel form { A: [d_in, d_out] ~ normal(0.1) delta = tanh(z) @ A } compose h + delta }"
    )
    with trial("gpt2", method) as t:
        assert JUDGES["batch-independent"](t) <= HOLDS
        monkeypatch.setattr(
            "unipelt.runtime.edits.Edit._straight", lambda *_: None
        )  # as written, by the function that is replaced
        monkeypatch.setitem(FUNCTIONS, "tanh", lambda context, a: Named(torch.tanh(a.data - a.data.mean(0)), a.axes))
        assert JUDGES["batch-independent"](t) > SHOWS


def test_the_judge_of_folds_can_tell():
    """A "no" about a line that could be computed once is not shown."""
    rest = "compose h + delta"
    for delta, shown in (("z @ tanh(A)", False), ("tanh(z @ A)", True), ("z @ (A * F)", False), ("(z @ F) @ A", True)):
        form = f"form {{ A: [d_in, d_out] ~ normal(0.1) frozen F: [d_in, d_out] ~ constant(0.5) delta = {delta} }}"
        with trial("gpt2", parse(f"method m {{ modify ffn insert parallel {form} {rest} }}")) as t:
            assert (JUDGES["foldable"](t) > SHOWS) is shown, delta


@pytest.mark.sampled(2)
@pytest.mark.skipif(bool(RENAMED), reason="a name decides nothing here that it does not decide elsewhere")
@pytest.mark.parametrize("i", range(len(METHODS)), ids=METHODS)
def test_no_verdict_is_refuted(i, tmp_path):
    rest = [(k, seed, 1.0) for seed in (1, 2) for k in KINDS]
    found = prove(small(METHODS[i]), in_turn(i), more=rest, folder=tmp_path)
    assert not found.refuted, found
    assert len(found.refused) < len(found.said) and not found.unstable


def test_rows_that_do_not_commute_show_it():
    found = prove(parse(NOT_COMMUTING), ["llama", "bert_head"])
    assert found.said["rows commute"] == "no" and not found.refuted, found


@pytest.mark.skipif(bool(RENAMED), reason="as above")
@pytest.mark.parametrize("method", [m for m in METHODS if arguments(small(m))])
def test_what_depends_on_an_argument_is_so_on_both_sides(method):
    for name, sides in arguments(small(method)).items():
        for said, m in sides:
            assert verdicts(m)[name].value == said
            with trial(taker(m), m) as t:
                value = JUDGES[name](t)
            assert value is not None and (value <= HOLDS if said == "yes" else value > SHOWS), (name, said, value)


#: Enough for every judge to be asked both ways; `benchmarks/proof.py` takes 2,000.
DRAWN = 24


@pytest.mark.skipif(bool(RENAMED), reason="they use no definition of the library")
@pytest.mark.parametrize("first", range(0, DRAWN, 8))
def test_no_verdict_on_random_methods_is_refuted(first):
    found = [(seed, proved(seed)) for seed in range(first, first + 8)]
    checked = [(seed, p) for seed, p in found if not isinstance(p, str)]
    assert len(checked) >= 5
    for seed, p in checked:
        assert not p.refuted, (p.refuted, text(seed))
    assert sum(bool(p.found) for _, p in checked) >= len(checked) - 2  # most go onto some model


@pytest.mark.skipif(bool(RENAMED), reason="they use no definition of the library")
def test_no_verdict_on_random_methods_at_the_weights_of_experts_is_refuted():
    found = [(seed, proved(seed)) for seed in range(400) if "ffn.experts" in text(seed)]
    assert sum(not isinstance(p, str) and "mixtral" in p.idle for _, p in found) >= 5
    for seed, p in found:
        assert isinstance(p, str) or not p.refuted, (p.refuted, text(seed))


def test_random_methods_have_every_word():
    """Each word of the tables of primitives, starts, selections and draws; clauses and indices that are words of the grammar."""
    drawn = set().union(*(words(text(seed)) for seed in range(2500)))
    starts = [n for n, i in INITIALISERS.items() if not i.given]  # no text of a method has these
    of_tables = {*PRIMITIVES, *starts, *SELECTIONS, *DRAWN_WORDS, *OWNERS}
    of_the_grammar = {
        "ids", "positions", "penalty", "after", "carry", "require", "axis", "input", "frozen", "lr", "progress", "training", "gated", "insert", "train", "every"
    }  # fmt: skip
    assert not (of_tables | of_the_grammar) - drawn


def test_random_methods_are_the_same_for_the_same_seed():
    """In every process: Python orders sets of strings as a number says that it draws at its start."""
    asked = "import hashlib, random_methods; print(hashlib.sha256(repr([random_methods.text(s) for s in range(300)]).encode()).hexdigest())"
    found = {
        subprocess.run(
            [sys.executable, "-c", asked], cwd=Path(__file__).parent, capture_output=True, text=True, check=True,
            env={**os.environ, "PYTHONHASHSEED": seed},
        ).stdout
        for seed in ("1", "2", "3")
    }  # fmt: skip
    assert len(found) == 1 and text(3) != text(4)


#: Methods on which a verdict, a count or a judge was wrong once, and models on which that showed.
WRONG_ONCE = {
    "a tensor of the whole model, in stacks of other sizes": (
        "bart", "modify ffn.down insert parallel form { A: [d_ff, r] ~ normal(0.1) per model B: [r, d_out] ~ zeros delta = z @ A @ B } compose h + delta"),
    "a tensor of the whole model, in one stack of two": (
        "bart", "modify encoder.ffn.down insert parallel form { b: [d_ff] ~ normal(0.1) per model B: [d_ff, d_out] ~ zeros delta = (z * b) @ B } compose h + delta"),
    "what is folded in some layers": (
        "llama", "modify attn.v insert parallel form { b: [r] ~ normal(0.3) frozen U: [r, d_out] ~ normal(0.3) V: [r, d_out] ~ zeros "
        "u = sin((U if layer < depth / 2 else V)) D: [d_in, r] ~ normal(0.3) delta = (z @ D * b) @ u } compose h + delta"),
    "numbers drawn for each token": ("gpt2", "modify ffn insert parallel form { delta = chance[batch, token, d_out] } compose { out = h * delta }"),
    "numbers drawn beside a tensor": (
        "gpt2", "modify attn insert parallel form { D: [d_model, d_model] ~ identity delta = noise[token, d_out] @ D b: [d_model] ~ zeros } compose { out = h + delta + b }"),
    "what is nothing before training has begun": (
        "gpt2", "modify ffn insert parallel form { b: [d_out] ~ normal(0.3) delta = (chance if training else 1) * b } compose { out = h + progress * delta }"),
    "the first token of a decoder": (
        "bart", "modify cross.heads insert parallel form { delta = first(q, positions) } compose { b: [d_out] ~ zeros per head out = h + (delta @ b) * delta }"),
    "what is too small to be seen beside small weights": (
        "t5", "modify cross insert h * h form { delta = z } compose { out = h + running_mean(logsumexp(z)) * delta }"),
    "a comparison that is always true": (
        "gpt2", "modify attn.o insert stop_gradient(x) form { b: [d_in] ~ normal(0.3) delta = min((x <= z) * b) * tanh(z) } compose { D: [d_in, d_out] ~ zeros out = h + delta @ D }"),
    "columns of a frozen matrix that are one": (
        "gpt2", "modify ffn insert parallel form { frozen F: [d_in, r] ~ constant(0.5) D: [r, d_out] ~ normal(0.3) delta = softmax(z @ F) @ D } compose h + delta"),
    "what a choice reads": (
        "llama", "modify attn.v insert x form { b: [r] ~ normal(0.3) u = exp(tanh(b)) D: [d_in, r] ~ normal(0.3) B: [r, d_out] ~ zeros "
        "delta = ((x @ D) * (u if layer < depth / 2 else b)) @ B } compose h + delta"),
    "matrices of zeros in planes": (
        "llama", "modify attn.q insert x form { M: [d_in - 1, 2, 2] ~ zeros C: [d_in, d_out] ~ normal(0.3) delta = givens(z, M) @ C } compose h + delta"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG_ONCE)
def test_what_was_wrong_once(name, tmp_path):
    kind, rows = WRONG_ONCE[name]
    found = prove(parse(f"method m(r: int = 3) {{ {rows} }}"), [kind], layers=1, more=MORE, folder=tmp_path)
    assert found.found and not found.refuted, found


def test_a_row_that_multiplies_what_it_is_given_by_0_hides_the_rows_before_it():
    method = parse("""method m {
      use { modify attn insert parallel form { b: [d_out] ~ normal(0.3) delta = b } compose { out = 0 * h + delta } } as over
      use { tokens last 2 modify attn.q insert parallel form { b: [d_out] ~ normal(0.3) delta = b } compose h + delta } as under
    }""")
    said = verdicts(method)
    assert {n: said[n].value for n in ("causal", "cache-consistent")} == dict.fromkeys(
        ("causal", "cache-consistent"), "unknown"
    )
    assert "`over` passes on nothing" in said["causal"].reason
