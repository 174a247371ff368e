"""What an adapter costs where arithmetic is cheap: one token through a small model, and 64 tokens with a cache.

    python benchmarks/overhead.py [--rounds 60] [--out benchmarks/results/overhead.json]

A tiny Llama of eight layers. In each round every entry runs once, in a random order, so that a drift of the machine meets
all alike; ratios of the thread's processor time are taken within a round and their median is reported. Where a model lies in memory costs a
hundredth or two, so there are several copies of each, which take turns. A/A is the base against itself: its distance from 1 is the noise. Beside peft with the same rows, a bare hook with the same two products, the least that LoRA can cost, and UniPELT
written by hand.
With ``--rounds 0`` nothing is timed: torch's operators and calls of Python functions are counted, which has no noise, and put into the record.
"""

from __future__ import annotations

import argparse
import copy
import json
import random
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import LlamaConfig, LlamaForCausalLM

from by_hand import by_hand

import unipelt

ALL = "[attn.q, attn.k, attn.v, attn.o, ffn.up, ffn.gate, ffn.down]"
METHODS = {"lora": ("lora", {}), "lora everywhere": ("lora", {"at": ALL}), "(IA)3": ("ia3", {}), "prefix": ("prefix_tuning", {"l": 10}),
           "parallel adapter": ("parallel_adapter", {"r": 8}), "mam": ("mam", {"r": 16, "l": 8}), "unipelt": ("unipelt_apl_causal", {})}  # fmt: skip
