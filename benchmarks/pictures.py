"""Does it learn from pictures? Accuracy on scikit-learn's digits (real scans of 8 × 8), on a pretrained base and on a random one.

    python benchmarks/pictures.py [--only pretrained:lora] [--out benchmarks/results/pictures.json]

A ViT of four layers. No published vision model comes as a package, so the pretrained base is pretrained here: every weight
on the digits 0 to 4. Adapters are then trained on 5 to 9, on that base and on the same one with its random weights. 1,797
scans are split once (seeded): three fifths train, a fifth each validation and test. The rate is chosen on validation with
seed 0; then three runs with seeds 1, 2, 3 by `unipelt.training.train`, of which the last epoch's test accuracy counts.
Runs that are recorded already are not repeated.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
import time
from pathlib import Path

import torch
from transformers import ViTConfig, ViTForImageClassification

from unipelt.training import TrainConfig, train

SEEDS = (1, 2, 3)
EPOCHS, PRETRAINING = 10, 30
RATES = {"full": (3e-4, 1e-3), "probing": (3e-3, 1e-2)}
METHODS = ("probing", "lora", "unipelt_apl", "full")


def write(into: Path) -> None:
    """The digits as pictures: a folder for each half, in it one for each split, in it one for each digit."""
    from PIL import Image
    from sklearn.datasets import load_digits

    digits = load_digits()
    order = list(range(len(digits.images)))
    random.Random(0).shuffle(order)
    for n, i in enumerate(order):
        split = ("train", "train", "train", "validation", "test")[n * 5 // len(order)]
        label = int(digits.target[i])
        folder = into / ("first" if label < 5 else "second") / split / str(label)
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray((digits.images[i] * 255 / 16).round().astype("uint8")).save(folder / f"{i:04}.png")


def bases(into: Path) -> tuple[dict[str, str], float]:
    """The folders of the pretrained and of the random base, and the test accuracy of the first on 0 to 4."""
    import unipelt

    torch.manual_seed(0)
    ViTForImageClassification(ViTConfig(
        hidden_size=64, num_hidden_layers=4, num_attention_heads=4, intermediate_size=128, image_size=8, patch_size=2,
        num_channels=1, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )).save_pretrained(into / "random")  # fmt: skip
    result = train(TrainConfig(
        method="full", model=str(into / "random"), data=str(into / "first"), out=str(into / "pretraining"),
        epochs=PRETRAINING, lr=1e-3, batch_size=32, checkpoints=False,
    ))  # fmt: skip
    unipelt.save_merged(result.model, into / "pretrained", "trained")
    return {n: str(into / n) for n in ("pretrained", "random")}, result.metrics["test"]["accuracy"]


def run(model: str, data: Path, method: str, lr: float, seed: int) -> dict:
    begun = time.time()
    with tempfile.TemporaryDirectory() as out:
        result = train(TrainConfig(
            method=method, model=model, data=str(data), out=str(Path(out) / "run"), task="image-classification", epochs=EPOCHS,
            lr=lr, batch_size=32, seed=seed, checkpoints=False,
        ))  # fmt: skip
    return {"lr": lr, "seed": seed, "seconds": round(time.time() - begun), "validation": result.metrics["validation"]["accuracy"],
            "test": result.metrics["test"]["accuracy"], "macro_f1": result.metrics["test"]["macro_f1"],
            "counts": result.counts}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "pictures.json")
    parser.add_argument("--only", nargs="*", default=[])
    args = parser.parse_args()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    record: dict[str, dict] = json.loads(args.out.read_text()) if args.out.exists() else {}
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        into = Path(folder)
        write(into)
        models, accuracy = bases(into)
        record["pretraining"] = {"test": accuracy}
        print(f"pretraining on 0 to 4: test {accuracy:.4f}", flush=True)
        for base, model in models.items():
            for method in METHODS:
                key = f"{base}:{method}"
                if args.only and key not in args.only:
                    continue
                entry = record.setdefault(key, {"choice": [], "runs": []})
                for lr in RATES.get(method, (1e-3, 3e-3)):
                    if not any(r["lr"] == lr for r in entry["choice"]):
                        entry["choice"].append(run(model, into / "second", method, lr, 0))
                best = max(entry["choice"], key=lambda r: r["validation"])["lr"]
                for seed in SEEDS:
                    if not any(r["seed"] == seed and r["lr"] == best for r in entry["runs"]):
                        entry["runs"].append(run(model, into / "second", method, best, seed))
                tests = [r["test"] for r in entry["runs"]]
                entry["mean"], entry["deviation"] = statistics.mean(tests), statistics.stdev(tests)
                args.out.write_text(json.dumps(record, indent=1) + "\n")
                print(f"{key}: rate {best:g}, test {entry['mean']:.4f} ± {entry['deviation']:.4f}", flush=True)


if __name__ == "__main__":
    main()
