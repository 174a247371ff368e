"""Which anatomy a model gets, which stacks and which head; and what is said of models and anatomies that do not fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as T
from maps import anatomy, entries, written
from names import name as named
from tiny import PAD, VOCAB, WIDTH, build
from torch import nn

import unipelt
from unipelt.anatomy import find as finding
from unipelt.anatomy.entries import blocks_of, reference, stacks_of
from unipelt.anatomy.find import OWN, find
from unipelt.anatomy.parts import Share
from unipelt.language.syntax.parser import parse as parse_file
from unipelt.language.syntax.nodes import AnatomyDef

T5: dict[str, Any] = dict(vocab_size=VOCAB, d_model=WIDTH, d_kv=6, d_ff=48, num_layers=2, num_heads=4, pad_token_id=PAD)
BART: dict[str, Any] = dict(vocab_size=VOCAB, d_model=WIDTH, encoder_layers=3, decoder_layers=2, encoder_attention_heads=4,
                            decoder_attention_heads=2, encoder_ffn_dim=48, decoder_ffn_dim=40, pad_token_id=PAD,
                            bos_token_id=2, eos_token_id=3, decoder_start_token_id=2, forced_eos_token_id=None)  # fmt: skip
SOUND: dict[str, Any] = {**BART, "num_mel_bins": 5, "max_source_positions": 6, "begin_suppress_tokens": None}


@pytest.mark.parametrize("cls, config, by_hand, stacks, head", [
    ("T5Model", T.T5Config(**T5), "t5", "encoder decoder", ()),
    ("T5EncoderModel", T.T5Config(**T5), "t5", "encoder", ()),
    ("T5ForTokenClassification", T.T5Config(**T5), "t5", "encoder", ("classifier",)),
    ("T5ForSequenceClassification", T.T5Config(**T5), "t5", "encoder decoder", ("classification_head",)),
    ("T5ForQuestionAnswering", T.T5Config(**T5), "t5", "encoder decoder", ("qa_outputs",)),
    ("T5ForConditionalGeneration", T.T5Config(**T5, feed_forward_proj="gated-gelu"), "t5_gated", "encoder decoder", ("lm_head",)),
    ("MT5ForConditionalGeneration", T.MT5Config(**T5), "t5_gated", "encoder decoder", ("lm_head",)),
    ("BartModel", T.BartConfig(**BART), "bart", "encoder decoder", ()),
    ("BartForCausalLM", T.BartConfig(**BART), "bart", "decoder", ("lm_head",)),
    ("BartForSequenceClassification", T.BartConfig(**BART), "bart", "encoder decoder", ("classification_head",)),
    ("MBartForQuestionAnswering", T.MBartConfig(**BART), "mbart", "encoder decoder", ("qa_outputs",)),
    ("WhisperModel", T.WhisperConfig(**SOUND), "whisper", "encoder decoder", ()),
    ("WhisperForCausalLM", T.WhisperConfig(**SOUND), "whisper", "decoder", ("proj_out",)),
    ("WhisperForAudioClassification", T.WhisperConfig(**SOUND), "whisper", "encoder", ("projector", "classifier")),
])  # fmt: skip
def test_parts_of_an_encoder_decoder_are_models_too(
    cls: str, config: Any, by_hand: str, stacks: str, head: tuple
) -> None:
    with torch.device("meta"):
        model = getattr(T, cls)(config)
    sites = find(model)
    assert (" ".join(s.name for s in sites.stacks), sites.head) == (stacks, head)
    assert bool(sites.named("head")) == bool(head)
    assert all(s.module in dict(model.named_modules()) for s in sites.stacks)
    other = written(model)
    assert (other.anatomy, other.stacks, other.head) == (by_hand, sites.stacks, head)
    assert {s.label for s in other.sites} == {s.label for s in sites.sites}
    assert bool(sites.named("cross")) == (stacks == "encoder decoder")  # a decoder by itself reads no encoder
    if by_hand in ("bart", "whisper") and stacks == "encoder decoder":
        encoder, decoder = (sites.named("ffn", n)[0].sizes for n in ("encoder", "decoder"))
        assert (encoder["d_ff"], encoder["heads"], decoder["d_ff"], decoder["heads"]) == (48, 4, 40, 2)
        assert [s.depth for s in sites.stacks] == [3, 2]


def test_a_model_without_a_last_norm_has_no_site_there() -> None:
    model = build("opt", _remove_final_layer_norm=True)
    sites = find(model)
    assert written(model).anatomy == "opt_open" and sites.names() == [
        n for n in find(build("opt")).names() if n != "final"
    ]
    with pytest.raises(unipelt.PeltError, match="E0512.*no site `final`"):
        unipelt.plan(
            model, unipelt.parse("method m { modify final form { b: [d_out] ~ zeros delta = b } compose add }")
        )


def test_conditions_choose_between_anatomies_of_one_type() -> None:
    assert written(build("opt")).anatomy == "opt" and written(build("opt_post")).anatomy == "opt_post"


@pytest.mark.parametrize("groups, inner, layers, blocks, depth, shared", [
    (1, 1, 4, 1, 4, True), (2, 1, 4, 2, 4, True), (2, 2, 4, 4, 8, True), (2, 1, 2, 2, 2, False),
])  # fmt: skip
def test_shared_modules(groups: int, inner: int, layers: int, blocks: int, depth: int, shared: bool) -> None:
    (stack,) = find(build("albert_head", layers=layers, num_hidden_groups=groups, inner_group_num=inner)).stacks
    assert (len(stack.blocks), stack.depth, stack.shared) == (blocks, depth, shared)


def test_embeddings_have_their_own_width() -> None:
    sites = find(build("albert_head"))
    assert {s.sizes["d_model"] for s in (*sites.named("embed"), *sites.named("embed.words"))} == {16}
    sites = find(build("opt_post"))  # the words are projected up, and positions are added in no module
    assert sites.named("embed.words")[0].sizes["d_model"] == 16 and sites.named("head")[0].sizes["d_model"] == 16
    (embed,) = sites.named("embed")
    assert embed.sizes["d_model"] == WIDTH and embed.view.enters and embed.view.module == "model.decoder.layers.0"


# ---------------------------------------------------------------- what does not fit


def _refused(model: Any, code: str, *words: str) -> None:
    """Nothing is known of the sites, and whoever asks for one is told why."""
    found = find(model)
    assert not found.sites and not found.stacks
    said = str(unipelt.PeltError(list(found.unknown)))
    assert [d.code for d in found.unknown] == [code], said
    assert all(w in said for w in words), said
    with pytest.raises(unipelt.PeltError, match=code):
        unipelt.plan(model, unipelt.load(named("lora")))
    unipelt.plan(model, unipelt.load(named("full")))


def test_models_that_do_not_fit() -> None:
    _refused(nn.Sequential(nn.Linear(2, 2)), "E0501", "no `config`")
    model = build("bart")
    del model.model.decoder.layers[1].fc2
    _refused(model, "E0595", "no attribute 'fc2'")
    model = build("distilbert_head")
    model.distilbert.transformer.layer = nn.ModuleList()
    _refused(model, "E0502", "nothing is added")
    model = build("vit_head")
    model.vit.layers[0].attention.q_proj = nn.Identity()
    sites = find(model)  # what is there is found
    assert not sites.anatomy and [s.layer for s in sites.named("attn.q")] == [1]
    assert sites.refused["layers.0.attn.q"] == "no projection of the block yields it"
    model = build("vit_head")
    model.vit.layers[0].attention.o_proj = nn.Linear(WIDTH, 7)
    _refused(model, "E0595", "ViT")
    model = build("t5")
    del model.encoder.block[0].layer[0].SelfAttention.key_value_proj_dim
    _refused(model, "E0595", "key_value_proj_dim")


def _own(monkeypatch: pytest.MonkeyPatch, folder: Path, text: str) -> None:
    (folder / "mine.pelt").write_text(text)
    monkeypatch.setenv(OWN, str(folder / "mine.pelt"))


@pytest.mark.parametrize("path", ["intermediate.intermediate_act_fn", "output.LayerNorm", "attention.output.dropout"])
def test_an_own_anatomy_names_a_projection_that_is_none(
    path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _own(monkeypatch, tmp_path, f"anatomy mine for bert {{ {entries('bert', ffn_up=path)} }}")
    with pytest.raises(unipelt.PeltError, match=rf"E0506.*`encoder\.layer\.0\.{path}` is no linear map"):
        find(build("bert"))


@pytest.mark.parametrize("heads", [5, 7, 0])
def test_an_own_anatomy_leaves_the_size_of_a_head_unknown(
    heads: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither the module nor the configuration says it: 24 queries are no 5 heads."""
    _own(monkeypatch, tmp_path, f"anatomy mine for t5 {{ {entries('t5')} }}")
    with torch.device("meta"):
        model = T.T5ForConditionalGeneration(T.T5Config(**T5))
    assert find(model).named("attn.heads")[0].sizes["d_head"] == 6
    del model.encoder.block[0].layer[0].SelfAttention.key_value_proj_dim
    model.config.num_heads = heads
    with pytest.raises(unipelt.PeltError, match="E0701.*T5Attention"):
        find(model)


