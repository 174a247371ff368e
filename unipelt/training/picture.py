"""A run's report in one picture: loss and metric, each gate by layer and evaluation, edits and gradients by layer.

Colours can be told apart without red and green (viridis, PuOr, Okabe and Ito's eight); series differ in their markers too.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

#: Okabe and Ito (2008), without their yellow, which is faint on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
MARKERS = "os^Dv<>"
STYLE: dict[Any, Any] = {
    "font.size": 8, "axes.titlesize": 8.5, "axes.labelsize": 8, "xtick.labelsize": 7,
    "ytick.labelsize": 7, "legend.fontsize": 7.5, "axes.spines.top": False, "axes.spines.right": False,
    "axes.linewidth": 0.6, "xtick.major.width": 0.6, "ytick.major.width": 0.6, "lines.linewidth": 1.2,
    "lines.markersize": 3.5,
}  # fmt: skip
WIDTH = 7.6
MAPS_IN_A_ROW, MOST_MAPS = 3, 24
#: The most columns and rows with which a map shows its numbers.
NUMBERED = (8, 32)
DPI = 200


@dataclass
class Map:
    """A gate of a row at a site: its mean by layer and evaluation."""

    title: str
    layers: list[int | None] = field(default_factory=list)
    values: dict[tuple[int | None, int], float] = field(default_factory=dict)

    @property
    def range(self) -> tuple[float, float]:
        return min(self.values.values()), max(self.values.values())

    @property
    def share(self) -> bool:
        """Whether all values lie between 0 and 1, so that maps can share a scale."""
        return self.range[0] >= 0 and self.range[1] <= 1


def draw(report: Mapping[str, Any], form: str) -> bytes:
    """The picture as PNG or SVG."""
    with style(**STYLE):
        return written(figure(report), form, dpi=DPI)


def style(**more: Any) -> AbstractContextManager[None]:
    """The settings for pictures: text stays text, and equal data give equal files. Raises ImportError without matplotlib."""
    from matplotlib import rc_context

    shared: dict[Any, Any] = {
        "svg.fonttype": "none", "svg.hashsalt": "unipelt", "text.parse_math": False, "font.family": "DejaVu Sans",
    }  # fmt: skip
    return rc_context(shared | more)


def canvas(width: float, height: float, **how: Any) -> Any:
    """An empty figure, in inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    made = Figure(figsize=(width, height), **how)
    FigureCanvasAgg(made)
    return made


def written(drawn: Any, form: str, **how: Any) -> bytes:
    """A figure as the bytes of a PNG or SVG file, without a date."""
    out = io.BytesIO()
    drawn.savefig(out, format=form, metadata={"Date": None} if form == "svg" else {"Software": None}, **how)
    return out.getvalue()


def figure(report: Mapping[str, Any]) -> Any:
    maps = maps_of(report)
    shown = maps[:MOST_MAPS]
    rows = -(-len(shown) // MAPS_IN_A_ROW)
    depth = max((len(m.layers) for m in shown), default=0)
    series = series_of(report)
    heights = {"curves": 2.0}
    if shown:
        heights["maps"] = 0.25 + rows * (0.6 + 0.155 * max(depth, 7))
    if series:
        heights["profiles"] = 2.4 if len(series) <= len(COLOURS) else 1.0 + 0.14 * len(series)
    whole = canvas(WIDTH, sum(heights.values()) + 0.5, layout="constrained")
    parts = dict(
        zip(heights, whole.subfigures(len(heights), 1, height_ratios=list(heights.values()), squeeze=False)[:, 0])
    )
    whole.suptitle(_heading(report), fontsize=9.5, x=0.012, ha="left")
    _curves(parts["curves"], report)
    if shown:
        _maps(parts["maps"], rows, shown, len(maps) - len(shown), report)
    if series:
        _profiles(parts["profiles"], series, report)
    return whole


def _heading(report: Mapping[str, Any]) -> str:
    counts = report["counts"]
    share = f" ({100 * counts['trained'] / counts['base']:.2g} % of the base's)" if counts["base"] else ""
    head = f" and a head of {counts['head']:,}" if counts["head"] else ""
    return f"{report['method']} on {report['model']}\n{report['task']}, {counts['trained']:,} trained parameters{share}{head}, seed {report['seed']}"


# ---------------------------------------------------------------- loss, metric


def _curves(part: Any, report: Mapping[str, Any]) -> None:
    left, right = part.subplots(1, 2)
    steps, losses = [x["step"] for x in report["losses"]], [x["loss"] for x in report["losses"]]
    left.plot(steps, losses, color="0.75", linewidth=0.6, label="each step")
    width = max(1, len(losses) // 25)
    if width > 1:
        left.plot(steps, _smooth(losses, width), color=COLOURS[0], label=f"mean of {width} steps")
    evaluations = report["evaluations"]
    validation = [(e["step"], e["metrics"]["loss"]) for e in evaluations if "loss" in e["metrics"]]
    if validation:
        left.plot(*zip(*validation), color=COLOURS[1], marker=MARKERS[1], label="validation")
    left.set(title="loss", xlabel="optimizer step", ylabel="loss")
    left.legend(frameon=False)
    left.margins(x=0.01)
    metric, best = report["metric"], report["best_step"]
    found = [(e["epoch"], e["metrics"][metric], e["step"]) for e in evaluations if metric in e["metrics"]]
    title = f"validation {metric}"
    if found:
        right.plot([e for e, _, _ in found], [v for _, v, _ in found], color=COLOURS[0], marker=MARKERS[0])
        chosen = next(((e, v) for e, v, s in found if s == best), None)
        if chosen is not None:
            right.plot(*chosen, marker="*", markersize=10, color=COLOURS[1], linestyle="none")
            title += f" (★ kept: {chosen[1]:.3f} at epoch {chosen[0]:.3g})"
    right.set(title=title, xlabel="epoch", ylabel=metric)
    right.margins(x=0.04, y=0.12)
    _whole_numbers(right.xaxis)


def _smooth(values: Sequence[float], width: int) -> list[float]:
    """The mean of the last ``width`` values at each."""
    return [sum(values[max(0, i - width + 1) : i + 1]) / min(i + 1, width) for i in range(len(values))]


def _whole_numbers(axis: Any) -> None:
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))


