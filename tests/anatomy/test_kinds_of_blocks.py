"""Kinds of blocks that the finder must see for what they are: each on the smallest model that has it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import transformers as T
from shrunk import shrunk
from torch import nn

import unipelt
from unipelt.anatomy.find import find
from unipelt.anatomy.layout import Layout
from unipelt.anatomy.prove import proved
from unipelt.anatomy.sites import NOT_YET, PROVED
from unipelt.anatomy.windows import window


def model_of(kind: str, cls: str = "AutoModel", **more: Any) -> nn.Module:
    torch.manual_seed(0)
    auto = getattr(T, cls)
    config = shrunk(kind, **more)
    return (auto.from_config(config) if cls.startswith("Auto") else auto(config)).eval()


def ids(n: int = 5) -> torch.Tensor:
    return torch.arange(10, 10 + n)[None]


def draw(model: nn.Module) -> None:
    """Puts drawn numbers on top of what the tensors of the method `m` start from."""
    g = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for group in unipelt.parameter_groups(model, "m", 1e-3):
            for p in group["params"]:
                p.add_(torch.randn(p.shape, generator=g) * 0.3)


def moved(model: nn.Module, method: Any, **inputs: Any) -> float:
    """How far a method with drawn tensors moves the first output; that it leaves the model as it was is asserted."""
    inputs = inputs or {"input_ids": ids()}
    with torch.no_grad():
        base = model(**inputs)[0].clone()
        unipelt.apply(model, method, name="m", seed=0, head=False)
        draw(model)
        now = model(**inputs)[0].clone()
        unipelt.remove(model, "m")
        assert torch.equal(model(**inputs)[0], base)
    return float((now - base).abs().max())


def test_what_enters_a_shared_expert_s_last_map_is_a_place_beside_the_other_experts() -> None:
    model = model_of("qwen2_moe")
    hidden = find(model).named("ffn.hidden")
    assert len(hidden) == 2 and all(s.proof == PROVED and s.with_others for s in hidden)
    assert hidden[0].view.module == "layers.0.mlp.shared_expert.down_proj"
    assert moved(model, unipelt.load("ia3")) > 1e-3
    unipelt.apply(model, unipelt.load("ia3"), name="m", seed=0, head=False)
    with torch.no_grad():
        for group in unipelt.parameter_groups(model, "m", 1e-3):
            for p in group["params"]:
                p.mul_(1.5)
        apart = model(input_ids=ids())[0].clone()
        unipelt.merge(model, "m")
        torch.testing.assert_close(model(input_ids=ids())[0], apart, atol=1e-5, rtol=1e-4)


def test_a_dense_layer_and_experts_without_a_shared_one_are_the_same_on_meta() -> None:
    """The dense layer has the inner activation, the others have none."""
    model = model_of("glm4_moe", "AutoModelForCausalLM", num_hidden_layers=3)
    with torch.device("meta"):
        meta = T.AutoModelForCausalLM.from_config(shrunk("glm4_moe", num_hidden_layers=3))
    told = [{(s.label, s.with_others) for s in find(m).named("ffn.hidden")} for m in (model, meta)]
    assert told[0] == told[1] and len(told[0]) == 3 and len({w for _, w in told[0]}) == 2


def test_scores_that_two_streams_share_leave_each_stream_s_values_its_own() -> None:
    model = model_of("lilt", hidden_size=48)
    sites = find(model)
    assert [sites.named(f"attn.{n}")[0].view.module.rpartition(".")[2] for n in "qkv"] == ["query", "key", "value"]
    assert all(s.proof == PROVED for n in "qkv" for s in sites.named(f"attn.{n}"))
    assert moved(model, unipelt.load("lora", arguments={"r": 4})) > 1e-3


def test_one_list_of_blocks_may_feed_another() -> None:
    sites = find(model_of("lxmert", l_layers=2, x_layers=2, r_layers=1))
    assert not any("follow" in why for why in sites.refused.values())
    text = next(s for s in sites.stacks if s.blocks[-1] == "encoder.layer.1")
    assert [s.layer for s in sites.named("attn", text.name)] == [0, 1]


def test_a_tensor_that_enters_twice_is_one_when_the_block_is_run_again() -> None:
    sites = find(
        model_of("funnel", "FunnelModel")
    )  # a block takes queries, keys and values: the same hidden states, save where it pools
    assert sites.named("attn") and all(s.proof == PROVED for s in sites.named("attn"))
    assert "encoder.attn" not in sites.refused


@pytest.mark.parametrize("layer, reach", [(0, 9), (1, None)])
def test_layers_that_a_configuration_tells_apart_have_windows_of_their_own(layer: int, reach: int | None) -> None:
    """Such a configuration raises an error where one asks it for what differs between its layers."""
    config = shrunk("neomme", num_hidden_layers=2, layer_types=["sliding_attention", "full_attention"])
    config.per_layer_config = {0: {"sliding_window": 9}, 1: {"sliding_window": None}}
    assert window(nn.Identity(), layer, config) == reach


# ---------------------------------------------------------------- sublayers in lists of their own


class Looks(nn.Module):
    """Attention, written out, with no sum of its own."""

    def __init__(self, d: int = 16) -> None:
        super().__init__()
        self.a, self.b, self.c, self.z = (nn.Linear(d, d) for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (m(x).unflatten(-1, (2, 8)).transpose(1, 2) for m in (self.a, self.b, self.c))
        return self.z((torch.softmax(q @ k.mT / 8**0.5, -1) @ v).transpose(1, 2).flatten(-2))


class Scattered(nn.Module):
    """All attentions in one list, all feed-forward layers in another; ``before``: norms before a sublayer, not behind its sum."""

    main_input_name = "x"

    def __init__(self, before: bool, n: int = 2, d: int = 16) -> None:
        super().__init__()
        self.before, self.config = before, T.PretrainedConfig(hidden_size=d)
        self.one = nn.ModuleList(Looks(d) for _ in range(n))
        self.two = nn.ModuleList(nn.Sequential(nn.Linear(d, 24), nn.GELU(), nn.Linear(24, d)) for _ in range(n))
        self.n1, self.n2 = (nn.ModuleList(nn.LayerNorm(d) for _ in range(n)) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for one, two, n1, n2 in zip(self.one, self.two, self.n1, self.n2):
            if self.before:
                x = x + one(n1(x))
                x = x + two(n2(x))
            else:
                x = n1(x + one(x))
                x = n2(x + two(x))
        return x


@pytest.mark.parametrize("before", [True, False])
def test_sublayers_in_lists_of_their_own_stand_for_blocks(before: bool) -> None:
    torch.manual_seed(0)
    model = Scattered(before).eval()
    sites = find(model, example={"x": torch.randn(1, 5, 16)})
    (stack,) = sites.stacks
    assert stack.blocks == ("one.0", "two.0", "one.1", "two.1") and not sites.named("block")
    attn, ffn = sites.named("attn"), sites.named("ffn")
    assert [(s.view.module, s.x, s.norm) for s in attn] == [(f"one.{i}", f"one.{i}", f"n1.{i}") for i in (0, 1)]
    assert [s.residual for s in ffn] == [f"{'n2' if before else 'two'}.{i}" for i in (0, 1)]
    assert [sites.named(f"attn.{n}")[0].view.module for n in "qkvo"] == [f"one.0.{n}" for n in "abcz"]
    assert [s.view.module for s in sites.named("ffn.up")] == ["two.0.0", "two.1.0"]
    assert all(s.proof == PROVED for s in (*sites.named("attn.q"), *sites.named("ffn.down")))
    assert {s.proof for s in (*attn, *ffn)} == {NOT_YET if before else PROVED}  # before, no module is given the sum


def test_a_norm_behind_another_sum_is_refused() -> None:
    torch.manual_seed(0)
    model = Scattered(False).eval()
    given = {"x": torch.randn(1, 5, 16)}
    right = find(model, example=given)
    wrong = replace(right, sites=tuple(replace(s, norm="n1.1") if s.label == "one.0.attn" else s for s in right.sites))
    left = proved(wrong, model, model, given)
    assert "is not what enters `n1.1`" in left.refused["one.0.attn"]
    assert [s.label for s in left.named("attn")] == ["one.1.attn"]


@pytest.mark.parametrize("method", ["lora", "prefix_tuning", "pfeiffer"])
def test_methods_act_where_no_module_is_a_block(method: str) -> None:
    """Its own cache, which such a model makes in every pass, is none of a block's that is run again."""
    model = model_of("xlm", "XLMModel")
    sites = find(model)
    assert {s.proof for s in sites.sites if s.block} == {PROVED} and not sites.refused
    assert moved(model, unipelt.load(method, arguments={"l": 3} if method == "prefix_tuning" else {"r": 4})) > 1e-4


