"""`insert parallel` at a weight: what a row that is linear in what enters a map makes of the map's weight."""

from __future__ import annotations

import pytest

import unipelt
from unipelt.language.analyse.counts import formula
from unipelt.language.analyse.method import analyse
from unipelt.language.syntax.printer import to_text

LOW = "A: [d_in, r] ~ normal(0.1) B: [r, d_out] ~ normal(0.1)"


def method(
    form: str, compose: str = "compose h + 0.5 * delta", at: str = "attn.q.weight", gate: str = ""
) -> unipelt.Method:
    row = f"modify {at} insert parallel form {{ {LOW} {form} }} {compose}"
    return unipelt.parse(
        f"method m(r: int = 4) {{ {f'use {{ {row} }} as low gated by {{ {gate} }}' if gate else row} }}"
    )


@pytest.mark.parametrize(("form", "read"), [
    ("delta = z @ A @ B", "A @ B"), ("delta = z @ (A @ B)", "A @ B"), ("delta = drop(z, 0.0) @ A @ B", "A @ B"),
    ("c: [r] ~ ones delta = 2 * (z @ A * c @ B) / r", "2 * (A * c @ B) / r"), ("low = z @ A delta = -low @ B", "-low @ B"),
    ("delta = z @ A @ B - z @ W", "A @ B - W"), ("axis term = 3 c: [] ~ normal(1) per term delta = sum(z @ A * c @ B, term)", "sum(A * c @ B, term)"),
])  # fmt: skip
@pytest.mark.parametrize("at", ["attn.q.weight", "ffn.experts.down.weight"])
def test_z_in_front_of_a_product_is_the_basis(form: str, read: str, at: str) -> None:
    (typed,) = analyse(method(form, at=at)).rows
    assert to_text(typed.row.form[-1].value) == read and typed.row.insert is None


@pytest.mark.parametrize(("form", "compose", "why"), [
    ("delta = relu(z @ A) @ B", "compose h + delta", "this need not be linear"),
    ("b: [r] ~ zeros delta = (z @ A + b) @ B", "compose h + delta", "adds what reads nothing"),
    ("delta = z", "compose h @ A @ B + delta", "passed on as it is"),
    ("delta = (z * 2) @ A @ B", "compose h + delta", "otherwise than in a product"),
    ("delta = A.T @ z.T", "compose h + delta.T", "this need not be linear"),
    ("delta = drop(z, 0.1) @ A @ B", "compose h + delta", "each token would drop"),
    ("delta = drop(z @ A, 0.1) @ B", "compose h + delta", "each token would drop"),
    ("delta = z @ A @ B", "compose h * delta", "this need not be linear"),
    ("delta = z @ A @ B", "compose { b: [d_out] ~ zeros out = h + delta + b }", "adds what reads nothing"),
    ("delta = (z @ A) @ (z @ A).T", "compose h + delta @ h", "this need not be linear"),
])  # fmt: skip
def test_what_is_not_linear_in_what_enters_is_refused(form: str, compose: str, why: str) -> None:
    with pytest.raises(unipelt.PeltError) as e:
        method(form, compose)
    (d,) = e.value.diagnostics
    assert (
        d.code == "E0305"
        and d.message.startswith("at a weight `insert parallel` needs a row that is linear")
        and why in d.message
    )


def test_a_gate_that_reads_what_enters_is_refused() -> None:
    with pytest.raises(unipelt.PeltError) as e:
        method("delta = z @ A @ B", gate="w: [d_in] ~ zeros g = sigmoid(z @ w)")
    assert [d.code for d in e.value.diagnostics] == ["E0305"] and "its gate reads" in e.value.diagnostics[0].message
    method("delta = z @ A @ B", gate="t: [] ~ zeros g = tanh(t)")


def test_a_row_may_be_at_projections_and_at_weights() -> None:
    m = unipelt.load("lora")(at="[attn.q, ffn.experts.down.weight]")
    at_map, at_weight = analyse(m).rows
    assert "z" in at_map.read_by_passes and "z" not in at_weight.read_by_passes
    assert analyse(m).of(m.rows[0]) == [at_map, at_weight]
    terms = formula(m)["trained"].split(" + ")
    assert sorted(terms) == sorted(
        ["L d_head heads r", "L d_model r", "L_experts d_expert_ff d_experts r", "L_experts d_experts d_model r"]
    )


@pytest.mark.parametrize("at", ["embed.weight", "ffn.norm.weight"])
def test_what_is_no_map_s_weight_has_no_basis(at: str) -> None:
    with pytest.raises(unipelt.PeltError) as e:
        method("delta = z @ A @ B", at=at)
    assert e.value.diagnostics[0].code == "E0305" and "`insert` does not apply" in e.value.diagnostics[0].message
