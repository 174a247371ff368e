"""What a row does after each step of the optimiser, as plain torch: `helpers` have what is done at all places together."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from ..language.ir import Row
from ..language.syntax.nodes import Later
from .code import Code, Written, text_of
from .writer import Writer


@dataclass(frozen=True)
class Stepping:
    """The lines of `after step`; ``asks`` where they stop for what is among the largest of all places."""

    lines: tuple[str, ...]
    asks: bool
    helpers: tuple[str, ...]


def stepping(
    row: Row, names: Mapping[str, Written], sizes: Mapping[str, Written], lengths: Mapping[str, Written], own: Mapping[str, Code],
    repeats: Written,
) -> Stepping | None:  # fmt: skip
    """The lines of a row, whose tensors are ``own`` and whose axes have ``lengths``; None where nothing happens after a step."""
    body = [line for s in row.form if isinstance(s, Later) and s.word == "after step" for line in s.body]
    if not body:
        return None
    w = Writer({**names, **own, "progress": Code("progress", (), ())}, sizes, {}, repeats, training=True)
    w.taken["progress"], w.axes = "progress", lengths
    lines: list[str] = []
    known = 0
    for s in body:
        value, name = w.write(s.value), s.names[0]
        if name not in own:
            w.bind(name, value)
        lines += map(str, w.lines[known:])
        known = len(w.lines)
        if name in own:
            call = "copy_" if isinstance(value, Code) else "fill_"
            lines.append(f"{own[name].text}.{call}({text_of(value)})")
    return Stepping(tuple(lines), w.asks, tuple(w.helpers))


def methods(found: Stepping) -> list[list[str]]:
    """The methods for what happens after a step: of one place, or where places are taken together of all of them."""
    progress = ["progress: torch.Tensor"] * any(re.search(r"(?<![\w.])progress\b", line) for line in found.lines)
    lines = [f"    {line}" for line in found.lines]
    says = "Called after each step of the optimiser" + (
        "; ``progress`` is how far training has come, 0 to 1" if progress else ""
    )
    if not found.asks:
        return [
            [
                "@torch.no_grad()",
                f"def after_step({', '.join(['self', *progress])}) -> None:",
                f'    """{says}."""',
                *lines,
            ]
        ]
    called = "progress" if progress else ""
    return [
        [f"def steps({', '.join(['self', *progress])}):", '    """What `after_step` does at one place."""', *lines, "    yield None"],
        ["@staticmethod", "@torch.no_grad()", f"def after_step({', '.join(['places: list', *progress])}) -> None:",
         f'    """{says}. ``places`` are the modules of all places of the row in the model, in order."""',
         f"    at_all_places([place.steps({called}) for place in places])"],
    ]  # fmt: skip
