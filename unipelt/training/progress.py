"""The progress of a run: a bar on a terminal, a line for each evaluation elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from transformers import TrainerCallback

from . import bars

Say = Callable[[str], None]


def silent(_: str) -> None:
    """Says nothing."""


class Progress(TrainerCallback):
    """A bar over the optimizer steps with the running loss and the last evaluation."""

    def __init__(self, say: Say, metric: str, bar: bool | None = None):
        self.say, self.metric = say, metric
        self.wanted = bars.wanted(bar)
        self.bar: Any = None
        self.shown: dict[str, str] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.wanted:
            self.bar = bars.bar("training", "step", state.max_steps, initial=state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.bar is not None:
            self.bar.update(state.global_step - self.bar.n)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
        if self.bar is not None and logs and "loss" in logs:
            self.shown["loss"] = f"{logs['loss']:.3f}"
            self.bar.set_postfix(self.shown, refresh=False)

    def on_evaluate(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        value = given["metrics"][f"eval_{self.metric}"]
        self.shown[f"validation {self.metric}"] = f"{value:.3f}"
        if self.bar is not None:
            self.bar.set_postfix(self.shown)
        else:
            self.say(f"epoch {state.epoch:.0f}, step {state.global_step} of {state.max_steps}: "
                     f"validation {self.metric} {value:.3f}")  # fmt: skip

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()
            self.bar = None
