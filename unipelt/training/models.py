"""Loading models and tokenizers for a task, and methods named on the command line, without noise."""

from __future__ import annotations

import contextlib
import logging
from pathlib import Path
from typing import Any, Iterator, Mapping

import unipelt

from ..language.diagnostics import PeltError, error, near
from ..language.library import library_names
from .tasks import Task

METHOD_FILE = ".pelt"


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silences transformers' and accelerate's reports and bars inside; their settings are as before afterwards."""
    import transformers
    from transformers.utils import logging as hf

    loggers = [hf.get_logger("transformers"), logging.getLogger("accelerate")]
    levels = [x.level for x in loggers]
    bars = hf.is_progress_bar_enabled() if hasattr(hf, "is_progress_bar_enabled") else True
    try:
        for x in loggers:
            x.setLevel(logging.ERROR)
        transformers.utils.logging.disable_progress_bar()
        yield
    finally:
        for x, level in zip(loggers, levels):
            x.setLevel(level)
        if bars:
            transformers.utils.logging.enable_progress_bar()


# ---------------------------------------------------------------- methods


def resolve_method(spec: str, arguments: Mapping[str, Any] | None = None, head: str | None = None) -> Any:
    """A method from ``a``, ``mine.pelt`` or ``a+b``, its arguments bound.

    An argument goes to each part that has it; ``part.name`` binds one part's. ``head`` adds the library's method of
    that name, or of that name with ``_head`` behind it.
    """
    names = [n.strip() for n in spec.split("+")]
    if head:
        names.append(head if head in library_names("method") else f"{head}_head")
    parts = [unipelt.load(n) for n in names]
    left = dict(arguments or {})
    bound = []
    for part in parts:
        mine: dict[str, Any] = {}
        for key in list(left):
            owner, _, name = key.rpartition(".")
            if owner in ("", part.name) and name in {p.name for p in part.params}:
                mine[name] = arguments[key] if arguments else None
        bound.append(part(**mine) if mine else part)
    known = {k for part in parts for p in part.params for k in (p.name, f"{part.name}.{p.name}")}
    unknown = [k for k in left if k not in known]
    if unknown and len(parts) == 1:
        parts[0](**{k: left[k] for k in unknown})  # the language's own error, with the place of the parameters
    if unknown:
        have = sorted({p.name for part in parts for p in part.params})
        raise error("E0621", f"none of {', '.join(f'`{p.name}`' for p in parts)} has an argument `{unknown[0]}`",
                    help=near(unknown[0], have) or f"their arguments are {', '.join(have) or 'none'}")  # fmt: skip
    method = bound[0]
    for part in bound[1:]:
        method = method + part
    return method


def argument(text: str) -> tuple[str, Any]:
    """``r=16`` as a name and a value; what is no number stays a text of the language."""
    name, sep, value = text.partition("=")
    if not sep or not name.strip() or not value.strip():
        raise error("E0621", f"`{text}` is not an argument", help="write it as `name=value`, as in `--set r=16`")
    value = value.strip()
    for number in (int, float):
        with contextlib.suppress(ValueError):
            return name.strip(), number(value)
    return name.strip(), value


def read_arguments(texts: list[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for text in texts:
        name, value = argument(text)
        if name in found:
            raise error("E0621", f"the argument `{name}` is given twice", help="give it once")
        found[name] = value
    return found


# ---------------------------------------------------------------- models


def load_tokenizer(model: str) -> Any:
    from transformers import AutoTokenizer

    try:
        with quiet():
            tokenizer = AutoTokenizer.from_pretrained(model)
    except Exception as e:  # transformers raises whatever its parsers raise
        raise _unloadable(model, "tokenizer", e) from None
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token_id is None:
            raise error("E0614", f"the tokenizer of `{model}` has neither a padding nor an end token",
                        help="set `pad_token` in its tokenizer_config.json")  # fmt: skip
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_model(model: str, task: Task, tokenizer: Any, seed: int, dropout: float | None = None) -> Any:
    """The pretrained model with the task's head, in float32; a head it lacks is drawn with the seed."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, set_seed

    options: dict[str, Any] = {}
    if task.classifies:
        titles = list(task.titles)
        options = {"num_labels": len(titles), "id2label": dict(enumerate(titles)),
                   "label2id": {t: i for i, t in enumerate(titles)}}  # fmt: skip
    kind = AutoModelForSequenceClassification if task.classifies else AutoModelForCausalLM
    try:
        with quiet():
            config = AutoConfig.from_pretrained(model, **options)
            _set_dropout(config, dropout)
            if getattr(config, "pad_token_id", None) is None:
                config.pad_token_id = tokenizer.pad_token_id
            set_seed(seed)
            # A pretrained head of another size is drawn anew, as one that is missing.
            loaded = kind.from_pretrained(model, config=config, dtype=torch.float32, ignore_mismatched_sizes=True)
    except PeltError:
        raise
    except Exception as e:
        raise _unloadable(model, "model", e) from None
    longest = _positions(loaded.config)
    if longest is not None and task.max_length > longest:
        raise error("E0617", f"`{model}` reads at most {longest} tokens, fewer than the {task.max_length} asked for",
                    help=f"give `--max-length {longest}` or less")  # fmt: skip
    return loaded


def load_config_model(path: str, task: str) -> Any:
    """A model on the meta device, without weights, from a folder or a configuration file: enough for a plan."""
    import torch
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification

    kinds = {"sequence-classification": AutoModelForSequenceClassification, "causal-lm": AutoModelForCausalLM,
             "base": AutoModel}  # fmt: skip
    if task not in kinds:
        raise error("E0620", f"there is no task `{task}`", help=f"give one of {', '.join(kinds)}")
    try:
        with quiet(), torch.device("meta"):
            return kinds[task].from_config(AutoConfig.from_pretrained(path))
    except Exception as e:
        raise _unloadable(path, "model", e) from None


def _set_dropout(config: Any, dropout: float | None) -> None:
    """Every dropout rate of the base; configurations spell them differently, all with `drop` in the name."""
    if dropout is None:
        return
    for name, value in config.to_dict().items():
        if ("drop" in name or name.endswith("_pdrop")) and isinstance(value, float):
            setattr(config, name, dropout)


def _positions(config: Any) -> int | None:
    """How many tokens the model reads; None where nothing bounds it (rotary and relative positions only slow down)."""
    longest = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None)
    if not isinstance(longest, int):
        return None
    # RoBERTa and its kin count positions from behind the padding index.
    return longest - config.pad_token_id - 1 if config.model_type in _OFFSET_POSITIONS else longest


_OFFSET_POSITIONS = frozenset({"roberta", "xlm-roberta", "camembert", "longformer", "mpnet", "data2vec-text"})


def _unloadable(model: str, what: str, e: BaseException) -> PeltError:
    place = Path(model)
    reason = " ".join(str(e).split()) or type(e).__name__
    if isinstance(e, OSError) and e.errno is not None and not place.exists():
        reason = str(e.strerror)
    if not place.exists() and ("/" not in model.strip("/") or model.startswith((".", "/", "~"))):
        beside = [f.name for f in place.parent.iterdir()] if place.parent.is_dir() else []
        return error("E0613", f"there is no model folder `{model}`",
                     help=near(place.name, beside) or "name a folder made by `save_pretrained`, or a hub name")  # fmt: skip
    if len(reason) > 300:
        reason = reason[:297] + "…"
    return error("E0613", f"the {what} `{model}` cannot be loaded: {reason}",
                 help="name a folder made by `save_pretrained` that has its configuration, weights and tokenizer")  # fmt: skip
