"""Which rows are trained on: seeded samples, few examples of each class, a validation split where there is none."""

from __future__ import annotations

import random
from collections.abc import Sequence

from ...language.report.diagnostics import error
from ...language.syntax.nodes import Span
from .split import Data, Split, listed


def prepare(data: Data, train_size: int | None, seed: int, carve: float = 0.1, shots: int | None = None,
            classes: Sequence[str] | None = None) -> Data:  # fmt: skip
    """The rows to train on, after a shuffle, and a validation split, carved from the training split where there is none.

    ``train_size`` takes the first rows and carves from them. ``shots`` takes so many rows of each class (``classes`` says
    that of each training row), and where a validation split is missing as many others for it (Gao et al. 2021).
    """
    train = training_split(data)
    notes = list(data.notes)
    order = list(range(len(train)))
    random.Random(seed).shuffle(order)
    if shots is not None:
        assert classes is not None
        return _few(data, order, shots, classes, seed)
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


def training_split(data: Data) -> Split:
    if "train" not in data:
        raise error("E0608", f"there is no training split, only {listed(list(data.splits))}",
                    help="name the file train.jsonl")  # fmt: skip
    return data["train"]


def _few(data: Data, order: Sequence[int], shots: int, classes: Sequence[str], seed: int) -> Data:
    train = data["train"]
    rows: dict[str, list[int]] = {}
    for i in order:
        rows.setdefault(classes[i], []).append(i)
    wanted = shots if "validation" in data else 2 * shots
    scarce = min(rows, key=lambda c: len(rows[c]))
    if len(rows[scarce]) < wanted:
        why = "" if "validation" in data else ", half of them to validate on"
        raise error("E0616", f"`{train.file}` has {len(rows[scarce])} rows of the class `{scarce}`, fewer than the {wanted} "
                    f"asked for{why}", Span(train.file), help="ask for fewer with `--shots`")  # fmt: skip
    first = {i for found in rows.values() for i in found[:shots]}
    second = {i for found in rows.values() for i in found[shots:wanted]}
    splits = {**data.splits, "train": _among(train, order, first, "train")}
    notes = [*data.notes, f"training on {shots} rows of each of {len(rows)} classes, drawn with seed {seed}"]
    if second:
        splits["validation"] = _among(train, order, second, "validation")
        notes.append(f"no validation split: {shots} other rows of each class are held out for it")
    return Data(splits, tuple(notes))


def _among(split: Split, order: Sequence[int], chosen: set[int], name: str) -> Split:
    return split.take([i for i in order if i in chosen], name)
