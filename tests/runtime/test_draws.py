"""What is drawn in training: `noise[…]` and `chance[…]`; how far it has come: `progress`; and means over a batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from names import name
from small import checkpoint_activations, declared, inputs, model, output, randomise
from torch import nn

import unipelt
from unipelt.compiler import helpers
from unipelt.language.analyse.canonical import difference
from unipelt.runtime.edits import Edit
from unipelt.runtime.registry import registry


def method(line: str, compose: str = "h + delta", site: str = "attn.q, attn.v") -> unipelt.Method:
    return unipelt.parse(f"""method m {{
      modify {site}  insert parallel
      form {{ A: [d_in, 4] ~ normal(0.3)  B: [4, d_out] ~ normal(0.3)  {line} }}
      compose {compose}
    }}""")


def seen(m: nn.Module, name: str, **given: Any) -> list[torch.Tensor]:
    """What a line binds in each edit of a pass, in order."""
    found: list[torch.Tensor] = []
    edits = [e for e in m.modules() if isinstance(e, Edit)]

    def watch(e: Edit) -> None:
        evaluate = e.evaluate

        def seeing(*args: Any) -> Any:
            out, c = evaluate(*args)
            found.append(c.names[name].data)  # type: ignore[union-attr]
            return out, c

        e.evaluate = seeing  # type: ignore[method-assign]

    for e in edits:
        watch(e)
    output(m, **given)
    for e in edits:
        del e.__dict__["evaluate"]
    return found


def trained(line: str, kind: str = "bert", **more: Any) -> nn.Module:
    m = model(kind)
    for module in m.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    unipelt.apply(m, method(line), allow_future=True, lowering=False, **more)
    return m.train()


# ---------------------------------------------------------------- the numbers themselves


def test_they_are_spread_as_they_should_be() -> None:
    seeds = torch.arange(4) * 7919
    for seed in seeds:
        u = helpers.uniform_numbers(seed, 3, (200_000,)).double()
        assert 0 < u.min() and u.max() < 1 and (torch.histc(u, 16) - 12500).abs().max() < 5 * 12500**0.5
        n = helpers.normal_numbers(seed, 3, (400, 500)).double()
        assert n.mean().abs() < 0.012 and (n.std() - 1).abs() < 0.01 and ((n**4).mean() - 3).abs() < 0.15
        assert (n[1:] * n[:-1]).mean().abs() < 0.012 and (n[:, 1:] * n[:, :-1]).mean().abs() < 0.012
    a, b = (helpers.uniform_numbers(torch.tensor(5), key, (50_000,)).double() for key in (1, 2))
    one = torch.stack([helpers.uniform_numbers(torch.tensor(s), 1, ()) for s in range(2000)]).double()
    assert ((a - 0.5) * (b - 0.5)).mean().abs() < 0.002 and (one.mean() - 0.5).abs() < 0.03
    assert ((one[1:] - 0.5) * (one[:-1] - 0.5)).mean().abs() < 0.01


@pytest.mark.parametrize(
    ("words", "shape", "alike"),
    [
        ("noise[4]", [4], "none"),
        ("noise[site, 4]", [4], "none"),
        ("noise[layer, 4]", [4], "layer"),
        ("noise[kind, 4]", [4], "kind"),
        ("noise[model, 4]", [4], "all"),
        ("noise[batch, token, 4]", [3, 7, 4], "none"),
        ("chance[token, batch, d_in]", [3, 7, 32], "none"),
        ("chance[layer, batch]", [3], "layer"),
        ("chance[model]", [], "all"),
    ],
)
def test_where_a_draw_is_the_same(words: str, shape: list[int], alike: str) -> None:
    m = trained(f"n = {words} delta = z @ A @ B + 0 * {'sum(n)' if '4' in words or 'd_in' in words else 'n'}")
    torch.manual_seed(0)
    first = seen(m, "n")
    second = seen(m, "n")
    assert [list(t.shape) for t in first] == [shape] * 6
    assert all(not torch.equal(a, b) for a, b in zip(first, second)), "passes differ"
    sites = [(layer, kind) for layer in range(3) for kind in "qv"]
    for i, a in enumerate(sites):
        for j, b in enumerate(sites[:i]):
            same = {"none": False, "layer": a[0] == b[0], "kind": a[1] == b[1], "all": True}[alike]
            assert torch.equal(first[i], first[j]) == same, (a, b)
    torch.manual_seed(0)
    assert all(torch.equal(a, b) for a, b in zip(first, seen(m, "n"))), "torch's seed is its seed"


def test_the_same_words_are_the_same_numbers_and_others_are_not() -> None:
    line = "n = noise[4] - noise[4]  u = noise[2, 4]  v = noise[4] - u[: 1]  delta = z @ A @ B + 0 * sum(n + v)"
    m = trained(line)
    torch.manual_seed(0)
    assert not any(t.any() for t in seen(m, "n")) and all(t.all() for t in seen(m, "v"))


def test_noise_is_nothing_outside_training() -> None:
    plain = trained("delta = z @ A @ B").eval()
    for lowering in (True, False):
        m = model("bert")
        unipelt.apply(m, method("delta = (z @ A + 3 * noise[batch, token, 4]) @ B"), lowering=lowering)
        assert torch.equal(output(m), output(plain)) or torch.allclose(output(m), output(plain), atol=1e-6)
        unipelt.merge(m, "default")
        assert torch.allclose(output(m), output(plain), atol=1e-5)


def test_no_other_method_draws_a_seed() -> None:
    m = trained("delta = z @ A @ B")
    state = torch.random.get_rng_state()
    output(m)
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("reentrant", [False, True])
def test_layers_that_are_computed_again_see_the_same_noise(reentrant: bool) -> None:
    def gradients(m: nn.Module) -> list[torch.Tensor]:
        m.zero_grad()
        torch.manual_seed(2)
        m(**inputs())[0].square().sum().backward()
        return [p.grad.clone() for p in m.parameters() if p.grad is not None]

    m = trained("delta = (z @ A + noise[batch, token, 4]) * (1 + chance[site]) @ B", "llama")
    plain = gradients(m)
    checkpoint_activations(m, reentrant)
    if reentrant:
        m.enable_input_require_grads()
    assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(plain, gradients(m))) and len(plain) == 12


def test_noise_compiles_into_one_graph() -> None:
    m = trained("delta = (z @ A + noise[batch, token, 4] * progress) @ B")
    unipelt.progress(m, 0.5)
    torch.manual_seed(0)
    wanted = [output(m) for _ in range(3)]
    compiled = torch.compile(m, backend="eager", fullgraph=True)
    with torch._dynamo.config.patch(error_on_recompile=True), torch.no_grad():
        torch.manual_seed(0)
        found = [compiled(**inputs())[0] for _ in range(3)]
        unipelt.progress(m, 0.0)
        still = compiled(**inputs())[0]
    torch._dynamo.reset()
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(wanted, found))
    assert torch.allclose(still, output(trained("delta = z @ A @ B")), atol=1e-5)


def test_a_part_that_is_called_past_the_model_is_told_so() -> None:
    m = model("bert_labels")
    unipelt.apply(m, method("delta = (z @ A + noise[4]) @ B"))
    m.train()
    registry(m).switch.holder.current.seed = None
    with pytest.raises(unipelt.PeltError) as e:
        m.bert(**inputs())
    assert [d.code for d in e.value.diagnostics] == ["E0721"]


def test_a_row_whose_draws_are_not_in_its_output_merges() -> None:
    m = model("bert")
    unipelt.apply(m, method("u = chance[site] * chance  delta = z @ A @ B"), lowering=False)
    wanted = output(m)
    unipelt.merge(m, "default")
    assert torch.allclose(output(m), wanted, atol=1e-5)


#: Lines that draw, each with what else is its method's: at every place, of axes of its own, in a gate, in a weight, twice the same.
LINES = {
    "noise[batch, token, 4]": "delta = (z @ A + noise[batch, token, 4]) @ B",
    "noise twice": "delta = (z @ A + noise[4] * noise[4] - noise[8][: 4]) @ B",
    "of a layer": "c = chance[layer]  delta = z @ A * noise[kind, 4] @ B * c",
    "of the model": "delta = z @ A @ B * (chance[model] < 0.7) * noise[model, batch]",
    "of an axis": "axis part = 2  p = chance[site, part]  m = p >= max(p, part)  delta = sum(m * p * (z @ A @ B), part)",
    "one pass": "delta = z @ A @ B * (chance < 0.5) + noise[d_out]",
}


def compared(text: unipelt.Method, kind: str, **arguments: Any) -> tuple[list[list[torch.Tensor]], int]:
    """Outputs and gradients of two passes that train, by recipes and as written, from the same seed; how many edits have a recipe."""
    found, straight = [], 0
    for lowering in (True, False):
        m = model(kind, dtype=torch.float64)
        unipelt.apply(m, text, allow_future=True, lowering=lowering)
        randomise(m)
        for module in m.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        torch.manual_seed(3)
        given = {**inputs(), **declared(m, inputs()["input_ids"])}
        out = [m.train()(**given)[0] for _ in range(4)]
        sum(t.square().mean() for t in out).backward()
        found.append([*out, *(p.grad for p in m.parameters() if p.grad is not None)])
        edits = [e for e in m.modules() if isinstance(e, Edit) and e.recipes is not None]
        straight += sum(any(recipe is not None for recipe, *_ in e.recipes.ready.values()) for e in edits)
    return found, straight


@pytest.mark.parametrize("line", LINES)
@pytest.mark.parametrize("site", ["attn.q, attn.v", "attn.q.weight"])
def test_recipes_draw_what_the_evaluator_draws(line: str, site: str) -> None:
    text = LINES[line]
    if site.endswith("weight"):
        if "batch" in text:
            return
        text = text.replace("z @ A @ B", "A @ B").replace("z @ A", "A")
    insert = "" if site.endswith("weight") else "insert parallel"
    method_ = unipelt.parse(f"""method m {{ modify {site} {insert}
      form {{ A: [d_in, 4] ~ normal(0.3)  B: [4, d_out] ~ normal(0.3)  {text} }} compose h + delta }}""")
    (one, other), straight = compared(method_, "bert")
    assert straight == (6 if "," in site else 3)
    assert len(one) == len(other) > 4 and not all(torch.equal(one[0], t) for t in one[1:4])
    assert all(torch.allclose(a, b, rtol=0, atol=1e-10) for a, b in zip(one, other))


@pytest.mark.parametrize("method", ["dylora", "pvera", "adamix", "polytropon"])
def test_recipes_of_the_library_draw_what_the_evaluator_draws(method: str) -> None:
    (one, other), straight = compared(unipelt.load(name(method)), "bert")
    assert straight and not all(torch.equal(one[0], t) for t in one[1:4])
    assert all(torch.allclose(a, b, rtol=0, atol=1e-9) for a, b in zip(one, other))


@pytest.mark.parametrize("noise", ["noise[l, d_head]", "noise[batch, l, d_head]"])
def test_rows_of_keys_draw_for_each_example(noise: str) -> None:
    """The attention's kernel takes keys that are the same for all examples; others are not given to it."""
    text = f"""method m(l: int = 3) {{ modify attn.heads  insert parallel
      form {{ K: [l, d_head] ~ normal(1.0) per group  V: [l, d_head] ~ normal(1.0) per group
             scores = q @ (K + {noise}).T * scale  delta = softmax(scores) @ V }}
      compose {{ lam = sigmoid(logsumexp(scores) - log_mass)  out = (1 - lam) * h + lam * delta }} }}"""
    (one, other), _ = compared(unipelt.parse(text), "bert")
    assert all(torch.allclose(a, b, rtol=0, atol=1e-9) for a, b in zip(one, other))


