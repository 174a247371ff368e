"""Heads: a wrapper around every attention function of transformers, inert on modules without an edit.

The names in a model's configuration stay as they are, so `set_attn_implementation` and other models that share the
configuration are untouched. Rows that share the softmax go through the model's own kernel as further keys and values.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.compiler import is_dynamo_compiling
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, AttentionInterface

from ..anatomy.base import NAME
from ..language.report.diagnostics import error
from .edits import Edit, Rows
from .joining import joining
from .prompts.veils import veiled
from .kernels import Call, Kernel, fits, kernel_of, log_mass, scores_of, with_sinks
from .told_apart import WIDEST, together, told_apart
from .seam import Seam
from .mixture import Group, Mixture


class Wrapped:
    """An attention function of transformers with the edits of the calling module's seam around it."""

    def __init__(self, name: str, function: Callable):
        self.name, self.base = name, function

    def __call__(self, module: nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor,
                 attention_mask: torch.Tensor | None, **kwargs: Any) -> Any:  # fmt: skip
        seam = module._modules.get(NAME)
        if type(seam) is not Seam:
            return self.base(module, query, key, value, attention_mask, **kwargs)
        holder = seam.switch.holder
        if seam.veils is not None and holder.current.veils and (not seam.switch.mixes or holder.part is None):
            call = Call(module, query, key, value, attention_mask, kwargs)
            call = veiled(*seam.veils, holder.current, seam.switch.live, kernel_of(self.name), self.name, call)
            _, query, key, value, attention_mask, kwargs, _ = call
        steady = None if is_dynamo_compiling() else holder.steady
        if steady is None:
            return self.as_ever(seam, module, query, key, value, attention_mask, kwargs)
        quick = steady.heads.get(seam)
        if quick:
            return quick(self, seam, module, query, key, value, attention_mask, kwargs)
        found = self.as_ever(seam, module, query, key, value, attention_mask, kwargs)
        if quick is None and steady.learns:
            steady.heads[seam] = joining(self.base, kernel_of(self.name), seam.live("attention"), steady, query)
        return found

    def as_ever(self, seam: Seam, module: nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor,
                attention_mask: torch.Tensor | None, kwargs: dict[str, Any]) -> Any:  # fmt: skip
        if seam.switch.mixes and (mixture := seam.switch.mixture()) is not None:
            return self._mixed(seam, mixture, Call(module, query, key, value, attention_mask, kwargs))
        if not (edits := seam.live("attention")):
            return self.base(module, query, key, value, attention_mask, **kwargs)
        kernel = kernel_of(self.name)
        if kernel is None or kwargs.get("cache") is not None:
            what = f"the masks of the attention implementation {self.name}" if kernel is None else "a cache in pages"
            raise error("E0542", f"edits at heads do not know {what}", help='model.set_attn_implementation("sdpa")')
        return attend(self.base, kernel, seam, edits, Call(module, query, key, value, attention_mask, kwargs))

    def _mixed(self, seam: Seam, mixture: Mixture, call: Call) -> Any:
        """A batch whose examples have adapters of their own: the rows of each by themselves, since rows of keys differ in number."""
        batch = call.query.shape[0]
        split, holder = seam.split(mixture, "attention", batch), seam.switch.holder
        if split is None:
            return self.base(call.module, call.query, call.key, call.value, call.mask, **call.kwargs)

        def of(group: Group, function: Callable) -> torch.Tensor:
            def rows(t: Any) -> Any:
                whole = isinstance(t, torch.Tensor) and t.dim() > 1 and t.shape[0] == batch
                return group.of(t) if whole else t

            given = (rows(t) for t in (call.query, call.key, call.value, call.mask))
            return function(call.module, *given, **{n: rows(v) for n, v in call.kwargs.items()})[0]

        return split.together([
            of(g, self.base) if g.name is None else holder.of_rows(g, partial(of, g, self)) for g in split.parts
        ]), None  # fmt: skip


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