LAYERS = ["q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "gate_proj", "down_proj"]


def base() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(hidden_size=64, num_hidden_layers=8, num_attention_heads=4, num_key_value_heads=4, intermediate_size=128, vocab_size=256,
                         pad_token_id=0, eos_token_id=None, bos_token_id=1)  # fmt: skip
    return LlamaForCausalLM(config).eval()


def hooked(model: LlamaForCausalLM) -> LlamaForCausalLM:
    """LoRA at q and v as a bare hook on each."""
    for layer in model.model.layers:
        for module in (layer.self_attn.q_proj, layer.self_attn.v_proj):
            A, B = torch.randn(module.in_features, 8) * 0.02, torch.zeros(8, module.out_features)
            module.register_forward_hook(lambda m, args, out, A=A, B=B: torch.add(out, args[0] @ A @ B, alpha=2.0))
    return model


def peft_models(model: LlamaForCausalLM) -> dict[str, torch.nn.Module]:
    try:
        from peft import IA3Config, LoraConfig, PrefixTuningConfig, get_peft_model
    except ImportError:
        print("peft is not installed: not compared")
        return {}
    configs = {
        "lora": LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"]),
        "lora everywhere": LoraConfig(r=8, lora_alpha=16, target_modules=LAYERS),
        "(IA)3": IA3Config(target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"]),
        "prefix": PrefixTuningConfig(num_virtual_tokens=10, task_type="CAUSAL_LM"),
    }
    return {f"peft {n}": get_peft_model(copy.deepcopy(model), c).eval() for n, c in configs.items()}


def made(plain: LlamaForCausalLM) -> dict[str, torch.nn.Module]:
    """A copy for each entry."""
    models: dict[str, torch.nn.Module] = {
        "base": copy.deepcopy(plain),
        "base again": copy.deepcopy(plain),
        "bare hook": hooked(copy.deepcopy(plain)),
        "unipelt by hand": by_hand(copy.deepcopy(plain)),
    }
    for title, (name, arguments) in METHODS.items():
        model = copy.deepcopy(plain)
        unipelt.apply(model, unipelt.load(name)(**arguments))
        models[title] = model.eval()
    return models | peft_models(plain)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--generate", type=int, default=64, help="tokens of a generation; 0: none")
    parser.add_argument("--copies", type=int, default=3, help="of each model")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "overhead.json")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    plain = base()
    models: dict[str, list[torch.nn.Module]] = {}
    for _ in range(args.copies if args.rounds else 1):
        for title, m in made(plain).items():
            models.setdefault(title, []).append(m)
    ids = torch.tensor([[5]])
    if not args.rounds:
        record = json.loads(args.out.read_text()) if args.out.exists() else {}
        record["counts"] = counted({n: m[0] for n, m in models.items()}, lambda m: m(input_ids=ids, use_cache=False))
        args.out.write_text(json.dumps(record, indent=1) + "\n")
        for n, v in record["counts"].items():
            print(f"{n:26} {v['operators']:6.1f} operators {v['calls']:6.1f} calls for each layer, beside the base's")
        return
    record = {"machine": {"threads": 1, "torch": torch.__version__}, "rounds": args.rounds, "copies": args.copies,
              "one token": measured(models, lambda m: m(input_ids=ids, use_cache=False), args.rounds, 5)}  # fmt: skip
    if args.generate:

        def run(m: torch.nn.Module) -> None:
            m.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=args.generate,
                min_new_tokens=args.generate,
                do_sample=False,
            )

        record["generate"] = measured(models, run, max(args.rounds // 3, 3), 1)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(record, indent=1) + "\n")
    for job in ("one token", "generate"):
        for n, v in record.get(job, {}).items():
            print(f"{job:10} {n:26} {v['median']:7.3f}  ({v['low']:.2f}–{v['high']:.2f})")


class Operators(TorchDispatchMode):
    """Counts what reaches torch's kernels, views among it."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += 1
        return function(*args, **(kwargs or {}))


@torch.no_grad()
def counted(
    models: dict[str, torch.nn.Module], run: Callable[[torch.nn.Module], object]
) -> dict[str, dict[str, float]]:
    """Operators and calls of Python functions in one pass, for each layer, less those of the base."""
    found = {}
    for n, m in models.items():
        for _ in range(3):  # what is computed once and kept is there
            run(m)
        with Operators() as operators:
            run(m)
        calls = [0]

        def saw(frame: object, event: str, argument: object, calls: list[int] = calls) -> None:
            calls[0] += event == "call"

        sys.setprofile(saw)
        run(m)
        sys.setprofile(None)
        found[n] = (operators.count, calls[0])
    layers = models["base"].config.num_hidden_layers
    least = found.pop("base")
    return {
        n: {k: round((a - b) / layers, 1) for k, a, b in zip(("operators", "calls"), v, least, strict=True)}
        for n, v in found.items()
    }


@torch.no_grad()
def measured(
    models: dict[str, list[torch.nn.Module]], run: Callable[[torch.nn.Module], object], rounds: int, repeats: int
) -> dict[str, dict[str, float]]:
    """Ratios within a round: to the base, and to peft and the bare hook where they have the row."""
    order, rng = list(models), random.Random(0)
    times: dict[str, list[float]] = {n: [] for n in models}
    copies = len(models["base"])
    turns: dict[str, list[int]] = {}
    for r in range(rounds + 2 * copies):
        rng.shuffle(order)
        if r % copies == 0:  # which copies meet in a round differs
            turns = {n: rng.sample(range(copies), copies) for n in models}
        for n in order:
            m = models[n][turns[n][r % copies]]
            begun = time.thread_time()
            for _ in range(repeats):
                run(m)
            if r >= 2 * copies:  # the first rounds warm up
                times[n].append(time.thread_time() - begun)
    pairs = {n: (n, "base") for n in models if n != "base"}
    pairs |= {f"{n} / peft": (n, f"peft {n}") for n in METHODS if f"peft {n}" in models}
    pairs |= {"lora / bare hook": ("lora", "bare hook"), "unipelt / by hand": ("unipelt", "unipelt by hand")}
    found = {}
    for title, (a, b) in pairs.items():
        ratios = sorted(x / y for x, y in zip(times[a], times[b]))
        quarter = len(ratios) // 4
        found[title] = {
            "median": round(statistics.median(ratios), 3),
            "low": round(ratios[quarter], 3),
            "high": round(ratios[-1 - quarter], 3),
        }
    return found


if __name__ == "__main__":
    main()
