"""Structured updates: blocks, chunks, tensor trains, circulant matrices, rotations of the output."""

from __future__ import annotations

from typing import Any

import peft
import torch
from recorded import by_recording
from reference import Seen, beside_peft, by_formula, library, reference
from refs_kronecker import QV, theirs

Into = Any


def weight(s: Seen, update: torch.Tensor) -> torch.Tensor:
    """The output of the map with an update of its weight, [in, out]."""
    return s.x @ (s.W + update) + s.bias


# ---------------------------------------------------------------- blocks


@reference("gralora", by="peft", against="peft's GraLoRA")
def _() -> float:
    def into(name: str, state: dict[str, torch.Tensor]) -> torch.Tensor:
        return state[f"{theirs(name)}.gralora_{name[-1]}.default"]

    config = peft.GraloraConfig(r=4, alpha=6, gralora_k=2, target_modules=QV)
    return beside_peft(library("gralora", r=4, alpha=6.0, k=2), config, into)


@reference("gralora", by="formula", against="block (i, o) of the update is A_i[:, o] B_o[i], Jung et al. 2025")
def _() -> float:
    def formula(s: Seen) -> torch.Tensor:
        k, r = 4, 8
        rows = [[s.A[i][:, o * 2 : o * 2 + 2] @ s.B[o][i * 2 : i * 2 + 2] for o in range(k)] for i in range(k)]
        return weight(s, 16 / r * torch.cat([torch.cat(row, 1) for row in rows]))

    return by_formula(library("gralora", r=8, alpha=16.0, k=4), formula)


@reference("melora", by="formula", against="W + s blockdiag(A_i B_i), Ren et al. 2024")
def _() -> float:
    def formula(s: Seen) -> torch.Tensor:
        return weight(s, 8 * torch.block_diag(*[a @ b for a, b in zip(s.A, s.B)]))

    return by_formula(library("melora", r=2, n=4, alpha=16.0), formula)


@reference("bd_lora", by="peft", against="peft's BD-LoRA at all maps")
def _() -> float:
    columns, rows = ["q_proj", "k_proj", "v_proj", "up_proj", "gate_proj"], ["o_proj", "down_proj"]

    def into(name: str, state: dict[str, torch.Tensor]) -> torch.Tensor:
        found = state[f"{theirs(name)}.lora_{name[-1]}.default.weight"]
        if (name[-1] == "B") == (".columns." in name):  # stored as its blocks, one below the other
            return torch.stack([block.T for block in found.chunk(2)])
        return found.T

    config = peft.LoraConfig(
        r=4, lora_alpha=6, target_modules=[*columns, *rows],
        use_bdlora=peft.tuners.lora.config.BdLoraConfig(target_modules_bd_a=rows, target_modules_bd_b=columns, nblocks=2),
    )  # fmt: skip
    return beside_peft(library("bd_lora", r=4, alpha=6.0, n=2), config, into)