# ---------------------------------------------------------------- a stream that is multiplied by learned numbers


def unlike(model: nn.Module) -> nn.Module:
    """With learned numbers that are not one and the same."""
    g = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for n, p in model.named_parameters():
            if p.dim() == 1 and ("residual" in n):
                p.copy_(torch.rand(p.shape, generator=g) + 0.5)
    return model


@pytest.mark.parametrize("kind, factor", [("doge", 1.0), ("muse_spark_text", None)])
def test_the_stream_may_be_multiplied_by_learned_numbers(kind: str, factor: float | None) -> None:
    """By a parameter (Doge), or by what is made of one; then what is added is multiplied, too."""
    model = unlike(model_of(kind))
    sites = find(model)
    both = (*sites.named("attn"), *sites.named("ffn"))
    assert len(both) == 4 and {(s.keeps, s.proof) for s in both} == {(None, PROVED)}
    assert "learned numbers" in str(unipelt.sites(model))
    assert moved(model, unipelt.load("adapter", arguments={"r": 4})) > 1e-4
    for wrong in (replace(both[0], keeps=1.0), replace(both[0], residual=both[1].residual)):
        left = proved(replace(sites, sites=tuple(wrong if s is both[0] else s for s in sites.sites)), model, model)
        assert not any(s.label == both[0].label for s in left.sites), wrong


