"""LoRA with frozen or shared factors."""

from __future__ import annotations

import math
import re
from typing import Any

import peft
import torch
from recorded import by_recording, variant
from reference import Seen, beside_peft, by_formula, library, reference, run
from torch import nn

QV = ["q_proj", "v_proj"]


def theirs(name: str) -> str:
    """The module of peft's at which a tensor of ours on Llama stands."""
    found = re.match(r"layers\.(\d+)\.(attn|ffn)\.(\w+)", name)
    assert found is not None, name
    part = {"attn": "self_attn", "ffn": "mlp"}[found[2]]
    return f"base_model.model.model.layers.{found[1]}.{part}.{found[3]}_proj"


@reference("lora_fa", by="peft", against="LoRA with A not trained, as peft's LoRA-FA optimiser has it")
def _() -> float:
    def into(name: str, state: dict[str, torch.Tensor]) -> torch.Tensor:
        return state[f"{theirs(name)}.lora_{name[-1]}.default.weight"].T

    def freeze(model: nn.Module) -> None:
        for n, p in model.named_parameters():
            if "lora_A" in n:
                p.requires_grad_(False)

    return beside_peft(library("lora_fa", r=4, alpha=6.0), peft.LoraConfig(r=4, lora_alpha=6, target_modules=QV), into,
                       frozen=True, prepare=freeze)  # fmt: skip


@reference("lori", by="formula", against="W + s A (B ⊙ M), Zhang et al. 2025")
def _() -> float:
    def formula(s: Seen) -> torch.Tensor:
        kept = torch.where(s.t["M"] < 0.1, s.B, torch.zeros_like(s.B))
        return s.x @ (s.W + 2 * torch.einsum("ir,ro->io", s.A, kept)) + s.bias

    return by_formula(library("lori", r=8, alpha=16.0), formula)


def vera_source(name: str) -> str:
    last = name.rsplit(".", 1)[1]
    if last in "AB":
        return f"base_model.model.model.layers.0.self_attn.q_proj.vera_{last}.default"
    return f"{theirs(name)}.vera_lambda_{last}.default"


@reference("vera", by="peft", against="peft's VeRA at q and v of a Llama with grouped queries")
def _() -> float:
    def into(name: str, state: dict[str, torch.Tensor]) -> torch.Tensor:
        found = state[vera_source(name)]
        return found.T if name[-1] in "AB" else found

    config = peft.VeraConfig(r=6, d_initial=0.1, target_modules=QV)
    return beside_peft(library("vera", r=6), config, into, frozen=True)


@reference("vera", by="recording", against="peft/llama-vera")
def _() -> float:
    def source(name: str) -> tuple[str, Any]:
        return vera_source(name), (lambda t: t.T) if name[-1] in "AB" else (lambda t: t)

    return by_recording("peft/llama-vera", library("vera", r=8), source)


@reference("vera", by="recording", against="adapters/bert-vera, whose vectors are full matrices: a variant spec")
def _() -> float:
    def source(name: str) -> tuple[str, Any]:
        *front, last = name.split(".")
        if last in "AB":
            return f"shared_parameters.ad.lora_{last}", lambda t: t.T
        part = {"q": "query", "v": "value"}[front[-2]]
        return (
            f"encoder.layer.{front[2]}.attention.self.{part}.loras.ad.vera_{'D' if last == 'D' else 'B'}",
            lambda t: t.T,
        )

    return by_recording("adapters/bert-vera", variant("adapters", "vera_full", r=6, alpha=6.0), source)


@reference("nola", by="formula", against="Koohpayegani et al. 2024, equation 3, with their code's scales")
def _() -> float:
    def formula(s: Seen) -> torch.Tensor:
        i, o = s.W.shape
        A, B = s.A0.clone(), s.W.new_zeros(4, o)
        for n in range(5):
            A += s.a[n] * s.t["A"][n][:i] / math.sqrt(5)
            B += s.b[n] * s.t["B"][n][:, :o] / math.sqrt(5)
        return s.h + 0.5 * (s.x @ A) @ B

    return by_formula(library("nola", r=4, n=5, alpha=2.0), formula)


@reference("tied_lora", by="formula", against="W x + (α/r) Λv B Λu A x, Renduchintala et al. 2024")
def _() -> float:
    def formula(s: Seen) -> torch.Tensor:
        A, B = s.A.T, s.B.T  # as printed, columns are tokens
        delta = torch.diag(s.d_v) @ B @ torch.diag(s.d_u) @ A
        return s.h + 3 * (delta @ s.x.transpose(-1, -2)).transpose(-1, -2)

    seen = run(library("tied_lora", r=4))
    assert len({s.A.data_ptr() for s in seen}) == 1 and len({s.B.data_ptr() for s in seen}) == 3
    assert len({s.d_u.data_ptr() for s in seen}) == 3 and len({s.d_v.data_ptr() for s in seen}) == 9
    return by_formula(library("tied_lora", r=4, alpha=12.0), formula)


@reference("share_lora", by="formula", against="W + (α/r) A B with A (B) of all layers, Song et al. 2024")
def _() -> float:
    owners = {("kind", "site"): (2, 6), ("kind", "kind"): (2, 2), ("site", "kind"): (6, 2)}
    for (a, b), wanted in owners.items():
        seen = run(library("share_lora", r=4, a=a, b=b))
        assert (len({s.A.data_ptr() for s in seen}), len({s.B.data_ptr() for s in seen})) == wanted
    return by_formula(library("share_lora", r=4), lambda s: s.x @ (s.W + 4 * s.A @ s.B) + s.bias)


