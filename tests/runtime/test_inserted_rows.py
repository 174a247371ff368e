"""Rows that a prompt put among the tokens, or among the parts of a picture, changed block by block."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from names import name, spec
from small import cache_of, model, output, randomise, with_cache
from transformers import SwinConfig, SwinModel, ViTConfig, ViTModel

import unipelt

IDS = torch.tensor([[5, 6, 7, 8, 9], [7, 8, 20, 0, 0], [30, 31, 7, 8, 0]])
MASK = (IDS != 0).long()
LEFT = tuple(torch.stack([r.roll(int((r == 0).sum())) for r in t]) for t in (IDS, MASK))
DEEP = """method m {
  use { modify embed.words form { P: [3, d_out] ~ normal(1.0) delta = P } compose prepend(delta, h) } as first
  use { layers 1 .. depth modify block.input tokens inserted form { P: [3, d_out] ~ normal(1.0) delta = P[inserted] } compose delta } as deep
}"""


def applied(text: str, **options) -> torch.nn.Module:
    m = model("llama", dtype=torch.float64)
    unipelt.apply(m, unipelt.parse(spec(text)), **options)
    randomise(m)
    return m


def by_hand(m: torch.nn.Module, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The logits at the real tokens of a base whose blocks are given the rows, one text after the other, without pads."""
    own = unipelt.state_dict(m)
    deep = [next(t for n, t in own.items() if f".{i}." in n and ".deep." in n) for i in (1, 2)]
    base, found = model("llama", dtype=torch.float64), []
    for layer, rows in zip(base.model.layers[1:], deep):
        layer.register_forward_pre_hook(
            lambda _, args, rows=rows: (torch.cat([rows[None], args[0][:, 3:]], 1), *args[1:])
        )
    for own_ids, on in zip(ids, mask):
        words = base.get_input_embeddings()(own_ids[on == 1])
        first = next(t for n, t in own.items() if ".first." in n)
        with torch.no_grad():
            found.append(base(inputs_embeds=torch.cat([first, words])[None]).logits[0, 3:])
    return torch.cat(found)


@pytest.mark.parametrize("lowering", [True, False])
def test_rows_are_put_in_anew_before_every_block(lowering: bool) -> None:
    m = applied(DEEP, lowering=lowering)
    for ids, mask in ((IDS, MASK), LEFT, (IDS, None)):
        given = {} if mask is None else {"attention_mask": mask, "position_ids": (mask.cumsum(1) - 1).clamp(min=0)}
        found = output(m, input_ids=ids, **given)
        mask = torch.ones_like(ids) if mask is None else mask
        torch.testing.assert_close(found[mask == 1], by_hand(m, ids, mask), rtol=1e-9, atol=1e-9)


def test_steps_with_a_cache_are_one_pass() -> None:
    m, (ids, mask) = applied(DEEP), LEFT
    cache, parts, at = None, [], 0
    with torch.no_grad():
        whole = m(input_ids=ids, attention_mask=mask).logits
        for n in (3, 1, 1):
            o = m(
                input_ids=ids[:, at : at + n], attention_mask=mask[:, : at + n], use_cache=True, **with_cache(m, cache)
            )
            parts.append(o.logits)
            cache, at = cache_of(o), at + n
    torch.testing.assert_close(torch.cat(parts, 1)[mask == 1], whole[mask == 1], rtol=1e-9, atol=1e-9)


def test_more_rows_than_there_are_values_for_are_refused() -> None:
    m = applied(DEEP.replace("P: [3, d_out] ~ normal(1.0) delta = P[ins", "P: [2, d_out] ~ normal(1.0) delta = P[ins"))
    with pytest.raises(unipelt.PeltError) as e:
        m(input_ids=IDS)
    assert e.value.diagnostics[0].code == "E0797"


# ---------------------------------------------------------------- pictures


def vit() -> torch.nn.Module:
    torch.manual_seed(0)
    sizes = dict(
        hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=48, image_size=12, patch_size=4
    )
    return ViTModel(ViTConfig(**sizes)).double().eval()


PICTURES = torch.randn(2, 3, 12, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def test_outputs_have_the_parts_of_the_picture_and_the_rows_where_they_are_asked_for() -> None:
    m = vit()
    base = output(m, pixel_values=PICTURES)
    unipelt.apply(m, unipelt.load(name("vpt_shallow"))(l=2), name="a")
    unipelt.apply(m, unipelt.load(name("vpt_deep"))(l=3), name="b")
    unipelt.activate(m, "a", "b")
    randomise(m, "a")
    randomise(m, "b")
    with unipelt.using(m, "a"):
        one = output(m, pixel_values=PICTURES)
        with unipelt.with_rows(m):
            assert output(m, pixel_values=PICTURES).shape[1] == base.shape[1] + 2
    assert one.shape == base.shape and not torch.allclose(one, base)
    with unipelt.disabled(m):
        assert torch.equal(output(m, pixel_values=PICTURES), base)
    unipelt.remove(m, "a")
    unipelt.remove(m, "b")
    assert torch.equal(output(m, pixel_values=PICTURES), base)


def test_it_comes_back_as_it_was_saved_and_trains(tmp_path: Path) -> None:
    m = vit()
    unipelt.apply(m, unipelt.load(name("vpt_deep"))(l=3, dropout=0.0))
    randomise(m)
    after = output(m, pixel_values=PICTURES)
    unipelt.save(m, tmp_path / "a")
    again = vit()
    unipelt.attach(again, tmp_path / "a")
    assert torch.equal(output(again, pixel_values=PICTURES), after)
    m.train()
    m(pixel_values=PICTURES)[0].sum().backward()
    grads = [p.grad for p in m.parameters() if p.requires_grad]
    assert len(grads) == 3 and all(g is not None and float(g.abs().max()) > 0 for g in grads)


def test_a_model_that_puts_parts_together_takes_no_rows() -> None:
    m = SwinModel(SwinConfig(image_size=32, patch_size=4, embed_dim=16, depths=[2, 2], num_heads=[2, 4], window_size=4))
    with pytest.raises(unipelt.PeltError) as e:
        unipelt.plan(m, unipelt.load(name("vpt_shallow")))
    assert e.value.diagnostics[0].code == "E0739"
