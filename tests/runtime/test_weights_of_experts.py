"""Edits of the weights of experts: a tensor for each expert, computed with whichever way the experts compute, trained, saved, merged."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers as T
from small import checkpoint_activations
from torch import nn

import unipelt
from unipelt.runtime.registry import record

EXPERTS, WIDTH, INNER, LAYERS, RANK = 4, 16, 24, 2, 3
_SIZES: dict[str, Any] = dict(
    vocab_size=64, hidden_size=WIDTH, intermediate_size=INNER, num_hidden_layers=LAYERS, num_attention_heads=4, num_key_value_heads=2,
    head_dim=4, num_local_experts=EXPERTS, num_experts_per_tok=2,
)  # fmt: skip
CONFIGS = {"mixtral": T.MixtralConfig, "gpt_oss": T.GptOssConfig}
WAYS = ("eager", "grouped_mm", "batched_mm")
PARTS = ("up", "gate", "down")
AT = "[" + ", ".join(f"ffn.experts.{p}.weight" for p in PARTS) + "]"


def model_of(kind: str = "mixtral", way: str = "eager", dtype: torch.dtype = torch.float32, **more: Any) -> nn.Module:
    config = CONFIGS[kind](**{**_SIZES, **more})
    config._experts_implementation = way
    torch.manual_seed(0)
    return T.AutoModelForCausalLM.from_config(config).to(dtype).eval()


def ids(seed: int = 0, rows: int = 3, tokens: int = 7) -> torch.Tensor:
    return torch.randint(0, 64, (rows, tokens), generator=torch.Generator().manual_seed(seed))


def lora(**more: Any) -> Any:
    return unipelt.load("lora")(r=RANK, at=AT, **more)


def draw(model: nn.Module, name: str = "default", seed: int = 1) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    own = record(model, name).trained()
    with torch.no_grad():
        for t in own.values():
            t.copy_(0.3 * torch.randn(t.shape, generator=g))
    return own


def output(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=ids()).logits


def change(own: dict[str, torch.Tensor], layer: int, part: str, scale: float) -> torch.Tensor:
    front = f"layers.{layer}.ffn.experts.{part}.weight.lora"
    return scale * own[f"{front}.A"] @ own[f"{front}.B"]


def by_hand(kind: str, own: dict[str, torch.Tensor], scale: float = 16 / RANK, way: str = "eager") -> nn.Module:
    """The base with the changes of the experts' matrices added to its parameters."""
    model = model_of(kind, way)
    with torch.no_grad():
        for i in range(LAYERS):
            experts = model.model.layers[i].mlp.experts
            up, gate, down = (change(own, i, p, scale) for p in PARTS)
            both = torch.cat([gate, up], -1) if kind == "mixtral" else torch.stack([gate, up], -1).flatten(-2)
            experts.gate_up_proj += both.mT if kind == "mixtral" else both
            experts.down_proj += down.mT if kind == "mixtral" else down
    return model


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", CONFIGS)
def test_lora_at_experts_is_the_base_with_other_matrices(kind: str, way: str) -> None:
    model = model_of(kind, way)
    before, state = output(model), {n: p.clone() for n, p in model.named_parameters()}
    plan = unipelt.apply(model, lora())
    assert torch.equal(output(model), before)  # B starts at zero
    own = draw(model)
    assert {tuple(t.shape[:1]) for t in own.values()} == {(EXPERTS,)}
    assert plan.counts.trained == LAYERS * EXPERTS * RANK * 3 * (WIDTH + INNER) == sum(t.numel() for t in own.values())
    expected = output(by_hand(kind, own, way=way))
    found = output(model)
    assert torch.allclose(found, expected, rtol=0, atol=1e-6) and not torch.allclose(found, before, rtol=0, atol=1e-3)
    with unipelt.disabled(model):
        assert torch.equal(output(model), before)
    unipelt.merge(model)
    assert torch.allclose(output(model), expected, rtol=0, atol=1e-5)
    unipelt.unmerge(model)
    assert torch.equal(output(model), found)
    unipelt.remove(model)
    assert torch.equal(output(model), before)
    assert all(torch.equal(p, state[n]) for n, p in model.named_parameters())
    assert not any("forward" in vars(m) for m in model.modules())


