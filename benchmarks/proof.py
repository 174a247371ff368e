"""Verdicts against numbers: every method of the library on eight architectures, and random well-typed methods.

    python benchmarks/proof.py [--random 2000] [--part 0/2] [--only random] [--out benchmarks/results/proof.json]

A "yes" must hold to 1e-9, a "no" must be seen (above 1e-7), in float64 with random tensors; see `tests/proof`. With
``--part i/n`` only every n-th method is taken, so that several processes share the work; ``--join`` adds their records. The record of
random methods is written as it grows, so that a run that is stopped says how far it came.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / p) for p in ("tests", "tests/behaviour", "tests/proof")]


def empty() -> dict[str, Any]:
    return {"methods": 0, "verdicts": {}, "worst yes": 0.0, "smallest no": None, "models": {}, "refuted": [], "crashed": [],
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


def library(part: tuple[int, int]) -> dict[str, Any]:
    from proof import KINDS, prove
    from tiny import small

    import unipelt

    record, begun = empty(), time.process_time()
    more = [(kind, seed, 1.0) for seed in (1, 2) for kind in KINDS]
    names = [e.name for e in unipelt.library() if e.kind == "method"][part[0] :: part[1]]
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            add(record, prove(small(name), KINDS, more=more, folder=Path(folder) / name), name)
    record["seconds"] = round(time.process_time() - begun, 1)
    return record


def drawn(count: int, part: tuple[int, int], out: Path, first: int = 0) -> dict[str, Any]:
    """``count`` random methods that check; how many were drawn for that, and why the others were refused."""
    from random_proof import proved

    record, begun = empty() | {"drawn": 0, "refused by the checker": {}}, time.process_time()
    seed = first + part[0]
    while record["methods"] < count // part[1]:
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
        seed += part[1]
        if record["methods"] % 25 == 0:
            record["seconds"] = round(time.process_time() - begun, 1)
            write(out, {"random": record})
    record["seconds"] = round(time.process_time() - begun, 1)
    return record


def write(out: Path, record: dict[str, Any]) -> None:
    """A half that was not run keeps its record."""
    out.parent.mkdir(parents=True, exist_ok=True)
    kept = json.loads(out.read_text()) if out.exists() else {}
    out.write_text(json.dumps(kept | record, indent=1) + "\n")


def joined(records: list[dict[str, Any]]) -> dict[str, Any]:
    """The sum of the parts."""
    out: dict[str, Any] = {}
    for key in dict.fromkeys(k for r in records for k in r):
        values = [r[key] for r in records if r.get(key) is not None]
        if key == "worst yes":
            out[key] = max(values)
        elif key == "smallest no":
            out[key] = min(values, default=None)
        elif values and isinstance(values[0], dict):
            nested = isinstance(next(iter(values[0].values()), None), dict)
            out[key] = joined(values) if nested else dict(sum(map(Counter, values), Counter()))
        else:
            out[key] = sum(values, [] if isinstance(values[0], list) else 0) if values else None
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--random", type=int, default=2000)
    parser.add_argument("--part", default="0/1")
    parser.add_argument("--first", type=int, default=0, help="the first random method's number")
    parser.add_argument("--only", choices=("library", "random"))
    parser.add_argument("--join", type=Path, nargs="*", default=[])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "proof.json")
    args = parser.parse_args()
    if args.join:
        records = [json.loads(p.read_text()) for p in args.join]
    else:
        import torch

        torch.set_num_threads(1)
        i, n = map(int, args.part.split("/"))
        parts = {"random": lambda: drawn(args.random, (i, n), args.out, args.first), "library": lambda: library((i, n))}
        records = [{name: make() for name, make in parts.items() if args.only in (None, name)}]
    record = {name: joined(found) for name in ("library", "random") if (found := [r[name] for r in records if name in r])}
    for name, part in record.items():
        part["seconds"] = round(part["seconds"], 1)
        if name == "random":
            part["share that checks"] = round(part["methods"] / part["drawn"], 3)
    write(args.out, record)
    print(json.dumps(record, indent=1))
    bad = sum(len(part["refuted"]) + len(part["crashed"]) for part in record.values())
    raise SystemExit(f"{bad} refuted or crashed" if bad else 0)


if __name__ == "__main__":
    main()
