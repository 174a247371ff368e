"""The proof of maps: every site of a right one is proved, no mistake in a map is accepted, and what is right stays."""

from __future__ import annotations

import zlib
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch
import transformers as T
from maps import written
from mutants import mutants
from test_unknown import GROUPED, SIZES, model_of
from tiny import DESCRIBED, batch, build, footprint
from torch.nn import functional
from transformers.modeling_utils import AttentionInterface

import unipelt
from unipelt.anatomy.columns import Columns
from unipelt.anatomy.find import find, present
from unipelt.anatomy.prove import NOT_YET, PROVED, proved, tried
from unipelt.anatomy.read import read
from unipelt.anatomy.replay import _rows
from unipelt.anatomy.sites import SiteMap, View
from unipelt.language.syntax.nodes import AnatomyDef
from unipelt.language.syntax.parser import parse as parse_file

HALF = (torch.bfloat16, torch.float16)


def _base(model: Any) -> Any:
    return getattr(model, "base_model", model)


@pytest.mark.parametrize("kind", DESCRIBED)
def test_every_site_of_a_tested_architecture_is_proved(kind: str) -> None:
    """With the inputs of a caller, and with guessed ones; the model is as it was."""
    model = build(kind)
    model.train()
    before, sites = footprint(model), find(model)
    seams = AttentionInterface.get_interface, functional.scaled_dot_product_attention
    for inputs in (batch(kind, rows=1, tokens=6, padded=False), None, batch(kind, rows=2, tokens=6)):
        found, wrong = tried(sites, model, _base(model), inputs)
        assert not wrong and not found.refused
        assert [s.label for s in found.sites] == [s.label for s in sites.sites]
        assert {s.proof for s in found.sites} == {PROVED}, [s for s in found.sites if s.proof != PROVED]
    assert footprint(model) == before
    assert seams == (AttentionInterface.get_interface, functional.scaled_dot_product_attention)


@pytest.mark.parametrize("kind", ["bert", "llama", "gpt2", "mt5", "bart", "vit_head"])
@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_short_numbers_are_enough(kind: str, dtype: torch.dtype) -> None:
    model = build(kind, dtype=dtype)
    sites = find(model)
    found, wrong = tried(sites, model, _base(model))
    assert not wrong and len(found.sites) == len(sites.sites) and {s.proof for s in found.sites} == {PROVED}


# ---------------------------------------------------------------- mistakes


def none_is_accepted(sites: SiteMap, model: Any, seed: int, parallel: bool = False, coarse: bool = False) -> int:
    """How many mistakes were tried in a map. ``coarse``: one of a hundredth is none that the type of number can show."""
    right = {s.label for s in proved(sites, model, _base(model)).sites}
    tries = 0
    for m in mutants(sites, seed):
        if coarse and "1.01" in m.what:
            continue
        tries += 1
        found = proved(m.sites, model, _base(model))
        labels = {s.label for s in found.sites}
        assert not labels & m.wrong, (m.what, sorted(labels & m.wrong))
        lost = {s.label for s in m.sites.sites} & right - labels - m.near
        if parallel:
            lost -= {s.label for s in sites.sites if s.kind.is_sublayer}
        assert not lost, (m.what, sorted(lost), found.refused)
    return tries


@pytest.mark.sampled(4)
@pytest.mark.parametrize("kind, least", [("bert_head", 40), ("gpt2_head", 50), ("llama", 45), ("mt5", 55), ("mbart", 55), ("albert", 28),
                                         ("opt", 45), ("opt_post", 40), ("vit_head", 40), ("whisper", 50)])  # fmt: skip
def test_no_mistake_is_accepted(kind: str, least: int) -> None:
    model = build(kind)
    assert none_is_accepted(written(model), model, zlib.crc32(kind.encode()) % 1000) >= least


@pytest.mark.sampled(2)
@pytest.mark.parametrize("kind", ["llama", "mt5"])
def test_no_mistake_is_accepted_in_short_numbers(kind: str) -> None:
    model = build(kind, dtype=torch.bfloat16)
    assert none_is_accepted(written(model), model, 3, coarse=True) >= 45


# ---------------------------------------------------------------- architectures that no anatomy of the library is for

