"""How tensors of another library and ours become each other: the words behind a key in ``specs/peft.toml`` and ``specs/adapters.toml``.

Words are read from left to right on the way in, from right to left on the way out. ``rank`` is the place of a tensor among ``of`` that
share one of theirs: a layer among the layers, a part of a fused map among the parts. Behind a word stand numbers, then sizes by their names.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import isqrt
from types import MappingProxyType
from typing import Any

import torch
from torch import nn
from torch.nn.utils.parametrizations import orthogonal

from ..compiler.helpers import orthonormal, skew
from ..compiler.plan import PlannedEdit

#: A part of a tensor: which one, of how many, and along which size they stand.
Part = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class At:
    """Where a word is read: its numbers and sizes, the edit, and what the head of this file says; ``shape`` is ours, on the way in."""

    numbers: tuple[int, ...]
    sizes: tuple[int, ...]
    edit: PlannedEdit
    rank: int = 0
    of: int = 1
    shape: tuple[int, ...] = ()


def _same(t: torch.Tensor, at: At) -> torch.Tensor:
    return t


@dataclass(frozen=True, slots=True)
class Word:
    """What makes ours of theirs, and theirs of ours; how many numbers, and then sizes, follow the word; which part of theirs ours is,
    None where it is the whole."""

    ours: Callable[[torch.Tensor, At], torch.Tensor] = _same
    theirs: Callable[[torch.Tensor, At], torch.Tensor] = _same
    numbers: int = 0
    part: Callable[[At], Part | None] = lambda at: None
    sizes: int = 0


def _joined(t: torch.Tensor, at: At) -> torch.Tensor:
    """[l, layer, 2, group, d_head] → [group, l, d_head]"""
    size = at.edit.site.sizes
    together = t.reshape(at.shape[-2], at.of, 2, size["groups"], size["d_head"])
    return together[:, at.rank, at.numbers[0]].transpose(0, 1)


def _of_layer(t: torch.Tensor, at: At) -> torch.Tensor:
    size = at.edit.site.sizes
    return t.reshape(at.of, 2, size["groups"], size["d_head"], *t.shape[1:])[at.rank, at.numbers[0]]


def _part(at: At, dim: int) -> Part:
    return at.numbers[0], at.numbers[1], dim


def _cut(t: torch.Tensor, part: Part) -> torch.Tensor:
    rank, of, dim = part
    if t.shape[dim] % of:
        raise RuntimeError(f"it has no {of} parts")
    return t.tensor_split(of, dim=dim)[rank]


def _padded(t: torch.Tensor, at: At) -> torch.Tensor:
    (dim,), (size,) = at.numbers, at.sizes
    if t.shape[dim] != size:
        raise RuntimeError("it has another size than the maps ask for")
    padded = t.new_zeros(*t.shape[:dim], at.shape[dim], *t.shape[dim + 1 :])
    padded.narrow(dim, 0, size).copy_(t)
    return padded


def _single(t: torch.Tensor, at: At) -> torch.Tensor:
    """Without a size that is 1."""
    (dim,) = at.numbers
    if t.shape[dim] != 1:
        raise RuntimeError(f"its size {dim} is not 1")
    return t.select(dim, 0)


def _unparted(t: torch.Tensor, at: At) -> torch.Tensor:
    if t.shape[-1] != at.sizes[0]:
        raise RuntimeError("it has parts of another size")
    return t.flatten(-2)


def _above(t: torch.Tensor, at: At) -> torch.Tensor:
    """The numbers [..., b (b - 1) / 2] above the diagonal of the skew part of square matrices [..., b, b], row by row."""
    if t.dim() < 2 or t.shape[-1] != t.shape[-2]:
        raise RuntimeError("it has no square matrices")
    b = t.shape[-1]
    row, column = torch.triu_indices(b, b, 1)
    return ((t - t.mT) / 2)[..., row, column]


def _counted(t: torch.Tensor, at: At) -> torch.Tensor:
    """Entries [n] of a map [d_in, d_out], counted row by row, of their rows and columns [2, n] in a weight [d_out, d_in]."""
    d_in, d_out = at.edit.sizes["d_in"], at.edit.sizes["d_out"]
    if t.dim() != 2 or len(t) != 2:
        raise RuntimeError("it has no row of rows and row of columns")
    row, column = t.long()
    if t.is_floating_point() or not ((row >= 0) & (row < d_out) & (column >= 0) & (column < d_in)).all():
        raise ValueError(f"its numbers are no places in a weight [{d_out}, {d_in}]")
    found = column * d_out + row
    if len(found.unique()) != len(found):
        raise ValueError("it has a place twice")
    return found


def _uncounted(t: torch.Tensor, at: At) -> torch.Tensor:
    d_out = at.edit.sizes["d_out"]
    return torch.stack((t % d_out, t // d_out)).int()


_WORDS = {
    "same": Word(),
    "line": Word(),  # see `whole`
    "T": Word(lambda t, at: t.mT, lambda t, at: t.mT),
    "swap": Word(lambda t, at: t.transpose(0, 1), lambda t, at: t.transpose(0, 1)),
    "own": Word(lambda t, at: t if at.edit.site.view.columns is None else at.edit.site.view.columns.of(t)),
    "flip": Word(lambda t, at: t.flip(-1), lambda t, at: t.flip(-1)),
    "flat": Word(lambda t, at: t.reshape(-1), lambda t, at: t[None] if at.edit.site.side == "input" else t[:, None]),
    "split": Word(lambda t, at: t.reshape(at.shape if t.dim() == 1 else t.shape), lambda t, at: t.reshape(-1)),
    "single": Word(_single, lambda t, at: t.unsqueeze(at.numbers[0]), 1),
    "parted": Word(_unparted, lambda t, at: t.unflatten(-1, (-1, at.sizes[0])), sizes=1),
    "halved": Word(lambda t, at: t.unflatten(0, (2, -1)), lambda t, at: t.flatten(0, 1)),
    "skew": Word(_above, lambda t, at: skew(t, (1 + isqrt(1 + 8 * t.shape[-1])) // 2)),
    "places": Word(_counted, _uncounted),
    "padded": Word(_padded, lambda t, at: t.narrow(at.numbers[0], 0, at.sizes[0]), 1, sizes=1),
    "joined": Word(
        _joined,
        lambda t, at: t.transpose(0, 1).reshape(t.shape[1], -1),
        1,
        lambda at: (2 * at.rank + at.numbers[0], 2 * at.of, 1),
    ),
    "layers": Word(_of_layer, lambda t, at: t.flatten(0, 1), 1, lambda at: (2 * at.rank + at.numbers[0], 2 * at.of, 0)),
    "parts": Word(
        lambda t, at: _cut(t, (at.rank, at.of, 0)), part=lambda at: (at.rank, at.of, 0) if at.of > 1 else None
    ),
    "rows": Word(lambda t, at: _cut(t, _part(at, 0)), numbers=2, part=lambda at: _part(at, 0)),
    "columns": Word(lambda t, at: _cut(t, _part(at, -1)), numbers=2, part=lambda at: _part(at, -1)),
}


#: How large what a size is called is.
Sizes = Mapping[str, int]


def _size(name: str, sizes: Sizes) -> int:
    """Of a size ``a`` or, with ``a/b``, of as many b as it takes to hold a; 0 where nobody has said."""
    whole_, _, step = (sizes.get(n, 0) for n in name.partition("/"))
    return -(-whole_ // step) * step if step else whole_


def _words(how: str, sizes: Sizes = MappingProxyType({})) -> list[tuple[Word, tuple[int, ...], tuple[int, ...]]]:
    left = iter(how.split())
    return [
        (
            word := _WORDS[name],
            tuple(int(next(left)) for _ in range(word.numbers)),
            tuple(_size(next(left), sizes) for _ in range(word.sizes)),
        )
        for name in left
    ]


def keys_of(key: str, how: str) -> tuple[str, ...]:
    """The keys of theirs that hold one of ours."""
    return (f"{key}.0.base", f"{key}.original") if how == "householder" else (key,)


def ours(
    given: tuple[torch.Tensor, ...],
    how: str,
    edit: PlannedEdit,
    shape: tuple[int, ...],
    rank: int,
    of: int,
    sizes: Sizes,
) -> torch.Tensor:
    """Our tensor, of a shape, made of theirs. Raises `RuntimeError` or `IndexError` where it cannot be, `ValueError` where its numbers cannot."""
    if how == "householder":
        return _rotation(*given).mT
    t = given[0]
    for word, numbers, own in _words(how, sizes):
        t = word.ours(t, At(numbers, own, edit, rank, of, shape))
    return t


def theirs(
    t: torch.Tensor, how: str, edit: PlannedEdit, of: int = 1, sizes: Sizes = MappingProxyType({})
) -> tuple[torch.Tensor, ...]:
    """Their tensors, in the order of `keys_of`, made of ours; or the part of them that `part_of` says."""
    if how == "householder":
        return _rotated(t.mT)
    for word, numbers, own in reversed(_words(how, sizes)):
        t = word.theirs(t, At(numbers, own, edit, of=of))
    return (t,)


def part_of(how: str, edit: PlannedEdit, rank: int, of: int) -> Part | None:
    """Which part of theirs ours is; None where it is the whole."""
    if how == "householder":
        return None
    parts = (word.part(At(numbers, own, edit, rank, of)) for word, numbers, own in _words(how))
    return next((p for p in parts if p is not None), None)


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