def test_a_norm_s_own_weights_are_none_of_the_stream_s() -> None:
    """Where the stream is what a norm yields, its last step multiplies by learned numbers, too."""
    sites = find(model_of("minimax", "AutoModelForCausalLM"))
    both = (*sites.named("attn"), *sites.named("ffn"))
    assert {s.proof for s in both} == {PROVED} and None not in {s.keeps for s in both}
    assert all(s.residual == s.x for s in both)


def test_a_sublayer_may_read_more_than_the_stream_that_it_is_added_to() -> None:
    """NeoMME's attention reads the stream mixed with what the first block read; its last map starts at zero."""
    model = model_of("neomme", "NeoMMEForMaskedLM")
    with torch.no_grad():
        for p in model.parameters():
            if p.dim() > 1 and not p.any():
                p.normal_(0.0, 0.02)
    sites = find(model)
    attn = sites.named("attn")
    assert [s.residual for s in attn] == ["model.layers.0", "model.layers.1"] and {s.proof for s in attn} == {PROVED}
    wrong = replace(attn[0], residual="model.layers.0.post_attention_layernorm")
    left = proved(replace(sites, sites=tuple(wrong if s is attn[0] else s for s in sites.sites)), model, model.model)
    assert not any(s.label == attn[0].label for s in left.sites)


@pytest.mark.parametrize("meta", [False, True])
def test_tokens_that_stand_before_the_examples_are_known_for_it(meta: bool) -> None:
    """FSMT's blocks have [token, batch, d]: what is pooled over tokens is not pooled over the examples of a batch."""
    with torch.device("meta" if meta else "cpu"):
        torch.manual_seed(0)
        model = T.FSMTForConditionalGeneration(shrunk("fsmt")).eval()
    sites = find(model)
    assert {s.view.layout for s in sites.sites if s.layer == 0} == {Layout(turned=True)}
    if meta:
        return
    method = unipelt.load("unipelt_apl", arguments={"ra": 4, "l": 3, "rl": 4, "mid": 8})
    unipelt.apply(model, method, name="m", seed=0, head=False, allow_future=True)
    draw(model)
    g = torch.Generator().manual_seed(4)
    with torch.no_grad():
        words, given = torch.randint(5, 60, (3, 4), generator=g), torch.randint(5, 60, (3, 4), generator=g)
        together = model(input_ids=words, decoder_input_ids=given)[0]
        for i in range(3):
            alone = model(input_ids=words[i : i + 1], decoder_input_ids=given[i : i + 1])[0]
            torch.testing.assert_close(together[i : i + 1], alone, atol=1e-5, rtol=1e-4)
