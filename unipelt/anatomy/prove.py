"""The proof of an anatomy that a model fits by its paths: two small forward passes, and what the named places hold in them.

The types that an anatomy of the library names were tested; another type may have the same names and another meaning: norms
elsewhere, a factor before the sum, positions added behind ``embed``. Asked of every stack's first and last block: that
``x`` is the residual stream or its norm, that ``residual`` + ``h`` is what goes on, through the named norm where that stands
behind; that what leaves ``embed`` enters the first block; and that later tokens are seen where attention says so.
Non-goals: sizes (`sizes`), and projections, whose input and output are a module's own.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from torch import nn

from .calls import called_once, calls
from .evaluating import evaluating
from .sites import Site, SiteMap, Stack

TOKENS = 4
#: The name that transformers' attention modules read their function from.
_DISPATCH = "ALL_ATTENTION_FUNCTIONS"


class Pass:
    """The tensors that entered and left some modules when each was first called."""

    def __init__(self) -> None:
        self.entered: dict[str, torch.Tensor] = {}
        self.left: dict[str, torch.Tensor] = {}


def proved(sites: SiteMap, model: nn.Module, base: nn.Module) -> tuple[SiteMap, str]:
    """The map without the sites that no edit could have, and what of it is not so in the model, in words (nothing, if it stands)."""
    root = f"{sites.prefix}." if sites.prefix else ""
    try:
        inputs = _inputs(base, sites.stacks)
        if inputs is None:
            return sites, f"it reads `{getattr(base, 'main_input_name', '')}`, with which nothing can be tried here"
        with calls(model, sites) as counts:
            first = _pass(sites, model, base, root, inputs)
        second = _pass(sites, model, base, root, _changed(inputs)) if "input_ids" in inputs else None
    except Exception as e:  # noqa: BLE001 - whatever a strange model's forward raises
        return sites, f"a small pass fails: {type(e).__name__}: {' '.join(str(e).split())[:200]}"
    wrong = _refuted(sites, first, second, root)
    return (sites, wrong) if wrong else (without_heads(called_once(sites, counts), model), "")


def _refuted(sites: SiteMap, first: Pass, second: Pass | None, root: str) -> str:
    for stack in sites.stacks:
        for block in _ends(stack):
            wrong = _block(first, root + block, [s for s in sites.sites if s.block == block and s.stack == stack.name])
            if wrong:
                return wrong
        wrong = _around(first, root, stack, [s for s in sites.sites if s.layer is None and s.stack == stack.name])
        if wrong:
            return wrong
    return "" if second is None else _ahead(sites.stacks[-1], first, second, root)


def dispatches(module: nn.Module) -> bool:
    """Whether an attention module takes its function from transformers' interface, where edits at heads are put."""
    forward = inspect.unwrap(type(module).forward)
    return _DISPATCH in getattr(getattr(forward, "__code__", None), "co_names", ())


def without_heads(sites: SiteMap, model: nn.Module) -> SiteMap:
    """The map without the heads of attention that no edit would reach."""
    past = {s.full_name: f"{type(m).__name__} computes attention past the interface of transformers" for s in sites.sites
            if s.side == "attention" and not dispatches(m := model.get_submodule(s.view.module))}  # fmt: skip
    return replace(
        sites, sites=tuple(s for s in sites.sites if s.full_name not in past), refused={**sites.refused, **past}
    )


def _ends(stack: Stack) -> tuple[str, ...]:
    """The blocks that are asked about: the first and the last."""
    return tuple(dict.fromkeys((stack.blocks[0], stack.blocks[-1])))


# ---------------------------------------------------------------- the passes


def _inputs(base: nn.Module, stacks: Sequence[Stack]) -> dict[str, torch.Tensor] | None:
    name, config = getattr(base, "main_input_name", "input_ids"), cast(Any, getattr(base, "config", None))
    if name == "pixel_values" and isinstance(size := getattr(config, "image_size", None), int):
        own = next(base.parameters())
        return {
            name: torch.linspace(-1, 1, config.num_channels * size**2, device=own.device, dtype=own.dtype).reshape(
                1, -1, size, size
            )
        }
    if name != "input_ids":
        return None  # asked first: models of sound have no embeddings and raise where they are asked for them
    embeddings: Any = getattr(base, "get_input_embeddings", None)
    weight = getattr(embeddings() if callable(embeddings) else None, "weight", None)
    if weight is None:
        return None
    ids = torch.arange(TOKENS + 1, 2 * TOKENS + 1, device=weight.device)[None] % len(weight)
    found = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    return {**found, "decoder_input_ids": ids} if len(stacks) > 1 else found


