"""References for `specs/embeddings.pelt`: live peft, a recording, the paper's equation on embeddings fed by hand, a count."""

from __future__ import annotations

import math

import peft
import small
import torch
from recorded import View, by_recording
from reference import apart, beside_peft, library, reference

import unipelt


@reference("lora_embeddings", by="peft", against="LoraConfig(target_modules=[embed_tokens])")
def _lora_embeddings() -> float:
    config = peft.LoraConfig(r=3, lora_alpha=6, target_modules=["embed_tokens"], task_type="CAUSAL_LM")

    def into(name: str, theirs: dict[str, torch.Tensor]) -> torch.Tensor:
        return theirs[f"base_model.model.model.embed_tokens.lora_embedding_{name[-1]}.default"].T

    return beside_peft(library("lora_embeddings", r=3, alpha=6.0), config, into, "llama")


@reference("lora_embeddings", by="recording", against="peft's LoRA on a Llama's embeddings, gate and up projections")
def _recorded() -> float:
    front = "base_model.model.model"

    def source(name: str) -> tuple[str, View]:
        tensor = name[-1]
        if "lora_embeddings" in name:
            return f"{front}.embed_tokens.lora_embedding_{tensor}.default", lambda t: t.T
        _, layer, _, site, *_ = name.removeprefix("model.").split(".")
        return f"{front}.layers.{layer}.mlp.{site}_proj.lora_{tensor}.default.weight", lambda t: t.T

    method = library("lora_embeddings", r=4, alpha=8.0) + library("lora", r=4, alpha=8.0, at="[ffn.gate, ffn.up]")
    # there the padding token's row of A has no gradient; the gradients of the others are compared with live peft
    return by_recording("peft/llama-lora_embed", method, source, trained=False)


@reference("dept", by="formula", against="[P; E + alpha / sqrt(r) (A B)[0 … n - 1]] as the embeddings that enter")
def _dept() -> float:
    model = small.model("llama", dtype=torch.float64)
    unipelt.apply(model, library("dept", m=3, r=2, s=12))
    own = {n.split(".")[-1]: t for n, t in small.randomise(model).items()}
    ids = small.inputs(padded=False)["input_ids"]
    after = small.output(model, input_ids=ids)
    base = small.model("llama", dtype=torch.float64)
    with torch.no_grad():
        words = base.get_input_embeddings()(ids) + 8 / math.sqrt(2) * (own["A"] @ own["B"])[: ids.shape[1]]
        found = base(inputs_embeds=torch.cat([own["P"].expand(len(ids), -1, -1), words], 1)).logits
    return apart(after, found[:, 3:])


@reference("dept", by="count", against="76,800 on T5-base, as 100 prompt tokens have")
def _dept_count() -> float:
    from transformers import T5Config, T5ForConditionalGeneration

    with torch.device("meta"):
        model = T5ForConditionalGeneration(T5Config(d_model=768, d_ff=3072, num_layers=12, num_heads=12))
    return abs(unipelt.plan(model, library("dept")).counts.trained - 76_800)


@reference("trainable_tokens", by="peft", against="TrainableTokensConfig, the output layer apart from the table")
def _trainable_tokens() -> float:
    config = peft.TrainableTokensConfig(token_indices=[7, 3, 20], target_modules=["embed_tokens"])
    return beside_peft(library("trainable_tokens", n=3, which="listed(7, 3, 20)"), config, _rows, "llama")


@reference("trainable_tokens", by="peft", against="TrainableTokensConfig, the output layer tied to the table")
def _trainable_tokens_tied() -> float:
    config = peft.TrainableTokensConfig(token_indices=[7, 3, 20], target_modules=["wte"])
    return beside_peft(library("trainable_tokens", n=3, which="listed(7, 3, 20)"), config, _rows, "gpt2")


def _rows(name: str, theirs: dict[str, torch.Tensor]) -> torch.Tensor:
    return next(t for n, t in theirs.items() if "trainable_tokens_delta" in n)
