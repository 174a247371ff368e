"""What the finder finds by what flows where: the same as the anatomies that were written by hand, and what none describes."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import pytest
import torch
import transformers as T
from maps import written
from names import name as named
from tiny import DESCRIBED, FOUND, build
from torch import nn

import unipelt
from unipelt.anatomy.base import base_modules
from unipelt.anatomy.columns import Columns
from unipelt.anatomy.find import find
from unipelt.anatomy.record import record
from unipelt.anatomy.search import NOT_REACHED, search
from unipelt.anatomy.sites import Site, SiteMap
from unipelt.anatomy.towers import towers

SIZES: dict[str, Any] = dict(vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48,
                             max_position_embeddings=32, pad_token_id=0, bos_token_id=1, eos_token_id=2)  # fmt: skip
GROUPED: dict[str, Any] = {**SIZES, "num_key_value_heads": 2, "head_dim": 8}
T5: dict[str, Any] = dict(vocab_size=64, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, pad_token_id=0)
BART: dict[str, Any] = dict(vocab_size=64, d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4, decoder_attention_heads=4,
                            encoder_ffn_dim=48, decoder_ffn_dim=40, max_position_embeddings=32, pad_token_id=0, bos_token_id=1, eos_token_id=2,
                            decoder_start_token_id=2)  # fmt: skip


def searched(model: nn.Module) -> SiteMap:
    base: Any = getattr(model, "base_model", model)
    return search(model, base, next((n for n, m in base_modules(model) if m is base), ""))[0]


def told(sites: SiteMap) -> dict[tuple[str, str], Site]:
    return {(s.stack, s.label): s for s in sites.sites}


@pytest.mark.parametrize("kind", DESCRIBED)
def test_the_finder_agrees_with_the_anatomies(kind: str) -> None:
    """In everything: towers, modules, sizes, which columns, what may be called, where tokens enter, the head."""
    agrees(build(kind))


@pytest.mark.parametrize("config", [
    T.Qwen3Config(**GROUPED), T.SmolLM3Config(**{**GROUPED, "num_hidden_layers": 4}), T.OlmoConfig(**SIZES), T.XLMRobertaConfig(**SIZES),
    T.CamembertConfig(**SIZES), T.ViTConfig(**{n: SIZES[n] for n in ("hidden_size", "num_hidden_layers", "num_attention_heads")}, image_size=12,
    patch_size=4), T.UMT5Config(**T5), T.PegasusConfig(**BART), T.BlenderbotConfig(**BART), T.BlenderbotSmallConfig(**BART), T.MarianConfig(**BART),
], ids=lambda c: c.model_type)  # fmt: skip
def test_it_agrees_with_them_on_types_that_are_built_alike(config: Any) -> None:
    agrees(model_of(config))


def agrees(model: nn.Module) -> None:
    want, got = written(model), searched(model)
    assert not got.anatomy
    assert (got.stacks, got.head, got.prefix) == (want.stacks, want.head, want.prefix)
    a, b = told(want), told(got)
    assert set(b) == set(a)
    for key, site in a.items():
        for f in fields(Site):
            if f.name != "proof":
                assert getattr(b[key], f.name) == getattr(site, f.name), (key, f.name)


def model_of(config: Any, meta: bool = False) -> nn.Module:
    torch.manual_seed(0)
    with torch.device("meta" if meta else "cpu"):
        return T.AutoModel.from_config(config).eval()


OTHERS = {
    "gpt_neox": T.GPTNeoXConfig(**SIZES),
    "falcon": T.FalconConfig(**{**SIZES, "num_kv_heads": 2, "new_decoder_architecture": True, "ffn_hidden_size": 48}),
    "phi3": T.Phi3Config(**{**SIZES, "num_key_value_heads": 2}),
    "gemma2": T.Gemma2Config(**GROUPED),
    "granite": T.GraniteConfig(**GROUPED, residual_multiplier=0.5),
    "mixtral": T.MixtralConfig(**GROUPED, num_local_experts=4),
    "longformer": T.LongformerConfig(**SIZES, attention_window=[4, 4]),  # takes a branch that only numbers decide
    "modernbert": T.ModernBertConfig(**{**SIZES, "cls_token_id": 1, "sep_token_id": 2}),
    "mamba": T.MambaConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2, state_size=4),
    "qwen2_moe": T.Qwen2MoeConfig(**GROUPED, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=24, shared_expert_intermediate_size=40),
}  # fmt: skip


@pytest.mark.parametrize("kind", OTHERS)
def test_it_finds_the_same_without_weights(kind: str) -> None:
    assert searched(model_of(OTHERS[kind], meta=True)) == searched(model_of(OTHERS[kind]))


@pytest.mark.parametrize("kind", FOUND)
def test_what_no_anatomy_describes_is_found_the_same_without_weights(kind: str) -> None:
    cls, config, options = FOUND[kind]
    model = build(kind)
    with torch.device("meta"):
        empty = cls(config(**options)).eval()
    found = find(model)
    assert not found.anatomy and not found.unknown and found.named("attn")
    known = searched(model)
    if kind == "smolvlm":  # it leaves pictures out by their values, so on meta none runs beside a text
        assert known.named("projector")
        sites = tuple(s for s in known.sites if s.name != "projector")
        known = replace(
            known, sites=sites, uncovered={**known.uncovered, "model.connector.modality_projection.proj": NOT_REACHED}
        )
    assert searched(empty) == known


def at(sites: SiteMap, name: str) -> tuple[str, tuple[tuple[int, int], ...] | None]:
    """The last block's site of a name: its module's path in the block, and its columns."""
    s = sites.named(name)[-1]
    return s.view.module.removeprefix(f"{s.block}."), s.view.columns.ranges if s.view.columns else None


def test_the_columns_of_fused_projections() -> None:
    neox = searched(model_of(OTHERS["gpt_neox"]))
    for i, part in enumerate("qkv"):  # head by head: its query, its key, its value
        assert at(neox, f"attn.{part}") == (
            "attention.query_key_value",
            tuple((24 * h + 8 * i, 24 * h + 8 * i + 8) for h in range(4)),
        )
    falcon = searched(model_of(OTHERS["falcon"]))  # group by group: two queries, a key, a value
    assert [at(falcon, f"attn.{p}")[1] for p in "qkv"] == [
        ((0, 16), (32, 48)),
        ((16, 24), (48, 56)),
        ((24, 32), (56, 64)),
    ]
    phi3 = searched(model_of(OTHERS["phi3"]))
    assert [at(phi3, f"attn.{p}")[1] for p in "qkv"] == [((0, 32),), ((32, 48),), ((48, 64),)]
    assert (at(phi3, "ffn.gate"), at(phi3, "ffn.up")) == (
        ("mlp.gate_up_proj", ((0, 48),)),
        ("mlp.gate_up_proj", ((48, 96),)),
    )
    assert phi3.named("ffn.down")[0].view.columns is None and isinstance(phi3.named("attn.q")[0].view.columns, Columns)


def test_norms_factors_and_parallel_sublayers() -> None:
    gemma = searched(model_of(OTHERS["gemma2"]))  # norms before a sublayer, and behind it before the sum
    ffn = gemma.named("ffn")[0]
    assert (ffn.view.module, ffn.norm, ffn.x) == (
        "layers.0.post_feedforward_layernorm",
        "layers.0.pre_feedforward_layernorm",
        "layers.0.mlp",
    )
    assert {s.factor for s in searched(model_of(OTHERS["granite"])).named("ffn")} == {0.5}
    neox = searched(model_of(OTHERS["gpt_neox"]))
    assert [neox.named(n)[0].residual for n in ("attn", "ffn")] == [
        "layers.0.input_layernorm",
        "layers.0.post_attention_layernorm",
    ]


def test_experts_and_mixers() -> None:
    mixtral = searched(model_of(OTHERS["mixtral"]))
    assert len(mixtral.named("ffn")) == 2 and not mixtral.named("ffn.up") and "experts" in mixtral.refused["ffn.up"]
    assert not any("experts" in path for path in mixtral.uncovered)
    assert [s.view.path for s in mixtral.named("ffn.experts.up.weight")] == [
        f"layers.{i}.mlp.experts.gate_up_proj" for i in range(2)
    ]
    shared = searched(model_of(OTHERS["qwen2_moe"]))
    assert at(shared, "ffn.up") == ("mlp.shared_expert.up_proj", None) and shared.named("ffn.up")[0].sizes["d_ff"] == 40
    mamba = searched(model_of(OTHERS["mamba"]))
    assert mamba.stacks[0].causal and not mamba.named("attn.q") and not mamba.named("ffn")


class Block(nn.Module):
    """Names that say nothing, or what is not so."""

    def __init__(self) -> None:
        super().__init__()
        self.k_proj, self.q_proj, self.a, self.b = (nn.Linear(16, 16) for _ in range(4))
        self.norm, self.later = nn.LayerNorm(16), nn.LayerNorm(16)
        self.up_proj, self.gate_proj, self.down = nn.Linear(16, 24), nn.Linear(16, 24), nn.Linear(24, 16)

    def forward(self, h: torch.Tensor) -> torch.Tensor:
        x = self.norm(h)
        k, q, v = (m(x).unflatten(-1, (2, 8)).transpose(1, 2) for m in (self.q_proj, self.k_proj, self.a))
        h = h + self.b((torch.softmax(q @ k.transpose(-1, -2), -1) @ v).transpose(1, 2).flatten(-2))
        x = self.later(h)
        return h + self.down(nn.functional.silu(self.up_proj(x)) * self.gate_proj(x))


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.list, self.end = nn.Embedding(20, 16), nn.ModuleList([Block(), Block()]), nn.LayerNorm(16)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        h = self.table(ids)
        for block in self.list:
            h = block(h)
        return self.end(h)


def test_names_say_nothing() -> None:
    """A module of torch alone: what is called `q_proj` makes keys, and `up_proj` is the gate."""
    torch.manual_seed(0)
    model = Model()
    sites = search(model, model, "", {"ids": torch.arange(5)[None]})[0]
    assert {n: at(sites, n)[0].rpartition(".")[2] for n in ("attn.q", "attn.k", "attn.v", "attn.o", "ffn.gate", "ffn.up", "ffn.down")} == {
        "attn.q": "k_proj", "attn.k": "q_proj", "attn.v": "a", "attn.o": "b", "ffn.gate": "up_proj", "ffn.up": "gate_proj", "ffn.down": "down",
    }  # fmt: skip


class Convolved(nn.Module):
    """A block as ResNets have it, which makes pictures smaller, and holds a list of its own."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.layer = nn.Sequential(nn.Conv2d(4, 4, 3, stride, 1), nn.ReLU(), nn.Conv2d(4, 4, 3, 1, 1))
        self.shortcut = nn.Conv2d(4, 4, 1, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.layer(x) + self.shortcut(x))


