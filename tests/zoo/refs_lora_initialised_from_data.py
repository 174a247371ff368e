"""Methods whose start data decide, against live peft on the same data, else against torch.linalg and gradients of autograd."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import small
import torch
import unipelt
from calibrated import batches
from reference import Seen, apart, library, reference, run, watched
from refs_spectral import parts, plain


DATA = batches(14)


@lru_cache
def measured() -> tuple[dict[tuple[int, str], torch.Tensor], dict[tuple[int, str], torch.Tensor]]:
    """E[x xᵀ] over the real tokens, and the mean over the batches of the loss's gradient in W [d_in, d_out], by site, of a Llama in float64."""
    model = small.model("llama", dtype=torch.float64)
    maps = {
        (i, n): model.get_submodule(f"model.layers.{i}.self_attn.{n}_proj") for i in range(small.LAYERS) for n in "qkvo"
    }
    maps |= {
        (i, n): model.get_submodule(f"model.layers.{i}.mlp.{n}_proj")
        for i in range(small.LAYERS)
        for n in ("up", "gate", "down")
    }
    seen: dict[tuple[int, str], list[torch.Tensor]] = {at: [] for at in maps}
    for at, m in maps.items():
        m.register_forward_pre_hook(lambda m, args, at=at: seen[at].append(args[0].detach()))
    for batch in DATA:
        model(**batch).loss.backward()
    moments = {}
    for at, found in seen.items():
        real = torch.cat([x[b["attention_mask"].bool()] for x, b in zip(found, DATA, strict=True)])
        moments[at] = torch.einsum("ni,nj->ij", real, real) / len(real)
    return moments, {at: m.weight.grad.T / len(DATA) for at, m in maps.items()}


def at(s: Seen) -> tuple[int, str]:
    assert s.layer is not None
    return s.layer, s.site.rpartition(".")[2]


def started(name: str, **arguments: float) -> list[Seen]:
    """What each edit meets before anything is trained: the tensors as they start."""
    model = small.model("llama", dtype=torch.float64)
    unipelt.apply(model, library(name, **arguments), data=DATA)
    with watched(model) as found:
        small.output(model)
    return found


def beside_start(name: str, best: Callable[[Seen], torch.Tensor], scale: float, **arguments: float) -> float:
    """Of a method with A and B beside a base less what they start as: that is `best`, and the moved ones take its place."""
    worst = 0.0
    for s in run(library(name, **arguments), data=DATA):
        worst = max(worst, apart(scale * s.A0 @ s.B0, best(s)))
        worst = max(worst, apart(s.out, plain(s, scale * torch.einsum("ir,ro->io", s.A, s.B) - best(s))))
    return worst


def oriented(s: Seen, smallest: bool) -> torch.Tensor:
    """CorDA's part of W: that of W^T C, with C undone by solving."""
    moment = measured()[0][at(s)]
    C = moment + 0.01 * moment.diagonal().mean() * torch.eye(len(moment), dtype=moment.dtype)
    U, S, V = parts(s.W.T @ C)
    chosen = slice(-3, None) if smallest else slice(0, 3)
    return torch.linalg.solve(C, ((U[:, chosen] * S[chosen]) @ V[:, chosen].T).T)


@reference("corda", by="formula", against="the smallest part of SVD(W C) C^-1 by torch.linalg, Yang et al. 2024")
def _() -> float:
    return beside_start("corda", lambda s: oriented(s, True), 2.0, r=3, alpha=6.0)


@reference("corda_ipm", by="formula", against="the largest part of SVD(W C) C^-1 by torch.linalg, Yang et al. 2024")
def _() -> float:
    return beside_start("corda_ipm", lambda s: oriented(s, False), 2.0, r=3, alpha=6.0)


@reference("lora_null", by="formula", against="SVD(W P_null) by torch.linalg, Tang et al. 2025")
def _() -> float:
    def best(s: Seen) -> torch.Tensor:
        values, vectors = torch.linalg.eigh(measured()[0][at(s)])
        N = vectors[:, :3]  # the smallest
        return torch.einsum("ik,jk,jo->io", N, N, s.W)  # of rank 3 already

    return beside_start("lora_null", best, 1.0, r=3)