_LLAMA = """block: "layers.*" attn: "self_attn" attn.x: "self_attn" attn.residual: "input_layernorm" attn.norm: "input_layernorm"
 attn.heads: "self_attn" attn.q: "self_attn.q_proj" attn.k: "self_attn.k_proj" attn.v: "self_attn.v_proj" attn.o: "self_attn.o_proj"
 ffn: "mlp" ffn.x: "mlp" ffn.residual: "post_attention_layernorm" ffn.norm: "post_attention_layernorm" ffn.up: "mlp.up_proj"
 ffn.gate: "mlp.gate_proj" ffn.down: "mlp.down_proj" final: "norm" embed: "embed_tokens" embed.words: "embed_tokens" """
_SANDWICH = {"attn": "post_attention_layernorm", "ffn": "post_feedforward_layernorm", "ffn.residual": "pre_feedforward_layernorm",
             "ffn.norm": "pre_feedforward_layernorm"}  # fmt: skip
_OWN_NORM = {"attn": "post_attention_layernorm", "attn.residual": "self_attn", "attn.norm": "post_attention_layernorm",
             "ffn": "post_feedforward_layernorm", "ffn.residual": "mlp", "ffn.norm": "post_feedforward_layernorm"}  # fmt: skip
_PHI = {"attn.o": "self_attn.dense", "ffn.residual": "input_layernorm", "ffn.norm": "input_layernorm", "ffn.up": "mlp.fc1", "ffn.gate": "",
        "ffn.down": "mlp.fc2", "final": "final_layernorm"}  # fmt: skip
_FUSED = {"attn.q": "self_attn.qkv_proj[0/3]", "attn.k": "self_attn.qkv_proj[1/3]", "attn.v": "self_attn.qkv_proj[2/3]",
          "ffn.gate": "mlp.gate_up_proj[0/2]", "ffn.up": "mlp.gate_up_proj[1/2]"}  # fmt: skip
_GPTJ = {"block": "h.*", "attn": "attn", "attn.x": "attn", "attn.residual": "ln_1", "attn.norm": "ln_1", "attn.heads": "attn", "attn.q": "attn.q_proj",
         "attn.k": "attn.k_proj", "attn.v": "attn.v_proj", "attn.o": "attn.out_proj", "ffn.residual": "ln_1", "ffn.norm": "ln_1",
         "ffn.up": "mlp.fc_in", "ffn.gate": "", "ffn.down": "mlp.fc_out", "final": "ln_f", "embed": "wte", "embed.words": "wte"}  # fmt: skip
_MPT = {"block": "blocks.*", "attn": "attn", "attn.x": "attn", "attn.residual": "norm_1", "attn.norm": "norm_1", "attn.heads": "attn",
        "attn.q": "attn.Wqkv[0/3]", "attn.k": "attn.Wqkv[1/3]", "attn.v": "attn.Wqkv[2/3]", "attn.o": "attn.out_proj", "ffn": "ffn.down_proj",
        "ffn.x": "ffn", "ffn.residual": "norm_2", "ffn.norm": "norm_2", "ffn.up": "ffn.up_proj", "ffn.gate": "", "ffn.down": "ffn.down_proj",
        "final": "norm_f", "embed": "wte", "embed.words": "wte"}  # fmt: skip
_BLOOM = {"block": "h.*", "attn": "self_attention.dense", "attn.x": "self_attention", "attn.heads": "self_attention",
          "attn.q": "self_attention.query_key_value[0/3]", "attn.k": "self_attention.query_key_value[1/3]",
          "attn.v": "self_attention.query_key_value[2/3]", "attn.o": "self_attention.dense", "ffn": "mlp.dense_4h_to_h", "ffn.up": "mlp.dense_h_to_4h",
          "ffn.gate": "", "ffn.down": "mlp.dense_4h_to_h", "final": "ln_f", "embed": "word_embeddings_layernorm", "embed.words": "word_embeddings"}  # fmt: skip
_FALCON = {**_BLOOM, "embed": "word_embeddings"}
_NEOX = {**{n: t.replace("self_attention", "attention") for n, t in _BLOOM.items()}, "block": "layers.*", "ffn": "mlp", "final": "final_layer_norm",
         "embed": "embed_in", "embed.words": "embed_in"}  # fmt: skip


