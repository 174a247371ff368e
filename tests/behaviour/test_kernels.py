"""Adapters at heads through every attention kernel: what eager computes, and no mask where the kernel's own flag says the same."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from kernels import flex_with_mass, stand_ins, use
from tiny import PAD, VOCAB, batch, build, distance, look, loss, put, trained
from torch.nn.attention.bias import CausalBias
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GptOssConfig,
    GptOssForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)
from transformers.modeling_utils import AttentionInterface

import unipelt
from unipelt.runtime import attention

__all__ = ["stand_ins"]
KERNELS = ("sdpa", "flash_attention_2", "flex_attention")
#: Rows that join the keys; rows with a share of their own; gates on the rows; a softmax of its own.
METHODS = ("prefix_tuning", "mam", "unipelt_apl_causal", "llama_adapter", "multi_head_parallel_adapter")
NEAR = 1e-9
_SIZES: dict[str, Any] = dict(
    vocab_size=VOCAB, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, intermediate_size=48,
    max_position_embeddings=64, pad_token_id=PAD, bos_token_id=2, eos_token_id=None, initializer_range=0.2,
)  # fmt: skip


def windowed() -> Any:
    torch.manual_seed(0)
    return MistralForCausalLM(MistralConfig(**_SIZES, sliding_window=4)).double().eval()


def capped() -> Any:
    torch.manual_seed(0)
    config = Gemma2Config(**_SIZES, head_dim=8, attn_logit_softcapping=0.5, sliding_window=32, attn_implementation="eager")
    return Gemma2ForCausalLM(config).double().eval()


def sunk() -> Any:
    torch.manual_seed(0)
    config = GptOssConfig(**_SIZES, head_dim=8, num_local_experts=2, num_experts_per_tok=1, sliding_window=32,
                          attn_implementation="eager", rope_parameters={"rope_type": "default", "rope_theta": 10000.0})  # fmt: skip
    model = GptOssForCausalLM(config).double().eval()
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.sinks.normal_()
    return model


def inputs(padding: str) -> dict[str, torch.Tensor]:
    """Three texts of nine tokens, one of which may be shorter, padded at a side."""
    found = batch("llama", rows=3, tokens=9, padded=padding == "right")
    if padding == "left":
        found["attention_mask"][1, :2] = 0
        found["input_ids"][1, :2] = PAD
    return found


@torch.no_grad()
def real(model: Any, given: dict[str, torch.Tensor], name: str) -> torch.Tensor:
    """The logits at the tokens that are no padding, by an implementation."""
    use(model, name)
    found = look(model, given)
    at = given.get("decoder_attention_mask", given["attention_mask"]).bool()
    return next(iter(found.values()))[at]


def near(a: torch.Tensor, b: torch.Tensor, within: float = NEAR) -> bool:
    return a.shape == b.shape and float((a - b).abs().max()) <= within


# ---------------------------------------------------------------- the same as eager


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("spec", METHODS)
@pytest.mark.parametrize("kind", ["llama", "bart", "bert_words"])
def test_every_kernel_computes_what_eager_computes(kind: str, spec: str, kernel: str, stand_ins: Any) -> None:
    m = build(kind, torch.float64)
    given = [batch(kind)] if kind == "bart" else [inputs(p) for p in ("none", "right", "left")]
    base = [real(m, g, "eager") for g in given]
    put(m, spec)
    for g, before in zip(given, base):
        wanted = real(m, g, "eager")
        assert not near(wanted, before, 1e-3)
        assert near(real(m, g, kernel), wanted)


@pytest.mark.parametrize("kernel", ["eager", *KERNELS])
@pytest.mark.parametrize("spec", ["prefix_tuning", "unipelt_apl_causal"])
def test_learned_rows_stand_outside_a_window(spec: str, kernel: str, stand_ins: Any) -> None:
    """Each query sees four tokens and every learned row: as written, which is the reference, in every kernel."""
    written, m = windowed(), windowed()
    put(written, spec, lowering=False)
    put(m, spec)
    for padding in ("none", "right", "left"):
        wanted = real(written, inputs(padding), "eager")
        assert near(real(m, inputs(padding), kernel), wanted)
        assert near(real(written, inputs(padding), kernel), wanted)


@pytest.mark.parametrize(("make", "kernels"), [(capped, ["eager", *KERNELS[1:]]), (sunk, ["eager", "flash_attention_2"])])
@pytest.mark.parametrize("spec", ["prefix_tuning", "unipelt_apl_causal"])
def test_capped_scores_and_sinks(make: Any, kernels: list[str], spec: str, stand_ins: Any) -> None:
    """A cap is for the tokens' scores alone, a sink takes its share of all: as written, in every kernel that has them."""
    written, m = make(), make()
    put(written, spec, lowering=False)
    put(m, spec)
    given = inputs("none")
    wanted = real(written, given, "eager")
    for name in kernels:
        assert near(real(m, given, name), wanted), name
        assert near(real(written, given, name), wanted), name


