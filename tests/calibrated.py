"""Batches of data for starts that data decide, the same for the same arguments."""

from __future__ import annotations

import small
import torch


def batches(n: int = 3, labels: bool = True, kind: str = "llama") -> list[dict[str, torch.Tensor]]:
    """Texts with pads; ``labels`` are those that the kind's head scores: tokens, or classes."""
    found = []
    for i in range(n):
        g = torch.Generator().manual_seed(i)
        ids = torch.randint(2, small.WORDS, (2, 4 + i), generator=g)
        mask = torch.ones_like(ids)
        mask[1, 3:] = 0
        batch = {"input_ids": ids, "attention_mask": mask}
        if labels:
            batch["labels"] = ids[:, 0] % 3 if kind == "bert_labels" else ids.masked_fill(mask == 0, -100)
        found.append(batch)
    return found
