"""Methods beside a quantised weight: against the quantiser and the steps of the paper, written by other code."""

from __future__ import annotations

from statistics import NormalDist

import torch
from reference import apart, library, reference, run
from refs_spectral import parts, plain
from unipelt.language.syntax.printer import to_text


quantile = NormalDist().inv_cdf


def normal_levels(bits: int, offset: float = 0.9677083) -> list[float]:
    """Quantiles of the normal distribution, one more above 0 than below, scaled to [-1, 1] and kept in float32: NF4 with four bits."""
    half = 2 ** (bits - 1)
    above = [quantile(offset - i * (offset - 0.5) / half) for i in range(half)]
    below = [-quantile(offset - i * (offset - 0.5) / (half - 1)) for i in range(half - 1)]
    largest = max(map(abs, above + below))
    return torch.tensor([v / largest for v in sorted([*below, 0.0, *above])]).tolist()


def dequantised(W: torch.Tensor, levels: list[float], block: int) -> torch.Tensor:
    """[d_in, d_out] as stored in blocks along the inputs of each output."""
    blocks = W.T.reshape(-1, block)
    stored = blocks.abs().amax(1, keepdim=True) * torch.tensor(levels, dtype=W.dtype)  # what each block can say
    which = (blocks[:, :, None] - stored[:, None]).abs().argmin(-1)
    return stored.gather(1, which).reshape(W.T.shape).T


def best(E: torch.Tensor, r: int) -> torch.Tensor:
    U, S, V = parts(E)
    return (U[:, :r] * S[:r]) @ V[:, :r].T


def alternating(W: torch.Tensor, levels: list[float], steps: int) -> tuple[torch.Tensor, torch.Tensor]:
    low = torch.zeros_like(W)
    for _ in range(steps):
        Q = dequantised(W - low, levels, 8)
        low = best(W - Q, 3)
    return Q, low


def beside(name: str, steps: int, levels: list[float]) -> float:
    worst = 0.0
    method = library(
        name,
        r=3,
        alpha=6.0,
        b=8,
        at="[attn.q, ffn.down]",
        n=len(levels),
        levels=f"values({', '.join(map(repr, levels))})",
    )
    start = run(method, scale=0.0)
    for s in start:
        Q, low = alternating(s.W, levels, steps)
        worst = max(worst, apart(2 * s.A @ s.B, low), apart(s.A.norm(dim=0), s.B.norm(dim=1)))
        worst = max(worst, apart(s.out, plain(s, Q - s.W + low)))
    for s in run(method)[::2]:
        Q, _ = alternating(s.W, levels, steps)
        worst = max(worst, apart(s.out, plain(s, Q - s.W + 2 * torch.einsum("ir,ro->io", s.A, s.B))))
    return worst


@reference(
    "loftq",
    by="formula",
    against="NF4 from the quantiles of the normal distribution, one step, Li et al. 2023 and peft's code",
)
def _() -> float:
    levels = normal_levels(4)
    written = [float(to_text(a.value)) for a in library("loftq").params[4].default.args]  # type: ignore[union-attr]
    assert max(abs(a - b) for a, b in zip(written, levels, strict=True)) < 1e-6
    return beside("loftq", 1, levels)


@reference(
    "loftq_5", by="formula", against="NF2 from the quantiles of the normal distribution, five steps, Li et al. 2023"
)
def _() -> float:
    return beside("loftq_5", 5, normal_levels(2))
