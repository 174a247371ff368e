"""How tensors of another library and ours become each other: the words behind a key in ``specs/peft.toml`` and ``specs/adapters.toml``.

Words are read from left to right on the way in, from right to left on the way out. ``rank`` is the place of a tensor among ``of`` that
share one of theirs: a layer among the layers, a part of a fused map among the parts. Of what is padded ``of`` is the size without zeros.
"""

from __future__ import annotations

from math import isqrt
from typing import Any

import torch
from torch import nn
from torch.nn.utils.parametrizations import orthogonal

from ..compiler.helpers import orthonormal, skew
from ..compiler.plan import PlannedEdit

#: Words that are followed by numbers, and by how many.
_NUMBERS = {"joined": 1, "layers": 1, "padded": 1, "columns": 2, "rows": 2}


def _words(how: str) -> list[tuple[str, list[int]]]:
    left = how.split()
    found = []
    while left:
        word = left.pop(0)
        found.append((word, [int(left.pop(0)) for _ in range(_NUMBERS.get(word, 0))]))
    return found


def keys_of(key: str, how: str) -> tuple[str, ...]:
    """The keys of theirs that hold one of ours."""
    return (f"{key}.0.base", f"{key}.original") if how == "householder" else (key,)


def ours(
    given: tuple[torch.Tensor, ...], how: str, edit: PlannedEdit, shape: tuple[int, ...], rank: int, of: int
) -> torch.Tensor:
    """Our tensor, of a shape, made of theirs. Raises `RuntimeError` or `IndexError` where it cannot be, `ValueError` where its numbers cannot."""
    if how == "householder":
        return _rotation(*given).mT
    t = given[0]
    size = edit.site.sizes
    for word, numbers in _words(how):
        if word == "joined":  # [l, layer, 2, group, d_head] → [group, l, d_head]
            whole = t.reshape(shape[-2], of, 2, size["groups"], size["d_head"])
            t = whole[:, rank, numbers[0]].transpose(0, 1)
        elif word == "layers":
            t = t.reshape(of, 2, size["groups"], size["d_head"], *t.shape[1:])[rank, numbers[0]]
        elif word == "parts":
            t = _part(t, rank, of, 0)
        elif word == "padded":
            if t.shape[numbers[0]] != of:
                raise RuntimeError("it has another size than the largest map")
            padded = t.new_zeros(shape)
            padded.narrow(numbers[0], 0, of).copy_(t)
            t = padded
        elif word in ("rows", "columns"):
            t = _part(t, numbers[0], numbers[1], 0 if word == "rows" else -1)
        elif word == "row":
            if t.shape[:1] != (1,):
                raise RuntimeError("it has several rows")
            t = t[0]
        elif word == "skew":
            t = _above(t)
        elif word == "halved":
            t = t.unflatten(0, (2, -1))
        elif word == "places":
            t = _counted(t, edit.sizes["d_in"], edit.sizes["d_out"])
        elif word == "split":
            t = t.reshape(shape if t.dim() == 1 else t.shape)
        elif word == "flat":
            t = t.reshape(-1)
        elif word == "T":
            t = t.mT
        elif word == "swap":
            t = t.transpose(0, 1)
        elif word == "flip":
            t = t.flip(-1)
    return t


def _part(t: torch.Tensor, rank: int, of: int, dim: int) -> torch.Tensor:
    if t.shape[dim] % of:
        raise RuntimeError(f"it has no {of} parts")
    return t.tensor_split(of, dim=dim)[rank]


