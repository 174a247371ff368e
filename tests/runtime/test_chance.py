"""``chance`` (one number for each forward pass) and what stands on it: AdapterDrop, in training and at inference."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from names import name, spec
from small import LAYERS, WIDTH, checkpoint_activations, inputs, model, output, randomise
from torch import nn

import unipelt
from unipelt.language.analyse.canonical import canonical
from unipelt.language.analyse.counts import counts
from unipelt.language.analyse.meaning import meaning
from unipelt.language.analyse.verdicts import verdicts

ROBUST = spec(
    "method mine(most: int = depth - 1, drop: int = 0) { use lora(r = 2) as rows gated by above_dropped(most, drop) }"
)


def robust(kind: str = "bert", text: str = "", **arguments: Any) -> nn.Module:
    m = model(kind)
    for module in m.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    method = unipelt.parse(text)(**arguments) if text else unipelt.load(name("adapter_drop_robust"))(r=3, **arguments)
    unipelt.apply(m, method)
    randomise(m)
    return m


def acting(m: nn.Module, x: dict[str, torch.Tensor]) -> list[bool]:
    """In which layers the adapters act in one pass: each edit's own answer, in order of the layers."""
    found: list[bool] = []
    edits = [e for n, e in m.named_modules() if type(e).__name__ == "Edit"]
    handles = [e.register_forward_hook(lambda _, args, out: found.append(not torch.equal(args[0], out))) for e in edits]
    with torch.no_grad():
        m(**x)
    for handle in handles:
        handle.remove()
    return found


# ---------------------------------------------------------------- the draw


@pytest.mark.parametrize("kind", ["bert", "gpt2", "llama"])
def test_in_training_the_lowest_layers_drop_together(kind: str) -> None:
    m = robust(kind)
    m.train()
    torch.manual_seed(0)
    seen = [acting(m, inputs()) for _ in range(40)]
    assert all(s == [False] * (LAYERS - sum(s)) + [True] * sum(s) for s in seen), "always the lowest ones"
    assert {sum(s) for s in seen} == {1, 2, 3}, "0, 1 or 2 of 3 layers drop"
    assert torch.tensor([LAYERS - sum(s) for s in seen]).double().mean().sub(1).abs() < 0.4
    m.eval()
    assert acting(m, inputs()) == [True] * LAYERS


def test_the_range_is_an_argument() -> None:
    m = robust(most=1)
    m.train()
    torch.manual_seed(0)
    assert {sum(acting(m, inputs())) for _ in range(20)} == {2, 3}
    m = robust(most=LAYERS)
    m.train()
    assert {sum(acting(m, inputs())) for _ in range(40)} == {0, 1, 2, 3}


def test_two_projections_of_a_layer_see_one_draw_and_passes_differ() -> None:
    m = robust(text=ROBUST)
    m.train()
    torch.manual_seed(1)
    seen = [acting(m, inputs()) for _ in range(12)]
    assert all(s[::2] == s[1::2] for s in seen) and len({tuple(s) for s in seen}) > 1


def test_the_seed_of_torch_is_its_seed() -> None:
    m = robust()
    m.train()
    runs = []
    for _ in range(2):
        torch.manual_seed(3)
        runs.append([output(m) for _ in range(5)])
    assert all(torch.equal(a, b) for a, b in zip(*runs)) and any((a != runs[0][0]).any() for a in runs[0])


def test_no_other_method_draws() -> None:
    m = model("bert")
    unipelt.apply(m, unipelt.load(name("pfeiffer")))
    state = torch.random.get_rng_state()
    output(m)
    assert torch.equal(torch.random.get_rng_state(), state)
    unipelt.apply(m, unipelt.load(name("adapter_drop_robust")), name="b")
    output(m)
    assert not torch.equal(torch.random.get_rng_state(), state)
    unipelt.remove(m, "b")
    state = torch.random.get_rng_state()
    output(m)
    assert torch.equal(torch.random.get_rng_state(), state)


