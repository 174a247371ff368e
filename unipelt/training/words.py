"""What a method says of its training, carried out in any Trainer of transformers: `progress` and `after step`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import TrainerCallback

from torch import nn

from ..runtime.registry import registry, unwrapped
from ..runtime.steps import after_step, progress


def adapted_models(model: Any) -> list[nn.Module]:
    """The models that have adapters: this one, or those inside it, as a SentenceTransformer or SetFit's model holds one."""
    model = unwrapped(model)
    parts = [model] if isinstance(model, nn.Module) else [v for v in vars(model).values() if isinstance(v, nn.Module)]
    return [m for part in parts for m in part.modules() if registry(m) is not None]


class Words(TrainerCallback):
    """``Trainer(…, callbacks=[Words()])`` tells a model's adapters how far training has come before each step, and carries out their
    ``after step`` lines behind the optimiser's step, while gradients are there. unipelt's own trainer has it.

    A resumed run goes on: progress is the Trainer's own count, and what the lines keep are tensors of the adapter. Penalties
    need no callback: they are in the loss of a model that is given labels.
    """

    models: Sequence[nn.Module] = ()

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        self.models = adapted_models(model)

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        for model in self.models:
            progress(model, min(1.0, state.global_step / max(state.max_steps, 1)))

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        for model in self.models:
            progress(model, min(1.0, (state.global_step + 1) / max(state.max_steps, 1)))
            after_step(model)
