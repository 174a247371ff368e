"""Ctrl-C at every line: each call of `tests/interrupted.py` is interrupted before every line it runs of the runtime and the compiler.

    python benchmarks/interrupted.py [--only CALL] [--every 1] [--out benchmarks/results/interrupted.json]

After each the model must be as before the call or as after it, and the call, done again, must do the rest. Writes how many lines
were tried and which failed. Some ten minutes of one processor.
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
    from interrupted import CASES, ends, wrong

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=list(CASES))
    parser.add_argument("--every", type=int, default=1, help="try one line of so many")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "interrupted.json")
    given = parser.parse_args()
    calls: dict[str, dict] = {}
    for name in [given.only] if given.only else CASES:
        with tempfile.TemporaryDirectory() as folder:
            count, two = ends(name, Path(folder))
            points = range(1, count + 1, given.every)
            failed = [f for at in points if (f := wrong(name, Path(folder), at, two))]
        calls[name] = {"lines": count, "tried": len(points), "failed": failed}
        print(f"{name}: {len(points)} of {count} lines, {len(failed)} failed", *failed[:5], sep="\n  ", flush=True)
        if not given.only:
            given.out.write_text(json.dumps({"commit": commit(), "calls": calls}, indent=1) + "\n")
    sys.exit(any(c["failed"] for c in calls.values()))


if __name__ == "__main__":
    main()