def test_what_sums_is_a_block_and_no_stage_of_blocks() -> None:
    stages = nn.Sequential(nn.Sequential(Convolved(1), Convolved(2)), nn.Sequential(Convolved(1), Convolved(2)))
    found = record(stages, lambda: stages(torch.randn(1, 4, 8, 8)))
    assert [t.blocks for t in towers(stages, found)] == [("0.0", "0.1"), ("1.0", "1.1")]


def test_edits_at_heads_keep_torch_s_encoder_off_its_fast_path() -> None:
    """There it would call no module, and nothing would be done at its heads."""
    torch.manual_seed(0)
    model = nn.TransformerEncoder(
        nn.TransformerEncoderLayer(16, 2, 24, batch_first=True), 2, enable_nested_tensor=False
    ).eval()
    x = torch.randn(2, 5, 16)
    with torch.no_grad():
        before = model(x)
        unipelt.apply(model, unipelt.load(named("prefix_tuning"))(l=3), name="p", seed=0)
        changed = model(x)
        assert float((changed - before).abs().max()) > 1e-3
        unipelt.remove(model, "p")
        assert torch.equal(model(x), before)


def test_a_search_leaves_nothing_behind() -> None:
    model = model_of(OTHERS["gemma2"]).train()
    before = [(len(m._forward_pre_hooks), len(m._forward_hooks), m.training) for m in model.modules()]
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    searched(model)
    assert torch.equal(torch.rand(2), expected)
    assert before == [(len(m._forward_pre_hooks), len(m._forward_hooks), m.training) for m in model.modules()]
    assert torch.is_grad_enabled() and torch.backends.mha.get_fastpath_enabled()


