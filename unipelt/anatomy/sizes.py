"""Sizes of sites, read from the modules themselves: configurations name them differently from model to model."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ..language.report.diagnostics import error
from ..language.sites import SITES
from .attention import Heads, head_size
from .entries import Reference
from .quantised import features, is_quantised
from .sites import View


def weight_shape(module: nn.Module) -> tuple[int, int] | None:
    """(d_in, d_out) of a linear map, whichever way its weight is stored; of a convolution that reads one position at a time, too."""
    if isinstance(module, nn.modules.conv._ConvNd):
        return (module.in_channels, module.out_channels) if not beyond_a_position(module) else None
    weight = getattr(module, "weight", None)
    if weight is None or (isinstance(weight, torch.Tensor) and is_quantised(weight)):
        return features(module)  # codes may be packed, so that their shape is another
    if not isinstance(weight, torch.Tensor) or weight.dim() != 2 or isinstance(module, nn.Embedding):
        return None
    rows, columns = weight.shape
    return (rows, columns) if type(module).__name__ == "Conv1D" else (columns, rows)


def beyond_a_position(module: nn.modules.conv._ConvNd) -> str:
    """Why a convolution is no linear map of each position by itself; nothing, if it is one."""
    if module.transposed or module.groups != 1 or any(k != 1 for k in module.kernel_size):
        kernel = "×".join(map(str, module.kernel_size))
        kind = "transposed" if module.transposed else "grouped" if module.groups != 1 else kernel
        return f"a {kind} convolution is no linear map of one position"
    still = module.padding in (0, "valid", "same", (0,) * len(module.kernel_size))
    return "" if still else "its padding puts positions beside those that enter it"


def _map_shape(model: nn.Module, path: str) -> tuple[int, int]:
    shape = weight_shape(model.get_submodule(path))
    if shape is None:
        raise error("E0506", f"`{path}` is no linear map", help="its type is not supported as a projection")
    return shape


def projection_view(model: nn.Module, at: Reference, heads: Heads, here: str) -> View:
    """Where a projection is: a linear map, or the columns of a fused one that are a part of its output (E0507, naming ``here``)."""
    if at.part is None:
        return View(at.module)
    return View(at.module, at.part.columns(_map_shape(model, at.module)[1], heads, here))


def projection_shape(model: nn.Module, view: View) -> tuple[int, int]:
    """(d_in, d_out) of a projection, one that has some columns of a fused one included."""
    d_in, d_out = _map_shape(model, view.module)
    return d_in, view.columns.width if view.columns is not None else d_out


def block_sizes(model: nn.Module, views: dict[str, View], config: Any, vocab: int) -> dict[str, int]:
    """The sizes in scope at a block's sites, from its projections and attention's module; those of what it has."""
    found: dict[str, int] = {}
    projections = [s for n, s in SITES.items() if n in views and s.has_weight]
    for site in sorted(projections, key=lambda s: not s.instead):
        for size, number in zip(dict(site.scope)["W"].sizes, projection_shape(model, views[site.name])):
            found.setdefault(str(size), number)
    sizes = {**found, "vocab": vocab, **({"d_x": found["d_model"]} if "d_model" in found else {})}
    if "attn.heads" not in views or "d_q" not in found:
        return sizes
    d_head = head_size(model.get_submodule(views["attn.heads"].module), found["d_q"], config)
    d_kv = found.get("d_kv", found["d_q"])
    if d_kv % d_head:
        raise error("E0504", f"`attn.k` yields {d_kv} numbers, which are no whole heads of {d_head}")
    return {**sizes, "d_kv": d_kv, "d_head": d_head, "heads": found["d_q"] // d_head, "groups": d_kv // d_head}


def width(module: nn.Module, words: nn.Module | None, d_model: int) -> int:
    """The last size of what an embedding module yields: its own or that of the word embeddings before it."""
    shape = weight_shape(module)
    if shape is not None:
        return shape[1]
    table = words if isinstance(words, nn.Embedding) else None
    return table.embedding_dim if table is not None else d_model
