"""Finds a model's sites: an `anatomy` of the library for its type, else the one whose every path the model has."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

import torch
from torch import nn

from ..language.diagnostics import error
from ..language.library import library_definition, library_names
from ..language.sites import SITES
from ..language.syntax import AnatomyDef
from .sites import Site, SiteMap, View

_VIEW = re.compile(r"([\w.]+)(?:\[(\d+)/(\d+)\])?")
_SUFFIXES = ("x", "residual", "norm")


@lru_cache(maxsize=1)
def anatomies() -> tuple[AnatomyDef, ...]:
    found = (library_definition("anatomy", n) for n in library_names("anatomy"))
    return tuple(a for a in found if isinstance(a, AnatomyDef))


def weight_shape(module: nn.Module) -> tuple[int, int] | None:
    """(d_in, d_out) of a linear map, whichever way its weight is stored."""
    weight = getattr(module, "weight", None)
    if not isinstance(weight, torch.Tensor) or weight.dim() != 2 or isinstance(module, nn.Embedding):
        return None
    rows, columns = weight.shape
    return (rows, columns) if type(module).__name__ == "Conv1D" else (columns, rows)


def find(model: nn.Module) -> SiteMap:
    """The map of a model's sites; an architecture that no anatomy fits is an error that says what was tried."""
    config = getattr(model, "config", None)
    if config is None:
        raise error("E0501", f"{type(model).__name__} is not a transformers model: it has no `config`")
    base = getattr(model, "base_model", model)
    prefix = next((n for n, m in model.named_modules() if m is base), "")
    kind = str(getattr(config, "model_type", "")).replace("-", "_")
    chosen = next((a for a in anatomies() if kind in a.models), None)
    if chosen is None:
        fitting = [a for a in anatomies() if _fits(a, base)]
        if len(fitting) != 1:
            raise error(
                "E0502", f"no anatomy is known for the model type `{kind}`",
                help=f"known types: {', '.join(sorted(m for a in anatomies() for m in a.models))}; "
                "write an `anatomy` for it beside those in specs/anatomy",
            )  # fmt: skip
        chosen = fitting[0]
    elif not _fits(chosen, base):
        missing = next(p for p in _paths(chosen) if not _has(base, p))
        raise error("E0503", f"the anatomy `{chosen.name}` does not fit this {type(model).__name__}: it has no `{missing}`")
    return _map(chosen, model, base, prefix, config)


def _paths(a: AnatomyDef) -> list[str]:
    entries = dict(a.entries)
    block = entries["block"].replace("*", "0")
    out = [block]
    for name, text in a.entries:
        match = _VIEW.fullmatch(text.strip())
        if name != "block" and match:
            out.append(match[1] if name.split(".")[0] in ("embed", "final") else f"{block}.{match[1]}")
    return out


def _has(base: nn.Module, path: str) -> bool:
    try:
        base.get_submodule(path)
    except AttributeError:
        return False
    return True


def _fits(a: AnatomyDef, base: nn.Module) -> bool:
    return all(_has(base, p) for p in _paths(a))


