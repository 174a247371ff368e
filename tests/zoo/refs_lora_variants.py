"""Other functions in the place of LoRA's z A B."""

from __future__ import annotations

import peft
import torch
from refs_lora_shared_or_frozen import QV, theirs
from reference import Seen, beside_peft, by_formula, library, reference
from torch.nn import functional as F


@reference("mos_lora", by="formula", against="B W_mix A x, Wu et al. 2024 and their code")
def _() -> float:
    return by_formula(
        library("mos_lora", r=4), lambda s: s.h + 4 * F.linear(F.linear(F.linear(s.x, s.A.T), s.M.T), s.B.T)
    )


@reference("flora_core", by="formula", against="W + s G ×1 A ×2 B, Si et al. 2024 and their code")
def _() -> float:
    def formula(s: Seen) -> torch.Tensor:
        core = torch.tensordot(torch.tensordot(s.G, s.A.T, dims=[[0], [0]]), s.B, dims=[[0], [0]])
        return s.x @ (s.W + 4 * core) + s.bias

    return by_formula(library("flora_core", r_in=3, r_out=5), formula)


@reference("multi_lora", by="formula", against="Σ_i scaling_i B_i A_i x, Wang et al. 2023")
def _() -> float:
    def formula(s: Seen) -> torch.Tensor:
        out = s.h.clone()
        for A, B, c in zip(s.A, s.B, s.c):
            out += 4 * (s.x @ A @ B) @ torch.diag(c)
        return out

    return by_formula(library("multi_lora", r=4, n=3), formula)


@reference("lo_ran", by="formula", against="Sinter of LoRA's update, Li et al. 2024")
def _() -> float:
    def formula(s: Seen) -> torch.Tensor:
        y = s.x @ (s.A @ s.B)
        return s.h + 4 * y * (1 + 0.5 * torch.sin(3 * y))

    return by_formula(library("lo_ran", r=4, amplitude=0.5, frequency=3.0), formula)


@reference("sine_lora", by="formula", against="sin(ω A B) / √d_in, Ji et al. 2025 and their code")
def _() -> float:
    def formula(s: Seen) -> torch.Tensor:
        delta = torch.sin(3 * torch.einsum("ir,ro->io", s.A, s.B)) / s.x.shape[-1] ** 0.5
        return s.x @ (s.W + 4 * delta) + s.bias

    return by_formula(library("sine_lora", r=4, frequency=3.0), formula)


@reference("aurora_fixed", by="formula", against="the fixed activation of Dong et al. 2025")
def _() -> float:
    def formula(s: Seen) -> torch.Tensor:
        return s.h + 2 * torch.einsum(
            "btq,qo->bto", torch.tanh(torch.einsum("btp,pq->btq", (s.x @ s.A).tanh(), s.M)), s.B
        )

    return by_formula(library("aurora_fixed", r=2), formula)


def peanut_into(name: str, state: dict[str, torch.Tensor]) -> torch.Tensor:
    part = {"A": "A.default", "B": "B.default", "E": "encoders.default.0", "D": "decoders.default.0"}[name[-1]]
    return state[f"{theirs(name)}.peanut_{part}.weight"].T


@reference("neat", by="peft", against="peft's PEANuT with depth 0")
def _() -> float:
    config = peft.PeanutConfig(r=4, depth=0, scaling=2.0, target_modules=QV)
    return beside_peft(library("neat", r=4, s=2.0), config, peanut_into)


@reference("peanut", by="peft", against="peft's PEANuT with depth 1")
def _() -> float:
    config = peft.PeanutConfig(r=4, depth=1, act_fn="silu", target_modules=QV)
    return beside_peft(library("peanut", r=4, act="silu"), config, peanut_into)


@reference("hydra", by="formula", against="W x + Δ_par x + Δ_seq (W x), Kim et al. 2023 and their code")
def _() -> float:
    before = {}  # what the branch behind the map met: the map's own output

    def formula(s: Seen) -> torch.Tensor:
        if s.row.endswith("behind"):
            before[s.site, s.layer] = s.h
            return s.h + s.h @ s.A @ s.B
        assert torch.allclose(before[s.site, s.layer], s.x @ s.W + s.bias)
        return s.h + s.x @ s.A @ s.B

    return by_formula(library("hydra", r=4), formula)


@reference("lora_mini", by="formula", against="A_aux A B B_aux of Singh et al. 2024")
def _() -> float:
    return by_formula(library("lora_mini", r=4, inner=6), lambda s: s.h + 4 * (s.x @ (s.A @ s.C)) @ (s.D @ s.B))


@reference("disel", by="formula", against="W x + s B (sigmoid(W_g x + b_g) ⊙ A x), Zindari et al. 2026 and their code")
def _() -> float:
    def formula(s: Seen) -> torch.Tensor:
        gate = torch.sigmoid(torch.nn.functional.linear(s.x, s.G.T, s.b))
        return s.h + 3 * torch.einsum("btr,btd,dr,ro->bto", gate, s.x, s.A, s.B)

    return by_formula(library("disel", r=4, alpha=12.0), formula)
