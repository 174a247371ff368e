"""What several rows and layers have in common: tensors of another row, groups of layers, sizes that are required to be equal."""

from __future__ import annotations

from pathlib import Path

import pytest
import small
import torch

import unipelt
from unipelt import PeltError
from unipelt.language.analyse.counts import counts
from unipelt.language.analyse.method import analyse
from unipelt.runtime.registry import record

GROUPED = """method m(r: int = 3, k: int = 2) {{ {} modify attn.q, attn.v insert parallel form {{
  A: [d_in, r] ~ normal(0.3) per layers(k)  B: [r, d_out] ~ normal(0.3) per kind, layers(k)  C: [r] ~ ones
  delta = tanh(z @ A) * C @ B }} compose h + delta }}"""


@pytest.mark.parametrize("k", [1, 2, 3, 5])
@pytest.mark.parametrize("layers", ["", "layers last 2", "layers first 1", "layers 1 .. 3"])
def test_a_group_of_layers_has_one_tensor(k: int, layers: str, tmp_path: Path) -> None:
    method = unipelt.parse(GROUPED.format(layers))(k=k)
    model = small.model("llama", dtype=torch.float64)
    plan = unipelt.apply(model, method)
    by_label = {}
    for e in plan.edits:
        for label, name in e.tensors.items():
            by_label.setdefault(label, {}).setdefault(name, []).append((e.site.layer, e.site.name))
    for label, found in by_label.items():
        for places in found.values():
            assert len({layer // k for layer, _ in places}) == 1 or label == "C"
        expected = {(layer // k if label != "C" else layer, site if label != "A" else "") for e in plan.edits
                    for layer, site in [(e.site.layer, e.site.name)]}  # fmt: skip
        assert len(found) == len(expected)
    sizes = {"d_model": 32, "d_head": 8, "heads": 4, "groups": 2, "L": 3, "r": 3, "k": k}
    assert counts(method)["trained"].number(sizes) == plan.counts.trained == sum(
        p.numel() for p in record(model, "default").trained().values())  # fmt: skip
    small.randomise(model)
    after = small.output(model)
    unipelt.save(model, tmp_path / "a")
    again = small.model("llama", dtype=torch.float64)
    unipelt.attach(again, tmp_path / "a")
    assert torch.equal(small.output(again), after)


def test_a_gradient_step_moves_the_tensor_of_all_its_layers() -> None:
    model = small.model("llama", dtype=torch.float64)
    unipelt.apply(model, unipelt.parse(GROUPED.format("")))
    with torch.enable_grad():
        model(**small.inputs())[0].square().sum().backward()
    grouped = {n: p.grad.clone() for n, p in record(model, "default").trained().items()}
    alone = small.model("llama", dtype=torch.float64)
    unipelt.apply(alone, unipelt.parse(GROUPED.format("").replace("layers(k)", "layers(1)")))
    own = record(alone, "default").trained()
    with torch.no_grad():
        for n, p in own.items():
            group = (
                n.replace("layers_0_0", "layers_0_1")
                .replace("layers_1_1", "layers_0_1")
                .replace("layers_2_2", "layers_2_3")
            )
            p.copy_(record(model, "default").trained()[group])
    with torch.enable_grad():
        alone(**small.inputs())[0].square().sum().backward()
    summed = own["layers_0_0.m.A"].grad + own["layers_1_1.m.A"].grad
    assert torch.allclose(grouped["layers_0_1.m.A"], summed, rtol=1e-9)


def test_a_text_with_groups_says_the_same_again() -> None:
    method = unipelt.parse(GROUPED.format(""))
    assert unipelt.parse(str(method)) == method and "per kind, layers(k)" in str(method)


# ---------------------------------------------------------------- sizes that are required to be equal

SQUARE = "method m {{ modify attn.q insert parallel form {{ {} w: [d_in] ~ ones delta = z * w }} compose h + delta }}"


@pytest.mark.parametrize("condition", ["d_q == d_model", "d_model == d_q", "d_in == d_out"])
def test_sizes_that_are_required_to_be_equal_fit(condition: str) -> None:
    method = unipelt.parse(SQUARE.format(f"require {condition}"))
    (row,) = analyse(method).rows
    assert str(row.tensors[0].type) == "[d_model]"
    model = small.model("llama", dtype=torch.float64)
    base = small.output(model)
    unipelt.apply(model, method)
    assert not torch.allclose(small.output(model), base)


def test_without_the_requirement_they_do_not() -> None:
    with pytest.raises(PeltError, match="E0310"):
        unipelt.parse(SQUARE.format(""))


def test_a_model_of_other_sizes_is_refused() -> None:
    method = unipelt.parse(SQUARE.format('require d_in == d_out, "the width stays"').replace("attn.q", "attn.v"))
    model = small.model("llama")
    before = small.state(model)
    with pytest.raises(PeltError, match="E0360.*the width stays"):
        unipelt.apply(model, method)
    assert small.state(model) == before


# ---------------------------------------------------------------- tensors of another row

LENT = """method m(r: int = 3) {{
  use {{ modify embed insert sequential form {{ A: [d_in, r] ~ normal(0.3) {0} B: [r, d_out] ~ normal(0.3) {0} delta = tanh(z @ A) @ B }}
        compose h + delta }} as first
  use {{ modify {1} insert sequential form {{ delta = tanh(z @ first.A) @ first.B }} compose h - delta }} as second
}}"""


def test_two_rows_have_one_tensor() -> None:
    method = unipelt.parse(LENT.format("per model", "final"))
    assert unipelt.parse(str(method)) == method and "first.A" in str(method)
    model = small.model("llama", dtype=torch.float64)
    plan = unipelt.apply(model, method)
    assert list(plan.tensors) == ["first.A", "first.B"] and plan.counts.trained == 2 * 3 * 32
    assert counts(method)["trained"].number({"d_model": 32, "L": 3, "r": 3}) == 2 * 3 * 32
    copied = unipelt.parse(LENT.format("per model", "final").replace("form { delta = tanh(z @ first.A) @ first.B }",
        "form { A: [d_in, r] ~ normal(0.3) B: [r, d_out] ~ normal(0.3) delta = tanh(z @ A) @ B }"))  # fmt: skip
    other = small.model("llama", dtype=torch.float64)
    unipelt.apply(other, copied)
    own = record(model, "default").trained()
    with torch.no_grad():
        for n, p in record(other, "default").trained().items():
            p.copy_(own[f"first.{n[-1]}"])
    assert torch.equal(small.output(model), small.output(other))
    for m in (model, other):
        with torch.enable_grad():
            m(**small.inputs())[0].square().sum().backward()
    theirs = [p.grad for n, p in sorted(record(other, "default").trained().items()) if n.endswith(".A")]
    assert torch.allclose(own["first.A"].grad, theirs[0] + theirs[1], rtol=1e-9)


def test_a_tensor_of_each_site_is_lent_at_the_same_site() -> None:
    text = (
        LENT.format("", "attn.q")
        .replace("modify embed", "modify attn.q")
        .replace("insert sequential", "insert parallel")
    )
    plan = unipelt.plan(small.model("gpt2"), unipelt.parse(text))
    assert sorted(plan.tensors) == sorted(f"h.{i}.attn.q.first.{n}" for i in range(3) for n in "AB")


@pytest.mark.parametrize("per, site", [("", "final"), ("per kind", "ffn")])
def test_a_tensor_of_another_place_is_refused(per: str, site: str) -> None:
    model = small.model("llama")
    with pytest.raises(PeltError, match="E0376"):
        unipelt.plan(model, unipelt.parse(LENT.format(per, site)))


def test_rows_that_are_used_under_another_name_lend_under_it() -> None:
    inner = LENT.format("per model", "final").replace("method m(", "method inner(")
    from unipelt.language.loading import check_text

    found = check_text(inner + " method outer { use inner(4) as both }", "t.pelt")
    method = next(c.method for c in found if c.name == "outer")
    assert method is not None and [r.name for r in method.rows] == ["both_first", "both_second"]
    assert "both_first.A" in str(method) and list(unipelt.plan(small.model("llama"), method).tensors) == [
        "both_first.A",
        "both_first.B",
    ]


def test_what_is_lent_is_not_folded_away(tmp_path: Path) -> None:
    text = LENT.format("per model", "final").replace("delta = tanh(z @ A) @ B", "delta = tanh(z @ (A @ B))")
    model = small.model("llama", dtype=torch.float64)
    unipelt.apply(model, unipelt.parse(text))
    after = small.output(model)
    unipelt.save(model, tmp_path / "a", fold=True)
    again = small.model("llama", dtype=torch.float64)
    unipelt.attach(again, tmp_path / "a")
    assert torch.allclose(small.output(again), after, atol=1e-12)
