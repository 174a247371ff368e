"""Step time of frozen-base training as a ratio to its floor and to peft, interleaved, with an A/A control.

    python benchmarks/speed.py [--rounds 9] [--out benchmarks/results/speed.json]

The floor is the same frozen model with a gradient through it (one learned row added to the embeddings), BERT-base width,
batch 8 × 128 tokens, forward and backward and the optimiser's step. In each round every entry takes one step, in a random order, so
that a drift of the machine meets all alike; the ratios are taken within a round and their median is reported. A/A is the
floor against itself: its distance from 1 is the noise.

The process keeps the memory that it has freed, as allocators that torch recommends for CPUs do, and torch's own for GPUs. With ``--give-back``
it is the C library's to decide: it gives memory back to the system after each step and asks for it again in the next, which a method that keeps
more for the backward pass pays most for.
"""

from __future__ import annotations

import argparse
import copy
import ctypes
import json
import os
import random
import statistics
import time
import warnings
from pathlib import Path

import torch
from transformers import BertConfig, BertModel

import unipelt

BATCH, TOKENS = 8, 128
METHODS = {
    "lora": "lora", "adapter": "parallel_adapter", "pfeiffer": "pfeiffer", "prefix": "prefix_tuning", "mam": "mam",
    "unipelt": "unipelt_apl",
}  # fmt: skip
ARGUMENTS: dict[str, dict] = {"mam": {"r": 64, "l": 16}, "adapter": {"r": 64}, "prefix": {"l": 10}}


class Floor(torch.nn.Module):
    """The frozen model, a gradient flowing through all of it."""

    def __init__(self, base: BertModel):
        super().__init__()
        self.base = base
        for p in base.parameters():
            p.requires_grad_(False)
        self.shift = torch.nn.Parameter(torch.zeros(base.config.hidden_size))
        base.embeddings.register_forward_hook(lambda module, args, output: output + self.shift)

    def forward(self, **inputs):
        return self.base(**inputs)


def entries(layers: int) -> dict[str, torch.nn.Module]:
    torch.manual_seed(0)
    config = BertConfig(num_hidden_layers=layers, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    base = BertModel(config, add_pooling_layer=False)
    found: dict[str, torch.nn.Module] = {"floor": Floor(copy.deepcopy(base)), "floor again": Floor(copy.deepcopy(base))}
    for title, name in METHODS.items():
        model = copy.deepcopy(base)
        unipelt.apply(model, unipelt.load(name)(**ARGUMENTS.get(title, {})), name="a")
        found[title] = model
    try:
        from peft import LoraConfig, PrefixTuningConfig, get_peft_model
    except ImportError:
        print("peft is not installed: not compared")
        return found
    lora = LoraConfig(r=8, lora_alpha=16, target_modules=["query", "value"])
    found["peft lora"] = get_peft_model(copy.deepcopy(base), lora)
    prefix = PrefixTuningConfig(num_virtual_tokens=10, task_type="FEATURE_EXTRACTION")
    found["peft prefix"] = get_peft_model(copy.deepcopy(base), prefix)
    return found


def keep_memory() -> None:
    """Freed memory stays with the process (glibc's M_TRIM_THRESHOLD at its most, M_MMAP_MAX 0)."""
    libc = ctypes.CDLL("libc.so.6")
    assert libc.mallopt(-1, 2**31 - 1) and libc.mallopt(-4, 0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--give-back", action="store_true", help="freed memory may go back to the system")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "speed.json")
    args = parser.parse_args()
    if not args.give_back:
        keep_memory()
    warnings.simplefilter("ignore")
    torch.set_num_threads(args.threads)
    models = entries(args.layers)
    ids = torch.randint(1000, 20000, (BATCH, TOKENS), generator=torch.Generator().manual_seed(0))
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    optimisers = {n: torch.optim.AdamW([p for p in m.parameters() if p.requires_grad], 1e-3) for n, m in models.items()}

    clock = time.process_time if args.threads == 1 else time.perf_counter

    def step(name: str) -> float:
        begun = clock()
        out = models[name](**inputs)[0]
        out.square().mean().backward()
        optimisers[name].step()
        optimisers[name].zero_grad()
        return clock() - begun

    times: dict[str, list[float]] = {n: [] for n in models}
    order, draw = [*models], random.Random(0)
    for r in range(args.rounds + 1):
        draw.shuffle(order)  # what runs before a step costs it some hundredths
        for n in order:
            t = step(n)
            if r:  # the first round warms up
                times[n].append(t)
        print(f"round {r}/{args.rounds}", flush=True)

    def ratio(a: str, b: str) -> dict[str, float]:
        found = sorted(x / y for x, y in zip(times[a], times[b]))
        return {"median": round(statistics.median(found), 3), "min": round(found[0], 3), "max": round(found[-1], 3)}

    record = {
        "machine": {"threads": args.threads, "torch": torch.__version__}, "memory": "given back" if args.give_back else "kept", "shape": [BATCH, TOKENS], "layers": args.layers,
        "rounds": args.rounds, "floor_seconds": round(statistics.median(times["floor"]), 3),
        "to_floor": {n: ratio(n, "floor") for n in models if n != "floor"},
        "to_peft": {n: ratio(n, f"peft {n}") for n in ("lora", "prefix") if f"peft {n}" in models},
    }  # fmt: skip
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(record, indent=1) + "\n")
    print(f"{'entry':14}{'to floor':>10}{'min':>8}{'max':>8}")
    for n, v in record["to_floor"].items():
        print(f"{n:14}{v['median']:>10}{v['min']:>8}{v['max']:>8}")
    for n, v in record["to_peft"].items():
        print(f"{n + ' / peft':14}{v['median']:>10}{v['min']:>8}{v['max']:>8}")


if __name__ == "__main__":
    main()
