"""What depends on the layer: which arguments do, and which layers a selection names.

An argument may be an expression of ``layer`` (0-based within its stack) and ``depth`` (layers of that stack), or a list
with a value for each layer, which is short for the item at ``layer``. It stays an expression in the IR and is bound
where a row meets a site. Non-goal: types (`infer`, `check`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..syntax.nodes import ListOf, Name, Param, walk

#: Types of parameters whose arguments may depend on the layer.
NUMERIC = ("int", "float", "bool")
#: The words of a selection that select layers.
WORDS = ("all", "first", "last", "every", "range")


def layered(params: Sequence[Param]) -> frozenset[str]:
    """The parameters whose values depend on the layer, by themselves or through other parameters."""
    found: set[str] = set()
    for p in params:
        if p.type in (*NUMERIC, "init") and p.default is not None and by_layer(p.default, found):
            found.add(p.name)
    return frozenset(found)


def by_layer(node: Any, params: set[str] | frozenset[str] = frozenset()) -> bool:
    """Whether something reads ``layer``, a list, or one of ``params`` (the `layered` ones)."""
    return any(
        isinstance(n, ListOf) or (isinstance(n, Name) and (n.id == "layer" or n.id in params)) for n in walk(node)
    )


def least(word: str) -> tuple[int, str]:
    """The least number of a selection, and what to say of a smaller one."""
    return (0, "layers are counted from 0") if word == "range" else (1, f"`layers {word}` takes a number of at least 1")


def chosen(word: str, values: Sequence[int], depth: int) -> range:
    """The layers that ``layers WORD VALUES`` names of ``depth``: 0-based, half-open, clamped to those there are."""
    if word == "all":
        return range(depth)
    if word == "first":
        return range(min(values[0], depth))
    if word == "last":
        return range(max(0, depth - values[0]), depth)
    if word == "every":
        return range(0, depth, values[0])
    return range(min(values[0], depth), min(values[-1], depth))