# ---------------------------------------------------------------- progress


def test_progress_is_what_is_said_in_training_and_one_outside() -> None:
    m = trained("delta = z @ A @ B * progress")
    plain = trained("delta = z @ A @ B")
    base = output(model("bert"))
    assert torch.allclose(output(m), base, atol=1e-6), "it begins at 0"
    unipelt.progress(m, 0.25)
    quarter = trained("delta = z @ A @ B * 0.25")
    assert torch.allclose(output(m), output(quarter), atol=1e-6)
    assert torch.allclose(output(m.eval()), output(plain.eval()), atol=1e-6)
    for wrong in (-0.1, 1.5, float("nan")):
        with pytest.raises(unipelt.PeltError) as e:
            unipelt.progress(m, wrong)
        assert e.value.diagnostics[0].code == "E0770"
    with pytest.raises(unipelt.PeltError):
        unipelt.progress(model("bert"), 0.5)


def test_it_works_compiled_and_as_written() -> None:
    outs = []
    for lowering in (True, False):
        m = model("llama")
        unipelt.apply(m, method("delta = z @ A @ B * (1 - progress) ** 2"), lowering=lowering)
        unipelt.progress(m, 0.3)
        outs.append(output(m.train()))
    assert torch.allclose(*outs, atol=1e-6) and not torch.allclose(outs[0], output(model("llama")), atol=1e-3)