# ---------------------------------------------------------------- gates


def maps_of(report: Mapping[str, Any]) -> list[Map]:
    """Every gate in the order of the rows."""
    found: dict[tuple[str, str, str], Map] = {}
    for column, o in enumerate(report["observations"]):
        for p in o["places"]:
            for label, s in p["gates"].items():
                m = found.setdefault((p["row"], p["site"], label), Map(f"{p['row']} at {p['site']}: {label}"))
                if p["layer"] not in m.layers:
                    m.layers.append(p["layer"])
                m.values[p["layer"], column] = s["mean"]
    return list(found.values())


def _maps(part: Any, rows: int, maps: Sequence[Map], left_out: int, report: Mapping[str, Any]) -> None:
    """Maps of shares compare by one scale; those of other numbers, or far smaller ones, have scales of their own."""
    high = max((m.range[1] for m in maps if m.share), default=1.0)
    common = [m for m in maps if m.share and m.range[1] > high / 5]
    low = min((m.range[0] for m in common), default=0.0)
    axes = part.subplots(rows, MAPS_IN_A_ROW, squeeze=False)
    for ax, m in zip(axes.flat, maps):
        most = max(map(abs, m.range))
        if m in common:
            image = _map(ax, m, low, high, "viridis", report)
        elif m.range[0] < 0:
            image = _map(ax, m, -most, most, "PuOr", report)
        else:
            image = _map(ax, m, m.range[0], most, "viridis", report)
        bar = part.colorbar(image, ax=ax, pad=0.02, aspect=25)
        bar.outline.set_linewidth(0.4)
        bar.ax.tick_params(labelsize=6, length=2, pad=1.5)
    for ax in axes.flat[len(maps) :]:
        ax.set_axis_off()
    more = f"; {left_out} more in report.json" if left_out else ""
    part.suptitle(
        f"gates by layer and epoch: means over the validation examples (★ kept){more}", fontsize=8.5, x=0.012, ha="left"
    )