def step(m: nn.Module, seed: int, passes: int = 1) -> tuple[float, dict[str, torch.Tensor]]:
    m.zero_grad()
    torch.manual_seed(seed)
    total = 0.0
    for _ in range(passes):  # gradients add up over several forward and backward passes
        out = m(**inputs())[0]
        loss = (out * torch.linspace(-1, 1, out.numel()).reshape(out.shape)).sum()
        loss.backward()
        total += float(loss.detach())
    own = unipelt.state_dict(m)
    grads = {p.data_ptr(): p.grad for p in m.parameters() if p.requires_grad}
    return total, {n: grads[t.data_ptr()].clone() for n, t in own.items()}


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_layers_that_are_computed_again_see_the_same_draw(kind: str, reentrant: bool) -> None:
    m = robust(kind)
    m.train()
    plain = [step(m, seed, passes=2) for seed in range(6)]
    checkpoint_activations(m, reentrant)
    if reentrant:
        m.enable_input_require_grads()
    again = [step(m, seed, passes=2) for seed in range(6)]
    for (a, grads), (b, others) in zip(plain, again):
        assert abs(a - b) < 1e-4 * max(1.0, abs(a))
        assert all(torch.allclose(grads[n], others[n], atol=1e-4) for n in grads)
    zero = [{n for n, g in grads.items() if not g.any()} for _, grads in (step(m, s) for s in range(6))]
    assert len(zero[0] | zero[1] | zero[2]) > 0 and any(z != zero[0] for z in zero), (
        "the draws differ from pass to pass"
    )


def test_every_tensor_has_a_gradient_in_every_pass() -> None:
    """Layers that drop get zeros, not nothing: DistributedDataParallel waits for all of them."""
    m = robust(most=LAYERS)
    m.train()
    found = [step(m, seed)[1] for seed in range(8)]
    assert all(set(g) == set(unipelt.state_dict(m)) for g in found)
    assert any(not any(t.any() for t in g.values()) for g in found), "a pass in which all layers drop"


def test_it_compiles_into_one_graph() -> None:
    m = robust()
    m.train()
    torch.manual_seed(0)
    wanted = [output(m) for _ in range(6)]
    compiled = torch.compile(m, backend="eager", fullgraph=True)
    with torch._dynamo.config.patch(error_on_recompile=True), torch.no_grad():
        torch.manual_seed(0)
        found = [compiled(**inputs())[0] for _ in range(6)]
    torch._dynamo.reset()
    assert (
        all(torch.allclose(a, b, atol=1e-5) for a, b in zip(wanted, found))
        and len({float(t.sum()) for t in wanted}) > 1
    )


def test_a_part_that_is_called_past_the_model_is_told_so() -> None:
    m = robust("bert_labels")
    x = {n: t for n, t in inputs().items()}
    m.train()
    m.zero_grad()
    unipelt.active(m)
    from unipelt.runtime.registry import registry

    registry(m).switch.holder.current.chance = None
    with pytest.raises(unipelt.PeltError) as e:
        m.bert(**x)
    assert [d.code for d in e.value.diagnostics] == ["E0721"]
    m.eval()
    assert m.bert(**x)[0].shape[-1] == WIDTH


# ---------------------------------------------------------------- dropping at inference


@pytest.mark.parametrize("lowering", [True, False])
@pytest.mark.parametrize("drop", range(LAYERS + 1))
def test_dropped_at_inference(drop: int, lowering: bool) -> None:
    m = model("bert")
    unipelt.apply(m, unipelt.load(name("adapter_drop_robust"))(r=3, drop=drop), lowering=lowering)
    randomise(m)
    fixed = model("bert")
    unipelt.apply(fixed, unipelt.parse(spec(
        f"method mine {{ use pfeiffer(3) as adapter {{ layers {drop} .. depth }} }}" if drop < LAYERS
        else "method mine { use lora as adapter }"
    )))  # fmt: skip
    with torch.no_grad():
        if drop < LAYERS:
            values = unipelt.state_dict(m)
            for n, t in unipelt.state_dict(fixed).items():
                t.copy_(values[n])
    assert acting(m, inputs()) == [False] * drop + [True] * (LAYERS - drop)
    assert torch.allclose(output(m), output(fixed if drop < LAYERS else model("bert")), atol=1e-5)


