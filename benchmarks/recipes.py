"""Recipes against the literal evaluator: random methods in small models in float64, all lowerings together and each alone.

    python benchmarks/recipes.py [--methods 2000] [--out benchmarks/results/recipes.json]

Each method is put into one of three models in turn (GPT-2, BERT with a head, Llama). Compared are the model's outputs; one lowering
by itself, in turn, and all of them.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from pathlib import Path

import torch

import unipelt
from unipelt.compiler.lower import LOWERINGS
from unipelt.runtime.edits import Edit

TESTS = Path(__file__).parent.parent / "tests"
sys.path += [str(TESTS), str(TESTS / "proof")]
import random_methods  # noqa: E402
import small  # noqa: E402

KINDS = ("gpt2", "bert_labels", "llama")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--methods", type=int, default=2000)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "recipes.json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    begun, seed, worst = time.process_time(), 0, 0.0
    found: Counter[str] = Counter()
    differing: list[int] = []
    while found["compared"] < args.methods:
        seed += 1
        alone = [*LOWERINGS][seed % len(LOWERINGS)]
        try:
            method = unipelt.parse(random_methods.text(seed))
            outputs = []
            for lowering in (False, True, [alone]):
                model = small.model(KINDS[seed % 3], dtype=torch.float64)
                unipelt.apply(model, method, allow_future=True, lowering=lowering)
                small.randomise(model, seed=seed)
                for _ in range(3):  # in the third pass hosts call functions written for them, where they have any
                    torch.manual_seed(seed)  # `chance` is drawn
                    found_now = small.output(model)
                outputs.append(found_now)
                if lowering is True:
                    known = [r for e in model.modules() if isinstance(e, Edit) and e.recipes for r in e.recipes.known.values()]  # fmt: skip
        except unipelt.PeltError:
            found["no method, or without a place"] += 1
            continue
        found["compared"] += 1
        found["of straight code alone"] += bool(known) and all(known)
        expected, *others = outputs
        if not torch.isfinite(expected).all():
            found["not finite as written"] += 1
            others = [torch.where(torch.isfinite(expected), o, 0.0) for o in others]
            expected = torch.where(torch.isfinite(expected), expected, 0.0)
        if found["compared"] % 100 == 0:
            print(f"{found['compared']} compared, {len(differing)} differ, at most {worst:.1e}", flush=True)
        off = max(float((o - expected).abs().max() / expected.abs().max().clamp(min=1)) for o in others)
        worst = max(worst, off)
        if not off <= 1e-10:
            differing.append(seed)
    record = {**found, "seeds": seed, "differing": differing, "largest relative difference": worst,
              "core seconds": round(time.process_time() - begun)}  # fmt: skip
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