def _changed(inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The inputs with another last token, of the decoder where there is one."""
    name = "decoder_input_ids" if "decoder_input_ids" in inputs else "input_ids"
    return {**inputs, name: torch.cat([inputs[name][:, :-1], inputs[name][:, :1]], 1)}


def _pass(sites: SiteMap, model: nn.Module, base: nn.Module, root: str, inputs: dict[str, torch.Tensor]) -> Pass:
    seen = Pass()
    asked = {b for s in sites.stacks for b in _ends(s)}
    wanted = {root + b for b in asked}
    for s in sites.sites:
        if s.kind.times in ("input", "stacks") or s.kind.is_sublayer and s.block in asked:
            wanted |= {p for p in (s.view.module, s.x, s.residual, s.norm) if p}
    with evaluating(model), contextlib.ExitStack() as hooks:
        for path in wanted:
            module = model.get_submodule(path)

            def enter(_: nn.Module, args: tuple, kwargs: dict[str, Any], path: str = path) -> None:
                found = _first([*args, kwargs.get("hidden_states"), *kwargs.values()])
                if found is not None:
                    seen.entered.setdefault(path, found.detach().clone())

            def leave(_: nn.Module, args: tuple, output: Any, path: str = path) -> None:
                found = _first(output if isinstance(output, (tuple, list)) else [output])
                if found is not None:
                    seen.left.setdefault(path, found.detach().clone())

            for handle in (
                module.register_forward_pre_hook(enter, with_kwargs=True),
                module.register_forward_hook(leave),
            ):
                hooks.callback(handle.remove)
        base(**inputs)
    return seen


def _first(values: Any) -> torch.Tensor | None:
    return next((v for v in values if isinstance(v, torch.Tensor) and v.is_floating_point()), None)


# ---------------------------------------------------------------- what is asked


def _block(seen: Pass, block: str, sites: Sequence[Site]) -> str:
    layers = [s for s in sites if s.kind.is_sublayer]
    for i, s in enumerate(layers):
        h = (seen.entered if s.view.enters else seen.left).get(s.view.module)
        r, x = seen.entered.get(s.residual or ""), seen.entered.get(s.x or "")
        to_norm, from_norm = seen.entered.get(s.norm or ""), seen.left.get(s.norm or "")
        on = seen.left.get(block) if i + 1 == len(layers) else seen.entered.get(layers[i + 1].residual or "")
        if h is None or r is None or x is None or on is None:
            return f"`{s.full_name}` of `{block}` is not passed through"
        if not (_same(x, r) or (_same(to_norm, r) and _same(x, from_norm))):
            return f"`{s.x}` reads neither `{s.full_name}.residual` nor that behind `{s.full_name}.norm`"
        if h.numel() != r.numel():
            return f"`{s.view.module}` yields {list(h.shape)}, and the residual stream is {list(r.shape)}"
        total = r.reshape(h.shape) + h
        if not (_same(total, on) or (_same(total, to_norm) and _same(from_norm, on))):
            after = "leaves the block" if i + 1 == len(layers) else f"`{layers[i + 1].full_name}` is added to"
            return f"`{s.full_name}.residual` + `{s.full_name}` in `{block}` is not what {after}"
    return ""


def _around(seen: Pass, root: str, stack: Stack, sites: Sequence[Site]) -> str:
    """What leaves the embeddings enters the first block, and what leaves the last block enters the last norm."""
    first, last = (root + stack.blocks[i] for i in (0, -1))
    for s in sites:
        at = s.view.module
        left = (seen.entered if s.view.enters else seen.left).get(at)
        if s.kind.times == "input" and s.kind.positions and not _same(left, seen.entered.get(first)):
            return f"what leaves `{at}`, its `{s.name}`, is not what enters `{first}`"
        if s.kind.times == "stacks" and not _same(seen.entered.get(at), seen.left.get(last)):
            return f"what enters `{at}`, its `{s.name}`, is not what leaves `{last}`"
    return ""


def _ahead(stack: Stack, first: Pass, second: Pass, root: str) -> str:
    block = root + stack.blocks[-1]
    a, b = (p.left.get(block) for p in (first, second))
    if a is None or b is None or a.numel() % TOKENS:
        return f"what leaves `{block}` has no entry for each token"
    sees = not _same(a.reshape(TOKENS, -1)[:-1], b.reshape(TOKENS, -1)[:-1])
    if sees == stack.causal:
        return "its tokens see later ones, and its attention says they do not" if sees else (
            "its tokens see no later ones, and its attention does not say so (`is_causal`)")  # fmt: skip
    return ""


def _same(a: torch.Tensor | None, b: torch.Tensor | None) -> bool:
    """Equal up to rounding; whatever their shapes, as some modules join batch and tokens."""
    if a is None or b is None or a.numel() != b.numel():
        return False
    x, y = a.reshape(-1).double(), b.reshape(-1).double().to(a.device)
    within = 1e-4 if a.dtype in (torch.float32, torch.float64) else 2e-2
    return bool((x - y).abs().max() <= within * y.abs().max())
