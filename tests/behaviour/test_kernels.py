"""Adapters at heads through every attention kernel: what eager computes, and no mask where the kernel's own flag says the same."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from kernels import Spy, flex_with_mass, stand_ins, use
from small import cache_of, with_cache
from tiny import PAD, VOCAB, batch, build, look, loss, put, same, trained
from torch.nn.attention.bias import CausalBias
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM, StaticCache
from transformers.masking_utils import AttentionMaskInterface
from transformers.modeling_utils import AttentionInterface

import unipelt
from unipelt.runtime import attention

__all__ = ["stand_ins"]
KERNELS = ("eager", "flash_attention_2", "flex_attention")
pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
#: Rows that join the keys; rows with a share of their own; gates on the rows; a softmax of its own.
METHODS = ("prefix_tuning", "mam", "unipelt_apl_causal", "llama_adapter", "multi_head_parallel_adapter")
NEAR, NEAR_EAGER = 1e-9, 1e-5


def number(kernel: str) -> torch.dtype:
    """Eager attention takes its softmax in float32, the others have float64 throughout."""
    return torch.float32 if kernel == "eager" else torch.float64


_SIZES: dict[str, Any] = dict(
    vocab_size=VOCAB, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, intermediate_size=48,
    max_position_embeddings=64, pad_token_id=PAD, bos_token_id=2, eos_token_id=None, initializer_range=0.2,
)  # fmt: skip


def windowed() -> Any:
    torch.manual_seed(0)
    return MistralForCausalLM(MistralConfig(**_SIZES, sliding_window=4)).double().eval()


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


def near(a: torch.Tensor, b: torch.Tensor, kernel: str = "sdpa") -> bool:
    return a.shape == b.shape and float((a - b).abs().max()) <= (NEAR_EAGER if kernel == "eager" else NEAR)


# ---------------------------------------------------------------- the same as eager


@pytest.mark.sampled(2)
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("spec", METHODS)
@pytest.mark.parametrize("kind", ["llama", "bart", "bert_words"])
def test_every_kernel_computes_the_same(kind: str, spec: str, kernel: str, stand_ins: Any) -> None:
    m = build(kind, number(kernel))
    given = [batch(kind)] if kind == "bart" else [inputs(p) for p in ("none", "right", "left")]
    base = [real(m, g, "sdpa") for g in given]
    put(m, spec)
    for g, before in zip(given, base):
        wanted = real(m, g, "sdpa")
        assert float((wanted - before).abs().max()) > 1e-3
        assert near(real(m, g, kernel), wanted, kernel)


@pytest.mark.parametrize("kernel", ["sdpa", *KERNELS])
@pytest.mark.parametrize("spec", ["prefix_tuning", "unipelt_apl_causal"])
def test_learned_rows_stand_outside_a_window(spec: str, kernel: str, stand_ins: Any) -> None:
    """Each query sees four tokens and every learned row: as written, which is the reference, in every kernel."""
    written, m = windowed().to(number(kernel)), windowed().to(number(kernel))
    put(written, spec, lowering=False)
    put(m, spec)
    for padding in ("none", "right", "left"):
        wanted = real(written, inputs(padding), "sdpa")
        assert near(real(m, inputs(padding), kernel), wanted, kernel)
        assert near(real(written, inputs(padding), kernel), wanted, kernel)


@pytest.mark.parametrize("spec", ["prefix_tuning", "unipelt_apl_causal"])
@pytest.mark.parametrize(
    "extra",
    [
        {"softcap": torch.tensor(0.5, dtype=torch.float64)},
        {"s_aux": torch.tensor([0.5, -1.0, 2.0, 0.0], dtype=torch.float64)},
    ],
    ids=["cap", "sinks"],
)
def test_capped_scores_and_sinks(spec: str, extra: dict[str, Any], stand_ins: Any) -> None:
    """A cap is for the tokens' scores alone, and a sink takes its share of everything: as the rows are written."""
    written, m = build("llama", torch.float64), build("llama", torch.float64)
    plain = real(m, inputs("right"), "flash_attention_2")
    put(written, spec, lowering=False)
    put(m, spec)
    given = inputs("right") | extra
    wanted = real(written, given, "flash_attention_2")
    assert float((real(written, inputs("right"), "flash_attention_2") - wanted).abs().max()) > 1e-3
    assert near(real(m, given, "flash_attention_2"), wanted)
    if "softcap" in extra:  # a CPU's flex attention has no sinks
        assert near(real(m, given, "flex_attention"), wanted)
    assert plain.shape == wanted.shape


