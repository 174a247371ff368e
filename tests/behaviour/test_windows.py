"""Learned rows beside sliding windows, attention sinks and capped scores: held against an attention that is written out here.

The reference is the model without an adapter and with an attention function of this file: scores of tokens and rows in float64
under a mask that is made here, one softmax over rows, tokens and sink.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from kernels import stand_ins, use
from torch import nn
from transformers import (
    Gemma2Config, Gemma2ForCausalLM, Gemma3ForCausalLM, Gemma3TextConfig, GptOssConfig, GptOssForCausalLM, MistralConfig,
    MistralForCausalLM, ModernBertConfig, ModernBertForMaskedLM, Phi3Config, Phi3ForCausalLM,
)  # fmt: skip
from transformers.masking_utils import AttentionMaskInterface
from transformers.modeling_utils import AttentionInterface

import unipelt

__all__ = ["stand_ins"]
pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
WINDOW, TOKENS, ROWS, CAP = 4, 12, 3, 2.0
#: Rows of each group of keys, which join the keys of the tokens.
PREFIX = f"""method rows {{ modify attn.heads insert parallel
  form {{ K: [{ROWS}, d_head] ~ normal(1.0) per group
         V: [{ROWS}, d_head] ~ normal(1.0) per group
         scores = q @ K.T * scale
         delta = softmax(scores) @ V }} compose share_softmax }}"""
_SIZES: dict[str, Any] = dict(
    vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48, max_position_embeddings=64,
    pad_token_id=0, bos_token_id=1, eos_token_id=None, initializer_range=0.2,
)  # fmt: skip
_GROUPED: dict[str, Any] = dict(**_SIZES, num_key_value_heads=2)
_MIXED: dict[str, Any] = dict(
    **_GROUPED, head_dim=8, sliding_window=WINDOW, layer_types=["sliding_attention", "full_attention"]
)
#: By name: how a model is made, the window of each layer, and the kernels that serve it.
MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int | None, ...], tuple[str, ...]]] = {
    "mistral": (lambda: MistralForCausalLM(MistralConfig(**_GROUPED, sliding_window=WINDOW)), (WINDOW, WINDOW),
                ("eager", "sdpa", "flex_attention", "flash_attention_2")),
    "phi3": (lambda: Phi3ForCausalLM(Phi3Config(**_GROUPED, sliding_window=WINDOW)), (WINDOW, WINDOW),
             ("eager", "sdpa", "flex_attention", "flash_attention_2")),
    "gemma2": (lambda: Gemma2ForCausalLM(Gemma2Config(**_MIXED, attn_logit_softcapping=CAP)), (WINDOW, None),
               ("eager", "flex_attention", "flash_attention_2")),
    "gemma3": (lambda: Gemma3ForCausalLM(Gemma3TextConfig(**_MIXED)), (WINDOW, None),
               ("eager", "sdpa", "flex_attention", "flash_attention_2")),
    "gpt_oss": (lambda: GptOssForCausalLM(GptOssConfig(**_MIXED, num_local_experts=4, num_experts_per_tok=2)), (WINDOW, None),
                ("eager", "flash_attention_2")),  # a CPU's flex attention has no sinks
    "modernbert": (lambda: ModernBertForMaskedLM(ModernBertConfig(
        **{**_SIZES, "cls_token_id": 1, "sep_token_id": 2}, local_attention=2 * (WINDOW - 1), global_attn_every_n_layers=2,
        attention_dropout=0.0)), (None, WINDOW), ("eager", "sdpa", "flex_attention", "flash_attention_2")),
}  # fmt: skip
CASES = [(name, kernel) for name, (_, _, kernels) in MODELS.items() for kernel in kernels]
BOTH_SIDES = ("modernbert",)


def build(name: str, kernel: str = "eager") -> Any:
    """Eager attention takes its softmax in float32, and GPT-OSS multiplies its experts there; the others have float64 throughout."""
    torch.manual_seed(0)
    short = kernel == "eager" or name == "gpt_oss"
    model = MODELS[name][0]().to(torch.float32 if short else torch.float64).eval()
    with torch.no_grad():
        for n, p in model.named_parameters():
            if n.endswith("sinks"):
                p.copy_(torch.tensor([0.5, -1.0, 2.0, 0.0]))
    return model


def text(padding: str = "none") -> dict[str, torch.Tensor]:
    ids = torch.randint(3, 64, (2, TOKENS), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    if padding != "none":
        pads = slice(0, 3) if padding == "left" else slice(-3, None)
        ids[1, pads], mask[1, pads] = 0, 0
    return {"input_ids": ids, "attention_mask": mask}


@torch.no_grad()
def reference(name: str, plain: Any, learned: dict[str, torch.Tensor], given: dict[str, torch.Tensor]) -> torch.Tensor:
    """The logits of the model without an adapter, whose attention sees rows, window, cap and sink as written here."""
    windows, real = MODELS[name][1], given["attention_mask"].bool()

    def attend(module: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: Any, **kwargs: Any) -> Any:
        layer = module.layer_idx
        batch, heads, n, d = q.shape
        repeat = heads // k.shape[1]
        rows_k, rows_v = (next(t for label, t in learned.items() if f"layers.{layer}." in label and label.endswith(f".{x}")).double()
                          for x in "KV")  # fmt: skip
        q, k, v = q.double(), k.double().repeat_interleave(repeat, 1), v.double().repeat_interleave(repeat, 1)
        rows_k, rows_v = (t.repeat_interleave(repeat, 0)[None] for t in (rows_k, rows_v))
        scale = kwargs.get("scaling", d**-0.5)
        at = torch.arange(n)
        distance = at[:, None] - at
        seen = torch.ones(n, n, dtype=torch.bool) if name in BOTH_SIDES else distance >= 0
        if windows[layer] is not None:
            seen = seen & (distance.abs() < windows[layer])
        scores = q @ k.transpose(-1, -2) * scale
        if name == "gemma2":
            scores = CAP * torch.tanh(scores / CAP)
        scores = scores.masked_fill(~(seen & real[:, None, None]), -torch.inf)
        parts = [q @ rows_k.transpose(-1, -2) * scale, scores]
        if name == "gpt_oss":
            parts.append(module.sinks.double().view(1, -1, 1, 1).expand(batch, heads, n, 1))
        shares = torch.cat(parts, -1).softmax(-1)[..., : ROWS + n]
        out = shares @ torch.cat([rows_v.expand(batch, -1, -1, -1), v], 2)
        return out.transpose(1, 2).to(plain.dtype), None

    AttentionInterface.register("written_out", attend)
    AttentionMaskInterface.register("written_out", lambda *args, **kwargs: None)
    before = plain.config._attn_implementation
    try:
        use(plain, "written_out")
        return plain(**given).logits
    finally:
        use(plain, before)
        AttentionInterface._global_mapping.pop("written_out")
        AttentionMaskInterface._global_mapping.pop("written_out")


def near(found: torch.Tensor, wanted: torch.Tensor, kernel: str) -> bool:
    exact = kernel != "eager" and found.dtype == torch.float64
    return found.shape == wanted.shape and float((found - wanted).abs().max()) <= (1e-9 if exact else 1e-4)


@pytest.mark.parametrize(("name", "kernel"), CASES)
def test_every_token_sees_every_row(name: str, kernel: str, stand_ins: Any) -> None:
    plain, model = build(name, kernel), build(name, kernel)
    unipelt.apply(model, unipelt.parse(PREFIX), seed=3)
    use(model, kernel)
    learned = unipelt.state_dict(model)
    for padding in ("none", "right", "left"):
        given = text(padding)
        real = given["attention_mask"].bool()
        wanted = reference(name, plain, learned, given)
        with torch.no_grad():
            found = model(**given).logits
            if padding == "none":  # of pads alone, eager attention in float64 makes no numbers
                assert float((plain(**given).logits - wanted).abs().max()) > 1e-2
        assert near(found[real], wanted[real], kernel), padding


@pytest.mark.parametrize("cache", ["dynamic", "static"])
@pytest.mark.parametrize("name", [n for n in MODELS if n not in BOTH_SIDES])
def test_generation_longer_than_the_window(name: str, cache: str) -> None:
    """The cache of a layer with a window forgets tokens, and never the rows."""
    plain, model = build(name), build(name)
    unipelt.apply(model, unipelt.parse(PREFIX), seed=3)
    model.generation_config.disable_compile = True
    for padding in ("none", "left"):
        given = text(padding)
        how = {"cache_implementation": "static"} if cache == "static" else {}
        made = model.generate(
            **given, max_new_tokens=6, do_sample=False, output_logits=True, return_dict_in_generate=True, **how
        )
        ids = made.sequences
        mask = torch.nn.functional.pad(given["attention_mask"], (0, 6), value=1)
        # generation counts positions from the first token that is no pad
        whole = {"input_ids": ids, "attention_mask": mask, "position_ids": (mask.cumsum(-1) - 1).clamp(min=0)}
        wanted = reference(name, plain, unipelt.state_dict(model), whole)
        found = torch.stack(made.logits, 1)
        assert near(found, wanted[:, TOKENS - 1 : -1], "eager"), padding


def test_the_plan_says_where_the_rows_stand() -> None:
    for name, said in {
        "mistral": ["row `rows`: in every layer a token sees a window of 4 tokens; learned rows stand outside it, and every token sees all of them"],
        "gemma2": [
            "row `rows`: in 1 of 2 layers a token sees a window of 4 tokens; learned rows stand outside it, and every token sees all of them",
            "row `rows`: the model caps the scores of its tokens at 2; those of learned rows are as written, not capped",
        ],
    }.items():  # fmt: skip
        assert list(unipelt.plan(build(name), unipelt.parse(PREFIX)).warnings) == said
    free = MistralForCausalLM(MistralConfig(**_GROUPED, sliding_window=None))
    assert not unipelt.plan(free, unipelt.parse(PREFIX)).warnings