@reference("eva", by="formula", against="the top eigenvectors of E[x x^T] by torch.linalg.eigh, Paischer et al. 2024")
def _() -> float:
    worst = 0.0
    for s in started("eva", r=3, alpha=6.0):
        _, vectors = torch.linalg.eigh(measured()[0][at(s)])
        best = vectors[:, -3:].flip(1)
        worst = max(worst, apart(s.A * torch.sign((s.A * best).sum(0)), best), float(s.B.abs().max()))
    for s in run(library("eva", r=3, alpha=6.0), data=DATA):
        worst = max(worst, apart(s.out, plain(s, 2 * torch.einsum("ir,ro->io", s.A, s.B))))
    return worst


@reference("lora_ga", by="formula", against="singular vectors of autograd's mean gradient, Wang et al. 2024")
def _() -> float:
    def best(s: Seen) -> torch.Tensor:
        U, _, V = parts(measured()[1][at(s)])
        scale = s.W.shape[1] ** 0.25 / 4  # gamma is 16
        signs = torch.sign((s.A0 * U[:, :3]).sum(0)) * torch.sign(
            (s.B0.T * V[:, 3:6]).sum(0)
        )  # of vectors of other pairs
        return 6 / 3**0.5 * scale**2 * (U[:, :3] * signs) @ V[:, 3:6].T

    return beside_start("lora_ga", best, 6 / 3**0.5, r=3, alpha=6.0)


@reference("lora_one", by="formula", against="the best rank-r part of −gamma G of autograd, Zhang et al. 2025")
def _() -> float:
    worst = 0.0
    for s in started("lora_one", r=3, gamma=0.5):
        U, S, V = parts(measured()[1][at(s)])
        worst = max(
            worst,
            apart(s.A @ s.B, -0.5 * (U[:, :3] * S[:3]) @ V[:, :3].T),
            apart(s.A.norm(dim=0), (0.5 * S[:3]).sqrt()),
        )
        worst = max(worst, apart(s.out, plain(s, -0.5 * (U[:, :3] * S[:3]) @ V[:, :3].T)))
    return worst


@reference("lora_sb", by="formula", against="the best rank-r part of −lr sign(G) of autograd, Ponkshe et al. 2024")
def _() -> float:
    worst = 0.0
    for s in started("lora_sb", r=3, lr=0.5):
        U, S, V = parts(-0.5 * torch.sign(measured()[1][at(s)]))
        worst = max(worst, apart(s.A @ s.R @ s.B, (U[:, :3] * S[:3]) @ V[:, :3].T), apart(s.R, torch.diag(S[:3])))
    for s in run(library("lora_sb", r=3, lr=0.5), data=DATA):
        worst = max(worst, apart(s.out, plain(s, s.A @ s.R @ s.B)))
    return worst


@reference("gora", by="formula", against="−γ √(d/r) A A⁺ G by torch.linalg, He et al. 2025 and the size of their code")
def _() -> float:
    worst = 0.0
    for s in started("gora", r=3, alpha=6.0, gamma=0.5):
        G = measured()[1][at(s)]
        best = torch.linalg.lstsq(s.A, G).solution  # the nearest to G of all A B
        size = 0.5 * (len(s.W) / 3) ** 0.5
        worst = max(worst, apart(6 / 3**0.5 * s.A @ s.B, -size * s.A @ best))
    for s in run(library("gora", r=3, alpha=6.0), data=DATA):
        worst = max(worst, apart(s.out, plain(s, 6 / 3**0.5 * torch.einsum("ir,ro->io", s.A, s.B))))
    return worst


@reference(
    "rosa",
    by="formula",
    against="W x + s B A x + S x, the entries of S where sorting all of |G| says, Nikdan et al. 2024",
)
def _() -> float:
    worst = 0.0
    seen = run(library("rosa", r=3, alpha=6.0, one_in=20), data=DATA)
    for s in seen:
        if s.row == "low":
            worst = max(worst, apart(s.out, s.h + 2 * torch.einsum("bti,ir,ro->bto", s.x, s.A, s.B)))
            continue
        order = measured()[1][at(s)].flatten().abs().argsort(descending=True)[: s.W.numel() // 20]
        assert set(s.I.tolist()) == set(order.tolist())
        S = torch.zeros_like(s.W)
        for number, place in zip(s.c, s.I.tolist(), strict=True):
            S[place // S.shape[1], place % S.shape[1]] += number
        worst = max(worst, apart(s.out, s.h + s.x @ S))
    assert {s.row for s in seen} == {"low", "sparse"}
    return worst
