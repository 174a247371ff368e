"""Methods that start from the base's own weight, against live peft where it has them, else against torch.linalg."""

from __future__ import annotations

import re
from collections.abc import Callable

import peft
import small
import torch
from reference import Seen, apart, beside_peft, by_formula, library, reference, run

import unipelt
from unipelt.runtime.registry import record

QV = ["q_proj", "v_proj"]


def theirs(name: str) -> str:
    """The module of peft's at which a tensor of ours on Llama stands."""
    found = re.match(r"layers\.(\d+)\.attn\.(\w)", name)
    assert found is not None, name
    return f"base_model.model.model.layers.{found[1]}.self_attn.{found[2]}_proj"


def factors(name: str, state: dict[str, torch.Tensor]) -> torch.Tensor:
    """A and B of LoRA."""
    return state[f"{theirs(name)}.lora_{name[-1]}.default.weight"].T


def spread(model: torch.nn.Module) -> None:
    """Makes the four largest singular values of each map four times as large: where the fourth and the fifth are nearly equal, the space of the
    first four depends on rounding."""
    for name, p in model.named_parameters():
        if name.endswith(("q_proj.weight", "v_proj.weight")):
            U, S, Vh = torch.linalg.svd(p.detach().double(), full_matrices=False)
            S[:4] *= 4
            p.data.copy_(U * S @ Vh)


@reference("pissa", by="peft", against='LoraConfig(init_lora_weights="pissa")')
def _() -> float:
    config = peft.LoraConfig(r=4, lora_alpha=6, target_modules=QV, init_lora_weights="pissa")
    return beside_peft(library("pissa", r=4, alpha=6.0), config, factors, scale=0.05, alter=spread)


@reference("olora", by="peft", against='LoraConfig(init_lora_weights="olora")')
def _() -> float:
    config = peft.LoraConfig(r=4, lora_alpha=6, target_modules=QV, init_lora_weights="olora")
    return beside_peft(library("olora", r=4, alpha=6.0), config, factors)


@reference("mica", by="peft", against='LoraConfig(init_lora_weights="mica"), whose B is fixed')
def _() -> float:
    config = peft.LoraConfig(r=4, lora_alpha=6, target_modules=QV, init_lora_weights="mica")
    return beside_peft(library("mica", r=4, alpha=6.0), config, factors, frozen=True)


@reference("kasa", by="peft", against="LoraConfig(kasa_config=…)")
def _() -> float:
    def into(name: str, state: dict[str, torch.Tensor]) -> torch.Tensor:
        return state[f"{theirs(name)}.lora_diag.default"] if name.endswith(".s") else factors(name, state)

    config = peft.LoraConfig(r=4, lora_alpha=6, target_modules=QV, kasa_config=peft.tuners.lora.KasaConfig())
    return beside_peft(library("kasa", r=4, alpha=6.0), config, into, scale=0.05)


@reference("tiny_lora", by="peft", against="TinyLoraConfig, its projections from its buffers")
def _() -> float:
    def into(name: str, state: dict[str, torch.Tensor]) -> torch.Tensor:
        last = name[-1]
        if last == "t":
            found = [n for n in state if "tinylora_v" in n]
            at = re.search(r"layers\.(\d+)\.attn\.(\w)", name)
            assert at is not None
            return state[found[2 * int(at[1]) + "qv".index(at[2])]]
        found = state[f"{theirs(name)}.tinylora_{last}.default"]
        return found.mT  # theirs stand before columns

    config = peft.TinyLoraConfig(r=3, u=5, target_modules=QV)
    return beside_peft(library("tiny_lora", r=3, u=5), config, into, frozen=True)


@reference(
    "tiny_lora", by="formula", against="x W + x A (sum v_i P_i) B with A B the best of its rank, arXiv 2602.04118"
)
def _() -> float:
    worst = 0.0
    for s in run(library("tiny_lora", r=3, u=5)):
        U, S, V = parts(s.W)
        worst = max(worst, apart(s.A @ s.B, (U[:, :3] * S[:3]) @ V[:, :3].T), apart(s.A.norm(dim=0) ** 2, S[:3]))
        R = sum(s.t["t"][i] * s.P[i] for i in range(5))
        worst = max(worst, apart(s.out, plain(s, s.A @ R @ s.B)))
    return worst


