"""Rows among the tokens of models that are given more of each token than its id: a place on a page, positions in rows and columns of a
picture; and of one whose tokens are its first dimension."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers as T

import unipelt

SIZES: dict[str, Any] = dict(vocab_size=80, hidden_size=48, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48,
                             max_position_embeddings=64, pad_token_id=0)  # fmt: skip
PAGES = {
    "layoutlm": (T.LayoutLMModel, T.LayoutLMConfig(**SIZES, max_2d_position_embeddings=64)),
    "lilt": (T.LiltModel, T.LiltConfig(**SIZES, max_2d_position_embeddings=64, channel_shrink_ratio=2)),
    "bros": (T.BrosModel, T.BrosConfig(**{**SIZES, "hidden_size": 64})),
}
ROWS = 3
TEXT = torch.tensor([[5, 6, 7, 8, 9, 10, 11]])


def rows(compose: str) -> unipelt.Method:
    return unipelt.parse(
        f"method m {{ modify embed.words form {{ P: [{ROWS}, d_out] ~ normal(0.5) delta = P }} compose {compose} }}"
    )


def built(cls: Any, config: Any) -> Any:
    torch.manual_seed(0)
    return cls(config).eval().requires_grad_(False)


@pytest.mark.parametrize("kind", PAGES)
def test_rows_lie_nowhere_on_the_page(kind: str) -> None:
    """As if the model had been given their embeddings, with boxes of zeros."""
    m = built(*PAGES[kind])
    boxes = torch.arange(28).reshape(1, 7, 4)
    boxes = boxes / 28 if kind == "bros" else boxes
    unipelt.apply(m, rows("prepend(delta, h, 2)"), head=False)
    P = next(iter(unipelt.state_dict(m).values()))
    found = m(input_ids=TEXT, bbox=boxes)[0]
    e, zeros = m.get_input_embeddings()(TEXT), boxes.new_zeros(1, ROWS, 4)
    e = torch.cat([e[:, :2], P[None], e[:, 2:]], 1)
    unipelt.remove(m)
    whole = m(inputs_embeds=e, bbox=torch.cat([boxes[:, :2], zeros, boxes[:, 2:]], 1))[0]
    torch.testing.assert_close(found, torch.cat([whole[:, :2], whole[:, 2 + ROWS :]], 1))


def test_rows_among_tokens_that_lie_before_the_examples() -> None:
    """XLNet turns its ids around: what leaves its table of words is [token, batch, d]."""
    m = built(T.XLNetModel, T.XLNetConfig(vocab_size=80, d_model=32, n_layer=2, n_head=4, d_inner=48))
    text = torch.cat([TEXT, TEXT.flip(-1)])
    unipelt.apply(m, rows("prepend(delta, h)"), head=False)
    P = next(iter(unipelt.state_dict(m).values()))
    found = m(input_ids=text)[0]
    e = torch.cat([P.expand(2, -1, -1), m.get_input_embeddings()(text)], 1)
    unipelt.remove(m)
    torch.testing.assert_close(found, m(inputs_embeds=e)[0][:, ROWS:])


def seeing() -> Any:
    """Qwen2-VL, whose positions are three for each token."""
    rope = {"rope_type": "default", "mrope_section": [2, 2, 2]}
    text = dict(SIZES, num_key_value_heads=2, rope_parameters=rope)
    vision = dict(depth=1, embed_dim=16, hidden_size=48, num_heads=2, patch_size=4)
    return built(T.Qwen2VLForConditionalGeneration, T.Qwen2VLConfig(text_config=text, vision_config=vision, image_token_id=70, vision_start_token_id=71))  # fmt: skip


#: A picture of two rows and columns of parts, between words.
POSITIONS = torch.tensor([[0, 1, 1, 1, 1, 3, 4], [0, 1, 1, 2, 2, 3, 4], [0, 1, 2, 1, 2, 3, 4]])[:, None]


def test_rows_in_front_move_positions_in_rows_and_columns() -> None:
    m = seeing()
    unipelt.apply(m, rows("prepend(delta, h)"), head=False)
    P = next(iter(unipelt.state_dict(m).values()))
    found = m(input_ids=TEXT, position_ids=POSITIONS).logits
    e = torch.cat([P[None], m.get_input_embeddings()(TEXT)], 1)
    unipelt.remove(m)
    moved = torch.cat([torch.arange(ROWS).expand(3, 1, -1), POSITIONS + ROWS], -1)
    torch.testing.assert_close(found, m(inputs_embeds=e, position_ids=moved).logits[:, ROWS:])


def test_rows_behind_a_picture_are_refused_and_behind_words_alone_are_not() -> None:
    m = seeing()
    unipelt.apply(m, rows("append(delta, h)"), head=False)
    with pytest.raises(unipelt.PeltError) as caught:
        m(input_ids=TEXT, position_ids=POSITIONS)
    assert caught.value.diagnostics[0].code == "E0545" and "picture" in str(caught.value)
    words = torch.arange(7)[None]
    assert torch.equal(m(input_ids=TEXT, position_ids=words.expand(3, 1, -1)).logits, m(input_ids=TEXT).logits)


def test_a_text_is_continued_as_one_pass_has_it_where_a_token_has_three_positions() -> None:
    m = seeing()
    unipelt.apply(m, rows("prepend(delta, h)"), head=False)
    made = m.generate(
        input_ids=TEXT,
        max_new_tokens=3,
        min_new_tokens=3,
        do_sample=False,
        output_logits=True,
        return_dict_in_generate=True,
    )
    whole = m(input_ids=made.sequences).logits[:, -4:-1]
    torch.testing.assert_close(torch.stack(made.logits, 1), whole, atol=1e-5, rtol=1e-4)
