"""Columns by convention or by name, and their values, each mistake with its place."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from ...language.report.diagnostics import MAX_COMPARED, Diagnostic, error, near
from ...language.syntax.nodes import Span
from .split import Split, kind_of_value, listed, raise_all

#: Column names in the order of preference; pairs of texts first, as `sentence1` alone would be half of the input.
PAIRS = (
    ("sentence1", "sentence2"), ("premise", "hypothesis"), ("text1", "text2"), ("text_a", "text_b"),
    ("question", "sentence"),
)  # fmt: skip
TEXTS = ("text", "sentence", "content", "utterance", "query", "review", "tweet", "comment", "input", "question")
LABELS = ("label", "labels", "target", "class", "intent", "category")
COMPLETIONS = (
    ("prompt", "completion"), ("mr", "ref"), ("question", "answer"), ("instruction", "response"),
    ("instruction", "output"), ("input", "output"), ("source", "target"),
)  # fmt: skip


@dataclass(frozen=True)
class Columns:
    """Which columns are read: one or two texts, and a label (classification) or a completion (causal LM)."""

    texts: tuple[str, ...]
    label: str | None


def classification_columns(
    split: Split, text: Sequence[str] | None, label: str | None, unlabelled: bool = False, many: bool = False
) -> Columns:  # fmt: skip
    """One or two texts (``many`` allows more) and their label. With ``unlabelled`` no label is looked for."""
    have = split.columns
    if not unlabelled:
        label = column(split, label, LABELS, "label")
    if text:
        if len(text) > 2 and not many:
            raise error("E0603", f"a classifier reads one or two texts, not {len(text)}: {listed(text)}",
                        help="name one or two columns")  # fmt: skip
        return Columns(tuple(named(split, t, "text") for t in text), label)
    for pair in PAIRS:
        if set(pair) <= set(have):
            return Columns(pair, label)
    return Columns((_first(split, [t for t in TEXTS if t != label], "text"),), label)


def language_columns(split: Split, text: Sequence[str] | None, completion: str | None) -> Columns:
    have = split.columns
    if text:
        if len(text) > 1:
            raise error("E0603", f"a language model reads one text, not {len(text)}: {listed(text)}",
                        help="name the prompt with `--text` and the completion with `--label`")  # fmt: skip
        return Columns((named(split, text[0], "text"),), named(split, completion, "label") if completion else None)
    for prompt, answer in COMPLETIONS:
        if prompt in have and (completion or answer) in have:
            return Columns((prompt,), completion or answer)
    return Columns((_first(split, TEXTS, "text"),), named(split, completion, "label") if completion else None)


def named(split: Split, name: str, option: str) -> str:
    """A column that the user or an earlier run names; one that is not there is an error with near names."""
    if name in split.columns:
        return name
    raise error("E0603", f"`{split.file}` has no column `{name}`; it has {listed(split.columns)}", Span(split.file),
                help=near(name, split.columns) or f"name one of them with `--{option}`")  # fmt: skip


def column(split: Split, name: str | None, usual: Sequence[str], option: str) -> str:
    """The column that the user names, or the first of the usual ones."""
    return named(split, name, option) if name else _first(split, usual, option)


def _first(split: Split, names: Sequence[str], option: str) -> str:
    for name in names:
        if name in split.columns:
            return name
    found = next((c for c in split.columns[:MAX_COMPARED] if get_close_matches(c.lower(), names, 1, 0.75)), None)
    remedy = (
        f"did you mean `{found}`? Name it with `--{option} {found}`" if found else f"name the column: `--{option} …`"
    )
    raise error("E0603", f"`{split.file}` has no column that holds the {option}; it has {listed(split.columns)}",
                Span(split.file), where=(f"looked for {', '.join(names)}",), help=remedy)  # fmt: skip


# ---------------------------------------------------------------- values


def values_of(split: Split, column: str, wrong: Callable[[Any], str], remedy: str) -> list[Any]:
    """The values of a column. ``wrong`` says what is wrong with a value, or "". Each mistake is reported with its line."""
    raise_all([
        Diagnostic("E0607", f"{split.place(i)}: `{column}` {what}", Span(split.file), help=remedy)
        for i, row in enumerate(split.rows)
        if (what := "is missing" if row.get(column) is None and column not in row else wrong(row[column]))
    ])  # fmt: skip
    return [row[column] for row in split.rows]


def texts_of(split: Split, column: str) -> list[str]:
    """A column of texts; a number, a null or a missing cell is an error with its line, and so is an empty text."""

    def wrong(value: Any) -> str:
        if isinstance(value, str):
            return "" if value.strip() else "is empty"
        return f"is {kind_of_value(value)}, not a text"

    return values_of(split, column, wrong, "write the text in quotes, or take the row out")
