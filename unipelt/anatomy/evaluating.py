"""A model as it evaluates, for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from .interrupts import ended_by


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients inside; each module's mode is as it was afterwards."""
    training, gradients = [m for m in model.modules() if m.training], torch.is_grad_enabled()

    def end() -> None:
        for m in training:
            m.training = True
        torch.set_grad_enabled(gradients)

    with ended_by(end):
        model.eval()
        torch.set_grad_enabled(False)
        yield
