"""Makes an engine of a model, folders and options: which task it is for, what is loaded, and what is tried before anybody is served."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..language.report.diagnostics import PeltError, counted, error
from ..runtime.hub import TASK
from ..training.folder import read_json
from ..training.models import load_config, load_plain, load_tokenizer
from ..training.tasks import kind as task_of
from .catalogue import Catalogue
from .engine import Engine
from .labelling import Labelling
from .listener import SILENT, Listener
from .options import DEFAULTS, OF_TEXTS, ServeOptions
from .shelf import Shelf
from .writing import Writing


def open_engine(
    model: str, folders: Sequence[str | Path], options: ServeOptions = DEFAULTS, listener: Listener = SILENT,
    say: Callable[[str], None] = lambda text: None,
) -> Engine:  # fmt: skip
    """An engine that is not running yet: ``with open_engine("base", ["adapters"]) as engine: …``.

    ``say`` is told what will be served. Raises `PeltError`: for a folder that is not there (E0860), a model that cannot be served (E0861), and
    for whatever keeps the model from being loaded.
    """
    options.check()
    catalogue = Catalogue(options.name or _name(model), folders)
    config = load_config(model)
    kind = options.task or _kind_of_adapters(catalogue) or _kind_of_base(config)
    if kind not in OF_TEXTS:
        why = "its adapters' runs say no task that is served" if kind else "nothing says what it is for"
        raise error("E0861", f"`{model}` cannot be served: {why}", help=f"name the task: `--task`, one of {', '.join(OF_TEXTS)}")  # fmt: skip
    tokenizer = load_tokenizer(model)
    loaded = _on_device(load_plain(model, kind, options.dtype), options.device)
    if getattr(loaded.config, "pad_token_id", None) is None:
        loaded.config.pad_token_id = tokenizer.pad_token_id
    work: Any
    if kind == "causal-lm":
        work = _writing(model, loaded, tokenizer, options, listener)
    else:
        headed = task_of(kind).pretrained or _class_for(config, kind) in (config.architectures or ())
        work = Labelling(loaded, tokenizer, options, kind, headed and kind != "pet", listener)
    shelf = Shelf(loaded, catalogue, options.max_adapters, work.look, listener, options.force, tokenizer)
    say(f"`{catalogue.base}` for {kind}, with {counted(len(catalogue.table.entries), 'adapter')}")
    for folder, reason in catalogue.table.refused.items():
        say(f"{folder} is not served: {reason}")
    return Engine(work, shelf, catalogue, options)


def _writing(model: str, loaded: Any, tokenizer: Any, options: ServeOptions, listener: Listener) -> Writing:
    try:
        return Writing(loaded, tokenizer, options, listener)
    except PeltError:
        raise
    except Exception as e:  # noqa: BLE001 - a model that is called otherwise raises what it likes
        raise error("E0861", f"`{model}` cannot be served: it does not go on with a text from a cache of keys and values ({type(e).__name__})",
                    help="choose a decoder with attention, such as Llama or GPT-2") from None  # fmt: skip


def _name(model: str) -> str:
    """What requests call the base: the name of its folder, or on the hub."""
    return Path(os.path.realpath(model)).name if os.path.isdir(model) else model


def _kind_of_adapters(catalogue: Catalogue) -> str | None:
    """The task that most adapters were trained for, as far as their folders say so."""
    found: Counter[str] = Counter()
    for entry in catalogue.table.entries.values():
        if entry.has(TASK):
            try:
                record = read_json(entry.folder / TASK).get("task")
            except PeltError:  # it is refused when it is asked for
                continue
            if isinstance(record, dict) and isinstance(record.get("kind"), str):
                found[record["kind"]] += 1
    return found.most_common(1)[0][0] if found else None


def _kind_of_base(config: Any) -> str:
    """The task of the class that the base was saved from; nothing where that is none."""
    own = tuple(getattr(config, "architectures", None) or ())
    return next((k for k in reversed(OF_TEXTS) if k != "pet" and _class_for(config, k) in own), "")


def _class_for(config: Any, kind: str) -> str | None:
    """The class of transformers for a task, where it has one for such a model."""
    import transformers

    mapping = getattr(transformers, task_of(kind).auto_for(config))._model_mapping
    return mapping[type(config)].__name__ if type(config) in mapping else None


def _on_device(model: Any, device: str | None) -> Any:
    import torch

    try:
        return model.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    except (RuntimeError, AssertionError) as e:
        raise error("E0861", f"the model cannot be put on `{device}`: {str(e).splitlines()[0]}", help="name another `--device`") from None  # fmt: skip
