"""Logs edits, gates and gradients at each evaluation of a training, through the Trainer's own loggers."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from transformers import Trainer, TrainerCallback

from ..runtime.registry import record
from ..runtime.watch import Place, Seen, norms, parameters, watch

#: The prefix of the names of logged values.
LOGGED = "unipelt"


class Watching(TrainerCallback):
    """Watches an adapter while a `Trainer` evaluates, and the gradients of the steps between.

    ``trainer.add_callback(Watching(trainer, "sst2"))`` gives the loggers of ``report_to`` and the trainer's history, at
    each evaluation, for every row, site and layer

    - ``unipelt/<row>/<site>/<layer>/edit``: ‖out − h‖ / ‖h‖ over the real tokens of the evaluation's examples,
    - ``…/<gate>_mean``, ``_std``, ``_min``, ``_max`` of each gate there (`unipelt.compiler.gates`),
    - ``…/grad``: the root of the mean square of ‖∂loss/∂θ‖ over the steps since the last evaluation, as the optimizer
      saw the gradients: averaged over processes, scaled back and clipped.

    Training does not notice: it gives the same weights, bit for bit. Of several processes each must have the callback.
    """

    def __init__(self, trainer: Trainer, adapter: str = "default"):
        self.trainer, self.adapter = trainer, adapter
        self.open = contextlib.ExitStack()
        self.seen: Seen | None = None
        self.parameters: dict[Place, list[torch.nn.Parameter]] = {}
        self.squares: dict[Place, torch.Tensor] = {}
        self.steps = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.parameters = parameters(record(self.trainer.model, self.adapter))  # type: ignore[arg-type]
        self.squares, self.steps = {}, 0

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        for place, n in norms(self.parameters).items():
            before = self.squares.get(place)
            self.squares[place] = n.square() if before is None else before + n.square()
        self.steps += 1

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._before(control)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._before(control)

    def _before(self, control: Any) -> None:
        if control.should_evaluate and self.seen is None:
            self.seen = self.open.enter_context(watch(self.trainer.model, self.adapter))  # type: ignore[arg-type]

    def on_evaluate(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.seen is None:  # an evaluation that was called for by hand
            return
        seen, self.seen = self.seen, None
        self.open.close()
        self.trainer.log(self._values(seen, args.world_size))

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.close()

    def close(self) -> None:
        """Stops watching, whatever has happened."""
        self.seen = None
        self.open.close()

    def _values(self, seen: Seen, processes: int) -> dict[str, float]:
        parts = [seen.raw()]
        if processes > 1:  # each has seen its own share of the examples
            from accelerate.utils import gather_object

            parts = gather_object(parts)
        edits, gates = Seen.read(*parts)
        out = {f"{LOGGED}/{place}/edit": value for place, value in edits.items()}
        for place, found in gates.items():
            for label, s in found.items():
                out |= {f"{LOGGED}/{place}/{label}_{f}": getattr(s, f) for f in ("mean", "std", "min", "max")}
        for place, square in self.squares.items():
            out[f"{LOGGED}/{place}/grad"] = float((square / self.steps).sqrt())
        self.squares, self.steps = {}, 0
        return out
