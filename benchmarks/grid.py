"""The whole grid of behaviour: every method of the library on every model, every property (see `tests/behaviour`).

    python benchmarks/grid.py [--models t5 bart] [--out benchmarks/results/grid.json]

The suite tries each property of each method on a model in turn; here on all of them, with the same code. The record has
an entry for each model, and a run replaces those of the models it tried. The exit status is 1 where a cell does not hold.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import torch
import transformers

import unipelt

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "behaviour")]

from grid import MODELS, bare, blank, left_blank, read, refusal, unmet  # noqa: E402
from properties import PROPERTIES, Case  # noqa: E402
from tiny import Bases  # noqa: E402


def column(spec: str, kind: str, bases: Bases, written: Any, folder: Path) -> dict[str, Any]:
    """Every cell of a method on a model: how many hold, are blank, and what does not hold."""
    case, failed = Case(spec, kind, bases), {}
    refused = refusal(case)
    found: Any = refused or blank(case)
    if written is not None and bare(found) != bare(written):  # what is committed is of the classics
        failed["blanks"] = f"found {found}"
    empty = set(PROPERTIES) if refused else left_blank(found)
    for i, name in enumerate(n for n in PROPERTIES if n not in empty):
        (folder / str(i)).mkdir()
        why = unmet(Case(spec, kind, bases, folder / str(i)), name)
        if why is not None:
            failed[name] = why
    return {"tried": len(PROPERTIES) - len(empty), "blank": len(empty), "failed": failed}


def model(kind: str, methods: list[str]) -> dict[str, Any]:
    begun, bases, committed = time.process_time(), Bases(), read()["methods"]
    total: dict[str, Any] = {
        "class": MODELS[kind],
        "methods": len(methods),
        "refused": 0,
        "cells": 0,
        "blank": 0,
        "holds": 0,
    }
    failed: dict[str, str] = {}
    for spec in methods:
        with tempfile.TemporaryDirectory() as folder:
            found = column(spec, kind, bases, committed.get(spec, {}).get(kind), Path(folder))
        total["refused"] += not found["tried"]
        total["cells"] += len(PROPERTIES)
        total["blank"] += found["blank"]
        total["holds"] += found["tried"] - len(set(found["failed"]) & set(PROPERTIES))
        failed |= {f"{spec}, {name}": why for name, why in found["failed"].items()}
    return {**total, "failed": failed, "seconds": round(time.process_time() - begun, 1)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS), metavar="MODEL")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "grid.json")
    args = parser.parse_args()
    warnings.simplefilter("error")
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    methods = sorted(e.name for e in unipelt.library() if e.kind == "method")
    record = json.loads(args.out.read_text(encoding="utf-8")) if args.out.exists() else {"models": {}}
    record |= {"torch": torch.__version__, "transformers": transformers.__version__, "properties": list(PROPERTIES)}
    print(f"{'model':18}{'cells':>7}{'hold':>7}{'fail':>6}{'blank':>7}{'CPU s':>8}")
    for kind in args.models:
        found = record["models"][kind] = model(kind, methods)
        print(
            f"{kind:18}{found['cells']:>7}{found['holds']:>7}{len(found['failed']):>6}{found['blank']:>7}{found['seconds']:>8}"
        )
        for where, why in found["failed"].items():
            print(f"  {where}: {why}", flush=True)
        record["models"] = {k: record["models"][k] for k in MODELS if k in record["models"]}
        total = {n: sum(m[n] for m in record["models"].values()) for n in ("cells", "holds", "blank")}
        record["total"] = {**total, "failed": sum(len(m["failed"]) for m in record["models"].values())}
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return 1 if record["total"]["failed"] else 0


if __name__ == "__main__":
    raise SystemExit(main())
