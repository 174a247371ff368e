"""Heads of attention: how large one is, how many a projection has. The modules say it, or the configuration does."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from ..language.report.diagnostics import error

#: What attention modules call the size of one head.
_HEAD_SIZE = ("head_dim", "attention_head_size", "key_value_proj_dim")


def head_size(attention: nn.Module, d_q: int, config: Any) -> int:
    """The size of one attention head, by the module's own word for it or by the configuration's number of heads (E0701)."""
    size, left = _own(attention, d_q), 0
    if not size:
        size, left = divmod(d_q, _number(attention, config))
    if left:
        raise _unknown(attention)
    return size


def _own(attention: nn.Module, width: int) -> int:
    """The size of a head as the module says it, if a width is a number of such heads; 0 where it does not."""
    found = (getattr(attention, name, None) for name in _HEAD_SIZE)
    return next((d for d in found if isinstance(d, int) and d > 0 and width % d == 0), 0)


def _number(attention: nn.Module, config: Any) -> int:
    """The configuration's number of query heads."""
    heads = getattr(config, "num_attention_heads", None)
    if not isinstance(heads, int) or heads < 1:
        raise _unknown(attention)
    return heads


def _unknown(attention: nn.Module) -> Exception:
    return error("E0701", f"the size of a head of {type(attention).__name__} is not known")


@dataclass(frozen=True, slots=True)
class Heads:
    """The heads of an attention module whose projections are fused, so that the width of the queries is not known beforehand."""

    attention: nn.Module
    config: Any

    def count(self, width: int) -> int:
        """How many heads a projection of that width has. It need not divide among them: whoever asks looks."""
        size = _own(self.attention, width)
        return width // size if size else _number(self.attention, self.config)

    def shared(self, width: int, others: int) -> tuple[int, int, int]:
        """(size of a head, query heads, groups) of queries and ``others`` projections of one head a group, ``width`` all together.

        Where the module does not say the size of a head, the configuration's number of groups decides. The sizes need not
        come to the width: whoever asks compares.
        """
        queries = _number(self.attention, self.config)
        size = _own(self.attention, width)
        if size:
            return size, queries, (width // size - queries) // others if others else queries
        groups = getattr(self.config, "num_key_value_heads", None)
        groups = groups if isinstance(groups, int) and groups > 0 else queries
        return width // (queries + others * groups), queries, groups
