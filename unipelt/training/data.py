"""Reading examples from `.jsonl`, `.json`, `.csv` and `.tsv` files or a folder of splits. Nothing is dropped in silence.

A folder holds files named after their split (`train.jsonl`, `validation.jsonl` or `dev.csv`, `test.jsonl`). Columns are
found by convention, or named by the user. Every mistake is a `PeltError` with the file, the line, and a remedy.
"""

from __future__ import annotations

import csv
import io
import json
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from ..language.diagnostics import Diagnostic, PeltError, error, near
from ..language.syntax import Span

SUFFIXES = (".jsonl", ".json", ".csv", ".tsv")
SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev", "eval"),
    "test": ("test",),
}
#: Column names in the order of preference; pairs of texts first, as `sentence1` alone would be half of the input.
PAIRS = (
    ("sentence1", "sentence2"), ("premise", "hypothesis"), ("text1", "text2"), ("text_a", "text_b"),
    ("question", "sentence"),
)  # fmt: skip
TEXTS = ("text", "sentence", "content", "utterance", "query", "review", "tweet", "comment", "input", "question")
LABELS = ("label", "labels", "target", "class", "intent", "category")
LABEL_NAMES = ("label_name", "label_text")
COMPLETIONS = (
    ("prompt", "completion"), ("mr", "ref"), ("question", "answer"), ("instruction", "response"),
    ("instruction", "output"), ("input", "output"), ("source", "target"),
)  # fmt: skip
SHOWN = 5


@dataclass(frozen=True)
class Split:
    """The rows of one file, each with the line on which it stands."""

    name: str
    file: str
    rows: tuple[dict[str, Any], ...]
    lines: tuple[int, ...]

    @property
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


# ---------------------------------------------------------------- files


def read(path: str | Path, split: str = "train") -> Data:
    """The splits of a folder, or a single file as the split called ``split``."""
    place = Path(path)
    if place.is_dir():
        found: dict[str, Split] = {}
        for name, spellings in SPLITS.items():
            files = [f for s in spellings for x in SUFFIXES if (f := place / f"{s}{x}").is_file()]
            if len(files) > 1:
                names = " and ".join(f"`{f.name}`" for f in files)
                raise error("E0608", f"the folder `{place}` has more than one {name} split: {names}", Span(str(place)),
                            help="keep one of them, or name the file")  # fmt: skip
            if files:
                found[name] = read_file(files[0], name)
        if not found:
            present = sorted(f.name for f in place.iterdir())[:10]
            raise error("E0608", f"the folder `{place}` holds no split; it has {_listed(present)}", Span(str(place)),
                        help="name the files train.jsonl, validation.jsonl, test.jsonl (or .csv)")  # fmt: skip
        return Data(found)
    return Data({split: read_file(place, split)})


def read_file(path: Path, split: str = "train") -> Split:
    """The rows of one file."""
    span = Span(str(path))
    if not path.is_file():
        beside = [f.name for f in path.parent.iterdir()] if path.parent.is_dir() else []
        raise error("E0601", f"there is no file or folder `{path}`", span,
                    help=near(path.name, beside) or "check the path and the spelling")  # fmt: skip
    if path.suffix not in SUFFIXES:
        raise error("E0608", f"`{path}` is neither JSON lines nor CSV", span,
                    help=f"the file's name ends in one of {', '.join(SUFFIXES)}")  # fmt: skip
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as e:
        line = path.read_bytes().count(b"\n", 0, e.start) + 1
        raise error("E0610", f"`{path}`, line {line}: the file is not UTF-8", span,
                    help="save the file with the encoding UTF-8") from None  # fmt: skip
    rows, lines = _json_rows(text, path) if path.suffix in (".jsonl", ".json") else _csv_rows(text, path)
    if not rows:
        raise error("E0605", f"`{path}` has no rows", span, help="put one example on each line")
    return Split(split, str(path), tuple(rows), tuple(lines))


