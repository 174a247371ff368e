"""References for `specs/mixtures.pelt`: the published formulas, token by token or example by example."""

from __future__ import annotations

import torch
from reference import Seen, by_formula, library, reference
from torch.nn import functional as F


@reference("molora", by="formula", against="sum over experts of softmax(W x)_i B_i A_i x")
def _molora() -> float:
    def formula(s: Seen) -> torch.Tensor:
        shares = torch.softmax(F.linear(s.x, s.w, s.c), -1)
        return s.h + 16 / 4 * torch.einsum("bte,bti,eir,ero->bto", shares, s.x, s.A, s.B)

    return by_formula(library("molora", n=3), formula, kind="gpt2")


@reference("mov", by="formula", against="h ∘ sum over experts of softmax(W h)_i l_i")
def _mov() -> float:
    def formula(s: Seen) -> torch.Tensor:
        shares = torch.softmax(F.linear(s.h, s.w, s.c), -1)
        return s.h * (shares @ s.l)

    return by_formula(library("mov", n=3), formula)


@reference("hydra_lora", by="formula", against="sum over heads of softmax(W x)_i B_i A x")
def _hydra() -> float:
    def formula(s: Seen) -> torch.Tensor:
        out, low, shares = s.h.clone(), s.x @ s.A, torch.softmax(F.linear(s.x, s.w), -1)
        for i, B in enumerate(s.B):
            out += 16 / 8 * shares[..., i : i + 1] * (low @ B)
        return out

    return by_formula(library("hydra_lora"), formula)


@reference("adamole", by="formula", against="experts above a threshold of the token, their excess made to sum to one")
def _adamole() -> float:
    served = []

    def formula(s: Seen) -> torch.Tensor:
        x, n = s.x.flatten(0, 1), len(s.w)
        shares = torch.softmax(F.linear(x, s.w), -1)
        threshold = torch.sigmoid(x @ s.t["t"] + s.c)[:, None] / n
        chosen = shares - threshold >= 0
        served.append(chosen.double().mean().item())
        weights = torch.where(chosen, shares - threshold, torch.zeros_like(shares))
        weights = weights / weights.sum(-1, keepdim=True)
        out = torch.zeros(len(x), s.h.shape[-1], dtype=x.dtype)
        for i in range(n):
            rows = torch.where(chosen[:, i])[0]
            out[rows] += weights[rows, i, None] * (x[rows] @ s.A[i] @ s.B[i])
        return s.h + 16 / 4 * out.view_as(s.h)

    error = by_formula(library("adamole", n=4), formula)
    assert 0.2 < sum(served) / len(served) < 0.9, "some experts serve, and some do not"
    return error


@reference("comol", by="formula", against="B (sum of softmax(W A x)_i M_i) A x, one core for each token")
def _comol() -> float:
    def formula(s: Seen) -> torch.Tensor:
        low = s.x @ s.A
        cores = torch.einsum("bte,erq->btrq", torch.softmax(F.linear(low, s.w), -1), s.M)
        return s.h + 16 / 8 * torch.einsum("btr,btrq,qo->bto", low, cores, s.B)

    return by_formula(library("comol"), formula)


@reference("mtl_lora", by="formula", against="sum over i of softmax(w_t / T)_i B_i Lambda_t A x, example by example")
def _mtl_lora() -> float:
    def formula(s: Seen) -> torch.Tensor:
        rows = []
        for x, h, task in zip(s.x, s.h, s.task.tolist()):
            transform = torch.eye(len(s.L[task]), dtype=h.dtype) + s.L[task]
            mixture = sum(share * B for share, B in zip(torch.softmax(s.w[:, task] / 0.1, 0), s.B))
            rows.append(h + 16 / 8 * (x @ s.A @ transform @ mixture))
        return torch.stack(rows)

    return by_formula(library("mtl_lora", tasks=4), formula)


@reference("mtlora", by="formula", against="s B A x of all tasks, and of the task itself in the last layers")
def _mtlora() -> float:
    layers: dict[str, set[int]] = {}

    def formula(s: Seen) -> torch.Tensor:
        layers.setdefault(s.row, set()).add(s.layer)
        if s.row == "shared":
            return s.h + 4 * F.linear(F.linear(s.x, s.A.T), s.B.T)
        own = [4 * (x @ s.A[t] @ s.B[t]) for x, t in zip(s.x, s.task.tolist())]
        return s.h + torch.stack(own)

    error = by_formula(library("mtlora", r=4, r_task=3), formula, kind="gpt2")
    assert layers == {"shared": {0, 1, 2}, "own": {2}}
    return error


def top_two(logits: torch.Tensor) -> torch.Tensor:
    """Softmax shares of the two largest of all, made to sum to one; the others none."""
    shares = torch.softmax(logits, -1)
    kept = shares.topk(2, -1)
    return torch.zeros_like(shares).scatter(-1, kept.indices, kept.values / kept.values.sum(-1, keepdim=True))


@reference("mola", by="formula", against="two of the layer's experts for each token, their shares renormalised")
def _mola() -> float:
    experts: dict[int | None, int] = {}

    def formula(s: Seen) -> torch.Tensor:
        experts[s.layer] = len(s.w)
        shares = top_two(F.linear(s.x, s.w))
        return s.h + 16 / 8 * torch.einsum("bte,bti,eir,ero->bto", shares, s.x, s.A, s.B)

    error = by_formula(library("mola"), formula)
    assert experts == {0: 2, 1: 4, 2: 6}, "of four quarters, the three layers are in the first, second and third"
    return error


@reference("malora", by="formula", against="two of the experts B_i P_i S x for each token")
def _malora() -> float:
    def formula(s: Seen) -> torch.Tensor:
        shares, inside = top_two(F.linear(s.x, s.w)), s.x @ s.S
        out = s.h.clone()
        for i in range(len(s.w)):
            out += 16 / 8 * shares[..., i, None] * F.linear(F.linear(inside, s.P[i].T), s.B[i].T)
        return out

    return by_formula(library("malora", n=4, m=6, r=3, alpha=6.0), formula)


@reference(
    "smear", by="formula", against="one adapter of the experts' averaged weights for each example, the router normed"
)
def _smear() -> float:
    def formula(s: Seen) -> torch.Tensor:
        router = F.layer_norm(s.w, s.w.shape[-1:], eps=1e-5)
        rows = []
        for h in s.h:
            route = F.layer_norm(h.mean(0), h.shape[-1:], s.g_n, s.b_n, 1e-5)
            shares = torch.softmax(router @ route + s.c, 0)
            down, bias, up = (torch.tensordot(shares, t, 1) for t in (s.down, s.b_down, s.up))
            rows.append(h + F.silu(h @ down + bias) @ up)
        return torch.stack(rows)

    return by_formula(library("smear", n=3, r=4), formula, kind="bert")


@reference(
    "moe_lora", by="formula", against="sum of omega_i B_i A_i x, omega the softmax of W times the task's embedding"
)
def _moe_lora() -> float:
    def formula(s: Seen) -> torch.Tensor:
        rows = []
        for x, h, task in zip(s.x, s.h, s.task.tolist()):
            shares = torch.softmax(F.linear(s.E[task], s.w), 0)
            update = sum(share * (A @ B) for share, A, B in zip(shares, s.A, s.B))
            assert s.A.shape[-1] == 2
            rows.append(h + 16 / 8 * (x @ update))
        return torch.stack(rows)

    return by_formula(library("moe_lora", n=4, r=8, t=5), formula)