@reference("psoft", by="peft", against="PsoftConfig")
def _() -> float:
    def into(name: str, state: dict[str, torch.Tensor]) -> torch.Tensor:
        if name[-1] in "ab":
            return state[f"{theirs(name)}.psoft_R.default.vector_{name[-1]}"]
        A = state[f"{theirs(name)}._psoft_A_cache.default"]
        signs = torch.sign(A.gather(1, A.abs().argmax(1, keepdim=True)))[:, 0]  # ours have a positive largest entry
        i, j = torch.triu_indices(4, 4, 1)
        return state[f"{theirs(name)}.psoft_R.default.weight"] * signs[i] * signs[j]

    config = peft.PsoftConfig(r=4, psoft_alpha=6, target_modules=QV)
    return beside_peft(library("psoft", r=4), config, into)


# ---------------------------------------------------------------- against torch.linalg


def parts(W: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    U, S, Vh = torch.linalg.svd(W, full_matrices=False)
    return U, S, Vh.T


def plain(s: Seen, change: torch.Tensor) -> torch.Tensor:
    """What a projection yields whose weight is changed."""
    return torch.einsum("bti,io->bto", s.x, s.W + change) + s.bias


def from_start(
    name: str, best: Callable[[torch.Tensor], torch.Tensor], scale: float = 1.0, **arguments: float
) -> float:
    """Of a method with factors A and B beside a base less what they start as: the tensors are started, so the product of the frozen
    ones is `best`, and with the trained ones moved the weight is W less that plus their product."""
    worst = 0.0
    for s in run(library(name, **arguments), "llama"):
        worst = max(worst, apart(scale * s.A0 @ s.B0, best(s.W)))
        worst = max(worst, apart(s.out, plain(s, scale * torch.einsum("ir,ro->io", s.A, s.B) - best(s.W))))
    return worst


@reference("milora", by="formula", against="the r smallest singular values by torch.linalg.svd, Wang et al. 2024")
def _() -> float:
    def best(W: torch.Tensor) -> torch.Tensor:
        U, S, V = parts(W)
        return sum(S[i] * torch.outer(U[:, i], V[:, i]) for i in range(len(S) - 3, len(S)))  # type: ignore[return-value]

    return from_start("milora", best, 2.0, r=3, alpha=6.0)


@reference("lora_xs", by="formula", against="x W + s x U_r S_r R V_r^T, Bałazy et al. 2024")
def _() -> float:
    def formula(s: Seen) -> torch.Tensor:
        U, S, V = parts(s.W)
        # which signs the vectors have R has to know: they are those of the stored ones
        signs = torch.sign((U[:, :3] * S[:3] * s.A).sum(0)), torch.sign((V[:, :3].T * s.B).sum(1))
        R = signs[0][:, None] * s.R * signs[1]
        return plain(s, 2 * (U[:, :3] * S[:3]) @ R @ V[:, :3].T)

    return by_formula(library("lora_xs", r=3, alpha=6.0), formula)


def spectral(s: Seen, values: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    U, S, V = parts(s.W)
    return torch.einsum("bti,ik,k,ok->bto", s.x, U, values(S), V) + s.bias


@reference("svft", by="formula", against="U (S + diag(m)) V^T by torch.linalg.svd, Lingam et al. 2024")
def _() -> float:
    return by_formula(library("svft"), lambda s: spectral(s, lambda S: S + s.m))


@reference("svdiff", by="formula", against="U relu(S + d) V^T, Han et al. 2023")
def _() -> float:
    return by_formula(library("svdiff"), lambda s: spectral(s, lambda S: torch.clamp(S + s.d, min=0)))


@reference("svft_random", by="formula", against="U (S + M) V^T with M by a loop over its places, Lingam et al. 2024")
def _() -> float:
    def formula(s: Seen) -> torch.Tensor:
        U, S, V = parts(s.W)
        n = len(S)
        signs = torch.sign((U * s.P).sum(0)), torch.sign((V * s.Q).sum(0))
        M = torch.diag(S)
        for at, value in zip(s.I.tolist(), s.m):
            M[at // n, at % n] += value * signs[0][at // n] * signs[1][at % n]
        return s.x @ (U @ M @ V.T) + s.bias

    return by_formula(library("svft_random", n=20), formula)


@reference("vectorfit", by="formula", against="singular values and biases, Hegde et al. 2025")
def _() -> float:
    def formula(s: Seen) -> torch.Tensor:
        U, S, V = parts(s.W)
        return s.h + torch.einsum("bti,ik,k,ok->bto", s.x, U, s.m, V)  # h has the trained bias already

    return by_formula(library("vectorfit"), formula, "bert")


def rotation(numbers: torch.Tensor, n: int) -> torch.Tensor:
    """Cayley's transform of a skew matrix, whose upper part is given row by row."""
    Q = torch.zeros(n, n, dtype=numbers.dtype)
    for value, (i, j) in zip(numbers, torch.triu_indices(n, n, 1).T.tolist()):
        Q[i, j], Q[j, i] = value, -value
    one = torch.eye(n, dtype=numbers.dtype)
    return (one + Q) @ torch.linalg.inv(one - Q)


@reference("spectral_adapter", by="formula", against="[U_1 + A, U_2] S [V_1 + B, V_2]^T, Zhang and Pilanci 2024")
def _() -> float:
    def formula(s: Seen) -> torch.Tensor:
        U, S, V = parts(s.W)
        signs = torch.sign((U[:, :3] * s.U1).sum(0))
        U, V = U.clone(), V.clone()
        U[:, :3] = U[:, :3] * signs + s.A
        V[:, :3] = V[:, :3] * signs + s.B
        return s.x @ (U * S) @ V.T + s.bias

    return by_formula(library("spectral_adapter", r=3), formula)


@reference("spectral_rotation", by="formula", against="[U_1 R_U, U_2] S [V_1 R_V, V_2]^T, Zhang and Pilanci 2024")
def _() -> float:
    def formula(s: Seen) -> torch.Tensor:
        U, S, V = parts(s.W)
        signs = torch.sign((U[:, :3] * s.U1).sum(0))
        U, V = U.clone(), V.clone()
        U[:, :3] = (U[:, :3] * signs) @ rotation(s.A, 3)
        V[:, :3] = (V[:, :3] * signs) @ rotation(s.B, 3)
        return s.x @ (U * S) @ V.T + s.bias

    return by_formula(library("spectral_rotation", r=3), formula)


def apart_values(model: torch.nn.Module) -> None:
    """Makes the singular values of each map evenly spaced: vectors of nearly equal ones depend on rounding."""
    for name, p in model.named_parameters():
        if name.endswith(("q_proj.weight", "v_proj.weight")):
            U, S, Vh = torch.linalg.svd(p.detach().double(), full_matrices=False)
            p.data.copy_(U * torch.linspace(3, 0.3, len(S), dtype=torch.float64) @ Vh)


@reference("osf", by="peft", against="OSFConfig")
def _() -> float:
    """The second step is taken with gradients that a hook of theirs projects."""

    def into(name: str, state: dict[str, torch.Tensor]) -> torch.Tensor:
        front = theirs(name)
        start = state[f"{front}._osf_V_low_init.default"]
        signs = torch.sign(start.gather(1, start.abs().argmax(1, keepdim=True)))[
            :, 0
        ]  # ours have a positive largest entry
        found = {"U": "V_low", "S": "S_low", "V": "U_low"}[name[-1]]
        value = state[f"{front}.osf_svd_params.default.{found}"]
        return value if name[-1] == "S" else (value.T if name[-1] == "U" else value) * signs

    config = peft.OSFConfig(target_modules=QV)
    return beside_peft(library("osf", at="[attn.q, attn.v]"), config, into, scale=0.05, alter=apart_values)


@reference(
    "lamda", by="formula", against="x W + x U_r (R V^T - S V_r^T), and no gradient of frozen rows, Azizi et al. 2024"
)
def _() -> float:
    def change(s: Seen) -> torch.Tensor:
        U, S, V = parts(s.W)
        signs = torch.sign((U[:, :4] * s.A).sum(0))
        return (U[:, :4] * signs) @ s.R @ s.B.T - (U[:, :4] * S[:4]) @ V[:, :4].T

    worst = by_formula(library("lamda", r=4), lambda s: plain(s, change(s)))
    model = small.model("llama", dtype=torch.float64)
    unipelt.apply(model, library("lamda", r=4, end=0.5))
    model.train()
    for progress, learn in ((0.0, 4), (0.3, 2), (0.5, 0), (0.9, 0)):
        unipelt.progress(model, progress)
        model.zero_grad()
        model(**small.inputs(padded=False))[0].square().sum().backward()
        for name, t in record(model, "default").trained().items():
            assert t.grad is not None
            moves = t.grad.abs().amax(0) > 0
            assert moves.tolist() == ([True] * learn + [False] * (4 - learn) if name.endswith(".B") else [True] * 4)
    return worst
