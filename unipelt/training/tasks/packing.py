"""Several examples in one row, each with positions of its own, by which transformers keeps their attention apart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from .task import IGNORED, Encoded, Example


def packed(encoded: Encoded, room: int) -> Encoded:
    """Rows of at most ``room`` tokens, filled with the longest example that still fits (best fit).

    No example predicts the first token of the next: that token has no label.
    """
    order = sorted(range(len(encoded)), key=lambda i: -len(encoded[i]["input_ids"]))
    rows: list[list[int]] = []
    #: Rows by the number of tokens that still fit.
    free: dict[int, list[int]] = {}
    for i in order:
        size = len(encoded[i]["input_ids"])
        left = min((n for n, found in free.items() if found and n >= size), default=None)
        if left is None:
            rows.append([i])
            left = room
            row = len(rows) - 1
        else:
            row = free[left].pop()
            rows[row].append(i)
        free.setdefault(left - size, []).append(row)
    return Encoded([_joined([encoded[i] for i in row]) for row in rows], encoded.truncated)


def _joined(examples: Sequence[Example]) -> Example:
    return {
        "input_ids": [t for e in examples for t in e["input_ids"]],
        "position_ids": [p for e in examples for p in range(len(e["input_ids"]))],
        "labels": [t for e in examples for t in (IGNORED, *e["labels"][1:])],
    }


def collate_packs(examples: Sequence[Example], pad: int, length: int | None) -> dict[str, Any]:
    """A batch of packs. Pads are one more sequence at the end: no mask is given, as transformers looks for packs only without one
    (and without a cache)."""
    longest = length or max(len(e["input_ids"]) for e in examples)
    batch: dict[str, list[list[int]]] = {"input_ids": [], "position_ids": [], "labels": []}
    for e in examples:
        short = longest - len(e["input_ids"])
        batch["input_ids"].append(e["input_ids"] + [pad] * short)
        batch["position_ids"].append(e["position_ids"] + list(range(short)))
        batch["labels"].append(e["labels"] + [IGNORED] * short)
    return {**{k: torch.tensor(v) for k, v in batch.items()}, "use_cache": False}
