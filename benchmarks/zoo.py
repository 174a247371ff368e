"""Step time and memory of the library's methods beside peft's of the same kind, interleaved, with an A/A control.

    python benchmarks/zoo.py [--only fourierft vera] [--rounds 5] [--out benchmarks/results/zoo.json]

BERT-base width, 4 layers, batch 4 × 64 tokens, at the query and value projections unless said; forward and backward. In each
round every entry takes one step in turn, ratios are taken within a round and their median is reported. A/A is peft's model
against itself: its distance from 1 is the noise. Memory is what autograd keeps for the backward pass, parameters not counted.
Pairs that are recorded already are not run again; `--only` runs its own anew.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import torch
from memory import kept
from state import commit
from transformers import BertConfig, BertModel

import unipelt

BATCH, TOKENS, LAYERS = 4, 64, 4
AT = ["query", "value"]


def of(config: str, **arguments: Any) -> Callable[[], peft.PeftConfig]:
    """A configuration of peft by the name of its class, at query and value."""
    return lambda: getattr(peft, config)(target_modules=AT, **arguments)


#: A method of the library with its arguments, and peft's configuration of the same size.
PAIRS: dict[str, tuple[dict[str, Any], Callable[[], peft.PeftConfig]]] = {
    "lora": ({}, of("LoraConfig", r=8, lora_alpha=16)),
    "dora": ({}, of("LoraConfig", r=8, lora_alpha=16, use_dora=True)),
    "pissa": ({}, of("LoraConfig", r=8, init_lora_weights="pissa")),
    "adalora": ({}, of("AdaLoraConfig", init_r=12, target_r=8, total_step=100)),
    "loha": ({}, of("LoHaConfig", r=8, alpha=8)),
    "lokr": ({}, of("LoKrConfig", r=8, alpha=8)),
    "hira": ({}, of("HiraConfig", r=32)),
    "oft": ({}, of("OFTConfig", oft_block_size=32, r=0)),
    "boft": ({}, of("BOFTConfig", boft_block_size=4)),
    "hra": ({}, of("HRAConfig", r=8)),
    "road": ({}, of("RoadConfig", group_size=64)),
    "miss": ({}, of("MissConfig", r=64)),
    "c3a": ({}, of("C3AConfig", block_size=128)),
    "fourierft": ({}, of("FourierFTConfig", n_frequency=1000)),
    "waveft": ({}, of("WaveFTConfig", n_frequency=2592)),
    "vera": ({}, of("VeraConfig", r=256)),
    "randlora": ({}, of("RandLoraConfig", r=32)),
    "vb_lora": ({}, of("VBLoRAConfig", r=4, num_vectors=256, vector_length=256)),
    "uni_lora": ({}, of("UniLoraConfig", r=4)),
    "gralora": ({}, of("GraloraConfig", r=32)),
    "delora": ({}, of("DeloraConfig", r=8)),
    "shira": ({}, of("ShiraConfig", r=8)),
    "psoft": ({}, of("PsoftConfig", r=32)),
    "ia3": ({}, lambda: peft.IA3Config(target_modules=["key", "value", "intermediate.dense"], feedforward_modules=[])),
    "ln_tuning": ({}, lambda: peft.LNTuningConfig(target_modules=["LayerNorm"])),
}


def models(name: str, base: torch.nn.Module) -> dict[str, torch.nn.Module]:
    arguments, config = PAIRS[name]
    ours = copy.deepcopy(base)
    unipelt.apply(ours, unipelt.load(name)(**arguments))
    return {"ours": ours, "peft": (p := peft.get_peft_model(copy.deepcopy(base), config())), "peft again": p}


def measured(name: str, base: torch.nn.Module, inputs: dict[str, torch.Tensor], rounds: int) -> dict[str, Any]:
    found = models(name, base)
    times: dict[str, list[float]] = {n: [] for n in found}
    for r in range(rounds + 1):
        for n, model in found.items():
            begun = time.perf_counter()
            model(**inputs)[0].square().mean().backward()
            for p in model.parameters():
                p.grad = None
            if r:  # the first round warms up
                times[n].append(time.perf_counter() - begun)

    def ratio(a: str, b: str) -> float:
        return round(statistics.median(x / y for x, y in zip(times[a], times[b])), 3)

    trained = {n: sum(p.numel() for p in m.parameters() if p.requires_grad) for n, m in found.items()}
    return {
        "step to peft": ratio("ours", "peft"), "A/A": ratio("peft again", "peft"),
        "MiB": {n: round(kept(found[n], inputs) / 2**20, 1) for n in ("ours", "peft")},
        "trained": {n: trained[n] for n in ("ours", "peft")}, "commit": commit(),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "zoo.json")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    config = BertConfig(num_hidden_layers=LAYERS, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    base = BertModel(config, add_pooling_layer=False)
    ids = torch.randint(1000, 20000, (BATCH, TOKENS), generator=torch.Generator().manual_seed(0))
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    record: dict[str, Any] = json.loads(args.out.read_text()) if args.out.exists() else {}
    there = {e.name for e in unipelt.library() if e.kind == "method"}
    for name in PAIRS:
        if name not in there or (args.only and name not in args.only) or (not args.only and name in record):
            continue
        record[name] = measured(name, base, inputs, args.rounds)
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(record, indent=1) + "\n")
        print(
            f"{name:12} {record[name]['step to peft']:6} of peft (A/A {record[name]['A/A']}), {record[name]['MiB']}",
            flush=True,
        )
    missing = sorted(set(PAIRS) - there)
    if missing:
        print(f"no methods of the library: {', '.join(missing)}")


if __name__ == "__main__":
    main()
