"""What an anatomy says of a fused projection: which part of the numbers that its module yields is a site's own.

``[i/n]``                     the i-th of n equal parts, counted from 0 (GPT-2: ``c_attn[0/3]``)
``[i/n per head]``            the i-th of the n equal parts of each head's numbers (GPT-NeoX, BLOOM: ``query_key_value[0/3 per head]``)
``[q of q k v]``              all queries, all keys and all values side by side, in the order of the words (Phi-3)
``[q of q k v per group]``    the same again and again, for one group of queries with the keys and values they share (Falcon)
``[0:64, 128:192]``           the numbers 0 to 63 and 128 to 191

The words are whole heads wide, so that one entry serves every number of heads and of groups: ``k`` of ``q k v`` are as many heads
as there are groups. How many that is follows from the width, the size of a head and the number of query heads (`attention`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from ..language.report.diagnostics import error
from .attention import Heads
from .columns import Columns

#: The ways to write a part, for messages.
FORMS = "`[i/n]`, `[i/n per head]`, `[q of q k v]`, `[q of q k v per group]` or `[0:64, 128:192]`"
WORDS = ("q", "k", "v")


@dataclass(frozen=True, slots=True)
class Share:
    """The i-th of n equal parts of all numbers, or of each head's."""

    i: int
    n: int
    per_head: bool = False

    def columns(self, width: int, heads: Heads, here: str) -> Columns:
        """The columns of a module that yields ``width`` numbers; ``here`` is the entry, for E0507."""
        rows = heads.count(width // self.n) if self.per_head and width % self.n == 0 else 1
        size, left = divmod(width, rows * self.n)
        if left or not size:
            each = f" for each of {rows} heads" if self.per_head and rows > 1 else ""
            raise error("E0507", f"{here} is no whole number of columns{each}: the module yields {width}",
                        help=f"write a denominator that divides {width // rows if rows else width}")  # fmt: skip
        return _repeated(rows, width // rows, self.i * size, (self.i + 1) * size)


@dataclass(frozen=True, slots=True)
class Word:
    """The heads of one word among those of several: of all groups side by side, or group by group."""

    word: str
    order: tuple[str, ...]
    per_group: bool = False

    def columns(self, width: int, heads: Heads, here: str) -> Columns:
        """As `Share.columns`."""
        others = len(self.order) - 1
        size, queries, groups = heads.shared(width, others)
        if groups < 1 or queries % groups or size * (queries + others * groups) != width:
            raise error("E0507", f"{here} is no whole number of columns: the module yields {width}, and with {queries} query heads of {size} "
                        f"that leaves no whole groups for {' and '.join(f'`{w}`' for w in self.order if w != 'q')}",
                        help="say which columns they are, as in `[0:64, 128:192]`")  # fmt: skip
        rows = groups if self.per_group else 1
        wide = {w: (queries if w == "q" else groups) // rows * size for w in self.order}
        start = sum(wide[w] for w in self.order[: self.order.index(self.word)])
        return _repeated(rows, width // rows, start, start + wide[self.word])


@dataclass(frozen=True, slots=True)
class Ranges:
    """The columns that are said."""

    said: Columns

    def columns(self, width: int, heads: Heads, here: str) -> Columns:
        """As `Share.columns`."""
        if self.said.ranges[-1][1] > width:
            raise error("E0507", f"{here} has columns that are not there: the module yields {width}",
                        help=f"the last range ends at {width} at most")  # fmt: skip
        return self.said


Part = Share | Word | Ranges


def _repeated(rows: int, period: int, start: int, stop: int) -> Columns:
    return Columns(tuple((i * period + start, i * period + stop) for i in range(rows)))


def part(text: str, here: str) -> Part:
    """What stands between the brackets of the entry ``here``; what is no part is a mistake (E0505)."""
    text = " ".join(text.split())
    if share := re.fullmatch(r"(\d+) ?/ ?(\d+)( per head)?", text):
        i, n = int(share[1]), int(share[2])
        if not i < n:
            raise error("E0505", f"{here} names part {i} of {n}, and parts are counted from 0",
                        help="the last of n parts is [(n-1)/n]")  # fmt: skip
        return Share(i, n, bool(share[3]))
    if word := re.fullmatch(r"(\w+) of (\w+(?: (?!per group$)\w+)*)( per group)?", text):
        order = tuple(word[2].split())
        if len(set(order)) < len(order) or not {"q", word[1]} <= set(order) <= set(WORDS):
            raise error("E0505", f"{here} names `{word[1]}` among `{word[2]}`",
                        help="behind `of` stand q and, each once, k and v; before it one of those")  # fmt: skip
        return Word(word[1], order, bool(word[3]))
    if re.fullmatch(r"\d+ ?: ?\d+(?: ?, ?\d+ ?: ?\d+)*", text):
        try:
            return Ranges(Columns(tuple((int(a), int(b)) for a, b in re.findall(r"(\d+) ?: ?(\d+)", text))))
        except ValueError:
            raise error("E0505", f"{here} has a range that is empty or begins before the end of the one before it",
                        help="write ranges in ascending order, as in `[0:64, 128:192]`") from None  # fmt: skip
    raise error("E0505", f"{here} names no part of a module", help=f"a part reads {FORMS}")
