"""Evaluation in two halves, so that several processes can share it: outputs of each example, then metrics of all outputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ...anatomy.evaluating import evaluating
from .task import Answer, Around, Batch, Encoded, Example, Inputs, Output, Predicting, Task, Tick

if TYPE_CHECKING:
    import torch

#: Merges the outputs of all processes. The key is the position of the example.
Gather = Callable[[dict[int, Output]], dict[int, Output]]


@dataclass(frozen=True)
class Collator:
    """Makes batches of a task's examples."""

    tokenizer: Any
    task: Task

    def __call__(self, examples: Sequence[Example]) -> Batch:
        return self.task.collate(examples, self.tokenizer)


def batches(task: Task, encoded: Encoded, size: int) -> Iterator[list[int]]:
    """Positions of examples of similar length (little padding), the shortest first."""
    order = sorted(range(len(encoded)), key=lambda i: (task.length_of(encoded[i]), i))
    for start in range(0, len(order), size):
        yield order[start : start + size]


def outputs_of(model: Any, task: Task, encoded: Encoded, collator: Collator, size: int, tick: Tick | None = None,
               rank: int = 0, world: int = 1, around: Around | None = None) -> dict[int, Output]:  # fmt: skip
    """The outputs of the batches that fall to process ``rank`` of ``world``, by the position of their example.

    The batches are the same for any number of processes, and so are the outputs. Each process calls the model equally often, as
    sharded models demand: those that run out of batches repeat the last one.
    """
    every = list(batches(task, encoded, size))
    mine = every[rank::world]
    mine += every[-1:] * (-(-len(every) // world) - len(mine))
    found: dict[int, Output] = {}
    with evaluating(model):
        for chosen in mine:
            batch = as_read(collator([encoded[i] for i in chosen]), model.dtype)
            batch = {k: v.to(model.device) for k, v in batch.items()}
            with around(chosen) if around else nullcontext():
                found.update(zip(chosen, task.outputs(model, batch, encoded, chosen), strict=True))
            if tick:
                tick(len(found), sum(map(len, every[rank::world])))
    return found


def as_read(batch: Batch, dtype: torch.dtype) -> Batch:
    """The batch with pictures and sounds in the dtype of the model, which text has none of."""
    fractions = {
        k: k != "labels" and hasattr(v, "is_floating_point") and v.is_floating_point() for k, v in batch.items()
    }
    return {k: v.to(dtype) if fractions[k] else v for k, v in batch.items()}


def outputs_in_order(model: Any, task: Task, encoded: Encoded, tokenizer: Any, how: Predicting) -> list[Output]:
    """The outputs of all examples, for predictions."""
    found = outputs_of(model, task, encoded, Collator(tokenizer, task), how.batch_size, how.tick, around=how.around)
    return [found[i] for i in range(len(encoded))]


def score(task: Task, encoded: Encoded, outputs: dict[int, Output], tokenizer: Any) -> dict[str, float]:
    """Metrics over the examples, each counted once: padding, the last, smaller batch and repeated ones change nothing."""
    return task.score(encoded, [outputs[i] for i in range(len(encoded))], tokenizer)


def evaluate(model: Any, task: Task, encoded: Encoded, collator: Collator, size: int, tick: Tick | None = None,
             rank: int = 0, world: int = 1, gather: Gather | None = None) -> dict[str, float]:  # fmt: skip
    """Metrics over all examples. In several processes ``gather`` hands everybody the outputs of all."""
    found = outputs_of(model, task, encoded, collator, size, tick, rank, world)
    return score(task, encoded, gather(found) if gather else found, collator.tokenizer)


def predict(model: Any, task: Task, inputs: Inputs, tokenizer: Any, how: Predicting) -> list[Answer]:
    """A record for each input; each input is a sequence with a value for each of the task's input columns."""
    if not inputs:
        return []
    with evaluating(model):
        return task.predict(model, inputs, tokenizer, how)
