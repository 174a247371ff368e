"""An adapter that `unipelt.save` wrote, put to use as a run is: its folder has the labels, and the user names the task."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import unipelt

from ..compiler.labels import Labels, read_json
from ..language.report.diagnostics import error
from ..runtime.folder import read_manifest
from ..runtime.hub import MANIFEST
from . import data as reading
from .config import TaskOptions
from .models import load_as, load_config, load_model, load_plain, load_tokenizer, quiet
from .tasks import Task, kind, task_for
from .tasks.classification import SequenceClassification
from .tasks.pet import PET
from .tasks.token_classification import TokenClassification

#: The columns that a prediction reads, where the user names none.
_COLUMNS = {
    "question-answering": ("question", "context"),
    "causal-lm": ("prompt", "completion"),
    "seq2seq": ("source", "target"),
}


@dataclass(frozen=True)
class Opening:
    """How a saved adapter is put onto its base: as `unipelt.attach` has it, and ``dtype`` as `training.models` has it.

    ``options`` name the task of an adapter that no run made, and ``data`` are what it is evaluated on.
    """

    model: str | None = None
    force: bool = False
    arguments: dict[str, Any] = field(default_factory=dict)
    dtype: str | None = None
    options: TaskOptions = TaskOptions()
    data: str | Path | None = None


def open_plain(place: Path, asked: Opening) -> tuple[Any, Any, str]:
    """The model with the adapter, its tokenizer if it reads text, and the adapter's name.

    No task is needed; one that is named decides the class of the model."""
    manifest = read_manifest(place)
    base = _base(place, asked)
    task = asked.options.task
    loaded = (
        load_plain(base, task, asked.dtype)
        if task
        else load_as(base, _class_of(manifest, load_config(base)), asked.dtype)
    )
    name = _attach(loaded, place, asked)
    return loaded, load_tokenizer(base) if loaded.main_input_name == "input_ids" else None, name


def open_for_task(place: Path, asked: Opening) -> tuple[Any, Any, Task, str]:
    """The model with the adapter, its tokenizer, the task that the user names, and the adapter's name."""
    if asked.options.task is None:
        raise error("E0668", f"the adapter in `{place}` was saved without a run, and its folder says no task",
                    help="name it with `--task`, as in `--task sequence-classification`")  # fmt: skip
    manifest = read_manifest(place)
    base = _base(place, asked)
    config, tokenizer = load_config(base), load_tokenizer(base)
    labels = read_json(manifest.get("labels"), str(place / MANIFEST)) or _of_config(config)
    options = asked.options
    if (
        labels.problem_type is not None
        and options.problem_type is None
        and "problem_type" in kind(options.task or "").asks
    ):
        options = replace(options, problem_type=labels.problem_type.removesuffix("_classification"))  # type: ignore[arg-type]
    if asked.data is not None:
        found = reading.read(asked.data, "test")
        split = next(found[s] for s in ("test", "validation", "train") if s in found)
        task = _with_labels(task_for(split, options, config), labels)
    else:
        task = _without_data(options, labels)
    task = task.fit(config, tokenizer)
    loaded = load_model(base, task, tokenizer, 0, dtype=asked.dtype)
    return loaded, tokenizer, task, _attach(loaded, place, asked)


def _attach(loaded: Any, place: Path, asked: Opening) -> str:
    with quiet():
        name = unipelt.attach(loaded, place, force=asked.force, arguments=asked.arguments)
    loaded.eval()
    return name


def _base(place: Path, asked: Opening) -> str:
    """The base that the user names: a record of `unipelt.save` has no place where it lies."""
    if asked.model is None:
        raise error("E0757", f"the adapter in `{place}` does not say where its base is", help="name it with `--model`")
    return asked.model


def _class_of(manifest: dict[str, Any], config: Any) -> str:
    """The class of transformers: that of the base's own folder, or where the adapter brings a head, the one it was saved from."""
    import transformers

    own = [str(a) for a in getattr(config, "architectures", None) or ()]
    saved = [str(manifest.get("model") or "")]
    for name in (*saved, *own) if manifest.get("head") else (*own, *saved):
        cls = getattr(transformers, name, None)
        if isinstance(cls, type) and issubclass(cls, transformers.PreTrainedModel) and cls.config_class is type(config):
            return name
    return "AutoModel"


def _of_config(config: Any) -> Labels:
    """The labels of the base's own head."""
    names = getattr(config, "id2label", None) or {}
    return Labels(tuple(str(names[i]) for i in sorted(names)), getattr(config, "problem_type", None))


def _without_data(options: TaskOptions, labels: Labels) -> Task:
    """The task for predictions: everything that a run would have found in its data is known or named."""
    cls = kind(str(options.task))
    for name in options.given():
        if name not in cls.asks:
            raise error("E0620", f"`--{name.replace('_', '-')}` means nothing to {cls.kind}", help="leave it out")
    if issubclass(cls, PET):
        raise error("E0668", "a prediction of pet needs the labels with their words, which the folder of a run has",
                    help="train it with `unipelt train`, or evaluate it on data with `unipelt eval`")  # fmt: skip
    from .tasks import template

    pattern = {"pattern": options.pattern} if options.pattern else {}
    named = template.parse(options.pattern).columns if options.pattern else options.text
    texts = named or _COLUMNS.get(cls.kind) or ("text",)
    common: dict[str, Any] = {
        "texts": tuple(texts),
        "label": options.label,
        "max_length": options.length(cls.length),
        "padding": options.padding,
        **pattern,
    }
    if issubclass(cls, SequenceClassification):
        problem = options.problem_type or "single_label"
        return cls(**common, labels=labels.names, titles=labels.names, problem=problem)
    if issubclass(cls, TokenClassification):
        return cls(**common, labels=labels.names)
    return cls(**common)


def _with_labels(task: Task, labels: Labels) -> Task:
    """The task with the labels in the order of the adapter's head, not in the order of these data."""
    if isinstance(task, PET) or not isinstance(task, (SequenceClassification, TokenClassification)):
        return task
    if isinstance(task, SequenceClassification) and task.problem == "regression":
        return task
    titles = task.titles if isinstance(task, SequenceClassification) else task.labels
    numbered = labels.names == tuple(f"LABEL_{i}" for i in range(len(labels)))
    by_name = {n: n for n in labels.names} | ({str(i): n for i, n in enumerate(labels.names)} if numbered else {})
    value_of: dict[str, str] = {}
    for value, title in zip(task.labels, titles, strict=True):
        name = by_name.get(title) or by_name.get(value)
        if name is None:
            raise error("E0669", f"the data have the label `{title}`, which the adapter's head does not score",
                        where=(f"it scores {', '.join(labels.names[:8])}",),
                        help="name the labels in the data as the head does, or train with `labels=[…]` in their order")  # fmt: skip
        value_of[name] = value
    values = tuple(value_of.get(n, n) for n in labels.names)
    return (
        replace(task, labels=values, titles=labels.names)
        if isinstance(task, SequenceClassification)
        else replace(task, labels=values)
    )
