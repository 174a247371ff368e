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
    """``name = text``; several names are divided by commas. ``product`` is (what is read, W, b) where the line is ``x @ W`` or ``x @ W + b`` and may be joined with others."""

    name: str
    text: str
    product: tuple[str, Code, Code | None] | None = None

    @property
    def names(self) -> list[str]:
        return self.name.split(", ")

    def __str__(self) -> str:
        return f"{self.name} = {self.text}"


def needed(lines: Sequence[Line], ends: Iterable[str]) -> list[Line]:
    """The lines that the ends come to read. Each name is bound once."""
    wanted = {n for e in ends for n in words(e)}
    kept = []
    for line in reversed(lines):
        if not wanted.isdisjoint(line.names):
            kept.append(line)
            wanted |= words(line.text)
    return kept[::-1]


def joined(lines: Sequence[Line], lean: bool = False, fill: bool = False) -> list[Line]:
    """Products that read the same as columns of one product; the matrix of all columns is a line of its own. ``lean``: the product
    is a `helpers.lean_product`. ``fill``: where some have a bias, the others get one of zeros, so that all are added at once."""
    groups: dict[str, list[Line]] = {}
    later: dict[str, set[str]] = {}  # what is not bound yet where the first of them stands
    for i, line in enumerate(lines):
        if line.product is not None:
            x, *parts = line.product
            unknown = later.setdefault(x, {n for other in lines[i:] for n in other.names})
            if unknown.isdisjoint(set().union(*(words(p.text) for p in parts if p is not None))):
                groups.setdefault(x, []).append(line)
    out: list[Line] = []
    for line in lines:
        group = groups.get(line.product[0], []) if line.product is not None else []
        if not any(line is other for other in group) or not (len(group) > 1 or (fill and _is_vector(line))):
            out.append(line)
        elif line is group[0]:
            out += _columns(f"_joined_{line.product[0]}", group, lean, fill)  # type: ignore[index]
    return out


def _columns(name: str, group: list[Line], lean: bool, fill: bool) -> list[Line]:
    """The lines of products of one x, as one product."""
    found = [line.product for line in group if line.product is not None]
    x, widths = found[0][0], [_width(W) for _, W, _ in found]
    biases = [None if b is None else b.text if b.sizes else f"{b.text}[None]" for _, _, b in found]
    if fill and any(b is not None for b in biases):
        biases = [b or f"{W.text}.new_zeros({n})" for b, (_, W, _), n in zip(biases, found, widths)]
    parts = [W.text if len(W.sizes) == 2 else f"{W.text}[:, None]" for _, W, _ in found]
    weight, every = _one(parts, 1), all(b is not None for b in biases)
    out = [Line(f"{name}_b", _one(biases))] if every else []  # type: ignore[arg-type]
    given = ", ".join([x, f"{name}_W", *[f"{name}_b"] * every])
    if lean:
        out.append(Line(f"{name}_W", weight))
        product = f"lean_product({given})"
    elif fill:  # kernels for few columns are quicker where each lies in a piece
        out.append(Line(f"{name}_W", f"{weight}.T.contiguous()"))
        product = f"F.linear({given})"
    else:
        out.append(Line(f"{name}_W", f"{weight}.T" if every else weight))
        product = f"F.linear({given})" if every else f"{x} @ {name}_W"
    names = [line.name if every or b is None else f"_part_{line.name}" for line, b in zip(group, biases)]
    if len(group) == 1:
        out.append(Line(names[0], product))
    else:
        out += [
            Line(name, product),
            Line(", ".join(names), f"{name}.split_with_sizes([{', '.join(map(str, widths))}], -1)"),
        ]
    return out + [Line(line.name, f"{n} + {b}") for line, n, b in zip(group, names, biases) if n != line.name]


def _one(parts: Sequence[str], dim: int = 0) -> str:
    return parts[0] if len(parts) == 1 else f"torch.cat([{', '.join(parts)}], {dim})"


def _is_vector(line: Line) -> bool:
    return line.product is not None and len(line.product[1].sizes) == 1


def _width(W: Code) -> int:
    """How many columns a matrix or a vector is."""
    return int(W.sizes[1].number) if len(W.sizes) == 2 else 1  # type: ignore[arg-type]


def split(lines: Sequence[Line], live: Iterable[str]) -> tuple[list[Line], list[Line]]:
    """The lines that read no ``live`` name, nor one that comes of it, and the others. What is drawn anew each time is live."""
    names = {*live}
    fixed, others = [], []
    for line in lines:
        if is_live(line.text, names):
            names.update(line.names)
            others.append(line)
        else:
            fixed.append(line)
    return fixed, others


def is_live(text: str, live: set[str]) -> bool:
    return "F.dropout" in text or not live.isdisjoint(words(text))
