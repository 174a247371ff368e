"""What enters and what leaves a module, as a hook sees it: the finder and the edits go by one rule."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch


def first_tensor(args: tuple, kwargs: Mapping[str, Any]) -> torch.Tensor | None:
    """What enters a module: its first positional argument, or `hidden_states`, or the first tensor among the named."""
    if args and isinstance(args[0], torch.Tensor):
        return args[0]
    if isinstance(kwargs.get("hidden_states"), torch.Tensor):
        return kwargs["hidden_states"]
    return next((v for v in (*args, *kwargs.values()) if isinstance(v, torch.Tensor)), None)


def first_left(output: Any) -> torch.Tensor | None:
    """What leaves a module: its output, or the first of what it yields."""
    if isinstance(output, torch.Tensor):
        return output
    if hasattr(output, "keys"):
        output = list(output.values())
    first = output[0] if isinstance(output, (tuple, list)) and output else None
    return first if isinstance(first, torch.Tensor) else None
