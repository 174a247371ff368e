"""Recipes and printed modules compute what the literal evaluator computes, in float64: the library and random methods."""

from __future__ import annotations

import copy
import json
import pickle
import sys
from pathlib import Path
from typing import Any

import pytest
import small
import torch
from names import CLASSICS, name as named
from placed import both, compare_printed, edits, rand

import unipelt
from unipelt.compiler.lower import LOWERINGS
from unipelt.compiler.module import torch_source
from unipelt.runtime.edits import Edit
from unipelt.runtime.seam import seams

sys.path.insert(0, str(Path(__file__).parent.parent / "proof"))  # random methods are drawn there
import random_methods

METHODS = [named(n) for n in CLASSICS]  # the others: `tests/zoo`, where the fast path is held against the literal one


def bound(name: str) -> Any:
    """A method of the library with few rows, where it has some."""
    method = unipelt.load(name)
    return method(**{n: 2 for n in ("l", "n") if n in method.arguments})


@pytest.mark.parametrize("kind", ["bert_labels", "gpt2", "llama"])
@pytest.mark.parametrize("name", METHODS)
def test_a_recipe_computes_what_is_written_and_every_row_has_one(name: str, kind: str) -> None:
    try:
        fast, literal = (edits(bound(name), kind, lowering) for lowering in (True, False))
    except unipelt.PeltError as e:
        assert {d.code for d in e.diagnostics} <= {"E0510", "E0512", "E0513", "E0742"}
        return
    for one, reference in zip(fast, literal, strict=True):
        for training in (False, True):
            one.edit.train(training)
            both(reference, one.edit, training=training)
        recipes = one.edit.recipes
        assert recipes is not None and reference.edit.recipes is None
        assert all(recipes.known.values()) and (recipes.known or one.edit.rests)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", METHODS)
def test_each_lowering_alone_computes_what_is_written(name: str) -> None:
    """Outputs and gradients of a model, every lowering by itself; which of three models, and which half, by the method's place."""
    at = METHODS.index(name)
    kind = ("bert_labels", "gpt2", "llama")[at % 3]
    found = []
    for lowering in (False, True, *([n] for n in [*LOWERINGS][at % 2 :: 2])):
        model = small.model(kind, dtype=torch.float64)
        try:
            unipelt.apply(model, bound(name), allow_future=True, lowering=lowering)
        except unipelt.PeltError as e:
            assert {d.code for d in e.diagnostics} <= {"E0510", "E0512", "E0513", "E0742"}
            return
        small.randomise(model, seed=1)
        found.append((lowering, *trained(model)))
    (_, expected, gradients), *others = found
    for lowering, output, others_gradients in others:
        torch.testing.assert_close(output, expected, rtol=1e-10, atol=1e-10, msg=lambda m, n=lowering: f"{n}: {m}")
        for n, g in gradients.items():
            torch.testing.assert_close(
                others_gradients[n], g, rtol=1e-9, atol=1e-10, msg=lambda m, n=lowering: f"{n}: {m}"
            )


def trained(model: Any) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """A pass in which the edits train and the base does not: the output, and the gradient of every tensor that has one."""
    for m in model.modules():
        if isinstance(m, Edit):
            m.train()
    torch.manual_seed(0)
    given = small.inputs()
    output = model(**given, **small.declared(model, given["input_ids"]))[0]
    (output * rand(*output.shape, seed=5)).sum().backward()
    return output.detach(), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", METHODS)
def test_the_printed_module_computes_what_is_written(name: str) -> None:
    compare_printed(bound(name), ("bert_labels", "llama"))


PRINTED = {
    "a size that is rounded": "method m { modify ffn insert parallel form { A: [d_in, ceil(d_in / 3)] ~ normal(0.3) B: [ceil(d_in / 3), d_out] ~ zeros delta = z @ A @ B } compose add }",
    "a size by the layer": "method m(n: int = 2 + layer) { modify ffn insert parallel form { A: [d_in, n] ~ normal(0.3) B: [n, d_out] ~ zeros delta = z @ A @ B } compose add }",
    "the width of what enters": "method m { modify ffn insert parallel form { A: [d_in, 4] ~ torch_linear(width(tanh(z))) B: [4, d_out] ~ zeros delta = z @ A @ B } compose add }",
    "a name that torch has": "method m { modify ffn insert parallel form { F: [d_in, d_out] ~ zeros delta = gelu(z) @ F } compose add }",
    "some tokens": "method m { tokens first 2 modify ffn insert parallel form { b: [d_out] ~ zeros delta = b } compose add }",
    "numbers of tokens": "method m { modify embed.words form { A: [9, d_out] ~ zeros delta = A[positions] } compose h + delta }",
    "a picture": "method m { modify ffn insert parallel form { K: [3, 3, d_in] ~ normal(0.3) delta = conv2d(z, K) } compose add }",
    "how far training has come": "method m { modify ffn insert parallel form { b: [d_out] ~ zeros delta = b * (2 - progress) } compose add }",
    "a weight": "method m { modify attn.q.weight form { A: [d_in, d_out] ~ zeros delta = W @ (A.T @ A) } compose add }",
}  # fmt: skip


