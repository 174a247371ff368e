"""Equal budgets: the size argument of a method solved so that it trains a given number of parameters on a model."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from itertools import islice

from ..language.analyse.counts import counts
from ..language.report.diagnostics import PeltError, error, near
from ..language.ir import Method

#: The largest size that is tried.
MOST = 1 << 16
#: So many whole numbers are tried one by one; of more, those that a model's width is likely to be divisible by.
FEW = 64
Count = Callable[[Method], int]


def size_arguments(method: Method) -> list[str]:
    """The whole-number arguments on which the number of trained parameters depends."""
    words = {w for s in counts(method)["trained"].size.symbols for w in re.findall(r"[A-Za-z_]\w*", s)}
    return [p.name for p in method.params if p.type == "int" and p.name in words]


def solve(method: Method, target: int, count: Count, name: str | None = None) -> Method:
    """The method with one size argument such that ``count`` is nearest to ``target`` parameters.

    ``count`` is exact (a plan's trained parameters) and rises or falls with the size. Where it raises `PeltError`, the size is
    none that the method can have (it must divide a width, or a requirement refuses it), and the nearest others are tried.
    Without ``name`` the argument with the largest share is solved; raises `PeltError` where none can be, or where even its
    least value is too large.
    """
    sizes = size_arguments(method)
    if name is not None and name not in sizes:
        raise error("E0804", f"`{name}` is no size of `{method.name}`",
                    help=near(name, sizes) or f"its sizes: {', '.join(sizes) or 'none'}")  # fmt: skip
    if not sizes:
        raise error("E0804", f"no argument of `{method.name}` changes how many parameters it trains",
                    help="leave `--params` out, or give the method a size")  # fmt: skip
    tried = {s: _Sizes(method, s, count) for s in sizes}
    chosen = tried[name or max(sizes, key=lambda s: tried[s].share())]
    return method(**{chosen.name: chosen.nearest(target)})


class _Sizes:
    """The sizes that one argument of a method can have, with what each trains; each is counted once."""

    def __init__(self, method: Method, name: str, count: Count):
        self.method, self.name, self.count = method, name, count
        self.counted: dict[int, int | None] = {}
        self.refused: PeltError | None = None

    def at(self, n: int) -> int | None:
        """What the method trains with this size; None where it cannot have it."""
        if n not in self.counted:
            try:
                self.counted[n] = self.count(self.method(**{self.name: n}))
            except PeltError as e:
                self.counted[n], self.refused = None, self.refused or e
        return self.counted[n]

    def doubling(self) -> Iterator[tuple[int, int]]:
        """The least size of each doubling, where there is one, and what it trains."""
        for low in (1 << k for k in range(MOST.bit_length())):
            for n in _smooth(low, 2 * low):
                if (trained := self.at(n)) is not None:
                    yield n, trained
                    break

    def share(self) -> float:
        """How many parameters one more makes, among the least sizes."""
        first = [*islice(self.doubling(), 2)]
        return abs(first[1][1] - first[0][1]) / (first[1][0] - first[0][0]) if len(first) == 2 else 0

    def nearest(self, target: int) -> int:
        """The size that trains the number of parameters nearest to ``target``."""
        before: tuple[int, int] | None = None
        for n, trained in self.doubling():
            if before is not None:
                if (trained >= target) != (before[1] >= target):
                    return self.between(before[0], n, target)
                if trained > before[1] >= target or trained < before[1] < target:
                    break  # it leads away
            before = n, trained
        if before is None:
            assert self.refused is not None  # no size was counted
            raise self.refused
        best = self.closest(target)
        trained = self.counted[best] or 0
        if trained < target:
            raise error("E0804", f"`{self.method.name}` trains fewer than {target:,} parameters for any `{self.name}` up to {MOST:,}",
                        help="ask for fewer parameters")  # fmt: skip
        if trained > 2 * target:
            raise error("E0804", f"`{self.method.name}` trains {trained:,} parameters even with {self.name} = {best}, more than {target:,}",
                        help="ask for more parameters")  # fmt: skip
        return best

    def between(self, low: int, high: int, target: int) -> int:
        """The best size from ``low`` to ``high``, of which one trains at least ``target`` parameters and one fewer."""
        over = (self.at(low) or 0) >= target
        while True:
            some = range(low + 1, high) if high - low <= FEW else _smooth(low + 1, high) or [(low + high) // 2]
            left = [n for n in some if n not in self.counted]
            if not left:
                return self.closest(target)
            middle = left[len(left) // 2]
            if (trained := self.at(middle)) is not None:
                low, high = (middle, high) if (trained >= target) == over else (low, middle)

    def closest(self, target: int) -> int:
        return min((abs(t - target), n) for n, t in self.counted.items() if t is not None)[1]


def _smooth(low: int, high: int) -> list[int]:
    """The numbers from ``low`` up to ``high``, without it, that have no prime factor above 5, as most widths have none above it."""
    twos = [2**i for i in range(high.bit_length())]
    threes = [t * 3**i for t in twos for i in range(high.bit_length()) if t * 3**i < high]
    return sorted(n for t in threes for i in range(high.bit_length()) if low <= (n := t * 5**i) < high)