def _read(model: Any, changes: dict[str, str], factor: float, by_head: bool) -> SiteMap:
    """A map as a finder yields it: Llama's with what differs; ``by_head``: the fused projection has q, k and v of each head in turn."""
    (a,) = parse_file(f"anatomy mine for bert {{ {_LLAMA} }}").definitions
    assert isinstance(a, AnatomyDef)
    a = replace(a, entries=tuple((n, t) for n, t in {**dict(a.entries), **changes}.items() if t))
    sites = read(a, present(a, model), model, model, "")
    columns = {
        n: Columns(tuple((24 * h + 8 * i, 24 * h + 8 * i + 8) for h in range(4)))
        for i, n in enumerate(("attn.q", "attn.k", "attn.v"))
    }

    def view(name: str, at: View) -> View:
        return View(at.module, columns[name]) if by_head and name in columns else at

    changed = [replace(s, view=view(s.name, s.view), bases={n: view(n, v) for n, v in s.bases.items()}, causal=True,
                       factor=factor if s.kind.is_sublayer else 1.0) for s in sites.sites]  # fmt: skip
    return replace(sites, sites=tuple(changed), stacks=tuple(replace(k, causal=True) for k in sites.stacks))


_OTHERS: dict[str, tuple[Any, dict[str, str], float, bool]] = {
    "gemma2": (T.Gemma2Config(**GROUPED), _SANDWICH, 1.0, False),
    "olmo2": (T.Olmo2Config(**{**SIZES, "num_key_value_heads": 2}), _OWN_NORM, 1.0, False),
    "granite": (T.GraniteConfig(**GROUPED, residual_multiplier=0.5), {}, 0.5, False),
    "phi": (T.PhiConfig(**SIZES), _PHI, 1.0, False),
    "phi3": (T.Phi3Config(**{**SIZES, "num_key_value_heads": 4}), _FUSED, 1.0, False),
    "gptj": (T.GPTJConfig(vocab_size=64, n_embd=32, n_layer=2, n_head=4, rotary_dim=4, n_positions=32, initializer_range=0.3), _GPTJ, 1.0, False),
    "mpt": (T.MptConfig(d_model=32, n_heads=4, n_layers=2, vocab_size=64, max_seq_len=32, initializer_range=0.3), _MPT, 1.0, False),
    "bloom": (T.BloomConfig(vocab_size=64, hidden_size=32, n_layer=2, n_head=4, initializer_range=0.3), _BLOOM, 1.0, True),
    "neox": (T.GPTNeoXConfig(**SIZES), _NEOX, 1.0, True),
    "falcon": (T.FalconConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, initializer_range=0.3, multi_query=False,
                              new_decoder_architecture=False, parallel_attn=False, alibi=False), _FALCON, 1.0, True),
}  # fmt: skip


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", _OTHERS)
def test_architectures_without_an_anatomy(name: str) -> None:
    """Norms on both sides, a factor before the sum, parallel sublayers, fused projections, projections that alternate by head,
    attention past the interface of transformers: every site is proved (but heads that no edit would reach), no mistake accepted."""
    config, changes, factor, by_head = _OTHERS[name]
    model = model_of(config)
    sites = _read(model, changes, factor, by_head)
    found, wrong = tried(sites, model, model)
    assert not wrong and {s.proof for s in found.sites} == {PROVED}
    assert set(found.refused) == ({"attn.heads"} if name in ("gptj", "mpt", "bloom", "falcon") else set())
    assert none_is_accepted(sites, model, 5, parallel=name in ("phi", "gptj", "neox")) >= 40


# ---------------------------------------------------------------- how it is done