def _json_rows(text: str, path: Path) -> tuple[list[dict[str, Any]], list[int]]:
    if path.suffix == ".json":
        return _json_array(text, path)
    rows: list[dict[str, Any]] = []
    lines: list[int] = []
    problems: list[Diagnostic] = []
    # Only "\n" ends a line: str.splitlines would also cut at U+2028, which JSON strings may hold.
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as e:
            reason = f"{e.msg} at column {e.colno}" if isinstance(e, json.JSONDecodeError) else "it cannot be read"
            problems.append(_broken(path, number, f"this is not JSON: {reason}"))
            continue
        if isinstance(row, dict):
            rows.append(row)
            lines.append(number)
        else:
            problems.append(_broken(path, number, f"this is {_kind(row)}, not an object of columns"))
    _raise(problems)
    return rows, lines


def _json_array(text: str, path: Path) -> tuple[list[dict[str, Any]], list[int]]:
    try:
        rows = json.loads(text)
    except (ValueError, RecursionError) as e:
        reason = f"{e.msg} at column {e.colno}" if isinstance(e, json.JSONDecodeError) else "it cannot be read"
        line = e.lineno if isinstance(e, json.JSONDecodeError) else 1
        raise PeltError(_broken(path, line, f"this is not JSON: {reason}")) from None
    if not isinstance(rows, list) or not all(isinstance(r, dict) for r in rows):
        raise PeltError(_broken(path, 1, "this is not a list of objects"))
    return rows, list(range(1, len(rows) + 1))


def _csv_rows(text: str, path: Path) -> tuple[list[dict[str, Any]], list[int]]:
    rows: list[dict[str, Any]] = []
    lines: list[int] = []
    problems: list[Diagnostic] = []
    reader = csv.reader(io.StringIO(text, newline=""), delimiter="\t" if path.suffix == ".tsv" else ",", strict=True)
    header: list[str] | None = None
    end = 0
    try:
        for cells in reader:
            start, end = end + 1, reader.line_num
            if not cells:
                continue
            if header is None:
                header = [c.strip() for c in cells]
                twice = sorted({c for c in header if header.count(c) > 1})
                if twice:
                    raise PeltError(_broken(path, start, f"the header names {_listed(twice)} twice", "E0609"))
            elif len(cells) != len(header):
                what = f"{len(cells)} columns where the header has {len(header)}"
                problems.append(_broken(path, start, what, "E0609"))
            else:
                rows.append(dict(zip(header, cells)))
                lines.append(start)
    except csv.Error as e:
        problems.append(_broken(path, reader.line_num, f"this is not CSV: {e}", "E0609"))
    _raise(problems)
    return rows, lines


def _broken(path: Path, line: int, what: str, code: str = "E0602") -> Diagnostic:
    remedy = "quote a cell that holds a separator" if code == "E0609" else "put one complete JSON object on each line"
    return Diagnostic(code, f"`{path}`, line {line}: {what}", Span(str(path)), help=remedy)


def _raise(problems: Sequence[Diagnostic]) -> None:
    """Raise what was found; after the first few, only how many more there are."""
    if problems:
        more = len(problems) - SHOWN
        shown = list(problems[:SHOWN])
        if more > 0:
            shown[-1] = replace(shown[-1], message=f"{shown[-1].message} (and {more} more like this)")
        raise PeltError(shown)


# ---------------------------------------------------------------- columns


@dataclass(frozen=True)
class Columns:
    """Which columns are read: one or two texts, and a label (classification) or a completion (causal LM)."""

    texts: tuple[str, ...]
    label: str | None


