"""Equal budgets: the size argument of a method solved so that it trains a given number of parameters on a model."""

from __future__ import annotations

import re
from collections.abc import Callable

from ..language.analyse.counts import counts
from ..language.report.diagnostics import error, near
from ..language.ir import Method

#: The largest size that is tried.
MOST = 1 << 16
Count = Callable[[Method], int]


def size_arguments(method: Method) -> list[str]:
    """The whole-number arguments on which the number of trained parameters depends."""
    words = {w for s in counts(method)["trained"].size.symbols for w in re.findall(r"[A-Za-z_]\w*", s)}
    return [p.name for p in method.params if p.type == "int" and p.name in words]


def solve(method: Method, target: int, count: Count, name: str | None = None) -> Method:
    """The method with one size argument such that ``count`` is nearest to ``target`` parameters.

    ``count`` is exact (a plan's trained parameters). Without ``name`` the argument with the largest share is solved;
    raises `PeltError` where none can be, or where even its least value is too large.
    """
    sizes = size_arguments(method)
    if name is not None and name not in sizes:
        raise error("E0804", f"`{name}` is no size of `{method.name}`",
                    help=near(name, sizes) or f"its sizes: {', '.join(sizes) or 'none'}")  # fmt: skip
    if not sizes:
        raise error("E0804", f"no argument of `{method.name}` changes how many parameters it trains",
                    help="leave `--params` out, or give the method a size")  # fmt: skip

    def at(n: int, size: str) -> int:
        return count(method(**{size: n}))

    chosen = name or max(sizes, key=lambda s: at(2, s) - at(1, s))
    low, high = 1, 2
    least = at(low, chosen)
    if least > 2 * target:
        raise error("E0804", f"`{method.name}` trains {least:,} parameters even with {chosen} = {low}, more than {target:,}",
                    help="ask for more parameters")  # fmt: skip
    if least >= target:
        return method(**{chosen: low})
    while at(high, chosen) < target:
        low, high = high, high * 2
        if high > MOST:
            raise error("E0804", f"`{method.name}` trains fewer than {target:,} parameters for any `{chosen}` up to {MOST:,}",
                        help="ask for fewer parameters")  # fmt: skip
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if at(middle, chosen) < target else (low, middle)
    best = min((low, high), key=lambda n: abs(at(n, chosen) - target))
    return method(**{chosen: best})
