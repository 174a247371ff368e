"""How many tokens a model reads: the number is right where that many are read and one more is not."""

from __future__ import annotations

import pytest
import torch
from transformers import (
    BartConfig, BartModel, BertConfig, BertModel, DebertaV2Config, DebertaV2Model, GPT2Config, GPT2Model, LEDConfig, LEDModel,
    LlamaConfig, LlamaModel, MarianConfig, MarianModel, MPNetConfig, MPNetModel, OPTConfig, OPTModel, RobertaConfig, RobertaModel,
    T5Config, T5Model,
)  # fmt: skip

from unipelt.anatomy.positions import longest_text, tables_of_positions

ENCODER = dict(vocab_size=50, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
BOTH = dict(vocab_size=50, d_model=8, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2,
            encoder_ffn_dim=8, decoder_ffn_dim=8, decoder_start_token_id=2)  # fmt: skip
BUCKETS = dict(relative_attention=True, position_buckets=4, pos_att_type=["p2c", "c2p"])

#: A model with positions for 20 tokens as its configuration counts them, and how many tokens it reads.
TABLES = {
    "bert": (lambda: BertModel(BertConfig(**ENCODER, max_position_embeddings=20)), 20),
    "roberta": (lambda: RobertaModel(RobertaConfig(**ENCODER, max_position_embeddings=20)), 18),
    "mpnet": (lambda: MPNetModel(MPNetConfig(**ENCODER, max_position_embeddings=20)), 18),  # has buckets of distances, too
    "gpt2": (lambda: GPT2Model(GPT2Config(vocab_size=50, n_embd=8, n_layer=1, n_head=2, n_positions=20)), 20),
    "opt": (lambda: OPTModel(OPTConfig(vocab_size=50, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, ffn_dim=8,
                                       word_embed_proj_dim=8, max_position_embeddings=20)), 20),
    "bart": (lambda: BartModel(BartConfig(**BOTH, max_position_embeddings=20)), 20),
    "marian": (lambda: MarianModel(MarianConfig(**BOTH, pad_token_id=1, max_position_embeddings=20)), 20),
    "led": (lambda: LEDModel(LEDConfig(**BOTH, max_encoder_position_embeddings=20, max_decoder_position_embeddings=12,
                                       attention_window=[4])), 20),
    "deberta with a table": (lambda: DebertaV2Model(DebertaV2Config(**ENCODER, **BUCKETS, max_position_embeddings=20)), 20),
}  # fmt: skip
UNBOUNDED = {
    "t5": lambda: T5Model(T5Config(vocab_size=50, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2, n_positions=20,
                                   decoder_start_token_id=0)),
    "deberta": lambda: DebertaV2Model(DebertaV2Config(**ENCODER, **BUCKETS, max_position_embeddings=20, position_biased_input=False)),
}  # fmt: skip


def read(model: torch.nn.Module, tokens: int) -> torch.Tensor:
    ids = torch.full((1, tokens), 7)
    more = {"decoder_input_ids": ids[:, :2]} if model.config.is_encoder_decoder else {}
    with torch.no_grad():
        return model.eval()(input_ids=ids, **more).last_hidden_state


@pytest.mark.parametrize("family", TABLES)
def test_a_table_of_positions_bounds_the_text(family: str) -> None:
    make, bound = TABLES[family]
    model = make()
    assert longest_text(model) == bound
    for p in model.parameters():
        p.requires_grad_(False)  # as an adapter leaves them
    assert longest_text(model) == bound
    assert read(model, bound).isfinite().all()
    with pytest.raises((IndexError, RuntimeError)):
        read(model, 24)  # LED fills a text up to whole windows of 4


@pytest.mark.parametrize("family", UNBOUNDED)
def test_distances_between_tokens_have_no_bound(family: str) -> None:
    model = UNBOUNDED[family]()
    assert longest_text(model) is None and longest_text(model, answer=True) is None
    assert not list(tables_of_positions(model)) and read(model, 61).isfinite().all()


def test_rotary_positions_go_as_far_as_the_configuration_says() -> None:
    model = LlamaModel(LlamaConfig(vocab_size=50, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2,
                                   num_key_value_heads=2, max_position_embeddings=20))  # fmt: skip
    assert longest_text(model) == 20 and not list(tables_of_positions(model))


def test_an_answer_has_the_positions_of_the_decoder() -> None:
    led = TABLES["led"][0]()
    assert (longest_text(led), longest_text(led, answer=True)) == (20, 12)
