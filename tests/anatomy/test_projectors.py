"""What stands between two towers is found in a pass with a picture beside a text."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers as T
from shrunk import shrunk
from torch import nn

import unipelt
from unipelt.anatomy.examples import examples, first_that_runs
from unipelt.anatomy.find import find
from unipelt.anatomy.naming import names_of
from unipelt.anatomy.search import NOT_REACHED
from unipelt.anatomy.sites import NOT_YET, PROVED
from unipelt.anatomy.towers import Tower

SCALED = unipelt.parse("method scaled { modify projector  compose { s: [d_out] ~ ones  out = h * s } }")
#: Its projector; whether that makes one token of several, so that what enters has no token for each that leaves.
MODELS: dict[str, tuple[Any, str, bool]] = {
    # the last block of the tower but one is read
    "llava": (T.LlavaForConditionalGeneration, "model.multi_modal_projector", False),
    # beside a pooler that nothing reads
    "paligemma": (T.PaliGemmaForConditionalGeneration, "model.multi_modal_projector", False),
    "qwen2_vl": (T.Qwen2VLForConditionalGeneration, "model.visual.merger", True),
}


def built(kind: str, meta: bool = False) -> Any:
    torch.manual_seed(0)
    with torch.device("meta" if meta else "cpu"):
        return MODELS[kind][0](shrunk(kind)).eval().requires_grad_(False)


@pytest.mark.parametrize("kind", MODELS)
def test_it_is_found_with_weights_and_without(kind: str) -> None:
    _, path, merges = MODELS[kind]
    for meta in (False, True):
        (site,) = find(built(kind, meta)).named("projector")
        assert (site.view.module, site.stack, "x" in site.lacks) == (path, "vision", merges)


def test_what_is_done_there_reaches_the_text_by_the_picture_alone() -> None:
    model = built("llava")
    pictured = next(g for g in examples(model) if "pixel_values" in g)
    alone = {n: v for n, v in pictured.items() if n == "attention_mask"} | {
        "input_ids": torch.ones_like(pictured["input_ids"])
    }
    base = [model(**g).logits for g in (pictured, alone)]
    unipelt.apply(model, SCALED, head=False)
    with torch.no_grad():
        for g in unipelt.parameter_groups(model, lr=1.0):
            for p in g["params"]:
                p.fill_(3.0)
    got = [model(**g).logits for g in (pictured, alone)]
    unipelt.remove(model)
    handle = model.model.multi_modal_projector.register_forward_hook(lambda m, a, out: out * 3.0)
    torch.testing.assert_close(got[0], model(**pictured).logits)
    handle.remove()
    assert not torch.allclose(got[0], base[0]) and torch.equal(got[1], base[1])


@pytest.mark.parametrize("meta", [False, True])
def test_a_tower_that_runs_beside_a_text_alone_is_found(meta: bool) -> None:
    """Its own pass asks for what only the whole model knows."""
    torch.manual_seed(0)
    with torch.device("meta" if meta else "cpu"):
        model = T.PaddleOCRVLForConditionalGeneration(shrunk("paddleocr_vl")).eval().requires_grad_(False)
    with pytest.raises(unipelt.PeltError, match="E0595"):
        first_that_runs(model.model.visual)
    sites = find(model)
    found = [s for s in sites.sites if s.full_name == "vision.attn.q"]
    assert len(found) == 2 and {s.proof for s in found} == {NOT_YET if meta else PROVED}
    assert not set(sites.uncovered.values()) & {NOT_REACHED}


def test_of_two_towers_that_see_the_one_for_pictures_has_the_name() -> None:
    """The other has its own, of the part of its path by which it differs, and no name of another kind of tower."""

    def tower(path: str) -> tuple[Tower, set[str]]:
        return Tower(path, (), 2, ""), {"attn"}

    see = {"vision": "image_tower.layers", "video_tower": "video_tower.layers", "text": "language_model.layers"}
    for order in (list(see.values()), list(see.values())[::-1]):
        assert names_of(nn.Module(), [tower(p) for p in order])[0] == {path: name for name, path in see.items()}
    one = {"vision": "pixels.encoder.layers", "pyramid": "pixels.decoder.pyramid.layers", "decoder": "decoder.layers"}
    assert names_of(nn.Module(), [tower(p) for p in one.values()])[0] == {path: name for name, path in one.items()}
