"""The suite on the oldest and on the newest version of transformers that `pyproject.toml` allows.

    python benchmarks/versions.py [--only oldest] [--workers 2] [--out benchmarks/results/versions.json]
    python benchmarks/versions.py --tests tests/anatomy/test_find.py …      these files alone, in minutes

Each version gets an environment of its own (in `out/versions`): `make` installs it from `constraints.txt` without the
lines of transformers and of what transformers itself bounds. With ``--tests`` it gets a folder with transformers and what it needs, which
comes before the packages that are installed here; the record keeps that by itself (`some tests`). What is committed is what runs: a changed tree is refused.
A run with failures is recorded with them, and the command ends with 1.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from collections import Counter
from collections.abc import Sequence
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


def _stem(package: Path) -> str:
    """What a package's folder and that of its metadata have in common."""
    return package.name.partition("-")[0].split(".")[0]


def beside(folder: Path, requirement: str) -> Path:
    """Installs transformers and what it bounds into a folder of its own; the rest is what is installed here."""
    stamp = folder / ".installed"
    if not stamp.exists():
        folder.mkdir(parents=True, exist_ok=True)
        pip = [sys.executable, "-m", "pip", "install", "-q", "--upgrade", "--target", str(folder)]
        subprocess.run([*pip, requirement, *FREE[1:]], check=True)
        here = {_stem(p) for p in Path(sysconfig.get_path("purelib")).iterdir()} - set(FREE)
        for package in [
            p for p in folder.iterdir() if _stem(p) in here
        ]:  # what has one version for all stays as it is here
            shutil.rmtree(package, ignore_errors=True) if package.is_dir() else package.unlink()
        stamp.touch()
    return folder


def run(
    python: Path, report: Path, workers: int, tests: Sequence[str] = (), first: Path | None = None
) -> dict[str, object]:
    """Runs the whole suite or some files of it once: versions, counts, why tests were skipped, and which failed. ``first``: a folder
    whose packages come before others."""
    env = {
        **os.environ,
        **QUIET,
        "PYTHONPATH": os.pathsep.join([*([str(first)] if first else []), QUIET["PYTHONPATH"]]),
    }
    ask = f"import json, importlib.metadata as m; print(json.dumps({{n: m.version(n) for n in {SHOWN!r}}}))"
    versions = json.loads(
        subprocess.run([python, "-c", ask], check=True, capture_output=True, text=True, env=env).stdout
    )
    line = subprocess.run([python, "--version"], check=True, capture_output=True, text=True).stdout.split()[1]
    arguments = ["-m", "pytest", "-p", "no:cacheprovider", "-n", str(workers), f"--junitxml={report}", *tests]
    report.unlink(missing_ok=True)
    code = subprocess.run([python, *arguments], cwd=ROOT, env=env).returncode
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
    parser.add_argument("--tests", nargs="+", default=[], help="these files alone, beside what is installed here")
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
        report = folder.parent / f"{end}.xml"
        if args.tests:
            found = run(
                Path(sys.executable),
                report,
                args.workers,
                args.tests,
                beside(folder.with_name(f"{end}-beside"), requirement),
            )
        else:
            found = run(environment(folder, requirement), report, args.workers)
        good = good and found["exit status"] == 0
        record = json.loads(args.out.read_text()) if args.out.exists() else {}
        kept = record.setdefault("some tests", {}) if args.tests else record
        kept[end] = {"commit": commit(), **found}
        args.out.write_text(json.dumps(record, indent=1) + "\n")
        print(end, found["versions"], {n: found[n] for n in ("passed", "failed", "skipped")}, flush=True)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
