"""Bases whose maps keep codes and no `weight`, as GPTQ and AWQ have them: packed codes, zeros and scales by groups, from which a pass computes.

A stand-in has their buffers; `benchmarks/quantised.md` says what was tried with gptqmodel itself.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from names import name as named
from test_quantised import LORA, base, logits, steps, swapped
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

import unipelt
from unipelt.anatomy.find import find
from unipelt.anatomy.matrices import matrix

SIZE, EACH = 16, 8  # numbers of a group, 4-bit codes in an int32


class Codes(nn.Module):
    """``weight = scales · (codes − zeros)``, [d_in, d_out], with a group's scales for each number that enters."""

    def __init__(self, plain: nn.Linear):
        super().__init__()
        W = plain.weight.detach().T
        self.in_features, self.out_features = W.shape
        self.register_buffer("bias", None if plain.bias is None else plain.bias.detach())
        groups = W.reshape(-1, SIZE, W.shape[1])
        scales = ((groups.amax(1) - groups.amin(1)) / 15).clamp(min=1e-8)
        zeros, g = (-groups.amin(1) / scales).round().int(), torch.arange(len(W)) // SIZE
        codes = (W / scales[g] + zeros[g]).round().clamp(0, 15).int()
        shifts = 4 * torch.arange(EACH)
        self.register_buffer("qweight", (codes.reshape(-1, EACH, W.shape[1]) << shifts[:, None]).sum(1).int())
        self.register_buffer("qzeros", (zeros.reshape(len(zeros), -1, EACH) << shifts).sum(-1).int())
        self.register_buffer("scales", scales)
        self.register_buffer("g_idx", g)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shifts = 4 * torch.arange(EACH)
        codes = ((self.qweight[:, None] >> shifts[:, None]) & 15).reshape(self.in_features, -1)
        zeros = ((self.qzeros[..., None] >> shifts) & 15).reshape(len(self.scales), -1)
        out = x @ (self.scales[self.g_idx] * (codes - zeros[self.g_idx])).to(x.dtype)
        return out if self.bias is None else out + self.bias


def test_its_sites_are_those_of_the_base_without_codes() -> None:
    sites = find(swapped(Codes))
    assert {s.proof for s in sites.sites} == {"proved"}
    assert [(s.label, s.view, s.sizes) for s in sites.sites] == [(s.label, s.view, s.sizes) for s in find(base()).sites]


def test_an_adapter_acts_trains_is_saved_and_is_attached_again(tmp_path: Path) -> None:
    model = swapped(Codes)
    plain = logits(model)
    unipelt.apply(model, unipelt.parse(LORA), name="a")
    losses = steps(model, torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5))
    assert losses[-1] < losses[0]
    changed = logits(model)
    unipelt.save(model, tmp_path / "a", "a")
    unipelt.remove(model, "a")
    assert torch.equal(logits(model), plain)
    unipelt.attach(model, tmp_path / "a")
    assert torch.equal(logits(model), changed)
    with pytest.raises(unipelt.PeltError, match="E0565.*would be rounded to its codes"):
        unipelt.merge(model, "a")
    assert torch.equal(logits(model), changed)


REWRITTEN = """method m {
  use { modify attn.v.weight form { B: [d_in, d_out] ~ normal(0.02) delta = (z + B) * 1.1 } compose replace } as a
  use { modify attn.o form { t: [d_out] ~ normal(0.1) delta = t } compose add } as b }"""


def biased() -> nn.Module:
    model = LlamaForCausalLM(LlamaConfig(**base().config.to_dict() | {"attention_bias": True, "mlp_bias": True})).eval()
    for n, p in model.named_parameters():
        if n.endswith("bias"):
            nn.init.normal_(p, generator=torch.Generator().manual_seed(1))
    return model


@pytest.mark.parametrize("method", (LORA, REWRITTEN), ids=("lora", "weights and a bias"))
def test_it_is_merged_into_a_folder_of_the_numbers_that_the_codes_stand_for(tmp_path: Path, method: str) -> None:
    model = swapped(Codes, biased())
    unipelt.apply(model, unipelt.parse(method), name="a")
    steps(model, torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5))
    changed, state = logits(model), {n: t.clone() for n, t in model.state_dict().items()}
    unipelt.save_merged(model, tmp_path / "m", "a")
    after = model.state_dict()
    assert state.keys() == after.keys() and all(torch.equal(t, after[n]) for n, t in state.items())
    assert torch.equal(logits(model), changed) and not any(
        m._parameters for m in model.modules() if isinstance(m, Codes)
    )
    with open(tmp_path / "m" / "config.json") as f:
        assert "quantization_config" not in json.load(f)
    plain = type(model).from_pretrained(tmp_path / "m")
    assert plain.state_dict().keys() == biased().state_dict().keys()
    torch.testing.assert_close(logits(plain), changed, rtol=1e-4, atol=1e-5)


