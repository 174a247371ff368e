"""Two methods are equal where their normal forms are: never wrongly, and for every way of writing the same down."""

from __future__ import annotations

import itertools

import pytest
from names import name as named
from names import spec
from numbers_of import distance, outputs

from unipelt.language.analyse.canonical import canonical, difference
from unipelt.language.loading import library, load, parse
from unipelt.language.analyse.meaning import meaning

ROW = "modify attn.q, attn.v  insert parallel  "
LORA = "A: [d_in, r] ~ kaiming_uniform(sqrt(5)) B: [r, d_out] ~ zeros "

#: Ways of writing LoRA with r = 8 and alpha = 16.
SAME = {
    "as in the library": spec("method m { use lora }"),
    "inlined": f"method m(r: int = 8) {{ {ROW} form {{ {LORA} delta = z @ A @ B }} compose h + 2.0 * delta }}",
    "other names": "method m(k: int = 8) { modify attn.q, attn.v insert parallel form { P: [k, d_out] ~ zeros "
    "Q: [d_in, k] ~ kaiming_uniform(sqrt(5)) inner = z @ Q delta = inner @ P } compose 2 * delta + h }",
    "products first": f"method m(r: int = 8) {{ {ROW} form {{ {LORA} delta = z @ (A @ B) }} compose h + 2 * delta }}",
    "scaled inside": f"method m(r: int = 8) {{ {ROW} form {{ {LORA} delta = (16 / r * z) @ A @ B }} compose h + delta }}",
    "transposed": f"method m(r: int = 8) {{ {ROW} form {{ A: [d_in, r] ~ kaiming_uniform(sqrt(5)) B: [d_out, r] ~ zeros "
    "delta = z @ A @ B.T } compose h + 2 * delta }",
    "turned twice": f"method m(r: int = 8) {{ {ROW} form {{ {LORA} delta = z @ (B.T @ A.T).T }} compose h + 2 * delta }}",
    "on the weight": f"method m(r: int = 8) {{ modify attn.q.weight, attn.v.weight form {{ {LORA} delta = A @ B }} "
    "compose { out = W + 2 * delta } }",
    "a row for each site": f"method m(r: int = 8) {{ use {{ modify attn.v insert parallel form {{ {LORA} delta = z @ A @ B }} "
    f"compose h + 2 * delta }} as v use {{ modify attn.q.weight form {{ {LORA} delta = 2 * A @ B }} compose W + delta }} as q }}",
    "a closed gate opened": f"method m(r: int = 8) {{ {ROW} form {{ {LORA} delta = z @ A @ B }} "
    "compose { half = h + delta out = half + (half - h) } }",
    "by its own projection": f"method m(r: int = 8) {{ {ROW} form {{ {LORA} delta = z @ A @ B }} compose x @ W + 2 * delta + bias }}",
}  # fmt: skip

#: Methods near LoRA that are not: each differs in one thing.
OTHER = {
    "alpha": spec("method m { use lora(alpha = 8.0) }"),
    "rank": spec("method m { use lora(r = 4, alpha = 8.0) }"),
    "site": spec("method m { use lora { modify attn.q } }"),
    "start": SAME["inlined"].replace("B: [r, d_out] ~ zeros", "B: [r, d_out] ~ normal(0.02)"),
    "start of the transposed": SAME["inlined"].replace("A: [d_in, r] ~ kaiming_uniform(sqrt(5))", "A: [r, d_in] ~ kaiming_uniform(sqrt(5))")
    .replace("z @ A @ B", "z @ A.T @ B"),
    "shared": SAME["inlined"].replace("~ zeros", "~ zeros per kind"),
    "rate": SAME["inlined"].replace("~ zeros", "~ zeros lr 2"),
    "frozen": SAME["inlined"].replace("A: [", "frozen A: ["),
    "bent": SAME["inlined"].replace("z @ A @ B", "tanh(z @ A) @ B"),
    "sequential": SAME["inlined"].replace("insert parallel", "insert sequential"),
    "layers": SAME["inlined"].replace("modify", "layers first 2 modify", 1),
    "trains more": spec("method m { use lora use bitfit }"),
    "order of a product": f"method m(r: int = 8) {{ {ROW} form {{ {LORA} delta = z @ A @ B }} compose (h + 2 * delta) * 2 - h }}",
}  # fmt: skip


