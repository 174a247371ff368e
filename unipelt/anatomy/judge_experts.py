"""What a map says of the weights of experts, held against the products with them that were seen when their block was run again.

How the matrices are stored is told by a product itself. Which is which is told by what moves: a column of the last ones moves its
number of the sum and no other; the gate and what it is multiplied by move the same numbers column by column, and what enters the last
product bends in the gate.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from .columns import Columns
from .comparing import rows_of, same, within
from .reasons import Open
from .replay import Nudge, Nudges, Seen, nudged
from .sites import Site

#: How far the products are pushed, of as far as other projections are: some models keep what bends no gate within bounds.
_STEP = 0.25
#: From which share of what moves on something bends.
_BENDS = 0.05

Runs = Mapping[Nudges, Seen]


def nudges_of(s: Site) -> list[Nudges]:
    """What must be tried of a site that is the experts' weights."""
    return [_ends(s)] if _part(s) == "down" else [_ends(s), *_steps(s)]


def _steps(s: Site) -> list[Nudges]:
    at = Nudge(s.view.path, s.view.columns)
    return [nudged(at, _STEP), nudged(at, -2 * _STEP)]


def _ends(s: Site) -> Nudges:
    """The first and the last of its columns."""
    width = s.sizes[str(s.kind.h.sizes[-1])]
    ranges = s.view.columns.ranges if s.view.columns is not None else ((0, width),)
    first, last = ranges[0][0], ranges[-1][1] - 1
    return (Nudge(s.view.path, Columns(tuple((n, n + 1) for n in dict.fromkeys((first, last))))),)


def _part(s: Site) -> str:
    return s.name.split(".")[-2]


def judged(seen: Runs, sites: Sequence[Site], parameters: Mapping[str, torch.Tensor], s: Site) -> str:
    """Why a site is not what the map says; `Open` where that cannot be told; nothing where it is."""
    wrong = _stored(seen, parameters[s.view.path], s)
    if wrong:
        return wrong
    named = {t.name: t for t in sites}
    own = named.get(s.kind.sublayer)
    if own is None:
        return Open(f"the map has no `{s.kind.sublayer}`")
    if not same(seen[_ends(s)].entered.get(own.x or ""), seen[()].entered.get(own.x or "")):
        return f"`{own.name}` reads something else with it"
    return _last(seen, own, s) if _part(s) == "down" else _inner(seen, named, s)


def _stored(seen: Runs, parameter: torch.Tensor, s: Site) -> str:
    """The first row that a product reads, times the matrix of some expert, is what it yields."""
    path, W = s.view.path, s.view.turn(parameter)
    if W.dim() != 3:
        return f"`{path}` has the sizes {list(parameter.shape)}, and not one matrix for each expert"
    sizes = dict(
        zip(map(str, s.kind.h.sizes), (W.shape[1], W.shape[2] if s.view.columns is None else s.view.columns.width))
    )
    sizes["d_experts"] = W.shape[0]
    wrong = next((n for n, size in sizes.items() if s.sizes.get(n) != size), None)
    if wrong is not None:
        return f"`{path}` has {sizes[wrong]} there, and `{wrong}` is {s.sizes.get(wrong)}"
    if s.view.columns is not None and s.view.columns.ranges[-1][1] > W.shape[2]:
        return f"`{path}` has matrices of {W.shape[2]} columns"
    found = seen[()].products.get(path)
    if found is None:
        return Open(f"no product with `{path}` was seen")
    x, y = found
    if x.shape[-1] != W.shape[1] or y.shape[-1] != W.shape[2]:
        return f"the products with `{path}` read {x.shape[-1]} numbers and yield {y.shape[-1]}"
    made = x.to(W.dtype) @ W
    return (
        ""
        if any(same(t, y) for t in made)
        else f"what enters a product with `{path}`, times a matrix as it is said to be stored, is not what it yields"
    )


def _last(seen: Runs, own: Site, s: Site) -> str:
    """The first and the last column move the first and the last number of the sublayer's output, or of what is normed or scaled there."""
    ends = seen[_ends(s)]
    pairs = [
        (seen[()].left.get(own.view.module), ends.left.get(own.view.module)),
        (seen[()].entered.get(own.view.module), ends.entered.get(own.view.module)),
    ]
    moved = [_moved(a, b) for a, b in pairs if a is not None and b is not None and a.shape == b.shape]
    if not moved or not moved[0]:
        return f"`{own.full_name}` does not change with what a product with `{s.view.path}` yields"
    wanted = {0, s.sizes[str(s.kind.h.sizes[-1])] - 1}
    if wanted in moved:
        return ""
    return f"the first and the last column of what `{s.view.path}` yields do not move those of `{own.full_name}` alone"


def _moved(a: torch.Tensor, b: torch.Tensor) -> set[int]:
    """The numbers that differ for some token."""
    far = (rows_of(b).double() - rows_of(a).double()).abs().amax(0)
    return {int(i) for i in (far > within(a) * far.max()).nonzero()}


def _inner(seen: Runs, named: Mapping[str, Site], s: Site) -> str:
    down, other = named.get("ffn.experts.down.weight"), named.get(_OTHER[s.name])
    if down is None:
        return Open("the map has no `ffn.experts.down.weight`")
    into = down.view.path
    zero, one, back, ends = (seen[n].entered.get(into) for n in ((), *_steps(s), _ends(s)))
    if (
        zero is None
        or one is None
        or back is None
        or ends is None
        or not zero.shape == one.shape == back.shape == ends.shape
    ):
        return Open(f"what enters a product with `{into}` cannot be compared")
    if same(one, zero):
        return f"what enters a product with `{into}` does not change with it"
    straight = _straight(zero, one, back)
    if _part(s) == "gate" and straight:
        return f"what enters a product with `{into}` is affine in it, which it is not in a gate"
    if _part(s) == "up" and other is None:
        return "" if s.view.columns is None else f"they are some columns of `{s.view.path}`, and the map has no gate"
    if _part(s) == "up" and not straight:
        return f"what enters a product with `{into}` is not affine in it: it is a gate"
    mine = _moved(zero, ends)
    if not mine <= {0, zero.shape[-1] - 1}:
        return f"its first and its last column move other numbers of what enters a product with `{into}`"
    return (
        ""
        if len(mine) == len({0, zero.shape[-1] - 1})
        else Open(f"what enters a product with `{into}` moves too little")
    )


#: The other factor of the inner activation.
_OTHER = {"ffn.experts.up.weight": "ffn.experts.gate.weight", "ffn.experts.gate.weight": "ffn.experts.up.weight"}


def _straight(zero: torch.Tensor, one: torch.Tensor, back: torch.Tensor) -> bool:
    """Whether two steps back undo twice one step forward, in most of the numbers that move."""
    a, b, c = (t.double() for t in (zero, one, back))
    far = (c - a).abs() + 2 * (b - a).abs()
    moves = far > within(zero) * far.max()
    return float(((c + 2 * b - 3 * a).abs() <= _BENDS * far)[moves].double().mean()) >= 0.5
