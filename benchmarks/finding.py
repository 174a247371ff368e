"""What it costs to find the sites of a model that no anatomy describes, in forward passes of four tokens, and what a plan costs then.

    python benchmarks/finding.py [--rounds 9] [--out benchmarks/results/finding.json]

With weights (GPT-NeoX of BERT-base width, 12 and 24 layers): a search, a proof of what it found, and the pass beside itself (A/A: its
distance from 1 is the noise), each to a pass in the same round; the median is reported. On meta (a Granite of 80 layers shaped as Llama 70B,
GPT-NeoX-20B): the seconds of a search and of plans: the first, that of another such model in the same process, and that of another process, which
reads the folder of maps. The map of meta is compared with that of weights where there are some.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, GPTNeoXConfig, GraniteConfig

import unipelt
from unipelt.anatomy import stored
from unipelt.anatomy.base import base_modules, base_of
from unipelt.anatomy.prove import proved
from unipelt.anatomy.search import search
from unipelt.anatomy.sites import SiteMap
from unipelt.language import cache


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--tiny", action="store_true", help="small models, for a test of this script")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/finding.json"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    small: dict[str, Any] = (
        dict(hidden_size=64, intermediate_size=96, num_attention_heads=4, vocab_size=100) if args.tiny else {}
    )
    base: dict[str, Any] = (
        dict(hidden_size=768, num_attention_heads=12, intermediate_size=3072, vocab_size=30522) | small
    )
    large: dict[str, Any] = dict(
        hidden_size=8192, intermediate_size=28672, num_attention_heads=64, num_key_value_heads=8, vocab_size=128256
    )
    record: dict[str, Any] = {
        "torch": torch.__version__,
        "rounds": args.rounds,
        "load of the machine": [round(x, 1) for x in os.getloadavg()],
    }
    record["with weights"] = {
        f"{layers} layers": with_weights(GPTNeoXConfig(**base, num_hidden_layers=layers), args.rounds)
        for layers in ((2, 3) if args.tiny else (12, 24))
    }
    record["on meta"] = {
        "70B, 80 layers": on_meta(
            GraniteConfig(
                **(large | small | ({"num_key_value_heads": 2} if args.tiny else {})),
                num_hidden_layers=3 if args.tiny else 80,
            )
        ),
        "GPT-NeoX-20B, 44 layers": on_meta(GPTNeoXConfig(**small, num_hidden_layers=3 if args.tiny else 44)),
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(record, indent=1))


def built(config: Any, device: str = "cpu") -> nn.Module:
    torch.manual_seed(0)
    with torch.device(device):
        return AutoModelForCausalLM.from_config(config).eval()


def searched(model: nn.Module) -> SiteMap:
    base = base_of(model)
    return search(model, base, next((n for n, m in base_modules(model) if m is base), ""))[0]


def taken(call: Callable[[], object]) -> float:
    begun = time.perf_counter()
    call()
    return time.perf_counter() - begun


def with_weights(config: Any, rounds: int) -> dict[str, Any]:
    model, ids = built(config), torch.tensor([[1, 2, 3, 4]])
    sites = searched(model)

    def forward() -> None:
        with torch.no_grad():
            model(input_ids=ids, use_cache=False)

    calls: dict[str, Callable[[], object]] = {
        "pass": forward, "pass again": forward, "search": lambda: searched(model), "proof": lambda: proved(sites, model, base_of(model)),
    }  # fmt: skip
    times: dict[str, list[float]] = {n: [] for n in calls}
    draw = random.Random(0)
    for turn in range(rounds + 1):
        for name in draw.sample(list(calls), len(calls)):
            seconds = taken(calls[name])
            if turn:  # the first fills caches
                times[name].append(seconds)
    ratios = {n: [t / p for t, p in zip(times[n], times["pass"])] for n in calls if n != "pass"}
    return {
        "seconds of a pass": round(statistics.median(times["pass"]), 4),
        "to a pass": {n: [round(x, 2) for x in (statistics.median(r), min(r), max(r))] for n, r in ratios.items()},
        "the same on meta": searched(built(config, "meta")) == sites,
    }


def on_meta(config: Any) -> dict[str, Any]:
    method = unipelt.load("lora")
    with tempfile.TemporaryDirectory() as folder:
        os.environ[cache.FOLDER] = folder
        stored.forget()
        model = built(config, "meta")
        search_ = taken(lambda: searched(model))
        first = taken(lambda: unipelt.plan(model, method))
        other = built(config, "meta")
        memory = taken(lambda: unipelt.plan(other, method))
        stored.forget()
        third = built(config, "meta")
        disk = taken(lambda: unipelt.plan(third, method))
        os.environ.pop(cache.FOLDER)
    found = {"search": search_, "first plan": first, "plan from memory": memory, "plan from the folder": disk}
    return {"parameters": sum(p.numel() for p in model.parameters()), **{n: round(x, 3) for n, x in found.items()}}


if __name__ == "__main__":
    main()
