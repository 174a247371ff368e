"""Blocks that do the same: their structure, by which one of them is looked at for all, and its sites put into another block.

The structure of a block's call is everything that the finder reads of it, with values numbered by their first appearance and
with the block's own path taken out of paths. What two blocks share outside themselves is in it by its own path.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable
from dataclasses import replace
from typing import Any

import torch

from .record import Call, Key, Recording
from .sites import Site, View

#: Operations whose result depends on the numbers of an index, which are read where they are there.
_READS_NUMBERS = frozenset(["index", "index_select", "gather", "take", "index_put", "index_put_"])
#: Numbers of an index that are read at most.
_MOST = 1 << 14


def structure(r: Recording, call: Call, times: Counter[str]) -> Hashable:
    """What a block's call does, apart from where it stands. Equal structures have equal sites."""
    numbers: dict[Key, int] = {}
    at = shortened(call.path)

    def name(key: Key | None) -> Hashable:
        if key is None:
            return None
        if key in r.parameters:
            return at(r.parameters[key])
        if key in numbers:
            return numbers[key]
        number = numbers[key] = len(numbers)
        if key in made:
            return number
        return (
            number,
            name(r.origin(key)) if r.origin(key) != key else number,
            r.shapes.get(key),
            r.axes.get(key),
            key in r.floating,
        )

    steps = r.steps[call.start : call.stop]
    made = {o for s in steps for o in s.outs}
    told: list[Hashable] = [call.shapes, tuple(map(name, call.entered)), name(call.first), times[call.path]]
    for s in steps:
        outs = tuple((name(o), r.shapes[o], o in r.floating) for o in s.outs)
        told.append(
            (s.op, s.function, tuple(map(name, s.ins)), outs, at(s.module), at(s.weight), plain((s.args, s.kwargs)))
        )
        if s.op in _READS_NUMBERS:
            told.append(_numbers(s.args))
    for c in r.calls[call.number + 1 :]:
        if call.path not in c.outer:
            break
        told.append((
            at(c.path), type(c.module), c.start - call.start, c.stop - call.start, c.order - call.order, name(c.first),
            tuple(map(name, c.entered)), name(c.left), c.shapes, times[c.path], tuple(map(at, c.outer)), r.asking.get(c.path),
        ))  # fmt: skip
    return tuple([*told, name(call.left)])


def shortened(block: str) -> Callable[[str], str]:
    """Paths in a block without the block's own."""
    inside = f"{block}."

    def at(path: str) -> str:
        return f"*{path[len(block) :]}" if path == block or path.startswith(inside) else path

    return at


def plain(value: Any) -> Hashable:
    """What an operation is given besides tensors, with their places."""
    if isinstance(value, torch.Tensor):
        return "tensor"
    if isinstance(value, (tuple, list)):
        return tuple(map(plain, value))
    if isinstance(value, dict):
        return tuple((n, plain(v)) for n, v in value.items())
    return value if isinstance(value, (int, float, str, bool, type(None), torch.dtype)) else str(value)


def _numbers(args: Any) -> Hashable:
    """The whole numbers of the tensors that an operation is given; an object that equals no other where there are too many."""
    if isinstance(args, torch.Tensor):
        if args.is_floating_point() or args.is_meta:
            return None
        return tuple(args.flatten().tolist()) if args.numel() <= _MOST else object()
    return tuple(map(_numbers, args)) if isinstance(args, (tuple, list)) else None


def put_into(s: Site, old: str, new: str, layer: int, block: str) -> Site:
    """A site of one block in another that does the same. ``old`` and ``new`` are their paths from the model, ``block`` from the base."""
    inside = f"{old}."

    def at(path: str | None) -> str | None:
        if path is None or not (path == old or path.startswith(inside)):
            return path
        return f"{new}{path[len(old) :]}"

    def view(v: View) -> View:
        return replace(v, module=at(v.module) or "")

    return replace(
        s, layer=layer, block=block, view=view(s.view), x=at(s.x), residual=at(s.residual), norm=at(s.norm), rows=at(s.rows),
        bases={n: view(v) for n, v in s.bases.items()},
    )  # fmt: skip
