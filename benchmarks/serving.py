"""A server under load: 32 clients, 50 adapters of four methods, every answer compared with what its adapter writes alone.

    python benchmarks/serving.py [--rounds 3] [--minutes M] [--out benchmarks/results/serving.json]

The model: a Llama of 4 layers, width 256, random weights; 12 or 13 adapters each of LoRA, (IA)³, prefix tuning and a bottleneck
adapter, and three prompts of 4 to 12 tokens for each, 24 tokens written greedily. `unipelt serve` runs in processes of its own, one thread each:

mixed      requests of all adapters, computed together
one        the same number of requests, all of one adapter, in each round of another method
switching  the requests of `mixed`, and `--one-at-a-time`: a pass has one adapter
alone      the requests of `mixed`, and `--max-batch 1`: a request at a time
few        the requests of `mixed`, and `--max-adapters 12`: most have to be read again

Rounds of 64 requests (32 to `switching` and `alone`) go to one server after the other, in turn; figures are medians over rounds, of shares between servers of one round.
While `mixed` serves one more round, adapters are replaced by copies of themselves, broken folders appear, and 20 clients leave half-way.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import httpx2
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import unipelt

ROOT = Path(__file__).resolve().parent.parent
CLIENTS, ADAPTERS, REQUESTS, TOKENS, WORDS = 32, 50, 64, 24, 512
METHODS: list[tuple[str, dict[str, Any]]] = [
    ("lora", {"r": 8}), ("ia3", {}), ("prefix_tuning", {"l": 8}), ("pfeiffer", {"r": 16})
]  # fmt: skip
SERVERS = {
    "mixed": [], "one": [], "switching": ["--one-at-a-time"], "alone": ["--max-batch", "1"], "few": ["--max-adapters", "12"]
}  # fmt: skip


def write(folder: Path) -> dict[tuple[str, int], str]:
    """The base and its adapters; what each adapter writes alone for each of its prompts."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=WORDS, hidden_size=256, intermediate_size=688, num_hidden_layers=4, num_attention_heads=8,
        initializer_range=0.06, bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    model.save_pretrained(folder / "base")
    inner = Tokenizer(models.WordLevel({f"w{i}": i for i in range(WORDS)}, unk_token="w0"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="w0", bos_token="w1", eos_token="w2", unk_token="w0")  # fmt: skip
    tokenizer.save_pretrained(folder / "base")
    wanted: dict[tuple[str, int], str] = {}
    for i in range(ADAPTERS):
        name, (method, arguments) = f"a{i}", METHODS[i % len(METHODS)]
        unipelt.apply(model, unipelt.load(method, arguments=arguments), name=name, seed=i)
        g = torch.Generator().manual_seed(i)
        with torch.no_grad():
            for p in model.parameters():
                if p.requires_grad:
                    p.add_(torch.randn(p.shape, generator=g) * 0.05)
        unipelt.save(model, folder / "adapters" / name, name)
        model.eval()
        for k in range(3):
            ids = torch.tensor([prompt(i, k)])
            with torch.no_grad(), unipelt.using(model, name):
                out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=TOKENS, do_sample=False)
            wanted[name, k] = tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)
        unipelt.remove(model, name)
    return wanted


def prompt(i: int, k: int) -> list[int]:
    return [3 + (i * 37 + k * 101 + j * 13) % (WORDS - 3) for j in range(4 + 4 * k)]


class Served:
    def __init__(self, folder: Path, flags: list[str]):
        command = [sys.executable, "-m", "unipelt", "serve", folder / "base", folder / "adapters", "--port", "0", "--json", "--reload", "0.2", *flags]  # fmt: skip
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment)  # fmt: skip
        said = ""
        while "}" not in said:
            line = self.process.stdout.readline()  # type: ignore[union-attr]
            if not line:
                raise RuntimeError("the server did not start")
            said += line
        self.address = json.loads(said)["address"]

    def stop(self) -> int:
        self.process.terminate()
        return self.process.wait(60)


async def load(address: str, asked: list[tuple[str, int]], wanted: dict[tuple[str, int], str]) -> dict[str, Any]:
    """So many clients send the requests, each the next one when it has its answer."""
    left, seconds, wrong, lost, written = list(reversed(asked)), [], 0, [], 0

    async def client(http: Any) -> None:
        nonlocal wrong, written
        while left:
            name, k = left.pop()
            begun = time.perf_counter()
            try:
                body = {"model": name, "prompt": prompt(int(name[1:]), k), "max_tokens": TOKENS, "temperature": 0}
                r = await http.post(f"{address}/v1/completions", json=body, timeout=300)
                found = r.json()
                wrong += found["choices"][0]["text"] != wanted[name, k]
                written += found["usage"]["completion_tokens"]
            except Exception as e:
                lost.append(repr(e)[:200])
            seconds.append(time.perf_counter() - begun)

    begun = time.perf_counter()
    async with httpx2.AsyncClient(limits=httpx2.Limits(max_connections=2 * CLIENTS)) as http:
        await asyncio.gather(*(client(http) for _ in range(CLIENTS)))
    whole = time.perf_counter() - begun
    return {"tokens a second": written / whole, "median": statistics.median(seconds), "slowest": max(seconds), "wrong": wrong, "lost": lost, "requests": len(asked)}  # fmt: skip


