"""Draws a method's diagram (`language.write.diagram`) as SVG or PNG: frozen parts grey, learned parts coloured, the insertion
an arrow, the composition a node."""

from __future__ import annotations

import re
from os.path import isdir
from pathlib import Path
from typing import Any

from ..language.report.diagnostics import error
from ..language.write.diagram import Panel, diagram
from ..language.ir import Method
from ..training.picture import canvas, style, written

FROZEN, LEARNED, FUNCTION, GATE, PLAIN = "#d9d9d9", "#f6b26b", "#cfe2f3", "#b6d7a8", "#f3f3f3"
COLOURS = {"learned": LEARNED, "function": FUNCTION, "frozen": FROZEN, "plain": PLAIN}
WIDTH, STEP, BOX, LINE = 5.4, 0.82, 0.56, 0.24  # of a panel, between boxes, of a box, of a line of text; in inches
LABEL, NOTE, CHANGE = 56, 80, 26  # signs that fit into a box, and over an arrow
ABREAST = 4  # panels side by side, at most


def picture(method: Method, file: Path) -> Path:
    """Writes the diagram; the file's ending says whether as SVG or PNG."""
    if file.suffix.lower() not in (".svg", ".png"):
        raise error("E0810", f"`{file}` is neither an SVG nor a PNG", help="end the file's name in .svg or .png")
    if not isdir(file.parent):
        raise error("E0810", f"there is no folder `{file.parent}`", help="make it first")
    if isdir(file):
        raise error("E0810", f"`{file}` is a folder", help="give the name of a file")
    try:
        styled = style()
    except ImportError:
        raise error(
            "E0811", "drawing needs matplotlib, which is not installed", help="pip install matplotlib"
        ) from None
    with styled:
        file.write_bytes(written(drawn(method), file.suffix.lower()[1:], dpi=110))
    return file


