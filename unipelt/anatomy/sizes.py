"""Sizes of sites, read from the modules themselves: configurations name them differently from model to model."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ..language.report.diagnostics import error
from .columns import Columns
from .entries import Reference
from .quantised import features, is_quantised
from .sites import View

#: What attention modules call the size of one head.
_HEAD_SIZE = ("head_dim", "attention_head_size", "key_value_proj_dim")


def weight_shape(module: nn.Module) -> tuple[int, int] | None:
    """(d_in, d_out) of a linear map, whichever way its weight is stored."""
    weight = getattr(module, "weight", None)
    if weight is None or (isinstance(weight, torch.Tensor) and is_quantised(weight)):
        return features(module)  # codes may be packed, so that their shape is another
    if not isinstance(weight, torch.Tensor) or weight.dim() != 2 or isinstance(module, nn.Embedding):
        return None
    rows, columns = weight.shape
    return (rows, columns) if type(module).__name__ == "Conv1D" else (columns, rows)


def _map_shape(model: nn.Module, path: str) -> tuple[int, int]:
    shape = weight_shape(model.get_submodule(path))
    if shape is None:
        raise error("E0506", f"`{path}` is no linear map", help="its type is not supported as a projection")
    return shape


def projection_view(model: nn.Module, at: Reference) -> View:
    """Where a projection is: a linear map, or the columns of a fused one that a share ``i/n`` of its output means (E0507)."""
    if at.share is None:
        return View(at.module)
    (i, n), width = at.share, _map_shape(model, at.module)[1]
    if width % n:
        raise error("E0507", f"`{at.module}[{i}/{n}]` is no whole number of columns: the module yields {width}",
                    help=f"write a denominator that divides {width}")  # fmt: skip
    return View(at.module, Columns.span(i * width // n, (i + 1) * width // n))


def projection_shape(model: nn.Module, view: View) -> tuple[int, int]:
    """(d_in, d_out) of a projection, one that has some columns of a fused one included."""
    d_in, d_out = _map_shape(model, view.module)
    return d_in, view.columns.width if view.columns is not None else d_out


def head_size(attention: nn.Module, d_q: int, config: Any) -> int:
    """The size of one attention head, by the module's own word for it or by the configuration's number of heads."""
    for name in _HEAD_SIZE:
        found = getattr(attention, name, None)
        if isinstance(found, int) and found > 0 and d_q % found == 0:
            return found
    heads = getattr(config, "num_attention_heads", None)
    if isinstance(heads, int) and heads > 0 and d_q % heads == 0:
        return d_q // heads
    raise error("E0701", f"the size of a head of {type(attention).__name__} is not known")


def block_sizes(model: nn.Module, views: dict[str, View], config: Any, vocab: int) -> dict[str, int]:
    """The sizes in scope at a block's sites, from its self-attention and feed-forward layer."""
    d_model, d_q = projection_shape(model, views["attn.q"])
    d_kv = projection_shape(model, views["attn.k"])[1]
    d_ff = projection_shape(model, views["ffn.down"])[0]
    d_head = head_size(model.get_submodule(views["attn.heads"].module), d_q, config)
    if d_kv % d_head:
        raise error("E0504", f"`attn.k` yields {d_kv} numbers, which are no whole heads of {d_head}")
    return dict(d_model=d_model, d_q=d_q, d_kv=d_kv, d_head=d_head, d_ff=d_ff, heads=d_q // d_head, groups=d_kv // d_head,
                vocab=vocab, d_x=d_model)  # fmt: skip


def width(module: nn.Module, words: nn.Module | None, d_model: int) -> int:
    """The last size of what an embedding module yields: its own or that of the word embeddings before it."""
    shape = weight_shape(module)
    if shape is not None:
        return shape[1]
    table = words if isinstance(words, nn.Embedding) else None
    return table.embedding_dim if table is not None else d_model
