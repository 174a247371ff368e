"""What stands between two towers is found in a pass with a picture beside a text."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers as T
from shrunk import shrunk

import unipelt
from unipelt.anatomy.examples import examples
from unipelt.anatomy.find import find

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
