"""Rows that enter a block behind others have places among the tokens from the start; before that block no token looks at them.

What stands at such a place in the blocks before is the embedding of some word, which the rows replace where they enter. The attention of
these blocks is given a mask in which the tokens do not see those places; the places themselves see what they did.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from ...language.report.diagnostics import error
from ..kernels import Call, Kernel
from .layout import Layout

if TYPE_CHECKING:
    from .passes import Pass


@dataclass(frozen=True, slots=True)
class Veil:
    """Where rows of an adapter stand that enter a block: ``places`` [batch, rows] (or [1, rows], the same in all texts) among ``length``
    tokens and rows; ``who``: the examples that have them, None: all."""

    adapter: str
    stack: str
    block: int
    places: torch.Tensor
    length: int
    who: tuple[int, ...] | None = None

    def marked(self) -> torch.Tensor:
        """[batch, tokens and rows]"""
        found = torch.zeros(self.places.shape[0], self.length, dtype=torch.bool, device=self.places.device)
        if self.who is None:
            return found.scatter(1, self.places, True)
        at = torch.tensor(self.who, device=found.device)
        return found.index_copy(0, at, found[at].scatter(1, self.places[at], True))


def veils(stack: str, keys: Sequence[tuple[str, str, str]], blocks: Sequence[int | None], layout: Layout) -> list[Veil]:
    """The veils of a layout whose rows, those of the edits with these keys, enter these blocks (None: with the tokens)."""
    length = layout.shape[1] + layout.total
    return [
        Veil(key[0], stack, block, places[:1] if layout.same else places, length, kind.who)
        for key, block, places, kind in zip(keys, blocks, layout.rows, layout.kinds) if block is not None
    ]  # fmt: skip


def veiled(
    stack: str, block: int, current: Pass, acting: Sequence[str], kernel: Kernel | None, name: str, call: Call
) -> Call:
    """A call of a block's attention in which tokens do not see the places of rows that enter later blocks."""
    own = [i for i, v in enumerate(current.veils) if v.stack == stack and v.block > block and v.adapter in acting]
    if not own:
        return call
    if kernel is None or not (kernel.masked or kernel.padded) or call.kwargs.get("cache") is not None:
        what = "a cache in pages" if kernel is not None else f"the masks of the attention implementation {name}"
        raise error("E0542", f"rows that enter a later block are hidden by a mask, and nothing is known of {what}",
                    help='model.set_attn_implementation("sdpa")')  # fmt: skip
    marked = _marked(current, own, call)
    return _padded(call, marked) if kernel.padded else _masked(current, own, kernel, call, marked)


def _marked(current: Pass, own: Sequence[int], call: Call) -> torch.Tensor:
    """Where the rows stand among the tokens of a call: [batch or 1, tokens and rows]."""
    found = torch.stack([current.veils[i].marked() for i in own]).any(0).to(call.query.device)
    (batch, _, n, _), length = call.query.shape, found.shape[1]
    if n > length or found.shape[0] not in (1, batch):
        raise error("E0542", f"places of rows are known among {length} tokens in {found.shape[0]} texts, and attention has {n} in {batch}",
                    help="call the model that was given to unipelt.apply")  # fmt: skip
    return found


def _padded(call: Call, marked: torch.Tensor) -> Call:
    """The rows are pads: nothing looks at them, nor do they look at anything."""
    mask = call.mask
    if mask is None:
        mask = marked.new_ones(call.query.shape[0], min(call.key.shape[2], marked.shape[1]))
    return call._replace(mask=mask.bool() & ~_last(marked, mask.shape[1]))


def _masked(current: Pass, own: Sequence[int], kernel: Kernel, call: Call, marked: torch.Tensor) -> Call:
    """The tokens do not see the rows; what these see stays as it is, so that they see something."""
    seen, key, value, kwargs = kernel.seen(call), call.key, call.value, call.kwargs
    if seen is not None and seen.shape[-1] < key.shape[2]:  # the later keys are empty
        key, value = key[:, :, : seen.shape[-1]], value[:, :, : seen.shape[-1]]
        if (bias := kwargs.get("position_bias")) is not None:
            kwargs = {**kwargs, "position_bias": bias[..., : seen.shape[-1]]}
    n, m = call.query.shape[2], key.shape[2]
    kept = (*own, n, m, marked.device)
    behind = None if torch.compiler.is_compiling() else current.behind.get(kept)
    if behind is None:
        behind = _last(marked, m)[:, None, None] & ~_last(marked, n)[:, None, :, None]
    if not torch.compiler.is_compiling():  # for the other blocks
        current.behind[kept] = behind
    if seen is None:
        mask = ~behind if kernel.flagged else torch.where(behind, _least(call.query), call.query.new_zeros(()))
    elif seen.dtype == torch.bool:  # no `where`, which onnxruntime has for numbers alone
        mask = seen & ~behind
    else:
        mask = torch.where(behind, _least(seen), seen)
    return call._replace(
        key=key, value=value, mask=mask, kwargs={**kwargs, "is_causal": False} if kernel.flagged else kwargs
    )


def _least(like: torch.Tensor) -> torch.Tensor:
    return torch.full((), torch.finfo(like.dtype).min, dtype=like.dtype, device=like.device)


def _last(marked: torch.Tensor, n: int) -> torch.Tensor:
    """Of the last ``n`` places. A static cache has room for more, which are empty, and one with a window has the last ones."""
    more = n - marked.shape[1]
    return torch.nn.functional.pad(marked, (0, more)) if more > 0 else marked[:, -n:]