def classification_columns(split: Split, text: Sequence[str] | None, label: str | None) -> Columns:
    have = split.columns
    label = named(split, label, "label") if label else _first(split, LABELS, "label")
    if text:
        if len(text) > 2:
            raise error("E0603", f"a classifier reads one or two texts, not {len(text)}: {_listed(text)}",
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
            raise error("E0603", f"a language model reads one text, not {len(text)}: {_listed(text)}",
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
    raise error("E0603", f"`{split.file}` has no column `{name}`; it has {_listed(split.columns)}", Span(split.file),
                help=near(name, split.columns) or f"name one of them with `--{option}`")  # fmt: skip


def _first(split: Split, names: Sequence[str], option: str) -> str:
    for name in names:
        if name in split.columns:
            return name
    found = next((c for c in split.columns if get_close_matches(c.lower(), names, 1, 0.75)), None)
    remedy = f"`{found}` is close: name it with `--{option} {found}`" if found else f"name the column: `--{option} …`"
    raise error("E0603", f"`{split.file}` has no column that holds the {option}; it has {_listed(split.columns)}",
                Span(split.file), where=(f"looked for {', '.join(names)}",), help=remedy)  # fmt: skip


# ---------------------------------------------------------------- values


def texts_of(split: Split, column: str) -> list[str]:
    """A column of texts; a number, a null or a missing cell is an error with its line, and so is an empty text."""
    problems = []
    for row, line in zip(split.rows, split.lines):
        value = row.get(column)
        if not isinstance(value, str) or not value.strip():
            found = "is missing" if column not in row else "is empty" if value == "" or isinstance(value, str) else \
                f"is {_kind(value)}, not a text"  # fmt: skip
            problems.append(Diagnostic("E0607", f"`{split.file}`, line {line}: `{column}` {found}", Span(split.file),
                                       help="write the text in quotes, or take the row out"))  # fmt: skip
    _raise(problems)
    return [row[column] for row in split.rows]


def labels_of(split: Split, column: str) -> list[str]:
    """A column of labels as names; integers are names too."""
    problems = []
    for row, line in zip(split.rows, split.lines):
        value = row.get(column)
        if not isinstance(value, (str, int)) or value == "":
            found = "is missing" if value is None or value == "" else f"is {_kind(value)}, not a name or an integer"
            problems.append(Diagnostic("E0607", f"`{split.file}`, line {line}: the label `{column}` {found}",
                                       Span(split.file), help="give each row a label"))  # fmt: skip
    _raise(problems)
    return [str(row[column]) for row in split.rows]


def label_set(split: Split, column: str) -> list[str]:
    """The distinct labels, integers in their order; a single one cannot be learned and is an error."""
    found = set(labels_of(split, column))
    if len(found) < 2:
        raise error("E0604", f"every row of `{split.file}` has the label `{next(iter(found))}`", Span(split.file),
                    help="a classifier needs at least two classes; check the label column")  # fmt: skip
    if all(name.removeprefix("-").isdigit() for name in found):
        return sorted(found, key=int)
    return sorted(found)


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
    unseen = [(v, line) for v, line in zip(values, split.lines) if v not in index]
    _raise([
        Diagnostic("E0606", f"`{split.file}`, line {line}: the label `{v}` does not occur in training", Span(split.file),
                   where=(f"known labels: {_listed(list(labels)[:12])}{', …' if len(labels) > 12 else ''}",),
                   help=near(v, labels) or "correct the label, or add examples of it to the training split")
        for v, line in unseen
    ])  # fmt: skip
    return [index[v] for v in values]


# ---------------------------------------------------------------- sampling


def prepare(data: Data, train_size: int | None, seed: int, carve: float = 0.1) -> Data:
    """The first ``train_size`` rows after a shuffle; a validation split is carved from them where there is none."""
    if "train" not in data:
        raise error("E0608", f"there is no training split, only {_listed(list(data.splits))}",
                    help="name the file train.jsonl")  # fmt: skip
    notes = list(data.notes)
    train = data["train"]
    order = list(range(len(train)))
    random.Random(seed).shuffle(order)
    if train_size is not None:
        if train_size > len(train):
            raise error("E0616", f"`{train.file}` has {len(train)} rows, fewer than the {train_size} asked for",
                        Span(train.file), help="ask for fewer, or leave `--train-size` out")  # fmt: skip
        notes.append(f"training on {train_size} of {len(train)} rows, drawn with seed {seed}")
        order = order[:train_size]
    splits = dict(data.splits)
    if "validation" not in data:
        held = max(1, round(carve * len(order)))
        if held >= len(order):
            raise error("E0605", f"{len(order)} row is too few to hold a validation split out", Span(train.file),
                        help="add rows, or give a validation split")  # fmt: skip
        splits["validation"] = train.take(order[len(order) - held :], "validation")
        order = order[: len(order) - held]
        notes.append(f"no validation split: {held} rows of the training split are held out, {len(order)} are left")
    splits["train"] = train.take(order)
    return Data(splits, tuple(notes))


def _kind(value: object) -> str:
    kinds = {
        dict: "an object",
        list: "a list",
        str: "a text",
        bool: "true or false",
        int: "a number",
        float: "a number",
    }
    return "null" if value is None else kinds.get(type(value), type(value).__name__)


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f"`{n}`" for n in names) or "nothing"