# peft asks every model it wraps for this attribute, which transformers has renamed
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.parametrize("kind", ["mixtral", "qwen3_moe"])
def test_it_is_peft_s_lora_of_parameters(kind: str) -> None:
    """peft's two factors of a parameter in which gate and up are fused have one first factor for both."""
    if kind == "mixtral":
        base = model_of(kind)
    else:
        torch.manual_seed(0)
        base = T.AutoModelForCausalLM.from_config(T.Qwen3MoeConfig(
            **_SIZES, num_experts=EXPERTS, moe_intermediate_size=INNER)).eval()  # fmt: skip
    ours = copy.deepcopy(base)
    names = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
    config = peft.LoraConfig(r=RANK, lora_alpha=6, target_modules=[], target_parameters=names, init_lora_weights=False)
    theirs = peft.get_peft_model(base, config).eval()
    state = {n: p for n, p in theirs.named_parameters() if "lora_" in n}
    unipelt.apply(ours, lora(alpha=6.0))
    own = record(ours, "default").trained()
    with torch.no_grad():
        for n, p in state.items():
            p.copy_(0.3 * torch.randn(p.shape, generator=torch.Generator().manual_seed(len(n) + p.numel())))
        for i in range(LAYERS):
            at = f"base_model.model.model.layers.{i}.mlp.experts"
            fused = (
                f"{at}.base_layer"
                if any(f"{at}.base_layer.lora_A" in n and p.shape[1] == WIDTH for n, p in state.items())
                else at
            )
            last = at if fused != at else f"{at}.base_layer"

            def factors(front: str) -> tuple[torch.Tensor, torch.Tensor]:
                A, B = (state[f"{front}.lora_{x}.default.weight"] for x in "AB")
                return A.view(EXPERTS, RANK, -1).mT, B.view(-1, RANK, EXPERTS).permute(2, 1, 0)

            A, B = factors(fused)
            gate, up = B.chunk(2, -1)
            A2, B2 = factors(last)
            for part, (a, b) in {"gate": (A, gate), "up": (A, up), "down": (A2, B2)}.items():
                own[f"layers.{i}.ffn.experts.{part}.weight.lora.A"].copy_(a)
                own[f"layers.{i}.ffn.experts.{part}.weight.lora.B"].copy_(b)
    plain = output(by_hand("mixtral", {n: torch.zeros_like(t) for n, t in own.items()})) if kind == "mixtral" else None
    with torch.no_grad():
        expected = theirs(input_ids=ids()).logits
    assert torch.allclose(output(ours), expected, rtol=0, atol=1e-5)
    assert plain is None or not torch.allclose(plain, expected, rtol=0, atol=1e-2)


def train(model: nn.Module, steps: int = 3) -> list[float]:
    model.train()
    optimiser = torch.optim.AdamW(unipelt.parameter_groups(model, "default", 1e-2))
    losses = []
    for _ in range(steps):
        loss = model(input_ids=ids(), labels=ids()).loss
        loss.backward()
        losses.append(float(loss.detach()))
        optimiser.step()
        optimiser.zero_grad()
    model.eval()
    return losses


@pytest.mark.parametrize("way", ["eager", "grouped_mm"])
def test_it_trains_with_and_without_checkpointing(way: str) -> None:
    losses = []
    for reentrant in (None, False, True):
        model = model_of(way=way)
        unipelt.apply(model, lora(), seed=0)
        if reentrant is not None:
            checkpoint_activations(model, reentrant)
            model.enable_input_require_grads()
        losses.append(train(model))
    assert losses[0] == losses[1] == losses[2] and losses[0][-1] < losses[0][0]