@pytest.mark.parametrize("kind", ["cohere", "cohere2"])
def test_sublayers_that_are_added_one_by_one_are_beside_each_other(kind: str) -> None:
    """(stream + attn) + ffn, where the feed-forward layer reads the stream: both have that one as their residual, and are proved."""
    config = T.CONFIG_MAPPING[kind](**SIZES, num_key_value_heads=2)
    model = T.AutoModelForCausalLM.from_config(config).eval()
    attn, ffn = (find(model).named(n) for n in ("attn", "ffn"))
    assert len(attn) == len(ffn) == 2
    assert all(
        a.residual == f.residual and a.norm == f.norm and a.proof == f.proof == "proved" for a, f in zip(attn, ffn)
    )


def test_sublayers_that_read_what_the_other_yields_are_none_beside_each_other() -> None:
    sites = find(model_of(T.LlamaConfig(**SIZES)))
    assert [s.residual for s in sites.named("ffn")] != [s.residual for s in sites.named("attn")]


def test_a_norm_behind_a_sublayer_and_before_the_sum_is_its_norm() -> None:
    model = model_of(T.Olmo2Config(**GROUPED))
    for name in ("attn", "ffn"):
        assert [s.norm for s in find(model).named(name)] == [s.view.module for s in find(model).named(name)]


