"""Methods that make a new weight of the old one: against live peft, recordings and the published formulas."""

from __future__ import annotations

import peft
import torch
import unipelt
from recorded import by_recording
from refs_lora_shared_or_frozen import QV, theirs
from reference import Seen, beside_peft, by_formula, library, reference

AT = "[attn.q.weight, attn.v.weight]"


def plain(W: torch.Tensor) -> torch.Tensor:
    """Norms of the columns, by a loop."""
    return torch.stack([sum(W[i, j] ** 2 for i in range(W.shape[0])) ** 0.5 for j in range(W.shape[1])])


def qv(name: str, **arguments: object) -> object:
    return library(name, at=AT, **arguments)


def low_rank(name: str, state: dict[str, torch.Tensor]) -> torch.Tensor:
    part = {"A": "lora_A.default.weight", "B": "lora_B.default.weight", "m": "lora_magnitude_vector.default.weight"}
    t = state[f"{theirs(name)}.{part[name[-1]]}"]
    return t if name[-1] == "m" else t.T


@reference("dora", by="peft", against="peft's LoRA with use_dora")
def _() -> float:
    config = peft.LoraConfig(r=4, lora_alpha=8, use_dora=True, target_modules=QV)
    return beside_peft(qv("dora", r=4, alpha=8.0), config, low_rank)


@reference("dora", by="recording", against="peft 0.21.2, llama-dora")
def _() -> float:
    method = library("dora", r=4, alpha=8.0, at="[attn.q.weight, attn.v.weight, ffn.down.weight]")

    def source(name: str) -> tuple[str, object]:
        part = {"A": "lora_A.default.weight", "B": "lora_B.default.weight", "m": "lora_magnitude_vector.default.weight"}
        return f"{theirs(name)}.{part[name[-1]]}", (lambda t: t) if name[-1] == "m" else (lambda t: t.T)

    return by_recording("peft/llama-dora", method, source)


_ADAPTERS = """
method dora_of_adapters(r: int = 4) {
  modify attn.q, attn.v  insert parallel
  form {
    A: [d_in, r] ~ kaiming_uniform(sqrt(5))  B: [r, d_out] ~ zeros  m: [d_out] = norm(W, 0)
    delta = m / norm(W + A @ B, 0)
  }
  compose { out = delta * (h + 2 * x @ A @ B) }
}
"""


@reference(
    "dora",
    by="recording",
    against="adapters 1.3, bert-dora: there the bias is scaled too, and the norm is of the unscaled update",
)
def _() -> float:
    def source(name: str) -> tuple[str, object]:
        layer, part = name.split(".")[2], {"q": "query", "v": "value"}[name.split(".")[4]]
        front = f"encoder.layer.{layer}.attention.self.{part}.loras.ad"
        if name[-1] == "m":
            return f"{front}.m.weight", lambda t: t[:, 0]
        return f"{front}.lora_{name[-1]}", lambda t: t.T

    return by_recording("adapters/bert-dora", unipelt.parse(_ADAPTERS), source)


_DVORA_OF_ADAPTERS = """
method dvora_of_adapters(r: int = 6) {
  modify attn.q, attn.v  insert parallel
  form {
    frozen A: [d_in, r] ~ normal(0.02) per model  D: [r, r] ~ normal(0.02)
    frozen B: [r, d_out] ~ normal(0.02) per model  E: [d_out, d_out] ~ zeros
    m: [d_out] = norm(W, 0)
    U = A @ D @ B @ E
    delta = m / norm(W + U, 0)
  }
  compose { out = delta * (h + x @ U) }
}
"""


@reference(
    "dvora",
    by="recording",
    against="adapters 1.3, bert-dvora: there as in bert-dora, the vectors are matrices, and all maps share the frozen pair",
)
def _() -> float:
    def source(name: str) -> tuple[str, object]:
        last = name.rsplit(".", 1)[1]
        if last in "AB":
            return f"shared_parameters.ad.lora_{last}", lambda t: t.T
        layer, part = name.split(".")[2], {"q": "query", "v": "value"}[name.split(".")[4]]
        front = f"encoder.layer.{layer}.attention.self.{part}.loras.ad"
        if last == "m":
            return f"{front}.m.weight", lambda t: t[:, 0]
        return f"{front}.vera_{'D' if last == 'D' else 'B'}", lambda t: t.T

    return by_recording("adapters/bert-dvora", unipelt.parse(_DVORA_OF_ADAPTERS), source)


@reference("dvora", by="formula", against="m (W + Λ_b B Λ_d A) / |W + Λ_b B Λ_d A|, Liu et al. 2024")
def _() -> float:
    def formula(s: Seen) -> torch.Tensor:
        V = s.W + torch.einsum("ir,r,ro,o->io", s.A, s.d, s.B, s.b)
        return V * (s.m / plain(V))

    return by_formula(library("dvora", r=4), formula)


@reference("bora", by="formula", against="outputs and inputs normalised in turn, each with its magnitude")
def _() -> float:
    def formula(s: Seen) -> torch.Tensor:
        V = s.W + 8 * torch.einsum("ir,ro->io", s.A, s.B)
        C = V @ torch.diag(s.m_out / plain(V))
        return torch.diag(s.m_in / plain(C.T)) @ C

    return by_formula(library("bora", r=4), formula)


