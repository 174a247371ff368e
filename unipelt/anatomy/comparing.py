"""Tensors held against each other, up to rounding: equal, a multiple, affine in a nudge."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def within(t: torch.Tensor) -> float:
    """How far numbers of its type may differ by rounding, as a share of the largest."""
    return 1e-4 if t.dtype in (torch.float32, torch.float64) else 2e-2


def same(a: torch.Tensor | None, b: torch.Tensor | None) -> bool:
    """Equal up to rounding; whatever their shapes, as some modules join batch and tokens."""
    if a is None or b is None or a.numel() != b.numel() or not a.numel():
        return False
    x, y = a.reshape(-1).double(), b.reshape(-1).double().to(a.device)
    return bool((x - y).abs().max() <= within(a) * y.abs().max())


def proportional(a: torch.Tensor | None, b: torch.Tensor | None) -> bool:
    """Equal up to a factor, as a model may have one behind a norm."""
    if a is None or b is None or a.numel() != b.numel() or not rms(b):
        return False
    x, y = a.reshape(-1).double(), b.reshape(-1).double().to(a.device)
    return same(a, (y * float((x @ y) / (y @ y))).to(a.dtype))


def rms(t: torch.Tensor) -> float:
    """How large its numbers are."""
    return float(t.double().square().mean().sqrt())


def affine(zero: torch.Tensor, one: torch.Tensor, back: torch.Tensor) -> bool:
    """Whether two steps back undo twice one step forward, up to rounding. No activation does that, whether even, odd or linear
    on either side of where it stands."""
    a, b, c = (t.double() for t in (zero, one, back))
    return bool((c + 2 * b - 3 * a).abs().max() <= within(zero) * max(float(t.abs().max()) for t in (a, b, c)))


def rows_of(t: torch.Tensor) -> torch.Tensor:
    """[batch and tokens, features]."""
    return t.reshape(-1, t.shape[-1])


def by_head(far: torch.Tensor, heads: int) -> list[torch.Tensor]:
    """The largest of what is [batch, heads, tokens, d_head], for each head and number. Batch and heads may be one dimension, as
    the windows of a picture are examples. Where windows stand beside the heads: for every dimension that may be that of the
    heads, and of all of them where none is as large."""
    if far.dim() == 3 and len(far) % heads == 0:
        far = far.unflatten(0, (-1, heads))
    if far.dim() < 4:
        return [far.amax(-2)]
    own = [i for i in range(1, far.dim() - 2) if far.shape[i] == heads] if far.dim() > 4 else []
    return [far.amax([i for i in range(far.dim() - 1) if i != at]) for at in own] or [far.amax((0, -2))]


def multiple(x: torch.Tensor | None, of: torch.Tensor | None) -> bool:
    """Whether one tensor is another times a number (some models scale what a sublayer reads)."""
    if x is None or of is None or x.numel() != of.numel():
        return False
    a, b = x.reshape(-1).double(), of.reshape(-1).double()
    factor = (a @ b) / (b @ b)
    return bool(factor.abs() > 0) and same(factor * b, a)


def blended(h: torch.Tensor, r: torch.Tensor, on: torch.Tensor, factor: float | None, keeps: float | None) -> bool:
    """Whether what goes on is ``keeps`` · r + ``factor`` · h, where None stands for numbers that are the same for all tokens, one
    for each entry. (They are found by least squares, which few tokens would always fit: there must be more of them than unknowns.)"""
    if not h.numel() == r.numel() == on.numel():
        return False
    h, r, on = (t.reshape(-1, h.shape[-1]).double() for t in (h, r, on))
    known = sum((number * t for number, t in ((factor, h), (keeps, r)) if number is not None), torch.zeros_like(on))
    unknown = [t for number, t in ((factor, h), (keeps, r)) if number is None]
    if not unknown:
        return same(known.float(), on.float())
    if len(on) <= len(unknown) or torch.equal(on, r) or torch.equal(on, h):
        return False  # (one of them alone is no sum)
    given = torch.stack(unknown, -1).transpose(0, 1)  # [entries, tokens, unknown numbers]
    rest = (on - known).T[..., None]
    found = torch.linalg.pinv(given) @ rest
    return same((known + (given @ found)[..., 0].T).float(), on.float())


def totals(
    r: torch.Tensor, keeps: float | None, h: torch.Tensor, factor: float | None, beside: Sequence[tuple[float | None, torch.Tensor | None]]
) -> list[torch.Tensor]:  # fmt: skip
    """``keeps`` · r + ``factor`` · h (None: 1), alone and with what stands ``beside`` h, where there is something of its size."""
    alone = (1 if keeps is None else keeps) * r.reshape(h.shape) + (1 if factor is None else factor) * h
    more = [(1 if f is None else f) * t.reshape(h.shape) for f, t in beside if t is not None and t.numel() == h.numel()]
    return [alone, *([sum(more, alone)] if more else [])]
