"""Rows among the tokens of an encoder–decoder: they stand where the encoder is called, and the decoder looks at them too."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from names import name as named, spec
from tiny import PAD, batch, build, footprint, look, same
from torch import Tensor, nn

import unipelt
from unipelt.runtime.registry import record

KINDS = ("t5", "mt5", "bart", "mbart")
PLACES = ("prepend(delta, h)", "prepend(delta, h, 2)", "append(delta, h)")
ROWS = 3
GENERATING: dict[str, Any] = dict(max_new_tokens=5, do_sample=False, pad_token_id=PAD, eos_token_id=None)


def rows(compose: str, at: str = "embed.words", more: str = "") -> unipelt.Method:
    return unipelt.parse(spec(
        f"method m {{ use {{ modify {at} form {{ P: [{ROWS}, d_out] ~ normal(0.5) delta = P }} compose {compose} }} as p {more} }}"
    ))  # fmt: skip


def value(m: nn.Module, adapter: str = "default") -> Tensor:
    return next(t for n, t in unipelt.state_dict(m, adapter).items() if n.endswith(".P"))


def inputs(kind: str) -> dict[str, Tensor]:
    """Three texts of 7, 5 and 7 tokens, padded."""
    return batch(kind)


def words(m: nn.Module, ids: Tensor) -> Tensor:
    with unipelt.disabled(m):
        return m.get_encoder().embed_tokens(ids)


def by_hand(m: nn.Module, given: dict[str, Tensor], compose: str, P: Tensor) -> dict[str, Tensor]:
    """What a user without unipelt would feed: the embeddings with the rows among them, and a longer mask."""
    e, lengths = words(m, given["input_ids"]).detach(), given["attention_mask"].sum(1).tolist()
    longer = e.shape[1] + ROWS
    embeds, mask = e.new_zeros(len(e), longer, e.shape[2]), torch.zeros(len(e), longer, dtype=torch.long)
    for b, n in enumerate(lengths):
        at = {PLACES[0]: 0, PLACES[1]: 2, PLACES[2]: n}[compose]
        whole = torch.cat([e[b, :at], P, e[b, at:n]])
        embeds[b, : len(whole)], mask[b, : len(whole)] = whole, 1
    others = {k: t for k, t in given.items() if k.startswith("decoder")}
    return {"inputs_embeds": embeds, "attention_mask": mask, **others}


# ---------------------------------------------------------------- one pass


@pytest.mark.parametrize("compose", PLACES)
@pytest.mark.parametrize("kind", KINDS)
def test_rows_equal_embeddings_fed_by_hand(kind: str, compose: str) -> None:
    m, given = build(kind, torch.float64), inputs(kind)
    base = look(m, given)["logits"]
    unipelt.apply(m, rows(compose))
    fed = by_hand(m, given, compose, value(m))
    with torch.no_grad(), unipelt.disabled(m):
        wanted = m(**fed)
        assert torch.equal(m(**given).logits, base)
    embeds = {**{k: t for k, t in given.items() if k != "input_ids"}, "inputs_embeds": words(m, given["input_ids"])}
    for call in (given, embeds):
        with torch.no_grad():
            found = m(**call)
        assert found.logits.shape == base.shape  # the decoder's tokens are as many as they were
        assert float((found.logits - wanted.logits).abs().max()) < 1e-12
        real = fed["attention_mask"].bool()
        assert float((found.encoder_last_hidden_state - wanted.encoder_last_hidden_state)[real].abs().max()) < 1e-12
    assert float((found.logits - base).abs().max()) > 1e-3
    kept = unipelt.at_tokens(m, found.encoder_last_hidden_state)
    at = 7 if compose == PLACES[2] else 2 if compose == PLACES[1] else 0
    wanted_kept = torch.cat([found.encoder_last_hidden_state[0, :at], found.encoder_last_hidden_state[0, at + ROWS :]])
    assert torch.equal(kept[0], wanted_kept)


@pytest.mark.parametrize("kind", ["t5", "bart"])
def test_every_row_has_the_gradient_of_an_embedding_fed_by_hand(kind: str) -> None:
    m, given = build(kind, torch.float64), inputs(kind)
    labels = given.pop("decoder_input_ids")
    del given["decoder_attention_mask"]
    unipelt.apply(m, rows(PLACES[1]))
    (P,) = record(m, "default").trained().values()
    loss = m(**given, labels=labels).loss
    loss.backward()
    fed = value(m).clone().requires_grad_()
    with unipelt.disabled(m):
        wanted = m(**by_hand(m, given, PLACES[1], fed), labels=labels).loss
        (gradient,) = torch.autograd.grad(wanted, fed)
    assert torch.equal(loss, wanted) and P.grad is not None
    assert float((P.grad - gradient).abs().max()) < 1e-12 and bool((gradient.abs().amax(1) > 1e-6).all())
    assert all(p.grad is None for p in m.parameters() if p is not P)


@pytest.mark.parametrize("kind", ["t5", "bart"])
def test_pseudo_tokens_are_those_of_the_encoder_s_text(kind: str) -> None:
    m, given = build(kind, torch.float64), inputs(kind)
    marks = torch.tensor([[1, 0, 0, 2, 0, 0, 3], [0, 3, 0, 0, 1, 0, 0], [2, 0, 0, 0, 0, 0, 0]])
    unipelt.apply(m, rows("fill(delta, h)"))
    e = words(m, given["input_ids"]).detach().clone()
    e[marks > 0] = value(m)[marks[marks > 0] - 1]
    others = {k: t for k, t in given.items() if k != "input_ids"}
    with torch.no_grad(), unipelt.disabled(m):
        wanted = m(**others, inputs_embeds=e).logits
        tokens = {k: t for k, t in given.items() if not k.startswith("decoder")}
        written = m.generate(inputs_embeds=e, attention_mask=given["attention_mask"], num_beams=3, **GENERATING)
    with torch.no_grad():
        assert float((m(**given, pseudo_tokens=marks).logits - wanted).abs().max()) < 1e-12
        with unipelt.inputs(m, pseudo_tokens=marks):  # the encoder is called past the model
            assert torch.equal(m.generate(**tokens, num_beams=3, **GENERATING), written)
        states = m.get_encoder()(**tokens, pseudo_tokens=marks)
        assert float((m(**given, encoder_outputs=states, pseudo_tokens=marks).logits - wanted).abs().max()) < 1e-12
    with pytest.raises(unipelt.PeltError, match="E0731.*pseudo_tokens"):
        m.generate(**tokens, **GENERATING)
    with torch.no_grad(), unipelt.inputs(m, pseudo_tokens=marks):  # and what failed left nothing behind
        assert torch.equal(m.generate(**tokens, num_beams=3, **GENERATING), written)


# ---------------------------------------------------------------- generation


@pytest.mark.parametrize("compose", [PLACES[0], PLACES[2]])
@pytest.mark.parametrize("kind", KINDS)
def test_generation_looks_at_the_rows(kind: str, compose: str) -> None:
    """With a cache, without, with a static one, with beams: what embeddings fed by hand give, token by token."""
    m, given = build(kind, torch.float64), inputs(kind)
    given = {k: t for k, t in given.items() if not k.startswith("decoder")}
    unipelt.apply(m, rows(compose))
    with torch.no_grad():
        value(m).mul_(4)
    fed = by_hand(m, given, compose, value(m))
    scores: dict[str, Any] = dict(output_logits=True, return_dict_in_generate=True)
    for options in (
        {},
        {"use_cache": False},
        {"cache_implementation": "static"},
        {"num_beams": 3, "num_return_sequences": 2},
    ):
        with torch.no_grad():
            found = m.generate(**given, **GENERATING, **scores, **options)
            with unipelt.disabled(m):
                wanted = m.generate(**fed, **GENERATING, **scores, **options)
                base = m.generate(**given, **GENERATING, **scores, **options)
        assert torch.equal(found.sequences, wanted.sequences), options
        assert (
            float((torch.stack(found.logits) - torch.stack(wanted.logits)).abs().max()) < 1e-6
        )  # kept in single precision
        assert float((found.logits[0] - base.logits[0]).abs().max()) > 1e-3
    alone = m.generate(
        input_ids=given["input_ids"][1:2, :5], attention_mask=given["attention_mask"][1:2, :5], **GENERATING
    )
    with torch.no_grad():
        together = m.generate(**given, **GENERATING)
    assert torch.equal(together[1:2], alone)  # padding changes nothing


def test_declared_arguments_reach_an_encoder_that_generation_calls() -> None:
    m, given = build("t5"), {k: t for k, t in inputs("t5").items() if not k.startswith("decoder")}
    unipelt.apply(m, unipelt.load(named("prompt_ensemble"))(n=2, l=ROWS, start="normal(2.0)"))
    member = torch.tensor([0, 1, 1])
    with torch.no_grad(), unipelt.inputs(m, member=member):
        found = m.generate(**given, num_beams=2, **GENERATING)
    for b, k in enumerate(member.tolist()):
        one = {n: t[b : b + 1] for n, t in given.items()}
        with torch.no_grad(), unipelt.inputs(m, member=k):
            assert torch.equal(m.generate(**one, num_beams=2, **GENERATING), found[b : b + 1])
    with pytest.raises(unipelt.PeltError, match="E0731.*member"):
        m.generate(**given, **GENERATING)


@pytest.mark.parametrize("kind", ["t5", "bart"])
def test_every_prompt_is_asked_in_one_pass(kind: str) -> None:
    m, given = build(kind, torch.float64), inputs(kind)
    unipelt.apply(m, unipelt.load(named("prompt_ensemble"))(n=3, l=ROWS, start="normal(1.0)", at="embed.words"))
    with torch.no_grad():
        found = unipelt.ensemble(m, given)
        apart = [m(**given, member=i).logits for i in range(3)]
    assert float((found.logits - torch.stack(apart)).abs().max()) < 1e-12
    assert float((found.logits[0] - found.logits[1]).abs().max()) > 1e-2
    shares = torch.stack([a.softmax(-1) for a in apart]).mean(0)
    assert torch.allclose(found.probabilities, shares, atol=1e-12)
    tokens = {k: t for k, t in given.items() if not k.startswith("decoder")}
    labels = {**tokens, "labels": given["decoder_input_ids"]}  # of which the model makes what its decoder reads
    with torch.no_grad():
        assert float((unipelt.ensemble(m, labels).logits[2] - m(**labels, member=2).logits).abs().max()) < 1e-12
        states = m.get_encoder()(**tokens, member=0)
    with pytest.raises(unipelt.PeltError, match="E0736.*`encoder_outputs` holds what one member has made"):
        unipelt.ensemble(m, {**given, "encoder_outputs": states})


@pytest.mark.parametrize("kind", ["t5", "bart"])
def test_states_of_the_encoder_may_come_from_another_call(kind: str) -> None:
    """With rows among them their mask grows; states that were made without keep the mask that they came with."""
    m, given = build(kind, torch.float64), inputs(kind)
    unipelt.apply(m, rows(PLACES[0]))
    wanted = look(m, given)["logits"]
    tokens = {k: t for k, t in given.items() if not k.startswith("decoder")}
    rest = {k: t for k, t in given.items() if k != "input_ids"}
    with torch.no_grad():
        states = m.get_encoder()(**tokens)
        assert states[0].shape[1] == 7 + ROWS
        look(m, batch(kind, rows=2, tokens=9))  # another pass in between
        assert torch.equal(m(**rest, encoder_outputs=states).logits, wanted)
        with unipelt.disabled(m):
            bare, base = m.get_encoder()(**tokens), m(**given).logits
        assert torch.equal(m(**rest, encoder_outputs=bare).logits, base)


# ---------------------------------------------------------------- beside other edits

POOLED = """use { modify SITE insert parallel form { w: [d_in] ~ normal(1.0)  b: [d_out] ~ normal(1.0)
  delta = b * mean(tanh(z @ w), tokens) } compose { out = h + delta * h } } as gate"""


@pytest.mark.parametrize("lowering", [True, False])
@pytest.mark.parametrize("site", ["encoder.ffn", "cross.k"])
def test_rows_are_tokens_to_edits_that_read_the_encoder_s(site: str, lowering: bool) -> None:
    m, given = build("bart", torch.float64), inputs("bart")
    gate = POOLED.replace("SITE", site)
    unipelt.apply(m, rows(PLACES[1], more=gate), name="both", seed=3, lowering=lowering)
    found = look(m, given)["logits"]
    fed = by_hand(m, given, PLACES[1], value(m, "both"))
    unipelt.apply(m, unipelt.parse(f"method m {{ {gate} }}"), name="gate", seed=3, lowering=lowering)
    own, both = unipelt.state_dict(m, "gate"), unipelt.state_dict(m, "both")
    assert own and all(torch.equal(t, both[n]) for n, t in own.items())
    with torch.no_grad():
        assert float((m(**fed).logits - found).abs().max()) < 1e-12


def test_a_bare_embed_is_the_encoder_s_and_a_decoder_s_can_be_edited_without_rows() -> None:
    m, given = build("t5", torch.float64), inputs("t5")
    add = "method m {{ modify {} form {{ b: [d_out] ~ normal(0.5) delta = b }} compose add }}"
    plan = unipelt.apply(m, unipelt.parse(add.format("embed")))
    assert [e.site.full_name for e in plan.edits] == ["encoder.embed"]
    unipelt.remove(m, "default")
    unipelt.apply(m, unipelt.parse(add.format("decoder.embed")))
    found = look(m, given)["logits"]
    (b,) = unipelt.state_dict(m, "default").values()
    with torch.no_grad(), unipelt.disabled(m):
        embeds = m.decoder.embed_tokens(given["decoder_input_ids"]) + b
        rest = {k: t for k, t in given.items() if k != "decoder_input_ids"}
        assert torch.equal(m(**rest, decoder_inputs_embeds=embeds).logits, found)


def test_a_decoder_that_embeds_with_the_encoder_s_module_has_no_rows() -> None:
    m, given = build("t5"), inputs("t5")
    unipelt.apply(m, rows(PLACES[0]), seed=1)
    wanted = look(m, given)
    shared = build("t5")
    shared.set_input_embeddings(shared.shared)
    assert shared.encoder.embed_tokens is shared.decoder.embed_tokens
    unipelt.apply(shared, rows(PLACES[0]), seed=1)
    assert same(look(shared, given), wanted)


# ---------------------------------------------------------------- attached, saved, taken out


@pytest.mark.parametrize("kind", ["t5", "bart"])
def test_saved_attached_and_taken_out(kind: str, tmp_path: Any) -> None:
    m, given = build(kind), inputs(kind)
    before, base = footprint(m), look(m, given)
    unipelt.apply(m, unipelt.load(named("p_tuning_prepended"))(l=ROWS))
    with torch.no_grad():
        for t in unipelt.state_dict(m, "default").values():
            t.add_(0.2 * torch.randn(t.shape, generator=torch.Generator().manual_seed(0)))
    found = look(m, given)["logits"]
    folder = unipelt.save(m, tmp_path / "saved")
    fresh = build(kind)
    unipelt.attach(fresh, folder)
    assert float((look(fresh, given)["logits"] - found).abs().max()) < 1e-5
    assert float((found - base["logits"]).abs().max()) > 1e-3
    unipelt.remove(m, "default")
    assert footprint(m) == before and same(look(m, given), base)


@pytest.mark.long
def test_a_compiled_model_has_the_rows() -> None:
    m, given = build("bart", layers=1), inputs("bart")
    unipelt.apply(m, rows(PLACES[1]))
    wanted = look(m, given)["logits"]
    with torch.no_grad():
        found = torch.compile(m, fullgraph=True, backend="aot_eager")(**given).logits
    torch.compiler.reset()
    assert float((found - wanted).abs().max()) < 1e-5


# ---------------------------------------------------------------- refused


@pytest.mark.parametrize("kind, at, compose, said", [
    ("t5", "decoder.embed", PLACES[0], "enter the encoder of this T5ForConditionalGeneration, not its decoder"),
    ("bart", "decoder.embed.words", "fill(delta, h)", "not its decoder"),
    ("bart", "embed", PLACES[0], "put them at `embed.words`"),
    ("mbart", "embed", PLACES[2], "takes none, so rows would shift them"),
    ("whisper", "embed", PLACES[0], "rows among tokens, and this WhisperForConditionalGeneration reads none"),
    ("vit_head", "embed", "fill(delta, h)", "rows among tokens, and this ViTForImageClassification reads none"),
    ("opt", "embed", PLACES[0], "put it at `embed.words`"),
])  # fmt: skip
def test_what_cannot_be_done_is_refused_and_why(kind: str, at: str, compose: str, said: str) -> None:
    m = build(kind)
    before = footprint(m)
    with pytest.raises(unipelt.PeltError) as e:
        unipelt.apply(m, rows(compose, at))
    assert [d.code for d in e.value.diagnostics] == ["E0739"] and said in str(e.value)
    assert footprint(m) == before


def test_a_site_that_only_the_decoder_has_is_not_suggested_for_the_input() -> None:
    with pytest.raises(unipelt.PeltError, match="E0512.*no site `embed.words`") as e:
        unipelt.plan(build("whisper"), rows(PLACES[0]))
    assert "`embed`" in str(e.value.diagnostics[0].help) and "words" not in str(e.value.diagnostics[0].help)


def test_what_does_not_change_the_length_may_stand_behind_learned_positions() -> None:
    m, given = build("bart", torch.float64), inputs("bart")
    unipelt.apply(m, rows("fill(delta, h)", "embed"))
    marks = torch.zeros_like(given["input_ids"])
    marks[:, 1] = 2

    def put(module: nn.Module, args: tuple, output: Tensor) -> Tensor:
        output = output.clone()
        output[:, 1] = value(m)[1]
        return output

    with torch.no_grad():
        found = m(**given, pseudo_tokens=marks).logits
        handle = m.model.encoder.layernorm_embedding.register_forward_hook(put)
        with unipelt.disabled(m):
            wanted = m(**given).logits
        handle.remove()
    assert float((found - wanted).abs().max()) < 1e-12
