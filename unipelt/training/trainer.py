"""The Trainer subclass. Its results do not depend on the number of processes; checkpoints hold the adapter and the state, never the base.

The batch of a step is the same for any number of processes and of accumulated parts, and so is its loss: each part's mean
counts as many examples (or tokens) as it is the mean of. transformers' own sum needs models that divide by a number they
are given, and BERT's classifiers take the number and do not.
Non-goals: DeepSpeed, FSDP 1 and pushing to a hub.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, RandomSampler
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import TrainerState
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.training_args import OptimizerNames

import unipelt

from ..language.report.diagnostics import PeltError, error
from ..language.files import check, contents, reason
from ..runtime.registry import record
from . import ranks
from .any_trainer import WithAdapters
from .data import whole_number
from .tasks.evaluation import Collator, as_read, evaluate
from .tasks.task import Task

STATE, OPTIMIZER, SCHEDULER = "trainer_state.json", "optimizer.pt", "scheduler.pt"
#: The most bytes of a trainer's state, which has a line for each step.
LARGEST = 2**30
#: The entry of a batch with the number of examples or tokens that its loss averages.
WEIGHT = "weight"


class Parts:
    """Batches of an epoch in a sampler's order, each cut into ``parts`` of equal size, up to one example.

    The last batch may be shorter, and some of its parts empty: there are always ``parts`` of each, so that no process runs out.
    """

    def __init__(self, sampler: Any, batch_size: int, parts: int):
        self.sampler, self.size, self.parts = sampler, batch_size, parts

    def __len__(self) -> int:
        return -(-len(self.sampler) // self.size) * self.parts

    def __iter__(self) -> Iterator[list[int]]:
        batch: list[int] = []
        for i, index in enumerate(self.sampler, 1):
            batch.append(index)
            if len(batch) == self.size or i == len(self.sampler):
                for part in range(self.parts):
                    yield batch[len(batch) * part // self.parts : len(batch) * (part + 1) // self.parts]
                batch = []


def optimizer_of(arguments: TrainingArguments) -> tuple[type[torch.optim.Optimizer], dict[str, Any]]:
    """The class of the optimizer and its options. Raises `PeltError` if its package is not installed."""
    try:
        return Trainer.get_optimizer_cls_and_kwargs(arguments)
    except (ImportError, ValueError) as e:
        name = OptimizerNames(arguments.optim).value
        raise error("E0666", f"the optimizer {name} is not there: {e}", help="choose another `--optimizer`") from None


class AdapterTrainer(WithAdapters, Trainer):
    """Trains the adapter called ``adapter`` of a model: optimizer groups by the method, small checkpoints.

    ``batch_size`` counts the examples of a step: those of all processes and of all parts that are accumulated.
    """

    def __init__(self, adapter: str, task: Task, collator: Collator, batch_size: int, **kwargs: Any):
        super().__init__(data_collator=collator, **kwargs)
        assert self.model is not None
        self.plain: nn.Module = self.model
        self.adapter = adapter
        self.task = task
        self.collator = collator
        self.batch_size = batch_size
        self.prompted = any(e.prompt is not None and e.prompt.leads for e in record(self.plain, adapter).plan.edits)
        self.spare: dict[str, Any] | None = None
        # `compute_loss` scales: the loss is neither to be divided by the accumulated parts nor by a number of labels.
        self.model_accepts_loss_kwargs = self.loss_is_scaled_for_ga = True

    # ------------------------------------------------------------ batches

    def get_train_dataloader(self) -> DataLoader:
        dataset: Any = self.train_dataset
        parts = Parts(
            RandomSampler(dataset), self.batch_size, self.args.world_size * self.args.gradient_accumulation_steps
        )
        loader = DataLoader(
            dataset,
            batch_sampler=parts,
            collate_fn=self.weighted,
            pin_memory=self.args.dataloader_pin_memory,  # type: ignore[arg-type]
        )
        return self.accelerator.prepare(loader)

    def weighted(self, examples: list[Any]) -> dict[str, Any]:
        """A batch with its weight. A batch with nothing to learn from is replaced by another example with the weight 0."""
        batch: dict[str, Any] = self.collator(examples) if examples else {}
        weight = self.task.weight(batch, self.prompted) if examples else 0
        if not weight:
            if self.spare is None:
                dataset: Any = self.train_dataset
                found = (self.collator([dataset[i]]) for i in range(len(dataset)))
                self.spare = next((b for b in found if self.task.weight(b, self.prompted)), batch)
            batch = dict(self.spare)
        return {**as_read(batch, self.plain.dtype), WEIGHT: weight}  # type: ignore[arg-type]

    def get_batch_samples(self, epoch_iterator: Iterator, num_batches: int, device: torch.device) -> tuple[list, int]:
        """The parts of a step that fall to this process, and the weight of all parts."""
        batches = [batch for _, batch in zip(range(num_batches), epoch_iterator)]
        return batches, ranks.total(sum(b[WEIGHT] for b in batches), device)

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The part's share of the step's loss; times the processes, as their gradients are averaged."""
        inputs = dict(inputs)
        weight = inputs.pop(WEIGHT)
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True)
        loss = loss * (weight * self.args.world_size / max(num_items_in_batch, 1))
        return (loss, outputs) if return_outputs else loss

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        if self.optimizer is None:
            groups = unipelt.parameter_groups(self.plain, self.adapter, self.args.learning_rate, self.args.weight_decay)
            cls, options = optimizer_of(self.args)
            self.optimizer = cls(groups, **options)
        return self.optimizer  # type: ignore[return-value]

    def evaluate(self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval") -> dict:
        """Exact metrics over each example once; the Trainer's own means weigh a padded batch like a full one."""
        encoded: Any = self.eval_dataset if eval_dataset is None else eval_dataset
        found = self.score(self.task, encoded)
        metrics = {f"{metric_key_prefix}_{k}": v for k, v in found.items()}
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def score(self, task: Task, encoded: Any, tick: Any = None) -> dict[str, float]:
        """Metrics of a task; each process runs its share of the examples, all get the metrics."""
        return evaluate(self.model, task, encoded, self.collator, self.args.eval_batch_size, tick,
                        ranks.rank(), ranks.world(), ranks.gather)  # fmt: skip

    def leave_autocast(self) -> None:
        """Takes the model out of autocast, so that it scores here as it does once it is saved and loaded."""
        self.accelerator.unwrap_model(self.model, keep_fp32_wrapper=False)

    # ------------------------------------------------------------ checkpoints

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        self._save(output_dir)

    def _save_more(self, folder: Path) -> None:
        """Nothing: a run's folder has the rest."""

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        """The optimizer's state by the names of the parameters, whole: any number of processes goes on from it."""
        from torch.distributed.checkpoint.state_dict import StateDictOptions, get_optimizer_state_dict

        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        state = get_optimizer_state_dict(self.model_wrapped, self._bare_optimizer(), options=options)
        if self.args.should_save:
            os.makedirs(output_dir, exist_ok=True)
            torch.save(state, os.path.join(output_dir, OPTIMIZER))
            torch.save(self.lr_scheduler.state_dict(), os.path.join(output_dir, SCHEDULER))  # type: ignore[union-attr]

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        from torch.distributed.checkpoint.state_dict import StateDictOptions, set_optimizer_state_dict

        scheduler: Any = self.lr_scheduler
        with resuming_from(checkpoint, OPTIMIZER) as path:
            state = torch.load(path, map_location="cpu", weights_only=True)
            options = StateDictOptions(full_state_dict=True)
            set_optimizer_state_dict(self.model_wrapped, self._bare_optimizer(), state, options=options)
        with resuming_from(checkpoint, SCHEDULER) as path:
            state = torch.load(path, weights_only=True)
            if set(state) != set(scheduler.state_dict()):
                raise ValueError("it holds other things than this run's scheduler has")
            scheduler.load_state_dict(state)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        name = f"rng_state_{self.args.process_index}.pth" if self.args.world_size > 1 else "rng_state.pth"
        if not os.path.lexists(os.path.join(checkpoint, name)):  # which transformers says
            super()._load_rng_state(checkpoint)
            return
        with resuming_from(checkpoint, name):
            super()._load_rng_state(checkpoint)

    def _bare_optimizer(self) -> Any:
        return getattr(self.optimizer, "optimizer", self.optimizer)

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        # The state is written next, and last: it says that every process's file is there.
        self.accelerator.wait_for_everyone()

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        try:
            super()._save_checkpoint(model, trial)
        except RuntimeError as e:
            # torch reports a failed write (a full disk) as a RuntimeError of its archive writer.
            if "PytorchStreamWriter" in str(e) or "write" in str(e):
                raise OSError(f"the checkpoint could not be written (is the disk full?): {e}") from e
            raise

    def _load_best_model(self) -> None:
        # By step, not by the recorded path: the run's folder may have been moved since.
        best = Path(str(self.args.output_dir)) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.best_global_step}"
        self._restore(best)

    def load_best(self) -> bool:
        """Go back to the best checkpoint; False where the last state is the best."""
        if not self.state.best_global_step or self.state.best_global_step == self.state.global_step:
            return False
        self._load_best_model()
        return True


