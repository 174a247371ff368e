"""Step time and memory of the library's methods beside peft's of the same kind, interleaved, with an A/A control.

    python benchmarks/zoo.py [--only fourierft vera] [--rounds 5] [--out benchmarks/results/zoo.json]

BERT-base width, 4 layers, batch 4 × 64 tokens, at the query and value projections unless said; forward and backward, one thread. In
each round every entry takes one step in turn, ratios are taken within a round and their median is reported; the time is the
processor's, which other jobs on the machine disturb less than they do the clock. A/A is peft's model against itself: its distance
from 1 is the noise. Counted, so without noise, are what autograd keeps for the backward pass (parameters not counted), what a step
writes besides what the base's writes, in how many operators, and the frozen numbers that are stored beside the base.
Pairs that are recorded already are not run again; `--only` runs its own anew. `--table` prints the record and runs nothing.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import torch
from memory import kept, storages
from state import commit
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import BertConfig, BertModel

import unipelt

BATCH, TOKENS, LAYERS = 4, 64, 4
AT = ["query", "value"]
WEIGHTS = {"at": "[attn.q.weight, attn.v.weight]"}  # of methods whose own sites are others
PROJECTIONS = {"at": "[attn.q, attn.v]"}


def of(config: str, **arguments: Any) -> Callable[[], peft.PeftConfig]:
    """A configuration of peft by the name of its class, at query and value."""
    return lambda: getattr(peft, config)(target_modules=AT, **arguments)


#: A method of the library with its arguments, and peft's configuration of the same size.
PAIRS: dict[str, tuple[dict[str, Any], Callable[[], peft.PeftConfig]]] = {
    "lora": ({}, of("LoraConfig", r=8, lora_alpha=16)),
    "dora": ({"r": 8, "alpha": 16.0, **WEIGHTS}, of("LoraConfig", r=8, lora_alpha=16, use_dora=True)),
    "pissa": ({"r": 8}, of("LoraConfig", r=8, init_lora_weights="pissa")),
    "adalora": ({}, of("AdaLoraConfig", init_r=12, target_r=8, total_step=100)),
    "loha": ({}, of("LoHaConfig", r=8, alpha=8)),
    "lokr": ({"f": 24}, of("LoKrConfig", r=8, alpha=8)),
    "hira": (WEIGHTS, of("HiraConfig", r=32)),
    "oft": ({}, of("OFTConfig", oft_block_size=32, r=0, use_cayley_neumann=False)),
    "oft_v2": ({"k": 4, **PROJECTIONS}, of("OFTConfig", oft_block_size=32, r=0)),
    "boft": ({}, of("BOFTConfig", boft_block_size=8, boft_n_butterfly_factor=2)),
    "hra": ({}, of("HRAConfig", r=8)),
    "road": ({}, of("RoadConfig", group_size=64)),
    "miss": ({}, of("MissConfig", r=64)),
    "c3a": ({"b": 128}, of("C3AConfig", block_size=128)),
    "fourierft": ({}, of("FourierFTConfig", n_frequency=1000)),
    "waveft": ({}, of("WaveFTConfig", n_frequency=2592)),
    "vera": ({}, of("VeraConfig", r=256)),
    "vb_lora": ({}, of("VBLoRAConfig", r=4, num_vectors=256, vector_length=256)),
    "gralora": ({}, of("GraloraConfig", r=32)),
    "delora": ({}, of("DeloraConfig", r=8)),
    "shira": ({}, of("ShiraConfig", r=8)),
    "shira_r": ({"r": 8}, of("ShiraConfig", r=8)),
    "psoft": ({}, of("PsoftConfig", r=32)),
    "lily": ({}, of("LilyConfig", r=32, num_B=2, stride_A=1)),
    "glora": ({}, of("GloraConfig", r=4)),
    "deft": ({}, of("DeftConfig", r=8)),
    "peanut": ({}, of("PeanutConfig", r=32, depth=1)),
    "tiny_lora": ({}, of("TinyLoraConfig", r=2, u=64)),
    "super_tuning": ({}, of("SupertuningConfig", sparsity=0.99)),
    "ia3": ({}, lambda: peft.IA3Config(target_modules=["key", "value", "intermediate.dense"], feedforward_modules=[])),
    "ln_tuning": ({}, lambda: peft.LNTuningConfig(target_modules=["LayerNorm"])),
}


def models(name: str, base: torch.nn.Module) -> dict[str, torch.nn.Module]:
    arguments, config = PAIRS[name]
    ours = copy.deepcopy(base)
    unipelt.apply(ours, unipelt.load(name, arguments=arguments))
    return {"ours": ours, "peft": (p := peft.get_peft_model(copy.deepcopy(base), config())), "peft again": p}


class Written(TorchDispatchMode):
    """Counts the bytes of what operators write anew, and the operators. Views write nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = self.operators = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        given = {s.data_ptr() for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor) for s in storages(t)}
        made = [t for t in tree_leaves(result) if isinstance(t, torch.Tensor)]
        new = {s.data_ptr(): s.nbytes() for t in made for s in storages(t) if s.data_ptr() not in given}
        self.bytes += sum(new.values())
        self.operators += bool(new)
        return result


