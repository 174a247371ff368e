"""The head of a model: the modules around its stacks that make the output from their last hidden states."""

from __future__ import annotations

from typing import Any

from torch import nn

from .base import base_modules, children
from .sizes import weight_shape


def head_modules(model: nn.Module, base: nn.Module, prefix: str, entered: set[str]) -> tuple[str, ...]:
    """The head's modules that have parameters, outermost first, with the base's own pooler before them.

    A model may be its own base (T5's are): then they are its children that hold no stack and no embeddings (``entered``
    are the paths of those).
    """
    if base is model:
        if not _is_headed(model):
            return ()
        words = _call(model, "get_input_embeddings")
        known = {p.split(".")[0] for p in entered} | {
            n for n, m in model.named_children() if m is words or n == "pooler"
        }
    else:
        known = {prefix.split(".")[0]}
    own = tuple(n for n, m in children(model).items() if n not in known and any(True for _ in m.parameters()))
    if base is model:
        return own
    if not own:
        return ()
    pooler = getattr(base, "pooler", None)
    with_pooler = not is_language_model(model) and isinstance(pooler, nn.Module)
    return (*((f"{prefix}.pooler",) if with_pooler else ()), *own)


def lone_head(model: nn.Module, base: nn.Module, prefix: str) -> tuple[str, ...]:
    """The head of a model of whose sites nothing is known: what it has around its base, or its last module, if that is a linear map.

    A model that is its own base and has a configuration is bare, or what in it is a head is not known.
    """
    if base is not model:
        return head_modules(model, base, prefix, set())
    last = None if getattr(model, "config", None) is not None else _last(model)
    return (last,) if last is not None else ()


def _last(model: nn.Module) -> str | None:
    """The path of the module that was put into a model last, if it is a linear map that ends it (a container's last one is)."""
    path, module = "", model
    while held := children(module):
        if path and not isinstance(module, nn.Sequential):
            return None
        name, module = list(held.items())[-1]
        path = f"{path}.{name}" if path else name
    return path if path and weight_shape(module) is not None else None


def _is_headed(model: nn.Module) -> bool:
    """Whether a model that is its own base is more than the bare model of its type."""
    from transformers import MODEL_MAPPING

    config = getattr(model, "config", None)
    bare = None if config is None else MODEL_MAPPING.get(config.__class__, None)
    return type(model) not in (bare if isinstance(bare, tuple) else (bare,))


def is_language_model(model: nn.Module) -> bool:
    """Whether the model's head yields words."""
    return _call(model, "get_output_embeddings") is not None


def _call(model: Any, name: str) -> Any:
    found = getattr(model, name, None)
    try:
        return found() if callable(found) else None
    except NotImplementedError:  # what transformers raises for a model that reads no words
        return None


def labels(head: nn.Module, config: Any) -> int:
    """How many numbers the head yields."""
    shapes = _shapes(head)
    return shapes[-1][1] if shapes else int(getattr(config, "num_labels", 0))


def reads(head: nn.Module, otherwise: int) -> int:
    """The size of what a head's first linear map reads."""
    shapes = _shapes(head)
    return shapes[0][0] if shapes else otherwise


def _shapes(head: nn.Module) -> list[tuple[int, int]]:
    """The linear maps of a head itself; those of adapters that hang on it are no part of it."""
    return [s for _, m in base_modules(head) if (s := weight_shape(m)) is not None]


def word_embeddings(model: nn.Module) -> nn.Embedding | None:
    """The table of word embeddings, if the model reads words."""
    found = _call(model, "get_input_embeddings")
    return found if isinstance(found, nn.Embedding) else None