@pytest.mark.parametrize("spec", ["prefix_tuning", "unipelt_apl_causal"])
def test_several_prefixes_and_what_comes_behind_them(spec: str, stand_ins: Any) -> None:
    """The second prefix shares the softmax with the first, and what comes next sees the mass of both."""
    m = build("llama", torch.float64)
    put(m, "prefix_tuning", "one")
    put(m, "prefix_tuning", "two", noise=5)
    put(m, spec, "three", noise=7)
    put(m, "llama_adapter", "four", noise=9)
    unipelt.activate(m, ["one", "two", "three", "four"])
    wanted = real(m, inputs("right"), "eager")
    for kernel in KERNELS:
        assert near(real(m, inputs("right"), kernel), wanted), kernel


@pytest.mark.parametrize("spec", ["prefix_tuning", "unipelt_apl_causal"])
def test_packed_texts_each_see_the_learned_rows(spec: str, stand_ins: Any) -> None:
    """Two texts in one row, told apart by their positions: what each gives by itself."""
    m = build("llama", torch.float64)
    put(m, spec)
    ids = inputs("none")["input_ids"]
    whole = torch.cat([ids[0, :5], ids[1]])[None]
    positions = torch.cat([torch.arange(5), torch.arange(9)])[None]
    wanted = torch.cat([look(m, {"input_ids": t[None]})["logits"][0] for t in (ids[0, :5], ids[1])])
    ends = torch.tensor([0, 5, 14], dtype=torch.int32)
    flattened = {"cu_seq_lens_q": ends, "cu_seq_lens_k": ends, "max_length_q": 9, "max_length_k": 9}
    for name, more in (("sdpa", {}), ("flash_attention_2", {}), ("flash_attention_2", flattened)):
        use(m, name)
        with torch.no_grad():
            out = m(input_ids=whole, position_ids=positions, use_cache=False, **more).logits[0]
        assert near(out, wanted), name


# ---------------------------------------------------------------- generation


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("how", [{}, {"cache_implementation": "static"}, {"num_beams": 2}], ids=["dynamic", "static", "beams"])
@pytest.mark.parametrize("make", [lambda: build("llama", torch.float64), windowed], ids=["grouped", "windowed"])
def test_generation_with_a_cache(make: Any, how: dict[str, Any], kernel: str, stand_ins: Any) -> None:
    m = make()
    put(m, "prefix_tuning")
    given = inputs("left")
    m.generation_config.disable_compile = True

    def generated(name: str) -> Any:
        use(m, name)
        return m.generate(**given, max_new_tokens=5, do_sample=False, output_logits=True, return_dict_in_generate=True, **how)

    wanted, found = generated("eager"), generated(kernel)
    assert torch.equal(found.sequences, wanted.sequences)
    assert all(near(a, b) for a, b in zip(found.logits, wanted.logits))


def test_adapters_are_switched_between_two_steps(stand_ins: Any) -> None:
    """The learned rows are not in the cache: a step has those of the adapter that acts in it."""
    m = build("llama", torch.float64)
    put(m, "prefix_tuning", "one")
    put(m, "prefix_tuning", "two", noise=5)
    ids = inputs("none")["input_ids"]
    found = {}
    for name in ("eager", *KERNELS):
        use(m, name)
        with torch.no_grad():
            unipelt.activate(m, "one")
            first = m(input_ids=ids[:, :6], use_cache=True)
            unipelt.activate(m, "two")
            more = [m(input_ids=ids[:, i : i + 1], past_key_values=first.past_key_values).logits for i in range(6, 9)]
        found[name] = torch.cat(more, 1)
    assert all(near(found["eager"], t) for t in found.values())


# ---------------------------------------------------------------- fast kernels stay


