"""Live `peft` against unipelt on tiny random models: outputs and gradients agree, in eval and in train mode.

The recordings hold peft under eager attention and in eval mode; here the attention is the default one.
"""

from __future__ import annotations

import copy
import inspect
import math
from dataclasses import dataclass
from typing import Any, Callable

import peft
import pytest
import torch
from fidelity_kit import (
    EFFECT,
    GRADIENTS,
    OUTPUTS,
    effect,
    fill,
    gradient_error,
    gradients,
    library,
    output_error,
    variant,
)
from mappings import Piece, Place, adaption, classifier, low_rank, mapping, norms, prefix, prefix_mlp, prompt, rescaling
from torch import nn
from transformers import (
    BertConfig, BertForSequenceClassification, BertModel, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM,
)  # fmt: skip

import unipelt

pytestmark = [
    # peft asks every model it wraps for this attribute, which transformers has renamed; nothing of ours reads it
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
    # peft gives its prefixes by the name that transformers had for a cache
    pytest.mark.filterwarnings("ignore:`past_key_values` is deprecated:FutureWarning"),
    # peft says this of every norm, though its LN tuning is made for norms
    pytest.mark.filterwarnings("ignore:Unsupported layer type .*(RMSNorm|LayerNorm):UserWarning"),
]


def llama() -> nn.Module:
    """Grouped queries: four heads, two groups."""
    return LlamaForCausalLM(LlamaConfig(
        vocab_size=96, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, bos_token_id=1, eos_token_id=2, pad_token_id=0,
        use_cache=False))  # fmt: skip


def gpt2() -> nn.Module:
    return GPT2LMHeadModel(GPT2Config(
        vocab_size=96, n_embd=32, n_layer=2, n_head=4, n_inner=64, n_positions=64, bos_token_id=1, eos_token_id=2,
        pad_token_id=0, attn_pdrop=0.0, embd_pdrop=0.0, resid_pdrop=0.0, use_cache=False))  # fmt: skip


def bert() -> nn.Module:
    return BertForSequenceClassification(BertConfig(
        vocab_size=96, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_labels=3,
        max_position_embeddings=64, pad_token_id=0, hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0))  # fmt: skip


BUILD = {"llama": llama, "gpt2": gpt2, "bert": bert}
TASK = {"llama": "CAUSAL_LM", "gpt2": "CAUSAL_LM", "bert": "SEQ_CLS"}


def tiny(kind: str) -> nn.Module:
    """A model with weights large enough that every part of it matters; no dropout."""
    g = torch.Generator().manual_seed(1)
    model = BUILD[kind]()
    with torch.no_grad():
        for p in model.parameters():
            noise = torch.randn(p.shape, generator=g) * 0.15
            p.copy_(noise if p.dim() > 1 else p + noise)
    return model


@dataclass(frozen=True)
class Case:
    config: Callable[..., peft.PeftConfig]
    method: Callable[[], unipelt.Method]
    pieces: tuple[Piece, ...]
    shift: int = 0  # peft's prefix lies in the cache, so the tokens' positions start after it
    prepare: Callable[[nn.Module], None] = lambda base: None


def lora(*modules: str, **more: Any) -> Callable[..., peft.PeftConfig]:
    return lambda **task: peft.LoraConfig(r=4, lora_alpha=6, target_modules=list(modules), **more, **task)


def ia3(*modules: str, inputs: str, **more: Any) -> Callable[..., peft.PeftConfig]:
    targets = [*modules, inputs]
    return lambda **task: peft.IA3Config(target_modules=targets, feedforward_modules=[inputs], **more, **task)


def ln(*modules: str) -> Callable[..., peft.PeftConfig]:
    return lambda **task: peft.LNTuningConfig(target_modules=list(modules), **task)


def prefixes(**more: Any) -> Callable[..., peft.PeftConfig]:
    return lambda **task: peft.PrefixTuningConfig(num_virtual_tokens=5, **more, **task)


def prompts(**task: Any) -> peft.PeftConfig:
    return peft.PromptTuningConfig(num_virtual_tokens=4, **task)


def adaptions(**task: Any) -> peft.PeftConfig:
    return peft.AdaptionPromptConfig(adapter_len=4, adapter_layers=2, **task)


def identity_output(base: nn.Module) -> None:
    """On GPT-2 peft adds an adaption prompt's heads past the attention's output map (ours before it, as on Llama); with
    the identity as that map the two are the same."""
    with torch.no_grad():
        for block in base.transformer.h:
            block.attn.c_proj.weight.copy_(torch.eye(32))


QV, QKV = ("attn.q", "attn.v"), ("attn.q", "attn.k", "attn.v")
MLP = ("K", "bk", "V", "bv")
CONV = {"fan_in_fan_out": True}  # Conv1D stores its weight as [in, out]
LORA = dict(r=4, alpha=6.0)

