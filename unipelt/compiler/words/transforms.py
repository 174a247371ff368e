"""Transforms: of matrices from frequencies, from wavelets; of vectors by rotations in planes (`unipelt.language.types.transforms`)."""

from __future__ import annotations

from typing import Any

from .. import helpers
from ..code import Code, Written, refine, spread, union
from ..named import Named, Value, together
from ..named import spread as spreading
from .evaluated import function
from .of_one import of_one
from .written import Writing, word

for _name in ("fft2", "ifft2", "idct2", "idwt2"):
    of_one(_name, lambda sizes: sizes)


@function("givens")
def givens(context: Any, z: Named, t: Named) -> Value:
    axes, (z, t) = together(z, t)
    n, blocks = len(z.sizes), len(t.sizes) == 3
    return Named(helpers.givens(spreading(z, axes, n), spreading(t, axes, n + 2 * blocks), blocks), axes)


@word("givens")
def _givens(w: Writing, z: Written, t: Written) -> Written:
    assert isinstance(z, Code) and isinstance(t, Code)
    axes = union(z, t)
    z, t = refine(z, axes, w.repeats), refine(t, axes, w.repeats)
    n, blocks = len(z.sizes), len(t.sizes) == 3
    return Code(w.helper("givens", spread(z, axes, n), spread(t, axes, n + 2 * blocks), blocks), axes, z.sizes)