def _map(a: AnatomyDef, model: nn.Module, base: nn.Module, prefix: str, config: Any) -> SiteMap:
    entries = dict(a.entries)
    root = f"{prefix}." if prefix else ""
    container = entries["block"].removesuffix(".*")
    depth = len(base.get_submodule(container))  # type: ignore[arg-type]
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    d_model, heads = int(text.hidden_size), int(text.num_attention_heads)
    groups = int(getattr(text, "num_key_value_heads", None) or heads)
    sites: list[Site] = []
    blocks = tuple(f"{container}.{i}" for i in range(depth))
    causal = False
    for layer, block in enumerate(blocks):
        views = {n: _view(t, f"{root}{block}.") for n, t in entries.items() if n.split(".")[0] in ("attn", "cross", "ffn")}
        d_ff = weight_shape(model.get_submodule(views["ffn.down"].module))
        shape = _shape(model, views["attn.q"])
        d_q, d_kv = shape[1], _shape(model, views["attn.k"])[1]
        sizes = dict(d_model=d_model, d_q=d_q, d_kv=d_kv, d_head=d_q // heads, d_ff=d_ff[0] if d_ff else 0, heads=heads,
                     groups=groups, vocab=int(text.vocab_size), d_x=d_model)  # fmt: skip
        causal = bool(getattr(model.get_submodule(views["attn.heads"].module), "is_causal", False))
        common: dict[str, Any] = dict(layer=layer, block=block, causal=causal)
        for name, view in views.items():
            part, _, last = name.rpartition(".")
            if last in _SUFFIXES and part:
                continue
            family = SITES[name].family
            if family == "sublayer":
                sites.append(Site(name, family, view, "output", sizes, x=views[f"{name}.x"].module,
                                  residual=views[f"{name}.residual"].module, norm=views[f"{name}.norm"].module,
                                  bases={f"{name}.norm": views[f"{name}.norm"]}, **common))  # fmt: skip
            elif family == "heads":
                bases = {f"{part}.{n}": views[f"{part}.{n}"] for n in "qkv"}
                sites.append(Site(name, family, view, "attention", sizes, x=views[f"{part}.x"].module, bases=bases,
                                  **common))  # fmt: skip
            else:
                d_in, d_out = _shape(model, view)
                own = {**sizes, "d_x": d_in}
                if (d_in, d_out) != tuple(own[s] for s in _projection_sizes(name)):
                    raise error("E0504", f"`{name}` of {type(model).__name__} maps {d_in} to {d_out}, which does not agree "
                                "with the sizes of its configuration")  # fmt: skip
                sites.append(Site(name, family, view, "output", own, x=view.module, **common))
        down = views["ffn.down"]
        sites.append(Site("ffn.hidden", "hidden", down, "input", sizes, x=views["ffn.x"].module, **common))
        sites.append(Site("block", "block", View(f"{root}{block}"), "output", sizes, x=f"{root}{block}", **common))
    for name in ("embed", "embed.words"):
        if name in entries:
            sites.append(Site(name, "embed", View(f"{root}{entries[name]}"), "prompt", sizes, causal=causal))
    head = _head(model, base, prefix)
    if head:
        labels = _labels(model.get_submodule(head[-1]), config)
        is_lm = _output_embeddings(model) is not None
        sites.append(Site("head", "head", View(head[-1]), "output", {**sizes, "labels": labels}, x=prefix,
                          causal=causal and is_lm))  # fmt: skip
    learned = entries.get("embed") != entries.get("embed.words")
    return SiteMap(a.name, prefix, depth, tuple(sites), blocks, head, causal, learned)


def _projection_sizes(name: str) -> tuple[str, str]:
    W = dict(SITES[name].scope)["W"]
    return str(W.sizes[0]), str(W.sizes[1])


def _view(text: str, front: str) -> View:
    match = _VIEW.fullmatch(text.strip())
    if match is None:
        raise error("E0505", f"an anatomy's path reads `module` or `module[i/n]`, not {text!r}")
    return View(front + match[1], (int(match[2]), int(match[3])) if match[2] else None)


def _shape(model: nn.Module, view: View) -> tuple[int, int]:
    shape = weight_shape(model.get_submodule(view.module))
    if shape is None:
        raise error("E0506", f"`{view.module}` is no linear map", help="its type is not supported as a projection")
    return (shape[0], shape[1] // view.part[1]) if view.part else shape


def _head(model: nn.Module, base: nn.Module, prefix: str) -> tuple[str, ...]:
    """The modules around the base model that have parameters, with the base's own pooler first."""
    if base is model:
        return ()
    own = [n for n, m in model.named_children() if n != prefix.split(".")[0] and any(True for _ in m.parameters())]
    if not own:
        return ()
    tied = _output_embeddings(model)
    pooler = getattr(base, "pooler", None)
    with_pooler = tied is None and isinstance(pooler, nn.Module)
    return (*((f"{prefix}.pooler",) if with_pooler else ()), *own)


def _output_embeddings(model: Any) -> Any:
    """A language model's output layer; None for other models."""
    return model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None


def _labels(head: nn.Module, config: Any) -> int:
    shapes = [s for m in head.modules() if (s := weight_shape(m)) is not None]
    return shapes[-1][1] if shapes else int(getattr(config, "num_labels", 0))
