"""What many attached adapters cost: attaching the 100th, switching, taking one out, and a pass in which one of them acts.

    python benchmarks/attached.py [--adapters 100] [--rounds 20] [--out benchmarks/results/attached.json]

A tiny BERT of twelve layers, LoRA with r = 4 at q and v. Each call is timed in turn on a model with one adapter, on another such model
(A/A: its distance from 1 is the noise) and on one with all of them but the one that comes; ratios are taken within a round and their
median is reported. Passes are of one token. "at rest" is a pass of the base with adapters attached that do not act, beside the base and
beside a base with an empty hook at each of the modules where they hang: what torch itself takes for a hook.
"""

from __future__ import annotations

import argparse
import copy
import json
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import BertConfig, BertForSequenceClassification

import unipelt


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--adapters", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/attached.json"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = BertConfig(
        hidden_size=64, num_hidden_layers=12, num_attention_heads=4, intermediate_size=128, vocab_size=100, num_labels=3
    )
    base, method = BertForSequenceClassification(config).eval(), unipelt.load("lora")(r=4)
    one = copy.deepcopy(base)
    unipelt.apply(one, method, "a0")
    many = copy.deepcopy(one)
    for i in range(1, args.adapters - 1):
        unipelt.apply(many, method, f"a{i}")
    unipelt.activate(many, "a0")
    changing = {"one": one, "again": copy.deepcopy(one), "many": many}
    resting = copy.deepcopy(many)
    unipelt.activate(resting)
    passing = {
        "base": base,
        "base again": copy.deepcopy(base),
        "empty hooks": hooked(copy.deepcopy(base)),
        "at rest": resting,
        **changing,
    }
    ids = torch.tensor([[5]])
    # each with how often it is called: some take microseconds
    calls: dict[str, tuple[int, Callable[[nn.Module], object]]] = {
        "apply": (1, lambda m: unipelt.apply(m, method, "new")),
        "activate": (20, lambda m: unipelt.activate(m, "a0")),
        "deactivate": (20, lambda m: unipelt.activate(m)),
        "remove": (1, lambda m: unipelt.remove(m, "new")),
        "using": (200, lambda m: used(m, "a0")),
        "disabled": (200, lambda m: used(m, None)),
    }
    times = timed(changing, calls, args.rounds)
    for m in changing.values():
        unipelt.activate(m, "a0")
    passes = timed(passing, {"forward": (5, lambda m: m(input_ids=ids))}, args.rounds * 5)["forward"]
    found = {
        call: {"many / one": ratio(t["many"], t["one"]), "A/A": ratio(t["again"], t["one"])}
        for call, t in times.items()
    }
    pairs = (
        ("many", "one"),
        ("again", "one"),
        ("at rest", "base"),
        ("at rest", "empty hooks"),
        ("empty hooks", "base"),
        ("base again", "base"),
    )
    found["forward"] = {f"{a} / {b}": ratio(passes[a], passes[b]) for a, b in pairs}
    record = {
        "machine": {"threads": 1, "torch": torch.__version__},
        "adapters": args.adapters,
        "rounds": args.rounds,
        "ratios": found,
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(record, indent=1) + "\n")
    for call, ratios in found.items():
        print(
            f"{call:11}",
            "   ".join(f"{pair} {r['median']:.3f} ({r['low']:.2f}–{r['high']:.2f})" for pair, r in ratios.items()),
        )


def hooked(model: nn.Module) -> nn.Module:
    """An empty hook at every module where LoRA hangs."""
    for n, m in model.named_modules():
        if n.endswith((".query", ".value")):
            m.register_forward_hook(lambda *_: None)
    return model


def used(model: nn.Module, name: str | None) -> None:
    with unipelt.using(model, name):
        pass


@torch.no_grad()
def timed(
    models: dict[str, nn.Module], calls: dict[str, tuple[int, Callable[[Any], object]]], rounds: int
) -> dict[str, dict[str, list[float]]]:
    """Seconds of each call of each model in each round; the models in a random order, so that a drift of the machine meets all alike."""
    times: dict[str, dict[str, list[float]]] = {c: {n: [] for n in models} for c in calls}
    order, rng = list(models), random.Random(0)
    for r in range(rounds + 3):
        rng.shuffle(order)
        for call, (often, function) in calls.items():
            for n in order:
                begun = time.perf_counter()
                for _ in range(often):
                    function(models[n])
                if r >= 3:  # the first rounds warm up
                    times[call][n].append(time.perf_counter() - begun)
    return times


def ratio(a: list[float], b: list[float]) -> dict[str, float]:
    ratios = sorted(x / y for x, y in zip(a, b))
    quarter = len(ratios) // 4
    return {
        "median": round(statistics.median(ratios), 3),
        "low": round(ratios[quarter], 3),
        "high": round(ratios[-1 - quarter], 3),
    }


if __name__ == "__main__":
    main()
