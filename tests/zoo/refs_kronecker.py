"""Updates and adapters made of Kronecker products."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import peft
import torch
from recorded import by_recording
from reference import Seen, beside_peft, by_formula, library, reference
from torch.nn import functional as F

import unipelt
from unipelt.language.loading import parse

QV = ["q_proj", "v_proj"]


def theirs(name: str) -> str:
    """The module of peft's at which a tensor of ours on Llama stands."""
    found = re.match(r"layers\.(\d+)\.(attn|ffn)\.(\w+)\.", name)
    assert found is not None, name
    front = {"attn": "self_attn", "ffn": "mlp"}[found[2]]
    return f"base_model.model.model.layers.{found[1]}.{front}.{found[3]}_proj"


def turned(t: torch.Tensor) -> torch.Tensor:
    return t.T


# ---------------------------------------------------------------- adapters


def compacter_source(name: str) -> tuple[str, Any]:
    """Where `adapters` keeps what a tensor of ours holds, on BERT."""
    found = re.match(r"encoder\.layer\.(\d+)\.(attn|ffn)\.\w+\.(\w+)$", name)
    if found is None:
        return "shared_parameters.ad.phm_rule", lambda t: t
    layer, site, tensor = found.groups()
    where = {"attn": "attention.output", "ffn": "output"}[site]
    kind = {"u": "W_left", "v": "W_right", "b": "b"}[tensor[0]]
    part = {"1": "adapter_down.0", "2": "adapter_up"}[tensor[1]]
    return f"encoder.layer.{layer}.{where}.adapters.ad.{part}.{kind}", lambda t: t


def without_norms(method: unipelt.Method) -> unipelt.Method:
    """`adapters` trains no norms with it."""
    return replace(method, trains=())


@reference("compacter", by="recording", against="adapters/bert-compacter, which trains no norms")
def _() -> float:
    return by_recording(
        "adapters/bert-compacter", without_norms(library("compacter", r=8, n=4, act="gelu")), compacter_source
    )


@reference(
    "compacter_pp", by="recording", against="adapters/bert-compacterpp, which reads the normed sum and trains no norms"
)
def _() -> float:
    elsewhere = parse("method m from compacter_pp(8, 2, act = gelu) { insert ffn.norm(h + residual) }")
    return by_recording("adapters/bert-compacterpp", without_norms(elsewhere), compacter_source)


def phm(z: torch.Tensor, rules: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
    return z @ sum(torch.kron(c, s) for c, s in zip(rules, factors))  # type: ignore[arg-type]


@reference("compacter", by="formula", against="h + W2 gelu(W1 h), each W a sum of Kronecker products, equation 5")
def _() -> float:
    def formula(s: Seen) -> torch.Tensor:
        low = phm(s.h, s.C, torch.einsum("nab,nbc->nac", s.u1, s.v1)) + s.b1
        return s.h + phm(F.gelu(low, approximate="tanh"), s.C, torch.einsum("nab,nbc->nac", s.u2, s.v2)) + s.b2

    return by_formula(library("compacter", r=8, n=4), formula)


@reference("phm_adapter", by="formula", against="h + W2 gelu(W1 h), each W a sum of Kronecker products of full factors")
def _() -> float:
    def formula(s: Seen) -> torch.Tensor:
        low = phm(s.h, s.C1, s.S1) + s.b1
        return s.h + phm(F.gelu(low, approximate="tanh"), s.C2, s.S2) + s.b2

    return by_formula(library("phm_adapter", r=8, n=4), formula)


# ---------------------------------------------------------------- updates of weights

LOKR = {"C": "w1", "A": "w2_b", "B": "w2_a"}
BOTH = {"C1": "w1_b", "C2": "w1_a", "A": "w2_b", "B": "w2_a"}


def lokr_source(parts: dict[str, str]) -> Any:
    def source(name: str) -> tuple[str, Any]:
        return f"{theirs(name)}.lokr_{parts[name.rsplit('.', 1)[1]]}.default", turned

    return source


def lokr_into(parts: dict[str, str]) -> Any:
    def into(name: str, state: dict[str, torch.Tensor]) -> torch.Tensor:
        return state[lokr_source(parts)(name)[0]].T

    return into


@reference("lokr", by="recording", against="peft/llama-lokr")
def _() -> float:
    return by_recording("peft/llama-lokr", library("lokr", r=2, alpha=4.0, f=4), lokr_source(LOKR))


@reference("lokr_both", by="recording", against="peft/llama-lokr_decompose_both")
def _() -> float:
    method = library("lokr_both", r=1, alpha=2.0, f=4, at="[attn.q, attn.v, ffn.up]")
    return by_recording("peft/llama-lokr_decompose_both", method, lokr_source(BOTH))


@reference("lokr", by="peft", against="peft's LoKr with its factors of 4")
def _() -> float:
    config = peft.LoKrConfig(r=3, alpha=6, decompose_factor=4, target_modules=["q_proj", "o_proj"])
    return beside_peft(library("lokr", r=3, alpha=6.0, f=4, at="[attn.q, attn.o]"), config, lokr_into(LOKR))


@reference("krona", by="formula", against="W + s A ⊗ B, Edalati et al. 2022")
def _() -> float:
    def formula(s: Seen) -> torch.Tensor:
        return s.x @ (s.W + 2 * torch.kron(s.A, s.B)) + s.bias

    return by_formula(library("krona", a=4, s=2.0), formula)


@reference("kadaptation", by="formula", against="W + sum of C ⊗ A B, He et al. 2023")
def _() -> float:
    def formula(s: Seen) -> torch.Tensor:
        update = sum(torch.kron(c, torch.outer(a[:, 0], b[0])) for c, a, b in zip(s.C, s.A, s.B))
        return s.x @ (s.W + update) + s.bias

    return by_formula(library("kadaptation", n=4), formula)
