"""What a batch costs whose eight examples have a LoRA each, beside one LoRA for all: Llama of 6 layers, width 512, random weights.

    python benchmarks/mixed.py [--rounds 15] [--out benchmarks/results/mixed.json]

Passes of 8 × 64 tokens alternate; the same adapter for all is run twice, as the A/A control; peft's `adapter_names` beside peft's one.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

import unipelt

N = 8


def base() -> nn.Module:
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=2000, hidden_size=512, intermediate_size=1376, num_hidden_layers=6, num_attention_heads=8
        )
    ).eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out")
    given = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    ids = torch.randint(3, 2000, (N, 64), generator=torch.Generator().manual_seed(1))
    ours = base()
    for i in range(N):
        unipelt.apply(ours, unipelt.load("lora"), name=f"a{i}", seed=i)
    theirs: Any = peft.get_peft_model(base(), peft.LoraConfig(r=8, target_modules=["q_proj", "v_proj"]), "a0")
    for i in range(1, N):
        theirs.add_adapter(f"a{i}", peft.LoraConfig(r=8, target_modules=["q_proj", "v_proj"]))
    theirs.eval()
    names = [f"a{i}" for i in range(N)]

    def used(*which: Any) -> Callable[[], Any]:
        def run() -> Any:
            with unipelt.using(ours, *which):
                return ours(ids)

        return run

    def one_by_one() -> None:
        for i, n in enumerate(names):
            with unipelt.using(ours, n):
                ours(ids[i : i + 1])

    runs = {
        "one": used("a0"), "one again": used("a0"), "mixed": used(names), "one by one": one_by_one,
        "peft, one": lambda: theirs(ids), "peft, mixed": lambda: theirs(ids, adapter_names=names),
    }  # fmt: skip
    times: dict[str, list[float]] = {n: [] for n in runs}
    with torch.no_grad():
        for r in range(given.rounds + 2):
            for n, f in runs.items():
                start = time.perf_counter()
                f()
                if r > 1:
                    times[n].append(time.perf_counter() - start)

    def share(a: str, b: str) -> float:
        return statistics.median(x / y for x, y in zip(times[a], times[b]))

    found = {
        "throughput of mixed, to one adapter for all": share("one", "mixed"), "A/A": share("one", "one again"),
        "throughput of mixed, to one by one": share("one by one", "mixed"), "peft: mixed, to one": share("peft, one", "peft, mixed"),
        "mixed, to peft's mixed": share("peft, mixed", "mixed"),
    }  # fmt: skip
    for n, v in found.items():
        print(f"{n:46s} {v:.2f}")
    if given.out:
        Path(given.out).write_text(
            json.dumps(
                {"rounds": given.rounds, "torch": torch.__version__, "peft": peft.__version__, "found": found}, indent=1
            )
            + "\n"
        )


if __name__ == "__main__":
    main()
