"""Whole numbers that say where something stands: found, and filled in (`unipelt.language.types.integers`)."""

from __future__ import annotations

from typing import Any

from .. import helpers
from ..code import Code, Written, broadcast, refine, spread, text_of, union
from ..named import Named, Value, together
from ..named import spread as spreading
from .evaluated import function
from .written import Writing, as_size, word


@function("top_indices")
def top_indices(context: Any, t: Named, k: Value) -> Value:
    return Named(helpers.top_indices(t.data, len(t.sizes), int(k)), t.axes)  # type: ignore[arg-type]


@word("top_indices")
def _top_indices(w: Writing, t: Written, k: Written) -> Written:
    assert isinstance(t, Code)
    return Code(w.helper("top_indices", t.text, len(t.sizes), text_of(k)), t.axes, (as_size(k),))


@function("scatter")
def scatter(context: Any, values: Named, places: Named, *sizes: Value) -> Value:
    count = len(places.sizes)
    rest = len(values.sizes) - count
    axes, found = together(values, places)
    v, at = (spreading(t, axes, n) for t, n in zip(found, (count + rest, count)))
    return Named(helpers.scatter(v, at, count, [int(s) for s in sizes], *([rest] if rest else [])), axes)  # type: ignore[arg-type]


@word("scatter")
def _scatter(w: Writing, values: Written, places: Written, *sizes: Written) -> Written:
    assert isinstance(values, Code) and isinstance(places, Code)
    axes, count = union(values, places), len(places.sizes)
    rest = values.sizes[count:]
    found = [spread(refine(t, axes, w.repeats), axes, n) for t, n in ((values, count + len(rest)), (places, count))]
    lengths = f"[{', '.join(map(text_of, sizes))}]"
    more = (len(rest),) if rest else ()
    return Code(w.helper("scatter", *found, count, lengths, *more), axes, (*map(as_size, sizes), *rest))


@function("nearest_indices")
def nearest_indices(context: Any, *args: Value) -> Value:
    half = len(args) // 2
    parts: list[Named] = list(args[:half])  # type: ignore[arg-type]
    n = max(len(v.sizes) for v in parts)
    axes, parts = together(*parts)
    found = [spreading(v, axes, n) for v in parts]
    return Named(helpers.nearest_indices(found, [int(v) for v in args[half:]]), axes)  # type: ignore[arg-type]


@word("nearest_indices")
def _nearest_indices(w: Writing, *args: Written) -> Written:
    half = len(args) // 2
    parts = [v for v in args[:half] if isinstance(v, Code)]
    axes = union(parts[0], parts[-1])
    n = max(len(v.sizes) for v in parts)
    found = ", ".join(spread(refine(v, axes, w.repeats), axes, n) for v in parts)
    lengths = ", ".join(map(text_of, args[half:]))
    return Code(
        w.helper("nearest_indices", f"[{found}]", f"[{lengths}]"), axes, broadcast(parts[0].sizes, parts[-1].sizes)
    )
