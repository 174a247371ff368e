"""Tokens that read one another (`unipelt.language.types.mixing`). Whether the site is causal is a constant of the edit, `CAUSAL`."""

from __future__ import annotations

from typing import Any

from .. import helpers
from ..code import Code, Written, refine, spread, text_of, union
from ..named import Named, Value, ordered
from ..named import refine as refined
from ..named import spread as spreading
from .evaluated import function
from .written import Writing, word

#: Under which name of no text an edit says whether its tokens see later ones.
CAUSAL = ":causal"


def _together(context: Any, *values: Named) -> tuple[tuple[str, ...], list[Named]]:
    """The axes of all, and the values with the heads of their groups."""
    found = {a for v in values for a in v.axes}
    axes = ordered(tuple(found - {"group"} if "head" in found else found))
    heads = next((v.data.shape[v.axes.index("head")] for v in values if "head" in v.axes), None)
    return axes, [refined(v, axes, heads) for v in values]


@function("attention")
def attention(context: Any, q: Named, k: Named, v: Named) -> Value:
    axes, parts = _together(context, q, k, v)
    one, other, third = (spreading(p, axes, 1) for p in parts)
    return Named(helpers.attention(one, other, third, context.mask, bool(context.names.get(CAUSAL))), axes)


@word("attention")
def _attention(w: Writing, q: Written, k: Written, v: Written) -> Written:
    assert isinstance(q, Code) and isinstance(k, Code) and isinstance(v, Code)
    axes = union(q, k, v)
    found = [spread(refine(p, axes, w.repeats), axes, 1, whole=True) for p in (q, k, v)]
    return Code(w.helper("attention", *found, "mask", text_of(w.names.get(CAUSAL, False))), axes, v.sizes)


@function("conv")
def conv(context: Any, z: Named, kernel: Named) -> Value:
    axes, (z, kernel) = _together(context, z, kernel)
    n = len(kernel.sizes)
    others = tuple(a for a in axes if a != "token")
    found = helpers.conv(
        spreading(z, axes, 1), spreading(kernel, others, n), n == 3, context.mask, bool(context.names.get(CAUSAL))
    )
    return Named(found, axes)


@word("conv")
def _conv(w: Writing, z: Written, kernel: Written) -> Written:
    assert isinstance(z, Code) and isinstance(kernel, Code)
    axes, n = union(z, kernel), len(kernel.sizes)
    others = tuple(a for a in axes if a != "token")
    found = [
        spread(refine(z, axes, w.repeats), axes, 1, whole=True),
        spread(refine(kernel, axes, w.repeats), others, n),
    ]
    causal = text_of(w.names.get(CAUSAL, False))
    return Code(w.helper("conv", *found, n == 3, "mask", causal), axes, (kernel.sizes[-1],))
