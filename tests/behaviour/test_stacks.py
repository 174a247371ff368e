"""Encoder–decoders and modules that serve many layers: names, layers, masks and causality are those of a stack."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from names import name as named, spec
from properties.counting import agree
from tiny import ENCODER_DECODERS, KINDS, PAD, VOCAB, batch, build, distance, look, randomise, small

import unipelt

TOWERS = ("t5", "bart")
PREFIX = "prefix_tuning_mlp"
GATED = """
method pooled {{
  modify {sites} insert parallel
  form {{
    w: [d_in] ~ normal(1.0)
    b: [d_out] ~ normal(1.0)
    delta = b * mean(tanh(z @ w), {over})
  }}
  compose {{ out = h + delta * h }}
}}
"""


def gated(sites: str, over: str = "tokens") -> Any:
    return unipelt.parse(GATED.format(sites=sites, over=over))


# ---------------------------------------------------------------- names


@pytest.mark.parametrize("kind", TOWERS)
def test_a_bare_name_means_every_stack_and_a_front_one(kind: str) -> None:
    model = build(kind, layers=3)  # four layers in the encoder, three in the decoder
    plan = unipelt.plan(model, small(named("lora")))
    assert {(e.site.full_name, e.site.layer) for e in plan.edits} == {
        (f"{stack}.attn.{n}", i)
        for stack, depth in (("encoder", 4), ("decoder", 3))
        for n in "qv"
        for i in range(depth)
    }
    only = unipelt.plan(model, small(named("lora"))(at="[decoder.attn.q, cross.k]"))
    assert {e.site.full_name for e in only.edits} == {"decoder.attn.q", "decoder.cross.k"}
    assert [(r["site"], r["layers"]) for r in only.table()] == [("decoder.attn.q", "0–2"), ("decoder.cross.k", "0–2")]
    assert "encoder 4 layers, decoder 3 layers" in str(only)


def test_a_site_that_is_named_twice_is_edited_once() -> None:
    plan = unipelt.plan(build("t5"), small(named("lora"))(at="[decoder.attn.q, attn.q]"))
    assert len(plan.edits) == len({e.site.label for e in plan.edits}) == 5


def test_layers_are_counted_in_each_stack() -> None:
    model = build("t5", layers=3)
    plan = unipelt.plan(
        model, unipelt.parse("method m { layers last 2 modify ffn form { b: [d_out] ~ zeros delta = b } compose add }")
    )
    assert {(e.site.stack, e.site.layer) for e in plan.edits} == {
        ("encoder", 2),
        ("encoder", 3),
        ("decoder", 1),
        ("decoder", 2),
    }
    clamped = unipelt.plan(model, unipelt.parse(
        "method m { layers first 4 modify ffn form { b: [d_out] ~ zeros delta = b * depth } compose add }"))  # fmt: skip
    assert len(clamped.edits) == 7 and {e.site.stack: e.constants["depth"] for e in clamped.edits} == {
        "encoder": 4,
        "decoder": 3,
    }
    assert clamped.warnings == ("`layers first 4` is clamped: the decoder has 3 layers",)


@pytest.mark.parametrize("kind, text, code, words", [
    ("bert", "modify decoder.attn.q", "E0704", "it has one stack: leave `decoder.` out"),
    ("t5", "modify encoder.cross.q", "E0512", "cross.q"),
    ("bert", "modify cross.q, cross.v", "E0512", "no `cross.q`, `cross.v`"),
    ("bert", "modify cross.q", "E0512", "or modify other sites: attn, attn.q, attn.k, attn.v, attn.o, attn.heads, attn.input, ffn"),
    ("t5", "modify ffn.gate", "E0512", "ffn.gate"),
    ("albert_head", "layers last 1 modify attn.q", "E0703", "one module serves the 2 layers of this AlbertForSequenceClassification, so layers cannot be selected"),
    ("albert_head", "layers 0..1 modify ffn", "E0703", "layers cannot be selected"),
])  # fmt: skip
def test_what_a_model_does_not_have_is_said(kind: str, text: str, code: str, words: str) -> None:
    method = unipelt.parse(f"method m {{ {text} form {{ b: [d_out] ~ zeros delta = b }} compose add }}")
    with pytest.raises(unipelt.PeltError) as e:
        unipelt.plan(build(kind), method)
    assert [d.code for d in e.value.diagnostics] == [code] and words in str(e.value)


def test_a_layer_has_no_number_where_one_module_serves_several() -> None:
    model = build("albert_head")
    method = unipelt.parse("method m { modify ffn form { b: [d_out] ~ zeros delta = b * layer } compose add }")
    with pytest.raises(unipelt.PeltError, match="E0703.*a layer has no number"):
        unipelt.plan(model, method)
    assert len(unipelt.plan(build("albert_head", num_hidden_groups=2), method).edits) == 2  # a module for each


def test_a_module_that_serves_several_layers_has_one_edit() -> None:
    plan = unipelt.plan(build("albert_head", layers=4), small(named("lora")))
    assert len(plan.tensors) == 4 and plan.counts.trained == sum(t.count for t in plan.tensors.values())
    assert {r["layers"] for r in plan.table() if r["row"] != "head"} == {"0–3"}


@pytest.mark.parametrize("kind", TOWERS)
def test_a_prefix_has_one_mlp_for_each_kind_of_attention(kind: str) -> None:
    plan = unipelt.plan(build(kind), small(named(PREFIX)))
    mlps = {n for n in plan.tensors if n.endswith(".W1")}
    row = plan.method.rows[0].name
    assert mlps == {f"{site}.heads.{row}.W1" for site in ("encoder.attn", "decoder.attn", "decoder.cross")}


# ---------------------------------------------------------------- arguments by layer

LISTS = {
    "encoder": ([4, 1, 6], [1.0, 2.0, 3.0], "encoder.attn.q, encoder.attn.v"),
    "decoder": ([2, 5], [3.0, 0.5], "decoder.attn.q, cross.v"),
}
BY_STACK = "method m { %s }" % " ".join(
    f"use lora(r = {r}, alpha = {alpha}, at = [{sites}]) as {stack[:3]}" for stack, (r, alpha, sites) in LISTS.items()
)


@pytest.mark.parametrize("kind", TOWERS)
def test_a_list_has_a_value_for_each_layer_of_its_stack(kind: str, tmp_path: Path) -> None:
    """Three layers in the encoder and two in the decoder: what separate rows of one layer each compute."""
    model, apart = build(kind, torch.float64), build(kind, torch.float64)
    method = unipelt.parse(spec(BY_STACK))
    plan = unipelt.apply(model, method, name="a")
    randomise(model, "a")
    assert {(e.site.stack, e.site.layer): plan.tensors[e.tensors["A"]].shape[-1] for e in plan.edits} == {
        (stack, i): r for stack, (ranks, _, _) in LISTS.items() for i, r in enumerate(ranks)
    }
    agree(plan)
    rows = [
        f"use lora(r = {r}, alpha = {a}, at = [{sites}]) as {stack[:3]}{i} {{ layers {i} .. {i + 1} }}"
        for stack, (ranks, alphas, sites) in LISTS.items() for i, (r, a) in enumerate(zip(ranks, alphas))
    ]  # fmt: skip
    unipelt.apply(apart, unipelt.parse(spec(f"method m {{ {' '.join(rows)} }}")), name="a")
    values = unipelt.state_dict(model, "a")
    with torch.no_grad():
        for n, t in unipelt.state_dict(apart, "a").items():
            front, row, tensor = n.rsplit(".", 2)
            t.copy_(values[f"{front}.{row[:3]}.{tensor}"])
    inputs = batch(kind)
    found = look(model, inputs)
    assert (
        distance(found, look(apart, inputs)) < 1e-12
        and distance(found, look(build(kind, torch.float64), inputs)) > 1e-2
    )
    again = build(kind, torch.float64)
    unipelt.attach(again, unipelt.save(model, tmp_path / "a", "a"))
    assert distance(found, look(again, inputs)) < 1e-6  # stored in single precision


def test_one_list_cannot_serve_stacks_of_different_depths() -> None:
    model, lora = build("t5"), unipelt.load(named("lora"))
    for values, where in (
        ([4, 8], "the encoder, of 3 layers (the decoder has 2)"),
        ([4, 8, 2], "the decoder, of 2 layers (the encoder has 3)"),
    ):
        with pytest.raises(unipelt.PeltError) as e:
            unipelt.plan(model, lora(r=values))
        assert f"E0366]: there are {len(values)} values here" in str(e.value) and f"in {where}" in str(e.value)
    plan = unipelt.plan(model, lora(r="2 + layer if depth == 3 else 9 - layer"))
    assert plan.by_layer() == {"encoder.r": [2, 3, 4], "decoder.r": [9, 8]}
    cls, config, options = KINDS["bart"]
    even = unipelt.plan(
        cls(config(**options, encoder_layers=2, decoder_layers=2)), lora(r=[4, 8])
    )  # the list is for each
    assert {(e.site.stack, e.site.layer, even.tensors[e.tensors["A"]].shape[-1]) for e in even.edits} == {
        (stack, i, r) for stack in ("encoder", "decoder") for i, r in enumerate([4, 8])
    }


# ---------------------------------------------------------------- counts

SHARED = """
method shared(l: int = 3, r: int = 2) {
  use { modify decoder.attn.heads, cross.heads insert parallel
        form { P: [l, d_head] ~ zeros per kind, group  A: [d_model, r] ~ zeros per model  scores = q @ P.T * scale  delta = softmax(scores) @ P }
        compose share_softmax } as a
  use { modify attn.q, cross.q insert parallel form { A: [d_in, r] ~ zeros per layer  B: [r, d_out] ~ zeros  delta = z @ A @ B } compose add } as b
  use { layers first 2 modify encoder.ffn, decoder.ffn.hidden form { s: [d_out] ~ ones  delta = s } compose rescale } as c
  use { modify decoder.attn.k, attn.k form { s: [d_out] ~ ones  delta = s } compose rescale } as d
}
"""


@pytest.mark.parametrize("kind", [*ENCODER_DECODERS, "albert_head", "distilbert_head", "opt", "vit_head"])
def test_formulas_of_a_method_that_tells_stacks_apart(kind: str) -> None:
    model = build(kind, layers=3)
    if kind in ENCODER_DECODERS:
        agree(unipelt.plan(model, unipelt.parse(SHARED)))
        return
    with pytest.raises(unipelt.PeltError) as e:
        unipelt.plan(model, unipelt.parse(SHARED))
    assert {d.code for d in e.value.diagnostics} <= {"E0512", "E0703", "E0704"}


# ---------------------------------------------------------------- masks


@pytest.mark.parametrize("lowering", [True, False])
@pytest.mark.parametrize("sites", ["encoder.ffn", "decoder.ffn", "decoder.cross", "cross.k", "cross.v", "cross.q",
                                   "encoder.attn.heads", "decoder.cross.heads"])  # fmt: skip
@pytest.mark.parametrize("kind", TOWERS)
def test_tokens_are_those_of_the_stack_that_is_read(kind: str, sites: str, lowering: bool) -> None:
    """More padding, in encoder and decoder, changes nothing of the real tokens."""
    model = build(kind, torch.float64)
    unipelt.apply(model, gated(sites), name="a", allow_future=True, lowering=lowering)
    inputs = batch(kind, padded=False)
    longer = {}
    for n, t in inputs.items():
        fill = 0 if n.endswith("mask") else PAD
        longer[n] = torch.cat([t, t.new_full((t.shape[0], 3), fill)], 1)
    tokens = inputs["decoder_input_ids"].shape[1]
    short, long = look(model, inputs)["logits"], look(model, longer)["logits"][:, :tokens]
    assert float((short - long).abs().max()) < 1e-10
    with unipelt.disabled(model):
        assert float((short - look(model, inputs)["logits"]).abs().max()) > 1e-5
    unipelt.remove(model, "a")
    unipelt.apply(model, gated(sites, "positions"), name="a", allow_future=True)
    assert float((look(model, inputs)["logits"] - look(model, longer)["logits"][:, :tokens]).abs().max()) > 1e-6


@pytest.mark.parametrize("kind", TOWERS)
@pytest.mark.parametrize("sites", ["encoder.ffn", "cross.k"])
def test_generation_gives_the_encoder_its_mask(kind: str, sites: str) -> None:
    """`generate` calls the encoder past the model; its tokens are known all the same."""
    model = build(kind, torch.float64)
    unipelt.apply(model, gated(sites), name="a")
    inputs = {n: t for n, t in batch(kind).items() if not n.startswith("decoder")}
    options: dict[str, Any] = dict(max_new_tokens=4, do_sample=False, output_logits=True, return_dict_in_generate=True,
                                   pad_token_id=PAD, eos_token_id=None)  # fmt: skip
    with torch.no_grad():
        found = model.generate(**inputs, **options)
        again = model(**inputs, decoder_input_ids=found.sequences[:, :-1]).logits
        alone = model.generate(
            input_ids=inputs["input_ids"][1:2, :5], attention_mask=inputs["attention_mask"][1:2, :5], **options
        )
    logits = torch.stack(found.logits, 1)  # generation keeps them in single precision
    assert float((logits - again).abs().max()) < 1e-6
    assert float((logits[1] - torch.stack(alone.logits, 1)[0]).abs().max()) < 1e-6


# ---------------------------------------------------------------- causality


@pytest.mark.parametrize("kind", ENCODER_DECODERS)
def test_causality_is_judged_by_tower(kind: str) -> None:
    model = build(kind)
    for sites in ("encoder.ffn", "encoder.attn.heads", "cross.k", "cross.v", "encoder.block"):
        assert unipelt.plan(model, gated(sites)).properties["causal"] == "yes", sites
    for sites in ("decoder.ffn", "ffn", "cross", "cross.q", "cross.heads", "decoder.block"):
        with pytest.raises(unipelt.PeltError, match="E0530.*the decoder of this"):
            unipelt.plan(model, gated(sites))


@pytest.mark.parametrize("kind", ENCODER_DECODERS)
def test_the_verdict_on_causality_is_true(kind: str) -> None:
    """A later token of the decoder changes nothing before it, where the plan says so, and does where it was allowed."""
    inputs = batch(kind, padded=False)
    changed = {**inputs, "decoder_input_ids": inputs["decoder_input_ids"].clone()}
    changed["decoder_input_ids"][:, -1] = (changed["decoder_input_ids"][:, -1] + 1) % (VOCAB - 5) + 5
    for sites, sees in (
        ("encoder.ffn", False),
        ("cross.k", False),
        ("cross.v", False),
        ("decoder.ffn", True),
        ("cross", True),
    ):
        model = build(kind)
        plan = unipelt.apply(model, gated(sites), name="a", allow_future=True)
        before, after = (look(model, i)["logits"][:, :-1] for i in (inputs, changed))
        assert (float((before - after).abs().max()) > 1e-5) is sees is bool(plan.leaks), sites
