"""Adapters as peft's LoRA, whatever their method: what they do to the weights, in factors of a rank."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..runtime.registry import record, unwrapped
from . import folders
from .convolutions import spread
from .declared import by_factors, no_counterpart
from .factors import Factored, Tick, factored
from .peft_out import serving_problem, settings, targets, turned
from .places import FRONT, key, refuse_uncalled


@dataclass(frozen=True)
class AsLora:
    """What `export_as_lora` wrote: the folder, the rank, for each linear map the share of its change that the rank leaves out,
    ‖Δ - A B‖ / ‖Δ‖ (Frobenius), and the share of all changes together."""

    folder: Path
    rank: int
    left_out: Mapping[str, float]
    overall: float

    @property
    def error(self) -> float:
        """The largest share of a map."""
        return max(self.left_out.values(), default=0.0)

    def to_json(self) -> dict[str, Any]:
        shares = {"error": self.error, "overall": self.overall, "left_out": dict(self.left_out)}
        return {"folder": str(self.folder), "rank": self.rank, **shares}


def export_as_lora(
    model: nn.Module, folder: str | Path, name: str = "default", *, rank: int | None = None, serving: bool = False,
    tick: Tick = lambda done, total: None,
) -> AsLora:  # fmt: skip
    """Writes an attached adapter that merges, of any method, as a LoRA that peft opens, and says what that leaves out.

    ``W_new - W`` of each linear map becomes the best two factors of a rank (by its singular values); without ``rank`` of as many
    as the map that needs most, which leaves out rounding alone. Changes of biases go into ``lora_bias``; norms, embeddings and a
    head that change are saved whole (``modules_to_save``). The model stays as it is. ``tick`` is told how many maps are done, and of how many.
    Raises `PeltError` where the adapter does not merge, where what it changes is tied to something else, and, with
    ``serving``, where a serving engine would not read it (`export_peft`).
    """
    model = unwrapped(model)
    record(model, name)
    found = factored(model, name, rank, tick)
    config, tensors = _folder(model, found)
    problem = serving_problem(config) if serving else None
    if problem is not None:
        raise no_counterpart(f"a serving engine would not read it: {problem}")
    place = Path(folder)
    folders.write(place, folders.PEFT, config, tensors)
    return AsLora(place, found.rank, found.left_out, found.overall)


def _folder(model: nn.Module, found: Factored) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    refuse_uncalled(model, found.maps)
    d = by_factors()
    tensors: dict[str, torch.Tensor] = {}
    for path in found.maps:
        down, up = found.padded(path, model)
        for label, t in (("down", down), ("up", up)):
            tensors[key(d, d.tensors[d.factors[label]][0], path)] = t.mT
        if found.biases:
            tensors[key(d, d.shift["key"], path)] = found.biases.get(path, torch.zeros(up.shape[1]))
    for path, own in found.whole.items():
        tensors |= {f"{FRONT}{path}.{n}": t for n, t in own.items()}
    return {
        **settings(model, d), **dict.fromkeys(d.arguments.values(), 0.0), d.arguments[d.factors["rank"]]: found.rank,
        d.arguments[d.factors["scale"]]: float(found.rank), "target_modules": targets(model, set(found.maps)),
        **turned(model, d, found.maps), d.shift["setting"]: bool(found.biases),
        **({"modules_to_save": sorted(found.whole)} if found.whole else {}),
    }, spread(model, d, tensors)  # fmt: skip
