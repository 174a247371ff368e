"""Verdicts against numbers: every method of the library on eight architectures, and random well-typed methods.

    python benchmarks/proof.py [--random 2000] [--first 0] [--only library|random] [--out benchmarks/results/proof.json]

A "yes" must hold to 1e-9, a "no" must be seen (above 1e-7), in float64 with random tensors; see `tests/proof`. The record of
random methods is written as it grows, so that a run that is stopped says how far it came. Some ten minutes of one processor.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

from state import ROOT, commit

sys.path[:0] = [str(ROOT / p) for p in ("tests", "tests/behaviour", "tests/proof")]


def empty() -> dict[str, Any]:
    return {"commit": commit(), "methods": 0, "verdicts": {}, "worst yes": 0.0, "smallest no": None, "models": {}, "refuted": [], "crashed": [],
            "refused everywhere": 0, "nothing done": 0, "not finite": 0, "seconds": 0.0}  # fmt: skip


def add(record: dict[str, Any], found: Any, at: str) -> None:
    """Notes one proof: what was said how often, and how near to its limits a judged verdict came."""
    record["methods"] += 1
    for kind in found.idle:
        record["models"][kind] = record["models"].get(kind, 0) + 1
    if not found.idle:
        record["refused everywhere"] += bool(found.refused)
    record["not finite"] += bool(found.unstable)
    record["refuted"] += [f"{at}: {r}" for r in found.refuted]
    nothing = bool(found.idle) and all(found.idle.values())
    record["nothing done"] += nothing
    for verdict, said in found.said.items():
        values = found.found.get(verdict, {})
        own = record["verdicts"].setdefault(verdict, {})
        own[said] = own.get(said, 0) + 1
        own[f"{said}, judged"] = own.get(f"{said}, judged", 0) + bool(values)
        if said == "yes" and values:
            record["worst yes"] = max(record["worst yes"], *values.values())
        if said == "no" and values and not nothing:
            shown = max(values.values())
            record["smallest no"] = shown if record["smallest no"] is None else min(record["smallest no"], shown)


def library() -> dict[str, Any]:
    from proof import KINDS, prove
    from tiny import small

    import unipelt

    record, begun = empty(), time.process_time()
    more = [(kind, seed, 1.0) for seed in (1, 2) for kind in KINDS]
    names = [e.name for e in unipelt.library() if e.kind == "method"]
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            add(record, prove(small(name), KINDS, more=more, folder=Path(folder) / name), name)
    return timed(record, begun)


def drawn(count: int, out: Path, first: int) -> dict[str, Any]:
    """``count`` random methods that check; how many were drawn for that, and why the others were refused."""
    from random_proof import proved

    record, begun = empty() | {"drawn": 0, "refused by the checker": {}}, time.process_time()
    seed = first
    while record["methods"] < count:
        record["drawn"] += 1
        try:
            found = proved(seed)
        except Exception:
            record["methods"] += 1
            record["crashed"].append(f"m{seed}: {traceback.format_exc().splitlines()[-1]}")
        else:
            if isinstance(found, str):
                record["refused by the checker"][found] = record["refused by the checker"].get(found, 0) + 1
            else:
                add(record, found, f"m{seed}")
        seed += 1
        if record["methods"] % 25 == 0:
            write(out, {"random": timed(record, begun)})
    record["share that checks"] = round(record["methods"] / record["drawn"], 3)
    return timed(record, begun)


def timed(record: dict[str, Any], begun: float) -> dict[str, Any]:
    record["seconds"] = round(time.process_time() - begun, 1)
    return record


def write(out: Path, record: dict[str, Any]) -> None:
    """A half that was not run keeps its record."""
    out.parent.mkdir(parents=True, exist_ok=True)
    kept = json.loads(out.read_text()) if out.exists() else {}
    out.write_text(json.dumps(kept | record, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--random", type=int, default=2000, metavar="COUNT")
    parser.add_argument("--first", type=int, default=0, help="the first random method's number")
    parser.add_argument("--only", choices=("library", "random"))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "proof.json")
    args = parser.parse_args()
    import torch

    torch.set_num_threads(1)
    halves = {"random": lambda: drawn(args.random, args.out, args.first), "library": library}
    record = {name: make() for name, make in halves.items() if args.only in (None, name)}
    write(args.out, record)
    print(json.dumps(record, indent=1))
    bad = sum(len(half["refuted"]) + len(half["crashed"]) for half in record.values())
    raise SystemExit(f"{bad} refuted or crashed" if bad else 0)


if __name__ == "__main__":
    main()
