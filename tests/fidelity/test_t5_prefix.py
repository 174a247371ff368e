"""peft's prefix for T5 and ours differ in one thing, and in nothing else: where its rows stand.

peft puts the rows into the cache, as tokens before the text. T5 knows positions only as a bias of the scores, so the rows
get the bias of tokens at these distances. In a form nothing stands anywhere: learned rows have no bias (as in models whose
positions lie in the embeddings or in rotated queries). Here the recording is reproduced through the cache, then compared with
ours after that bias, and only it, is taken away.
"""

from __future__ import annotations

import pytest
import torch
from fidelity_kit import EFFECT, OUTPUTS, effect, output_error, variant
from recordings import FOLDER
from small import with_cache
from test_recordings import build, read
from torch import Tensor, nn
from transformers import DynamicCache, EncoderDecoderCache

import unipelt

NAME, ROWS = "peft/t5-prefix_tuning", 4


def _blocks(recorded: Tensor, heads: int, d_head: int) -> list[Tensor]:
    """Keys and values in turn, [heads, rows, d_head]. A layer reads blocks 4·layer and 4·layer + 1 of twice as many as there
    are, in a ring: the first two in both layers of the recorded model."""
    return list(recorded.view(ROWS, -1, heads, d_head).permute(1, 2, 0, 3))


def _through_the_cache(model: nn.Module, inputs: dict[str, Tensor], key: Tensor, value: Tensor) -> Tensor:
    rows = inputs["input_ids"].shape[0]
    own = DynamicCache(config=model.config)
    for layer in range(model.config.num_decoder_layers):
        own.update(key.expand(rows, -1, -1, -1).clone(), value.expand(rows, -1, -1, -1).clone(), layer)
    cache = EncoderDecoderCache(own, DynamicCache(config=model.config))
    with torch.no_grad():
        return model(**inputs, **with_cache(model, cache), use_cache=True).logits


@pytest.mark.skipif(FOLDER is None, reason="the recordings are not here")
def test_peft_s_rows_have_positions_and_ours_have_none(monkeypatch: pytest.MonkeyPatch) -> None:
    metadata, tensors = read(NAME)
    model = build(metadata, tensors)
    config = model.config
    (recorded,) = (t for n, t in tensors.items() if n.startswith("adapter."))
    (gradient,) = (t for n, t in tensors.items() if n.startswith("grad."))
    key, value, *unused = _blocks(recorded, config.num_heads, config.d_kv)
    read_, wrote, *nothing = _blocks(gradient, config.num_heads, config.d_kv)
    assert read_.any() and wrote.any() and not any(t.any() for t in nothing) and len(unused) == 2
    inputs = {n: tensors[f"input.{n}"] for n in ("input_ids", "attention_mask", "decoder_input_ids")}
    assert output_error(_through_the_cache(model, inputs, key, value), tensors["output.logits"]) <= OUTPUTS

    unipelt.apply(model, variant("peft", "prefix_of_a_decoder", l=ROWS), name="ours")
    ours = unipelt.state_dict(model, "ours")
    assert len(ours) == 2  # one prefix for both layers
    with torch.no_grad():
        for n, t in ours.items():
            t.copy_(key if n.endswith("P_k") else value)
        out = model(**inputs).logits
    assert output_error(out, tensors["output.logits"]) > EFFECT  # the explained difference
    unipelt.remove(model, "ours")

    attention = model.decoder.block[0].layer[0].SelfAttention
    compute = attention.compute_bias

    def without_rows(*args: object, **options: object) -> Tensor:
        bias = compute(*args, **options).clone()
        bias[..., :ROWS] = 0
        return bias

    monkeypatch.setattr(attention, "compute_bias", without_rows)
    assert output_error(out, _through_the_cache(model, inputs, key, value)) <= OUTPUTS
    with torch.no_grad():
        monkeypatch.undo()
        assert effect(out, model(**inputs).logits) > EFFECT
