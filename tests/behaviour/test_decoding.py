"""Decoding with a cache gives what one pass over the whole text gives, on models that no anatomy describes: token by token and
in chunks, longer than a window, with a text that is padded at the left."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from names import name as named
from tiny import put
from torch import nn
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

import unipelt

_SIZES: dict[str, Any] = dict(
    vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48, max_position_embeddings=64,
    pad_token_id=0, bos_token_id=1, eos_token_id=2, initializer_range=0.1,
)  # fmt: skip
_GROUPED: dict[str, Any] = dict(**_SIZES, num_key_value_heads=2, head_dim=8)
_WINDOWS: dict[str, Any] = dict(**_GROUPED, sliding_window=4, layer_types=["sliding_attention", "full_attention"])
_EXPERTS: dict[str, Any] = dict(num_experts_per_tok=2)
_LATENT: dict[str, Any] = dict(
    **_SIZES, num_key_value_heads=4, q_lora_rank=16, kv_lora_rank=16, qk_rope_head_dim=8, qk_nope_head_dim=8, v_head_dim=16, n_group=1,
    topk_group=1, n_routed_experts=4, num_experts_per_tok=2, moe_intermediate_size=16, first_k_dense_replace=1,
)  # fmt: skip
_STATES: dict[str, Any] = dict(mamba_d_state=4, mamba_expand=2)
#: Tiny configurations: windows of four tokens, grouped heads, fused maps, experts, scaled residuals, state spaces, hybrids.
FAMILIES: dict[str, dict[str, Any]] = {
    "gemma2": _WINDOWS,
    "gemma3_text": _WINDOWS,
    "cohere2": _WINDOWS,
    "gpt_oss": _WINDOWS | _EXPERTS | dict(num_local_experts=4),
    "phi": _SIZES,
    "phi3": _SIZES | dict(num_key_value_heads=2, sliding_window=4),
    "starcoder2": _SIZES | dict(num_key_value_heads=2, sliding_window=4),
    "granite": _GROUPED | dict(embedding_multiplier=6.0, residual_multiplier=0.5),
    "qwen3": _GROUPED,
    "qwen3_moe": _GROUPED | _EXPERTS | dict(num_experts=4, moe_intermediate_size=16),
    "mixtral": _GROUPED | _EXPERTS | dict(num_local_experts=4),
    "gpt_neox": _SIZES,
    "bloom": {**_SIZES, "n_head": 4, "n_layer": 2},
    "falcon": _SIZES,
    "olmo2": _GROUPED,
    "glm4": _GROUPED,
    "deepseek_v3": _LATENT,
    "smollm3": _GROUPED,
    "jamba": {**_SIZES, "num_key_value_heads": 2, **_STATES, "attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2,
              "num_experts": 4, "use_mamba_kernels": False, "mamba_dt_rank": 4},
    "falcon_h1": {**_GROUPED, **_STATES, "mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_chunk_size": 4},
    "mamba": dict(vocab_size=64, hidden_size=32, num_hidden_layers=2, state_size=4, initializer_range=0.1, pad_token_id=0, eos_token_id=2),
}  # fmt: skip
_MAMBA2: dict[str, Any] = dict(
    vocab_size=64, hidden_size=32, num_hidden_layers=2, state_size=4, num_heads=4, head_dim=16, n_groups=1, chunk_size=4, expand=2,
    initializer_range=0.1, pad_token_id=0, eos_token_id=2,
)  # fmt: skip
METHODS = ("lora", "prefix_tuning", "mam", "unipelt_apl_causal", "ia3", "prompt_tuning")
NEAR = 1e-4  # in float32; the methods move the logits by far more
TOKENS = 12


def model_of(family: str) -> nn.Module:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(CONFIG_MAPPING[family](**FAMILIES[family])).eval()


def text(padded: bool) -> dict[str, torch.Tensor]:
    ids = torch.randint(3, 64, (2, TOKENS), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    if padded:
        ids[1, :3], mask[1, :3] = 0, 0
    return {"input_ids": ids, "attention_mask": mask}


@torch.no_grad()
def stepwise(model: Any, given: dict[str, torch.Tensor], ends: tuple[int, ...]) -> torch.Tensor:
    """The logits of chunks of a text, one behind the other through a cache."""
    found, cache, at, key = [], None, 0, None
    for end in ends:
        more = (
            {} if key == "cache_params" else {"attention_mask": given["attention_mask"][:, :end]}
        )  # states have no use for one
        out = model(
            input_ids=given["input_ids"][:, at:end], use_cache=True, **more, **({} if cache is None else {key: cache})
        )
        key = next(n for n in ("past_key_values", "cache_params") if n in out)
        cache = out[key]
        found.append(out.logits[:, -(end - at) :])
        at = end
    return torch.cat(found, 1)


#: Their states go on by one token at a time, and pads before a text are in them: so it is in transformers itself.
STATES = ("jamba", "falcon_h1", "mamba")
#: What a method needs and a family does not have: nothing is left out in silence.
REFUSED: dict[str, dict[str, str]] = {
    **dict.fromkeys(("gpt_oss", "qwen3_moe", "mixtral"), {"ia3": "no site `ffn.hidden`"}),
    "deepseek_v3": {"ia3": "no site `attn.k`"},
    "mamba": {n: "has no site `" for n in METHODS if n != "prompt_tuning"},
}


def apart(a: torch.Tensor, b: torch.Tensor, mask: torch.Tensor) -> float:
    """The largest difference at tokens that are no padding."""
    assert a.shape == b.shape and bool(torch.isfinite(a[mask.bool()]).all())
    return float((a - b)[mask.bool()].abs().max())


@pytest.mark.sampled(2)
@pytest.mark.parametrize("family", FAMILIES)
def test_decoding_equals_one_pass(family: str) -> None:
    model = model_of(family)
    whole = {p: text(p) for p in (False, True)}
    with torch.no_grad():
        base = {p: model(**given, use_cache=False).logits for p, given in whole.items()}
    refused = REFUSED.get(family, {})
    ends = (6, 7, 8, 9, 10, 11, TOKENS) if family in STATES else (6, 7, 8, 11, TOKENS)
    for method in METHODS:
        if method in refused:
            with pytest.raises(unipelt.PeltError, match="E0512") as caught:
                put(model, named(method))
            assert refused[method] in str(caught.value)
            continue
        put(model, named(method))
        for padded, given in whole.items():
            if padded and family in ("jamba", "falcon_h1", "mamba"):
                continue  # their states differ by themselves where pads come first
            with torch.no_grad():
                wanted = model(**given, use_cache=False).logits[:, -TOKENS:]
            mask = given["attention_mask"]
            assert apart(wanted, base[padded], mask) > 100 * NEAR, method
            assert apart(stepwise(model, given, ends), wanted, mask) <= NEAR, (method, padded)
        unipelt.remove(model, "a")
    with torch.no_grad():
        assert torch.equal(model(**whole[False], use_cache=False).logits, base[False])


# ---------------------------------------------------------------- where rows enter


def test_rows_stand_before_a_factor() -> None:
    """Granite multiplies what leaves its table of words: rows there are multiplied too, as they are where embeddings are given."""
    model = model_of("granite")
    plan = put(model, named("prompt_tuning"))
    assert plan.warnings == (
        "the model multiplies `embed` by 6 before its first block; what is modified is what it is before that",
    )
    rows = next(iter(unipelt.state_dict(model, "a").values()))
    words = model.get_input_embeddings().weight
    ids = text(False)["input_ids"]
    with torch.no_grad():
        found = model(input_ids=ids).logits[:, -TOKENS:]
        given = model(inputs_embeds=words[ids]).logits[:, -TOKENS:]
        unipelt.remove(model, "a")
        by_hand = model(inputs_embeds=torch.cat([rows.expand(2, -1, -1), words[ids]], 1)).logits[:, -TOKENS:]
    assert float((found - by_hand).abs().max()) <= NEAR and float((given - by_hand).abs().max()) <= NEAR


@pytest.mark.parametrize("family", ["gemma2", "gemma3_text"])
def test_rows_stand_behind_the_factor_of_the_words(family: str) -> None:
    """The module of the words multiplies them itself. Rows behind it that start from words start from what it yields."""
    model = model_of(family)
    method = unipelt.load(named("prompt_tuning"))(l=3)
    plan = unipelt.plan(model, method)
    assert plan.warnings[:1] == (
        "`embed` is behind the factor by which `model.embed_tokens` multiplies its entries: rows there are not multiplied",
    )
    unipelt.apply(model, method)
    rows = next(iter(unipelt.state_dict(model).values()))
    with torch.no_grad():
        words = model.get_input_embeddings().forward(torch.arange(64))
    assert all(float((words - row).abs().amax(-1).min()) <= 1e-5 for row in rows)


@pytest.mark.parametrize("family", ["mamba", "mamba2", "jamba"])
def test_a_prompt_is_put_into_states_once(family: str) -> None:
    """Generation goes on from states, which have no positions: rows are in them, and no step puts them there again."""
    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_config(
        CONFIG_MAPPING[family](**(FAMILIES | {"mamba2": _MAMBA2})[family])
    ).eval()
    model.generation_config.eos_token_id = None
    put(model, named("prompt_tuning"))
    given = text(False)
    made = model.generate(**given, max_new_tokens=4, do_sample=False, output_logits=True, return_dict_in_generate=True)
    with torch.no_grad():
        wanted = model(input_ids=made.sequences, use_cache=False).logits[:, -5:-1]
    assert float((torch.stack(made.logits, 1) - wanted).abs().max()) <= NEAR


@pytest.mark.parametrize("family", ["gemma2", "phi3", "starcoder2", "qwen3"])
def test_a_window_is_no_bound_to_a_prompt(family: str) -> None:
    """A layer with a window keeps four tokens, and there may be more. Masks that generation prepares for a static cache cannot grow."""
    model: Any = model_of(family)
    model.generation_config.eos_token_id, model.generation_config.disable_compile = None, True
    put(model, named("prompt_tuning"))
    given, how = text(True), {"max_new_tokens": 4, "do_sample": False}
    made = model.generate(**given, **how, output_logits=True, return_dict_in_generate=True)
    mask = torch.nn.functional.pad(given["attention_mask"], (0, 4), value=1)
    with torch.no_grad():
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        wanted = model(input_ids=made.sequences, attention_mask=mask, position_ids=positions, use_cache=False).logits[
            :, -5:-1
        ]
    assert float((torch.stack(made.logits, 1) - wanted).abs().max()) <= NEAR
    with pytest.raises(unipelt.PeltError, match="E0545.*cannot grow") as caught:
        model.generate(**given, **how, cache_implementation="static")
    assert "leave cache_implementation out" in str(caught.value)