@reference("ra_sa", by="formula", against="[B_i B_s] D_i [A_i; A_s] x, He et al. 2025 and their code")
def _() -> float:
    def formula(s: Seen) -> torch.Tensor:
        A, B = torch.cat([s.A, s.A_s], 1), torch.cat([s.B, s.B_s], 0)
        assert A.shape[1] == 4 - 1 + 3  # three layers
        return s.h + torch.einsum("bti,ir,r,ro->bto", s.x, A, torch.cat([s.d, s.d_s]), B)

    return by_formula(library("ra_sa", r=4, k=1), formula)


@reference("bs_lora", by="formula", against="the slice form of Zhou et al. 2025")
def _() -> float:
    def formula(s: Seen) -> torch.Tensor:
        i, o = s.W.shape
        down = torch.cat([s.A, s.A_l[:i], s.A_m[:i]], 1)
        up = torch.cat([s.B, s.B_l[:, :o], s.B_m[:, :o]], 0)
        return s.h + 4 * s.x @ down @ up

    return by_formula(library("bs_lora", r=4, within=3, across=2), formula)


@reference("dense_lora", by="formula", against="decoder(M encoder(x)) of Mu et al. 2025 and their code")
def _() -> float:
    def formula(s: Seen) -> torch.Tensor:
        gelu = torch.nn.functional.gelu
        return s.h + 2 * gelu(gelu(s.x @ s.A) @ (s.M @ s.B))

    return by_formula(library("dense_lora", r=4, alpha=8.0), formula)


@reference("lotr", by="formula", against="W + (s/r) A G B, Bershatsky et al. 2024 and their code")
def _() -> float:
    def formula(s: Seen) -> torch.Tensor:
        return s.h + 0.75 * torch.einsum("bti,ip,pq,qo->bto", s.x, s.A, s.G, s.B[:, : s.h.shape[-1]])

    return by_formula(library("lotr", r=4, s=3.0), formula)


@reference("fact_tt", by="formula", against="W + s U Σ V, Jie and Deng 2023 and their code")
def _() -> float:
    def formula(s: Seen) -> torch.Tensor:
        return s.x @ (s.W + 2 * s.U @ s.S @ s.V[:, : s.W.shape[1]]) + s.bias

    return by_formula(library("fact_tt", r=4, s=2.0), formula)


@reference("lorta", by="formula", against="A diag(c_head c_map c_layer) B for each head, Hounie et al. 2024")
def _() -> float:
    def formula(s: Seen) -> torch.Tensor:
        heads = [4 * s.A @ torch.diag(c * s.c_m * s.c_l) @ s.B for c in s.c_h]
        return s.x @ (s.W + torch.cat(heads, 1)) + s.bias

    found = by_formula(library("lorta", r=4), formula, "bert")
    seen = run(library("lorta", r=4), "bert")
    assert [len({s.t[n].data_ptr() for s in seen}) for n in ("A", "B", "c_h", "c_m", "c_l")] == [1, 1, 1, 4, 3]
    return found


def _randlora(sources: dict[str, str], wide: int) -> Any:
    """Ours from peft's: the frozen pair without its extra axes, and 0 where theirs is not so wide."""

    def view(last: str, t: torch.Tensor) -> torch.Tensor:
        if last not in "AB":
            return t.T if last == "l" else t
        flat = t[:, 0] if last == "A" else t.flatten(1)
        rows, columns = (flat.shape[0], wide) if last == "A" else (wide, 4 * -(-wide // 4))
        return torch.nn.functional.pad(flat, (0, columns - flat.shape[1], 0, rows - flat.shape[0]))

    def source(name: str) -> tuple[str, Any]:
        last = name.rsplit(".", 1)[1]
        where = sources["first"] if last in "AB" else theirs(name)
        own = {"A": "A", "B": "B", "l": "lambda", "c": "gamma"}[last]
        return f"{where}.randlora_{own}.default", lambda t: view(last, t)

    return source


@reference("randlora", by="peft", against="peft's RandLoRA at maps that widen, narrow and do neither")
def _() -> float:
    source = _randlora({"first": "base_model.model.model.layers.0.self_attn.q_proj"}, 48)

    def into(name: str, state: dict[str, torch.Tensor]) -> torch.Tensor:
        recorded, view = source(name)
        return view(state[recorded])

    config = peft.RandLoraConfig(r=4, randlora_alpha=6, target_modules=[*QV, "up_proj", "down_proj"])
    method = library("randlora", r=4, alpha=6.0, at="[attn.q, attn.v, ffn.up, ffn.down]", wide=48)
    return beside_peft(method, config, into, frozen=True)


@reference("randlora", by="recording", against="peft/llama-randlora")
def _() -> float:
    source = _randlora({"first": "base_model.model.model.layers.0.self_attn.q_proj"}, 32)
    return by_recording("peft/llama-randlora", library("randlora", r=4, alpha=8.0), source)


@reference("uni_lora", by="peft", against="peft's Uni-LoRA, every entry read as often")
def _() -> float:
    def into(name: str, state: dict[str, torch.Tensor]) -> torch.Tensor:
        last = name.rsplit(".", 1)[1]
        if last == "t":
            return next(v for n, v in state.items() if "unilora_theta_d" in n)
        return state[f"{theirs(name)}.unilora_indices_{'A' if last == 'I' else 'B'}.default"].T

    config = peft.UniLoraConfig(r=4, theta_d_length=64, target_modules=["q_proj", "o_proj"])
    method = library("uni_lora", r=4, n=64, at="[attn.q, attn.o]")  # 3 * 2 * 4 * 64 / 64 reads of each
    return beside_peft(method, config, into, frozen=True)