def test_a_dropped_layer_costs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    from unipelt.runtime.edits import Edit

    calls: list[int] = []
    straight = Edit._straight
    monkeypatch.setattr(Edit, "_straight", lambda self, *a: calls.append(self.site.layer) or straight(self, *a))
    m = robust(drop=2)
    output(m)
    assert calls == [2]
    calls.clear()
    m.train()
    output(m)
    assert calls == [0, 1, 2]


def test_bound_anew_at_load(tmp_path: Path) -> None:
    folder = unipelt.save(robust(), tmp_path / "robust")
    for drop in range(LAYERS):
        m = model("bert")
        unipelt.attach(m, folder, arguments={"drop": drop})
        assert torch.equal(output(m), output(robust(drop=drop)))
        assert unipelt.adapters(m)["default"].arguments["drop"] == drop
    again = model("bert")
    unipelt.attach(again, unipelt.save(m, tmp_path / "two"))
    assert torch.equal(output(again), output(m)), "saved with its new arguments"


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ({"r": 4}, "E0722", "with r=4 the method has other tensors than those saved"),
        ({"dorp": 1}, "E0402", "`drop`"),
        ({"drop": "gelu"}, "E0368", "takes a whole number"),
        ({"drop": [1, 2]}, "E0366", "2 values"),
    ],
)
def test_what_cannot_be_bound_anew(tmp_path: Path, arguments: dict[str, Any], code: str, words: str) -> None:
    folder = unipelt.save(robust(), tmp_path / "robust")
    m = model("bert")
    before = output(m)
    with pytest.raises(unipelt.PeltError) as e:
        unipelt.attach(m, folder, arguments=arguments)
    assert [d.code for d in e.value.diagnostics] == [code] and words in str(e.value)
    assert torch.equal(output(m), before) and not unipelt.adapters(m)


def test_a_scale_is_bound_anew_too(tmp_path: Path) -> None:
    m = model("bert")
    unipelt.apply(m, unipelt.load(name("lora"))(alpha=4.0))
    randomise(m)
    folder = unipelt.save(m, tmp_path / "lora")
    other = model("bert")
    unipelt.attach(other, folder, arguments={"alpha": 0.0})
    assert torch.allclose(output(other), output(model("bert")), atol=1e-6)


def test_gated_rows_merge_as_they_act(tmp_path: Path) -> None:
    m = robust(text=ROBUST, drop=1)
    wanted = output(m)
    unipelt.merge(m, "default")
    assert torch.allclose(output(m), wanted, atol=1e-5) and (output(model("bert")) - wanted).abs().max() > 1e-3


# ---------------------------------------------------------------- what is known without running


def test_verdicts() -> None:
    guarded = verdicts(unipelt.parse(ROBUST))
    assert guarded["mergeable"].value == guarded["cache-consistent"].value == "yes"
    always = verdicts(
        unipelt.parse(spec("method m { modify attn.q insert parallel form low_rank(2) compose h + chance * delta }"))
    )
    assert always["mergeable"].value == always["cache-consistent"].value == "no"
    assert "one forward pass to the next" in always["mergeable"].reason


def test_a_condition_on_chance_is_refused_outside_training() -> None:
    with pytest.raises(unipelt.PeltError) as e:
        unipelt.parse(
            spec("method m { modify ffn insert parallel form low_rank(2) compose h + delta if chance < 0.5 else h }")
        )
    assert [d.code for d in e.value.diagnostics] == ["E0315"]