def test_what_was_trained_is_saved_and_attached(tmp_path: Path) -> None:
    model = model_of()
    unipelt.apply(model, lora(), seed=0)
    train(model)
    found = output(model)
    unipelt.save(model, tmp_path / "a")
    for way in WAYS:
        other = model_of(way=way)
        unipelt.attach(other, tmp_path / "a")
        assert torch.allclose(output(other), found, rtol=0, atol=1e-5)
    twin = copy.deepcopy(model)
    assert torch.equal(output(twin), found)
    unipelt.remove(model)
    assert torch.equal(output(twin), found)


def test_experts_that_no_token_chooses_learn_nothing() -> None:
    model = model_of()
    unipelt.apply(model, lora(), seed=0)
    own = draw(model)
    chosen: list[set[int]] = []
    hooks = [layer.mlp.experts.register_forward_pre_hook(lambda m, args: chosen.append(set(args[1].flatten().tolist())))
             for layer in model.model.layers]  # fmt: skip
    model(input_ids=ids(rows=1, tokens=1)).logits.square().sum().backward()
    for hook in hooks:
        hook.remove()
    for i, seen in enumerate(chosen):
        assert len(seen) == 2
        for part in PARTS:
            grad = own[f"layers.{i}.ffn.experts.{part}.weight.lora.B"].grad
            assert {e for e in range(EXPERTS) if grad[e].any()} == seen


@pytest.mark.parametrize("way", ["eager", "grouped_mm"])
def test_a_short_base_computes_with_the_rounded_matrices(way: str) -> None:
    """What is small beside a weight is not lost before it is added: the sum is rounded once."""
    model, changed = model_of(way=way, dtype=torch.bfloat16), model_of(way=way, dtype=torch.bfloat16)
    unipelt.apply(model, lora())
    own = {n: t.float() for n, t in draw(model).items()}
    with torch.no_grad():
        for i in range(LAYERS):
            experts = changed.model.layers[i].mlp.experts
            up, gate, down = (change(own, i, p, 16 / RANK) for p in PARTS)
            experts.gate_up_proj.copy_(experts.gate_up_proj.float() + torch.cat([gate, up], -1).mT)
            experts.down_proj.copy_(experts.down_proj.float() + down.mT)
    found = output(model)
    assert found.dtype == torch.bfloat16 and torch.equal(found, output(changed))
    unipelt.merge(model)
    assert torch.equal(output(model), found)


def test_tensors_may_be_shared_by_all_experts() -> None:
    model = model_of()
    method = unipelt.parse("""method m {
      modify ffn.experts.down.weight
      form { A: [d_in, 2] ~ normal(0.3) per site  B: [2, d_out] ~ normal(0.3) per expert  c: [] ~ normal(1) per layer, expert  delta = c * (A @ B) }
      compose { out = h + delta }
    }""")  # fmt: skip
    plan = unipelt.apply(model, method)
    assert plan.counts.trained == LAYERS * (INNER * 2 + EXPERTS * (2 * WIDTH + 1))
    own = record(model, "default").trained()
    before = output(model)
    with torch.no_grad():
        for i, layer in enumerate(model.model.layers):
            A, B = (own[f"layers.{i}.ffn.experts.down.weight.m.{n}"] for n in "AB")
            layer.mlp.experts.down_proj += (own[f"layers.{i}.m.c"][:, None, None] * (A @ B)).mT
    with unipelt.disabled(model):
        assert torch.allclose(output(model), before, rtol=0, atol=1e-6)


