"""References for `specs/scaling.pelt`: live peft, published formulas and published numbers of parameters."""

from __future__ import annotations

import peft
import small
import torch
from reference import Seen, beside_peft, by_formula, library, reference

import unipelt


@reference("ssf", by="formula", against="gamma ∘ y + beta")
def _ssf() -> float:
    def formula(s: Seen) -> torch.Tensor:
        if s.row != "ssf":
            return s.out
        return torch.einsum("bto,o->bto", s.h, s.gamma) + s.beta

    return by_formula(library("ssf"), formula, kind="gpt2")


@reference(
    "ssf", by="formula", against="its published re-parameterisation: W diag(gamma), b ∘ gamma + beta in the base"
)
def _ssf_merged() -> float:
    model = small.model("gpt2", dtype=torch.float64)
    unipelt.apply(model, library("ssf"))
    own = small.randomise(model)
    moved = small.model("gpt2", dtype=torch.float64)
    sites = {"attn.q": ("attn.c_attn", 0), "attn.k": ("attn.c_attn", 32), "attn.v": ("attn.c_attn", 64),
             "attn.o": ("attn.c_proj", 0), "ffn.up": ("mlp.c_fc", 0), "ffn.down": ("mlp.c_proj", 0)}  # fmt: skip
    with torch.no_grad():
        for n, t in own.items():
            layer, _, rest = n.removeprefix("h.").partition(".")
            site = next((s for s in sites if rest.startswith(f"{s}.")), None)
            if site is None:
                moved.get_parameter(f"transformer.{n}").copy_(t)
            elif n.endswith("gamma"):
                module, start = sites[site]
                linear, some = moved.transformer.h[int(layer)].get_submodule(module), slice(start, start + len(t))
                linear.weight[:, some] *= t
                linear.bias[some] = linear.bias[some] * t + own[n.removesuffix("gamma") + "beta"]
    return float((small.output(model) - small.output(moved)).abs().max() / small.output(moved).abs().max())


@reference("red", by="formula", against="l ∘ h + b")
def _red() -> float:
    return by_formula(library("red"), lambda s: torch.einsum("btd,d->btd", s.h, s.gamma) + s.beta)


@reference("red", by="count", against="2 L d: 0.26 million on Llama 2 7B, 0.02 million on RoBERTa-base")
def _red_count() -> float:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(hidden_size=4096, num_hidden_layers=32, num_attention_heads=32, intermediate_size=11008)
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    return abs(unipelt.plan(model, library("red")).counts.trained - 262_144)


@reference("llama_adapter_v2", by="formula", against="s ∘ (W x + b)")
def _v2() -> float:
    def formula(s: Seen) -> torch.Tensor:
        if s.row != "llama_adapter_v2":
            return s.out
        return torch.addcmul(s.s * s.b, s.h, s.s)

    return by_formula(library("llama_adapter_v2"), formula)


@reference("head_scaling", by="formula", against="gamma_i head_i, before the output map")
def _head_scaling() -> float:
    def formula(s: Seen) -> torch.Tensor:
        return torch.stack([gamma * head for gamma, head in zip(s.gamma, s.h.unbind(1))], 1)

    return by_formula(library("head_scaling"), formula, kind="gpt2")


@reference("beft", by="peft", against="live peft's BEFT")
def _beft() -> float:
    config = peft.BeftConfig(target_modules=["value"])

    def into(name: str, theirs: dict[str, torch.Tensor]) -> torch.Tensor:
        layer = name.split("layer.")[1].split(".")[0]
        found = [t for n, t in theirs.items() if f"layer.{layer}." in n and "beft_bias" in n]
        assert len(found) == 1
        return found[0][0]

    return beside_peft(library("beft"), config, into, kind="bert")


@reference("bitfit_parts", by="count", against="L (d + 4 d): 122,880 on BERT-large, its 0.04 %")
def _parts_count() -> float:
    from transformers import BertConfig, BertModel

    config = BertConfig(hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096)
    with torch.device("meta"):
        model = BertModel(config)
    return abs(unipelt.plan(model, library("bitfit_parts")).counts.trained - 122_880)


@reference("bitfit_parts", by="formula", against="moving those biases of the base by hand")
def _parts() -> float:
    adapted, moved = small.model("bert", dtype=torch.float64), small.model("bert", dtype=torch.float64)
    unipelt.apply(adapted, library("bitfit_parts"))
    small.randomise(adapted)
    own = {n: t for n, t in unipelt.state_dict(adapted).items()}
    assert len(own) == 2 * len(moved.encoder.layer)
    with torch.no_grad():
        for n, t in own.items():
            layer = moved.encoder.layer[int(n.split("layer.")[1].split(".")[0])]
            target = layer.attention.self.query if t.numel() == 32 else layer.intermediate.dense
            target.bias.copy_(t)
    return float((small.output(adapted) - small.output(moved)).abs().max())
