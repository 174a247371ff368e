"""Heads of the library `adapters`, in and out: those of transformers' own classes, and its own where they compute the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os.path import exists
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..compiler.labels import labels_of_base
from ..language.report.diagnostics import error
from . import folders
from .adapterhub_declared import heads, same

REMEDY = "load the model with the head that the folder's `head_config.json` describes, or take that file away"


@dataclass(frozen=True)
class Head:
    """A head's tensors by the paths of the model's parameters, and its labels in the order of the columns."""

    tensors: Mapping[str, torch.Tensor]
    labels: int | Sequence[str] | None


def head_of(model: nn.Module, at: Path) -> Head | None:
    """The head of a folder, for a model; None where there is none. Raises `PeltError`."""
    if not exists(at / folders.HEAD.config):
        return None
    config, tensors = folders.read(at, folders.HEAD)
    own = type(model).__name__
    given = config.get("config")
    if given is None:
        if config.get("model_class") != own:
            raise error(
                "E0843", f"the folder has a head of {config.get('model_class')}, and the model is a {own}", help=REMEDY
            )
        return _head(model, tensors, config)
    name = config.get("name")
    if not isinstance(given, dict) or not isinstance(name, str):
        raise error(
            "E0840",
            f"{at / folders.HEAD.config} is broken: it has no name, or no `config`",
            help="copy the folder again",
        )
    cases = [c for c in heads().get(own, ()) if c["type"] == given.get("head_type")]
    case = next(
        (c for c in cases if all(any(same(given.get(f), v) for v in values) for f, values in c["when"].items())), None
    )
    if case is None:
        said = ", ".join(
            f"{f} = {given.get(f)!r}" for f in ("head_type", "layers", "activation_function", "use_pooler")
        )
        raise error("E0843", f"a {own} has no head such as the folder's: {said}", help=REMEDY)
    modules = {f"heads.{name}.{theirs}.": f"{ours}." for theirs, ours in case["modules"].items()}
    found = {}
    for k, t in tensors.items():
        front = next((f for f in modules if k.startswith(f)), None)
        found[modules[front] + k[len(front) :] if front is not None else k] = t
    return _head(model, found, given)


def _head(model: nn.Module, tensors: Mapping[str, torch.Tensor], config: Mapping[str, Any]) -> Head | None:
    """A head of a model's, by the paths of its parameters; None where it is the one that the model has. One of words or of places in a text has no labels."""
    labels = _labels(config.get("label2id"), config.get("num_labels")) if labels_of_base(model) is not None else None
    own = dict(model.named_parameters(remove_duplicate=False))  # tied ones under both names
    if labels is None and all(k in own and torch.equal(own[k], t) for k, t in tensors.items()):
        return None
    return Head(tensors, labels)


def task_of(at: Path) -> str:
    """The class of transformers whose head a folder has, by its name's end; nothing where it has none."""
    if not exists(at / folders.HEAD.config):
        return ""
    config, _ = folders.read(at, folders.HEAD)
    given = config.get("config")
    if not isinstance(given, dict):
        return str(config.get("model_class"))
    kind = given.get("head_type")
    return next((name for name, cases in heads().items() if any(c["type"] == kind for c in cases)), "")


def _labels(numbers: Any, count: Any) -> int | Sequence[str] | None:
    """Names of labels in the order of their columns; their number where they have none."""
    if (
        isinstance(numbers, dict)
        and numbers
        and sorted(numbers.values(), key=str) == sorted(range(len(numbers)), key=str)
    ):
        return [name for name, _ in sorted(numbers.items(), key=lambda x: x[1])]
    return count if isinstance(count, int) and not isinstance(count, bool) else None


@dataclass(frozen=True)
class WrittenHead:
    """What is written of a head: its configuration, its tensors by their keys, and the class that opens it."""

    config: Mapping[str, Any]
    tensors: Mapping[str, torch.Tensor]


def written_head(
    model: nn.Module, trained: Mapping[str, torch.Tensor], prefix: str, adapter: str, labels: Sequence[str]
) -> WrittenHead | None:
    """The head of a model's own class where the base has no part in it, else one of the library's own; None where neither can be.

    ``trained`` are the head's values by the paths of the parameters they are of, ``prefix`` the base's path.
    """
    own = type(model).__name__
    numbers = {n: i for i, n in enumerate(labels)}
    moved = {p: t for p, t in trained.items() if not torch.equal(t, model.get_parameter(p))}
    if not any(p.startswith(f"{prefix}.") for p in moved):
        kept = {p: t for p, t in trained.items() if not p.startswith(f"{prefix}.")}
        return WrittenHead(
            {"config": None, "name": None, "num_labels": len(labels), "label2id": numbers, "model_class": own}, kept
        )
    for case in heads().get(own, ()):
        of = {f"{ours}.": f"heads.{adapter}.{theirs}." for theirs, ours in case["modules"].items()}
        keys = {p: next((k + p[len(o) :] for o, k in of.items() if p.startswith(o)), None) for p in trained}
        if all(keys[p] is not None for p in moved):
            config = {"head_type": case["type"], "num_labels": len(labels), "label2id": numbers}
            config |= {f: values[0] for f, values in case["when"].items()}
            tensors = {k: trained[p] for p, k in keys.items() if k is not None}
            return WrittenHead(
                {"config": config, "name": adapter, "model_class": own.partition("For")[0] + "AdapterModel"}, tensors
            )
    return None