@contextmanager
def resuming_from(checkpoint: str, name: str) -> Iterator[str]:
    """Yields the path of a checkpoint's file. An error while it is read becomes a `PeltError`; nothing is unpickled."""
    path = Path(checkpoint) / name
    try:
        check(path)
        yield str(path)
    except PeltError:
        raise
    except Exception as e:  # noqa: BLE001 - torch raises whatever its readers raise
        said = "it holds more than numbers" if isinstance(e, UnpicklingError) else " ".join(reason(e).split())
        raise error("E0781", f"the run cannot go on from `{path}`: {said[:200]}",
                    help="take the checkpoint's folder away to go on from the one before, or train again with `--overwrite`") from None  # fmt: skip


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
    """The newest complete checkpoint. The state is written last: a checkpoint without a readable one is incomplete and is removed."""
    found = []
    for place in folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*"):
        number = whole_number(place.name.rpartition("-")[2])
        if not place.is_dir() or number is None:
            continue
        try:
            state = json.loads(contents(place / STATE, LARGEST))
            whole = state["global_step"] == number
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            whole = False
        if whole:
            found.append((number, place))
        else:
            shutil.rmtree(place, ignore_errors=True)
    if not found:
        return None
    last = max(found)[1]
    with resuming_from(str(last), STATE) as path:
        state = vars(TrainerState.load_from_json(path))
        plain = vars(TrainerState())
        wrong = next((n for n, value in state.items() if not _like(value, plain.get(n))), None)
        if wrong is not None or not all(isinstance(h, dict) for h in state["log_history"]):
            raise ValueError(f"its `{wrong or 'log_history'}` is none")
    return last


def _like(value: Any, default: Any) -> bool:
    """Whether a value has the type that a new state has in its place."""
    if default is None or value is None:
        return True
    return isinstance(value, (int, float)) if isinstance(default, (int, float)) else isinstance(value, type(default))
