"""What happened in a run, as data (``report.json``) and as one picture (``report.png``, ``report.svg``).

The data come from the trainer's history, which checkpoints keep: a resumed run's report is whole.
"""

from __future__ import annotations

import importlib.util
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..language.files import replace
from ..language.report.diagnostics import error

DATA, PICTURES = "report.json", ("report.png", "report.svg")
#: As in `watching.LOGGED`, which needs torch.
LOGGED = "unipelt/"
_STATISTICS = ("mean", "std", "min", "max")


def drawable() -> None:
    """Raise `PeltError` if matplotlib is missing. Call it before a run."""
    if importlib.util.find_spec("matplotlib") is None:
        raise error("E0671", "a report is drawn with matplotlib, and that is not installed",
                    help="pip install 'unipelt[pictures]', or leave `--report` out")  # fmt: skip


def report_of(
    history: Sequence[Mapping[str, Any]], order: Sequence[tuple[str, str]] = (), **about: Any
) -> dict[str, Any]:
    """The report of a trainer's history: losses by step, metrics and observations by evaluation, and ``about`` the run.

    ``order`` are rows and sites in the order of the method; a history that was saved has lost it.
    """
    losses = [{"step": h["step"], "epoch": h.get("epoch"), "loss": h["loss"]} for h in history if "loss" in h]
    evaluations: list[dict[str, Any]] = []
    observations: list[dict[str, Any]] = []
    for h in history:
        when = {"step": h["step"], "epoch": h.get("epoch")}
        metrics = {k.removeprefix("eval_"): v for k, v in h.items() if k.startswith("eval_")}
        seen = {k.removeprefix(LOGGED): v for k, v in h.items() if k.startswith(LOGGED)}
        if metrics:
            evaluations.append({**when, "metrics": metrics})
        if seen:
            observations.append({**when, "places": _places(seen, order)})
    return {"version": 1, **about, "losses": losses, "evaluations": evaluations, "observations": observations}


def _places(seen: Mapping[str, float], order: Sequence[tuple[str, str]]) -> list[dict[str, Any]]:
    """Logged values by place: ``row/site/layer/what``."""
    out: dict[str, dict[str, Any]] = {}
    for name, value in sorted(seen.items()):
        front, _, what = name.rpartition("/")
        row, site, *layer = front.split("/")
        at = {"row": row, "site": site, "layer": int(layer[0]) if layer else None}
        place = out.setdefault(front, {**at, "edit": None, "grad": None, "gates": {}})
        label, _, statistic = what.rpartition("_")
        if label and statistic in _STATISTICS:
            place["gates"].setdefault(label, {})[statistic] = value
        else:
            place[what] = value
    rank = {place: i for i, place in enumerate(order)}

    def key(p: Mapping[str, Any]) -> tuple:
        row, site, layer = p["row"], p["site"], p["layer"]
        return rank.get((row, site), len(rank)), row, site, math.inf if layer is None else layer

    return sorted(out.values(), key=key)


def write_report(folder: Path, report: Mapping[str, Any]) -> None:
    """Write the data and the pictures, each file in one step."""
    from .picture import draw

    replace(folder / DATA, json.dumps(report, indent=1, ensure_ascii=False).encode() + b"\n")
    for name in PICTURES:
        replace(folder / name, draw(report, name.rpartition(".")[2]))
