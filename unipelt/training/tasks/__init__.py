"""What is learned. Each kind of task is one file with one class, and one entry of the table below.

A task is plain data (`task.json` in a run's folder) with a few answers to give, listed in `task.Task`: the columns that it
finds, how it encodes and collates, the model class it loads, its outputs for each example, and its scores from all of them.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ...language.report.diagnostics import error, near

if TYPE_CHECKING:
    from ..config import TaskOptions
    from ..data import Split
    from .evaluation import Collator, evaluate, outputs_of, predict, score
    from .task import IGNORED, Encoded, Task, Tick

#: The kinds by name, in the order in which data are asked which of them they suit.
KINDS = {
    "question-answering": "question_answering:QuestionAnswering",
    "token-classification": "token_classification:TokenClassification",
    "pet": "pet:PET",
    "sequence-classification": "classification:SequenceClassification",
    "seq2seq": "seq2seq:Seq2Seq",
    "causal-lm": "causal_lm:CausalLM",
}

_WHERE = {
    "Collator": "evaluation", "evaluate": "evaluation", "outputs_of": "evaluation", "predict": "evaluation",
    "score": "evaluation", "IGNORED": "task", "Encoded": "task", "Task": "task", "Tick": "task",
}  # fmt: skip

__all__ = [
    "IGNORED", "KINDS", "Collator", "Encoded", "Task", "Tick",
    "evaluate", "kind", "outputs_of", "predict", "score", "task_for", "task_from_json",
]  # fmt: skip


def kind(name: str) -> type[Task]:
    """The class of a kind of task."""
    if name not in KINDS:
        raise error("E0620", f"there is no task `{name}`", help=near(name, KINDS) or f"give one of {', '.join(KINDS)}")
    module, _, cls = KINDS[name].partition(":")
    return getattr(import_module(f".{module}", __name__), cls)


def task_for(train: Split, options: TaskOptions, base: Any = None) -> Task:
    """The task that a training split asks for: its kind unless given, its columns, its labels.

    ``base`` is the configuration of the model, which tells an encoder–decoder's tasks from others.
    """
    found = kind(options.task) if options.task else next(k for k in map(kind, KINDS) if k.suits(train, options, base))
    for name in options.given():
        if name not in found.asks:
            able = ", ".join(k for k in KINDS if name in kind(k).asks)
            raise error("E0620", f"`--{name.replace('_', '-')}` means nothing to {found.kind}, the task of this run",
                        help=f"leave it out, or choose with `--task`: {able}")  # fmt: skip
    return found.find(train, options, base)


def task_from_json(record: Any) -> Task:
    """The task of a run's record; what later versions no longer know is passed over."""
    if not isinstance(record, dict) or not isinstance(record.get("kind"), str):
        raise error("E0615", "the task's record is incomplete: it names no kind", help="train again")
    return kind(record["kind"]).from_json(record)


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        return getattr(import_module(f".{_WHERE[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
