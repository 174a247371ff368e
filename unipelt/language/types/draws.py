"""What training draws at random and how far it has come: `chance`, `noise[…]`, `progress`.

In the brackets stand sizes, axes and at most one owner: `chance[site]`, `chance[layer, batch]`, `noise[batch, token, r]`. Within
one pass the same words at the same place give the same numbers, so a line may be written out or named: it means the same.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..sites import AXES, TensorType
from ..sizes import Size
from ..syntax.nodes import Expr, Index, Name, Slice
from .values import NumberType, Poison, Value

if TYPE_CHECKING:
    from .infer import Inference

#: The words that are drawn, each with what it draws.
DRAWN = {"chance": "a number in [0, 1)", "noise": "standard normal numbers in training, and 0 outside it"}
#: Of what there is one draw each; without one of them each place of the row draws for itself.
PLACES = ("site", "layer", "kind", "model")
#: What changes from one pass to the next in training, and stands for one number outside it.
PROGRESS = "progress"


@dataclass(frozen=True, slots=True)
class Draw:
    """``owner`` is the place of which there is one draw each, ``axes`` have numbers of their own, ``sizes`` are the rest."""

    word: str
    owner: str
    axes: tuple[str, ...]
    sizes: tuple[Expr, ...]


def draw_of(e: Expr, names: Collection[str] = (), axes: Collection[str] = ()) -> Draw | None:
    """The draw that an expression is, where it is one; ``names`` are bound to something else, ``axes`` are declared."""
    if not isinstance(e, Index) or not isinstance(e.value, Name) or e.value.id not in DRAWN or e.value.id in names:
        return None
    owner, own, sizes = "site", [], []
    for item in e.items:
        word = item.id if isinstance(item, Name) else ""
        if word in PLACES:
            owner = word
        elif word in AXES or word in axes:
            own.append(word)
        elif not isinstance(item, Slice):
            sizes.append(item)
    return Draw(e.value.id, owner, tuple(own), tuple(sizes))


def drawn(inf: Inference, e: Index, draw: Draw) -> Value:
    """What is known of `chance[…]` or `noise[…]`."""
    words = [i.id for i in e.items if isinstance(i, Name) and (i.id in PLACES or i.id in draw.axes)]
    twice = next((w for n, w in enumerate(words) if w in words[:n]), "")
    places = [w for w in words if w in PLACES]
    ranges = [i for i in e.items if isinstance(i, Slice)]
    if twice or len(places) > 1 or ranges:
        what = (
            f"`{twice}` stands twice"
            if twice
            else "a range is no size"
            if ranges
            else f"`{places[0]}` and `{places[1]}` are two places"
        )
        return inf.fail("E0385", f"in the brackets of `{draw.word}` {what}", ranges[0].span if ranges else e.span,
                        help=f"write sizes, axes and at most one of {', '.join(PLACES)}, as in `{draw.word}[batch, 4]`")  # fmt: skip
    sizes: list[Size] = []
    for item in draw.sizes:
        v = inf.infer(item)
        if isinstance(v.type, Poison):
            return v
        if not isinstance(v.type, NumberType) or v.type.size is None or (v.type.size.number or 1) < 1:
            return inf.fail("E0385", f"a size in the brackets of `{draw.word}` is a whole number of at least 1, not {v.type}", item.span,
                            help=f"write sizes, axes and at most one of {', '.join(PLACES)}, as in `{draw.word}[batch, 4]`")  # fmt: skip
        sizes.append(v.type.size)
    return Value(TensorType(frozenset(draw.axes), tuple(sizes)), random=True, reads=frozenset({draw.word}))
