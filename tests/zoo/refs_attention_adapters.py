"""References of the methods in which tokens read one another."""

from __future__ import annotations

import math

import small
import torch
from reference import Seen, apart, by_formula, library, reference, run
from torch import nn

EVERYONE = ("llama", "bert")  # a causal model, and one that is not


def real(s: Seen) -> torch.Tensor:
    return torch.ones(s.h.shape[:2]) if s.mask is None else s.mask[..., -s.h.shape[1] :]


def attended(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor, causal: bool) -> torch.Tensor:
    """Token by token: the softmax over those that it may see."""
    out = torch.zeros(*q.shape[:-1], v.shape[-1], dtype=q.dtype)
    for b in range(q.shape[0]):
        for t in range(q.shape[1]):
            seen = [i for i in range(q.shape[1]) if (i <= t or not causal) and (mask[b, i] or i == t)]
            scores = torch.stack([q[b, t] @ k[b, i] for i in seen]) / math.sqrt(q.shape[-1])
            out[b, t] = sum(p * v[b, i] for p, i in zip(scores.softmax(0), seen))
    return out


@reference("pals", by="formula", against="the published form, head by head and token by token")
def pals() -> float:
    def formula(causal: bool):
        def new(s: Seen) -> torch.Tensor:
            e = torch.einsum("btd,dr->btr", s.x, s.t["E"]) + s.t["b"]
            q, k, v = (e @ s.t[n] + s.t[f"b{n.lower()}"] for n in "QKV")
            heads = [
                attended(q[..., i : i + 2], k[..., i : i + 2], v[..., i : i + 2], real(s), causal) for i in (0, 2, 4)
            ]
            u = torch.cat(heads, -1) @ s.t["D"] + s.t["bd"]
            return s.h + 0.5 * u * (1 + torch.erf(u / math.sqrt(2)))

        return new

    return max(by_formula(library("pals", r=6, n=3), formula(kind == "llama"), kind) for kind in EVERYONE)


@reference("pals", by="formula", against="torch.nn.MultiheadAttention in the place of its heads")
def pals_by_torch() -> float:
    def new(s: Seen) -> torch.Tensor:
        e = s.x @ s.t["E"] + s.t["b"]
        m = nn.MultiheadAttention(6, 3, batch_first=True, dtype=torch.float64).requires_grad_(False)
        m.in_proj_weight.copy_(torch.cat([s.t[n].T for n in "QKV"]))
        m.in_proj_bias.copy_(torch.cat([s.t[f"b{n}"] for n in "qkv"]))
        m.out_proj.weight.copy_(torch.eye(6))
        m.out_proj.bias.zero_()
        a = m(e, e, e, key_padding_mask=real(s) == 0)[0]
        return s.h + nn.functional.gelu(a @ s.t["D"] + s.t["bd"])

    def at_real(s: Seen, t: torch.Tensor) -> torch.Tensor:
        return t[real(s).bool()]  # a pad sees itself here, and not there

    return max(apart(at_real(s, s.out), at_real(s, new(s))) for s in run(library("pals", r=6, n=3), "bert"))


@reference("tiny_attention_adapter", by="formula", against="the published form, token by token")
def tiny_attention_adapter() -> float:
    def formula(causal: bool):
        def new(s: Seen) -> torch.Tensor:
            y = normed[id(s)]
            centred = y - y.mean(-1, keepdim=True)
            y = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * s.t["w"] + s.t["b"]
            a = attended(y @ s.t["Q"], y @ s.t["K"], y @ s.t["V"], real(s), causal)
            return s.h + torch.einsum("btr,rd->btd", a, s.t["O"])

        return new

    normed: dict[int, torch.Tensor] = {}
    worst = 0.0
    for kind in EVERYONE:
        model = small.model(kind, dtype=torch.float64)
        norms = [
            layer.input_layernorm if kind == "llama" else layer.attention.output.LayerNorm
            for layer in (model.model.layers if kind == "llama" else model.encoder.layer)
        ]
        for s in run(library("tiny_attention_adapter"), kind):
            assert s.layer is not None
            with torch.no_grad():
                normed[id(s)] = norms[s.layer](s.h + s.residual)
            worst = max(worst, apart(s.out, formula(kind == "llama")(s)))
    return worst
