"""What a batch costs whose eight examples have a LoRA each, beside one LoRA for all: Llama of 6 layers, width 512, random weights.

    python benchmarks/mixed.py [--rounds 15] [--requests 10000] [--out benchmarks/results/mixed.json]

Passes of 8 × 64 tokens alternate; the same adapter for all is run twice, as the A/A control; peft's `adapter_names` beside peft's one. The
adapters are attached one by one, and held in banks of 10, 100 and 1,000. Then eight threads ask a bank of 1,000 LoRAs of rank 8
with 64 slots, while another thread adds, replaces and evicts, until ``--requests`` are answered: answers that are not those of a version of
the adapter are wrong. A request for an adapter that is evicted at that moment is told so, and counted apart.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import threading
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import peft
import torch
from torch import nn
from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM

import unipelt

N = 8
BANKS = (10, 100, 1000)


def base() -> nn.Module:
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=2000, hidden_size=512, intermediate_size=1376, num_hidden_layers=6, num_attention_heads=8
        )
    ).eval()


def random(states: dict[str, torch.Tensor], seed: int) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    return {n: t + 0.02 * torch.randn(t.shape, generator=g) for n, t in states.items()}


def passes(rounds: int) -> dict[str, float]:
    """Ratios of passes of one batch."""
    ids = torch.randint(3, 2000, (N, 64), generator=torch.Generator().manual_seed(1))
    lora = unipelt.load("lora")
    ours = base()
    for i in range(N):
        unipelt.apply(ours, lora, name=f"a{i}", seed=i)
    theirs: Any = peft.get_peft_model(base(), peft.LoraConfig(r=8, target_modules=["q_proj", "v_proj"]), "a0")
    for i in range(1, N):
        theirs.add_adapter(f"a{i}", peft.LoraConfig(r=8, target_modules=["q_proj", "v_proj"]))
    theirs.eval()
    names = [f"a{i}" for i in range(N)]
    own = unipelt.state_dict(ours, "a0")

    def used(model: nn.Module, *which: Any) -> Callable[[], Any]:
        def run() -> Any:
            with unipelt.using(model, *which):
                return model(ids)

        return run

    def one_by_one() -> None:
        for i, n in enumerate(names):
            with unipelt.using(ours, n):
                ours(ids[i : i + 1])

    runs = {
        "one": used(ours, "a0"), "one again": used(ours, "a0"), "mixed": used(ours, names), "one by one": one_by_one,
        "peft, one": lambda: theirs(ids), "peft, mixed": lambda: theirs(ids, adapter_names=names),
    }  # fmt: skip
    lookups: dict[str, Callable[[], Any]] = {}

    def named(model: nn.Module, which: list[str]) -> Callable[[], Any]:
        def run() -> None:
            for _ in range(100):
                with unipelt.using(model, which):
                    pass

        return run

    with tempfile.TemporaryDirectory() as folder:
        unipelt.save(ours, Path(folder) / "a", "a0")
        for size in BANKS:
            model = base()
            bank = unipelt.bank(model, lora, slots=64)
            for i in range(size):
                bank.add(f"b{i}", Path(folder) / "a") if i >= N else bank.add(f"b{i}", random(own, i))
            last = [f"b{i}" for i in range(N)]
            runs[f"bank of {size:,}"] = used(model, last)
            lookups[f"lookup in a bank of {size:,}"] = named(model, last)
        times: dict[str, list[float]] = {n: [] for n in (*runs, *lookups)}
        with torch.no_grad():
            for r in range(rounds + 2):
                for n, f in (*runs.items(), *lookups.items()):
                    start = time.perf_counter()
                    f()
                    if r > 1:
                        times[n].append(time.perf_counter() - start)

    def share(a: str, b: str) -> float:
        return statistics.median(x / y for x, y in zip(times[a], times[b]))

    return {
        "throughput of mixed, to one adapter for all": share("one", "mixed"), "A/A": share("one", "one again"),
        "throughput of mixed, to one by one": share("one by one", "mixed"), "peft: mixed, to one": share("peft, one", "peft, mixed"),
        "mixed, to peft's mixed": share("peft, mixed", "mixed"),
        **{f"throughput of eight from a bank of {n:,}, to one adapter for all": share("one", f"bank of {n:,}") for n in BANKS},
        **{f"lookup of eight in a bank of {n:,}, to one of 10": share(f"lookup in a bank of {n:,}", "lookup in a bank of 10") for n in BANKS},
        "lookup of eight in a bank of 1,000, in µs": statistics.median(times["lookup in a bank of 1,000"]) * 1e4,
    }  # fmt: skip


def traffic(requests: int, adapters: int = 1000, slots: int = 64, kinds: int = 50) -> dict[str, float]:
    """Eight threads ask a bank, one changes it. What an adapter answers was computed before, by itself."""
    torch.manual_seed(0)
    config = BertConfig(
        hidden_size=64, num_hidden_layers=2, num_attention_heads=2, intermediate_size=128, vocab_size=100
    )
    twin, model = (BertModel(config).eval() for _ in range(2))
    model.load_state_dict(twin.state_dict())
    lora, x = unipelt.load("lora"), torch.arange(3, 19)[None]
    unipelt.apply(twin, lora, name="one")
    own = {n: t.clone() for n, t in unipelt.state_dict(twin, "one").items()}
    answers, pool = [], []
    for k in range(kinds):
        pool.append({n: t * 5 for n, t in random(own, k).items()})
        unipelt.remove(twin, "one")
        unipelt.apply(twin, lora, name="one")
        with torch.no_grad():
            for n, t in unipelt.state_dict(twin, "one").items():  # the adapter's own tensors
                t.copy_(pool[k][n])
            answers.append(twin(x)[0][0].clone())
    with tempfile.TemporaryDirectory() as folder, unipelt.bank(model, lora, slots=slots, folder=folder) as bank:
        now = {f"u{i}": i % kinds for i in range(adapters)}
        for n, k in now.items():
            bank.add(n, pool[k])
        held, wrong, served, away, stop = bank.bytes, [], [], [], threading.Event()
        changes = 0

        def change() -> None:
            nonlocal changes
            while not stop.is_set():
                n = f"u{changes * 13 % adapters}"
                new = pool[(now[n] + 1) % kinds]
                if changes % 4 == 3:
                    bank.evict(n)
                    bank.add(n, new)
                else:
                    bank.replace(n, new)
                now[n] += 1
                changes += 1

        def ask(k: int) -> None:
            g = torch.Generator().manual_seed(k)
            answered = 0
            while answered < requests // 8:
                names = [f"u{i}" for i in (torch.rand(4, generator=g) ** 3 * adapters).long().tolist()]
                before = [now[n] for n in names]
                try:
                    with torch.no_grad(), unipelt.using(model, names):
                        out = model(x.expand(4, -1))[0]
                except unipelt.PeltError as e:
                    if e.diagnostics[0].code == "E0551":
                        away.append(str(e))
                        continue
                    wrong.append(str(e))
                    return  # it would be asked for ever
                answered += 1
                for row, n, low in zip(out, names, before):
                    if not any(torch.allclose(row, answers[v % kinds], atol=1e-4) for v in range(low, now[n] + 2)):
                        wrong.append(n)
                served.append(1)

        changing = threading.Thread(target=change)
        changing.start()
        start = time.perf_counter()
        with ThreadPoolExecutor(8) as threads:
            list(threads.map(ask, range(8)))
        took = time.perf_counter() - start
        stop.set()
        changing.join()
        return {
            "requests of four examples": len(served), "wrong": len(wrong), "of an adapter evicted at the time": len(away),
            "changes meanwhile": changes, "read back": bank.reads, "grown by bytes": bank.bytes - held,
            "bytes in slots, to those of all": bank.bytes / (adapters * sum(t.numel() * t.element_size() for t in own.values())),
            "requests a second": len(served) / took,
        }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--requests", type=int, default=10000)
    parser.add_argument("--out")
    given = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    found, under = passes(given.rounds), traffic(given.requests)
    for n, v in (*found.items(), *under.items()):
        print(f"{n:70s} {v:.3g}" if isinstance(v, float) else f"{n:70s} {v:,}")
    if given.out:
        versions = {"torch": torch.__version__, "peft": peft.__version__}
        record = {"rounds": given.rounds, **versions, "found": found, "traffic": under}
        Path(given.out).write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
