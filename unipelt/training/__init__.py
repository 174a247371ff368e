"""Training on Hugging Face models: data, tasks, one small Trainer subclass, saved runs. Imports torch only when used."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .any_trainer import Reference, WithAdapters, for_trainer
    from .config import TrainConfig
    from .data import Data, Split, read
    from .states import Features, features
    from .options import Opening, TaskOptions
    from .run import Result, train
    from .saved import Run, evaluate_run, load_run, merge_run, predict_run
    from .trunk import Trunk, cache_trunk
    from .watching import Watching
    from .words import Words

_WHERE = {
    "TrainConfig": "config", "Data": "data", "Split": "data", "read": "data", "Result": "run", "train": "run",
    "Run": "saved", "load_run": "saved", "evaluate_run": "saved", "predict_run": "saved", "merge_run": "saved",
    "Watching": "watching", "Words": "words", "Features": "states", "features": "states", "Opening": "options", "TaskOptions": "options",
    "Trunk": "trunk", "cache_trunk": "trunk", "Reference": "any_trainer", "WithAdapters": "any_trainer", "for_trainer": "any_trainer",
}  # fmt: skip

__all__ = [
    "Data", "Features", "Opening", "Reference", "Result", "Run", "Split", "TaskOptions", "TrainConfig", "Trunk", "Watching",
    "WithAdapters", "Words", "cache_trunk", "evaluate_run", "features", "for_trainer", "load_run", "merge_run", "predict_run", "read", "train",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        return getattr(import_module(f".{_WHERE[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
