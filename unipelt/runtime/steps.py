"""What a training tells an adapter between its passes: how far it has come. In a loop of one's own these are called by hand;
`unipelt.training.Words` calls them for any Trainer of transformers.
"""

from __future__ import annotations

import torch
from torch import nn

from ..language.report.diagnostics import error
from .registry import Registry, registry, unwrapped


def of_training(model: nn.Module) -> Registry:
    """The record of a model that has adapters."""
    found = registry(unwrapped(model))
    if found is None:
        raise error("E0550", "this model has no adapter", help="attach one: unipelt.apply(model, method, name=…)")
    return found


def progress(model: nn.Module, value: float) -> None:
    """Says how far training has come, from 0 to 1: what ``progress`` is in the passes that follow. Outside training it is 1.

    In a loop of one's own: ``unipelt.progress(model, step / steps)`` before each step. It begins at 0.
    """
    r = of_training(model)
    if not 0 <= float(value) <= 1:
        raise error("E0770", f"progress goes from 0 to 1, and this is {float(value):g}", help="give step / steps")
    with torch.no_grad():
        r.switch.progress.fill_(float(value))