@pytest.mark.parametrize("name", PRINTED)
def test_printed_modules_of_words_that_the_classics_do_not_have(name: str) -> None:
    compare_printed(unipelt.parse(PRINTED[name]), ("llama", "vit"))


@pytest.mark.sampled(3)
@pytest.mark.parametrize("part", range(4))
def test_recipes_of_random_methods_compute_what_is_written(part: int) -> None:
    compared = straight = 0
    for seed in range(part * 60, part * 60 + 60):
        try:
            method = unipelt.parse(random_methods.text(seed))
            outputs = {}
            for lowering in (True, False):
                model = small.model(("gpt2", "bert_labels", "llama")[seed % 3], dtype=torch.float64)
                unipelt.apply(model, method, allow_future=True, lowering=lowering)
                small.randomise(model, seed=seed)
                torch.manual_seed(seed)  # of what is drawn in a pass
                outputs[lowering] = small.output(model)
                if lowering:
                    known = [
                        r
                        for e in model.modules()
                        if isinstance(e, Edit) and e.recipes
                        for r in e.recipes.known.values()
                    ]
        except unipelt.PeltError:
            continue
        torch.testing.assert_close(
            outputs[True], outputs[False], rtol=1e-10, atol=1e-10, msg=lambda m, method=method: f"{method}\n{m}"
        )
        compared += 1
        straight += bool(known) and all(known)
    assert compared > 20 and straight > 0.9 * compared


def test_products_are_joined_only_with_matrices_that_are_there() -> None:
    """In training, where products of the same input are one: the second matrix is made in a line behind the first product."""
    text = "method m { modify ffn  insert x  form { A: [d_in, d_out] ~ normal(0.3)  b: [d_out] ~ normal(0.3)  delta = (x @ A) * b }  " \
           "compose { B: [4, d_x] ~ normal(0.3)  C: [4, d_out] ~ normal(0.3)  out = h + softmax(x @ (2 * B).T) @ C + delta } }"  # fmt: skip
    found = []
    for lowering in (True, False):
        model = small.model("llama", dtype=torch.float64)
        unipelt.apply(model, unipelt.parse(text), lowering=lowering)
        small.randomise(model, seed=0)
        found.append(model.train()(**small.inputs("llama")).logits)
    torch.testing.assert_close(*found, rtol=1e-10, atol=1e-10)


def test_the_command_prints_the_module(capsys: pytest.CaptureFixture[str]) -> None:
    from unipelt.cli.show import show_methods

    method = unipelt.load(named("lora"))
    show_methods([named("lora")], ["r=3"], "text", None, False, True)
    assert capsys.readouterr().out == method(r=3).torch_source() == torch_source(method(r=3))
    show_methods([named("lora")], ["r=3"], "text", None, True, True)
    assert json.loads(capsys.readouterr().out)["torch"] == torch_source(method(r=3))
    with pytest.raises(unipelt.PeltError, match="prints one method"):
        show_methods([named("lora"), named("mam")], [], "text", None, False, True)


def test_what_only_a_model_knows_has_no_module() -> None:
    text = "method m { modify ffn  insert parallel  form { delta = z * max(d_in, 3) }  compose h + delta }"
    with pytest.raises(unipelt.PeltError, match="E0590"):
        unipelt.parse(text).torch_source()


def test_what_has_no_value_has_no_module() -> None:
    with pytest.raises(unipelt.PeltError, match="needs a value for `r`"):
        unipelt.parse(
            "method m(r: int) { modify ffn  insert parallel  form { A: [d_in, r] ~ zeros  delta = z @ A @ A.T }  compose h + delta }"
        ).torch_source()


def test_a_printed_module_starts_as_the_method_does() -> None:
    """The same distributions: zero where it starts at zero, else of the same spread."""
    found: dict[str, Any] = {}
    exec(torch_source(unipelt.load(named("unipelt_apl"))(mid=200, ra=200)), found)
    torch.manual_seed(0)
    prefix, lora = found["Prefix"](d_model=300, d_head=50, heads=6, groups=6), found["Lora"](d_in=300, d_out=300)
    assert prefix.K.shape == (6, 200, 50) and abs(prefix.K.std().item() - 0.02) < 0.001
    assert not lora.B.any() and not prefix.b1.any()
    bound_ = (6 / (6 * 300)) ** 0.5
    assert 0.95 * bound_ < lora.A.abs().max().item() <= bound_


@pytest.mark.parametrize("frozen", ("", "frozen "))
@pytest.mark.parametrize("start", ("[3, 2, 2] ~ identity", "[3, 2, 4] ~ identity", "[2, 3] ~ identity", "[2, 2] ~ values(1, 2, 3, 4)", "[2] ~ values(0.5, 1)",
                                   "[2, 3] ~ constant(2)", "[] ~ constant(2)", "[2] ~ ones"))  # fmt: skip