def attend(base: Callable, kernel: Kernel, seam: Seam, edits: list[tuple[str, Edit]], call: Call) -> Any:
    """(out [batch, tokens, heads, d], weights)"""
    query, scale, fit = call.query, call.scale, fits(kernel, call)
    rows: list[Rows] = []
    pairs: list[tuple[torch.Tensor, torch.Tensor]] = []
    joining: list[tuple[Edit, dict[str, Any]]] = []
    rest: list[tuple[Edit, dict[str, Any]]] = []
    apart = watched = False
    for name, edit in edits:
        scope = seam.gather(name, edit, None, call.module)
        scope["q"], scope["scale"] = query, scale
        if not fit or rest or not _joins(edit, rows, call):
            rest.append((edit, scope))
            continue
        joining.append((edit, scope))
        rows.append(found := edit(query, scope, seam.mask(edit) if edit.pools else None, want="rows"))
        pairs.append(found[:2])
        apart = apart or found[2] is not None or found[3] is not None
        watched = watched or bool(edit.watchers)
    if watched:
        _show(base, kernel, seam, joining, call)
    if apart:
        beside, pairs, shares = told_apart(call, rows)
        out, weights = kernel.join(beside, pairs).run(base)
        out = together(out, shares, query.shape[-1]) if shares else out
    else:
        out, weights = (kernel.join(call, pairs) if pairs else call).run(base)
    if not rest:
        return out, weights
    mass = _mass(kernel, call, rows, weights) if any("log_mass" in e.needs for e, _ in rest) else None
    return edited(seam, rest, out.transpose(1, 2), mass).transpose(1, 2).contiguous(), weights


def edited(
    seam: Seam, rest: Iterable[tuple[Edit, dict[str, Any]]], h: torch.Tensor, mass: torch.Tensor | None
) -> torch.Tensor:
    """The heads' output [batch, heads, tokens, d] that edits with what is in their scope make of it, one behind the other;
    ``mass`` is the log of the scores' mass [batch, heads, tokens], where one of them reads it."""
    for edit, scope in rest:
        if mass is not None:
            scope["log_mass"] = mass
        if mass is not None and edit.shares:
            h, own = edit(h, scope, seam.mask(edit), want="mass")
            mass = torch.logaddexp(mass, own.to(mass.dtype))  # the next prefix sees this one
        else:
            h = edit(h, scope, seam.mask(edit))
    return h


def _joins(edit: Edit, rows: list[Rows], call: Call) -> bool:
    """Whether an edit's rows can join the keys, behind those that do."""
    low = edit.lowered
    if low is None or low.keys is None:
        return False
    if not low.gated or call.query.shape[2] == 1:
        return True
    apart = 1 + sum(a is not None or b is not None for _, _, a, b in rows)
    return call.query.shape[-1] * (1 + apart) <= WIDEST


def _mass(kernel: Kernel, call: Call, rows: list[Rows], weights: Any) -> torch.Tensor:
    """The log of the mass of all scores, those of the rows that joined the keys among them."""
    if kernel.tells_mass and weights is not None:
        return with_sinks(call, weights)
    mass = log_mass(kernel, call)
    for k, _, on_scores, _ in rows:
        scores = scores_of(call, k)
        mass = torch.logaddexp(mass, torch.logsumexp(scores if on_scores is None else on_scores * scores, -1))
    return mass


@torch.no_grad()
def _show(base: Callable, kernel: Kernel, seam: Seam, joining: list[tuple[Edit, dict[str, Any]]], call: Call) -> None:
    """For those who watch: rows that become keys and values have no h and no out, so they are evaluated as written, beside
    the pass and without anything random."""
    h = call.quiet().run(base)[0].transpose(1, 2)
    mass = log_mass(kernel, call)
    for edit, scope in joining:
        h, own = edit(h, {**scope, "log_mass": mass}, seam.mask(edit), want="still")
        mass = torch.logaddexp(mass, own.to(mass.dtype))
