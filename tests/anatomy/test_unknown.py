"""Types of model: all sites that are found are proved; anatomies of one's own come first, and are refused with the entry that is wrong."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
import transformers as T
from maps import anatomy
from names import name as named
from shrunk import shrunk

import unipelt
from unipelt.anatomy import find as finding
from unipelt.anatomy.find import OWN, find
from unipelt.anatomy.prove import tried
from unipelt.language.library import library_definition
from unipelt.language.syntax.nodes import AnatomyDef

WIDTH, VOCAB = 32, 64
SIZES: dict[str, Any] = dict(vocab_size=VOCAB, hidden_size=WIDTH, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48,
                             max_position_embeddings=32, pad_token_id=0, bos_token_id=1, eos_token_id=2, initializer_range=0.3)  # fmt: skip
GROUPED: dict[str, Any] = {**SIZES, "num_key_value_heads": 2, "head_dim": 8}
BART: dict[str, Any] = dict(vocab_size=VOCAB, d_model=WIDTH, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4,
                            decoder_attention_heads=4, encoder_ffn_dim=48, decoder_ffn_dim=40, max_position_embeddings=32, pad_token_id=0,
                            bos_token_id=1, eos_token_id=2, decoder_start_token_id=2, init_std=0.3)  # fmt: skip
T5: dict[str, Any] = dict(vocab_size=VOCAB, d_model=WIDTH, d_kv=8, d_ff=48, num_layers=2, num_heads=4, pad_token_id=0)
GPT2: dict[str, Any] = dict(vocab_size=VOCAB, n_embd=WIDTH, n_layer=2, n_head=4, n_positions=32, initializer_range=0.3)
LOW = unipelt.parse("method low { modify attn.q, attn.v  insert parallel  form { A: [d_in, 2] ~ normal(0.3)  B: [2, d_out] ~ normal(0.3) "
                    "delta = z @ A @ B }  compose add }")  # fmt: skip


def model_of(config: Any) -> Any:
    torch.manual_seed(0)
    model = T.AutoModel.from_config(config).eval()
    with torch.no_grad():
        for p in model.parameters():  # norms and biases too: at one and zero they would hide what they do
            if p.dim() == 1:
                p.add_(torch.randn_like(p) * 0.3)
    return model


def output(model: Any) -> torch.Tensor:
    ids = torch.arange(5, 11)[None]
    more = {"decoder_input_ids": ids + 3} if model.config.is_encoder_decoder else {}
    with torch.no_grad():
        return model(input_ids=ids, **more).last_hidden_state


@pytest.mark.parametrize("config", [
    T.PegasusConfig(**BART), T.M2M100Config(**BART), T.BlenderbotConfig(**BART), T.MarianConfig(**BART), T.MBartConfig(**BART), T.PLBartConfig(**BART),
    T.BlenderbotSmallConfig(**BART), T.UMT5Config(**T5), T.Qwen3Config(**GROUPED), T.GemmaConfig(**GROUPED), T.OlmoConfig(**SIZES),
    T.HeliumConfig(**GROUPED), T.ErnieConfig(**SIZES), T.RobertaConfig(**SIZES), T.Data2VecTextConfig(**SIZES),
    T.DistilBertConfig(vocab_size=VOCAB, dim=WIDTH, hidden_dim=48, n_layers=2, n_heads=4), T.GPT2Config(**GPT2), T.BartConfig(**BART),
    T.T5Config(**T5), T.LlamaConfig(**GROUPED),
], ids=lambda v: v.model_type)  # fmt: skip
def test_all_sites_of_types_that_are_built_alike_are_proved(config: Any) -> None:
    model = model_of(config)
    sites = find(model)
    assert {s.proof for s in sites.sites} == {"proved"} and not [n for n in sites.refused if n.split(".")[-1] in "qkvo"]
    before = output(model)
    unipelt.apply(model, LOW, name="low")
    changed = output(model)
    assert float((changed - before).abs().max()) > 1e-3
    unipelt.merge(model, "low")
    assert float((output(model) - changed).abs().max()) < 1e-4 * float(changed.abs().max())


@pytest.mark.parametrize("config", [
    T.Gemma2Config(**GROUPED),  # norms behind the sublayers as well
    T.GraniteConfig(**GROUPED, residual_multiplier=0.5),  # a factor before the sum
    T.PhiConfig(**SIZES),  # attention and feed-forward layer beside each other
    T.Phi3Config(**{**SIZES, "num_key_value_heads": 2}),  # fused projections
    T.GPTNeoXConfig(**SIZES),  # that alternate head by head
    T.RoFormerConfig(**SIZES),  # attention of its own
], ids=lambda v: v.model_type)  # fmt: skip
def test_types_that_are_built_otherwise_are_found(config: Any) -> None:
    """What is learned there is exactly a change of the weights that make queries and values."""
    model = model_of(config)
    before = output(model)
    sites = find(model)
    assert not sites.anatomy and {s.proof for s in sites.named("attn.q")} == {"proved"} and len(sites.named("ffn")) == 2
    unipelt.apply(model, LOW, name="low")
    changed = output(model)
    assert float((changed - before).abs().max()) > 1e-3
    with unipelt.disabled(model):
        assert torch.equal(output(model), before)
    unipelt.merge(model, "low")
    assert float((output(model) - changed).abs().max()) < 1e-4 * float(changed.abs().max())


@pytest.mark.parametrize("config, other", [
    (T.BartConfig(**BART), "mbart"), (T.MBartConfig(**BART), "bart"), (T.OPTConfig(vocab_size=VOCAB, hidden_size=WIDTH, num_hidden_layers=2,
     num_attention_heads=4, ffn_dim=48, word_embed_proj_dim=WIDTH, max_position_embeddings=32), "opt_post"),
], ids=lambda v: getattr(v, "model_type", v))  # fmt: skip
def test_an_anatomy_of_the_same_names_and_another_meaning_is_refuted(
    config: Any, other: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    a = anatomy(other)
    # the last norm has a module of its own, which one of the two does not have at all
    said = tuple((n, t) for n, t in a.entries if not n.startswith("config.") and "final" not in n.split("."))
    monkeypatch.setattr(finding, "anatomies", lambda: (replace(a, models=(config.model_type,), entries=said),))
    with pytest.raises(unipelt.PeltError, match="E0503.*(neither|is not what)"):
        find(model_of(config))


def test_an_anatomy_of_one_s_own(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Like another, with the paths that differ; it is proved, and stands before what is found."""
    model = model_of(T.Starcoder2Config(**{**SIZES, "num_key_value_heads": 2}))
    assert not find(model).anatomy
    file = tmp_path / "mine.pelt"
    file.write_text(
        'anatomy coder for starcoder2 { like: "pre_norm"  ffn.up: "mlp.c_fc"  ffn.gate: ""  ffn.down: "mlp.c_proj" }'
    )
    monkeypatch.setenv(OWN, str(file))
    assert find(model).anatomy == "coder"
    file.write_text('anatomy coder for starcoder2 { like: "pre_norm"  ffn.residual: "input_layernorm"  ffn.up: "mlp.c_fc"  ffn.gate: "" '
                    'ffn.down: "mlp.c_proj" }')  # fmt: skip
    with pytest.raises(unipelt.PeltError, match="E0503.*`coder` has the names"):
        find(model)
    monkeypatch.setenv(OWN, str(tmp_path / "nowhere.pelt"))
    with pytest.raises(unipelt.PeltError, match="E0121"):
        find(model)