def _map(ax: Any, m: Map, low: float, high: float, colours: str, report: Mapping[str, Any]) -> Any:
    columns = range(len(report["observations"]))
    data = [[m.values.get((layer, c), math.nan) for c in columns] for layer in m.layers]
    if high - low < 1e-9:
        low, high = low - 0.05, high + 0.05
    image = ax.imshow(data, aspect="auto", origin="lower", interpolation="nearest", cmap=colours, vmin=low, vmax=high)
    for side in ("left", "bottom"):
        ax.spines[side].set_visible(False)
    ax.tick_params(length=2)
    marks = [f"{o['epoch']:.3g}" + "★" * (o["step"] == report["best_step"]) for o in report["observations"]]
    every = -(-len(marks) // 8)
    kept = next((i for i in columns if marks[i].endswith("★")), -len(marks))
    chosen = [i for i in columns if i == kept or (i % every == 0 and abs(i - kept) >= every)]
    ax.set_xticks(chosen, [marks[i] for i in chosen])
    every = -(-len(m.layers) // 16)
    ax.set_yticks(range(0, len(m.layers), every), ["–" if n is None else str(n) for n in m.layers[::every]])
    ax.set(title=m.title, xlabel="epoch", ylabel="layer")
    if len(columns) <= NUMBERED[0] and len(m.layers) <= NUMBERED[1]:
        digits = 3 if max(map(abs, m.range)) < 0.1 else 2
        for i, values in enumerate(data):
            for j, v in enumerate(values):
                if not math.isnan(v):
                    at = float(image.norm(v))
                    dark = abs(at - 0.5) > 0.3 if colours == "PuOr" else at < 0.6
                    text = f"{v:.{digits}f}".replace("-", "−" if round(v, digits) else "")
                    ax.text(j, i, text, ha="center", va="center", fontsize=5.5, color="white" if dark else "black")
    return image


# ---------------------------------------------------------------- edits and gradients

#: A number for each layer (None: outside the layers, or shared by several).
Series = dict[Any, float]


def series_of(report: Mapping[str, Any]) -> dict[str, dict[str, Series]]:
    """By row and site the edits and gradients of each layer, at the evaluation whose weights were kept (else the last).

    A head's edit is left out: it takes the place of an h that means nothing.
    """
    out: dict[str, dict[str, Series]] = {}
    for p in _kept(report).get("places", ()):
        own = out.setdefault(f"{p['row']} at {p['site']}", {"edit": {}, "grad": {}})
        for what in ("edit", "grad"):
            if p[what] and not (what == "edit" and "head" in (p["row"], p["site"])):
                own[what][p["layer"]] = p[what]
    return {name: own for name, own in out.items() if own["edit"] or own["grad"]}


def _kept(report: Mapping[str, Any]) -> Mapping[str, Any]:
    observations = report["observations"]
    return next((o for o in observations if o["step"] == report["best_step"]), observations[-1] if observations else {})


def _profiles(part: Any, series: Mapping[str, Mapping[str, Series]], report: Mapping[str, Any]) -> None:
    """A line for each series; many of them as maps."""
    few = len(series) <= len(COLOURS)
    axes = part.subplots(1, 2, sharey=not few)
    epoch = f"{_kept(report)['epoch']:.3g}"
    charts = (("edit", f"size of the edits after epoch {epoch}", "‖out − h‖ / ‖h‖"),
              ("grad", f"size of the gradients before epoch {epoch} ends", "‖∂loss/∂θ‖"))  # fmt: skip
    for ax, (what, title, label) in zip(axes, charts):
        found = {name: own[what] for name, own in series.items()}
        layers = sorted({n for own in found.values() for n in own if n is not None})
        places: dict[Any, float] = {n: i for i, n in enumerate(layers)}
        if any(None in own for own in found.values()):
            places[None] = len(layers) + 0.5 if few else len(layers)
        (_lines if few else _many)(part, ax, found, places, label)
        ax.set(title=title, xlabel="layer" + " (any: outside the layers, or shared by several)" * (None in places))
        every = -(-len(layers) // 12)
        chosen = [n for n in places if n is None or places[n] % every == 0]
        ax.set_xticks([places[n] for n in chosen], ["any" if n is None else str(n) for n in chosen])
    if few:
        from matplotlib.lines import Line2D

        lines = [Line2D([], [], color=c, marker=k, label=n) for n, c, k in zip(series, COLOURS, MARKERS)]
        part.legend(handles=lines, loc="outside lower center", ncols=min(len(lines), 5), frameon=False)


def _lines(part: Any, ax: Any, found: Mapping[str, Series], places: Mapping[Any, float], label: str) -> None:
    for own, colour, marker in zip(found.values(), COLOURS, MARKERS):
        inside = [(places[n], own[n]) for n in places if n is not None and n in own]
        if inside:
            ax.plot(*zip(*inside), color=colour, marker=marker)
        if None in own:
            ax.plot(places[None], own[None], color=colour, marker=marker, linestyle="none")
    ax.set_ylabel(label)
    ax.grid(axis="y", linewidth=0.3, color="0.85")
    if any(found.values()):
        ax.set_yscale("log")
        _plain_logarithms(ax.yaxis, [v for own in found.values() for v in own.values()])


def _many(part: Any, ax: Any, found: Mapping[str, Series], places: Mapping[Any, float], label: str) -> None:
    from matplotlib.colors import LogNorm

    data = [[own.get(n, math.nan) for n in places] for own in found.values()]
    image = ax.imshow(
        data, aspect="auto", interpolation="nearest", cmap="viridis", norm=LogNorm() if any(found.values()) else None
    )
    ax.set_yticks(range(len(found)), list(found), fontsize=6)
    bar = part.colorbar(image, ax=ax, pad=0.02, aspect=22, label=label)
    bar.outline.set_linewidth(0.4)
    _plain_logarithms(bar.ax.yaxis, [v for own in found.values() for v in own.values()])


def _plain_logarithms(axis: Any, values: Sequence[float]) -> None:
    """Some numbers of each decade as plain text (as formulas they would need a parser of formulas)."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    decades = math.log10(max(values) / min(values)) if values else 0.0
    subs = (1.0, 1.5, 2.0, 3.0, 5.0, 7.0) if decades < 1 else (1.0, 2.0, 5.0) if decades < 3 else (1.0,)
    axis.set_major_locator(LogLocator(subs=subs, numticks=20))
    axis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
    axis.set_minor_formatter(NullFormatter())
