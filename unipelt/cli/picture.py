"""Draws a method's diagram (`language.diagram`) as SVG or PNG: frozen parts grey, learned parts coloured, the insertion
an arrow, the composition a node."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

from ..language.diagnostics import error
from ..language.diagram import Panel, diagram
from ..language.ir import Method

FROZEN, LEARNED, FUNCTION, GATE, PLAIN = "#d9d9d9", "#f6b26b", "#cfe2f3", "#b6d7a8", "#f3f3f3"
COLOURS = {"learned": LEARNED, "function": FUNCTION, "frozen": FROZEN, "plain": PLAIN}
#: What stands in the grey box, for each family of sites.
INSIDE = {
    "sublayer": "the sublayer", "projection": "x W + bias", "heads": "softmax(q Kᵀ) V", "hidden": "the inner activation",
    "block": "the block", "embed": "the embedded tokens", "head": "the head", "weight": "the weight W", "train": "",
}  # fmt: skip
WIDTH, STEP, BOX, LINE = 5.4, 0.82, 0.56, 0.24  # of a panel, between boxes, of a box, of a line of text; in inches


def picture(method: Method, file: Path) -> Path:
    """Writes the diagram; the file's ending says whether as SVG or PNG."""
    if file.suffix.lower() not in (".svg", ".png"):
        raise error("E0810", f"`{file}` is neither an SVG nor a PNG", help="end the file's name in .svg or .png")
    if not file.parent.is_dir():
        raise error("E0810", f"there is no folder `{file.parent}`", help="make it first")
    try:
        from matplotlib import rc_context
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise error("E0811", "drawing needs matplotlib, which is not installed", help="pip install matplotlib") from None
    panels = diagram(method)
    rows = max(2, *(len(p.boxes) + bool(p.gate) for p in panels))
    below = max(len(p.where) for p in panels) * LINE
    height = STEP * (rows + 1) + 2.1 + below
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "unipelt", "text.parse_math": False, "font.family": "DejaVu Sans"}):
        figure = Figure(figsize=(WIDTH * len(panels), height + 0.5))
        FigureCanvasAgg(figure)
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set_xlim(0, WIDTH * len(panels))
        axes.set_ylim(0, height + 0.5)
        axes.axis("off")
        axes.text(0.25, height + 0.2, method.name, fontsize=15, weight="bold", va="center")
        for i, p in enumerate(panels):
            _panel(axes, p, WIDTH * i, height, rows, below)
        metadata: dict[str, Any] = {"Date": None} if file.suffix.lower() == ".svg" else {"Software": None}
        figure.savefig(file, dpi=110, metadata=metadata)
    return file


def _panel(axes: Any, p: Panel, left: float, height: float, rows: int, below: float) -> None:
    axes.text(left + 0.25, height - 0.25, _wrapped(f"{p.title}: {p.site}", 48), fontsize=11, va="center")
    stream, branch = left + 1.15, left + 3.7
    bottom, top = 0.75 + below, height - 1.15
    for i, line in enumerate((*p.where, p.formula)):
        axes.text(left + 0.25, 0.22 + LINE * (len(p.where) - i), _short(line, 66), fontsize=9.5, va="center")
    name = "q" if p.family == "heads" and p.source == "q" else "x" if p.family not in ("embed", "train") else ""
    # the frozen way: input, module, node, out
    low, high = bottom + 0.6, top - 0.55
    if p.family != "train":
        _box(axes, stream, (low + high) / 2, 1.7, high - low, FROZEN, INSIDE.get(p.family, ""), f"frozen, at {p.site.split(',')[0]}")
        if name:
            _arrow(axes, (stream, bottom), (stream, low))
            axes.text(stream, bottom - 0.15, name, ha="center", va="center", fontsize=12, style="italic")
        _arrow(axes, (stream, high), (stream, top - 0.2))
        axes.text(stream - 0.18, high + 0.16, "h", ha="right", va="center", fontsize=12, style="italic")
        _node(axes, stream, top, p.node)
        _arrow(axes, (stream, top + 0.2), (stream, top + 0.5))
    # the learned way: z, its boxes, the gate
    count = len(p.boxes) + bool(p.gate)
    first = bottom + 0.6 + BOX / 2 + (rows - count) * STEP / 2
    places = [first + i * STEP for i in range(count)]
    for box, y in zip(p.boxes, places):
        _box(axes, branch, y, 2.7, BOX, COLOURS[box.kind], box.label, box.note)
    if p.gate:
        _box(axes, branch, places[-1], 2.7, BOX, GATE, "· g", p.gate, round_=True)
    for a, b in zip(places, places[1:]):
        _arrow(axes, (branch, a + BOX / 2), (branch, b - BOX / 2))
    if p.family == "train":
        return
    if places:
        _bent(axes, (branch, places[-1] + BOX / 2), (stream + 0.2, top))
        axes.text(branch - 0.35, top + 0.16, "Δ", fontsize=12, ha="center", va="center")
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


def _box(axes: Any, x: float, y: float, w: float, h: float, colour: str, label: str, note: str, round_: bool = False) -> None:
    from matplotlib.patches import FancyBboxPatch

    style = f"round,pad=0,rounding_size={0.25 if round_ else 0.06}"
    axes.add_patch(FancyBboxPatch((x - w / 2, y - h / 2), w, h, boxstyle=style, facecolor=colour, edgecolor="#444444", linewidth=1, zorder=2))
    label = _short(label, int(w * 11))
    if note:
        axes.text(x, y + 0.11, label, ha="center", va="center", fontsize=10, zorder=3)
        axes.text(x, y - 0.14, _short(note, int(w * 15)), ha="center", va="center", fontsize=7.5, color="#333333", zorder=3)
    else:
        axes.text(x, y, label, ha="center", va="center", fontsize=10, zorder=3)


def _node(axes: Any, x: float, y: float, sign: str) -> None:
    from matplotlib.patches import Ellipse

    width = max(0.4, 0.16 + 0.095 * len(sign))
    axes.add_patch(Ellipse((x, y), width, 0.4, facecolor="white", edgecolor="#444444", linewidth=1.3, zorder=2))
    axes.text(x, y, sign, ha="center", va="center", fontsize=11, zorder=3)


def _arrow(axes: Any, a: tuple[float, float], b: tuple[float, float]) -> None:
    axes.annotate("", xy=b, xytext=a, arrowprops={"arrowstyle": "-|>", "color": "#333333", "linewidth": 1.3, "shrinkA": 0, "shrinkB": 0})


def _bent(axes: Any, a: tuple[float, float], b: tuple[float, float]) -> None:
    axes.plot([a[0], a[0]], [a[1], b[1]], color="#333333", linewidth=1.3, zorder=1)
    _arrow(axes, (a[0], b[1]), b)


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def _wrapped(text: str, width: int) -> str:
    return "\n".join(textwrap.wrap(text, width)) or text