@pytest.mark.parametrize("change, code, said", [
    ({"attn.heads": ""}, "E0509", "`attn.heads`"), ({"attn.x": ""}, "E0509", "`attn.x`"), ({"ffn.down": ""}, "E0509", "`ffn.down`"),
    ({"attn.residual": "", "ffn.norm": ""}, "E0509", "`attn.residual` and `ffn.norm`"), ({"attn.k": ""}, "E0509", "`attn.k`"),
    ({"ffn.x": "", "ffn": ""}, "E0509", "`ffn.x`"), ({"cross": "self_attn"}, "E0509", "`cross.x` and `cross.residual` and `cross.norm`"),
    ({"atn.x": "self_attn"}, "E0702", "`atn.x`"), ({"attn.q.x": "self_attn"}, "E0702", "`attn.q.x`"), ({"ffn.hidden": "mlp"}, "E0702", "`ffn.hidden`"),
    ({"embed.wrods": "embed_tokens"}, "E0702", "`embed.wrods`"), ({"final": "layers.0.input_layernorm"}, "E0503", "is not what leaves"), ({"stack": "nowhere"}, "E0503", "`nowhere`"), ({"depth": "layer_count"}, "E0503", "`layer_count`"),
], ids=str)  # fmt: skip
def test_an_anatomy_of_one_s_own_with_an_entry_too_few_or_misspelt(
    change: dict[str, str], code: str, said: str, tmp_path: Any, monkeypatch: Any
) -> None:
    """Every entry of another anatomy is taken away or misspelt in turn: a mistake with its name, never a KeyError."""
    file = tmp_path / "mine.pelt"
    file.write_text(
        'anatomy mine for llama { like: "pre_norm" ' + " ".join(f'{n}: "{t}"' for n, t in change.items()) + " }"
    )
    monkeypatch.setenv(OWN, str(file))
    with pytest.raises(unipelt.PeltError) as e:
        find(model_of(T.LlamaConfig(**GROUPED)))
    (found,) = e.value.diagnostics
    assert found.code == code and said in found.message, str(e.value)


