"""Columns of labels: what their values are, in which order they stand, and which are so alike that one may be a slip."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from ...language.report.diagnostics import Diagnostic, error, near
from ...language.syntax.nodes import Span
from .columns import values_of
from .split import Split, kind_of_value, listed, raise_all, whole_number

LABEL_NAMES = ("label_name", "label_text")


def labels_of(split: Split, column: str) -> list[str]:
    """A column of labels as names; integers are names too."""

    def wrong(value: Any) -> str:
        if value is None or value == "":
            return "is missing"
        return "" if isinstance(value, (str, int)) else f"is {kind_of_value(value)}, not a name or an integer"

    return [str(v) for v in values_of(split, column, wrong, "give each row a label")]


def label_set(split: Split, column: str) -> list[str]:
    """The distinct labels in their order; a single one cannot be learned and is an error."""
    found = set(labels_of(split, column))
    if len(found) < 2:
        raise error("E0604", f"every row of `{split.file}` has the label `{next(iter(found))}`", Span(split.file),
                    help="a classifier needs at least two classes; check the label column")  # fmt: skip
    return in_order(found)


def in_order(names: Iterable[str], first: str | None = None) -> list[str]:
    """Distinct labels in their order: integers by size, names by letter, the label ``first`` before all other names."""
    numbers = {n: whole_number(n) for n in names}
    if all(v is not None for v in numbers.values()):
        return sorted(numbers, key=lambda n: (numbers[n], n))  # `1` and `01` are two labels
    return sorted(numbers, key=lambda n: (n != first, n))


def alike(labels: Sequence[str]) -> list[str]:
    """A note on labels that are the same but for blanks, case or the spelling of a number: one of them may be a slip."""
    groups: dict[str, list[str]] = {}
    for label in labels:
        key = " ".join(label.split()).casefold()
        try:
            key = str(float(key))
        except ValueError:
            pass
        groups.setdefault(key, []).append(label)
    twice = [" and ".join(f"`{n}`" for n in g) for g in groups.values() if len(g) > 1]
    if not twice:
        return []
    more = f", and {len(twice) - 3} more groups" if len(twice) > 3 else ""
    return [
        f"labels that are the same but for blanks, case or the spelling of a number are different classes: {'; '.join(twice[:3])}{more}"
    ]


def label_titles(split: Split, column: str, labels: Sequence[str]) -> list[str]:
    """Readable names for labels that are numbers, where a column beside them gives each exactly one."""
    for other in LABEL_NAMES:
        if other == column or other not in split.columns:
            continue
        seen: dict[str, set[str]] = {}
        for row in split.rows:
            if isinstance(row.get(other), str):
                seen.setdefault(str(row[column]), set()).add(row[other])
        titles = [next(iter(seen.get(name, {""}))) for name in labels]
        if all(len(seen.get(name, ())) == 1 for name in labels) and len(set(titles)) == len(labels):
            return titles
    return list(labels)


def known_labels(split: Split, column: str, labels: Sequence[str]) -> list[int]:
    """The labels of a split as indices; one that training has not seen is an error."""
    index = {name: i for i, name in enumerate(labels)}
    values = labels_of(split, column)
    raise_all([unknown_label(split, i, v, labels) for i, v in enumerate(values) if v not in index])
    return [index[v] for v in values]


def values_in_order(names: Sequence[str], values: Sequence[str], titles: Sequence[str]) -> tuple[str, ...]:
    """For each label of a head, by its name or its number, the value that stands for it in data with these labels."""
    numbered = tuple(names) == tuple(f"LABEL_{i}" for i in range(len(names)))
    by_name = {n: n for n in names} | ({str(i): n for i, n in enumerate(names)} if numbered else {})
    value_of: dict[str, str] = {}
    for value, title in zip(values, titles, strict=True):
        name = by_name.get(title) or by_name.get(value)
        if name is None:
            raise error("E0669", f"the data have the label `{title}`, which the adapter's head does not score",
                        where=(f"it scores {', '.join(names[:8])}",),
                        help="name the labels in the data as the head does, or train with `labels=[…]` in their order")  # fmt: skip
        value_of[name] = value
    return tuple(value_of.get(n, n) for n in names)


def unknown_label(split: Split, row: int, value: str, labels: Sequence[str]) -> Diagnostic:
    return Diagnostic(
        "E0606", f"{split.place(row)}: the label `{value}` does not occur in training", Span(split.file),
        where=(f"known labels: {listed(list(labels)[:12])}{', …' if len(labels) > 12 else ''}",),
        help=near(value, labels) or "correct the label, or add examples of it to the training split",
    )  # fmt: skip
