"""The Trainer subclass: checkpoints hold the adapter and the trainer's state, never the base.

Non-goals: sharded training (the adapter is saved from whole tensors) and pushing to a hub.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import Trainer, TrainerCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

import unipelt

from .tasks import Collator, Task, evaluate

STATE = "trainer_state.json"


class AdapterTrainer(Trainer):
    """Trains the adapter called ``adapter`` of a model: optimizer groups by the method, small checkpoints."""

    def __init__(self, adapter: str, task: Task, collator: Collator, **kwargs: Any):
        super().__init__(data_collator=collator, **kwargs)
        assert self.model is not None
        self.plain: nn.Module = self.model
        self.adapter = adapter
        self.task = task
        self.collator = collator

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        if self.optimizer is None:
            groups = unipelt.parameter_groups(self.plain, self.adapter, self.args.learning_rate, self.args.weight_decay)
            cls, options = self.get_optimizer_cls_and_kwargs(self.args)
            self.optimizer = cls(groups, **options)
        return self.optimizer

    def evaluate(self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval") -> dict:
        """Exact metrics over each example once; the Trainer's own means weigh a padded batch like a full one."""
        encoded: Any = self.eval_dataset if eval_dataset is None else eval_dataset
        found = evaluate(self.model, self.task, encoded, self.collator, self.args.eval_batch_size)
        metrics = {f"{metric_key_prefix}_{k}": v for k, v in found.items()}
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        if self.args.should_save:
            folder = str(output_dir or self.args.output_dir)
            Path(folder).parent.mkdir(parents=True, exist_ok=True)
            # Unfolded: training goes on from here.
            unipelt.save(self.plain, folder, self.adapter, fold=False)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        try:
            super()._save_checkpoint(model, trial)
        except RuntimeError as e:
            # torch reports a failed write (a full disk) as a RuntimeError of its archive writer.
            if "PytorchStreamWriter" in str(e) or "write" in str(e):
                raise OSError(f"the checkpoint could not be written (is the disk full?): {e}") from e
            raise

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        unipelt.restore(self.plain, resume_from_checkpoint, self.adapter)

    def _load_best_model(self) -> None:
        # By step, not by the recorded path: the run's folder may have been moved since.
        best = Path(str(self.args.output_dir)) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.best_global_step}"
        unipelt.restore(self.plain, best, self.adapter)

    def load_best(self) -> bool:
        """Go back to the best checkpoint; False where the last state is the best."""
        if not self.state.best_global_step or self.state.best_global_step == self.state.global_step:
            return False
        self._load_best_model()
        return True


class SaveEvery(TrainerCallback):
    """Checkpoints every so many steps, besides those that follow each epoch's evaluation."""

    def __init__(self, steps: int, steps_per_epoch: int):
        self.steps, self.steps_per_epoch = steps, steps_per_epoch

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
        # At the end of an epoch the checkpoint comes after the evaluation; an earlier one would lose it on resuming.
        if state.global_step % self.steps == 0 and state.global_step % self.steps_per_epoch != 0:
            control.should_save = True
        return control


def last_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint. One that a kill cut short lacks a readable state, written last; it is removed."""
    found = []
    for place in folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*"):
        number = place.name.rpartition("-")[2]
        if not (place.is_dir() and number.isdigit()):
            continue
        try:
            whole = json.loads((place / STATE).read_text("utf-8"))["global_step"] == int(number)
        except (OSError, ValueError, KeyError, TypeError):
            whole = False
        if whole:
            found.append((int(number), place))
        else:
            shutil.rmtree(place, ignore_errors=True)
    return max(found)[1] if found else None