def test_no_entry_of_an_anatomy_is_missed_in_silence_or_with_a_traceback(tmp_path: Any, monkeypatch: Any) -> None:
    """Without any one of its entries an anatomy is refused, or it has fewer sites and what is left works."""
    file = tmp_path / "mine.pelt"
    monkeypatch.setenv(OWN, str(file))
    library = library_definition("anatomy", "pre_norm")
    assert isinstance(library, AnatomyDef)
    for name, _ in library.entries:
        file.write_text(f'anatomy mine for llama {{ like: "pre_norm" {name}: "" }}')
        model = model_of(T.LlamaConfig(**GROUPED))
        try:
            sites = find(model)
        except unipelt.PeltError as e:
            assert e.diagnostics[0].code in ("E0503", "E0509", "E0700"), str(e)
            continue
        assert not sites.named(name)
        unipelt.apply(
            model, unipelt.parse("method m { modify attn.q  form { b: [d_out] ~ ones  delta = b }  compose add }")
        )
        output(model)


def test_without_weights_a_new_type_is_planned_with_a_note() -> None:
    with torch.device("meta"):
        model = T.AutoModel.from_config(T.HeliumConfig(**GROUPED))
    assert any("not yet proved" in w for w in unipelt.plan(model, LOW).warnings)
    assert not any("proved" in w for w in unipelt.plan(model_of(T.HeliumConfig(**GROUPED)), LOW).warnings)


def test_a_second_method_on_a_new_type() -> None:
    model = model_of(T.HeliumConfig(**GROUPED))
    unipelt.apply(model, LOW, name="a")
    unipelt.apply(model, LOW, name="b")
    assert list(unipelt.adapters(model)) == ["a", "b"]


def test_pictures_are_tried_too() -> None:
    sizes = {
        k: SIZES[k]
        for k in ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "initializer_range")
    }
    model = model_of(T.DeiTConfig(**sizes, image_size=12, patch_size=4))
    whole = find(model)
    assert {s.proof for s in whole.sites} == {"proved"} and len(whole.named("ffn")) == 2
    model.layers[0].register_forward_hook(lambda module, entered, left: left * 2)  # behind what the block adds
    less = find(model)
    assert (
        [s.layer for s in less.named("ffn")] == [1]
        and len(less.named("attn.q")) == 2
        and "layers.0.ffn" in less.refused
    )
    beit = find(model_of(T.BeitConfig(**sizes, image_size=12, patch_size=4, layer_scale_init_value=0.5)))
    assert len(beit.named("attn.q")) == 2


