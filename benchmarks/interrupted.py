"""Ctrl-C at every line: each call of `tests/interrupted.py` is interrupted before the lines it runs of the runtime and the compiler.

    python benchmarks/interrupted.py [--only CALL ...] [--every-time] [--layers 2] [--out benchmarks/results/interrupted.json]

Each line is tried the first time and the last time it is run (with ``--every-time`` each time). After that the model must be as
before the call or as after it, and the call, done again, must do the rest. Writes how many lines were tried and which failed; with
``--only`` it replaces the records of those calls. Some fifteen minutes of one processor.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

from state import ROOT, commit

sys.path[:0] = [str(ROOT / "tests")]


def main() -> None:
    import small
    from interrupted import CASES, ends, first_and_last, wrong

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=list(CASES), nargs="+", default=list(CASES))
    parser.add_argument("--every-time", action="store_true", help="try a line each time it is run")
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "interrupted.json")
    given = parser.parse_args()
    small._SIZES["num_hidden_layers"] = given.layers
    calls: dict[str, dict] = {}
    if len(given.only) < len(CASES) and given.out.exists():
        calls = json.loads(given.out.read_text())["calls"]
    failures = 0
    for name in given.only:
        with tempfile.TemporaryDirectory() as folder:
            passed, two = ends(name, Path(folder))
            points = list(range(1, len(passed) + 1)) if given.every_time else first_and_last(passed)
            failed = [f for at in points if (f := wrong(name, Path(folder), at, two))]
        calls[name] = {"commit": commit(), "layers": given.layers, "lines": len(set(passed)), "runs of them": len(passed),
                       "tried": len(points), "failed": failed}  # fmt: skip
        failures += len(failed)
        print(
            f"{name}: {len(points)} tries at {len(set(passed))} lines, {len(failed)} failed",
            *failed[:5],
            sep="\n  ",
            flush=True,
        )
        given.out.write_text(json.dumps({"calls": {n: calls[n] for n in CASES if n in calls}}, indent=1) + "\n")
    sys.exit(failures > 0)


if __name__ == "__main__":
    main()