@reference("mora", by="formula", against="MoRA's sharing: repeat(M (sum of the chunks)), Jiang et al. 2024, equation 6")
def _() -> float:
    def formula(s: Seen) -> torch.Tensor:
        low = s.x.view(*s.x.shape[:-1], -1, 8).sum(-2)
        out = torch.einsum("...i,io->...o", low, s.M)
        return s.h + torch.cat([out] * (s.h.shape[-1] // 8), -1)

    return by_formula(library("mora", side=8), formula)


# ---------------------------------------------------------------- MiSS


def miss_source(name: str) -> tuple[str, Any]:
    return f"{theirs(name)}.miss_block.default", lambda t: t


def miss_into(name: str, state: dict[str, torch.Tensor]) -> torch.Tensor:
    return state[miss_source(name)[0]]


@reference("miss", by="recording", against="peft/llama-miss")
def _() -> float:
    return by_recording("peft/llama-miss", library("miss", r=4), miss_source)


@reference("miss", by="peft", against="peft's MiSS")
def _() -> float:
    return beside_peft(library("miss", r=8), peft.MissConfig(r=8, target_modules=QV), miss_into)


@reference("miss_mini", by="peft", against="peft's MiSS with init_weights='mini'")
def _() -> float:
    def into(name: str, state: dict[str, torch.Tensor]) -> torch.Tensor:
        return torch.ones(1) if name.endswith("copies") else miss_into(name, state)

    config = peft.MissConfig(r=8, mini_r=4, init_weights="mini", target_modules=QV)
    return beside_peft(library("miss_mini", r=8, m=4), config, into)


@reference("bat", by="recording", against="peft/llama-miss_bat")
def _() -> float:
    return by_recording("peft/llama-miss_bat", library("bat", r=4), miss_source)


@reference("bat", by="peft", against="peft's MiSS with init_weights='bat'")
def _() -> float:
    config = peft.MissConfig(r=4, init_weights="bat", target_modules=QV)
    return beside_peft(library("bat", r=4), config, miss_into, scale=0.1)


# ---------------------------------------------------------------- shared factors


@reference("pro_lora", by="formula", against="PRoLoRA's factors, chunk by chunk with rolled ranks, Wang et al. 2024")
def _() -> float:
    def formula(s: Seen) -> torch.Tensor:
        m, k = 4, 8
        A = torch.cat([s.A.roll(-i * (k // m), 1) for i in range(m)])
        B = torch.cat([s.B.roll(-i * (k // m), 0) for i in range(m)], 1)
        return weight(s, 2 * (s.A0 @ s.B0 + A @ B))

    return by_formula(library("pro_lora", r=12, u=4, m=4, alpha=24.0), formula)


@reference("qa_lora", by="formula", against="W + s repeat(A) B, the rows of a group alike, Xu et al. 2023")
def _() -> float:
    def formula(s: Seen) -> torch.Tensor:
        return weight(s, 4 * s.A.repeat_interleave(8, 0) @ s.B)

    return by_formula(library("qa_lora", r=4, alpha=16.0, g=8), formula)


@reference("loretta", by="formula", against="LoRA whose factors are contracted tensor trains, Yang et al. 2024")
def _() -> float:
    def train(*cores: torch.Tensor) -> torch.Tensor:
        return torch.einsum("as,bst,tcu,ur->abcr", *cores).flatten(0, 2)

    def formula(s: Seen) -> torch.Tensor:
        return weight(s, 4 * train(s.A1, s.A2, s.A3, s.A4) @ train(s.B1, s.B2, s.B3, s.B4).T)

    return by_formula(library("loretta", r=4, t=3, n1=4, n2=2, alpha=16.0), formula)


@reference("fact_tk", by="formula", against="W + s U (C x P) V, Jie and Deng 2023")
def _() -> float:
    def formula(s: Seen) -> torch.Tensor:
        d_in, d_out = s.W.shape
        core = torch.zeros(4, 4, dtype=s.C.dtype)
        for k in range(4):
            core += s.C[:, :, k] * s.P[k]
        return weight(s, 2 * s.U[:d_in] @ core @ s.V[:, :d_out])

    return by_formula(library("fact_tk", r=4, s=2.0), formula)


@reference(
    "quanta", by="formula", against="the contraction over pairs of axes in the order of the code, Chen et al. 2024"
)
def _() -> float:
    def circuit(s: Seen, S: torch.Tensor, T: torch.Tensor, U: torch.Tensor) -> torch.Tensor:
        a, b, c = 4, 2, 4
        out = T.shape[1] // a
        S, T, U = S.view(b, c, b, c), T.view(a, c, a, out), U.view(a, b, a, b)
        x = s.x.view(*s.x.shape[:-1], a, b, c)
        x = torch.einsum("...abc,bcde->...ade", x, S)
        x = torch.einsum("...abc,acde->...dbe", x, T)
        return torch.einsum("...abc,abde->...dec", x, U).flatten(-3)

    def formula(s: Seen) -> torch.Tensor:
        return s.h + circuit(s, s.S, s.t["T"], s.U) - circuit(s, s.S0, s.T0, s.U0)

    return by_formula(library("quanta", n1=4, n2=2), formula)


# ---------------------------------------------------------------- circulant matrices


@reference("c3a", by="recording", against="peft/llama-c3a, of which the gradients are known to be wrong")
def _() -> float:
    def source(name: str) -> tuple[str, Any]:
        return f"{theirs(name)}.c3a_kernel.default", lambda t: t.transpose(0, 1)

    return by_recording("peft/llama-c3a", library("c3a", b=8), source, trained=False)


@reference(
    "c3a", by="formula", against="circular convolutions block by block through Fourier transforms, Chen et al. 2024"
)
def _() -> float:
    def formula(s: Seen) -> torch.Tensor:
        x = torch.fft.fft(s.x.view(*s.x.shape[:-1], -1, 8))
        out = torch.fft.ifft(torch.einsum("...ib,iob->...ob", x, torch.fft.fft(s.w).conj())).real
        return s.h + out.flatten(-2) / s.x.shape[-1]

    return by_formula(library("c3a", b=8), formula)


@reference("surm_circulant", by="formula", against="W + s C, C[i, j] = c[(i - j) mod n], Sehanobish et al. 2024")
def _() -> float:
    def formula(s: Seen) -> torch.Tensor:
        d_in, d_out = s.W.shape
        update = torch.stack([s.c.roll(j)[:d_in] for j in range(d_out)], 1)
        return weight(s, 2 * update)

    return by_formula(library("surm_circulant", s=2.0), formula)


@reference("surm_toeplitz", by="formula", against="W + s T, T[i, j] = t[i - j], Sehanobish et al. 2024")
def _() -> float:
    def formula(s: Seen) -> torch.Tensor:
        update = torch.zeros_like(s.W)
        for i in range(s.W.shape[0]):
            for j in range(s.W.shape[1]):
                update[i, j] = s.c[i - j]  # those above the diagonal at the end
        return weight(s, 2 * update)

    return by_formula(library("surm_toeplitz", s=2.0), formula)


# ---------------------------------------------------------------- rotations of the output


def road_source(g: int, parts: int) -> Any:
    """peft keeps a vector for the whole output; its pieces are ours by group."""

    def source(name: str) -> tuple[str, Any]:
        own = name.rsplit(".", 1)[1]
        kind = "theta" if own.startswith("theta") else "alpha"
        if parts == 2:
            at = int(own.endswith("_s"))
            return f"{theirs(name)}.road_{kind}.default", lambda t: t.view(-1, 2, g)[:, at]
        return f"{theirs(name)}.road_{kind}.default", lambda t: t.view(-1, g)

    return source


def road_into(g: int, parts: int) -> Into:
    def into(name: str, state: dict[str, torch.Tensor]) -> torch.Tensor:
        where, view = road_source(g, parts)(name)
        return view(state[where])

    return into


@reference("road", by="recording", against="peft/llama-road")
def _() -> float:
    return by_recording("peft/llama-road", library("road", g=8), road_source(4, 1))


@reference("road_2", by="recording", against="peft/llama-road_2")
def _() -> float:
    return by_recording("peft/llama-road_2", library("road_2", g=8), road_source(8, 1))


@reference("road_4", by="recording", against="peft/llama-road_4")
def _() -> float:
    return by_recording("peft/llama-road_4", library("road_4", g=16), road_source(16, 2))


@reference("road", by="peft", against="peft's RoAd, variant road_1")
def _() -> float:
    return beside_peft(
        library("road", g=4), peft.RoadConfig(variant="road_1", group_size=4, target_modules=QV), road_into(2, 1)
    )


@reference("road_4", by="peft", against="peft's RoAd, variant road_4")
def _() -> float:
    config = peft.RoadConfig(variant="road_4", group_size=8, target_modules=QV)
    return beside_peft(library("road_4", g=8), config, road_into(8, 2))


# ---------------------------------------------------------------- others


@reference("rep_adapter", by="formula", against="the map of x + s (A x + a) B + s b, by groups, Luo et al. 2023")
def _() -> float:
    seen: dict[tuple[str, int | None], torch.Tensor] = {}

    def formula(s: Seen) -> torch.Tensor:
        same = seen.setdefault((s.row, s.layer), s.A)
        assert torch.equal(same, s.A)  # one for the maps that read the same
        low = s.x @ s.A + s.a
        x = s.x + 0.5 * (low @ torch.block_diag(*s.B) + s.b)
        return x @ s.W + s.bias

    return by_formula(library("rep_adapter", r=4, n=2, s=0.5), formula)


@reference("vb_lora", by="peft", against="peft's VB-LoRA")
def _() -> float:
    def into(name: str, state: dict[str, torch.Tensor]) -> torch.Tensor:
        if name.endswith("bank"):
            return next(t for n, t in state.items() if "vblora_vector_bank" in n)
        logits = state[f"{theirs(name)}.vblora_logits_{name[-1]}.default"]
        return logits.transpose(0, 1) if name.endswith("LA") else logits

    config = peft.VBLoRAConfig(r=3, topk=2, num_vectors=12, vector_length=8, target_modules=QV)
    return beside_peft(library("vb_lora", r=3, n=12, b=8, k=2), config, into)