@pytest.mark.parametrize("meta", [False, True])
def test_which_side_of_a_factor_the_embedded_tokens_are(meta: bool) -> None:
    before = searched(model_of(T.GraniteConfig(**GROUPED, embedding_multiplier=6.0), meta)).named("embed")[0]
    assert (before.view.module, before.view.enters, before.factor, before.scaled) == ("embed_tokens", False, 6.0, False)
    behind = searched(model_of(OTHERS["gemma2"], meta)).named("embed")[0]
    assert (behind.view.module, behind.factor, behind.scaled) == ("embed_tokens", 1.0, True)
    plain = searched(model_of(OTHERS["mixtral"], meta)).named("embed")[0]
    assert (plain.view.module, plain.factor, plain.scaled) == ("embed_tokens", 1.0, False)


SCALES = unipelt.parse(
    "method scales { modify ffn  insert sequential  form { s: [d_out] ~ normal(1)  delta = z * s }  compose add }"
)


@pytest.mark.parametrize("kind, merges", [("phi3", True), ("gemma2", False), ("qwen2_moe", False), ("mixtral", False)])
def test_only_what_stands_next_to_a_map_merges_into_it(kind: str, merges: bool) -> None:
    """Behind a norm, or where experts are summed with it, an edit of a sublayer is none of its last map."""
    model = model_of(OTHERS[kind])
    ids = torch.arange(5, 11)[None]
    unipelt.apply(model, SCALES, name="s", seed=0)
    with torch.no_grad():
        changed = model(ids).last_hidden_state
        if not merges:
            with pytest.raises(unipelt.PeltError, match="E0563"):
                unipelt.merge(model, "s")
        else:
            unipelt.merge(model, "s")
        assert torch.allclose(model(ids).last_hidden_state, changed, atol=1e-4)


def test_a_sublayer_that_yields_a_list_is_edited() -> None:
    """OpenAI's first GPT returns its attention's output in a list."""
    torch.manual_seed(0)
    model = T.OpenAIGPTModel(T.OpenAIGPTConfig(vocab_size=64, n_positions=32, n_embd=32, n_layer=2, n_head=4)).eval()
    ids = torch.arange(5, 11)[None]
    with torch.no_grad():
        before = model(ids).last_hidden_state
        unipelt.apply(model, SCALES, name="s", seed=0)
        assert float((model(ids).last_hidden_state - before).abs().max()) > 1e-3
        unipelt.remove(model, "s")
        unipelt.apply(model, unipelt.parse("method m { modify attn  insert sequential  form { s: [d_out] ~ normal(1)  delta = z * s }  "
                                           "compose add }"), name="m", seed=0)  # fmt: skip
        assert float((model(ids).last_hidden_state - before).abs().max()) > 1e-3


def test_a_norm_of_the_next_sublayer_is_none_of_the_one_before() -> None:
    """ModernBERT's first block has no norm before its attention; the next one reads the sum, and is the feed-forward layer's."""
    sites = searched(model_of(OTHERS["modernbert"]))
    assert [s.norm for s in sites.named("attn")] == [None, "layers.1.attn_norm"]
    assert [s.norm for s in sites.named("ffn")] == ["layers.0.mlp_norm", "layers.1.mlp_norm"]


def test_what_no_pass_reaches_is_listed() -> None:
    """A tower whose inputs cannot be guessed is missing in no silence."""

    class Apart(Model):
        def __init__(self) -> None:
            super().__init__()
            self.other = nn.ModuleList([Block()])

    torch.manual_seed(0)
    model = Apart()
    sites = search(model, model, "", {"ids": torch.arange(5)[None]})[0]
    left = {n for n, why in sites.uncovered.items() if why == NOT_REACHED}
    assert left == {f"other.0.{n}" for n, m in model.other[0].named_children() if isinstance(m, nn.Linear)}


def test_a_module_whose_weight_another_one_reads_is_no_place() -> None:
    """Mamba's mixer computes with its convolution's and its steps' weights, and calls neither module."""
    model = model_of(OTHERS["mamba"])
    with pytest.raises(unipelt.PeltError, match="E0529.*`layers.0.mixer` reads its weight by itself"):
        unipelt.plan(model, unipelt.load(named("lora"))(at=['module(".*dt_proj")'], r=2))


def test_a_head_is_covered() -> None:
    sites = searched(T.GPTNeoXForCausalLM(OTHERS["gpt_neox"]).eval())
    assert len(sites.head) == 1 and len(sites.named("head")) == 1
    assert not sites.uncovered
