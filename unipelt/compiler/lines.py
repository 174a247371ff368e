"""The lines of generated code, and the rewrites that see all of them: what nobody reads is left out, products that read the
same are joined, and what reads an adapter's tensors alone is set apart, to be computed once.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from .code import Code

_WORDS = re.compile(r"(?<![\w.])[A-Za-z_]\w*")


def words(text: str) -> set[str]:
    """The names that a text of Python reads, those of modules and functions too."""
    return set(_WORDS.findall(text))


@dataclass(frozen=True, slots=True)
class Line:
    """``name = text``. ``product`` is (what is read, W, b) where the line is ``x @ W`` or ``x @ W + b`` and may be joined with others."""

    name: str
    text: str
    product: tuple[str, Code, Code | None] | None = None

    def __str__(self) -> str:
        return f"{self.name} = {self.text}"


def needed(lines: Sequence[Line], ends: Iterable[str]) -> list[Line]:
    """The lines that the ends come to read. Each name is bound once."""
    wanted = {n for e in ends for n in words(e)}
    kept = []
    for line in reversed(lines):
        if line.name in wanted:
            kept.append(line)
            wanted |= words(line.text)
    return kept[::-1]


def joined(lines: Sequence[Line], lean: bool = False) -> list[Line]:
    """Products that read the same as columns of one product; the matrix of all columns is a line of its own. ``lean``: the product
    is a `helpers.lean_product`."""
    groups: dict[str, list[Line]] = {}
    later: dict[str, set[str]] = {}  # what is not bound yet where the first of them stands
    for i, line in enumerate(lines):
        if line.product is not None:
            x, *parts = line.product
            unknown = later.setdefault(x, {other.name for other in lines[i:]})
            if unknown.isdisjoint(set().union(*(words(p.text) for p in parts if p is not None))):
                groups.setdefault(x, []).append(line)
    out: list[Line] = []
    for line in lines:
        group = groups.get(line.product[0], []) if line.product is not None else []
        if len(group) < 2 or not any(line is other for other in group):
            out.append(line)
        elif line is group[0]:
            out += _columns(f"joined_{line.product[0]}", group, lean)  # type: ignore[index]
    return out


def _columns(name: str, group: list[Line], lean: bool) -> list[Line]:
    found = [line.product for line in group]
    parts = [W.text if len(W.sizes) == 2 else f"{W.text}[:, None]" for _, W, _ in found]  # type: ignore[misc]
    weights = Line(f"{name}_W", f"torch.cat([{', '.join(parts)}], 1)")
    biases = [b.text if b.sizes else f"{b.text}[None]" for _, _, b in found if b is not None]  # type: ignore[misc]
    x = found[0][0]  # type: ignore[index]
    every = len(biases) == len(group)
    out = [weights]
    if every:
        out.append(Line(f"{name}_b", f"torch.cat([{', '.join(biases)}])"))
        product = (
            f"lean_product({x}, {weights.name}, {name}_b)" if lean else f"F.linear({x}, {weights.name}.T, {name}_b)"
        )
    else:
        product = f"lean_product({x}, {weights.name})" if lean else f"{x} @ {weights.name}"
    out.append(Line(name, product))
    at = 0
    for line in group:
        _, W, b = line.product  # type: ignore[misc]
        if len(W.sizes) == 2:
            n = int(W.sizes[1].number)  # type: ignore[arg-type]
            part, at = f"{name}[..., {at}:{at + n}]", at + n
        else:
            part, at = f"{name}[..., {at}]", at + 1
        out.append(Line(line.name, part if b is None or every else f"{part} + {b.text}"))
    return out


def split(lines: Sequence[Line], live: Iterable[str]) -> tuple[list[Line], list[Line]]:
    """The lines that read no ``live`` name, nor one that comes of it, and the others. What is drawn anew each time is live."""
    names = {*live}
    fixed, others = [], []
    for line in lines:
        if is_live(line.text, names):
            names.add(line.name)
            others.append(line)
        else:
            fixed.append(line)
    return fixed, others


def is_live(text: str, live: set[str]) -> bool:
    return "F.dropout" in text or not live.isdisjoint(words(text))
