"""The formulas of counts, bound with a model's numbers, equal what a plan counts tensor by tensor."""

from __future__ import annotations

import pytest
from names import members, name
from small import GROUPS, HEADS, INNER, LAYERS, WIDTH, WORDS, model

import unipelt
from unipelt.language.analyse.counts import counts, formula

METHODS = members()
#: Small arguments, so that both outcomes of folding and of clamping occur.
ARGUMENTS = {"r": 5, "ra": 3, "rl": 2, "l": 4, "mid": 11, "top": 2}


def sizes(kind: str, arguments: dict) -> dict[str, int]:
    groups = GROUPS if kind == "llama" else HEADS
    known = dict(
        d_model=WIDTH,
        d_head=WIDTH // HEADS,
        heads=HEADS,
        groups=groups,
        d_ff=INNER,
        vocab=WORDS,
        L=LAYERS,
        L_cross=0,
        d_x=WIDTH,
    )
    known["L_gate"] = LAYERS if kind == "llama" else 0
    known["labels"] = 3 if kind == "bert_labels" else WORDS  # a language model's head has a row for each word
    return known | {k: v for k, v in arguments.items() if isinstance(v, int)}


@pytest.mark.parametrize("kind", ["bert", "bert_labels", "gpt2", "llama"])
@pytest.mark.parametrize("bound", [False, True])
def test_formulas_equal_plans(kind: str, bound: bool) -> None:
    m = model(kind)
    planned = folded = 0
    for n in METHODS:
        method = unipelt.load(n)
        if bound:
            method = method(**{k: v for k, v in ARGUMENTS.items() if k in {p.name for p in method.params}})
        try:
            plan = unipelt.plan(m, method, head=False, allow_future=True)
        except unipelt.PeltError as e:
            assert {d.code for d in e.diagnostics} <= {"E0510", "E0512"}, (n, str(e))
            continue
        copies = sum(c.parameter.count for c in plan.copies if not c.head)
        found, values = counts(method), sizes(kind, method.arguments)
        assert found["trained"].number(values) == plan.counts.trained - copies, n
        assert found["stored"].number(values) == plan.counts.stored - copies, n
        assert found["frozen"].number(values) == plan.counts.frozen, n
        heads = sum(c.parameter.count for c in plan.copies if c.head)
        assert found["head"].number(values) == plan.counts.head - heads, n
        assert bool(found["trained"].words + found["head"].words) == bool(copies + heads), n
        assert plan.counts.trained + plan.counts.head > 0
        planned += 1
        folded += plan.counts.stored < plan.counts.trained
    assert planned >= 24 and folded >= 6


def test_numbers_that_the_papers_give() -> None:
    bert = dict(d_model=768, d_head=64, heads=12, groups=12, d_ff=3072, vocab=30522, labels=2, L=12, L_cross=0)
    wanted = {
        "pfeiffer": (894_528, 894_528),
        "prefix_tuning_mlp": (9_857_024, 184_320),
        "lora": (294_912, 294_912),
        "unipelt_ap": (None, 1_097_304),
        "unipelt_apl": (None, 1_410_672),
    }
    for n, (trained, stored) in wanted.items():
        method = unipelt.load(name(n))
        found, values = counts(method), bert | {k: v for k, v in method.arguments.items() if isinstance(v, int)}
        assert found["stored"].number(values) == stored, n
        assert trained is None or found["trained"].number(values) == trained, n
    llama = dict(d_model=4096, d_head=128, heads=32, groups=32, L=32, L_cross=0, l=10, top=30)
    assert counts(unipelt.load(name("llama_adapter")))["trained"].number(llama) == 1_229_760


def test_texts() -> None:
    assert formula(unipelt.load(name("prefix_tuning"))) == {
        "trained": "2 L d_head groups l + 2 L_cross d_head groups l",
        "stored": "2 L d_head groups l + 2 L_cross d_head groups l",
        "frozen": "0",
        "head": "0",
    }
    assert formula(unipelt.load(name("llama_adapter")))["trained"] == "d_model l min(top, L) + heads min(top, L)"
    assert formula(unipelt.load(name("bitfit")))["trained"] == "every bias"


def test_a_gate_is_counted_where_there_is_one() -> None:
    """The layers of a model without gates have their other maps alone, in the formula as in the plan."""
    form = "insert parallel form { b: [d_out] ~ zeros delta = b } compose add"
    method = unipelt.parse(f"method m {{ modify ffn.up, ffn.gate {form} }}")
    found = counts(method)["trained"]
    assert str(found) == "L d_ff + L_gate d_ff"
    for kind in ("bert", "llama"):
        assert found.number(sizes(kind, {})) == unipelt.plan(model(kind), method).counts.trained


def test_a_row_that_reads_a_number_of_each_token_has_no_width_of_what_enters() -> None:
    method = unipelt.parse("""method m { modify attn.heads  insert norm(x)
      form { A: [width(x), 2] ~ normal(1) per site  b: [2] ~ zeros per site  delta = z * (x @ (A @ b)) }  compose h + delta }""")
    assert formula(method)["trained"] == "2 L d_model + 2 L" and formula(method)["stored"] == "L d_model (folded)"
    counts = unipelt.plan(model("llama"), method).counts
    assert (counts.trained, counts.stored) == (3 * 66, 3 * 32)