def spied(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    given: list[dict[str, Any]] = []
    own = torch.nn.functional.scaled_dot_product_attention

    def spy(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attn_mask: Any = None, **more: Any) -> torch.Tensor:
        if not (given and given[-1]["inside"]):
            given.append({"mask": attn_mask, "inside": True, "queries": query.shape[2], **more})
            out = own(query, key, value, attn_mask=attn_mask, **more)
            given[-1]["inside"] = False
            return out
        return own(query, key, value, attn_mask=attn_mask, **more)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", spy)
    return given


@pytest.mark.parametrize("spec", METHODS)
@pytest.mark.parametrize("kind", ["llama", "bert_words", "bart"])
def test_without_padding_sdpa_gets_no_explicit_mask(kind: str, spec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    m = build(kind)
    put(m, spec)
    given = spied(monkeypatch)
    look(m, batch(kind, padded=False))
    assert given and all(g["mask"] is None or isinstance(g["mask"], CausalBias) for g in given)
    if kind == "llama":  # the flag itself, or torch's name for it where rows stand before the tokens
        assert all(g["is_causal"] is (g["mask"] is None) for g in given)
        assert any(g["mask"] is not None for g in given) == (spec in ("prefix_tuning", "mam"))
        given.clear()
        cache = m(**batch(kind, padded=False), use_cache=True).past_key_values
        given.clear()
        m(input_ids=torch.full((3, 1), 7), past_key_values=cache)
        assert given and all(g["mask"] is None and not g["is_causal"] for g in given)


def test_under_a_compiler_the_causal_flag_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    m = LlamaForCausalLM(LlamaConfig(**_SIZES)).eval()
    put(m, "prefix_tuning")
    layer = m.model.layers[0].self_attn
    given = spied(monkeypatch)
    hidden = torch.randn(2, 7, 32)
    places = m.model.rotary_emb(hidden, torch.arange(7)[None])

    def attend(h: torch.Tensor) -> torch.Tensor:
        return layer(h, position_embeddings=places, attention_mask=None)[0]

    with torch.no_grad():
        wanted = attend(hidden)
        given.clear()
        found = torch.compile(attend, fullgraph=True, backend="eager")(hidden)
    assert (found - wanted).abs().max() <= 1e-6
    assert [(g["mask"], g["is_causal"]) for g in given] == [(None, True)]


def test_the_flash_kernel_gets_longer_keys_and_its_causal_flag(stand_ins: Any) -> None:
    m = build("llama")
    put(m, unipelt.load("prefix_tuning")(l=4))
    real(m, inputs("none"), "flash_attention_2")
    assert stand_ins == [{"keys": 13, "queries": 9, "causal": True, "window": (-1, -1), "dropout": 0.0}] * 2


@pytest.mark.parametrize("kernel", ["eager", "sdpa", "flash_attention_2"])
def test_gradients(kernel: str, stand_ins: Any) -> None:
    found = {}
    for name in ("eager", kernel):
        m = build("llama", torch.float64)
        put(m, "prefix_tuning")
        use(m, name)
        loss(m, inputs("none")).backward()
        found[name] = {n: p.grad for n, p in trained(m, "a").items()}
    assert all(t is not None and near(t, found["eager"][n], 1e-8) for n, t in found[kernel].items())


def test_dropout_goes_through(monkeypatch: pytest.MonkeyPatch, stand_ins: Any) -> None:
    m = build("llama", attention_dropout=0.25)
    put(m, "prefix_tuning")
    m.train()
    given = spied(monkeypatch)
    m(**inputs("none"))
    assert given and all(g["dropout_p"] == 0.25 for g in given)
    use(m, "flash_attention_2")
    m(**inputs("none"))
    assert stand_ins and all(c["dropout"] == 0.25 for c in stand_ins)


def test_the_mass_that_flex_attention_tells_is_used(stand_ins: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    m = build("llama", torch.float64)
    put(m, "prefix_tuning", "one")
    put(m, "unipelt_apl_causal", "two", noise=3)
    unipelt.activate(m, ["one", "two"])
    wanted = real(m, inputs("right"), "eager")
    wrapped = AttentionInterface._global_mapping["flex_attention"]
    monkeypatch.setattr(wrapped, "base", flex_with_mass(wrapped.base))
    monkeypatch.setattr(attention, "log_mass", None)  # it is not computed again
    assert near(real(m, inputs("right"), "flex_attention"), wanted)


# ---------------------------------------------------------------- what is refused


def test_an_implementation_whose_masks_are_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    m = build("llama")
    before = look(m, batch("llama"))
    mapping = dict(AttentionInterface._global_mapping)
    monkeypatch.setattr(AttentionInterface, "_global_mapping", mapping)
    AttentionInterface.register("strange", mapping["sdpa"])
    put(m, "prefix_tuning")
    mapping["strange"] = attention.Wrapped("strange", mapping["sdpa"].base)
    use(m, "strange")
    with pytest.raises(unipelt.PeltError, match="E0542"):
        look(m, batch("llama"))
    use(m, "sdpa")
    unipelt.remove(m, "a")
    assert distance(look(m, batch("llama")), before) == 0
    assert copy.copy(mapping) == AttentionInterface._global_mapping
