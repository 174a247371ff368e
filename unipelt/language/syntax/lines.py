"""The lines of a body by the names that they bind and read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .nodes import Later, Let, Name, Statement, Tensor, walk


def binds(s: Statement) -> tuple[str, ...]:
    """The names to which a line gives a value or a tensor."""
    return s.names if isinstance(s, (Let, Later)) else (s.name,) if isinstance(s, Tensor) else ()


def names_of(s: Any) -> tuple[str, ...]:
    """The names of a line, those of an axis, an input or another definition too."""
    return s.names if isinstance(s, (Let, Later)) else (getattr(s, "name", ""),)


def names_in(*parts: Any) -> set[str]:
    """The names that stand in some expressions or lines."""
    return {n.id for part in parts for n in walk(part) if isinstance(n, Name)}


def lines_for(body: Sequence[Statement], *ends: Any, training: bool = False) -> list[Statement]:
    """The lines of a body without those that bind what nothing reads which leads to the ``ends``. With ``training`` penalties and what
    happens after a step are ends, too."""
    wanted, found = names_in(*ends), list[Statement]()
    for s in reversed(body):
        end = training and isinstance(s, Later) and not s.names
        if isinstance(s, (Let, Tensor, Later)) and not end and not wanted & {*binds(s)}:
            continue
        wanted |= names_in(s)
        found.append(s)
    return found[::-1]
