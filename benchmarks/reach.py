"""How far the methods reach across the architectures that transformers can build.

    python benchmarks/reach.py [--only RE] [--kinds text vision] [--used] [--again] [--jobs 2] [--limit 90]
    python benchmarks/reach.py --tables        the record's tables again
    python benchmarks/reach.py --readme        the table of `README.md` as the record has it
    python benchmarks/reach.py --peft          LoRA beside live peft, on the architectures that people use

A small model of each type, with random weights, in a forked child with a time limit. Each method is planned on meta and
applied with weights; with random tensors the output changes; `disabled` and `remove` give the base bit for bit; decoding
with a cache gives what one pass gives (causal language models); merged weights give what the adapter gave, where the plan
says that they can. The record has an entry for each type; a run goes on with what it lacks.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import argparse
import json
import re
import signal
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import peft
import torch
import transformers
import transformers.modeling_utils
from reach_model import surveyed
from reach_peft import beside
from reach_tables import beside_table, tables, written
from reach_types import KINDS, LONGER, USED, Type, kind, types
from state import commit

import unipelt
import unipelt.compiler.planner
import unipelt.runtime.attach

#: How many times as long a task may take by the clock.
WAITING = 20
OUT = Path(__file__).parent / "results" / "reach.json"


def child(task: Callable[[Type], dict[str, Any]], item: Type, path: Path, limit: int) -> int:
    """The process that does a task and writes what it found; it is ended by itself after ``limit`` seconds of a core, which it may
    share with others, or where it waits for ever."""
    pid = os.fork()
    if pid:
        return pid
    signal.setitimer(signal.ITIMER_PROF, limit)
    signal.alarm(WAITING * limit)
    silent = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, 1)
    os.dup2(silent, 2)
    try:
        found = task(item)
    except BaseException as e:
        found = {
            "class": item.cls,
            "kind": kind(item),
            "crashed": f"{type(e).__name__}: {' '.join(str(e).split())[:200]}",
        }
    path.write_text(json.dumps(found), encoding="utf-8")
    os._exit(0)


def each(
    task: Callable[[Type], dict[str, Any]],
    items: Sequence[Type],
    jobs: int,
    limit: int,
    keep: Callable[[Type, dict[str, Any]], None],
) -> None:
    """Does a task for every item, ``jobs`` at a time."""
    running: dict[int, tuple[Type, Path]] = {}
    left = list(items)
    with tempfile.TemporaryDirectory() as folder:
        while left or running:
            while left and len(running) < jobs:
                item = left.pop(0)
                path = Path(folder) / f"{len(left)}.json"
                running[child(task, item, path, limit * LONGER.get(item.name, 1))] = (item, path)
            pid, status, used = os.wait4(-1, 0)
            item, path = running.pop(pid)
            if path.exists() and status == 0:
                found = json.loads(path.read_text("utf-8"))
            else:
                why = (
                    f"longer than {limit * LONGER.get(item.name, 1)} s"
                    if os.WIFSIGNALED(status) and os.WTERMSIG(status) in (signal.SIGPROF, signal.SIGALRM)
                    else f"ended with {status}"
                )
                found = {"class": item.cls, "kind": kind(item), "crashed": why}
            keep(item, {**found, "seconds": round(used.ru_utime + used.ru_stime, 1)})


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--only", default="", metavar="RE", help="types whose name has this somewhere")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--used", action="store_true", help="the architectures that people use")
    parser.add_argument("--again", action="store_true", help="those that the record has, too")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument(
        "--limit",
        type=int,
        default=90,
        help="seconds of a core for each type; more where `reach_types.LONGER` says why",
    )
    parser.add_argument("--peft", action="store_true", help="LoRA beside live peft")
    parser.add_argument("--tables", action="store_true", help="nothing but the record's tables")
    parser.add_argument("--readme", action="store_true", help="write the table of README.md, and measure nothing")
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    record = json.loads(args.out.read_text("utf-8")) if args.out.exists() else {"types": {}, "peft": {}}
    part = "peft" if args.peft else "types"
    done: dict[str, Any] = record[part]
    wanted = [t for t in types() if re.search(args.only, t.name) and (args.again or t.name not in done) and kind(t) in args.kinds
              and (t.name in USED or not (args.used or args.peft))]  # fmt: skip

    def keep(item: Type, found: dict[str, Any]) -> None:
        done[item.name] = {**found, "commit": state}
        print(
            f"{len(done):4} {item.name}: {found.get('crashed') or found.get('not run') or found.get('unbuilt') or 'done'}",
            flush=True,
        )
        write(args.out, record)

    if args.readme:
        page = Path(__file__).parent / "README.md"
        page.write_text(written(page.read_text("utf-8"), record["types"]), encoding="utf-8")
        return 0
    if not args.tables:
        state = commit()
        record |= {"torch": torch.__version__, "transformers": transformers.__version__, "peft version": peft.__version__,
                   "unipelt": unipelt.__version__}  # fmt: skip
        each(beside if args.peft else surveyed, wanted, args.jobs, args.limit, keep)
    print(
        beside_table(record["peft"])
        if args.peft
        else tables({n: t for n, t in record["types"].items() if t["kind"] in args.kinds})
    )
    return 0


def write(path: Path, record: Mapping[str, Any]) -> None:
    """The record, sorted, whole at every moment."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_suffix(".new")
    new.write_text(json.dumps(record, indent=1, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")
    new.replace(path)


if __name__ == "__main__":
    sys.exit(main())