@pytest.mark.parametrize("spec", ["prefix_tuning", "unipelt_apl_causal"])
def test_several_prefixes_and_what_comes_behind_them(spec: str, stand_ins: Any) -> None:
    """The second prefix shares the softmax with the first, and what comes next sees the mass of both."""
    m = build("llama", torch.float64)
    put(m, "prefix_tuning", "one")
    put(m, "prefix_tuning", "two", noise=5)
    put(m, spec, "three", noise=7)
    put(m, "llama_adapter", "four", noise=9)
    unipelt.activate(m, "one", "two", "three", "four")
    wanted = real(m, inputs("right"), "sdpa")
    for kernel in KERNELS:
        assert near(real(m, inputs("right"), kernel), wanted, kernel), kernel


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


STATIC = {"cache_implementation": "static"}


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("how", [{}, STATIC, {"num_beams": 2}], ids=["dynamic", "static", "beams"])
@pytest.mark.parametrize("make", [lambda: build("llama", torch.float64), windowed], ids=["grouped", "windowed"])
def test_generation_with_a_cache(make: Any, how: dict[str, Any], kernel: str, stand_ins: Any) -> None:
    if kernel == "flex_attention" and how == STATIC:
        pytest.skip("transformers itself cannot generate so")
    m = make()
    put(m, "prefix_tuning")
    given = inputs("left")
    m.generation_config.disable_compile = True

    def generated(name: str) -> Any:
        use(m, name)
        return m.generate(
            **given, max_new_tokens=5, do_sample=False, output_logits=True, return_dict_in_generate=True, **how
        )

    wanted, found = generated("sdpa"), generated(kernel)
    assert torch.equal(found.sequences, wanted.sequences)
    assert all(near(a, b, kernel) for a, b in zip(found.logits, wanted.logits))


@pytest.mark.parametrize("padding", ["none", "left"])
@pytest.mark.parametrize(
    "kernel", ["sdpa", "eager", "flash_attention_2"]
)  # transformers' own flex attention is wrong there
def test_a_static_cache_step_by_step(kernel: str, padding: str, stand_ins: Any) -> None:
    """The cache has room for more tokens than there are; what is in that room is seen by no query."""
    m = build("llama", number(kernel))
    put(m, "prefix_tuning")
    given = inputs(padding)
    use(m, kernel)
    cache = StaticCache(m.config, max_cache_len=16)
    with torch.no_grad():
        found = []
        for at in (slice(0, 6), slice(6, 7), slice(7, 9)):
            mask = given["attention_mask"][:, : at.stop]
            places = (mask.cumsum(-1) - 1).clamp(min=0)[:, at]
            step = m(
                input_ids=given["input_ids"][:, at], attention_mask=mask, position_ids=places, **with_cache(m, cache)
            )
            found.append(step.logits)
    at = given["attention_mask"].bool()
    with torch.no_grad():
        use(m, "sdpa")
        places = (given["attention_mask"].cumsum(-1) - 1).clamp(min=0)
        wanted = m(**given, position_ids=places).logits
    assert near(torch.cat(found, 1)[at], wanted[at], kernel)


