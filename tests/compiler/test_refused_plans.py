"""Plans that are refused for what a model has: each mistake once, at its place, and the model as it was."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from small import INNER, LAYERS, WIDTH, WORDS, model, state
from torch import nn

import unipelt
from unipelt.language.report.diagnostics import Diagnostic
from unipelt.language.report.render import remedy

SIZES: Any = dict(hidden_size=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=4, intermediate_size=INNER)


def refused(m: nn.Module, text: str) -> Diagnostic:
    before = state(m)
    for call in (unipelt.plan, unipelt.apply):
        with pytest.raises(unipelt.PeltError) as caught:
            call(m, unipelt.parse(text))
    assert state(m) == before
    (d,) = caught.value.diagnostics
    assert remedy(d)
    return d


@pytest.mark.parametrize("paths", ["*.scale", "*.bias, *.scale"])
def test_parameters_of_modules_that_hold_blocks(paths: str) -> None:
    """A twin of such a module would run its blocks twice, and their attention may write into a cache."""
    m = model("bert")
    m.encoder.scale = nn.Parameter(torch.ones(3))
    text = f"method m {{ train {paths} }}"
    d = refused(m, text)
    assert d.code == "E0511" and text[d.span.start : d.span.end] == "*.scale"
    assert "`encoder.scale` belongs to a BertEncoder, which holds blocks" in d.message


def pictures() -> nn.Module:
    from transformers import ViTConfig, ViTModel

    return ViTModel(ViTConfig(**SIZES, image_size=12, patch_size=4))


def narrow_words() -> nn.Module:
    from transformers import ElectraConfig, ElectraModel

    return ElectraModel(ElectraConfig(**SIZES, vocab_size=WORDS, embedding_size=16))


@pytest.mark.parametrize(
    "build, said", [(pictures, "ViTModel reads none"), (narrow_words, f"16 numbers for each, where {WIDTH}")]
)
@pytest.mark.parametrize("start", ["sampled_tokens()", 'tokens("a text")'])
def test_rows_that_start_from_words_which_the_model_does_not_have(build: Any, said: str, start: str) -> None:
    text = f"""method m(l: int = 4) {{ modify attn.heads insert parallel
      form {{ P: [l, d_model] ~ {start} per site  delta = softmax(q @ heads(attn.k(P)).T * scale) @ heads(attn.v(P)) }}
      compose add }}"""
    d = refused(build(), text)
    assert d.code == "E0707" and text[d.span.start : d.span.end].startswith("P: [l, d_model]")
    assert "`P` starts from words" in d.message and said in d.message


@pytest.mark.parametrize("since", ['"a text"', "[3, 4]"])
def test_tokens_from_a_text_on_are_none_where_there_are_no_words(since: str) -> None:
    text = f"method m {{ tokens since {since} modify ffn insert parallel form {{ b: [d_out] ~ zeros delta = b }} compose add }}"
    d = refused(pictures(), text)
    assert d.code == "E0707" and text[d.span.start : d.span.end].startswith("since")
    assert d.message == "`tokens since` finds words, and this ViTModel reads none"


@pytest.mark.parametrize("multiple, code, said", [
    ("1 - layer", "E0345", "that of `encoder.layer.2.attention.self.query.weight` is -1"),
    ("1 / (layer - 3)", "E0345", "is -0.333333"),
    ("layer", "E0303", "there is none here"),
    ("[1, 2, 3]", "E0303", "a list depends on the layer, and there is none here"),
    ("[1, 2]", "E0366", "and 3 layers"),
])  # fmt: skip
def test_multiples_of_the_learning_rate_at_trained_copies(multiple: str, code: str, said: str) -> None:
    """Of parameters outside the layers nothing can depend on the layer; the optimizer takes no rate below 0."""
    paths = "*.bias" if code == "E0303" else "block"
    text = f"method m {{ train {paths} lr {multiple} }}"
    d = refused(model("bert"), text)
    assert d.code == code and said in d.message and text[d.span.start : d.span.end] in multiple
