"""What attention modules say of their scores: how many tokens a query looks back, and at what scores are capped."""

from __future__ import annotations

from typing import Any

from torch import nn

#: What configurations call the reach of a layer, by what they call the layer's kind.
_REACH = {"sliding_attention": "sliding_window", "chunked_attention": "attention_chunk_size"}


def window(attention: nn.Module, layer: int | None, config: Any) -> int | None:
    """How many tokens a query of an attention module may reach, its own among them; None where nothing bounds it.

    The module says it, or the configuration does: for all layers, or for those that it says are of that kind.
    """
    own = getattr(attention, "config", config)
    kinds = getattr(own, "layer_types", None)
    kind = kinds[layer] if kinds and layer is not None and layer < len(kinds) else "" if kinds else "sliding_attention"
    if layer is not None and getattr(own, "is_heterogeneous", False):
        own = own.per_layer_config[layer]  # where layers differ, the configuration of all of them raises
    said = getattr(own, _REACH.get(kind, ""), None)
    if kind != "chunked_attention" and hasattr(attention, "sliding_window"):
        said = attention.sliding_window
    return said if isinstance(said, int) and said > 0 else None


def cap(attention: nn.Module) -> float | None:
    """At what the scores of an attention module are capped, as `cap * tanh(score / cap)`."""
    found = getattr(attention, "attn_logit_softcapping", None)
    return float(found) if isinstance(found, (int, float)) and found else None
