"""What a model returns has an entry for each token that it was given: those of a prompt's rows are left out.

So positions in a text mean the same with a prompt and without, to a pipeline, to a metric, to a loss of one's own. The entry at a
token is what the model says there. A causal language model's logits foretell, and between two tokens rows may stand: there the
entry is that of the last row, which foretells the next token, as in the model's own loss and in generation.

Not touched are what has no tokens (pooled outputs, losses, caches), what has fewer positions than the pass (`logits_to_keep`), and
attention maps, in which rows are looked at. The rows of an encoder–decoder stand in its encoder's states, which the decoder reads as
they are; its own outputs have none.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from transformers.utils import ModelOutput

from ...anatomy.heads import is_language_model
from ...anatomy.sites import SiteMap
from ...language.report.diagnostics import error
from .layout import Layout
from ..registry import registry, unwrapped
from ..switch import Switch


class Outputs:
    """The model's last hook, behind those that read its outputs as they are."""

    def __init__(self, switch: Switch, model: nn.Module, sites: SiteMap):
        self.switch = switch
        self.foretells = bool(sites.head) and is_language_model(model) and sites.main[-1].causal
        #: Scores of where a span starts and ends have no further dimension, as pooled outputs have none.
        self.spans = "start_positions" in inspect.signature(model.forward).parameters

    def leaves(self, model: nn.Module, args: tuple, output: Any) -> Any:
        layout = self.switch.holder.current.layout
        if layout is None or self.switch.holder.rows or not self.switch.live:
            return None
        if isinstance(output, ModelOutput):
            return type(output)(**{name: self._of_tokens(value, layout) for name, value in output.items()})
        if isinstance(output, tuple):
            return tuple(self._of_tokens(value, layout) for value in output)
        return self._of_tokens(output, layout)

    def _of_tokens(self, value: Any, layout: Layout) -> Any:
        if isinstance(value, torch.Tensor):
            tokens = value.dim() == 3 or self.spans and value.dim() == 2
            if not tokens or not whole(value, layout):
                return value
            return picked(value, layout.foretelling if self.foretells else layout.tokens)
        if type(value) in (tuple, list):  # hidden states
            return type(value)(picked(v, layout.tokens) if hidden(v) and whole(v, layout) else v for v in value)
        return value


def hidden(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.dim() == 3


def whole(t: torch.Tensor, layout: Layout) -> bool:
    """Whether a tensor has an entry for each token and each row."""
    return tuple(t.shape[:2]) == (layout.shape[0], layout.shape[1] + layout.total)


def picked(t: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """Entries of the second dimension: [batch, all, …] and [batch, some] → [batch, some, …]."""
    index = index.to(t.device)
    return t.gather(1, index.reshape(*index.shape, *[1] * (t.dim() - 2)).expand(-1, -1, *t.shape[2:]))


@contextmanager
def with_rows(model: nn.Module) -> Iterator[nn.Module]:
    """Within the block the outputs of this thread's passes keep the entries of a prompt's rows: [batch, tokens and rows, …].

    `at_tokens` leaves them out of a tensor. Blocks nest; a model without a prompt returns what it always does.
    """
    r = registry(unwrapped(model))
    with nullcontext() if r is None else r.switch.holder.with_rows():
        yield model


def at_tokens(model: nn.Module, output: torch.Tensor) -> torch.Tensor:
    """The entries of an output at the tokens that were given: [batch, tokens and rows, …] → [batch, tokens, …].

    For what keeps the rows: outputs `with_rows`, those of a module inside the model, an encoder's states. ``output`` is of the last
    pass of the model in this thread; where no rows stood among the tokens, or where they are left out already, it is returned as it
    is. Raises `PeltError` (E0737) for an output of another length.
    """
    r = registry(unwrapped(model))
    layout = r.switch.holder.current.layout if r is not None and r.switch.live else None
    if layout is None or tuple(output.shape[:2]) == layout.shape:
        return output
    if not whole(output, layout):
        raise error("E0737", f"the last pass had {layout.shape[1]} tokens and {layout.total} rows, and this has the shape "
                    f"{list(output.shape)}", help="give an output of that pass, of every position")  # fmt: skip
    return picked(output, layout.tokens)
