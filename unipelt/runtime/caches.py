"""What a cache is called: `cache` from transformers 5.24 on, `past_key_values` before, and by callers that still say so."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

NAMES = ("cache", "past_key_values")


def given(named: Mapping[str, Any]) -> Any:
    """The cache among the named arguments of a call; None where there is none."""
    found = named.get(NAMES[0])
    return found if found is not None else named.get(NAMES[1])


def yielded(output: Any) -> Any:
    """The cache in what a model yields; None where there is none."""
    found = (getattr(output, n, None) for n in NAMES)
    return next((c for c in found if hasattr(c, "get_seq_length")), None)