@pytest.mark.parametrize(("one", "other"), list(itertools.combinations(SAME, 2)), ids=lambda v: v.replace(" ", "-"))
def test_ways_of_writing_the_same_are_equal(one, other):
    a, b = parse(SAME[one]), parse(SAME[other])
    assert difference(a, b) is None
    assert distance(outputs(a), outputs(b)) < 1e-12


@pytest.mark.parametrize("other", OTHER)
def test_what_differs_is_not_equal(other):
    lora, b = parse(SAME["inlined"]), parse(OTHER[other])
    found = difference(lora, b)
    assert found is not None and found[1] != found[2]
    assert difference(b, lora) is not None and difference(b, b) is None


def test_associativity_needs_matrices():
    """``a @ (b @ C)`` with a vector b contracts other sizes than ``(a @ b) @ C``."""
    one = parse("method m { modify ffn insert parallel form { b: [d_in] ~ zeros C: [d_in, d_in] ~ zeros D: [d_in, d_in] ~ zeros "
                "delta = z @ (D @ (C @ b) * C) } compose add }")  # fmt: skip
    other = parse("method m { modify ffn insert parallel form { b: [d_in] ~ zeros C: [d_in, d_in] ~ zeros D: [d_in, d_in] ~ zeros "
                  "delta = z @ (D @ C @ b * C) } compose add }")  # fmt: skip
    assert difference(one, other) is None and distance(outputs(one), outputs(other)) < 1e-12


def test_two_prefixes_are_the_same_in_their_own_order_only():
    """Two prefixes share the mass, which makes them equal to one softmax in either order; the normal form does not know that: it says no."""
    both = spec("method m { use prefix_tuning(4) as one use prefix_tuning(4) as two }")
    single = spec("method m { use prefix_tuning(4) }")
    assert difference(parse(both), parse(both)) is None
    assert difference(parse(both), parse(single)) is not None


def test_no_two_methods_of_the_library_are_mistaken():
    """Those that are equal are so by number too; the known twins are the heads and their probes."""
    methods = {e.name: load(e.name) for e in library() if e.kind == "method"}
    lines = {n: tuple(canonical(meaning(m)).lines()) for n, m in methods.items()}
    twins = {frozenset((a, b)) for a, b in itertools.combinations(methods, 2) if lines[a] == lines[b]}
    expected = {("first_head", "probing_cls"), ("mean_head", "probing_mean")}
    assert {frozenset(map(named, pair)) for pair in expected} <= twins
    for a, b in map(sorted, twins):
        if methods[a].rows:
            assert distance(outputs(methods[a]), outputs(methods[b])) < 1e-12


def test_equality_is_of_methods_at_their_arguments():
    assert (
        difference(load(named("scaled_parallel_adapter"))(s=1.0), load(named("scaled_parallel_adapter"))(s=2.0))
        is not None
    )
    lora = load(named("lora"))
    assert difference(lora(r=4, alpha=8.0), lora(r=4, alpha=8)) is None
    assert difference(load(named("rslora"))(r=4, alpha=4.0), lora(r=4, alpha=8.0)) is None


def test_where_only_a_start_differs_the_start_is_the_difference():
    """And not the formula, in which the tensors would have other numbers since starts have a part in their order."""
    text = "method m(r: int = 8) { modify ffn insert parallel form { A: [d_in, r] ~ %s b: [r] ~ zeros delta = relu(z @ A + b) @ A.T } compose h + delta }"
    one, other = (parse(text % start) for start in ("normal(0.02)", "zeros"))
    found = difference(one, other)
    assert found is not None and "normal(0.02)" in found[1] and "zeros" in found[2] and "relu" not in found[1]
