"""Tokens that read one another (`unipelt.language.types.mixing`). Whether the site is causal is a constant of the edit, `CAUSAL`."""

from __future__ import annotations

from typing import Any

from .. import helpers
from ..code import Code, Written, refine, spread, text_of, union
from ..named import Named, Value, together
from ..named import spread as spreading
from .evaluated import function
from .written import Writing, word

#: Under which name of no text an edit says whether its tokens see later ones.
CAUSAL = ":causal"


@function("attention")
def attention(context: Any, q: Named, k: Named, v: Named) -> Value:
    axes, parts = together(q, k, v)
    one, other, third = (spreading(p, axes, 1) for p in parts)
    return Named(helpers.attention(one, other, third, context.mask, bool(context.names.get(CAUSAL))), axes)


@word("attention")
def _attention(w: Writing, q: Written, k: Written, v: Written) -> Written:
    assert isinstance(q, Code) and isinstance(k, Code) and isinstance(v, Code)
    axes = union(q, k, v)
    found = [spread(refine(p, axes, w.repeats), axes, 1, whole=True) for p in (q, k, v)]
    return Code(w.helper("attention", *found, "mask", text_of(w.names.get(CAUSAL, False))), axes, v.sizes)


def _convolution(name: str, directions: int, last: Any, written: Any) -> None:
    """A word for the helper of its name, whose kernel has so many sizes before those of tokens. ``last`` is the helper's last argument
    in a context, and ``written`` in code."""

    @function(name)
    def convolved(context: Any, z: Named, kernel: Named) -> Value:
        axes, (z, kernel) = together(z, kernel)
        n = len(kernel.sizes)
        others = tuple(a for a in axes if a != "token")
        found = getattr(helpers, name)(
            spreading(z, axes, 1), spreading(kernel, others, n), n == directions + 2, context.mask, last(context)
        )
        return Named(found, axes)

    @word(name)
    def convolution(w: Writing, z: Written, kernel: Written) -> Written:
        assert isinstance(z, Code) and isinstance(kernel, Code)
        axes, n = union(z, kernel), len(kernel.sizes)
        others = tuple(a for a in axes if a != "token")
        found = [
            spread(refine(z, axes, w.repeats), axes, 1, whole=True),
            spread(refine(kernel, axes, w.repeats), others, n),
        ]
        return Code(w.helper(name, *found, n == directions + 2, "mask", written(w)), axes, (kernel.sizes[-1],))


_convolution("conv", 1, lambda c: bool(c.names.get(CAUSAL)), lambda w: text_of(w.names.get(CAUSAL, False)))
_convolution("conv2d", 2, lambda c: c.grid, lambda w: "grid")
