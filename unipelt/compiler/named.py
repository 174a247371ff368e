"""Tensors with named axes: the data's dimensions are the axes, in `axis_order`, then the sizes.

All of the language's shape rules live here once: axes unite by name, head refines group, sizes align at the right,
``@`` contracts a's last size with b's first.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Union

import torch

from ..language.sites import axis_order

Number = Union[int, float, bool]
Value = Union["Named", Number, str]


class Named:
    """``data`` with the names of its leading dimensions; what follows them are the sizes."""

    __slots__ = ("axes", "data")

    def __init__(self, data: torch.Tensor, axes: tuple[str, ...] = ()):
        self.data = data
        self.axes = axes

    @property
    def sizes(self) -> tuple[int, ...]:
        return tuple(self.data.shape[len(self.axes) :])

    def __repr__(self) -> str:
        return f"Named({', '.join(self.axes)}; {list(self.sizes)})"


def ordered(axes: Sequence[str]) -> tuple[str, ...]:
    return tuple(sorted(set(axes), key=axis_order))


def refine(t: Named, axes: tuple[str, ...], heads: int | None) -> Named:
    """A group operand repeated to heads, where ``axes`` has head instead."""
    if "group" not in t.axes or "head" not in axes:
        return t
    dim = t.axes.index("group")
    groups = t.data.shape[dim]
    data = t.data if heads in (None, groups) else t.data.repeat_interleave(heads // groups, dim)  # type: ignore[operator]
    return Named(data, tuple("head" if a == "group" else a for a in t.axes))


def together(*values: Named) -> tuple[tuple[str, ...], list[Named]]:
    """The axes of all operands, and the operands themselves; where head and group meet, those of groups are repeated."""
    found: set[str] = set()
    heads: int | None = None
    for v in values:
        found |= set(v.axes)
        if heads is None and "head" in v.axes:
            heads = v.data.shape[v.axes.index("head")]
    axes = ordered(tuple(found - {"group"} if "head" in found else found))
    return axes, [refine(v, axes, heads) for v in values]


def spread(t: Named, axes: tuple[str, ...], n_sizes: int) -> torch.Tensor:
    """The data with a dimension for each of ``axes`` and ``n_sizes`` sizes, 1 where it has none."""
    data, have = t.data, t.axes
    if have == axes and data.dim() - len(have) == n_sizes:
        return data
    shape: list[int] = []
    position = 0
    for a in axes:
        if position < len(have) and have[position] == a:
            shape.append(data.shape[position])
            position += 1
        else:
            shape.append(1)
    own = list(data.shape[len(have) :])
    return data.reshape(shape + [1] * (n_sizes - len(own)) + own)


def elementwise(op, a: Value, b: Value) -> Value:
    """``op`` over aligned operands; plain numbers stay plain."""
    if not isinstance(a, Named) and not isinstance(b, Named):
        return op(a, b)
    if not isinstance(a, Named):
        return Named(op(a, b.data), b.axes)  # type: ignore[union-attr]
    if not isinstance(b, Named):
        return Named(op(a.data, b), a.axes)
    axes, (a, b) = together(a, b)
    n = max(a.data.dim() - len(a.axes), b.data.dim() - len(b.axes))
    return Named(op(spread(a, axes, n), spread(b, axes, n)), axes)


def matmul(a: Named, b: Named) -> Named:
    """``a @ b`` with at most two sizes on each side; leading axes are batched."""
    p, q = a.data.dim() - len(a.axes), b.data.dim() - len(b.axes)
    if not b.axes and q <= 2:
        return Named(torch.matmul(a.data, b.data), a.axes)  # the common case: one weight for every position
    axes, (a, b) = together(a, b)
    if p > 2 or q > 2:
        return _einsum(a, b, axes, p, q)
    rows = p == 1 and axes and axes[-1] == "token" and "token" not in b.axes and "token" in a.axes
    lead = axes[:-1] if rows else axes
    left = spread(a, axes, p) if rows or p == 2 else spread(a, axes, p).unsqueeze(-2)
    right = spread(b, lead, q)
    right = right if q == 2 else right.unsqueeze(-1)
    out = torch.matmul(left, right)
    if q == 1:
        out = out.squeeze(-1)
    if p == 1 and not rows:
        out = out.squeeze(-1 if q == 1 else -2)
    return Named(out, axes)


def _einsum(a: Named, b: Named, axes: tuple[str, ...], p: int, q: int) -> Named:
    names = {axis: i for i, axis in enumerate(axes)}
    free = len(axes)
    left = [names[x] for x in a.axes] + [free + i for i in range(p)]
    right = [names[x] for x in b.axes] + [free + p - 1] + [free + p + i for i in range(q - 1)]
    out = list(range(len(axes))) + [free + i for i in range(p - 1)] + [free + p + i for i in range(q - 1)]
    return Named(torch.einsum(a.data, left, b.data, right, out), axes)


def picked(t: Named, i: int, index: Named) -> Named:
    """The entries of size i at whole numbers, whose axes join t's and whose sizes stand in the place of that size."""
    dim = len(t.axes) + i
    data = t.data.index_select(dim, index.data.reshape(-1))
    data = data.reshape(*t.data.shape[:dim], *index.data.shape, *t.data.shape[dim + 1 :])
    axes = ordered((*t.axes, *index.axes))
    lead = [dim + index.axes.index(a) if a in index.axes else t.axes.index(a) for a in axes]
    return Named(data.permute(*lead, *(d for d in range(data.dim()) if d not in lead)), axes)


def transpose(t: Named) -> Named:
    return Named(t.data.transpose(-1, -2), t.axes)


def to_axes(t: Named, axes: tuple[str, ...], shape: torch.Size) -> torch.Tensor:
    """The data broadcast to ``axes`` and the given full shape (for ``out``, which may lack axes of ``h``)."""
    return spread(t, axes, len(shape) - len(axes)).expand(shape)
