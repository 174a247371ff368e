"""How many tokens a model reads, from its tables of positions: trainings, generation and the forward pass ask the same function."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

from .base import base_modules, children


def tables_of_positions(model: nn.Module) -> Iterator[tuple[nn.Module, int]]:
    """Each table of positions of a model that adds an entry of it to each token, with the number of tokens it has entries for.

    Such a table stands beside the table of the words. A table with a padding row (RoBERTa and its kin) counts positions from
    behind that row; in one with an offset (BART, OPT) as many entries come before the first position.
    """
    words = _words(model)
    for _, owner in base_modules(model):
        tables = {n: m for n, m in children(owner).items() if isinstance(getattr(m, "num_embeddings", None), int)}
        of_positions = {n: m for n, m in tables.items() if "pos" in n or n == "wpe"}
        if any(m.num_embeddings == words for n, m in tables.items() if n not in of_positions):
            for module in of_positions.values():
                padding: Any = getattr(module, "padding_idx", None)
                first = getattr(module, "offset", 0) if padding is None else padding + 1
                yield module, int(module.num_embeddings) - first  # type: ignore[arg-type]


def _words(model: nn.Module) -> int | None:
    """The number of words in the model's table of them."""
    try:
        return getattr(model.get_input_embeddings(), "num_embeddings", None)  # type: ignore[operator]
    except (AttributeError, NotImplementedError):
        return None


def longest_text(model: nn.Module, answer: bool = False) -> int | None:
    """How many tokens a model reads (with ``answer``: how many an encoder–decoder writes); None where nothing bounds it.

    The smallest of its tables of positions bounds it; where it has none (rotary positions, sinusoids), the number in its
    configuration. Distances between tokens, in buckets (T5) or as slopes (ALiBi), have no bound.
    """
    config: Any = model.config
    part = model
    if getattr(config, "is_encoder_decoder", False):
        part = (model.get_decoder() if answer else model.get_encoder()) or model  # type: ignore[operator]
    entries = [n for _, n in tables_of_positions(part)]
    if entries:
        return min(entries)
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    if any(getattr(text, name, None) for name in ("relative_attention_num_buckets", "relative_attention", "alibi")):
        return None
    found = getattr(text, "max_position_embeddings", None) or getattr(text, "n_positions", None)
    return found if isinstance(found, int) and found > 0 else None