#: peft edits GPT-2's c_attn as a whole (one A for query, key and value; the query rescaled too), which is another
#: method than the library's at attn.q and attn.v: those rows compare variant specs, and c_proj and c_fc besides.
CASES: dict[str, Case] = {
    "llama-lora": Case(lora("q_proj", "v_proj"), lambda: library("lora", **LORA), (low_rank(*QV),)),
    "llama-rslora": Case(lora("q_proj", "v_proj", use_rslora=True), lambda: library("rslora", **LORA),
                         (low_rank(*QV),)),
    "llama-ia3": Case(ia3("k_proj", "v_proj", inputs="down_proj"), lambda: library("ia3"),
                      (rescaling("attn.k", "attn.v", "ffn.hidden"),)),
    "llama-ln_tuning": Case(ln("input_layernorm", "post_attention_layernorm", "norm"), lambda: library("ln_tuning"),
                            (norms("*.input_layernorm", "*.post_attention_layernorm", "norm", biases=False),)),
    "llama-prefix": Case(prefixes(), lambda: library("prefix_tuning", l=5), (prefix(5),), 5),
    "llama-prefix_mlp": Case(prefixes(prefix_projection=True, encoder_hidden_size=16),
                             lambda: variant("peft", "prefix_mlp_narrow", l=5, mid=16), (prefix_mlp(0, MLP),), 5),
    "llama-prompt": Case(prompts, lambda: library("prompt_tuning", l=4, at="embed.words"), (prompt("embed.words"),)),
    "llama-adaption_prompt": Case(adaptions, lambda: variant("peft", "adaption_prompt", l=4, top=2), (adaption(),)),
    "gpt2-lora": Case(lora("c_attn", **CONV), lambda: variant("peft", "lora_fused", **LORA), (low_rank(*QKV),)),
    "gpt2-lora_outputs": Case(lora("c_proj", "c_fc", **CONV), lambda: variant("peft", "lora_outputs", **LORA),
                              (low_rank("attn.o", "ffn.up", "ffn.down"),)),
    "gpt2-rslora": Case(lora("c_attn", use_rslora=True, **CONV), lambda: variant("peft", "lora_fused", r=4, alpha=12.0),
                        (low_rank(*QKV),)),  # 6 / sqrt(4) = 12 / 4
    "gpt2-ia3": Case(ia3("c_attn", inputs="mlp.c_proj", **CONV), lambda: variant("peft", "ia3_fused"),
                     (rescaling(*QKV, "ffn.hidden"),)),
    "gpt2-ln_tuning": Case(ln("ln_1", "ln_2", "ln_f"), lambda: library("ln_tuning"),
                           (norms("*.ln_1", "*.ln_2", "ln_f", biases=True),)),
    "gpt2-prefix": Case(prefixes(), lambda: library("prefix_tuning", l=5), (prefix(5),), 5),
    "gpt2-prefix_mlp": Case(prefixes(prefix_projection=True, encoder_hidden_size=16),
                            lambda: library("prefix_tuning_mlp", l=5, mid=16), (prefix_mlp(),), 5),
    "gpt2-prompt": Case(prompts, lambda: library("prompt_tuning", l=4, at="embed.words"), (prompt("embed.words"),)),
    "gpt2-adaption_prompt": Case(adaptions, lambda: variant("peft", "adaption_prompt", l=4, top=2), (adaption(),),
                                 prepare=identity_output),
    "bert-lora": Case(lora("query", "value"), lambda: library("lora", **LORA), (low_rank(*QV), classifier())),
    "bert-rslora": Case(lora("query", "value", use_rslora=True), lambda: library("rslora", **LORA),
                        (low_rank(*QV), classifier())),
    "bert-ia3": Case(ia3("key", "value", inputs="output.dense"), lambda: variant("peft", "ia3_all_inputs"),
                     (rescaling("attn.k", "attn.v", "ffn.hidden"), rescaling("attn.heads", row=1), classifier())),
    "bert-ln_tuning": Case(ln("LayerNorm"), lambda: library("ln_tuning"),
                           (norms("embeddings.LayerNorm", "*.attention.output.LayerNorm", "*.output.LayerNorm",
                                  biases=True), classifier())),
    "bert-prefix": Case(prefixes(), lambda: library("prefix_tuning", l=5), (prefix(5), classifier(True)), 5),
    "bert-prefix_mlp": Case(prefixes(prefix_projection=True, encoder_hidden_size=16),
                            lambda: library("prefix_tuning_mlp", l=5, mid=16), (prefix_mlp(), classifier(True)), 5),
    "bert-prompt": Case(prompts, lambda: library("prompt_tuning", l=4, at="embed.words"),
                        (prompt("embed.words"), classifier(True))),
}  # fmt: skip


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    return {n: p for n, p in model.named_parameters() if p.requires_grad}


def pair(kind: str, case: Case) -> tuple[nn.Module, nn.Module, dict]:
    """The same base with peft's randomised adapter and with ours of the same values."""
    base = tiny(kind)
    case.prepare(base)
    theirs = peft.get_peft_model(copy.deepcopy(base), case.config(task_type=TASK[kind]))
    g = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for p in trained(theirs).values():
            p.add_(torch.randn(p.shape, generator=g) * 0.2)
    method = case.method() + variant("peft", "classifier_copy") if kind == "bert" else case.method()
    unipelt.apply(base, method, name="mine", head=False)
    mapped = mapping(case.pieces, Place.of(base.config, True, method))
    fill(base, "mine", mapped, {n: p.detach() for n, p in trained(theirs).items()})
    return base, theirs, mapped