def drawn(method: Method) -> Any:
    """The diagram as a figure of matplotlib's; its data are inches."""
    panels = diagram(method)
    abreast = -(-len(panels) // -(-len(panels) // ABREAST))
    shelves = [_Shelf(panels[i : i + abreast]) for i in range(0, len(panels), abreast)]
    name = wrapped(method.name, 36 * abreast)
    width, height = WIDTH * abreast, sum(s.height for s in shelves) + 0.2 + 0.3 * len(name)
    figure = canvas(width, height)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_xlim(0, width)
    axes.set_ylim(0, height)
    axes.axis("off")
    axes.text(0.25, height - 0.15, "\n".join(name), fontsize=15, weight="bold", va="top")
    top = height - 0.2 - 0.3 * len(name)
    for shelf in shelves:
        for i, p in enumerate(shelf.panels):
            _panel(axes, p, WIDTH * i, top, shelf)
        top -= shelf.height
    return figure


class _Shelf:
    """Panels side by side, and the room that the tallest of them needs; in inches."""

    def __init__(self, panels: list[Panel]):
        self.panels = panels
        self.rows = max(2, *(len(p.boxes) + bool(p.gate) for p in panels)) if panels else 2
        self.above = max(len(_title(p)) for p in panels) * LINE
        self.below = max(len(_notes(p)) for p in panels) * LINE
        self.height = STEP * (self.rows + 1) + 1.6 + self.above + self.below


def _title(p: Panel) -> list[str]:
    whole = f"{p.title}: {p.place}"
    return [whole] if len(whole) <= 46 else [*wrapped(f"{p.title}:", 46), *wrapped(p.place, 46)]


def _notes(p: Panel) -> list[str]:
    """The lines of the formula under a panel, none of them cut."""
    hidden = [f"Δ = {p.delta}"] if any(len(b.label) > LABEL for b in p.boxes) else []
    out: list[str] = []
    for line in (*p.where, *hidden, p.formula):
        first, *more = wrapped(line, 60)
        out += [first, *(f"      {part}" for part in more)]
    return out


def _panel(axes: Any, p: Panel, left: float, up: float, shelf: _Shelf) -> None:
    axes.text(left + 0.25, up - 0.1, "\n".join(_title(p)), fontsize=11, va="top")
    stream, branch = left + 1.15, left + 3.7
    notes, rows = _notes(p), shelf.rows
    bottom, top = up - shelf.height + 0.7 + shelf.below, up - 0.85 - shelf.above
    for i, line in enumerate(notes):
        axes.text(left + 0.25, bottom - 0.5 - LINE * i, line, fontsize=9.5, va="center")
    # the frozen way: input, module, node, out
    low, high = bottom + 0.6, top - 0.55
    if p.inside:
        _box(axes, stream, (low + high) / 2, 1.7, high - low, FROZEN, p.inside, f"frozen, at {p.site}")
        if p.enters:
            _arrow(axes, (stream, bottom), (stream, low))
            axes.text(stream, bottom - 0.15, p.enters, ha="center", va="center", fontsize=12, style="italic")
        _arrow(axes, (stream, high), (stream, top - 0.2))
        axes.text(stream - 0.18, high + 0.16, "h", ha="right", va="center", fontsize=12, style="italic")
        _node(axes, stream, top, p.node)
        _arrow(axes, (stream, top + 0.2), (stream, top + 0.5))
    # the learned way: z, its boxes, the gate
    count = len(p.boxes) + bool(p.gate)
    first = bottom + 0.6 + BOX / 2 + (rows - count) * STEP / 2
    places = [first + i * STEP for i in range(count)]
    for box, y in zip(p.boxes, places):
        _box(axes, branch, y, 2.7, BOX, COLOURS[box.kind], _short(box.label, LABEL), _short(box.note, NOTE))
    if p.gate:
        _box(axes, branch, places[-1], 2.7, BOX, GATE, "· g", _short(p.gate, 40), round_=True)
    for a, b in zip(places, places[1:]):
        _arrow(axes, (branch, a + BOX / 2), (branch, b - BOX / 2))
    if not p.inside:
        return
    if places:
        _bent(axes, (branch, places[-1] + BOX / 2), (stream + _node_width(p.node) / 2, top))
        if len(p.change) <= CHANGE:  # else the formula below says it
            axes.text(branch + 0.05, top + 0.16, p.change, fontsize=10.5, ha="right", va="center")
    if p.source and places:
        _inserted(axes, p, stream, branch, bottom, places[0] - BOX / 2, high)


def _inserted(axes: Any, p: Panel, stream: float, branch: float, bottom: float, end: float, high: float) -> None:
    """Where z is taken from: before the module, behind it, or an expression of both."""
    line = dict(color="#333333", linewidth=1.3, zorder=1)
    if p.source in ("x", "q", "W"):
        axes.plot([stream, branch], [bottom + 0.22, bottom + 0.22], **line)
        _arrow(axes, (branch, bottom + 0.22), (branch, end))
        label = f"z = {p.source}"
    elif p.source == "h":
        middle = (stream + 0.85 + branch - 1.35) / 2
        axes.plot([stream, middle, middle, branch], [high + 0.2, high + 0.2, bottom + 0.22, bottom + 0.22], **line)
        _arrow(axes, (branch, bottom + 0.22), (branch, end))
        label = "z = h"
    else:
        _arrow(axes, (branch, bottom + 0.15), (branch, end))
        label = f"z = {p.source}"
    axes.text(branch, bottom, _short(label, 40), fontsize=10, ha="center", va="center")


def _box(
    axes: Any, x: float, y: float, w: float, h: float, colour: str, label: str, note: str, round_: bool = False
) -> None:
    from matplotlib.patches import FancyBboxPatch

    style = f"round,pad=0,rounding_size={0.25 if round_ else 0.06}"
    axes.add_patch(
        FancyBboxPatch(
            (x - w / 2, y - h / 2), w, h, boxstyle=style, facecolor=colour, edgecolor="#444444", linewidth=1, zorder=2
        )
    )
    lines, small = wrapped(label, int(w * 10.5)), wrapped(note, int(w * 15))
    size = 10 if len(lines) == 1 else 8.5
    if note:
        y += (0.017 * size * len(lines) + 0.128 * len(small)) / 2  # from the top of both down
        axes.text(x, y, "\n".join(lines), ha="center", va="top", fontsize=size, zorder=3)
        y -= 0.018 * size * len(lines)
        axes.text(x, y, "\n".join(small), ha="center", va="top", fontsize=7.5, color="#333333", zorder=3)
    else:
        axes.text(x, y, "\n".join(lines), ha="center", va="center", fontsize=size, zorder=3)


def _node_width(sign: str) -> float:
    return max(0.4, 0.16 + 0.1 * len(sign))


def _node(axes: Any, x: float, y: float, sign: str) -> None:
    from matplotlib.patches import Ellipse

    axes.add_patch(
        Ellipse((x, y), _node_width(sign), 0.4, facecolor="white", edgecolor="#444444", linewidth=1.3, zorder=2)
    )
    axes.text(x, y, sign, ha="center", va="center", fontsize=11, zorder=3)


def _arrow(axes: Any, a: tuple[float, float], b: tuple[float, float]) -> None:
    axes.annotate(
        "",
        xy=b,
        xytext=a,
        arrowprops={"arrowstyle": "-|>", "color": "#333333", "linewidth": 1.3, "shrinkA": 0, "shrinkB": 0},
    )


def _bent(axes: Any, a: tuple[float, float], b: tuple[float, float]) -> None:
    axes.plot([a[0], a[0]], [a[1], b[1]], color="#333333", linewidth=1.3, zorder=1)
    _arrow(axes, (a[0], b[1]), b)


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def wrapped(text: str, width: int) -> list[str]:
    """The text in lines of at most ``width`` characters, broken at spaces; longer words are broken after `_` and `.`."""
    lines = [""]
    for word in re.findall(r"\S*\s*", text):
        for part in [word] if len(word.rstrip()) <= width else re.findall(r"[^_.]{1,%d}[_.]*" % width, word):
            if lines[-1] and len(lines[-1]) + len(part.rstrip()) > width:
                lines.append("")
            lines[-1] += part
    return [line.rstrip() for line in lines]
