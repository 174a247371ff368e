"""Arguments of the forward pass that a method declares (`input NAME: …`) or needs for the pseudo-tokens of a text.

A hook of the model takes them off before the model's own forward sees them. `inputs` gives them for a block,
for calls that would not take them (`generate`, pipelines).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Set
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ...anatomy.interrupts import ended_by
from ...compiler.plan import PlannedInput
from ...language.report.diagnostics import PeltError, error, near
from ..registry import registry, unwrapped
from ..switch import Switch


@contextmanager
def inputs(model: nn.Module, **arguments: Any) -> Iterator[nn.Module]:
    """Within the block every call of the model (its encoder's too) gets these arguments; blocks nest.

    For `generate`, which refuses arguments it does not know: ``with unipelt.inputs(model, member=2): model.generate(…)``.
    A value for each example is repeated where `generate` repeats the examples (beams). An argument that is given in the
    call itself counts before the block's. Raises `PeltError` for a name that no attached adapter declares.
    """
    r = registry(unwrapped(model))
    known = r.input_hooks.names if r is not None else frozenset()
    for name in arguments:
        if name not in known:
            raise error("E0732", f"no adapter of this model declares the input `{name}`",
                        help=near(name, known) or (f"declared: {', '.join(sorted(known))}" if known else ""))  # fmt: skip
    if r is None:
        yield model
        return
    holder, before = r.switch.holder, r.switch.holder.given
    with ended_by(lambda: setattr(holder, "given", before)):
        holder.given = {**before, **arguments}
        yield model


@dataclass(frozen=True)
class Given:
    """Declared arguments of one call: those of the call itself, then those of the blocks around it."""

    call: Mapping[str, Any]
    block: Mapping[str, Any]


def take(switch: Switch, names: Set[str], kwargs: dict[str, Any]) -> Given:
    """Removes the declared arguments from ``kwargs``."""
    found = {n: kwargs.pop(n) for n in names & kwargs.keys()}
    return Given({n: v for n, v in found.items() if v is not None}, switch.holder.given)


def value_for(planned: PlannedInput, adapter: str, given: Given, batch: int, device: torch.device) -> torch.Tensor:
    """The argument of an adapter for a batch: [batch] of an index, else [batch, *sizes]."""
    t = _tensor(_find(planned, adapter, given), planned).to(device)
    if tuple(t.shape) == planned.sizes:  # the same for every example
        return t.expand(batch, *planned.sizes)
    if t.dim() == 1 + len(planned.sizes) and tuple(t.shape[1:]) == planned.sizes and t.shape[0]:
        if t.shape[0] == batch:
            return t
        if planned.name not in given.call and batch % t.shape[0] == 0:
            return t.repeat_interleave(batch // t.shape[0], 0)  # as generate repeats examples for its beams
    raise _misfit(planned, f"a tensor of shape {list(t.shape)} for {batch} examples")


def marks_for(
    planned: PlannedInput, adapter: str, given: Given, shape: tuple[int, int], device: torch.device, seen: int
) -> torch.Tensor | None:
    """Which of a call's tokens are pseudo-tokens: [batch, tokens]. A block's marks are those of the whole text, whose first
    ``seen`` tokens a cache holds; a call that continues a cache has none of its own."""
    name = planned.name
    if name not in given.call and name not in given.block and seen:
        return None
    t = torch.as_tensor(_find(planned, adapter, given)).to(device)
    batch, tokens = shape
    if t.is_floating_point() or t.dim() != 2:
        raise _misfit(planned, f"a tensor of {t.dtype} with the shape {list(t.shape)}")
    if name not in given.call:
        t = torch.nn.functional.pad(t, (0, max(0, seen + tokens - t.shape[1])))[:, seen : seen + tokens]
        t = t.repeat_interleave(batch // t.shape[0], 0) if t.shape[0] and batch % t.shape[0] == 0 else t
    if tuple(t.shape) != shape:
        raise _misfit(planned, f"a tensor of shape {list(t.shape)} for tokens of shape {list(shape)}")
    if not torch.compiler.is_compiling() and not t.is_meta and t.numel():
        low, high = int(t.min()), int(t.max())
        if low < 0 or high > (planned.count or 0):
            raise _misfit(planned, str(low if low < 0 else high))
    return t.long()


def _find(planned: PlannedInput, adapter: str, given: Given) -> Any:
    name = planned.name
    for source in (given.call, given.block):
        if name in source:
            return source[name]
    raise error("E0731", f"the adapter `{adapter}` needs the argument `{name}`: {planned}",
                help=f"model(…, {name}=…), or for generate: with unipelt.inputs(model, {name}=…)")  # fmt: skip


def _tensor(value: Any, planned: PlannedInput) -> torch.Tensor:
    try:
        t = torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError):
        raise _misfit(planned, repr(value)[:80]) from None
    if t.is_floating_point() is (planned.count is not None) or t.dtype == torch.bool:
        raise _misfit(planned, f"a tensor of {t.dtype}")
    if planned.count is None:
        return t
    if not torch.compiler.is_compiling() and not t.is_meta and t.numel():
        low, high = int(t.min()), int(t.max())
        if low < 0 or high >= planned.count:
            raise _misfit(planned, str(low if low < 0 else high))
    return t.long()


def _misfit(planned: PlannedInput, found: str) -> PeltError:
    return error("E0733", f"the argument `{planned.name}` is {planned}, and this is {found}")
