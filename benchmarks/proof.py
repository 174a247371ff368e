"""Verdicts against numbers: every method of the library on eight architectures, and random well-typed methods.

    python benchmarks/proof.py [--only library|random] [--methods NAME …] [--anew] [--random 2000] [--first 0] [--out …/proof.json]

A "yes" must hold to 1e-9, a "no" must be seen (above 1e-7), in float64 with random tensors; see `tests/proof`. Of a method of the
library also the properties of the grid, each on one of the eight models in turn (`tests/behaviour`), and its text as torch modules
against the evaluator (`tests/placed.py`). The record is written method by method: a run that is stopped goes on where it
was, and measures anew only methods whose text has changed or of which something did not hold (``--anew``: all). Some twenty minutes of one processor.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from state import ROOT, commit

sys.path[:0] = [str(ROOT / p) for p in ("tests", "tests/behaviour", "tests/proof", "tests/zoo")]
#: Where none of the eight models has a method's sites.
ELSE = ("jamba", "clip")
#: Those of several layers; the others have one (an encoder before a decoder one more).
DEEP = dict.fromkeys(("bert_head", "gpt2", "t5", *ELSE), 2)


# ---------------------------------------------------------------- the library


def library(out: Path, methods: Sequence[str], anew: bool) -> dict[str, Any]:
    """The record of every method, those that have one already apart; written after each."""
    import unipelt
    from unipelt.language.record import digest

    texts = {e.name: digest(unipelt.load(e.name)) for e in unipelt.library() if e.kind == "method"}
    known = read(out).get("library", {}).get("each", {})
    each = {n: known[n] for n, text in texts.items() if n in known and known[n]["text"] == text}
    for name, text in texts.items():
        done = name in each and not anew and not wrong(each[name])
        if done or (methods and name not in methods):
            continue
        begun, state = time.process_time(), commit()
        try:
            found = {**verdicts(name), "properties": properties(name), "torch modules": modules(name)}
        except Exception:
            found = {"crashed": traceback.format_exc().splitlines()[-3:]}
        each[name] = {"text": text, "commit": state, "seconds": round(time.process_time() - begun, 1), **found}
        write(out, {"library": summed(each, len(texts))})
        print(f"{name}: {'; '.join(wrong(each[name])) or 'holds'}, {each[name]['seconds']} s", flush=True)
    return summed(each, len(texts))


def verdicts(name: str) -> dict[str, Any]:
    """What is said of a method, and what the judges found on the models that take it."""
    from proof import KINDS, prove
    from tiny import small

    more = [(kind, seed, scale) for seed, scale in ((1, 1.0), (2, 2.0)) for kind in KINDS]
    for kinds in (KINDS, ELSE):
        with tempfile.TemporaryDirectory() as folder:
            found = prove(small(name), kinds, layers=DEEP, more=more, folder=Path(folder))
        if found.idle:
            break
    judged = {v: values for v in found.said if (values := found.found.get(v))}
    shown = {v: max(judged[v].values()) for v in judged if found.said[v] in ("yes", "no")}
    return {
        "models": list(found.idle), "refused": found.refused, "said": found.said, "not judged": [v for v in found.said if v not in judged],
        "worst yes": max((x for v, x in shown.items() if found.said[v] == "yes"), default=0.0),
        "smallest no": min((x for v, x in shown.items() if found.said[v] == "no"), default=None),
        "not finite": found.unstable, "refuted": found.refuted,
    }  # fmt: skip


def properties(name: str) -> dict[str, Any]:
    """Each property of a method on one of the models that take it, and each of these models with some property."""
    from grid import MODELS, blank, in_brief, left_blank, refusal, unmet
    from proof import KINDS
    from properties import PROPERTIES, Case
    from tiny import Bases

    global _BASES
    bases = _BASES = _BASES or Bases()
    cells, empty = [], 0
    for kind in [k for k in KINDS if k in MODELS]:
        case = Case(name, kind, bases)
        if refusal(case) is None:
            left = left_blank(blank(case))
            cells += [(name, kind, p) for p in PROPERTIES if p not in left]
            empty += len(left)
    failed, tried = {}, in_brief(cells)
    for _, kind, p in tried:
        with tempfile.TemporaryDirectory() as folder:
            why = unmet(Case(name, kind, bases, Path(folder)), p)
        if why is not None:
            failed[f"{p} on {kind}"] = why
    return {"tried": len(tried), "of": len(cells), "failed": failed}


_BASES: Any = None


def modules(name: str) -> str:
    """Whether the text as torch modules computes what the evaluator does, or why they are not compared."""
    import placed
    import test_zoo
    from calibrated import batches

    import unipelt

    if any(p.type == "adapters" for p in unipelt.load(name).params):
        return "not compared: it takes functions of trained adapters (`tests/runtime/test_members.py` gives it those)"
    try:
        placed.compare_printed(
            test_zoo.tiny(name), ("bert_labels", "llama", "gpt2", "mamba", "vit", "clip"),
            lambda kind: {"tokenizer": test_zoo.tokenizer, "data": batches(2, kind=kind), "batches": 2},
        )  # fmt: skip
    except unipelt.PeltError as e:
        return f"not compared: {e.diagnostics[0].code} {e.diagnostics[0].message}"
    except Exception as e:
        return f"differ: {type(e).__name__} {' '.join(str(e).split())[:200]}"
    return "equal"


def wrong(entry: dict[str, Any]) -> list[str]:
    """What does not hold of a method."""
    if "crashed" in entry:
        return [f"crashed: {entry['crashed'][-1]}"]
    failed = [f"{p}: {why}" for p, why in entry["properties"]["failed"].items()]
    differ = [entry["torch modules"]] if entry["torch modules"].startswith("differ") else []
    nowhere = [] if entry["models"] else ["no model takes it"]
    return [*entry["refuted"], *failed, *differ, *nowhere]


def summed(each: dict[str, Any], methods: int) -> dict[str, Any]:
    """The whole library's record: totals, and each method's."""
    whole = [e for e in each.values() if "crashed" not in e]
    said: dict[str, Counter[str]] = {}
    for e in whole:
        for verdict, value in e["said"].items():
            said.setdefault(verdict, Counter())[value] += 1
    decided = sum(v[x] for v in said.values() for x in ("yes", "no", "depends"))
    return {
        "methods": methods, "measured": len(each), "commits": sorted({e["commit"] for e in each.values()}),
        "verdicts": {v: dict(c) for v, c in said.items()},
        "share that is yes, no, or depends on an argument": round(decided / max(1, sum(c.total() for c in said.values())), 4),
        "worst yes": max((e["worst yes"] for e in whole), default=0.0),
        "smallest no": min((e["smallest no"] for e in whole if e["smallest no"] is not None), default=None),
        "models": dict(Counter(kind for e in whole for kind in e["models"])),
        "properties": {n: sum(e["properties"][n] for e in whole) for n in ("tried", "of")},
        "torch modules": dict(Counter(e["torch modules"].split(":")[0] for e in whole)),
        "wrong": {n: w for n, e in each.items() if (w := wrong(e))},
        "seconds": round(sum(e["seconds"] for e in each.values()), 1),
        "each": each,
    }  # fmt: skip


# ---------------------------------------------------------------- random methods


def drawn(count: int, out: Path, first: int) -> dict[str, Any]:
    """``count`` random methods that check; how many were drawn for that, and why the others were refused. A run that was stopped
    goes on, where the code is the same."""
    from random_proof import proved

    old = read(out).get("random", {})
    goes_on = old.get("commit") == commit() and old.get("first") == first and "changes" not in commit()
    record = old if goes_on else empty(first)
    begun = time.process_time() - record["seconds"]
    while record["methods"] < count:
        seed = first + record["drawn"]
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
        record["seconds"] = round(time.process_time() - begun, 1)
        if record["drawn"] % 25 == 0:
            write(out, {"random": record})
    record["share that checks"] = round(record["methods"] / record["drawn"], 3)
    return record


def empty(first: int) -> dict[str, Any]:
    return {"commit": commit(), "first": first, "methods": 0, "verdicts": {}, "worst yes": 0.0, "smallest no": None, "models": {},
            "refuted": [], "crashed": [], "refused everywhere": 0, "nothing done": 0, "not finite": 0, "seconds": 0.0, "drawn": 0,
            "refused by the checker": {}}  # fmt: skip


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


# ---------------------------------------------------------------- the record


def read(out: Path) -> dict[str, Any]:
    return json.loads(out.read_text(encoding="utf-8")) if out.exists() else {}


def write(out: Path, record: dict[str, Any]) -> None:
    """A half that was not run keeps its record."""
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(read(out) | record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--random", type=int, default=2000, metavar="COUNT")
    parser.add_argument("--first", type=int, default=0, help="the first random method's number")
    parser.add_argument("--only", choices=("library", "random"))
    parser.add_argument("--methods", nargs="+", default=[], metavar="NAME", help="of the library, these alone")
    parser.add_argument("--anew", action="store_true", help="also what is recorded already")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "proof.json")
    args = parser.parse_args()
    import torch
    import transformers

    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    warnings.simplefilter("error")
    bad = 0
    if args.only != "random":
        found = library(args.out, args.methods, args.anew)
        bad += len(found["wrong"])
        print(json.dumps({n: v for n, v in found.items() if n != "each"}, indent=1))
    if args.only != "library":
        found = drawn(args.random, args.out, args.first)
        write(args.out, {"random": found})
        bad += len(found["refuted"]) + len(found["crashed"])
        print(json.dumps(found, indent=1))
    raise SystemExit(f"{bad} wrong" if bad else 0)


if __name__ == "__main__":
    main()
