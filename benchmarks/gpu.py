"""Tokens a second of training and decoding, and peak memory, on a GPU: base, LoRA, prefix, MAM, UniPELT, and peft's LoRA and prefix.

    python benchmarks/gpu.py [--out benchmarks/results/gpu.json]      # about 1B weights, under four minutes on an H200
    python benchmarks/gpu.py --tiny                                   # the same on a CPU, in seconds

A Llama of random weights in bfloat16. A training step is forward, backward and AdamW's step; the base has no weights to train,
and a gradient flows through all of it. Decoding is `generate` at batch 1 and 32. Each part is measured as it is and under
torch.compile, there with fewer layers. In each round every entry runs once, in a random order, and ratios are taken within a
round; A/A is the base against itself. What there is no time for, or what fails, is named in the record.
"""

from __future__ import annotations

import argparse
import copy
import json
import random
import statistics
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import CompileConfig, LlamaConfig, LlamaForCausalLM

import unipelt

METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "lora": ("lora", {"r": 8}), "prefix": ("prefix_tuning", {"l": 16}), "mam": ("mam", {"r": 64, "l": 16}),
    "unipelt": ("unipelt_apl_causal", {}),
}  # fmt: skip
SIZES = {"layers": 16, "width": 2048, "heads": 32, "groups": 8, "inner": 8192, "words": 32000, "batch": 8, "tokens": 512, "new": 24,
         "rounds": 4, "compiled_layers": 2}  # fmt: skip
TINY = {"layers": 2, "width": 32, "heads": 4, "groups": 2, "inner": 48, "words": 64, "batch": 2, "tokens": 8, "new": 3, "rounds": 2,
        "compiled_layers": 1}  # fmt: skip


def entries(args: argparse.Namespace, layers: int) -> dict[str, torch.nn.Module]:
    torch.manual_seed(0)
    config = LlamaConfig(hidden_size=args.width, num_hidden_layers=layers, num_attention_heads=args.heads,
                         num_key_value_heads=args.groups, intermediate_size=args.inner, vocab_size=args.words,
                         max_position_embeddings=4096, pad_token_id=0, bos_token_id=1, eos_token_id=None)  # fmt: skip
    with torch.device(args.device):
        base = LlamaForCausalLM(config).to(torch.bfloat16)
    found: dict[str, torch.nn.Module] = {"base": base}
    for title, (name, arguments) in METHODS.items():
        found[title] = copy.deepcopy(base)
        unipelt.apply(found[title], unipelt.load(name)(**arguments))
    try:
        from peft import LoraConfig, PrefixTuningConfig, get_peft_model
    except ImportError:
        print("peft is not installed: not compared")
    else:
        lora = LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
        prefix = PrefixTuningConfig(num_virtual_tokens=16, task_type="CAUSAL_LM")
        found |= {
            "peft lora": get_peft_model(copy.deepcopy(base), lora),
            "peft prefix": get_peft_model(copy.deepcopy(base), prefix),
        }
    order = (
        "base",
        "lora",
        "peft lora",
        "mam",
        "unipelt",
        "prefix",
        "peft prefix",
    )  # the last are left out where time is short
    found = {n: found[n] for n in order if n in found}
    for p in base.parameters():
        p.requires_grad_(False)
    base.enable_input_require_grads()
    return found


def ids(args: argparse.Namespace, batch: int, tokens: int) -> torch.Tensor:
    return torch.randint(5, args.words, (batch, tokens), generator=torch.Generator().manual_seed(0)).to(args.device)


def training(model: torch.nn.Module, args: argparse.Namespace, compiled: bool) -> Callable[[], int]:
    """A step, which says how many tokens it read."""
    given = ids(args, args.batch, args.tokens)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=1e-4) if trained else None
    call = torch.compile(model, backend=args.backend, dynamic=False) if compiled else model

    def step() -> int:
        model.train()
        call(input_ids=given, labels=given, use_cache=False).loss.backward()
        if optimiser is not None:
            optimiser.step()
            optimiser.zero_grad()
        return given.numel()

    return step


def decoding(model: torch.nn.Module, args: argparse.Namespace, compiled: bool, batch: int) -> Callable[[], int]:
    """A generation, which says how many tokens it wrote. Compiled: with a static cache, as transformers compiles it."""
    given = ids(args, batch, min(args.tokens, 32))
    how: dict[str, Any] = {"max_new_tokens": args.new, "min_new_tokens": args.new, "do_sample": False}
    if compiled:
        config = CompileConfig(
            backend=args.backend, mode=None if args.device == "cpu" else "reduce-overhead", fullgraph=False
        )
        config._compile_all_devices = True
        how |= {"cache_implementation": "static", "compile_config": config}

    def generate() -> int:
        model.eval()
        with torch.no_grad():
            out = model.generate(input_ids=given, attention_mask=torch.ones_like(given), **how)
        return out.numel() - given.numel()

    return generate