def test_heads_that_no_edit_would_reach_are_no_site() -> None:
    """Longformer's attention is its own, and computed in pieces: no product of weights and values is a head's output."""
    model = model_of(T.LongformerConfig(**SIZES, attention_window=4))
    assert find(model).named("attn.q")
    unipelt.plan(model, LOW)
    heads = unipelt.parse("method m { modify attn.heads  insert parallel  form { P: [3, d_head] ~ normal(1) per group  "
                          "delta = softmax(q @ P.T * scale) @ P }  compose add }")  # fmt: skip
    with pytest.raises(unipelt.PeltError, match="E0512.*no site `attn.heads`"):
        unipelt.plan(model, heads)
    unipelt.plan(model_of(T.DebertaConfig(**SIZES)), heads)
    unipelt.plan(model_of(T.BertConfig(**SIZES)), heads)


DIFFERENTIAL: dict[str, Any] = {
    **SIZES,
    "num_key_value_heads": 2,
}  # its attention function is called for each half of the values


def test_a_site_whose_function_is_called_twice_in_a_layer_is_refused() -> None:
    model = T.DiffLlamaForCausalLM(T.DiffLlamaConfig(**DIFFERENTIAL)).eval()
    before = copy.deepcopy(model.state_dict())
    method = unipelt.load(named("unipelt_apl_causal"))
    for call in (unipelt.plan, unipelt.apply):
        with pytest.raises(unipelt.PeltError) as e:
            call(model, method)
        (found,) = e.value.diagnostics
        assert (
            found.code == "E0512"
            and "`attn.heads`: `model.layers.0.self_attn` calls its attention function twice" in found.message
        )
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items()) and not unipelt.adapters(model)
    unipelt.apply(model, LOW, name="low")
    with pytest.raises(
        unipelt.PeltError, match="calls its attention function twice"
    ):  # a second method is told the same
        unipelt.apply(model, method)
    assert not find(model).named("attn.heads") and find(model).named("attn.q")


@pytest.mark.parametrize("change, lacks, why", [
    ("calls up twice", "ffn.up", "`layers.1.mlp.up_proj` is called twice in a layer"),
    ("never calls up", "ffn.up", "`layers.1.mlp.up_proj.weight` is used by the module that holds it, not by a linear map of its own"),
])  # fmt: skip
def test_a_site_whose_module_is_not_called_once_in_a_layer_is_refused(change: str, lacks: str, why: str) -> None:
    """In that layer; the other layers keep theirs."""
    model = model_of(T.HeliumConfig(**{**GROUPED, "num_hidden_layers": 3}))
    whole = find(model)
    layer = model.layers[1]
    if change == "calls up twice":
        layer.mlp.register_forward_pre_hook(lambda module, entered: (module.up_proj(entered[0]), None)[1])
    else:
        mlp = layer.mlp
        mlp.forward = lambda x: mlp.down_proj(
            mlp.act_fn(mlp.gate_proj(x)) * torch.nn.functional.linear(x, mlp.up_proj.weight)
        )
    sites = find(model)
    assert sites.refused[f"layers.1.{lacks}"] == why
    assert [s.layer for s in sites.named(lacks)] == [0, 2] and len(whole.named(lacks)) == 3
    unipelt.plan(model, LOW)


def test_what_counts_the_calls_leaves_nothing_behind() -> None:
    from transformers.modeling_utils import AttentionInterface

    model = model_of(T.HeliumConfig(**GROUPED))
    ask = AttentionInterface.get_interface
    hooks = [(len(m._forward_pre_hooks), len(m._forward_hooks)) for m in model.modules()]
    find(model)
    assert AttentionInterface.get_interface is ask
    assert hooks == [(len(m._forward_pre_hooks), len(m._forward_hooks)) for m in model.modules()]