def test_what_training_changes_is_not_equal_to_what_it_does_not_change() -> None:
    plain, dropped, other = (
        unipelt.parse(spec(f"method m {{ use pfeiffer(3) as adapter {gate} }}"))
        for gate in ("", "gated by above_dropped(2, 0)", "gated by above_dropped(1, 0)")
    )
    texts = [canonical(meaning(m)).lines() for m in (plain, dropped, other)]
    assert texts[0] != texts[1] and texts[1] != texts[2] and texts[1] == canonical(meaning(dropped)).lines()


def test_nothing_that_training_changes_is_folded() -> None:
    text = """method m {
      modify ffn  insert parallel
      form { M: [d_in, d_out] ~ normal(0.1)  s: [] ~ ones
             a = (floor(chance * 2) if training else 1) * s
             delta = z @ (M * a) }
      compose h + delta
    }"""
    plan = unipelt.plan(model("bert"), unipelt.parse(text))
    assert not plan.folds and plan.counts.stored == plan.counts.trained


# ---------------------------------------------------------------- the specialised kind, and Adapter+


def test_specialised() -> None:
    m = model("bert")
    plan = unipelt.apply(m, unipelt.load(name("adapter_drop"))(k=1, r=3))
    assert {e.site.layer for e in plan.edits} == {1, 2} and acting(m, inputs()) == [True, True]
    assert plan.counts.trained == 2 * (2 * WIDTH * 3 + 3 + WIDTH)
    assert unipelt.plan(m, unipelt.load(name("adapter_drop"))(r=3)).counts == plan.counts, "5 of 12 is 1 of 3"
    with pytest.raises(unipelt.PeltError) as e:
        unipelt.plan(m, unipelt.load(name("adapter_drop"))(k=3))
    assert [d.code for d in e.value.diagnostics] == ["E0516"]


def test_adapter_plus_is_the_blocks_output_and_a_scaled_bottleneck() -> None:
    m = model("bert")
    method = unipelt.load(name("adapter_plus"))(r=3)
    plan = unipelt.apply(m, method)
    t = unipelt.state_dict(m)
    first = f"encoder.layer.0.block.{name('adapter_plus')}."
    assert (
        torch.equal(t[first + "s"], torch.ones(WIDTH)) and not t[first + "b_down"].any() and not t[first + "b_up"].any()
    )
    for n in ("down", "up"):  # Houlsby's initialisation: N(0, 0.01), cut at two standard deviations
        assert t[first + n].abs().max() <= 0.02 and 0.005 < t[first + n].std() < 0.011
    randomise(m)
    h = torch.randn(2, 4, WIDTH, generator=torch.Generator().manual_seed(0))
    block = m.encoder.layer[0]
    with torch.no_grad(), unipelt.disabled(m):
        out = block(h)
        out = out[0] if isinstance(out, tuple) else out
    down, up, s = (t[first + n] for n in ("down", "up", "s"))
    wanted = out + s * (nn.functional.gelu(out @ down + t[first + "b_down"]) @ up + t[first + "b_up"])
    with torch.no_grad():
        found = block(h)
    assert torch.allclose(found[0] if isinstance(found, tuple) else found, wanted, atol=1e-5)
    assert plan.counts.trained == LAYERS * (2 * WIDTH * 3 + 3 + 2 * WIDTH)


@pytest.mark.parametrize(("r", "wanted"), [(1, 36_876), (8, 165_984), (16, 313_536)])
def test_adapter_plus_on_vit_b(r: int, wanted: int) -> None:
    """The parameters of the authors' modules on ViT-B/16: two linear maps with biases and a scale for each channel."""
    assert wanted == 12 * (2 * 768 * r + r + 768 + 768)
    found = counts(unipelt.load(name("adapter_plus"))(r=r))["trained"]
    assert found.number({"L": 12, "L_cross": 0, "d_model": 768, "r": r}) == wanted
