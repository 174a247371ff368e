"""The method that another library's configuration means, as a text of the language: a union of variants of the library's methods."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..language.ir import Method
from ..language.loading import parse
from ..language.report.diagnostics import error
from ..language.syntax.printer import to_text
from ..runtime.references import load


@dataclass(frozen=True, slots=True)
class Part:
    """A variant of a method of the library: its arguments, the lines in which it differs, its name among the rows and its gate.

    The lines may call the arguments that are numbers by their names."""

    base: str
    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    lines: str = ""
    gate: str = ""


def union(parts: Sequence[Part], name: str, lines: str = "") -> Method:
    """The method that uses all of the parts, under a name, with further lines."""
    texts, uses = [], []
    for i, p in enumerate(parts):
        own = {n: v for n, v in p.arguments.items() if isinstance(v, (int, float)) and re.search(rf"\b{n}\b", p.lines)}
        declared = ", ".join(f"{n}: {type(v).__name__} = {v!r}" for n, v in own.items())
        given = ", ".join(f"{n} = {n if n in own else _written(v)}" for n, v in p.arguments.items())
        texts.append(f"method part_{i}{f'({declared})' if own else ''} from {p.base}({given}) {{ {p.lines} }}")
        uses.append(f"use part_{i} as {p.name}" + (f" gated by {p.gate}" if p.gate else ""))
    return parse("\n".join([*texts, f"method {name} {{ {'  '.join([*uses, lines])} }}"]), name=name)


def freed(base: str, free: Sequence[str], lines: str, fixed: Mapping[str, Any] | None = None) -> Method:
    """A variant of a method of the library, some of its arguments free and others fixed; a free one that it has not is a number of the lines."""
    known = {p.name: p for p in load(base).params}
    own = [n for n in free if n in known]
    declared = [f"{n}: {known[n].type} = {to_text(known[n].default)}" for n in own]  # type: ignore[arg-type]
    declared += [f"{n}: float = 4.0" for n in free if n not in known]
    given = [*(f"{n} = {n}" for n in own), *(f"{n} = {v!r}" for n, v in (fixed or {}).items())]
    return parse(f"method freed({', '.join(declared)}) from {base}({', '.join(given)}) {{ {lines} }}", name="freed")


def _written(value: Any) -> str:
    return value if isinstance(value, str) else repr(value)


def like(value: Any, given: Any, library: str) -> Any:
    """A number of a configuration, of the kind that a method's default has. Raises `PeltError` where a whole number is to be."""
    if isinstance(value, float):
        return float(given)
    if isinstance(value, int) and float(given) != int(given):
        raise error("E0840", f"the folder of {library}'s has {given!r} where a whole number is to be")
    return int(given) if isinstance(value, int) else given