def _anatomy(body: str, name: str = "odd") -> AnatomyDef:
    (found,) = parse_file(f"anatomy {name} for bert {{ {body} }}").definitions
    assert isinstance(found, AnatomyDef)
    return found


def test_anatomies_with_mistakes(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(unipelt.PeltError, match="E0700.*names no `decoder.block`"):
        stacks_of(_anatomy('encoder.block: "a.*" decoder.attn: "b"'))
    with pytest.raises(unipelt.PeltError, match="E0505"):
        reference("behind a")
    model = build("bert")
    odd = AnatomyDef("odd", ("bert",), entries=(*anatomy("bert").entries, ("attn.z", "attention.self")))
    monkeypatch.setattr(finding, "anatomies", lambda: (odd,))
    with pytest.raises(unipelt.PeltError, match="E0702.*`attn.z`"):
        find(model)
    known = {"a": _anatomy('like: "b"', "a"), "b": _anatomy('like: "a"', "b"), "c": _anatomy('like: "nobody"', "c")}
    monkeypatch.setattr(finding, "library_definition", lambda what, name: known.get(name))
    for name in ("a", "c"):
        with pytest.raises(unipelt.PeltError, match="E0705"):
            finding._whole(name)


def test_entries_speak_of_the_stacks_they_name() -> None:
    encoder, decoder = stacks_of(
        _anatomy(
            'encoder.block: "e.*" decoder.block: "d.*" decoder.stack: "d" attn.q: "q" decoder.attn.q: "r" encoder.embed: "w" config.x: "1"'
        )
    )
    assert encoder.parts == (("attn.q", "q"),) and decoder.parts == (("attn.q", "r"),)
    assert (encoder.module, decoder.module, encoder.outside, decoder.outside) == ("", "d", (("embed", "w"),), ())
    base = nn.ModuleDict(
        {"g": nn.ModuleList([nn.ModuleDict({"h": nn.ModuleList([nn.Identity()] * 2)}) for _ in range(2)])}
    )
    assert blocks_of(base, "g.*.h.*") == ("g.0.h.0", "g.0.h.1", "g.1.h.0", "g.1.h.1")
    assert blocks_of(base, "nowhere.*") == ()
    at = reference("before a.b", "root.")
    assert (at.module, at.enters, reference("c[1/3]").part, reference(".", "root.block.").module) == (
        "root.a.b",
        True,
        Share(1, 3),
        "root.block",
    )