def test_adapters_are_switched_between_two_steps(stand_ins: Any) -> None:
    """The learned rows are not in the cache: a step has those of the adapter that acts in it."""
    m = build("llama", torch.float64)
    put(m, "prefix_tuning", "one")
    put(m, "prefix_tuning", "two", noise=5)
    ids = inputs("none")["input_ids"]
    found = {}
    for name in ("sdpa", *KERNELS):
        use(m, name)
        with torch.no_grad():
            unipelt.activate(m, "one")
            first = m(input_ids=ids[:, :6], use_cache=True)
            unipelt.activate(m, "two")
            more = [m(input_ids=ids[:, i : i + 1], **with_cache(m, cache_of(first))).logits for i in range(6, 9)]
        found[name] = torch.cat(more, 1)
    assert all(near(t, found["sdpa"], name) for name, t in found.items())


LATE = unipelt.parse("""method late() {
  layers 1 .. 2 modify block.input form { P: [3, d_out] ~ normal(1.0) delta = P } compose prepend(delta, h)
}""")


@pytest.mark.parametrize("kernel", ["eager", "flash_attention_2"])
@pytest.mark.parametrize("more", [(), ("prefix_tuning",)], ids=["alone", "with keys"])
def test_rows_that_enter_a_later_block_are_hidden(more: tuple[str, ...], kernel: str, stand_ins: Any) -> None:
    m = build("llama", number(kernel))
    names = ["a", *more]
    for name, spec in zip(names, (LATE, *more)):
        put(m, spec, name)
    unipelt.activate(m, *names)
    for padding in ("none", "right", "left"):
        given = inputs(padding)
        wanted = real(m, given, "sdpa")
        assert near(real(m, given, kernel), wanted, kernel)
        with unipelt.using(m, None):
            assert float((real(m, given, kernel) - wanted).abs().max()) > 1e-3
    ids, mask = inputs("left").values()
    more_of = dict(attention_mask=mask, max_new_tokens=5, do_sample=False, pad_token_id=PAD)
    use(m, kernel)
    assert torch.equal(*(m.generate(ids, use_cache=way, **more_of) for way in (True, False)))


def test_a_mask_that_is_a_function_of_places_hides_no_rows(stand_ins: Any) -> None:
    m = build("llama", torch.float64)
    put(m, LATE)
    with pytest.raises(unipelt.PeltError) as e:
        real(m, inputs("none"), "flex_attention")
    assert e.value.diagnostics[0].code == "E0542" and "sdpa" in e.value.diagnostics[0].help


# ---------------------------------------------------------------- fast kernels stay


@pytest.mark.parametrize("spec", METHODS)
@pytest.mark.parametrize("kind", ["llama", "bert_words", "bart"])
def test_without_padding_sdpa_gets_no_explicit_mask(kind: str, spec: str) -> None:
    m = build(kind)
    put(m, spec)
    with Spy() as spy:
        look(m, batch(kind, padded=False))
    assert spy.given and all(g["mask"] is None or isinstance(g["mask"], CausalBias) for g in spy.given)
    if kind == "llama":  # the flag itself, or torch's name for it where rows stand before the tokens
        assert all(g["is_causal"] is (g["mask"] is None) for g in spy.given)
        assert any(g["mask"] is not None for g in spy.given) == (spec in ("prefix_tuning", "mam", "unipelt_apl_causal"))
        cache = cache_of(m(**batch(kind, padded=False), use_cache=True))
        with Spy() as spy:
            m(input_ids=torch.full((3, 1), 7), **with_cache(m, cache))
        assert spy.given and all(g["mask"] is None and not g["is_causal"] for g in spy.given)


def test_under_a_compiler_the_causal_flag_stays() -> None:
    m = LlamaForCausalLM(LlamaConfig(**_SIZES)).eval()
    put(m, "prefix_tuning")
    layer = m.model.layers[0].self_attn
    hidden = torch.randn(2, 7, 32, generator=torch.Generator().manual_seed(0))
    places = m.model.rotary_emb(hidden, torch.arange(7)[None])
    given = []

    def attend(h: torch.Tensor) -> torch.Tensor:
        return layer(h, position_embeddings=places, attention_mask=None)[0]

    def backend(graph: torch.fx.GraphModule, _: Any) -> Any:
        given.extend(
            n.kwargs for n in graph.graph.nodes if n.target is torch.nn.functional.scaled_dot_product_attention
        )
        return graph

    with torch.no_grad():
        found = torch.compile(attend, fullgraph=True, backend=backend)(hidden)
        assert (found - attend(hidden)).abs().max() <= 1e-6
    assert [(g["attn_mask"], g["is_causal"]) for g in given] == [(None, True)]


