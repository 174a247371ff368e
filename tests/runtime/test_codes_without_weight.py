"""Bases whose maps keep codes and no `weight`, as GPTQ and AWQ have them: packed codes, zeros and scales by groups, from which a pass computes.

A stand-in has their buffers; `benchmarks/quantised.md` says what was tried with gptqmodel itself.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from names import name as named
from test_quantised import LORA, base, logits, steps, swapped
from torch import nn

import unipelt
from unipelt.anatomy.find import find

SIZE, EACH = 16, 8  # numbers of a group, 4-bit codes in an int32


class Codes(nn.Module):
    """``weight = scales · (codes − zeros)``, [d_in, d_out], with a group's scales for each number that enters."""

    def __init__(self, plain: nn.Linear):
        super().__init__()
        W = plain.weight.detach().T
        self.in_features, self.out_features, self.bias = *W.shape, None
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
        return x @ (self.scales[self.g_idx] * (codes - zeros[self.g_idx])).to(x.dtype)


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
    for act in (unipelt.merge, lambda model, name: unipelt.save_merged(model, tmp_path / "m", name)):
        with pytest.raises(unipelt.PeltError, match="E0565.*Codes.*cannot be computed here"):
            act(model, "a")
        assert torch.equal(logits(model), changed) and not (tmp_path / "m").exists()
    other = base()  # where the message says that it is to be merged
    unipelt.attach(other, tmp_path / "a")
    changed = logits(other)
    unipelt.merge(other, "a")
    torch.testing.assert_close(logits(other), changed, rtol=1e-4, atol=1e-5)


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


def test_what_reads_the_weight_is_refused_and_nothing_is_there_afterwards() -> None:
    model = swapped(Codes)
    plain = logits(model)
    for method, code in (
        (unipelt.load(named("pissa")), "E0565"),
        (unipelt.parse("method m { train *.q_proj.weight }"), "E0510"),
    ):
        with pytest.raises(unipelt.PeltError, match=code):
            unipelt.apply(model, method)
        assert not unipelt.adapters(model) and torch.equal(logits(model), plain)