def test_a_plain_model_that_stores_its_weights_turned_over_gets_them_so(tmp_path: Path) -> None:
    """GPT-2's maps are [d_in, d_out], some of them square, and codes say nothing of that."""
    torch.manual_seed(0)
    plain = GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=64, n_layer=2, n_head=4, n_positions=32)).eval()
    model = copy.deepcopy(plain)
    for n, m in [*plain.named_modules()]:
        if type(m).__name__ == "Conv1D":
            linear = nn.Linear(*m.weight.shape)
            linear.weight.data, linear.bias.data = m.weight.T, m.bias
            host, _, name = n.rpartition(".")
            setattr(model.get_submodule(host), name, Codes(linear))
    unipelt.apply(model, unipelt.parse(LORA), name="a")
    steps(model, torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5))
    changed = logits(model.eval())
    unipelt.save_merged(model, tmp_path / "m", "a")
    torch.testing.assert_close(logits(GPT2LMHeadModel.from_pretrained(tmp_path / "m")), changed, rtol=1e-4, atol=1e-5)


def test_a_map_whose_values_its_calls_do_not_tell_is_refused(tmp_path: Path) -> None:
    class Curved(Codes):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x).relu()

    model = swapped(Curved)
    unipelt.apply(model, unipelt.parse(LORA), name="a")
    changed = logits(model)
    with pytest.raises(unipelt.PeltError, match="E0565.*Curved.*cannot be computed here"):
        unipelt.save_merged(model, tmp_path / "m", "a")
    assert torch.equal(logits(model), changed) and not (tmp_path / "m").exists()


class PackedForACpu(Codes):
    """gptqmodel's way: the first call in evaluation mode without gradients packs the codes for good, and no gradient flows through then."""

    linear_mode = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.linear_mode is None:
            self.linear_mode = "train" if self.training or x.requires_grad else "inference"
        return super().forward(x.detach() if self.linear_mode == "inference" else x)


def test_finding_sites_packs_no_codes_and_a_plan_names_those_that_are_packed() -> None:
    model = swapped(PackedForACpu)
    unipelt.apply(model.eval(), unipelt.parse(LORA), name="a")
    assert {m.linear_mode for m in model.modules() if isinstance(m, Codes)} == {None}
    losses = steps(model.train(), torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5))
    assert losses[-1] < losses[0]
    said = "packed for a CPU since a call in evaluation mode, and no gradient flows through"
    assert said not in str(unipelt.plan(model, unipelt.parse(LORA)))
    fresh = swapped(PackedForACpu).eval()
    logits(fresh)
    assert said in " ".join(str(unipelt.plan(fresh, unipelt.parse(LORA))).split())


@pytest.mark.parametrize("method", ("pissa", "dora"))
def test_what_reads_the_weight_reads_those_numbers(method: str) -> None:
    model, plain = swapped(Codes), base()
    for n, m in model.named_modules():
        if isinstance(m, Codes):
            plain.get_submodule(n).weight.data = matrix(m).T
    for m in (model, plain):
        unipelt.apply(m, unipelt.load(named(method)))
        assert steps(m, torch.optim.SGD([p for p in m.parameters() if p.requires_grad], lr=0.5))[-1] < 4
    torch.testing.assert_close(logits(model), logits(plain), rtol=1e-4, atol=1e-5)


def test_in_evaluation_a_map_is_asked_for_its_numbers_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = swapped(Codes)
    unipelt.apply(model, unipelt.load(named("dora")))
    logits(model.eval())
    asked: list[nn.Module] = []
    monkeypatch.setattr("unipelt.runtime.weights.matrix", lambda m: asked.append(m) or matrix(m))
    logits(model)
    assert not asked
    model.eval()
    logits(model)
    assert asked and len(asked) == len(set(asked))


def test_codes_are_not_trained_and_nothing_is_there_afterwards() -> None:
    model = swapped(Codes)
    plain = logits(model)
    with pytest.raises(unipelt.PeltError, match="E0510"):
        unipelt.apply(model, unipelt.parse("method m { train *.q_proj.weight }"))
    assert not unipelt.adapters(model) and torch.equal(logits(model), plain)