def test_a_printed_module_starts_with_the_very_numbers_that_are_not_drawn(start: str, frozen: str) -> None:
    """Those of stacks of matrices too, and whole numbers as numbers that can be trained."""
    count = 0 if start.startswith("[]") else start.partition("]")[0].count(",") + 1
    method = unipelt.parse(
        f"method m {{ modify ffn  insert parallel  form {{ {frozen}T: {start}  delta = z * {'mean(' * count}T{')' * count} }}  compose h + delta }}"
    )
    found: dict[str, Any] = {}
    exec(torch_source(method), found)
    model = small.model("llama")
    unipelt.apply(model, method)
    wanted = next(e for _, seam in seams(model) for e in seam.modules() if isinstance(e, Edit)).tensors()["T"]
    here = found["M"]().T
    assert torch.equal(here, wanted) and here.dtype == wanted.dtype


def test_names_that_python_or_torch_have_are_no_trouble() -> None:
    method = unipelt.parse("""
    method m(lambda: float = 2.0) {
      modify ffn   insert parallel
      form {
        half: [d_in, 2] ~ normal(0.1)   torch: [2, d_out] ~ normal(0.1)   mask: [] ~ ones   class: [] ~ ones
        self = z @ half   delta = self @ torch * mask * class * lambda
      }
      compose h + delta
    }""")
    found: dict[str, Any] = {}
    exec(torch_source(method), found)
    module = found["M"](d_model=4)
    h = x = torch.ones(1, 2, 4)
    expected = h + x @ module.half_ @ module.torch_ * 2
    torch.testing.assert_close(module(h, x), expected)


@pytest.mark.parametrize("body", [
    "U: [3, d_out] ~ normal(0.5)  frozen t2: [3] ~ values(-0.5, 0.1, 1)  b: [3] ~ normal(0.3)  D: [d_in, 3] ~ normal(0.5)  "
    "delta = ((z @ D) * nearest(b, t2)) @ U + (relu(z @ D) * t2) @ U",
    "t1: [d_in, 3] ~ normal(0.5)  t3: [3, d_out] ~ normal(0.5)  t2 = z @ exp(tanh(t1))  delta = (t2 * sigmoid(t2)) @ t3 + z @ t1 @ t3",
    "drawn0: [d_out] ~ normal(0.5)  u = chance[site]  drawn1 = u * drawn0  U: [d_in, d_out] ~ normal(0.5)  delta = (z @ U) * drawn1 + chance[batch] * drawn0",
    "skew: [d_in, 3] ~ normal(0.5)  layer_norm: [3, d_out] ~ normal(0.5)  lean_product: [d_in, 3] ~ normal(0.5)  "
    "delta = (rms_norm(z @ skew) + z @ lean_product) @ layer_norm",
    "joined_x: [d_in, 3] ~ normal(0.5)  joined_x_W: [3] ~ normal(0.5)  part_t1: [d_in, 3] ~ normal(0.5)  U: [3, d_out] ~ normal(0.5)  "
    "delta = ((x @ joined_x + joined_x_W) * (x @ part_t1)) @ U",
])  # fmt: skip
def test_names_that_generated_code_has_are_no_trouble(body: str) -> None:
    method = unipelt.parse(f"method m {{ modify attn.q  insert x  form {{ {body} }}  compose h + delta }}")
    for one, reference in zip(edits(method, "llama", True), edits(method, "llama", False), strict=True):
        for training in (False, True):
            one.edit.train(training)
            both(reference, one.edit, training=training)
        assert all(one.edit.recipes.known.values())
    compare_printed(method, ("llama",))


def test_a_gate_over_real_tokens_sees_the_mask_in_rows_of_keys_and_values() -> None:
    text = """
    gate real { w: [d_in] ~ normal(1.0)  g = mean(sigmoid(z @ w), tokens) }
    method m {
      modify attn.heads   insert parallel
      form {
        K: [3, d_head] ~ normal(1.0) per group   V: [3, d_head] ~ normal(1.0) per group
        G = real(x)
        scores = q @ (G * K).T * scale
        delta = softmax(scores) @ V
      }
      compose { lam = sigmoid(logsumexp(scores) - log_mass)  out = (1 - lam) * h + lam * delta }
    }"""
    outputs = []
    for lowering in (True, False):
        model = small.model("bert", dtype=torch.float64)
        unipelt.apply(model, unipelt.parse(text), lowering=lowering)
        small.randomise(model, seed=1)
        ids = torch.tensor([[1, 2, 3, 4], [5, 6, 0, 0]])
        outputs.append(model(input_ids=ids, attention_mask=(ids != 0).long())[0])
    torch.testing.assert_close(*outputs, rtol=0, atol=1e-10)


def test_copies_and_pickles_write_their_own_recipes() -> None:
    (placed,) = [p for p in edits(bound(named("lora")), "bert_labels", True) if p.edit.site.name == "attn.q"]
    h, given, mask = placed.scope()
    before = placed.edit(h, given, mask)
    for twin in (copy.deepcopy(placed.edit), pickle.loads(pickle.dumps(placed.edit))):
        assert twin.recipes is not None and not twin.recipes.known
        assert torch.equal(twin(h, given, mask), before)