@reference("hira", by="peft", against="peft's HiRA")
def _() -> float:
    config = peft.HiraConfig(r=4, target_modules=QV)
    return beside_peft(qv("hira", r=4), config, lambda name, state: state[f"{theirs(name)}.hira_{name[-1]}.default"].T)


@reference("hira", by="recording", against="peft 0.21.2, llama-hira")
def _() -> float:
    return by_recording(
        "peft/llama-hira", qv("hira", r=4), lambda n: (f"{theirs(n)}.hira_{n[-1]}.default", lambda t: t.T)
    )


_HADAMARD = {"A1": "w1_b", "B1": "w1_a", "A2": "w2_b", "B2": "w2_a"}


@reference("loha", by="peft", against="peft's LoHa")
def _() -> float:
    config = peft.LoHaConfig(r=2, alpha=3, target_modules=QV)
    return beside_peft(
        qv("loha", r=2, alpha=3.0), config,
        lambda name, state: state[f"{theirs(name)}.hada_{_HADAMARD[name[-2:]]}.default"].T)  # fmt: skip


@reference("loha", by="recording", against="peft 0.21.2, llama-loha")
def _() -> float:
    return by_recording("peft/llama-loha", qv("loha", r=2, alpha=3.0),
                        lambda n: (f"{theirs(n)}.hada_{_HADAMARD[n[-2:]]}.default", lambda t: t.T))  # fmt: skip


@reference("hyperadapt", by="formula", against="diag(a) W diag(b)")
def _() -> float:
    return by_formula(library("hyperadapt"), lambda s: torch.diag(s.a) @ s.W @ torch.diag(s.b))


@reference("pre_diag", by="formula", against="diag(d) W + (alpha / r) A B")
def _() -> float:
    return by_formula(
        library("pre_diag", r=4), lambda s: torch.diag(s.d) @ s.W + 4 * torch.einsum("ir,ro->io", s.A, s.B)
    )


@reference("delora", by="peft", against="peft's DeLoRA")
def _() -> float:
    config = peft.DeloraConfig(r=4, delora_lambda=15, target_modules=QV)

    def into(name: str, state: dict[str, torch.Tensor]) -> torch.Tensor:
        part = {"A": "delora_A", "B": "delora_B", "s": "delora_lambda"}[name[-1]]
        t = state[f"{theirs(name)}.{part}.default"]
        return t.reshape(()) if name[-1] == "s" else t.T

    return beside_peft(qv("delora", r=4), config, into)


@reference("glora", by="formula", against="x (W + W A + B) + b + b D + E + C W, Chavan et al. 2023")
def _() -> float:
    def formula(s: Seen) -> torch.Tensor:
        W_new = s.W + s.W * torch.einsum("ir,ro->io", s.A1, s.A2) + torch.einsum("ir,ro->io", s.B1, s.B2)
        b_new = s.bias + s.bias * s.D + s.E + torch.einsum("i,io->o", s.C, s.W)
        return torch.einsum("bti,io->bto", s.x, W_new) + b_new

    return by_formula(library("glora"), formula, kind="gpt2")


def signed(state: dict[str, torch.Tensor], path: str) -> torch.Tensor:
    return torch.linalg.qr(state[f"{path}.deft_P.default"])[1].diagonal().sign()


@reference("deft", by="formula", against="W - W Q Qᵀ + (alpha / r) R Qᵀ with Q of P = Q T")
def _() -> float:
    def formula(s: Seen) -> torch.Tensor:
        Q, T = torch.linalg.qr(s.P)
        Q = Q * T.diagonal().sign()
        out = torch.eye(Q.shape[0], dtype=Q.dtype) - Q @ Q.T
        return s.W @ out + 4 * s.R @ Q.T

    return by_formula(library("deft", r=4), formula)


@reference("para", by="peft", against="peft's DEFT with para and its QR")
def _() -> float:
    config = peft.DeftConfig(r=4, para=True, decomposition_method="qr", target_modules=QV)
    return beside_peft(qv("para", r=4), config, lambda name, state: state[f"{theirs(name)}.deft_P.default"])


@reference(
    "genft",
    by="formula",
    against="their generator by torch's linear maps, W as [out, in], Xu et al. 2025 and their code",
)
def _genft() -> float:
    def formula(s: Seen) -> torch.Tensor:
        F = torch.nn.functional
        down = lambda x, share, c: F.gelu(F.linear(x, torch.cat([share.T, s.a.T], 0), c))  # noqa: E731
        up = lambda x, share, e: torch.tanh(F.linear(x, torch.cat([share.T, s.b.T], 1), e))  # noqa: E731
        rows = up(down(0.5 * s.W.T, s.A1, s.c1), s.B1, s.e1)
        return s.h + 2 * F.linear(s.x, up(down(rows.T, s.A2, s.c2), s.B2, s.e2))

    method = library("genft", k=5, own=2, s=2.0, ratio=0.5, inner="gelu", outer="tanh", at="attn.q")
    return by_formula(method, formula)