# ---------------------------------------------------------------- means over the batch


def test_a_mean_over_the_batch_lets_examples_see_each_other() -> None:
    m = trained("p = mean(z @ A, positions, batch) delta = p @ B").eval()
    x = inputs(padded=False)
    alone = output(m, **{n: t[:1] for n, t in x.items()})
    assert not torch.allclose(output(m, **x)[:1], alone, atol=1e-4)
    with torch.no_grad():
        one = seen(m, "p", **x)[0]
    assert one.shape == (4,)
    plan = unipelt.plan(model("bert"), method("delta = mean(z @ A, batch) @ B"))
    assert plan.properties["batch-independent"].startswith("no") and plan.properties["padding-invariant"].startswith(
        "no"
    )
    assert plan.properties["causal"] == "yes"
    assert unipelt.plan(model("bert"), method("delta = z @ A @ B")).properties["batch-independent"] == "yes"


# ---------------------------------------------------------------- what is known without running


def test_what_is_drawn_has_a_part_in_what_a_method_means() -> None:
    lines = ["z", "z + noise[d_in]", "z + noise[layer, d_in]", "z + noise[batch, d_in]", "z + noise[1]", "z + progress",
             "z + chance[1]"]  # fmt: skip
    texts = [method(f"delta = ({line}) @ A @ B") for line in lines]
    for i, a in enumerate(texts):
        for j, b in enumerate(texts):
            assert (difference(a, b) is None) == (i == j), (lines[i], lines[j])