def step(model: torch.nn.Module, inputs: dict[str, torch.Tensor]) -> None:
    model(**inputs)[0].square().mean().backward()
    for p in model.parameters():
        p.grad = None


def written(model: torch.nn.Module, inputs: dict[str, torch.Tensor]) -> Written:
    with Written() as count:
        step(model, inputs)
    return count


def floor(base: torch.nn.Module, inputs: dict[str, torch.Tensor]) -> Written:
    """What a step of the frozen base writes where the gradient goes through all of it."""
    model = copy.deepcopy(base).requires_grad_(False)
    model.embeddings.register_forward_hook(lambda module, args, output: output.detach().requires_grad_())
    return written(model, inputs)


def frozen(model: torch.nn.Module, base: torch.nn.Module) -> int:
    """Bytes that are stored and neither trained nor the base's."""
    stored = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes()
              for t in (*model.parameters(), *model.buffers()) if not t.requires_grad}  # fmt: skip
    return sum(stored.values()) - sum(t.untyped_storage().nbytes() for t in (*base.parameters(), *base.buffers()))


def measured(name: str, base: torch.nn.Module, inputs: dict[str, torch.Tensor], rounds: int) -> dict[str, Any]:
    found = models(name, base)
    times: dict[str, list[float]] = {n: [] for n in found}
    for r in range(rounds + 1):
        for n, model in found.items():
            begun = time.process_time()
            step(model, inputs)
            if r:  # the first round warms up
                times[n].append(time.process_time() - begun)

    def ratio(a: str, b: str) -> float:
        return round(statistics.median(x / y for x, y in zip(times[a], times[b])), 3)

    trained = {n: sum(p.numel() for p in m.parameters() if p.requires_grad) for n, m in found.items()}
    both = ("ours", "peft")
    least, counts = floor(base, inputs), {n: written(found[n], inputs) for n in both}
    return {
        "step to peft": ratio("ours", "peft"), "A/A": ratio("peft again", "peft"), "rounds": rounds,
        "MiB kept": {n: round(kept(found[n], inputs) / 2**20, 1) for n in both},
        "MiB written": {n: round((counts[n].bytes - least.bytes) / 2**20, 1) for n in both},
        "operators": {n: counts[n].operators - least.operators for n in both},
        "MiB frozen": {n: round(frozen(found[n], base) / 2**20, 2) for n in both},
        "trained": {n: trained[n] for n in both}, "commit": commit(),
    }  # fmt: skip


def table(record: dict[str, Any]) -> str:
    lines = ["| method | step to peft | A/A | MiB kept | peft | MiB written | peft | operators | peft | MiB frozen | peft |",
             "|---|---|---|---|---|---|---|---|---|---|---|"]  # fmt: skip
    for name, r in record.items():
        cells = [
            f"{r[k][n]:,}" for k in ("MiB kept", "MiB written", "operators", "MiB frozen") for n in ("ours", "peft")
        ]
        lines.append(f"| `{name}` | {r['step to peft']:.2f} | {r['A/A']:.2f} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "zoo.json")
    parser.add_argument("--table", action="store_true")
    args = parser.parse_args()
    if args.table:
        print(table(json.loads(args.out.read_text())))
        return
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = BertConfig(num_hidden_layers=LAYERS, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    base = BertModel(config, add_pooling_layer=False)
    ids = torch.randint(1000, 20000, (BATCH, TOKENS), generator=torch.Generator().manual_seed(0))
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    record: dict[str, Any] = json.loads(args.out.read_text()) if args.out.exists() else {}
    there = {e.name for e in unipelt.library() if e.kind == "method"}
    for name in PAIRS:
        if name not in there or (args.only and name not in args.only) or (not args.only and name in record):
            continue
        try:
            record[name] = measured(name, base, inputs, args.rounds)
        except Exception as e:
            print(f"{name}: {type(e).__name__}: {e}", flush=True)
            continue
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(record, indent=1) + "\n")
        print(table({name: record[name]}).splitlines()[-1], flush=True)
    missing = sorted(set(PAIRS) - there)
    if missing:
        print(f"no methods of the library: {', '.join(missing)}")


if __name__ == "__main__":
    main()
