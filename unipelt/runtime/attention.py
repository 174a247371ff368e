"""Heads: a wrapper around every attention function of transformers, inert on modules without an edit.

The names in a model's configuration stay as they are, so `set_attn_implementation` and other models that share the
configuration are untouched. Rows that share the softmax go through the model's own kernel as further keys and values.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, AttentionInterface

from ..language.report.diagnostics import error
from .edits import Edit
from .seam import Seam, seam_of

#: The implementations whose masks are understood: additive or boolean [batch, 1, queries, keys], or none.
SUPPORTED = ("sdpa", "eager")


class Wrapped:
    """An attention function of transformers with the edits of the calling module's seam around it."""

    def __init__(self, name: str, function: Callable):
        self.name, self.base = name, function

    def __call__(self, module: nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor,
                 attention_mask: torch.Tensor | None, **kwargs: Any) -> Any:  # fmt: skip
        seam = seam_of(module)
        edits = seam.live("attention") if seam is not None else []
        if not edits:
            return self.base(module, query, key, value, attention_mask, **kwargs)
        if self.name not in SUPPORTED:
            raise error("E0542", f"edits at heads know the attention implementations {' and '.join(SUPPORTED)}, not {self.name}",
                        help='model.set_attn_implementation("sdpa")')  # fmt: skip
        assert seam is not None
        return _attend(self, seam, edits, module, query, key, value, attention_mask, kwargs)


def install() -> None:
    """Wraps every attention function once for the process; registering one later and applying again wraps it too.

    What models do without a registered function ("eager") each hands over when it asks for one, so the asking is wrapped.
    """
    for name, function in [*ALL_ATTENTION_FUNCTIONS.items()]:
        if not isinstance(function, Wrapped):
            AttentionInterface.register(name, Wrapped(name, function))
    if AttentionInterface.get_interface is not _with_edits:
        AttentionInterface.get_interface = _with_edits  # type: ignore[method-assign]


_ask = AttentionInterface.get_interface


def _with_edits(self: AttentionInterface, attn_implementation: str, default: Callable) -> Callable:
    found = _ask(self, attn_implementation, default)
    return found if isinstance(found, Wrapped) else Wrapped("eager" if found is default else attn_implementation, found)


def refuse_bypassing(model: nn.Module, hosts: Iterable[str]) -> None:
    """Where attention is computed past the interface, edits at heads would be left out in silence (E0547)."""
    config: Any = model.config
    if getattr(config, "reorder_and_upcast_attn", False) and config._attn_implementation == "eager":
        raise error("E0547", "this configuration (reorder_and_upcast_attn, eager) bypasses the attention interface",
                    help='model.set_attn_implementation("sdpa")')  # fmt: skip
    for kind in {type(model.get_submodule(host)) for host in hosts}:
        files = [sys.modules.get(cls.__module__) for cls in kind.__mro__]
        if not any(hasattr(f, n) for f in files for n in ("ALL_ATTENTION_FUNCTIONS", "eager_attention_forward")):
            raise error("E0547", f"{kind.__name__} computes attention by itself, past the attention interface of "
                        "transformers: nothing can be done at its heads", help="take another site")  # fmt: skip


def _attend(
    wrapped: Wrapped, seam: Seam, edits: list[tuple[str, Any]], module: nn.Module, query: torch.Tensor,
    key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None, kwargs: dict[str, Any],
) -> Any:  # fmt: skip
    """query [batch, heads, tokens, d]; key, value [batch, groups, all tokens, d] → (out [batch, tokens, heads, d], weights)."""
    given = [_given(seam, name, edit, query, kwargs, module) for name, edit in edits]
    fused = 0
    while fused < len(edits) and _fusable(edits[fused][1]):
        fused += 1
    rest = edits[fused:]
    if fused or any("log_mass" in e.needs for _, e in rest):
        mask, key, value = _explicit(module, query, key, value, mask)
        bias = kwargs.pop("position_bias", None)  # T5's; a part of the scores, which learned rows have none of
        mask = mask if bias is None else _biased(mask, bias[..., : key.shape[2]])
    if any(e.watchers for _, e in edits[:fused]):
        _show(wrapped, seam, [e for _, e in edits[:fused]], given, module, query, key, value, mask, kwargs)
    for (_, edit), scope in zip(edits[:fused], given):
        k, v = edit(query, scope, seam.mask(edit), want="rows")
        key, value, mask = _with_rows(k, v, key, value, mask)
    # `mask` is explicit here wherever rows were added; without one, nothing is hidden from any query
    extra = {"is_causal": False} if (fused or mask is not None) and wrapped.name == "sdpa" else {}
    shown = _additive(mask, query) if wrapped.name == "eager" else mask
    out, weights = wrapped.base(module, query, key, value, shown, **{**kwargs, **extra})
    if not rest:
        return out, weights
    h = out.transpose(1, 2)
    log_mass = _log_mass(module, query, key, mask, kwargs) if any("log_mass" in e.needs for _, e in rest) else None
    for (_, edit), scope in zip(rest, given[fused:]):
        if log_mass is not None:
            scope["log_mass"] = log_mass
        if log_mass is not None and edit.shares:
            h, own = edit(h, scope, seam.mask(edit), want="mass")
            log_mass = torch.logaddexp(log_mass, own.to(log_mass.dtype))  # the next prefix sees this one
        else:
            h = edit(h, scope, seam.mask(edit))
    return h.transpose(1, 2).contiguous(), weights


