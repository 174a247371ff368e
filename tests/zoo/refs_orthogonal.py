"""Methods that rotate a weight: against live peft, recordings and the published formulas."""

from __future__ import annotations

import math

import peft
import small
import torch
import unipelt
from recorded import by_recording
from refs_lora_shared_or_frozen import QV, theirs
from reference import Seen, apart, beside_peft, by_formula, library, reference
from refs_weight_transforms import qv


def skew(numbers: torch.Tensor, b: int) -> torch.Tensor:
    S = torch.zeros(*numbers.shape[:-1], b, b, dtype=numbers.dtype)
    places = [(i, j) for i in range(b) for j in range(i + 1, b)]
    for n, (i, j) in enumerate(places):
        S[..., i, j], S[..., j, i] = numbers[..., n], -numbers[..., n]
    return S


def rotation(numbers: torch.Tensor, b: int) -> torch.Tensor:
    """(I + S)(I - S)^-1"""
    eye = torch.eye(b, dtype=numbers.dtype)
    return (eye + skew(numbers, b)) @ torch.linalg.inv(eye - skew(numbers, b))


def diagonal(blocks: torch.Tensor) -> torch.Tensor:
    return torch.block_diag(*blocks)


def reflections(vectors: torch.Tensor) -> torch.Tensor:
    H = torch.eye(vectors.shape[0], dtype=vectors.dtype)
    for v in vectors.T:
        H = H @ (torch.eye(len(v), dtype=v.dtype) - 2 * torch.outer(v, v) / v.dot(v))
    return H


def oft_into(name: str, state: dict[str, torch.Tensor]) -> torch.Tensor:
    return state[f"{theirs(name)}.oft_R.default.weight"]


def oft_source(name: str) -> tuple[str, object]:
    return f"{theirs(name)}.oft_R.default.weight", lambda t: t


@reference("oft", by="peft", against="peft's OFT, exact")
def _() -> float:
    config = peft.OFTConfig(r=0, oft_block_size=8, use_cayley_neumann=False, target_modules=QV)
    return beside_peft(qv("oft", b=8), config, oft_into)


@reference("oft", by="recording", against="peft 0.21.2, llama-oft")
def _() -> float:
    return by_recording("peft/llama-oft", qv("oft", b=8), oft_source)


@reference("oft_shared", by="peft", against="peft's OFT with block_share")
def _() -> float:
    config = peft.OFTConfig(r=0, oft_block_size=8, use_cayley_neumann=False, block_share=True, target_modules=QV)
    return beside_peft(qv("oft_shared", b=8), config, lambda name, state: oft_into(name, state)[0])


@reference("coft", by="formula", against="S scaled back to eps / √blocks, Qiu et al. 2023 and their code")
def _() -> float:
    def formula(s: Seen) -> torch.Tensor:
        eps = 0.8 / len(s.S) ** 0.5
        within = torch.stack([n * min(1.0, eps / float(skew(n, 4).norm())) for n in s.S])
        return diagonal(rotation(within, 4)).T @ s.W

    return by_formula(library("coft", b=4, eps=0.8), formula, scale=0.12)


@reference(
    "coft_shared",
    by="recording",
    against="peft 0.21.2, llama-oft_coft_shared (outputs: the recorded numbers are scaled already)",
)
def _() -> float:
    source = lambda n: (f"{theirs(n)}.oft_R.default.weight", lambda t: t[0])  # noqa: E731
    return by_recording("peft/llama-oft_coft_shared", qv("coft_shared", b=8, eps=0.01), source)


@reference("oft_v2", by="peft", against="peft's OFT with Neumann's series, five terms")
def _() -> float:
    config = peft.OFTConfig(
        r=0, oft_block_size=8, use_cayley_neumann=True, num_cayley_neumann_terms=5, target_modules=QV
    )
    return beside_peft(library("oft_v2", b=8, at="[attn.q, attn.v]"), config, oft_into)


@reference("oft_v2", by="recording", against="peft 0.21.2, llama-oft_neumann")
def _() -> float:
    return by_recording("peft/llama-oft_neumann", library("oft_v2", b=8, at="[attn.q, attn.v]"), oft_source)


