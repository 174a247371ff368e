"""The suite on the oldest and on the newest version of transformers that `pyproject.toml` allows.

    python benchmarks/versions.py [--only oldest] [--workers 2] [--out benchmarks/results/versions.json]

Each version gets an environment of its own (in `out/versions`): `make` installs it from `constraints.txt` without the
lines of transformers and of what transformers itself bounds. What is committed is what runs: a changed tree is refused.
A run with failures is recorded with them, and the command ends with 1.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tomllib
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

from state import ROOT, changed, commit

#: What follows the version of transformers.
FREE = ("transformers", "huggingface_hub", "tokenizers")
SHOWN = ("transformers", "torch", "huggingface_hub", "tokenizers", "peft")
QUIET = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONPATH": str(ROOT)}


def ends() -> dict[str, str]:
    """The two ends of the declared range as requirements; the newest is what pip finds."""
    dependencies = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    (declared,) = (d for d in dependencies if d.startswith("transformers"))
    found = re.search(r">=([\d.]+)", declared)
    assert found, declared
    return {"oldest": f"transformers=={found[1]}", "newest": declared}


def environment(folder: Path, requirement: str) -> Path:
    """Installs the project and its tests; its interpreter."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    kept = [line for line in lines if line.split("==")[0] not in FREE] + [requirement]
    constraints = folder.parent / f"{folder.name}.txt"
    if not constraints.exists() or constraints.read_text().splitlines() != kept:
        constraints.write_text("\n".join(kept) + "\n")
    stamp = folder / ".installed"
    subprocess.run(["make", "-s", f"VENV={folder}", f"CONSTRAINTS={constraints}", str(stamp)], check=True, cwd=ROOT)
    return folder / "bin" / "python"


def run(python: Path, report: Path, workers: int) -> dict[str, object]:
    """Runs the whole suite once: versions, counts, why tests were skipped, and which failed."""
    ask = f"import json, importlib.metadata as m; print(json.dumps({{n: m.version(n) for n in {SHOWN!r}}}))"
    versions = json.loads(subprocess.run([python, "-c", ask], check=True, capture_output=True, text=True).stdout)
    line = subprocess.run([python, "--version"], check=True, capture_output=True, text=True).stdout.split()[1]
    arguments = ["-m", "pytest", "-p", "no:cacheprovider", "-n", str(workers), f"--junitxml={report}"]
    report.unlink(missing_ok=True)
    code = subprocess.run([python, *arguments], cwd=ROOT, env={**os.environ, **QUIET}).returncode
    cases = list(ElementTree.parse(report).iter("testcase"))
    failed = [f"{c.get('classname')}::{c.get('name')}" for c in cases if {"failure", "error"} & {x.tag for x in c}]
    skipped = [str(x.get("message")) for c in cases for x in c if x.tag == "skipped"]
    return {
        "command": f"python {' '.join(a for a in arguments if 'junitxml' not in a)}",
        "versions": {"python": line, **versions},
        "passed": len(cases) - len(set(failed)) - len(skipped),
        "failed": len(set(failed)),
        "skipped": len(skipped),
        "exit status": code,
        **({"failures": sorted(set(failed))} if failed else {}),
        "why skipped": dict(sorted(Counter(skipped).items())),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=("oldest", "newest"))
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--envs", type=Path, default=ROOT / "out" / "versions")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "versions.json")
    args = parser.parse_args()
    if changed():
        parser.error("there are changes that are not committed")
    good = True
    for end, requirement in ends().items():
        if args.only not in (None, end):
            continue
        folder = args.envs.resolve() / end
        found = run(environment(folder, requirement), folder.parent / f"{end}.xml", args.workers)
        good = good and found["exit status"] == 0
        record = json.loads(args.out.read_text()) if args.out.exists() else {}
        args.out.write_text(json.dumps({**record, end: {"commit": commit(), **found}}, indent=1) + "\n")
        print(end, found["versions"], {n: found[n] for n in ("passed", "failed", "skipped")}, flush=True)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