def test_edits_and_trained_copies_of_one_module_act_together() -> None:
    """Each of a parameter's edits makes of it the next, those of trained copies first; no way computes the experts twice."""
    model = model_of("gpt_oss")  # its experts hold no other module
    calls: list[int] = []
    for layer in model.model.layers:
        layer.mlp.experts.register_forward_hook(lambda *_: calls.append(1))
    own = {}
    for name, text in {
        "low": f"method low {{ use lora(r = {RANK}, at = {AT}) }}",
        "copies": "method copies { train *.down_proj_bias, *.down_proj }",
        "scaled": "method scaled { modify ffn.experts.down.weight form { s: [d_out] ~ constant(1.5) delta = s } compose { out = h * delta } }",
    }.items():
        unipelt.apply(model, unipelt.parse(text), name=name, head=False)
        own[name] = draw(model, name, seed=len(name))
    unipelt.activate(model, "low", "copies", "scaled")
    calls.clear()
    found = output(model)
    assert len(calls) == LAYERS
    changed = by_hand("gpt_oss", own["low"])
    with torch.no_grad():
        for i, layer in enumerate(changed.model.layers):
            experts, front = layer.mlp.experts, f"layers.{i}.mlp.experts"
            experts.down_proj_bias.copy_(own["copies"][f"{front}.down_proj_bias"])
            experts.down_proj.copy_(own["copies"][f"{front}.down_proj"] + change(own["low"], i, "down", 16 / RANK))
            experts.down_proj *= own["scaled"][f"layers.{i}.ffn.experts.down.weight.scaled.s"][:, None, :]
    assert torch.allclose(found, output(changed), rtol=0, atol=1e-5)


def test_rows_of_a_batch_have_the_same_experts() -> None:
    model = model_of()
    for name in ("a", "b"):
        unipelt.apply(model, lora(), name=name)
        draw(model, name, seed=ord(name))
    with pytest.raises(unipelt.PeltError) as e, unipelt.using(model, ["a", "b", None]):
        output(model)
    assert e.value.diagnostics[0].code == "E0853" and "mlp.experts` holds experts" in e.value.diagnostics[0].message
    alone = []
    for name in ("a", "b"):
        with unipelt.using(model, name):
            alone.append(output(model))
    assert not torch.allclose(*alone, rtol=0, atol=1e-3)


def test_a_weighted_sum_of_adapters_is_one_of_their_changes() -> None:
    model = model_of()
    own = {}
    for name in ("a", "b"):
        unipelt.apply(model, lora(), name=name)
        own[name] = draw(model, name, seed=ord(name))
    changed = model_of()
    with torch.no_grad():
        for i, layer in enumerate(changed.model.layers):
            experts = layer.mlp.experts
            sums = {p: sum(w * change(own[n], i, p, 16 / RANK) for n, w in (("a", 0.25), ("b", 0.5))) for p in PARTS}
            experts.gate_up_proj += torch.cat([sums["gate"], sums["up"]], -1).mT
            experts.down_proj += sums["down"].mT
    unipelt.activate(model, {"a": 0.25, "b": 0.5})
    assert torch.allclose(output(model), output(changed), rtol=0, atol=1e-5)


def test_codes_are_refused_before_anything_is_changed() -> None:
    model = model_of()
    for layer in model.model.layers:
        p = layer.mlp.experts.down_proj
        layer.mlp.experts.down_proj = nn.Parameter(p.to(torch.float8_e4m3fn), requires_grad=False)
    from unipelt.anatomy.find import find
    from unipelt.compiler.held import held
    from unipelt.compiler.trained import parameters_of

    (site, *_) = find(model_of()).named("ffn.experts.down.weight")
    (row,) = lora().rows
    found = held(site, row, model, find(model_of()), parameters_of(model), None)
    assert found.code == "E0747" and "holds codes" in found.message and "modify ffn" in found.help


@pytest.mark.parametrize("name", ["dora", "pissa", "loha", "hira", "delora", "lora_xs"])
def test_others_of_the_library_merge_at_experts(name: str) -> None:
    method = unipelt.load(name)
    more = {"r": RANK} if any(p.name == "r" for p in method.params) else {}
    model = model_of()
    before = output(model)
    unipelt.apply(model, method(at=AT, **more))
    if name != "delora":
        assert torch.allclose(output(model), before, rtol=0, atol=1e-5)
    draw(model)
    found = output(model)
    assert not torch.allclose(found, before, rtol=0, atol=1e-4)
    unipelt.merge(model)
    assert torch.allclose(output(model), found, rtol=0, atol=1e-6)
