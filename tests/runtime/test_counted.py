"""Formulas, bound with a model's sizes, equal the tensors that are there: trained, drawn and kept, the head's, and those in the file."""

from __future__ import annotations

from pathlib import Path

import pytest
from names import name as named
from names import spec
from safetensors.torch import load_file
from small import GROUPS, HEADS, INNER, LAYERS, WIDTH, WORDS, model, output

import unipelt
from unipelt.language.analyse.counts import counts
from unipelt.language.loading import parse
from unipelt.runtime.registry import record
from unipelt.runtime.hub import WEIGHTS

FROZEN = """method m(r: int = 4) {
  modify attn.q, ffn.up  insert parallel
  form {
    frozen A: [d_in, r] ~ normal(0.1)
    frozen S: [r, r]    ~ normal(0.1) per kind
    b: [r] ~ zeros
    B: [r, d_out] ~ zeros
    delta = (z @ A @ S * b) @ B
  }
  compose h + delta
}"""
FROZEN_HEAD = """method m(r: int = 3) {
  modify head  insert mean(x, tokens)
  form { frozen A: [d_in, r] ~ normal(0.1) B: [r, d_out] ~ zeros b: [d_out] ~ zeros delta = z @ A @ B + b }
  compose delta
}"""
METHODS = {
    "low rank": "lora", "a prefix that folds": "prefix_tuning_mlp", "a prefix that does not pay": "mam", "gates": "unipelt_apl",
    "selected layers": "llama_adapter", "a head of its own": "lora+mean_head", "a head alone": "probing_cls", "scaling": "ia3",
}  # fmt: skip


def values(kind: str, method: unipelt.Method) -> dict[str, int]:
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
    known["labels"] = 3 if kind == "bert_labels" else WORDS
    return known | {k: v for k, v in method.arguments.items() if isinstance(v, int)}


def check(method: unipelt.Method, kind: str, folder: Path) -> dict[str, int]:
    m = model(kind)
    unipelt.apply(m, method, head=False, allow_future=True)
    state = unipelt.state_dict(m)
    learned = record(m, "default").trained()
    assert sum(p.numel() for p in m.parameters() if p.requires_grad) == sum(t.numel() for t in learned.values())
    rows = {r.name for r in method.rows if any(str(p) == "head" for p in r.sites)}
    found = dict.fromkeys(("trained", "frozen", "head"), 0)
    for n, t in state.items():
        kind_ = "frozen" if n not in learned else "head" if n.split(".")[-2] in rows else "trained"
        found[kind_] += t.numel()
    unipelt.save(m, folder, draws=True)
    found["stored"] = sum(t.numel() for t in load_file(folder / WEIGHTS).values()) - found["frozen"] - found["head"]
    said = {k: c.number(values(kind, method)) for k, c in counts(method).items()}
    assert said == found
    plan = unipelt.plan(model(kind), method, head=False, allow_future=True).counts
    assert {k: getattr(plan, k) for k in said} == said
    return found


@pytest.mark.parametrize("kind", ["bert_labels", "llama"])
@pytest.mark.parametrize("what", METHODS)
def test_formulas_count_what_is_there(what, kind, tmp_path):
    method = unipelt.load(named(METHODS[what]))
    small = {k: v for k, v in {"r": 5, "ra": 3, "rl": 2, "l": 4, "mid": 11, "top": 2}.items() if k in method.arguments}
    found = check(method(**small), kind, tmp_path / "a")
    assert found["trained"] + found["head"] > 0


def test_what_is_drawn_and_kept_is_apart(tmp_path):
    found = check(parse(FROZEN), "bert_labels", tmp_path / "a")
    assert found["frozen"] > 0 and found["trained"] > 0
    found = check(parse(FROZEN_HEAD), "bert_labels", tmp_path / "b")
    assert found["frozen"] == 3 * WIDTH and found["head"] == 3 * 3 + 3 and found["trained"] == 0


def test_requirements_count_trained_copies_and_no_head():
    m = model("bert_labels")
    base = unipelt.plan(m, unipelt.load(named("bitfit")), head=False).counts
    share = 100 * base.trained / base.base
    assert 0 < share < 10

    def refused(limit: float) -> bool:
        text = spec("method m { use bitfit use mean_head require params <= %s }") % f"{limit}%"
        try:
            unipelt.plan(m, parse(text))
        except unipelt.PeltError as e:
            assert {d.code for d in e.diagnostics} == {"E0360"}
            return True
        return False

    assert refused(share * 0.999) and not refused(share * 1.001)


DECLARED = """method m(n: int = 2) {
  modify attn.q, ffn.down  insert parallel
  form {
    axis term = n
    A: [d_in, d_out] ~ normal(0.1) per term
    B: []            ~ ones        per kind, term
    C: [5, d_out]    ~ normal(0.1) per term
    delta = sum(tanh(z @ A) * B + exp(sum(C, 0)), term)
  }
  compose h + delta
}"""


def test_declared_axes_count_and_fold(tmp_path):
    """A tensor has a copy for each entry of an axis that the form declares; a fold's size is its own at each site."""
    method = parse(DECLARED)
    found = check(method, "bert_labels", tmp_path / "a")
    one = WIDTH * WIDTH + INNER * WIDTH
    assert found["trained"] == 2 * (LAYERS * (one + 2 * 5 * WIDTH) + 2)
    m, other = model("bert_labels"), model("bert_labels")
    unipelt.apply(m, method)
    unipelt.save(m, tmp_path / "b")
    unipelt.attach(other, tmp_path / "b")
    assert (output(m) - output(other)).abs().max() < 1e-5