@reference("boft", by="formula", against="W P₁ᵀ B₁ P₁ P₂ᵀ B₂ P₂ s with peft's permutations")
def _() -> float:
    def formula(s: Seen) -> torch.Tensor:
        d, b = s.W.shape[0], 8
        order = peft.tuners.boft.layer.BOFTLayer.block_butterfly_perm(None, d, d // b // 2, b // 2, 1)
        P = torch.zeros(d, d, dtype=s.W.dtype)
        P[torch.arange(d), order] = 1
        first, second = (diagonal(rotation(n.reshape(-1, n.shape[-1]), b)) for n in (s.S1, s.S2.transpose(0, 1)))
        return (s.W.T @ first @ P.T @ second @ P).T * s.s

    return by_formula(qv("boft", b=8), formula)


_ONE_FACTOR = """
method boft_of_peft(b: int, at: sites) {
  modify at
  form {
    axis block = d_in / b
    R: [b, b] ~ zeros per block   s: [d_out] ~ ones
    delta = join(split(W.T, block) @ cayley((R - R.T) / 2), block).T * s
  }
  compose replace
}
"""


def boft_source(name: str) -> tuple[str, object]:
    last = name[-1]
    return f"{theirs(name)}.boft_{last}.default", (lambda t: t[0]) if last == "R" else (lambda t: t[:, 0])


@reference(
    "boft",
    by="recording",
    against="peft 0.21.2, llama-boft, where S2 is 0: peft computes one factor where it finds no CUDA",
)
def _() -> float:
    return by_recording(
        "peft/llama-boft", unipelt.parse(_ONE_FACTOR)(b=8, at="[attn.q.weight, attn.v.weight]"), boft_source
    )


@reference("boft", by="recording", against="peft 0.21.2, llama-boft_butterfly2, likewise")
def _() -> float:
    method = unipelt.parse(_ONE_FACTOR)(b=4, at="[attn.q.weight, ffn.down.weight]")
    return by_recording("peft/llama-boft_butterfly2", method, boft_source)


@reference("hra", by="recording", against="peft 0.21.2, llama-hra, the chain of all its vectors")
def _() -> float:
    text = """method hra_of_peft(r: int = 4) {
      modify attn.q.weight, attn.v.weight
      form { U: [d_in, r] ~ kaiming_uniform(sqrt(5))  delta = (W.T @ householder(U)).T }
      compose replace
    }"""
    return by_recording("peft/llama-hra", unipelt.parse(text), lambda n: (f"{theirs(n)}.hra_u.default", lambda t: t))


@reference("hra", by="peft", against="peft's HRA")
def _() -> float:
    config = peft.HRAConfig(r=4, target_modules=QV)

    def into(name: str, state: dict[str, torch.Tensor]) -> torch.Tensor:
        u = state[f"{theirs(name)}.hra_u.default"]
        return u[:, :2] if name[-1] == "U" else u[:, 2:].flip(-1)

    return beside_peft(qv("hra", r=4), config, into)


@reference("hra_gs", by="peft", against="peft's HRA with apply_GS")
def _() -> float:
    config = peft.HRAConfig(r=4, apply_GS=True, target_modules=QV)
    return beside_peft(qv("hra_gs", r=4), config, lambda name, state: state[f"{theirs(name)}.hra_u.default"])


@reference("hra_gs", by="recording", against="peft 0.21.2, llama-hra_gs")
def _() -> float:
    return by_recording("peft/llama-hra_gs", qv("hra_gs", r=4), lambda n: (f"{theirs(n)}.hra_u.default", lambda t: t))


@reference("hoft", by="formula", against="Q_in W Q_out, products of reflections")
def _() -> float:
    def formula(s: Seen) -> torch.Tensor:
        left = reflections(torch.cat([s.U, s.V.flip(-1)], -1))
        right = reflections(torch.cat([s.P, s.Q.flip(-1)], -1))
        return left @ s.W @ right

    return by_formula(library("hoft", r=4), formula)


@reference("gsoft", by="formula", against="(Pᵀ L P R)W with block-diagonal L and R, Gorbunov et al. 2024")
def _() -> float:
    def formula(s: Seen) -> torch.Tensor:
        d, b = s.W.shape[0], 8
        n = d // b
        P = torch.zeros(d, d, dtype=s.W.dtype)
        for q in range(d):
            P[q, (q % n) * b + q // n] = 1  # place by place, all blocks
        L, R = diagonal(rotation(s.L, b)).T, diagonal(rotation(s.R, b)).T
        return P.T @ L @ P @ R @ s.W

    return by_formula(library("gsoft", b=8), formula)


@reference("ether", by="formula", against="I - 2 u uᵀ in blocks, Bini et al. 2024")
def _() -> float:
    def formula(s: Seen) -> torch.Tensor:
        return diagonal(torch.stack([reflections(u) for u in s.u])) @ s.W

    return by_formula(library("ether"), formula)


@reference(
    "ether_plus",
    by="formula",
    against="(I - u uᵀ + v vᵀ) W (I - u uᵀ + v vᵀ) in blocks, Bini et al. 2024 and their code",
)
def _() -> float:
    def relaxed(u: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        eye = torch.eye(u.shape[1], dtype=u.dtype)
        return diagonal(torch.stack([eye - p @ p.T / p.pow(2).sum() + q @ q.T / q.pow(2).sum() for p, q in zip(u, v)]))

    return by_formula(library("ether_plus"), lambda s: relaxed(s.u1, s.v1) @ s.W @ relaxed(s.u2, s.v2))


@reference("shoft", by="formula", against="HOFT with diag(m) between the second product and W")
def _() -> float:
    def formula(s: Seen) -> torch.Tensor:
        left = reflections(torch.cat([s.U, s.V.flip(-1)], -1))
        right = reflections(torch.cat([s.P, s.Q.flip(-1)], -1))
        return left @ s.W @ torch.diag(s.m) @ right

    return by_formula(library("shoft", r=4), formula)


def along_a_tree(n: int, blocks: torch.Tensor) -> torch.Tensor:
    """The product of a matrix [n, n] for each pair: neighbours first, then those 2 apart, and so on; the pair is multiplied by a block."""
    product, used, step, left = torch.eye(n, dtype=blocks.dtype), 0, 1, n
    while left > 1:
        for pair in range(left // 2):
            G, at = torch.eye(n, dtype=blocks.dtype), [2 * pair * step, (2 * pair + 1) * step]
            G[torch.tensor(at)[:, None], torch.tensor(at)] = blocks[used]
            product, used = product @ G, used + 1
        step, left = 2 * step, (left + 1) // 2
    return product


@reference("goft", by="formula", against="the product of d - 1 rotations [d, d], times diag(s) W, Ma et al. 2024")
def _() -> float:
    def formula(s: Seen) -> torch.Tensor:
        angles = [math.pi * math.tanh(float(t)) for t in s.t["t"]]
        blocks = torch.tensor(
            [[[math.cos(a), math.sin(a)], [-math.sin(a), math.cos(a)]] for a in angles], dtype=s.W.dtype
        )
        return along_a_tree(len(s.W), blocks).T @ torch.diag(s.s) @ s.W

    return by_formula(library("goft", at="[attn.q.weight, ffn.down.weight]"), formula)


def penalty(model: torch.nn.Module) -> torch.Tensor:
    model.train()(**small.inputs(padded=False))
    return unipelt.penalties(model).detach()


@reference(
    "qgoft", by="formula", against="the product of d - 1 free matrices of pairs, and |M M^T - I|^2, Ma et al. 2024"
)
def _() -> float:
    method = library("qgoft", gamma=0.3, at="[attn.q.weight, ffn.down.weight]")
    worst = by_formula(method, lambda s: along_a_tree(len(s.W), s.M).T @ s.W)
    model = small.model("llama", dtype=torch.float64)
    unipelt.apply(model, method)
    assert float(penalty(model)) == 0, "it starts as the identity"
    small.randomise(model)
    found = [t for n, t in unipelt.state_dict(model).items() if n.endswith(".M")]
    off = sum(((M @ M.mT - torch.eye(2)) ** 2).sum() for M in found)
    return max(worst, apart(penalty(model), 0.3 / small.LAYERS * off))
