"""Verdicts against numbers: a "yes" holds to 1e-9 in float64, a "no" is seen."""

from __future__ import annotations

import pytest
import torch
from names import members, name as named
from names import spec
from small import model, output, randomise, smaller

import unipelt
from unipelt.language.loading import load, parse
from unipelt.language.analyse.verdicts import verdicts


METHODS = members()


def small(method):
    return smaller(method, 3)


@pytest.fixture(scope="module")
def models():
    return {kind: model(kind, dtype=torch.float64) for kind in ("bert_labels", "gpt2", "llama")}


@pytest.mark.parametrize("kind", ["bert_labels", "gpt2", "llama"])
@pytest.mark.parametrize("method", METHODS)
def test_identity_at_start(method, kind, models):
    m = models[kind]
    base = output(m)
    spec_ = small(load(method))
    said = verdicts(spec_)["identity at start"]
    if said.value == "unknown":  # how many may be is what `tests/zoo/test_listed.py` holds
        assert said.reason
        return
    assert said.value in ("yes", "no")
    try:
        unipelt.apply(m, spec_, seed=3, allow_future=True)
    except unipelt.PeltError as e:
        assert e.diagnostics[0].code in (
            "E0510",
            "E0512",
            "E0513",
        )  # no biases, no such site, other sizes: what it says
        return
    found = output(m)
    unipelt.remove(m, "default")
    found = found[:, -base.shape[1] :] if found.dim() == 3 and found.shape[1] > base.shape[1] else found
    distance = float((found - base).abs().max() / base.abs().max())
    assert distance < 1e-9 if said.value == "yes" else distance > 1e-7, (said, distance)


STARTS = {
    "form { A: [d_in, d_out] ~ zeros delta = gelu(z @ A) }": "yes",
    "form { A: [d_in, d_out] ~ zeros delta = sigmoid(z @ A) }": "no",
    "form { A: [d_in, d_out] ~ zeros delta = silu(z @ A) * z }": "yes",
    "form { A: [d_in, d_out] ~ normal(0.1) b: [] ~ zeros delta = b * z @ A }": "yes",
    "form { A: [d_in, d_out] ~ normal(0.1) b: [] ~ constant(0.5) delta = b * z @ A }": "no",
    "form { A: [d_in, d_out] ~ normal(0.1) B: [d_in, d_out] ~ zeros delta = z @ (A - A + B) }": "yes",
    "form { A: [d_in, d_out] ~ normal(0.1) delta = z @ A - z @ A }": "yes",
    "form { frozen A: [d_in, d_out] ~ normal(0.1) delta = z @ A }": "no",
    "form { b: [d_out] ~ zeros delta = b + 1 }": "no",
}


@pytest.mark.parametrize("form", STARTS)
def test_starts(form, models):
    said = verdicts(parse(f"method m {{ modify ffn insert parallel {form} compose add }}"))["identity at start"]
    assert said.value in STARTS[form].split(" or ")
    m = models["llama"]  # its norms see a constant shift, which a layer norm would take away
    base = output(m)
    unipelt.apply(m, parse(f"method m {{ modify ffn insert parallel {form} compose add }}"), seed=1)
    distance = float((output(m) - base).abs().max())
    unipelt.remove(m, "default")
    assert distance < 1e-9 if said.value == "yes" else distance > 1e-7


ORDERS = {
    "use lora use lora as two": "yes",
    "use parallel_adapter(3) as one use adapter(3) as two": "no",
    "use prefix_tuning(3) as one use scaled_parallel_adapter(3) as two": "yes",
    "use ia3 as one use lora as two { modify attn.k, attn.v }": "no",
    "use lora as two { modify attn.k, attn.v } use rslora as one { modify attn.k }": "yes",
}


@pytest.mark.parametrize("rows", ORDERS)
def test_rows_commute(rows, models):
    """The method with its rows the other way round computes the same, or does not, as is said."""
    from dataclasses import replace

    method = replace(parse(spec(f"method m {{ {rows} }}")), trains=())
    said = verdicts(method)["rows commute"]
    assert said.value == ORDERS[rows]
    m = models["llama"]
    found = []
    for rows_ in (method.rows, method.rows[::-1]):
        unipelt.apply(m, replace(method, rows=rows_), seed=1)
        randomise(m)
        found.append(output(m))
        unipelt.remove(m, "default")
    distance = float((found[0] - found[1]).abs().max())
    assert distance < 1e-9 if said.value == "yes" else distance > 1e-7


def test_dropout_is_said():
    assert verdicts(load(named("lora")))["deterministic in training"].value == "depends"
    assert "dropout" in verdicts(load(named("lora")))["deterministic in training"].reason
    dropped = parse(
        "method m { modify ffn insert parallel form { A: [d_in, d_out] ~ zeros delta = drop(z, 0.1) @ A } compose add }"
    )
    assert verdicts(dropped)["deterministic in training"].value == "no"
    assert verdicts(load(named("ia3")))["deterministic in training"].value == "yes"
    m = model("bert")
    assert unipelt.plan(m, load(named("lora"))).properties["deterministic in training"] == "yes"
