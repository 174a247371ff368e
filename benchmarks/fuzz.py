"""Half a million inputs that nobody would write, and what the static half of the library makes of them.

    python benchmarks/fuzz.py [--inputs 500000] [--seed 1000] [--out benchmarks/results/fuzz.json]

Three quarters are damaged definitions of the library, the rest random sentences of the grammar (`tests/language/fuzzing.py`).
Every one is read, checked and its mistakes rendered; every eighth is also laid out and described. Recorded: what became
of them, which mistakes were found, the slowest, and the memory of the process. The record is written anew every 25,000
inputs, so that a run may be ended early. Inputs that raise or take over a second are kept beside the record.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from state import ROOT, commit

sys.path.insert(0, str(ROOT / "tests" / "language"))
import fuzzing

EVERY = 25_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=500_000)
    parser.add_argument("--seed", type=int, default=1000)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "fuzz.json")
    options = parser.parse_args()

    from rich.progress import track

    sources = [fuzzing.mutants(options.seed), fuzzing.mutants(options.seed + 1), fuzzing.mutants(options.seed + 2),
               fuzzing.sentences(options.seed)]  # fmt: skip
    outcomes, codes, sizes = Counter(), Counter(), []
    slow, failed, slowest, wholly = [], [], 0.0, 0
    begun, state = time.process_time(), commit()

    def record(done: int) -> dict:
        sizes.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
        result = {
            "commit": state, "inputs": done, "seed": options.seed, "described": wholly, "outcomes": dict(outcomes), "raised": len(failed),
            "over a second": len(slow), "slowest, seconds of CPU": round(slowest, 3), "peak MiB at each record": sizes,
            "seconds of CPU": round(time.process_time() - begun), "codes": dict(sorted(codes.items())),
        }  # fmt: skip
        options.out.write_text(json.dumps(result, indent=1) + "\n", "utf-8")
        if failed or slow:
            options.out.with_name(options.out.stem + "-found.json").write_text(
                json.dumps(failed + slow, indent=1) + "\n", "utf-8"
            )
        return result

    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch) / "x.pelt"
        for i in track(range(options.inputs), "inputs", disable=not sys.stderr.isatty()):
            data = next(sources[i % 4])
            took = time.process_time()
            whole = i // 4 % 8 == 0
            wholly += whole
            try:
                outcomes[fuzzing.judge(data, place, whole, codes)] += 1
            except Exception as e:
                failed.append({"input": data.decode("utf-8", "backslashreplace"), "raised": f"{type(e).__name__}: {e}"})
            took = time.process_time() - took
            slowest = max(slowest, took)
            if took > 1:
                slow.append({"input": data.decode("utf-8", "backslashreplace"), "seconds": round(took, 2)})
            if (i + 1) % EVERY == 0:
                record(i + 1)
    print(json.dumps(record(options.inputs), indent=1))


if __name__ == "__main__":
    main()