def batch() -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(3)
    ids, mask = torch.randint(3, 96, (3, 7), generator=g), torch.ones(3, 7, dtype=torch.long)
    for row, length in ((1, 5), (2, 6)):
        ids[row, length:], mask[row, length:] = 0, 0
    return {"input_ids": ids, "attention_mask": mask}


@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("name", CASES)
def test_against_peft(name, mode):
    compared(name, mode)


def compared(name: str, mode: str) -> float:
    """How far the outputs are from live peft's; neither they nor the gradients are too far."""
    kind, case = name.split("-")[0], CASES[name]
    if name.startswith("bert-prefix") and "past_key_values" not in inspect.signature(BertModel.forward).parameters:
        pytest.skip("peft asks this model for `past_key_values`, which this version of transformers calls `cache`")
    ours, theirs, mapped = pair(kind, case)
    for m in (ours, theirs):
        m.train(mode == "train")
    inputs = batch()
    moved = inputs | ({"position_ids": torch.arange(7)[None] + case.shift} if case.shift else {})
    with unipelt.with_rows(ours):
        expected, out = theirs(**inputs).logits, ours(**moved).logits
    found = output_error(out, expected)
    assert found <= OUTPUTS, f"outputs differ by {found:.1e}"
    cotangent = torch.randn(out.shape, generator=torch.Generator().manual_seed(4))
    for o in (out, expected):
        (o * cotangent).sum().backward()
    recorded = {n: p.grad for n, p in trained(theirs).items() if p.grad is not None}
    worst, where = gradient_error(gradients(ours, "mine"), mapped, recorded)
    assert worst <= GRADIENTS, f"the gradient of {where} differs by {worst:.1e}"
    with torch.no_grad(), unipelt.disabled(ours):
        assert effect(out.detach(), ours(**inputs).logits) > EFFECT
    return found


@pytest.mark.parametrize("kind", ["llama", "gpt2", "bert"])
def test_lora_dropout_matches_peft_draw_for_draw(kind):
    """Both drop the factors' input. With no other dropout, one seed gives both the same masks, as the calls come in the
    same order and shapes. GPT-2's c_fc and c_proj stand for its fused projection, where peft draws one mask for all."""
    modules = {"llama": ("q_proj", "v_proj"), "gpt2": ("c_proj", "c_fc"), "bert": ("query", "value")}[kind]
    sites = ("attn.o", "ffn.up", "ffn.down") if kind == "gpt2" else QV
    config = lora(*modules, lora_dropout=0.25, **(CONV if kind == "gpt2" else {}))
    if kind == "gpt2":
        case = Case(config, lambda: variant("peft", "lora_outputs_dropout", dropout=0.25, **LORA), (low_rank(*sites),))
    else:
        pieces = (low_rank(*sites), classifier()) if kind == "bert" else (low_rank(*sites),)
        case = Case(config, lambda: library("lora", dropout=0.25, **LORA), pieces)
    ours, theirs, _ = pair(kind, case)
    inputs = batch()
    with torch.no_grad():
        ours.eval(), theirs.eval()
        still = ours(**inputs).logits
        assert output_error(still, theirs(**inputs).logits) <= OUTPUTS  # nothing is dropped
        ours.train(), theirs.train()
        for seed in range(3):
            torch.manual_seed(seed)
            mine = ours(**inputs).logits
            torch.manual_seed(seed)
            assert output_error(mine, theirs(**inputs).logits) <= OUTPUTS
            assert output_error(mine, still) > EFFECT


def test_lora_dropout_drops_the_input_and_keeps_its_mean():
    """With A = B = 1 the update is the dropped input itself: each entry is 0 or x / (1 - p), the mean over passes x."""
    p, model = 0.25, tiny("llama").train()
    unipelt.apply(model, library("lora", r=32, alpha=32.0, dropout=p), name="drop", seed=0)
    row = library("lora").rows[0].name
    tensors = unipelt.state_dict(model, "drop")
    for layer in range(2):
        tensors[f"layers.{layer}.attn.q.{row}.A"].copy_(torch.eye(32))
        tensors[f"layers.{layer}.attn.q.{row}.B"].copy_(torch.eye(32))
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    projection = model.get_submodule("model.layers.0.self_attn.q_proj")
    projection.register_forward_hook(lambda m, args, out: seen.append((args[0], out - m.weight.matmul(args[0].mT).mT)))
    torch.manual_seed(0)
    ratios = []
    with torch.no_grad():
        for _ in range(200):
            model(**batch())
            x, update = seen.pop()
            clear = x.abs() > 0.05  # elsewhere the subtraction leaves nothing to read
            ratio = (update / x)[clear]
            kept = (ratio - 1 / (1 - p)).abs() < 1e-3
            assert bool((kept | (ratio.abs() < 1e-3)).all())
            ratios.append(ratio)
    every = torch.cat(ratios)
    assert abs(float(every.mean()) - 1) < 4 * math.sqrt(p / (1 - p) / len(every))  # within four standard errors
