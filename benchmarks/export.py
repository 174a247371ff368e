"""Every method of the library on tiny models, exported: the largest difference to the model.

    python benchmarks/export.py [--kinds bert_head gpt2 …] [--onnx]

By torch.export, and with --onnx by onnxruntime from the ONNX file too, which takes some three times as long. Rows and tokens
are free: one batch is traced, and padded ones of three other sizes are compared. A figure is a share of the largest entry
where that is above 1; a code says why a method has no place on the model. Kinds that are not named keep their record.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "behaviour")]

from tiny import build, put  # noqa: E402

import unipelt  # noqa: E402
from unipelt.runtime.exporting import evaluating, trace  # noqa: E402

KINDS = ("bert_head", "gpt2", "llama", "t5", "vit_head")
METHODS = [e.name for e in unipelt.library() if e.kind == "method"]


def look(kind: str, method: str, onnx: bool) -> dict[str, Any] | str:
    """The largest differences, or why there are none."""
    model = build(kind, layers=1)  # layers are alike
    try:
        put(model, method)
    except unipelt.PeltError as e:
        return e.diagnostics[0].code
    found: dict[str, Any] = {}
    try:
        with evaluating(model):
            traced = trace(model)
            program = traced.program.module()
            found["torch.export"] = traced.apart(lambda batch: program(*batch.values()))[0]
            if onnx:
                with tempfile.TemporaryDirectory() as folder:
                    found["onnx"] = traced.write(Path(folder) / "model.onnx")
    except unipelt.PeltError as e:
        found["failed"] = e.diagnostics[0].message
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "export.json")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--onnx", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    record = json.loads(options.out.read_text("utf-8")) if options.out.is_file() else {}
    for kind in options.kinds:
        record[kind] = {}
        for method in METHODS:
            record[kind][method] = look(kind, method, options.onnx)
            options.out.write_text(json.dumps(record, indent=1) + "\n", "utf-8")
    cells = [cell for row in record.values() for cell in row.values()]
    for way in ("torch.export", "onnx"):
        found = [cell[way] for cell in cells if isinstance(cell, dict) and way in cell]
        if found:
            print(f"{way}: {len(found)} cells, to {max(found):.1e}")
    failed = [cell["failed"] for cell in cells if isinstance(cell, dict) and "failed" in cell]
    print(
        f"{len(failed)} failed; {sum(isinstance(cell, str) for cell in cells)} have no place on the model",
        *failed,
        sep="\n",
    )


if __name__ == "__main__":
    main()
