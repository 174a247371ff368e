"""Use of an adapter that `unipelt.save` wrote, like that of a run: its folder has the labels, and the user names the task."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import unipelt

from ..compiler.labels import Labels, read_json
from ..language.report.diagnostics import error
from ..runtime.folder import read_manifest
from ..runtime.hub import MANIFEST
from . import data as reading
from .models import load_as, load_config, load_model, load_plain, quiet
from .options import Opening, TaskOptions
from .readers import load_reader, reader_beside
from .tasks import kind, task_for, task_without_data
from .tasks.task import Task


def open_plain(place: Path, asked: Opening, task: str | None) -> tuple[Any, Any, str]:
    """The model with the adapter, its tokenizer if it reads text, and the adapter's name.

    No task is needed; one that is named decides the class of the model."""
    manifest = read_manifest(place)
    base = _base(place, asked)
    if task:
        loaded = load_plain(base, task, asked.dtype)
    else:
        loaded = load_as(base, _class_of(manifest, load_config(base)), asked.dtype)
    name = attach(loaded, place, asked)
    return loaded, reader_beside(base, loaded.main_input_name), name


def open_for_task(
    place: Path, asked: Opening, options: TaskOptions, data: str | Path | None
) -> tuple[Any, Any, Task, str]:
    """The model with the adapter, its tokenizer, the task that the options name, and the adapter's name."""
    if options.task is None:
        raise error("E0668", f"the adapter in `{place}` was saved without a run, and its folder says no task",
                    help="name it with `--task`, as in `--task sequence-classification`")  # fmt: skip
    manifest = read_manifest(place)
    base = _base(place, asked)
    config = load_config(base)
    labels = read_json(manifest.get("labels"), str(place / MANIFEST)) or _of_config(config)
    problem = labels.problem_type and labels.problem_type.removesuffix("_classification")
    if problem and options.problem_type is None and "problem_type" in kind(options.task).asks:
        options = replace(options, problem_type=problem)  # type: ignore[arg-type]
    if data is None:
        task = task_without_data(options, labels)
    else:
        found = reading.read(data, "test")
        split = next(found[s] for s in ("test", "validation", "train") if s in found)
        task = task_for(split, options, config).in_order_of(labels)
    tokenizer = load_reader(base, task, config)
    task = task.fit(config, tokenizer)
    loaded = load_model(base, task, tokenizer, 0, dtype=asked.dtype)
    return loaded, tokenizer, task, attach(loaded, place, asked)


def attach(loaded: Any, place: Path, asked: Opening, name: str | None = None) -> str:
    """Attaches a saved adapter to its base, in evaluation mode; the adapter's name."""
    with quiet():
        name = unipelt.attach(loaded, place, name, force=asked.force, arguments=asked.arguments)
    loaded.eval()
    return name


def _base(place: Path, asked: Opening) -> str:
    """The base that the user names: the record of `unipelt.save` does not say where it is."""
    if asked.model is None:
        raise error("E0757", f"the adapter in `{place}` does not say where its base is", help="name it with `--model`")
    return asked.model


def _class_of(manifest: dict[str, Any], config: Any) -> str:
    """The class of transformers: the one in the base's configuration, or, if the adapter has a head, the one it was saved from."""
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
