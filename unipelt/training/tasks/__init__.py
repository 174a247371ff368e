"""The tasks. Each kind is one file with one class, and one entry of `options.KINDS`.

A task is plain data (`task.json` in a run's folder) with a few answers to give, listed in `task.Task`: the columns that it
finds, how it encodes and collates, the model class it loads, its outputs for each example, and its scores from all of them.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ...language.report.diagnostics import error, near
from ..data import Split
from ..options import KINDS, TaskOptions, flag
from .task import Task

if TYPE_CHECKING:
    from ...compiler.labels import Labels


def kind(name: str) -> type[Task]:
    """The class of a kind of task."""
    if name not in KINDS:
        raise error("E0620", f"there is no task `{name}`", help=near(name, KINDS) or f"give one of {', '.join(KINDS)}")
    module, _, cls = KINDS[name].partition(":")
    return getattr(import_module(f".{module}", __name__), cls)


def _refuse_options_of_others(found: type[Task], options: TaskOptions) -> None:
    for name in options.given():
        if name not in found.asks:
            able = ", ".join(k for k in KINDS if name in kind(k).asks)
            raise error("E0620", f"`{flag(name)}` means nothing to {found.kind}, the task of this run",
                        help=f"leave it out, or choose with `--task`: {able}")  # fmt: skip


def task_for(train: Split, options: TaskOptions, base: Any = None) -> Task:
    """The task that a training split asks for: its kind unless given, its columns, its labels.

    ``base`` is the configuration of the model, which tells an encoder–decoder's tasks from others.
    """
    found = kind(options.task) if options.task else next(k for k in map(kind, KINDS) if k.suits(train, options, base))
    _refuse_options_of_others(found, options)
    return found.find(train, options, base)


def task_without_data(options: TaskOptions, labels: Labels) -> Task:
    """The task that the options name, for predictions without data: options and labels say what data would."""
    found = kind(str(options.task))
    _refuse_options_of_others(found, options)
    return found.named(options, labels)


def task_from_json(record: Any) -> Task:
    """The task of a run's record. Fields that this version does not know are ignored."""
    if not isinstance(record, dict) or not isinstance(record.get("kind"), str):
        raise error("E0615", "the task's record is incomplete: it names no kind", help="train again")
    return kind(record["kind"]).from_json(record)