def test_verdicts_are_those_of_evaluation() -> None:
    noisy = unipelt.plan(model("bert"), method("delta = (z @ A + noise[4]) @ B * progress")).properties
    assert noisy["mergeable"] == "yes" and noisy["deterministic in training"].startswith("no")
    drawn = unipelt.plan(model("bert"), method("delta = z @ A @ B * chance[site]")).properties
    assert drawn["mergeable"].startswith("no")
    only = unipelt.parse("method m { modify ffn insert parallel form { delta = noise[d_out] } compose h + delta }")
    assert unipelt.plan(model("bert"), only).properties["identity at start"] == "yes"


def test_a_method_with_draws_as_plain_torch() -> None:
    text = method("delta = (z @ A + noise[batch, token, 4] * (1 - progress)) @ B").torch_source()
    scope: dict[str, Any] = {}
    exec(compile(text, "<text>", "exec"), scope)
    module = scope["M"](8, 8)
    h, x, progress = torch.zeros(2, 3, 8), torch.randn(2, 3, 8), torch.tensor(0.5)
    module.train()
    a, b = module(h, x, progress), module(h, x, progress)
    assert not torch.equal(a, b)
    module.eval()
    assert torch.allclose(module(h, x, progress), x @ module.A @ module.B)


def test_a_let_of_that_name_is_a_tensor() -> None:
    m = trained("noise = A.T  delta = z @ noise[: 4].T @ B")
    assert torch.allclose(output(m), output(trained("delta = z @ A @ B")), atol=1e-6)
    randomise(m)
    assert "seed" not in registry(m).attached["default"].asks