async def disturbed(address: str, folder: Path, asked: list[tuple[str, int]], wanted: dict[tuple[str, int], str]) -> dict[str, Any]:  # fmt: skip
    """A round while folders change and clients leave."""

    async def folders() -> None:
        for i in range(20):
            source, new = folder / "adapters" / f"a{i}", folder / f"new{i}"
            shutil.copytree(source, new)
            shutil.move(source, folder / f"old{i}")
            new.rename(source)
            shutil.copytree(source, folder / "adapters" / f"broken{i}", dirs_exist_ok=True)
            (folder / "adapters" / f"broken{i}" / "adapter.safetensors").write_bytes(b"\0" * 99)
            await asyncio.sleep(0.05)

    async def leaving(k: int) -> None:
        body = {"model": f"a{k}", "prompt": prompt(k, 1), "max_tokens": TOKENS, "stream": True}
        async with httpx2.AsyncClient() as http, http.stream("POST", f"{address}/v1/completions", json=body) as r:
            async for _ in r.aiter_lines():
                break
            if k % 2:
                await http.post(f"{address}/v1/completions", json={**body, "model": f"broken{k % 20}", "stream": False})

    found, *_ = await asyncio.gather(load(address, asked, wanted), folders(), *(leaving(k) for k in range(20)))
    return found


def requests(seed: int) -> list[tuple[str, int]]:
    chance = random.Random(seed)
    return [(f"a{chance.randrange(ADAPTERS)}", chance.randrange(3)) for _ in range(REQUESTS)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--minutes", type=float, default=60, help="no round begins after so many")
    parser.add_argument("--out")
    given = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        wanted = write(folder)
        print(f"{len(set(wanted.values()))} different answers of {len(wanted)}", flush=True)
        servers = {n: Served(folder, flags) for n, flags in SERVERS.items()}
        rounds: dict[str, list[dict[str, Any]]] = {n: [] for n in servers}
        begun = time.monotonic()
        try:
            for k in range(given.rounds + 1):
                if k > 1 and time.monotonic() - begun > 60 * given.minutes:
                    break
                for n, s in servers.items():
                    asked = requests(k)[: (CLIENTS if k else 8) if n in ("switching", "alone") else None]
                    if n == "one":
                        asked = [(f"a{k % len(METHODS)}", j) for _, j in asked]
                    found = asyncio.run(load(s.address, asked, wanted))
                    if k:  # the first one reads the adapters
                        rounds[n].append(found)
                    print(k, n, {x: round(v, 2) if isinstance(v, float) else v for x, v in found.items()}, flush=True)
            under_change = asyncio.run(disturbed(servers["mixed"].address, folder, requests(99), wanted))
            print("under change", under_change, flush=True)
            counted = httpx2.get(f"{servers['few'].address}/metrics").text
        finally:
            ends = [s.stop() for s in servers.values()]
    read = next(float(x.split()[-1]) for x in counted.splitlines() if x.startswith('unipelt_adapters_total{what="loaded"}'))  # fmt: skip

    def share(a: str, b: str) -> float:
        return statistics.median(x["tokens a second"] / y["tokens a second"] for x, y in zip(rounds[a], rounds[b]))

    everything = [*(r for several in rounds.values() for r in several), under_change]
    record = {
        "clients": CLIENTS, "adapters": ADAPTERS, "methods": [n for n, _ in METHODS], "requests": sum(r["requests"] for r in everything),
        "wrong": sum(r["wrong"] for r in everything), "lost": sum(len(r["lost"]) for r in everything),
        "tokens a second": {n: statistics.median(r["tokens a second"] for r in several) for n, several in rounds.items()},
        "seconds of a request, median": {n: statistics.median(r["median"] for r in several) for n, several in rounds.items()},
        "throughput of mixed, to one adapter for all": share("mixed", "one"),
        "throughput of mixed, to switching one at a time": share("mixed", "switching"),
        "throughput of mixed, to a request at a time": share("mixed", "alone"),
        "throughput with 12 of 50 in memory, to all": share("few", "mixed"), "adapters read with 12 in memory": read,
        "under change": {n: under_change[n] for n in ("wrong", "tokens a second")}, "servers ended with": ends,
        "rounds": len(rounds["mixed"]), "torch": torch.__version__,
    }  # fmt: skip
    print(json.dumps(record, indent=1))
    if given.out:
        Path(given.out).write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