def theirs(t: torch.Tensor, how: str, edit: PlannedEdit, of: int = 1) -> tuple[torch.Tensor, ...]:
    """Their tensors, in the order of `keys_of`, made of ours; or the part of them that `part_of` says."""
    if how == "householder":
        return _rotated(t.mT)
    for word, numbers in reversed(_words(how)):
        if word == "joined":
            t = t.transpose(0, 1).reshape(t.shape[1], -1)
        elif word == "layers":
            t = t.flatten(0, 1)
        elif word == "padded":
            t = t.narrow(numbers[0], 0, of)
        elif word == "row":
            t = t[None]
        elif word == "flat":
            t = t[None] if edit.site.side == "input" else t[:, None]
        elif word == "skew":
            t = skew(t, (1 + isqrt(1 + 8 * t.shape[-1])) // 2)
        elif word == "halved":
            t = t.flatten(0, 1)
        elif word == "places":
            t = torch.stack((t % edit.sizes["d_out"], t // edit.sizes["d_out"])).int()
        elif word == "split":
            t = t.reshape(-1)
        elif word == "T":
            t = t.mT
        elif word == "swap":
            t = t.transpose(0, 1)
        elif word == "flip":
            t = t.flip(-1)
    return (t,)


def _above(t: torch.Tensor) -> torch.Tensor:
    """The numbers [..., b (b - 1) / 2] above the diagonal of the skew part of square matrices [..., b, b], row by row."""
    if t.dim() < 2 or t.shape[-1] != t.shape[-2]:
        raise RuntimeError("it has no square matrices")
    b = t.shape[-1]
    row, column = torch.triu_indices(b, b, 1)
    return ((t - t.mT) / 2)[..., row, column]


def _counted(t: torch.Tensor, d_in: int, d_out: int) -> torch.Tensor:
    """Entries [n] of a map [d_in, d_out], counted row by row, of their rows and columns [2, n] in a weight [d_out, d_in]."""
    if t.dim() != 2 or len(t) != 2:
        raise RuntimeError("it has no row of rows and row of columns")
    row, column = t.long()
    if t.is_floating_point() or not ((row >= 0) & (row < d_out) & (column >= 0) & (column < d_in)).all():
        raise ValueError(f"its numbers are no places in a weight [{d_out}, {d_in}]")
    found = column * d_out + row
    if len(found.unique()) != len(found):
        raise ValueError("it has a place twice")
    return found


def part_of(how: str, rank: int, of: int) -> tuple[int, int, int] | None:
    """Which part of theirs ours is, of how many, and along which size they stand; None where it is the whole."""
    for word, numbers in _words(how):
        if word in ("joined", "layers"):
            return 2 * rank + numbers[0], 2 * of, 1 if word == "joined" else 0
        if word in ("rows", "columns"):
            return numbers[0], numbers[1], 0 if word == "rows" else -1
        if word == "parts" and of > 1:
            return rank, of, 0
    return None


def whole(t: torch.Tensor, how: str) -> torch.Tensor:
    """Their tensor, made of all its parts."""
    return t.reshape(-1) if "line" in how.split() else t


# ---------------------------------------------------------------- rotations


def _parametrised(weight: torch.Tensor) -> nn.Linear:
    """A linear map whose weight torch keeps orthonormal, of the size of one."""
    rows, width = weight.shape
    return orthogonal(nn.Linear(width, rows, bias=False, dtype=weight.dtype))  # type: ignore[return-value]


def _rotation(base: torch.Tensor, original: torch.Tensor) -> torch.Tensor:
    """The orthonormal rows [r, d] that torch's parametrisation makes of what it stores."""
    if original.dim() != 2:
        raise RuntimeError("it is no matrix")
    map_ = _parametrised(original)
    map_.load_state_dict({"parametrizations.weight.0.base": base, "parametrizations.weight.original": original})
    return map_.weight.detach()


def _rotated(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What torch's parametrisation stores for orthonormal rows [r, d], to the bit: the base, and a start that leaves its first columns."""
    r, d = rows.shape
    near = torch.allclose(rows @ rows.mT, torch.eye(r, dtype=rows.dtype), atol=1e-5)
    columns = rows.mT if near else orthonormal(rows.mT)  # what is trained is made orthonormal when it is used
    base = torch.linalg.qr(columns, mode="complete").Q
    base[:, :r] = columns
    return base, rows.new_zeros(r, d) if r == d else -torch.eye(r, d, dtype=rows.dtype)


# ---------------------------------------------------------------- whole numbers that a configuration decides


def decided(value: Any, how: str, edit: PlannedEdit, shape: tuple[int, ...]) -> torch.Tensor:
    """Our whole numbers, of a shape, where a field of theirs decides them. Raises `RuntimeError` where it cannot be."""
    if how == "listed":
        return torch.tensor(value, dtype=torch.int64)
    if type(value) is not int:
        raise RuntimeError("it is no seed")
    d_in, d_out = edit.sizes["d_in"], edit.sizes["d_out"]
    drawn = torch.randperm(d_in * d_out, generator=torch.Generator().manual_seed(value))[: shape[0]]
    row, column = drawn // d_in, drawn % d_in  # of a weight [d_out, d_in]
    if how == "quarters":  # the right top and the left bottom stand the other way round
        right, low = column >= d_in // 2, row >= d_out // 2
        turn = right.int() - low.int()
        row, column = (
            row + turn.sign() * (right != low) * (d_out // 2),
            column - turn.sign() * (right != low) * (d_in // 2),
        )
    return column * d_out + row


def deciding(t: torch.Tensor, how: str, otherwise: Any = None) -> Any:
    """The value of their field for our whole numbers, where it can be told; else another."""
    return t.tolist() if how == "listed" else otherwise
