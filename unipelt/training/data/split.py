"""Rows with their places, and the words for mistakes in them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from ...language.report.diagnostics import Diagnostic, PeltError
from ...language.report.texts import half_of_a_character

#: This many mistakes of a kind are shown; of the others only the number.
SHOWN = 5
#: How files write the split's names.
SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev", "eval"),
    "test": ("test",),
}
#: What a value of a cell is called.
KINDS: dict[type, str] = {
    dict: "an object",
    list: "a list",
    str: "a text",
    bool: "true or false",
    int: "a number",
    float: "a number",
}


@dataclass(frozen=True)
class Split:
    """The rows of a file or of a hub's split, each with the line (the row, where there are no lines) on which it stands."""

    name: str
    file: str
    rows: tuple[dict[str, Any], ...]
    lines: tuple[int, ...]
    unit: str = "line"

    def place(self, i: int) -> str:
        """Where the row ``i`` stands, for a message."""
        return f"`{self.file}`, {self.unit} {self.lines[i]}"

    @cached_property
    def columns(self) -> list[str]:
        """Every column that some row has, in the order of appearance."""
        return list(dict.fromkeys(c for row in self.rows for c in row))

    def take(self, indices: Sequence[int], name: str | None = None) -> Split:
        return replace(
            self,
            name=name or self.name,
            rows=tuple(self.rows[i] for i in indices),
            lines=tuple(self.lines[i] for i in indices),
        )

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True)
class Data:
    """The splits of a data set by name (`train`, `validation`, `test`); ``notes`` say what was done to them."""

    splits: dict[str, Split]
    notes: tuple[str, ...] = field(default=())

    def __getitem__(self, name: str) -> Split:
        return self.splits[name]

    def __contains__(self, name: str) -> bool:
        return name in self.splits


def raise_all(problems: Sequence[Diagnostic]) -> None:
    """Raise the mistakes that were found: the first few of them, and the number of the others."""
    if problems:
        more = len(problems) - SHOWN
        shown = list(problems[:SHOWN])
        if more > 0:
            shown[-1] = replace(shown[-1], message=f"{shown[-1].message} (and {more} more like this)")
        raise PeltError(shown)


def is_unicode(value: Any) -> bool:
    """Whether the texts in a value, its keys included, can be written down: half of a surrogate pair (a JSON `"\\ud83d"` without
    its other half, an argument of other bytes than UTF-8) cannot."""
    left = [value]
    while left:
        v = left.pop()
        if isinstance(v, str):
            if half_of_a_character(v) is not None:
                return False
        elif isinstance(v, Mapping):
            left += [*v, *v.values()]
        elif isinstance(v, (list, tuple)):
            left += v
    return True


def said(e: BaseException) -> str:
    """What an error of another library says, in one line that is not too long."""
    text = " ".join(str(e).split()) or type(e).__name__
    return text if len(text) <= 300 else text[:297] + "…"


def whole_number(text: str) -> int | None:
    """The whole number that a text writes; None where it is another text. (`"²".isdigit()` is true, and `int("²")` fails.)"""
    return int(text) if len(text) < 1000 and text.removeprefix("-").isdecimal() else None


def kind_of_value(value: object) -> str:
    return "null" if value is None else KINDS.get(type(value), type(value).__name__)


def listed(names: Iterable[str]) -> str:
    return ", ".join(f"`{n}`" for n in names) or "nothing"
