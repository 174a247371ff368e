"""What an adapter keeps for the backward pass: bytes, counted, so without noise.

    python benchmarks/memory.py [--layers 4] [--out benchmarks/results/memory.json]

BERT-base width, batch 8 × 128 tokens, float32, dropout as the configuration has it (.1). Counted is each storage that autograd keeps for the backward
pass, once; parameters are not counted.
"""

from __future__ import annotations

import argparse
import copy
import json
import warnings
from pathlib import Path

import torch
from transformers import BertConfig, BertModel

import unipelt

BATCH, TOKENS = 8, 128
METHODS = {
    "lora": ("lora", {}), "(IA)3": ("ia3", {}), "parallel adapter": ("parallel_adapter", {"r": 64}), "prefix": ("prefix_tuning", {"l": 10}),
    "mam": ("mam", {"r": 64, "l": 16}), "unipelt": ("unipelt_apl", {}),
}  # fmt: skip


def kept(model: torch.nn.Module, inputs: dict[str, torch.Tensor]) -> int:
    """The bytes that one forward pass keeps for the backward pass."""
    return sum(s.nbytes() for s in tensors_kept(model, inputs))


def storages(t: torch.Tensor) -> list[torch.UntypedStorage]:
    """Where a tensor's numbers stand; those of a sparse one and their places."""
    parts = (t._indices(), t._values()) if t.is_sparse else (t,)
    return [p.untyped_storage() for p in parts]


def tensors_kept(model: torch.nn.Module, inputs: dict[str, torch.Tensor]) -> list[torch.UntypedStorage]:
    """What one forward pass keeps besides parameters, buffers and inputs, each once."""
    own = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers(), *inputs.values())}
    found: dict[int, torch.UntypedStorage] = {}  # alive, so that no address is used twice

    def pack(t: torch.Tensor) -> torch.Tensor:
        for storage in storages(t):
            if storage.data_ptr() not in own:
                found[storage.data_ptr()] = storage
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        loss = model(**inputs)[0].square().mean()
    loss.backward()
    return [*found.values()]


def models(layers: int) -> dict[str, torch.nn.Module]:
    torch.manual_seed(0)
    config = BertConfig(num_hidden_layers=layers)
    base = BertModel(config, add_pooling_layer=False)
    found: dict[str, torch.nn.Module] = {"full fine-tuning": copy.deepcopy(base)}
    for title, (name, arguments) in METHODS.items():
        found[title] = copy.deepcopy(base)
        unipelt.apply(found[title], unipelt.load(name)(**arguments))
    try:
        from peft import IA3Config, LoraConfig, get_peft_model
    except ImportError:
        print("peft is not installed: not compared")
        return found
    found["peft lora"] = get_peft_model(
        copy.deepcopy(base), LoraConfig(r=8, lora_alpha=16, target_modules=["query", "value"])
    )
    ia3 = IA3Config(target_modules=["key", "value", "intermediate.dense"], feedforward_modules=[])
    found["peft (IA)3"] = get_peft_model(copy.deepcopy(base), ia3)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "memory.json")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    ids = torch.randint(1000, 20000, (BATCH, TOKENS), generator=torch.Generator().manual_seed(0))
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    found = {n: round(kept(m.train(), inputs) / 2**20, 1) for n, m in models(args.layers).items()}
    record = {"torch": torch.__version__, "shape": [BATCH, TOKENS], "layers": args.layers, "MiB": found}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(record, indent=1) + "\n")
    for n, v in found.items():
        print(f"{n:20} {v:7.1f} MiB")


if __name__ == "__main__":
    main()
