"""Small matrices: Kronecker products, skew matrices, rotations."""

from __future__ import annotations

from typing import Any

from .. import helpers
from ..code import Code, Written, refine, spread, text_of, union
from ..named import Named, Value, together
from ..named import spread as spread_out
from .evaluated import function
from .of_one import of_one
from .written import Writing, as_size, word


@function("kron")
def kron(context: Any, a: Named, b: Named) -> Value:
    n = len(a.sizes)
    axes, found = together(a, b)
    p, q = (spread_out(t, axes, n) for t in found)
    return Named((helpers.kron_vectors if n == 1 else helpers.kron)(p, q), axes)


@word("kron")
def _kron(w: Writing, a: Written, b: Written) -> Written:
    assert isinstance(a, Code) and isinstance(b, Code)
    axes, n = union(a, b), len(a.sizes)
    p, q = (spread(refine(v, axes, w.repeats), axes, n) for v in (a, b))
    text = w.helper("kron" if n == 2 else "kron_vectors", p, q)
    return Code(text, axes, tuple(s * t for s, t in zip(a.sizes, b.sizes)))


@function("skew")
def skew(context: Any, a: Named, n: Value) -> Value:
    return Named(helpers.skew(a.data, int(n)), a.axes)  # type: ignore[arg-type]


@word("skew")
def _skew(w: Writing, a: Written, n: Written) -> Written:
    assert isinstance(a, Code)
    size = as_size(n)
    return Code(w.helper("skew", a.text, text_of(n)), a.axes, (*a.sizes[:-1], size, size))


@function("cayley")
def cayley(context: Any, a: Named, *k: Value) -> Value:
    return Named(helpers.cayley_series(a.data, *map(int, k)) if k else helpers.cayley(a.data), a.axes)  # type: ignore[arg-type]


@word("cayley")
def _cayley(w: Writing, a: Written, *k: Written) -> Written:
    assert isinstance(a, Code)
    return Code(w.helper("cayley_series" if k else "cayley", a.text, *map(text_of, k)), a.axes, a.sizes)


of_one("orthonormal", lambda s: s)
of_one("householder", lambda s: (*s[:-1], s[-2]))
of_one("circulant", lambda s: (*s, s[-1]))
