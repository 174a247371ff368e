"""A vision transformer: parameters that an embedding layer holds beside other modules are trained, and nothing is said of pads."""

from __future__ import annotations

import copy

import torch
from names import name as named
from tiny import batch, build, distance, look, same
from transformers import AutoModelForImageClassification

import unipelt
from unipelt.compiler.trained import parameters_of
from unipelt.runtime.registry import record

FULL = unipelt.parse("method everything { train * }")


def test_every_parameter_of_a_vision_transformer_is_trained(tmp_path):
    """Full fine-tuning: each copy has the gradient that the base's own parameter has, and the class token is among them."""
    model, inputs = build("vit_head"), batch("vit_head")
    labels = torch.tensor([0, 2, 1])
    before = look(model, inputs)
    model(**inputs, labels=labels).loss.backward()
    wanted = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    for p in model.parameters():
        p.requires_grad_(False)
    names = set(parameters_of(model))
    unipelt.apply(model, FULL, name="all")
    assert any("cls_token" in n for n in wanted) and len(wanted) == len(names)
    assert same(look(model, inputs), before)
    model(**inputs, labels=labels).loss.backward()
    found = {n: p for n, p in record(model, "all").values().items()}
    assert len(found) == len(wanted)
    for n, p in found.items():
        whole = next(w for w in wanted if w.endswith(n) or n.endswith(w))
        assert p.grad is not None and torch.allclose(p.grad, wanted[whole], atol=1e-6, rtol=1e-4), n
    with torch.no_grad():
        for p in found.values():
            p.add_(p.grad)
    after = look(model, inputs)
    assert distance(after, before) > 1e-3
    with unipelt.disabled(model):
        assert same(look(model, inputs), before)
    assert same(look(copy.deepcopy(model), inputs), after)
    unipelt.save(model, tmp_path / "a", "all")
    unipelt.save_merged(model, tmp_path / "plain", "all")
    assert (
        distance(look(AutoModelForImageClassification.from_pretrained(tmp_path / "plain").eval(), inputs), after) < 1e-5
    )
    unipelt.remove(model, "all")
    assert same(look(model, inputs), before)
    unipelt.attach(model, tmp_path / "a")
    assert same(look(model, inputs), after)


def test_two_methods_train_what_an_embedding_layer_holds():
    """Of each parameter the last copy counts."""
    model, inputs = build("vit_head"), batch("vit_head")
    first = unipelt.parse("method one { train embed }")
    unipelt.apply(model, first, name="one")
    unipelt.apply(model, FULL, name="two")
    before = look(model, inputs)
    with torch.no_grad():
        for n, p in record(model, "one").values().items():
            if "cls_token" in n:
                p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(0)))
    unipelt.activate(model, "one")
    alone = look(model, inputs)
    assert distance(alone, before) > 1e-3
    unipelt.activate(model, "one", "two")
    assert same(look(model, inputs), before)
    unipelt.activate(model, "two", "one")
    assert distance(look(model, inputs), before) > 1e-3


def test_pictures_have_no_pads():
    gated = named("unipelt_apl")
    assert any("pad positions" in w for w in unipelt.plan(build("bert_head"), unipelt.load(gated)).warnings)
    assert not any("pad" in w for w in unipelt.plan(build("vit_head"), unipelt.load(gated)).warnings)