def test_a_map_of_another_model_names_modules_that_are_not_there() -> None:
    """A model of sound has no embeddings of words, and raises where it is asked for them."""
    sizes: dict[str, Any] = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    cut: dict[str, Any] = dict(conv_dim=(8,), conv_stride=(5,), conv_kernel=(10,), num_feat_extract_layers=1)
    sound = T.Wav2Vec2Model(
        T.Wav2Vec2Config(**sizes, **cut, num_conv_pos_embeddings=4, num_conv_pos_embedding_groups=2)
    )
    found, wrong = tried(find(model_of(T.BertConfig(**SIZES))), sound, sound)
    assert not found.sites and wrong["attn.q"] == "the model has no `encoder.layer.0.attention.self.query`"
    sound.forward = lambda: None
    found, wrong = tried(replace(find(model_of(T.BertConfig(**SIZES))), sites=()), sound, sound, {"ids": 3})
    assert "a pass of Wav2Vec2Model with the given example fails" in wrong[""]


def test_a_feed_forward_layer_that_some_tokens_pass_is_refused() -> None:
    """Higgs Audio has one for words and one for sounds: of a text the second is given nothing."""
    model = model_of(shrunk("higgs_audio_v2"))
    sites = find(model)
    assert "ffn.hidden" not in sites.names() and "attn.q" in sites.names()
    assert (
        sites.refused["ffn.hidden"]
        == "`model.layers.0.audio_mlp.down_proj` has some of the 5 tokens that enter `model.layers.0`, and not all"
    )


def test_keys_of_tokens_that_come_from_outside_are_found_with_weights_and_without() -> None:
    """No tower of the model makes them, so that no mask is known of them."""
    config = T.Blip2QFormerConfig(vocab_size=VOCAB, hidden_size=WIDTH, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48,
                                  encoder_hidden_size=24, cross_attention_frequency=1)  # fmt: skip
    for device in ("cpu", "meta"):
        with torch.device(device):
            model = T.Blip2QFormerModel(config).eval()
            example = {"query_embeds": torch.randn(1, 5, WIDTH), "encoder_hidden_states": torch.randn(1, 7, 24)}
        sites = find(model, example)
        assert {"cross.q", "cross.k", "cross.v", "cross.heads"} <= set(sites.names()) and not sites.refused
        assert {s.proof for s in sites.named("cross.k")} == {"proved" if device == "cpu" else "not yet proved"}
    unipelt.apply(model := T.Blip2QFormerModel(config).eval(), unipelt.parse(
        "method low { modify cross.k, cross.v  insert parallel  form { A: [d_in, 2] ~ normal(0.3)  B: [2, d_out] ~ normal(0.3)  delta = z @ A @ B }  "
        "compose add }"), example=example | {n: torch.randn(t.shape) for n, t in example.items()})  # fmt: skip
    given = {n: torch.randn(t.shape) for n, t in example.items()}
    with torch.no_grad():
        changed = model(**given).last_hidden_state
        with unipelt.disabled(model):
            assert float((model(**given).last_hidden_state - changed).abs().max()) > 1e-3


def test_attention_within_the_windows_of_a_picture_has_the_heads_of_each() -> None:
    """SAM's first layer computes it for four windows and four heads in one dimension, its second for the whole picture."""
    model = model_of(T.SamVisionConfig(hidden_size=WIDTH, num_hidden_layers=2, num_attention_heads=4, image_size=64, window_size=2,
                                       global_attn_indexes=[1], output_channels=16, mlp_dim=48))  # fmt: skip
    sites = find(model)
    assert [(s.layer, s.proof) for s in sites.named("attn.q")] == [(0, "proved"), (1, "proved")], sites.refused
