"""Arguments that depend on the layer: bound at each one, checked, planned, counted, trained, merged, saved and loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from names import name, spec
from safetensors.torch import load_file
from small import GROUPS, HEADS, INNER, LAYERS, WIDTH, WORDS, inputs, model, output, randomise

import unipelt
from unipelt.language.analyse.counts import counts, formula

R = [4, 1, 6]
assert len(R) == LAYERS
#: The same ranks, written in every way there is.
WAYS: dict[str, Any] = {
    "a list": R,
    "a list as text": "[4, 1, 6]",
    "a condition": "4 if layer == 0 else 1 if layer < depth / 2 else 6",
    "a polynomial": "4 - 7 * layer + 4 * layer ** 2",
    "a bound": "max(1, [4, 0, 6])",
}
LAYERED = WAYS | {"growing": "2 + 3 * layer", "depth alone": "2 * depth"}


def lora(r: Any, **more: Any) -> unipelt.Method:
    return unipelt.load(name("lora"))(r=r, **more)


def ranks(plan: unipelt.Plan) -> list[int]:
    return [t.shape[-1] for n, t in plan.tensors.items() if n.endswith("attn.q." + plan.edits[0].row.name + ".A")]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", ["bert", "gpt2", "llama"])
def test_every_layer_has_its_own_rank(way: str, kind: str) -> None:
    plan = unipelt.plan(model(kind), lora(WAYS[way]))
    assert ranks(plan) == R and plan.by_layer() == {"r": R}
    assert plan.counts == unipelt.plan(model(kind), lora(R)).counts


@pytest.mark.parametrize("way", WAYS)
def test_inlined_it_is_the_same(way: str) -> None:
    """``use lora(r = …)`` puts the expression where the parameter stood."""
    text = WAYS[way] if isinstance(WAYS[way], str) else str(WAYS[way])
    method = unipelt.parse(spec(f"method mine {{ use lora(r = {text}) as rows }}"))
    own, given = unipelt.plan(model("bert"), method), unipelt.plan(model("bert"), lora(R))
    assert ranks(own) == R and own.counts == given.counts
    assert unipelt.parse(str(method)) == method


def sizes(kind: str) -> dict[str, int]:
    groups = GROUPS if kind == "llama" else HEADS
    return dict(
        d_model=WIDTH, d_head=WIDTH // HEADS, heads=HEADS, groups=groups, d_ff=INNER, vocab=WORDS, L=LAYERS, L_cross=0
    )


@pytest.mark.sampled(2)
@pytest.mark.parametrize("way", LAYERED)
@pytest.mark.parametrize("method", ["lora", "adapter", "parallel_adapter", "lora_plus"])
@pytest.mark.parametrize("slot", ["", "layers last 2", "layers 1 .. depth", "layers every 2"])
def test_formula_plan_and_tensors_agree(way: str, method: str, slot: str) -> None:
    value = LAYERED[way] if isinstance(LAYERED[way], str) else str(LAYERED[way])
    texts = [
        spec(f"method mine(r: int = {value}) {{ use {method}(r) as rows {{ {slot} }} }}"),
        spec(f"method mine {{ use {method}({value}) as rows {{ {slot} }} }}"),
    ]
    found = []
    for text in texts:
        m = model("bert")
        chosen = unipelt.parse(text)
        plan = unipelt.apply(m, chosen)
        copies = sum(c.parameter.count for c in plan.copies)
        tensors = sum(t.numel() for n, t in unipelt.state_dict(m).items() if n in plan.tensors)
        values = sizes("bert") | {k: v for k, v in chosen.arguments.items() if isinstance(v, int)}
        assert counts(chosen)["trained"].number(values) == tensors == plan.counts.trained - copies > 0
        found.append(tensors)
    assert found[0] == found[1]


def test_formulas_as_texts() -> None:
    front = "d_head groups {0} + d_head heads {0} + 2 d_model {0}"
    assert formula(lora(R))["trained"] == front.format("sum_layer(r)")
    assert formula(lora(8))["trained"] == "L d_head groups r + L d_head heads r + 2 L d_model r"

    def inline(r: str, slot: str = "") -> str:
        return formula(unipelt.parse(spec(f"method mine {{ use lora(r = {r}) as rows {{ {slot} }} }}")))["trained"]

    assert inline("[4, 1, 6]") == front.format("sum_layer([4, 1, 6])")
    assert inline("8 if layer < depth/2 else 16") == front.format("sum_layer(8 if layer < depth / 2 else 16)")
    assert inline("[4, 1, 6]", "layers last 2") == front.format("sum_layer([4, 1, 6], last 2)")
    assert "8 d_model sum_layer(layer)" in inline("4 + 4 * layer") and "8 L d_model" in inline("4 + 4 * layer")
    scaled = formula(unipelt.load(name("adapter"))(r=R))["trained"]
    assert scaled.startswith("2 L d_model + 4 d_model sum_layer(r) + 2 sum_layer(r)")


def test_folded_tensors_keep_their_sizes(tmp_path: Path) -> None:
    """A form that folds, with a size of its own in each layer, inlined: what is stored says the sizes by layer."""
    text = """method mine(mid: int = 7) {
      modify attn.heads  insert parallel
      form {
        E: [3 + 2 * layer, d_model] ~ normal(1.0) per layer   M: [d_model, mid] ~ normal(0.5) per layer
        K: [mid, d_head] ~ normal(0.5) per group              V: [mid, d_head] ~ normal(0.5) per group
        H = tanh(E @ M)
        scores = q @ (H @ K).T * scale
        delta = softmax(scores) @ (H @ V)
      }
      compose { lam = sigmoid(logsumexp(scores) - log_mass)  out = (1 - lam) * h + lam * delta }
    }"""
    m = model("bert")
    method = unipelt.parse(text)
    plan = unipelt.apply(m, method)
    randomise(m)
    found = counts(method)
    assert plan.folds and found["trained"].number(sizes("bert") | {"mid": 7}) == plan.counts.trained
    assert found["stored"].number(sizes("bert") | {"mid": 7}) == plan.counts.stored < plan.counts.trained
    folder = unipelt.save(m, tmp_path / "out")
    assert sum(t.numel() for t in load_file(folder / "adapter.safetensors").values()) == plan.counts.stored
    other = model("bert")
    unipelt.attach(other, folder)
    assert (output(other) - output(m)).abs().max() < 1e-5


@pytest.mark.parametrize("kind", ["bert", "gpt2", "llama"])
def test_it_computes_what_is_written(kind: str) -> None:
    """r, alpha and the rest at each layer: what separate rows of one layer each compute."""
    alpha = [1.0, 2.0, 3.0]
    whole = model(kind)
    unipelt.apply(whole, lora(R, alpha=alpha), seed=1)
    apart = model(kind)
    rows = " ".join(
        f"use lora(r = {r}, alpha = {a}) as row{i} {{ layers {i} .. {i + 1} }}"
        for i, (r, a) in enumerate(zip(R, alpha))
    )
    unipelt.apply(apart, unipelt.parse(spec(f"method mine {{ {rows} }}")), seed=1)
    values = randomise(whole)
    with torch.no_grad():
        for n, t in unipelt.state_dict(apart).items():
            front, row, last = n.rsplit(".", 2)
            assert row == f"row{next(i for i in range(LAYERS) if f'.{i}.' in f'.{front}.')}"
            t.copy_(values[f"{front}.{name('lora')}.{last}"])
    before = output(model(kind))
    assert torch.equal(output(whole), output(apart)) and (output(whole) - before).abs().max() > 1e-2


def test_dropout_by_layer() -> None:
    m = model("bert")
    unipelt.apply(m, lora(R, dropout="0.0 if layer < 2 else 0.5"))
    randomise(m)
    layers = [b.attention.self.query for b in m.encoder.layer]
    x = torch.randn(2, 5, WIDTH, generator=torch.Generator().manual_seed(0))
    m.train()
    torch.manual_seed(0)
    with torch.no_grad():
        moved = [bool((q(x) != q(x)).any()) for q in layers]
    assert moved == [False, False, True]


@pytest.mark.parametrize("kind", ["bert", "gpt2", "llama"])
def test_merging(kind: str) -> None:
    m = model(kind, dtype=torch.float64)
    unipelt.apply(m, lora(R, alpha="2.0 + layer"))
    randomise(m)
    wanted = output(m)
    unipelt.merge(m, "default")
    assert (output(m) - wanted).abs().max() < 1e-9
    unipelt.unmerge(m)
    assert torch.equal(output(m), wanted)


@pytest.mark.parametrize("way", WAYS)
def test_saved_and_loaded(way: str, tmp_path: Path) -> None:
    m = model("bert_labels")
    unipelt.apply(m, lora(WAYS[way], alpha=[1, 2, 3]))
    randomise(m)
    folder = unipelt.save(m, tmp_path / "out")
    other = model("bert_labels")
    unipelt.attach(other, folder)
    assert torch.equal(output(other), output(m))
    assert unipelt.adapters(other)["default"] == unipelt.adapters(m)["default"]


def test_learning_rates_by_layer() -> None:
    """Layer-wise decay of trained copies, as of tensors of a form."""
    m = model("bert_labels")
    method = unipelt.parse("method mine(d: float = 0.5) { train block lr d ** (depth - layer) train head }")
    unipelt.apply(m, method, head=False)
    rates = {g["lr"]: len(g["params"]) for g in unipelt.parameter_groups(m, "default", 8.0)}
    assert set(rates) == {8.0, 4.0, 2.0, 1.0} and rates[1.0] == rates[2.0] == rates[4.0] > rates[8.0]
    m = model("bert")
    unipelt.apply(m, unipelt.load(name("lora_plus"))(ratio=[2, 4, 8]))
    assert {g["lr"] for g in unipelt.parameter_groups(m, "default", 1.0)} == {1.0, 2.0, 4.0, 8.0}


def test_arguments_are_plain_values() -> None:
    method = lora(R, alpha=(1, 2, 3))
    assert method.arguments["r"] == R and method.arguments["alpha"] == [1.0, 2.0, 3.0]
    assert method(**method.arguments) == method == unipelt.parse(str(method))
    shown = unipelt.plan(model("bert"), method).to_json()
    assert shown["by_layer"] == {"r": R, "alpha": [1.0, 2.0, 3.0]}
    assert shown["edits"][0]["tensors"]["A"] == [WIDTH, R]
    both = method + unipelt.load(name("mean_head"))
    assert ranks(unipelt.plan(model("bert_labels"), both)) == R


def codes(e: pytest.ExceptionInfo) -> list[str]:
    return [d.code for d in e.value.diagnostics]


@pytest.mark.parametrize("r", [[4, 8], "[4, 8]", [1, 2, 3, 4]])
def test_a_list_of_another_length(r: Any) -> None:
    with pytest.raises(unipelt.PeltError) as e:
        unipelt.plan(model("bert"), lora(r))
    n = 2 if len(r) != 4 else 4
    assert codes(e) == ["E0366"] and f"{n} values" in str(e.value) and "3 layers" in str(e.value)
    assert ("<r>:1:1" if isinstance(r, str) else "lora.pelt:1:" if not name("lora").endswith("_zz") else "") in str(
        e.value
    )


def test_a_wrong_length_inside_a_spec_is_one_mistake_at_its_place() -> None:
    method = unipelt.parse(spec("method mine { use lora(r = [4, 8]) }"), file="mine.pelt")
    with pytest.raises(unipelt.PeltError) as e:
        unipelt.plan(model("bert"), method)
    (d,) = e.value.diagnostics
    text = spec("method mine { use lora(r = [4, 8]) }")
    assert d.code == "E0366" and text[d.span.start : d.span.end] == "[4, 8]"


@pytest.mark.parametrize(
    ("r", "code", "words"),
    [
        ([4, 8.5, 2], "E0405", "value 2 of the list is no whole number"),
        ("[4, 8.5, 2]", "E0405", "value 2 of the list is no whole number"),
        ([4, [8], 2], "E0405", "value 2 of the list is no whole number"),
        ([], "E0405", "this one is empty"),
        ([4, None, 2], "E0405", "takes a whole number"),
        ("[4, gelu, 2]", "E0365", "this is none"),
        ("[4, [8], 2]", "E0405", "value 2"),
        ("9 / 2", "E0368", "takes a whole number, not 4.5"),
        ("gelu", "E0368", "takes a whole number, not activation `gelu`"),
        ("laier", "E0301", "`layer`"),
        ("max(layer, gelu)", "E0331", "takes several numbers"),
    ],
)  # fmt: skip
def test_what_is_no_argument(r: Any, code: str, words: str) -> None:
    with pytest.raises(unipelt.PeltError) as e:
        lora(r)
    assert codes(e) == [code] and words in str(e.value)


@pytest.mark.parametrize(
    ("r", "codes_", "words"),
    [
        ("layer / 2 + 1", ["E0368"], "at layer 1 it is 1.5"),
        ("layer", ["E0343", "E0318"], "at least 1; here it is 0"),
        ("[4, 0, 2]", ["E0343", "E0318"], "here it is 0"),
    ],
)
def test_values_that_do_not_serve_at_some_layer(r: str, codes_: list[str], words: str) -> None:
    with pytest.raises(unipelt.PeltError) as e:
        unipelt.plan(model("bert"), lora(r))
    assert codes(e) == codes_ and words in str(e.value)


def test_one_tensor_for_all_layers_has_one_size() -> None:
    """Whatever is shared by the layers cannot depend on them: sizes, starts, learning rates."""
    for part in ("E: [l, d_model] ~ zeros per kind", "E: [l, d_model] ~ zeros per model",
                 "E: [3, d_model] ~ normal(0.1 * l) per kind", "E: [3, d_model] ~ zeros per model lr l"):  # fmt: skip
        text = f"method mine(l: int = [1, 2, 3]) {{ modify ffn insert parallel form {{ {part} delta = z @ E.T @ E }} compose add }}"
        with pytest.raises(unipelt.PeltError) as e:
            unipelt.parse(spec(text))
        (d,) = e.value.diagnostics
        assert (
            d.code == "E0367"
            and "can depend on the layer" in d.message
            and spec(text)[d.span.start : d.span.end] == part.strip()
        )
    unipelt.parse(spec(text.replace("per model", "per layer")))


def test_outside_the_layers_there_is_no_layer() -> None:
    with pytest.raises(unipelt.PeltError) as e:
        unipelt.parse(spec("method mine { use prompt_tuning(l = [2, 3, 4]) }"))
    assert codes(e) == ["E0303"] and "`embed` is outside the layers" in str(e.value)
    with pytest.raises(unipelt.PeltError) as e:
        unipelt.plan(model("bert"), unipelt.load(name("prompt_tuning"))(l="2 + layer"))
    assert codes(e) == ["E0303"] and "`l` has a value for each layer" in str(e.value)
    with pytest.raises(unipelt.PeltError) as e:
        unipelt.plan(
            model("bert"), unipelt.parse(spec("method mine(k: int = [1, 2, 3]) { use lora { layers first k } }"))
        )
    assert codes(e) == ["E0303"] and "there is none here" in str(e.value)
    union = lora(R) + unipelt.load(name("prompt_tuning"))
    assert unipelt.plan(model("bert"), union).counts.trained


def test_requirements_hold_at_every_layer() -> None:
    method = unipelt.parse(spec('method mine(r: int = 8) { require divides(2, r), "r is even" use lora(r) }'))
    assert unipelt.plan(model("bert"), method(r=[2, 4, 6])).counts.trained
    with pytest.raises(unipelt.PeltError) as e:
        unipelt.plan(model("bert"), method(r=[2, 4, 5]))
    assert codes(e) == ["E0360"] and "r is even" in str(e.value)


def test_a_switch_by_layer() -> None:
    text = "method mine(on: bool = true) { use lora(r = 4, alpha = 1.0 if on else 0.0) as rows }"
    plain, some = (unipelt.parse(spec(text))(on=v) for v in (True, [True, False, True]))
    for method, alphas in ((plain, [1.0] * 3), (some, [1.0, 0.0, 1.0])):
        m = model("bert")
        plan = unipelt.apply(m, method)
        randomise(m)
        x = inputs()
        with torch.no_grad():
            hidden = torch.randn(1, 4, WIDTH, generator=torch.Generator().manual_seed(1))
            for i, a in enumerate(alphas):
                q = m.encoder.layer[i].attention.self.query
                with unipelt.disabled(m):
                    base = q(hidden)
                assert bool((q(hidden) != base).any()) == bool(a)
        assert plan.by_layer() == ({} if method is plain else {"on": [True, False, True]}) and x