def test_the_flash_kernel_gets_longer_keys_and_its_causal_flag(stand_ins: Any) -> None:
    m = build("llama")
    put(m, unipelt.load("prefix_tuning")(l=4))
    real(m, inputs("none"), "flash_attention_2")
    assert stand_ins == [{"keys": 13, "queries": 9, "causal": True, "window": (-1, -1), "dropout": 0.0}] * 2


@pytest.mark.parametrize("kernel", ["eager", "flash_attention_2"])
def test_gradients(kernel: str, stand_ins: Any) -> None:
    found = {}
    for name in ("sdpa", kernel):
        m = build("llama", torch.float64)
        put(m, "prefix_tuning")
        use(m, name)
        loss(m, inputs("none")).backward()
        found[name] = {n: p.grad for n, p in trained(m, "a").items()}
    assert all(t is not None and near(t, found["sdpa"][n], kernel) for n, t in found[kernel].items())


def test_dropout_goes_through(stand_ins: Any) -> None:
    m = build("llama", attention_dropout=0.25)
    put(m, "prefix_tuning")
    m.train()
    with Spy() as spy:
        m(**inputs("none"))
    assert spy.given and all(g["dropout_p"] == 0.25 for g in spy.given)
    use(m, "flash_attention_2")
    m(**inputs("none"))
    assert stand_ins and all(c["dropout"] == 0.25 for c in stand_ins)


@pytest.mark.long
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # what torch and transformers say on the way to the compiler
def test_flex_attention_as_it_is_compiled() -> None:
    m = build("llama")
    put(m, "prefix_tuning")
    wanted = real(m, inputs("right"), "sdpa")
    assert near(real(m, inputs("right"), "flex_attention"), wanted, "eager")


def test_the_mass_that_flex_attention_tells_is_used(stand_ins: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    m = build("llama", torch.float64)
    put(m, "prefix_tuning", "one")
    put(m, "unipelt_apl_causal", "two", noise=3)
    unipelt.activate(m, "one", "two")
    wanted = real(m, inputs("right"), "sdpa")
    wrapped = AttentionInterface._global_mapping["flex_attention"]
    monkeypatch.setattr(wrapped, "base", flex_with_mass(wrapped.base))
    monkeypatch.setattr(attention, "log_mass", None)  # it is not computed again
    assert near(real(m, inputs("right"), "flex_attention"), wanted)


# ---------------------------------------------------------------- what is refused


def test_an_implementation_is_known_by_its_masks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A function of one's own is served where its masks are made as for a known kernel, and refused where they are not."""
    m = build("llama")
    before = look(m, batch("llama"))
    functions, masks = dict(AttentionInterface._global_mapping), dict(AttentionMaskInterface._global_mapping)
    monkeypatch.setattr(AttentionInterface, "_global_mapping", functions)
    monkeypatch.setattr(AttentionMaskInterface, "_global_mapping", masks)
    AttentionInterface.register("own", functions["sdpa"].base)
    put(m, "prefix_tuning")
    wanted = look(m, batch("llama"))
    use(m, "own")
    with pytest.raises(unipelt.PeltError, match="E0542"):
        look(m, batch("llama"))
    AttentionMaskInterface.register("own", masks["sdpa"])
    assert same(look(m, batch("llama")), wanted)
    if with_cache(m, None) == {"past_key_values": None}:  # later versions read pages before they attend
        with pytest.raises(unipelt.PeltError, match="E0542"):  # learned rows would be put into the pages
            look(m, batch("llama"), cache=object())
    use(m, "sdpa")
    unipelt.remove(m, "a")
    assert same(look(m, batch("llama")), before)
