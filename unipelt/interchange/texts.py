"""The method that another library's configuration means, as a text of the language: a union of variants of the library's methods."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..language.ir import Method
from ..language.loading import parse
from ..language.report.diagnostics import error


@dataclass(frozen=True, slots=True)
class Part:
    """A variant of a method of the library: its arguments, the lines in which it differs, its name among the rows and its gate."""

    base: str
    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    lines: str = ""
    gate: str = ""


def union(parts: Sequence[Part], name: str) -> Method:
    """The method that uses all of the parts, under a name."""
    texts, uses = [], []
    for i, p in enumerate(parts):
        given = ", ".join(f"{n} = {_written(v)}" for n, v in p.arguments.items())
        texts.append(f"method part_{i} from {p.base}({given}) {{ {p.lines} }}")
        uses.append(f"use part_{i} as {p.name}" + (f" gated by {p.gate}" if p.gate else ""))
    return parse("\n".join([*texts, f"method {name} {{ {'  '.join(uses)} }}"]), name=name)


def _written(value: Any) -> str:
    return value if isinstance(value, str) else repr(value)


def like(value: Any, given: Any, library: str) -> Any:
    """A number of a configuration, of the kind that a method's default has. Raises `PeltError` where a whole number is to be."""
    if isinstance(value, float):
        return float(given)
    if isinstance(value, int) and float(given) != int(given):
        raise error("E0840", f"the folder of {library}'s has {given!r} where a whole number is to be")
    return int(given) if isinstance(value, int) else given