@torch.no_grad()
def _show(
    wrapped: Wrapped, seam: Seam, edits: list[Edit], given: list[dict[str, Any]], module: nn.Module, query: torch.Tensor,
    key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None, kwargs: dict[str, Any],
) -> None:  # fmt: skip
    """For those who watch: rows that become keys and values have no h and no out, so they are evaluated as written, beside
    the pass and without anything random."""
    quiet = {**kwargs, **({"is_causal": False} if mask is not None and wrapped.name == "sdpa" else {})}
    if "dropout" in quiet:
        quiet["dropout"] = 0.0
    shown = _additive(mask, query) if wrapped.name == "eager" else mask
    h = wrapped.base(module, query, key, value, shown, **quiet)[0].transpose(1, 2)
    log_mass = _log_mass(module, query, key, mask, kwargs)
    for edit, scope in zip(edits, given):
        h, own = edit(h, {**scope, "log_mass": log_mass}, seam.mask(edit), want="still")
        log_mass = torch.logaddexp(log_mass, own.to(log_mass.dtype))


def _given(
    seam: Seam, name: str, edit: Edit, query: torch.Tensor, kwargs: dict[str, Any], module: nn.Module
) -> dict[str, Any]:
    scaling = kwargs.get("scaling")
    scale = float(scaling) if scaling is not None else query.shape[-1] ** -0.5
    scope = seam.gather(name, edit, None, module)
    return {**scope, "q": query, "scale": scale}


def _fusable(edit: Edit) -> bool:
    return edit.lowered is not None and edit.lowered.keys is not None


def _explicit(
    module: nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None
) -> tuple[torch.Tensor | None, torch.Tensor, torch.Tensor]:
    """A mask that says what the kernel's causal flag would: aligned at the top left, later (empty) keys cut off."""
    n, m = query.shape[2], key.shape[2]
    if mask is not None or n == 1 or not getattr(module, "is_causal", True):
        return mask, key, value
    key, value = key[:, :, :n], value[:, :, :n]
    m = min(m, n)
    return torch.ones(n, m, dtype=torch.bool, device=query.device).tril()[None, None], key, value


def _with_rows(
    k: torch.Tensor, v: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Learned rows before the tokens' own keys and values; no query is kept from them."""
    k = k.to(key.dtype).expand(key.shape[0], -1, -1, -1)
    v = v.to(value.dtype).expand(key.shape[0], -1, -1, -1)
    if mask is not None:
        free = torch.ones if mask.dtype == torch.bool else torch.zeros
        room = free(*mask.shape[:-1], k.shape[2], dtype=mask.dtype, device=mask.device)
        mask = torch.cat([room, mask[..., : key.shape[2]]], -1)
    return torch.cat([k, key], 2), torch.cat([v, value], 2), mask


def _additive(mask: torch.Tensor | None, query: torch.Tensor) -> torch.Tensor | None:
    if mask is None or mask.dtype != torch.bool:
        return mask
    zero = torch.zeros((), dtype=query.dtype, device=query.device)
    return torch.where(mask, zero, torch.finfo(query.dtype).min)


def _biased(mask: torch.Tensor | None, bias: torch.Tensor) -> torch.Tensor:
    """A mask and a bias of the scores in one tensor that is added to them."""
    if mask is None:
        return bias
    return torch.where(mask, bias, torch.finfo(bias.dtype).min) if mask.dtype == torch.bool else mask + bias


def _log_mass(
    module: nn.Module, query: torch.Tensor, key: torch.Tensor, mask: torch.Tensor | None, kwargs: dict[str, Any]
) -> torch.Tensor:
    """log Σ exp(score) over the keys each query may see: [batch, heads, tokens]."""
    repeat = query.shape[1] // key.shape[1]
    key = key.repeat_interleave(repeat, 1) if repeat > 1 else key
    scaling = kwargs.get("scaling")
    scores = query @ key.transpose(-1, -2) * (scaling if scaling is not None else query.shape[-1] ** -0.5)
    shown = _additive(mask, scores)
    if shown is not None:
        scores = scores + shown[..., : key.shape[2]]
    return torch.logsumexp(scores, -1)
