"""What a classifier's label column holds: one label, several, or a number."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ...language.report.diagnostics import error
from ...language.syntax.nodes import Span
from .. import data as reading
from ..data import Split, kind_of_value

Target = int | float | list[float]


@dataclass(frozen=True)
class Answers:
    """``column`` is the label's column, or several columns of 0 and 1 joined by commas (`multi_label` only)."""

    column: str
    problem: str

    @property
    def columns(self) -> tuple[str, ...]:
        return tuple(c.strip() for c in self.column.split(","))

    def flags(self, split: Split) -> bool:
        """Whether there is a column of 0 and 1 for each label."""
        return self.problem == "multi_label" and len(self.columns) > 1 and self.column not in split.columns

    def labels(self, split: Split) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """The labels of a training split, and what is shown for them."""
        if self.problem == "regression":
            numbers_of(split, self.column)
            return (self.column,), (self.column,)
        if self.flags(split):
            for c in self.columns:
                flags_of(split, reading.named(split, c, "label"))
            return self.columns, self.columns
        if self.problem == "multi_label":
            found = {name for names in lists_of(split, self.column) for name in names}
            if not found:
                raise error("E0604", f"no row of `{split.file}` has a label", Span(split.file),
                            help="check the label column")  # fmt: skip
            labels = tuple(reading.in_order(found))
            return labels, labels
        labels = tuple(reading.label_set(split, self.column))
        return labels, tuple(reading.label_titles(split, self.column, labels))

    def targets(self, split: Split, labels: Sequence[str]) -> list[Target]:
        """For each row the index of its label, a 0 or 1 for each label, or its number."""
        if self.flags(split):
            columns = [flags_of(split, reading.named(split, c, "label")) for c in self.columns]
            return [list(row) for row in zip(*columns)]
        reading.named(split, self.column, "label")
        if self.problem == "regression":
            return list(numbers_of(split, self.column))
        if self.problem == "single_label":
            return list(reading.known_labels(split, self.column, labels))
        rows = lists_of(split, self.column)
        reading.raise_all([
            reading.unknown_label(split, i, n, labels) for i, names in enumerate(rows) for n in names if n not in labels
        ])  # fmt: skip
        return [[float(label in names) for label in labels] for names in rows]


def answers_for(split: Split, column: str, problem: str | None) -> Answers:
    """The kind of problem: as named, or by the values. Lists are labels, fractions are numbers, all else are classes.

    One odd value among numbers does not change the problem: it is named with its line, and the data are refused.
    """
    if problem is not None:
        return Answers(column, problem)
    values = [row.get(column) for row in split.rows]
    if column not in split.columns or any(isinstance(v, list) for v in values):
        return Answers(column, "multi_label")
    numbers = [n for n in map(_number, values) if n is not None and math.isfinite(n)]
    odd, known = [v for v in values if (n := _number(v)) is None or not math.isfinite(n)], len(numbers)
    whole = all(n == int(n) for n in numbers)
    fractions = not whole or sum(isinstance(v, float) for v in values) * FEW >= known > 0
    # A fraction in JSON is never the name of a class; a text of a CSV file may be, as any text.
    written = any(isinstance(v, float) for v in values)
    # `nan` among whole numbers is no class.
    slips = fractions or all(isinstance(v, str) and _number(v) is not None for v in odd)
    if odd and slips and (len(odd) * FEW <= known or (fractions and written and len(odd) < known)):
        numbers_of(split, column, f"{known} of {len(values)} values are numbers: correct the others, or say "
                   "`--problem-type single_label` where they are names of classes")  # fmt: skip
    return Answers(column, "regression" if fractions and not odd else "single_label")


#: Odd values are mistakes if there are this many times as many others.
FEW = 4


def _number(value: Any) -> float | None:
    """The number that a cell holds or writes; None for anything else."""
    try:
        return float(value) if isinstance(value, (int, float, str)) and not isinstance(value, bool) else None
    except (ValueError, OverflowError):
        return None


def numbers_of(split: Split, column: str, remedy: str = "give each row a number") -> list[float]:
    def wrong(value: Any) -> str:
        if value == "":
            return "is missing"
        number = _number(value)
        if number is None:
            return f"is {f'`{value}`' if isinstance(value, str) else kind_of_value(value)}, not a number"
        return "" if math.isfinite(number) else f"is {number}"

    return [float(v) for v in reading.values_of(split, column, wrong, remedy)]


def flags_of(split: Split, column: str) -> list[float]:
    def wrong(value: Any) -> str:
        return "" if value in (0, 1, "0", "1") else f"is `{value}`, neither 0 nor 1"

    return [float(v) for v in reading.values_of(split, column, wrong, "write 1 where the label is given, else 0")]


def lists_of(split: Split, column: str) -> list[list[str]]:
    """A column of lists of labels. A list may be empty, and has each label once."""

    def wrong(value: Any) -> str:
        if not isinstance(value, list):
            return f"is {kind_of_value(value)}, not a list of labels"
        bad = next((v for v in value if not isinstance(v, (str, int)) or isinstance(v, bool) or v == ""), None)
        if bad is not None or None in value:
            return f"holds {kind_of_value(bad)} among its labels"
        twice = next((v for v in value if value.count(v) > 1), None)
        return "" if twice is None else f"names the label `{twice}` twice"

    found = reading.values_of(split, column, wrong, 'write lists of names, as in `["a", "b"]`')
    return [[str(v) for v in names] for names in found]
