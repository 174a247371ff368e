"""The lines of a body by the names that they bind and read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .nodes import Let, Name, Statement, Tensor, walk


def names_in(*parts: Any) -> set[str]:
    """The names that stand in some expressions or lines."""
    return {n.id for part in parts for n in walk(part) if isinstance(n, Name)}


def lines_for(body: Sequence[Statement], *ends: Any) -> list[Statement]:
    """The lines of a body without the lets and tensors that nothing reads which leads to the ``ends``."""
    wanted, found = names_in(*ends), list[Statement]()
    for s in reversed(body):
        if isinstance(s, (Let, Tensor)) and not wanted & {*(s.names if isinstance(s, Let) else (s.name,))}:
            continue
        wanted |= names_in(s)
        found.append(s)
    return found[::-1]