def test_a_block_runs_twice_a_pass_and_more_often_only_where_it_cannot_be_repeated() -> None:
    model = build("llama").model
    sites = find(model)
    runs: Counter[int] = Counter()
    handles = [
        b.register_forward_pre_hook(lambda m, entered, i=i: runs.update([i])) for i, b in enumerate(model.layers)
    ]
    assert {s.proof for s in proved(sites, model, model).sites} == {PROVED}
    assert runs == {0: 2, 1: 2}
    forward = model.layers[0].forward

    def alone(hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if len(hidden_states) > 1:
            raise ValueError("one example, please")
        return forward(hidden_states, *args, **kwargs)

    model.layers[0].forward = alone
    runs.clear()
    assert {s.proof for s in proved(sites, model, model).sites} == {PROVED}
    assert runs[1] == 2 < 10 < runs[0]
    for h in handles:
        h.remove()


def test_one_wrong_site_is_named_where_it_is_and_the_others_of_its_name_stay() -> None:
    model = build("llama").model
    sites = find(model)
    bad = next(s for s in sites.named("attn.q") if s.layer == 1)
    other = replace(
        bad, view=View("layers.1.self_attn.k_proj"), x="layers.1.self_attn.k_proj", sizes={**bad.sizes, "d_q": 16}
    )
    found, wrong = tried(replace(sites, sites=tuple(other if s is bad else s for s in sites.sites)), model, model)
    assert list(wrong) == ["attn.q", "attn.heads"] and "attention receives it as k, not as q alone" in wrong["attn.q"]
    assert "`attn.q`, which a form may call there" in wrong["attn.heads"]
    assert set(found.refused) == {"layers.1.attn.q", "layers.1.attn.heads"}
    assert [s.layer for s in found.named("attn.q")] == [0] and len(found.sites) == len(sites.sites) - 2


def test_without_weights_nothing_is_proved() -> None:
    with torch.device("meta"):
        model = T.AutoModel.from_config(T.LlamaConfig(**GROUPED))
    found, wrong = tried(find(model), model, model)
    assert {s.proof for s in found.sites} == {NOT_YET} and "no weights" in wrong[""]
    assert {s.proof for s in (*find(model).sites, *written(model).sites)} == {NOT_YET}


def test_a_pass_that_fails_says_so_and_keeps_the_sites() -> None:
    model = build("bert")
    found, wrong = tried(find(model), model, model, {"input_ids": torch.tensor([[10**6]])})
    assert len(found.sites) == len(find(model).sites) and {s.proof for s in found.sites} == {NOT_YET}
    assert "the given example fails: IndexError" in wrong[""]


@pytest.mark.parametrize("calls", [1, 5, 60, 200, 400])
def test_ctrl_c_leaves_nothing_behind(calls: int) -> None:
    """At any step of the proof."""
    model = build("bert")
    sites, before = find(model), footprint(model)
    seams = AttentionInterface.get_interface, functional.scaled_dot_product_attention
    left = [calls]
    whole = torch.nn.Linear.forward

    def broken(self: Any, x: torch.Tensor) -> torch.Tensor:
        left[0] -= 1
        if left[0] == 0:
            raise KeyboardInterrupt
        return whole(self, x)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.nn.Linear, "forward", broken)
        try:
            proved(sites, model, model)
            assert left[0] > 0
        except KeyboardInterrupt:
            pass
    assert footprint(model) == before
    assert seams == (AttentionInterface.get_interface, functional.scaled_dot_product_attention)


def test_a_wrong_entry_of_one_s_own_is_named(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """She wrote it, so that it is a mistake; what a finder finds just drops out."""
    file = tmp_path / "mine.pelt"
    monkeypatch.setenv("UNIPELT_ANATOMIES", str(file))
    for entries, said in (('attn.q: "self_attn.k_proj" attn.k: "self_attn.q_proj"', "`attn.q`: attention receives it as k, not as q alone"),
                          ('ffn.up: "mlp.gate_proj" ffn.gate: "mlp.up_proj"', "`ffn.up`: what enters `layers.0.mlp.down_proj` is not affine in it"),
                          ('attn.norm: "post_attention_layernorm"', "`attn`: `layers.0.self_attn` reads neither")):  # fmt: skip
        file.write_text(f'anatomy mine for llama {{ like: "pre_norm" {entries} }}')
        with pytest.raises(unipelt.PeltError, match="E0503") as e:
            find(model_of(T.LlamaConfig(**{**SIZES, "head_dim": 8})))
        assert said in str(e.value) and "`mine`" in str(e.value)


def test_a_tower_that_a_text_does_not_reach_is_proved_by_a_pass_of_its_own() -> None:
    sizes = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48, projection_dim=16)
    text = {**sizes, "vocab_size": 64, "max_position_embeddings": 32, "bos_token_id": 1, "eos_token_id": 2}
    config = T.CLIPConfig(
        text_config=text, vision_config={**sizes, "image_size": 12, "patch_size": 4}, projection_dim=16
    )
    torch.manual_seed(0)
    model = T.CLIPModel(config).eval()
    sites = find(model)
    vision = sites.named("attn.q", "vision")
    assert len(vision) == 2 and {s.proof for s in sites.sites} == {PROVED}
    only = replace(sites, sites=tuple(s for s in sites.sites if s.stack == "vision"))
    assert {s.proof for s in proved(only, model, model).sites} == {PROVED}


@pytest.mark.parametrize("rows, numbers, found", [(4, 640, 7), (7, 7 * 64, 11), (2, 9, 2), (8, 11 * 13, 17)])
def test_the_rows_of_a_batch_divide_no_size_of_an_example(rows: int, numbers: int, found: int) -> None:
    """Where tokens come before the batch, the number of tokens is never taken for that of the rows."""
    assert _rows(rows, numbers) == found
