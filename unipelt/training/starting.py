"""The adapter of a run as it starts: what data decide is measured where the run trains, and every process starts the same."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import torch

import unipelt

from ..compiler.plan import Plan
from ..language.ir import Method
from ..language.types.primitives import entry_of
from . import ranks
from .config import TrainConfig
from .folder import NAME
from .tasks.evaluation import Collator, as_read
from .tasks.task import Encoded, Task


def start(
    config: TrainConfig, method: Method, model: Any, task: Task, tokenizer: Any, train: Encoded
) -> tuple[Plan, list[str]]:
    """Attaches the run's adapter. Returns its plan, and notes about where its start was measured."""
    notes = _to_its_device(model) if reads_data(method) else []
    plan = unipelt.apply(
        model,
        method,
        name=NAME,
        seed=config.seed,
        tokenizer=tokenizer if task.reads_text else None,
        label_words=task.label_words,
        allow_future=config.allow_future,
        data=batches(config, task, tokenizer, train, model),
        loss=_loss_of(task),
    )
    ranks.same([t for n, t in unipelt.state_dict(model, NAME).items() if n in plan.tensors])
    return plan, notes


def reads_data(method: Method) -> bool:
    """Whether data decide how a tensor starts."""
    return any((entry := entry_of(n)) is not None and entry.data for r in method.rows for n in r.nodes)


def _to_its_device(model: Any) -> list[str]:
    """Moves a model to where it will be trained, for the passes that its start needs; notes where it stays."""
    if os.environ.get("ACCELERATE_USE_FSDP", "").lower() in ("1", "true", "yes") and not ranks.on_cpu():
        return ["what data decide is measured on the CPU: the model is to be sharded, and may not fit on one device"]
    if getattr(model, "hf_device_map", None) is None:  # else it was placed when it was loaded
        model.to(ranks.device())
    return []


def batches(config: TrainConfig, task: Task, tokenizer: Any, train: Encoded, model: Any) -> Iterator[dict[str, Any]]:
    """Batches of training examples, in an order that the seed decides, for starts that data decide; again from the front at the end."""
    collator, order = Collator(tokenizer, task), torch.Generator().manual_seed(config.seed)
    while True:
        shuffled = torch.randperm(len(train), generator=order).tolist()
        for at in range(0, len(shuffled), config.batch_size):
            yield as_read(collator([train[i] for i in shuffled[at : at + config.batch_size]]), model.dtype)


def _loss_of(task: Task) -> Any:
    """The loss of a batch for starts from gradients, where it is not the model's own."""
    own = task.loss_function
    return None if own is None else lambda outputs, batch: own(outputs, batch["labels"])