def timed(args: argparse.Namespace, run: Callable[[], int]) -> tuple[float, int]:
    if args.device == "cuda":
        torch.cuda.synchronize()
    begun = time.perf_counter()
    tokens = run()
    if args.device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - begun, tokens


def measured(args: argparse.Namespace, runs: Mapping[str, Callable[[], int]], until: float) -> dict[str, Any]:
    """Tokens a second, ratios of times within a round, and what could not be measured. ``until``: when there is no more time."""
    left_out: dict[str, str] = {}
    memory: dict[str, int] = {}
    ready: dict[str, Callable[[], int]] = {}
    for name, run in runs.items():  # the first calls compile, allocate and warm up, the last tells the memory
        if time.perf_counter() > until:
            left_out[name] = "no time"
            continue
        try:
            run()
            run()
            if args.device == "cuda":
                torch.cuda.reset_peak_memory_stats()
                held = torch.cuda.memory_allocated()
                timed(args, run)
                memory[name] = torch.cuda.max_memory_allocated() - held
            ready[name] = run
        except Exception as problem:
            left_out[name] = f"{type(problem).__name__}: {str(problem).splitlines()[0] if str(problem) else ''}"
    if "base" in ready:
        ready["base again"] = ready["base"]
    order, rng = list(ready), random.Random(0)
    times: dict[str, list[float]] = {n: [] for n in ready}
    tokens: dict[str, int] = {}
    for done in range(args.rounds):
        if done and time.perf_counter() > until:
            break
        rng.shuffle(order)
        for n in order:
            seconds, tokens[n] = timed(args, ready[n])
            times[n].append(seconds)
    pairs = {f"{n} / base": (n, "base") for n in ready if n != "base"}
    pairs |= {f"{n} / peft": (n, f"peft {n}") for n in METHODS}
    return {
        "tokens a second": {n: round(tokens[n] / statistics.median(t), 1) for n, t in times.items()},
        "time, ratios": {
            title: round(statistics.median(x / y for x, y in zip(times[a], times[b])), 3)
            for title, (a, b) in pairs.items() if a in ready and b in ready
        },
        "peak memory beyond what the models hold, MiB": {n: round(b / 2**20, 1) for n, b in memory.items()} or None,
        "rounds": len(next(iter(times.values()), [])),
        "left out": left_out,
    }  # fmt: skip


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tiny", action="store_true", help="two narrow layers, for a CPU")
    for name, value in SIZES.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, help=f"{value}; {TINY[name]} if tiny")
    parser.add_argument("--backend", default="inductor", help="of torch.compile; `none`: nothing is compiled")
    parser.add_argument("--seconds", type=float, default=210, help="after so many nothing more is begun")
    parser.add_argument("--out", type=Path, help="where to write the record")
    args = parser.parse_args(arguments)
    for name, value in (TINY if args.tiny else SIZES).items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    args.device = "cuda" if torch.cuda.is_available() else "cpu"
    if args.device == "cpu" and not args.tiny:
        parser.error("there is no GPU; --tiny runs on a CPU")
    warnings.simplefilter("ignore")
    if args.backend != "none":
        torch._dynamo.config.recompile_limit = 64  # the models share their code, and each compiles it
    begun = time.perf_counter()
    end = begun + args.seconds
    record: dict[str, Any] = {
        "machine": torch.cuda.get_device_name() if args.device == "cuda" else "a CPU",
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "sizes": {n: getattr(args, n) for n in SIZES},
    }
    for compiled in (False, True) if args.backend != "none" else (False,):
        models = entries(args, args.compiled_layers if compiled else args.layers)
        if not compiled:
            record["weights of the base"] = sum(p.numel() for p in models["base"].parameters())
        parts: dict[str, Callable[[torch.nn.Module], Callable[[], int]]] = {
            "training": lambda m, c=compiled: training(m, args, c),
            "decoding, batch 1": lambda m, c=compiled: decoding(m, args, c, 1),
            "decoding, batch 32": lambda m, c=compiled: decoding(m, args, c, 32),
        }
        for i, (part, make) in enumerate(parts.items()):
            now = time.perf_counter()
            until = now + (end - now) / (
                len(parts) - i + (3 if not compiled else 0)
            )  # an equal share of the time that is left
            found = measured(args, {n: make(m) for n, m in models.items()}, until)
            record[f"{part}, {'compiled' if compiled else 'eager'}"] = found
            print(f"\n{part}, {'compiled' if compiled else 'eager'}: tokens a second {found['tokens a second']}\n  time {found['time, ratios']}"
                  f"\n  MiB {found['peak memory beyond what the models hold, MiB']}  left out {found['left out']}")  # fmt: skip
        del models
        torch.compiler.reset()
    record["seconds"] = round(time.perf_counter() - begun, 1)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(record, indent=1) + "\n")
    return record


if __name__ == "__main__":
    main()
