"""Recipes and printed modules compute what the literal evaluator computes, in float64: the library and random methods."""

from __future__ import annotations

import copy
import json
import pickle
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import small
import torch
from names import CLASSICS, name as named

import unipelt
from unipelt.compiler.lower import LOWERINGS
from unipelt.compiler.module import torch_source
from unipelt.language.types.typed import TypedRow
from unipelt.language.sites import TensorType
from unipelt.runtime.edits import PLACES, Edit
from unipelt.runtime.seam import edit_at

sys.path.insert(0, str(Path(__file__).parent.parent / "proof"))  # random methods are drawn there
import random_methods

METHODS = [named(n) for n in CLASSICS]  # the others: `tests/zoo`, where the fast path is held against the literal one
BATCH, TOKENS = 3, 5


def rand(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape)), dtype=torch.float64)


@dataclass
class Placed:
    """An edit at layer 1 (or outside the layers) of a small model in float64, with random tensors."""

    edit: Edit
    typing: TypedRow

    def size(self, name: str) -> int:
        n = self.typing.sizes[name].number
        assert n is not None
        return int(n)

    def scope(self) -> tuple[torch.Tensor, dict[str, Any], torch.Tensor]:
        """What enters, all of it random: h, what is in scope, the mask."""
        e, tokens = self.edit, (BATCH, TOKENS)
        heads = (BATCH, self.size("heads"), TOKENS)
        shapes = {n: tokens for n in ("x", "residual")} | {"q": heads, "log_mass": heads, "W": (), "bias": ()}
        types = {n: self.typing.values[n].type for n in ("h", *e.needs) if n in self.typing.values}
        found: dict[str, Any] = {
            n: rand(*(shapes[n] if n != "h" else heads if e.site.kind.has_heads else tokens), *(int(str(s)) for s in t.sizes), seed=i)
            for i, (n, t) in enumerate(sorted(types.items())) if isinstance(t, TensorType)
        }  # fmt: skip
        found |= {"scale": 0.25} if "scale" in e.needs else {}
        found |= {"chance": torch.tensor(0.4)} if "chance" in e.needs else {}
        for i in self.typing.inputs:
            sizes = [int(str(s)) for s in i.sizes]
            found[i.name] = torch.tensor([0, 1, 0]) if i.count is not None else rand(BATCH, *sizes, seed=len(i.name))
        if e.prompt is not None:
            found[PLACES] = (
                torch.tensor([[0, 1]]).expand(BATCH, 2)
                if e.prompt.grows
                else torch.tensor([[0, 1, 0, 2, 0]]).expand(BATCH, TOKENS)
            )
        mask = torch.tensor([[1, 1, 1, 1, 1], [0, 0, 1, 1, 1], [1, 1, 1, 0, 0]])
        return found.pop("h"), found, mask


def edits(method: Any, kind: str, lowering: bool) -> list[Placed]:
    model = small.model(kind, dtype=torch.float64)
    plan = unipelt.apply(model, method, allow_future=True, lowering=lowering)
    small.randomise(model, seed=1)
    return [Placed(edit_at(model, "default", e), e.typing) for e in plan.edits if e.site.layer in (None, 1)]


def bound(name: str) -> Any:
    """A method of the library with few rows, where it has some."""
    method = unipelt.load(name)
    return method(**{n: 2 for n in ("l", "n") if n in method.arguments})


def both(placed: Placed, other: Any, *args: Any, training: bool) -> None:
    """The literal evaluation of an edit and another way to compute it are equal, with the same numbers drawn."""
    h, given, mask = placed.scope()
    placed.edit.train(training)
    torch.manual_seed(0)
    expected = placed.edit(h, dict(given), mask)
    torch.manual_seed(0)
    torch.testing.assert_close(other(h, dict(given), mask), expected, rtol=0, atol=1e-10)


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


@pytest.mark.sampled(2)
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
    method = bound(name)
    source = torch_source(method)
    assert "import unipelt" not in source
    found: dict[str, Any] = {"__name__": "printed"}
    exec(compile(source, name, "exec"), found)
    classes = [c for c in found.values() if isinstance(c, type) and c.__module__ == "printed"]
    assert bool(classes) == bool(method.rows)
    met = set()
    for kind in ("bert_labels", "llama"):
        try:
            literal = edits(method, kind, False)
        except unipelt.PeltError:
            continue
        for placed in literal:
            e = placed.edit
            c = next(
                c
                for c in classes
                if re.search(rf"The row `{e.row.name}` at [^:]*\b{re.escape(e.site.name)}[,:]", c.__doc__ or "")
            )
            numbers = {"layer": 1, "depth": small.LAYERS}
            module = c(
                **{p: numbers.get(p) or placed.size(p) for p in c.__init__.__annotations__ if p != "return"}
            ).double()
            own = {label.replace(".", "_"): t for label, t in e.tensors().items()}
            for label, t in own.items():
                mine = getattr(module, label)
                assert mine.shape == t.shape
                mine.data.copy_(t.data)
            assert set(own) == set(module.state_dict())

            def printed(h: Any, given: Any, mask: Any, module: Any = module, e: Edit = e) -> Any:
                names = {
                    **given,
                    "h": h,
                    "mask": mask,
                    "places": given.get(PLACES),
                    **{n.replace(".", "_"): b for n, b in e.bases.items()},
                }
                return module(**{p: names[p] for p in module.forward.__annotations__ if p != "return"})

            for training in (False, True):
                module.train(training)
                both(placed, printed, training=training)
            met.add(c)
    assert met == set(classes)


@pytest.mark.sampled(2)
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
