"""Loading models and tokenizers for a task, without noise."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from os.path import exists
from pathlib import Path
from typing import Any

from ..anatomy.positions import longest_text
from ..language.report.diagnostics import PeltError, error, near_path, near
from .data import said
from .tasks import kind
from .tasks.task import Task


#: What every model, configuration and tokenizer is loaded with: code that lies beside it is never run. Without this transformers
#: asks on stdin, and a `y` that was meant for something else would run it.
TRUSTED: dict[str, Any] = {"trust_remote_code": False}
#: Weights besides: a `.bin` file holds tensors and nothing else, or is refused.
WEIGHTS_ONLY: dict[str, Any] = {**TRUSTED, "weights_only": True}


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silences transformers' and accelerate's reports and bars inside; their settings are as before afterwards."""
    from transformers.utils import logging as hf

    loggers: list[logging.Logger] = [logging.getLogger("transformers"), logging.getLogger("accelerate")]
    levels, bars = [x.level for x in loggers], hf.is_progress_bar_enabled()
    try:
        for x in loggers:
            x.setLevel(logging.ERROR)
        hf.disable_progress_bar()
        yield
    finally:
        for x, level in zip(loggers, levels):
            x.setLevel(level)
        if bars:
            hf.enable_progress_bar()


@contextlib.contextmanager
def loading(model: str, what: str = "model") -> Iterator[None]:
    """Quiet inside; whatever transformers' parsers raise there is a `PeltError`."""
    try:
        with quiet():
            yield
    except PeltError:
        raise
    except Exception as e:  # noqa: BLE001
        raise _unloadable(model, what, e) from None


# ---------------------------------------------------------------- models


def load_tokenizer(model: str) -> Any:
    from transformers import AutoTokenizer

    with loading(model, "tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(model, **TRUSTED)
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token_id is None:
            raise error("E0614", f"the tokenizer of `{model}` has neither a padding nor an end token",
                        help="set `pad_token` in its tokenizer_config.json")  # fmt: skip
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_config(model: str, **options: Any) -> Any:
    from transformers import AutoConfig

    with loading(model):
        return AutoConfig.from_pretrained(model, **TRUSTED, **options)


def load_model(
    model: str, task: Task, tokenizer: Any, seed: int, dropout: float | None = None, dtype: str | None = None
) -> Any:
    """The pretrained model with the task's head; a head it lacks is drawn with the seed.

    ``dtype`` is one of `config.DTYPES`; None keeps the dtype in which the model is stored.
    """
    import transformers

    config = load_config(model, **task.model_options())
    auto = getattr(transformers, task.auto_for(config))
    if type(config) not in auto._model_mapping:
        raise error("E0633", f"`{model}` is a {config.model_type}, of which transformers has no model for {task.kind}",
                    where=(f"{auto.__name__} knows no {type(config).__name__}",), help="choose another `--task` or model")  # fmt: skip
    with loading(model):
        _set_dropout(config, dropout)
        if task.reads_text and getattr(config, "pad_token_id", None) is None:
            config.pad_token_id = tokenizer.pad_token_id
        transformers.set_seed(seed)
        # A pretrained head of another size is drawn anew, as one that is missing.
        loaded = auto.from_pretrained(
            model, config=config, dtype=dtype or "auto", ignore_mismatched_sizes=True, **WEIGHTS_ONLY
        )
    task.check_model(model, loaded)
    longest = longest_text(loaded) if task.reads_text else None
    if longest is not None and task.max_length > longest:
        raise error("E0617", f"`{model}` reads at most {longest} tokens, fewer than the {task.max_length} asked for",
                    help=f"give `--max-length {longest}` or less")  # fmt: skip
    return loaded


def load_plain(model: str, task: str, dtype: str | None = None) -> Any:
    """The pretrained model as it is, for a task's kind or `base`, in evaluation mode; ``dtype`` as in `load_model`."""
    cls, check = _class_for(task, model)
    loaded = load_as(model, cls, dtype)
    check(model, loaded)
    return loaded


def load_as(model: str, cls: str, dtype: str | None = None) -> Any:
    """The pretrained model as a class of transformers, in evaluation mode; ``dtype`` as in `load_model`."""
    import transformers

    config = load_config(model)
    with loading(model):
        transformers.set_seed(0)
        made = getattr(transformers, cls)
        return made.from_pretrained(model, config=config, dtype=dtype or "auto", **WEIGHTS_ONLY).eval()


def load_config_model(path: str, task: str) -> Any:
    """A model on the meta device, without weights, enough for a plan: from a folder, from a configuration file, or of a type of
    transformers as its configuration is by default (where there is no such folder)."""
    import torch
    import transformers

    cls, check = _class_for(task, path, _config_or_type)
    config = _config_or_type(path)
    with loading(path), torch.device("meta"):
        made = getattr(transformers, cls).from_config(config, **TRUSTED)
    check(path, made)
    return made


def _config_or_type(path: str) -> Any:
    """The configuration at a path, else that of a model type."""
    from transformers import CONFIG_MAPPING

    if not exists(path) and path in CONFIG_MAPPING:
        with loading(path):
            return CONFIG_MAPPING[path]()
    return load_config(path)


def _near_type(name: str) -> str:
    """The model type that a name is nearly that of, as a remedy; nothing where there is none."""
    from transformers import CONFIG_MAPPING

    return near(name, [str(n) for n in CONFIG_MAPPING])


def _class_for(
    task: str, model: str, read: Callable[[str], Any] = load_config
) -> tuple[str, Callable[[str, Any], None]]:
    """The class of transformers for a task's kind or `base`, and what refuses a model that is not made for it."""
    if task == "base":
        return "AutoModel", lambda name, loaded: None
    wanted = kind(task)  # a mistake in its name comes before one in the model's
    return wanted.auto_for(read(model)), wanted.check_model


def _set_dropout(config: Any, dropout: float | None) -> None:
    """Set every dropout rate of the base. Configurations have different names for them, all with `drop`."""
    if dropout is None:
        return
    for name, value in config.to_dict().items():
        if ("drop" in name or name.endswith("_pdrop")) and isinstance(value, float):
            setattr(config, name, dropout)


def _unloadable(model: str, what: str, e: BaseException) -> PeltError:
    place, here = Path(model), exists(Path(model))
    if not here and ("/" not in model.strip("/") or model.startswith((".", "/", "~"))):
        return error("E0613", f"there is no model folder `{model}`",
                     help=near_path(place) or _near_type(model) or "name a folder made by `save_pretrained`, or a hub name")  # fmt: skip
    why = str(e.strerror) if isinstance(e, OSError) and e.errno is not None and not here else said(e)
    if not here:
        return error("E0613", f"there is no folder `{model}` here, and the {what} of that name on the hub cannot be loaded: {why}",
                     help=near_path(place) or "check the spelling and the network; for a private model, `hf auth login`")  # fmt: skip
    return error("E0613", f"the {what} `{model}` cannot be loaded: {why}",
                 help="name a folder made by `save_pretrained` that has its configuration, weights and tokenizer")  # fmt: skip
