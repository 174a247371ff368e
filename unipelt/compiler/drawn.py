"""What the words `noise[…]` and `chance[…]` give in a pass.

Each pass that trains has one seed; what a place draws follows from the seed, the place and the words alone. So layers that are
computed again in the backward pass (gradient checkpointing) see the same numbers, on every device, and nothing need be kept.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256

import torch

from ..language.report.diagnostics import error
from ..language.sites import axis_order
from ..language.types.draws import Draw, draw_of
from ..language.types.typed import TypedRow
from . import helpers
from .named import Named

#: Under which name a pass's seed enters an edit: no name of the language.
SEED = ":seed"


@dataclass(frozen=True)
class Draws:
    """``places`` are numbers that tell apart the row's places in the model, ``lengths`` how long its axes are, ``seed`` is that of
    the pass."""

    seed: torch.Tensor | None = None
    places: Mapping[str, int] = field(default_factory=dict)
    lengths: Mapping[str, int] = field(default_factory=dict)
    device: torch.device = torch.device("cpu")
    dtype: torch.dtype = torch.float32


def draws(typing: TypedRow) -> bool:
    """Whether a row draws numbers of its own."""
    return any(draw_of(n, typing.values, typing.axes) is not None for n in typing.row.nodes)


def unseeded(word: str) -> Exception:
    return error("E0721", f"`{word}` is drawn where the model is called, and a part of it was called directly",
                 help="call the model that was given to unipelt.apply")  # fmt: skip


def numbers(draw: Draw, sizes: Sequence[int], known: Draws, training: bool) -> Named:
    """The numbers of a draw, those of one pass."""
    axes = tuple(sorted((a for a in draw.axes if a in known.lengths), key=axis_order))
    shape = (*(known.lengths[a] for a in axes), *sizes)
    if draw.word == "noise" and not training:
        return Named(torch.zeros(shape, device=known.device, dtype=known.dtype), axes)
    if known.seed is None:
        raise unseeded(draw.word)
    key = known.places[draw.owner]  # told apart from the place's other draws by what stands in the brackets
    for part in (draw.word == "noise", len(axes), *(known.places[a] for a in axes), *sizes):
        key = (key * 1000003 + part) % 2**62
    make: Callable[..., torch.Tensor] = helpers.normal_numbers if draw.word == "noise" else helpers.uniform_numbers
    return Named(make(known.seed.to(known.device), key, shape).to(known.dtype), axes)


def numbers_of(places: Mapping[str, str]) -> dict[str, int]:
    """Texts as numbers of 62 bits."""
    return {n: int.from_bytes(sha256(text.encode()).digest()[:8], "big") >> 2 for n, text in places.items()}
