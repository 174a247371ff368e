"""How long `unipelt check` takes as a process, and that it imports no torch.

python benchmarks/check_time.py [--runs 9] [--out benchmarks/results/check_time.json]
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def seconds(arguments: list[str], runs: int, remembered: bool = True) -> dict[str, float]:
    """Seconds on the clock, and the least processor seconds, which other work on the machine disturbs less."""
    found, used = [], []
    with tempfile.TemporaryDirectory() as cache:
        # An installed package has its modules compiled; so has this process's, wherever it may write them.
        env = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
        env |= {"PYTHONPYCACHEPREFIX": cache, "UNIPELT_CACHE": cache if remembered else "off"}
        for _ in range(runs + 1):
            begun, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
            subprocess.run(arguments, check=True, capture_output=True, cwd=ROOT, env=env)
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            found.append(time.perf_counter() - begun)
            used.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    found, used = sorted(found[1:]), sorted(used[1:])  # the first fills the caches
    return {
        "median": round(statistics.median(found), 3), "min": round(found[0], 3), "max": round(found[-1], 3),
        "processor": round(used[0], 3),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=9)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "check_time.json")
    args = parser.parse_args()
    program = [sys.executable, "-m", "unipelt"]
    probe = "import sys; from unipelt.cli.main import main; sys.argv = ['unipelt', 'check', 'specs']\n"
    probe += "try:\n main()\nexcept SystemExit: pass\nprint(sorted({'torch', 'transformers'} & set(sys.modules)))"
    heavy = subprocess.run([sys.executable, "-c", probe], check=True, capture_output=True, cwd=ROOT, text=True).stdout
    record = {
        "python -c pass": seconds([sys.executable, "-c", "pass"], args.runs),
        "unipelt check specs": seconds([*program, "check", "specs"], args.runs),
        "unipelt check specs/lora.pelt": seconds([*program, "check", "specs/lora.pelt"], args.runs),
        "unipelt check specs, nothing remembered": seconds([*program, "check", "specs"], args.runs, False),
        "unipelt check specs/lora.pelt, nothing remembered": seconds(
            [*program, "check", "specs/lora.pelt"], args.runs, False
        ),
        "load of the machine": [round(x, 1) for x in os.getloadavg()],
        "processors": os.cpu_count(),
        "heavy imports": heavy.strip().splitlines()[-1],
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
