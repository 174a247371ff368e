"""What an epoch costs when the frozen blocks below every edit run once: MiniLM, 64 texts of 64 tokens, dropout 0.

    python benchmarks/trunk.py [--rounds 9] [--out benchmarks/results/trunk.json]

Epochs with and without the cache alternate, on two copies of a model; a third copy without it is the A/A control.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from jobs import model as folder_of
from torch import nn
from transformers import AutoModelForSequenceClassification

import unipelt
from unipelt.training import cache_trunk

METHODS = {
    "probing": "method m { use probing as m }",
    "LoRA in the last 2 of 6 layers": "method m from lora { layers last 2 }",
    "adapter (Pfeiffer) in the last 2 of 6 layers": "method m from pfeiffer { layers last 2 }",
    "UniPELT in the last 2 of 6 layers": "method m { layers last 2  use unipelt_apl as m }",
    "LoRA in the last layer": "method m from lora { layers last 1 }",
}


def made(text: str) -> nn.Module:
    m = AutoModelForSequenceClassification.from_pretrained(
        folder_of("minilm", Path()), num_labels=2, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0
    )
    method = unipelt.load("probing") if "probing" in text else unipelt.parse(text)
    unipelt.apply(m, method)
    return m.train()


def epoch(m: nn.Module, batches: list[dict[str, torch.Tensor]], optimizer: Any) -> float:
    start = time.perf_counter()
    for x in batches:
        m(**x).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out")
    given = parser.parse_args()
    torch.set_num_threads(1)
    g = torch.Generator().manual_seed(0)
    batches = []
    for _ in range(4):
        ids = torch.randint(1000, 20000, (16, 64), generator=g)
        batches.append(
            {
                "input_ids": ids,
                "attention_mask": torch.ones_like(ids),
                "labels": torch.randint(0, 2, (16,), generator=g),
            }
        )
    found = {}
    for name, text in METHODS.items():
        copies = [made(text) for _ in range(3)]
        optimizers = [torch.optim.AdamW([p for p in m.parameters() if p.requires_grad], lr=1e-3) for m in copies]
        with cache_trunk(copies[0]) as trunk:
            first = epoch(copies[0], batches, optimizers[0])
            for m, o in zip(copies[1:], optimizers[1:]):
                epoch(m, batches, o)
            times = [[epoch(m, batches, o) for m, o in zip(copies, optimizers)] for _ in range(given.rounds)]
        ratios = sorted(b / a for a, b, _ in times)
        control = sorted(c / b for _, b, c in times)
        found[name] = {"blocks once": trunk.blocks, "faster": statistics.median(ratios), "from": ratios[0], "to": ratios[-1],
                       "A/A": statistics.median(control), "first epoch, s": first, "later, s": statistics.median(t[0] for t in times)}  # fmt: skip
        print(
            f"{name:46s} {found[name]['faster']:6.2f} times faster ({ratios[0]:.2f}–{ratios[-1]:.2f}), A/A {found[name]['A/A']:.2f}",
            flush=True,
        )
    if given.out:
        Path(given.out).write_text(
            json.dumps({"rounds": given.rounds, "torch": torch.__version__, "found": found}, indent=1) + "\n"
        )


if __name__ == "__main__":
    main()
