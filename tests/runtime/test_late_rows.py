"""Rows that enter a block behind others: the blocks before know nothing of them, and all that has a length agrees."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from small import LAYERS, cache_of, checkpoint_activations, inputs, model, output, pictures, randomise, with_cache
from transformers import MistralConfig, MistralForCausalLM, T5Config, T5ForConditionalGeneration

import unipelt
from unipelt.training.trunk import cache_trunk

IDS = torch.tensor([[5, 6, 7, 8, 9], [7, 8, 20, 0, 0], [30, 31, 7, 8, 0]])
MASK = (IDS != 0).long()
LEFT = tuple(torch.stack([r.roll(int((r == 0).sum())) for r in t]) for t in (IDS, MASK))
LATE = """method m(l: int = 3, b: int = 1, k: int = 0) {
  layers b .. b + 1  modify SITE  form { P: [l, d_out] ~ normal(1.0)  delta = P }  compose prepend(delta, h, k)
}"""
#: Of what a bottleneck makes of the text.
MADE = """method m(l: int = 3, b: int = 1, k: int = 0) {
  layers b .. b + 1  modify block.input  insert mean(h, tokens)
  form { A: [d_in, 4] ~ normal(1.0)  B: [4, l, d_out] ~ normal(1.0)  delta = relu(z @ A) @ B }  compose prepend(delta, h, k)
}"""
GENERATED = dict(max_new_tokens=6, do_sample=False, pad_token_id=0, eos_token_id=None)


def late(site: str = "block.input", **arguments: Any) -> unipelt.Method:
    return unipelt.parse(LATE.replace("SITE", site))(**arguments)


def applied(kind: str, method: unipelt.Method, name: str = "default", **options: Any) -> torch.nn.Module:
    m = model(kind, dtype=torch.float64)
    unipelt.apply(m, method, name=name, **options)
    randomise(m, name)
    return m


def refused(kind: str, method: unipelt.Method) -> str:
    with pytest.raises(unipelt.PeltError) as e:
        unipelt.apply(model(kind), method)
    (d,) = e.value.diagnostics
    assert d.code == "E0739" and d.help
    return d.message


def positions(mask: torch.Tensor) -> torch.Tensor:
    return (mask.cumsum(1) - 1).clamp(min=0)


def rotated(m: Any, ids: torch.Tensor, rows: list[tuple[int, torch.Tensor]]) -> torch.Tensor:
    """Llama's logits at the tokens of a text, its blocks by hand, with rows before what enters some. Positions are counted from the
    end: what attention makes of them is the same wherever they begin, but for the rounding of sines."""
    h, whole = m.model.embed_tokens(ids)[None], len(ids) + sum(len(r) for _, r in rows)
    for i, block in enumerate(m.model.layers):
        for r in (r for b, r in rows if b == i):
            h = torch.cat([r[None], h], 1)
        n = h.shape[1]
        at = torch.arange(whole - n, whole)[None]
        later = torch.full((n, n), -torch.inf, dtype=h.dtype).triu(1)[None, None]
        found = block(h, attention_mask=later, position_ids=at, position_embeddings=m.model.rotary_emb(h, at))
        h = found[0] if isinstance(found, tuple) else found
    return m.lm_head(m.model.norm(h))[0, whole - len(ids) :]


@pytest.mark.parametrize("lowering", [True, False])
@pytest.mark.parametrize("block", range(LAYERS))
def test_a_causal_model_with_rotary_positions(block: int, lowering: bool) -> None:
    m = applied("llama", late(b=block), lowering=lowering)
    P = next(iter(unipelt.state_dict(m).values())).detach()
    for ids, mask in ((IDS, MASK), LEFT, (IDS, None)):
        given = {} if mask is None else {"attention_mask": mask, "position_ids": positions(mask)}
        for _ in range(3):  # the last ones as steady passes do
            found = output(m, input_ids=ids, **given)
        real = torch.ones_like(ids).bool() if mask is None else mask.bool()
        with unipelt.disabled(m), torch.no_grad():
            expected = torch.cat([rotated(m, i[on], [(block, P)]) for i, on in zip(ids, real)])
        torch.testing.assert_close(found[real], expected, rtol=1e-9, atol=1e-9)


def test_rows_of_several_adapters_each_from_its_block_on() -> None:
    m = applied("llama", late(b=1), "a")
    unipelt.apply(m, late(b=2, l=2), name="b")
    randomise(m, "b")
    unipelt.activate(m, "b", "a")
    A, B = (next(iter(unipelt.state_dict(m, n).values())).detach() for n in "ab")
    found = output(m, input_ids=IDS[:1])
    with unipelt.disabled(m), torch.no_grad():
        torch.testing.assert_close(found[0], rotated(m, IDS[0], [(1, A), (2, B)]), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_steps_with_a_cache_are_one_pass(kind: str) -> None:
    m, (ids, mask) = applied(kind, late(b=2)), LEFT
    for given in (mask, None):
        at, parts, cache = 0, [], None
        with torch.no_grad():
            more = {} if given is None else {"attention_mask": given, "position_ids": positions(given)}
            whole = m(input_ids=ids, **more).logits
            for n in (3, 1, 1):
                now = (
                    {}
                    if given is None
                    else {"attention_mask": given[:, : at + n], "position_ids": positions(given)[:, at : at + n]}
                )
                o = m(input_ids=ids[:, at : at + n], use_cache=True, **now, **with_cache(m, cache))
                parts.append(o.logits)
                cache, at = cache_of(o), at + n
        real = torch.ones_like(ids).bool() if given is None else given.bool()
        torch.testing.assert_close(torch.cat(parts, 1)[real], whole[real], rtol=1e-9, atol=1e-9)
    ways = [m.generate(input_ids=ids, attention_mask=mask, use_cache=way, **GENERATED) for way in (True, False)]
    assert torch.equal(*ways)


def test_a_window_of_attention_and_a_cache_that_forgets() -> None:
    torch.manual_seed(0)
    sizes = dict(
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=48,
        vocab_size=80,
    )
    m = MistralForCausalLM(MistralConfig(**sizes, sliding_window=4)).double().eval()
    unipelt.apply(m, late(b=2))
    randomise(m)
    ids, mask = LEFT
    ways = [m.generate(input_ids=ids, attention_mask=mask, use_cache=way, **GENERATED) for way in (True, False)]
    assert torch.equal(*ways)


def test_the_blocks_before_see_what_they_saw() -> None:
    torch.manual_seed(0)
    m = T5ForConditionalGeneration(
        T5Config(vocab_size=80, d_model=32, d_kv=8, d_ff=48, num_layers=3, num_heads=4, decoder_start_token_id=0)
    )
    m, entered = m.double().eval(), []
    m.encoder.block[2].register_forward_pre_hook(lambda _, args: entered.append(args[0].clone()))
    given = {"input_ids": IDS, "attention_mask": MASK, "decoder_input_ids": torch.tensor([[1, 2], [3, 4], [5, 6]])}
    before = output(m, **given)
    states = entered[-1]
    unipelt.apply(m, late("encoder.block.input", b=2))
    randomise(m)
    assert not torch.allclose(output(m, **given), before, atol=1e-3)
    torch.testing.assert_close(entered[-1][:, 3:][MASK == 1], states[MASK == 1], rtol=1e-9, atol=1e-9)
    ways = [m.generate(input_ids=IDS, attention_mask=MASK, use_cache=way, **GENERATED) for way in (True, False)]
    assert torch.equal(*ways)


@pytest.mark.parametrize("block", range(LAYERS))
def test_rows_among_the_parts_of_a_picture(block: int) -> None:
    m, given = applied("vit", late(b=block, k=1), head=False), pictures(torch.zeros(1, dtype=torch.float64))
    P, found = next(iter(unipelt.state_dict(m).values())).detach(), output(m, **given)
    with torch.no_grad():
        assert {s.shape[1] for s in m(**given, output_hidden_states=True).hidden_states} == {
            16
        }  # parts and the class token
        with unipelt.disabled(m):
            h = m.vit.embeddings(given["pixel_values"])
            for i, layer in enumerate(m.vit.layers):
                h = torch.cat([h[:, :1], P.expand(len(h), -1, -1), h[:, 1:]], 1) if i == block else h
                h = layer(h)
            torch.testing.assert_close(found, m.classifier(m.vit.layernorm(h)[:, 0]), rtol=1e-9, atol=1e-9)


def test_a_batch_of_several_adapters() -> None:
    m = applied("llama", late(b=1), "a")
    others = {
        "b": late(b=2, l=2),
        "lora": unipelt.load("lora")(r=2),
        "first": unipelt.load("prompt_tuning")(l=4, start="normal(1.0)"),
    }
    for name, method in others.items():
        unipelt.apply(m, method, name=name)
        randomise(m, name)
    names = ["a", "b", None, "lora", "first"]
    ids, mask = (torch.cat([t, t[:2]]) for t in LEFT)
    at = positions(mask)
    with torch.no_grad():
        with unipelt.using(m, names):
            found = m(input_ids=ids, attention_mask=mask, position_ids=at).logits
            written = m.generate(input_ids=ids, attention_mask=mask, **GENERATED)
        for i, name in enumerate(names):
            own = slice(i, i + 1)
            with unipelt.using(m, name):
                alone = m(input_ids=ids[own], attention_mask=mask[own], position_ids=at[own]).logits
                torch.testing.assert_close(found[own][mask[own] == 1], alone[mask[own] == 1], rtol=1e-9, atol=1e-9)
                assert torch.equal(written[own], m.generate(input_ids=ids[own], attention_mask=mask[own], **GENERATED))


def test_it_comes_back_as_it_was_saved_and_leaves_no_trace(tmp_path: Path) -> None:
    m = model("bert_labels", dtype=torch.float64)
    before, hooks = output(m), sum(len(x._forward_hooks) + len(x._forward_pre_hooks) for x in m.modules())
    unipelt.apply(m, unipelt.parse(MADE), head=False)
    randomise(m)
    after = output(m)
    unipelt.save(m, tmp_path / "a")
    again = model("bert_labels", dtype=torch.float64)
    unipelt.attach(again, tmp_path / "a")
    assert torch.equal(output(again), after) and not torch.allclose(after, before)
    with unipelt.disabled(m):
        assert torch.equal(output(m), before)
    unipelt.remove(m)
    assert torch.equal(output(m), before)
    assert hooks == sum(len(x._forward_hooks) + len(x._forward_pre_hooks) for x in m.modules())
    assert not any("unipelt" in n for n, _ in m.named_modules())


def test_a_base_that_is_called_by_itself_sees_nothing_of_a_pass_before() -> None:
    m = applied("llama", late(b=2))
    with unipelt.disabled(m), torch.no_grad():
        before = m.model(IDS)[0]
    output(m, input_ids=IDS)
    with unipelt.disabled(m), torch.no_grad():
        assert torch.equal(m.model(IDS)[0], before)


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpoints_of_activations_give_the_same_gradients(reentrant: bool) -> None:
    found = []
    for checkpoints in (False, True):
        m = applied("llama", late(b=1)).train()
        if checkpoints:
            checkpoint_activations(m, reentrant)
            m.enable_input_require_grads()
        m(input_ids=IDS, attention_mask=MASK, labels=IDS).loss.backward()
        found.append(next(p.grad for p in m.parameters() if p.requires_grad))
    assert found[0].abs().max() > 1e-3 and torch.equal(*found)


def test_no_gradient_goes_below_the_block_and_its_blocks_run_once() -> None:
    m = applied("llama", late(b=2))
    left = []
    m.model.layers[1].register_forward_hook(
        lambda *a: left.append(a[-1] if isinstance(a[-1], torch.Tensor) else a[-1][0])
    )
    assert m(input_ids=IDS).logits.requires_grad and not left[-1].requires_grad
    before = output(m, **inputs())
    real = inputs()["attention_mask"] == 1
    with cache_trunk(m) as trunk:
        for hits in (0, 3, 6):
            torch.testing.assert_close(output(m, **inputs())[real], before[real], rtol=1e-12, atol=1e-12)
            assert (trunk.blocks, trunk.hits) == (2, hits)


def test_compiled_in_one_piece() -> None:
    m = applied("llama", late(b=1))
    expected = [output(m, input_ids=IDS, attention_mask=MASK), output(m, input_ids=IDS)]
    compiled = torch.compile(m, backend="eager", fullgraph=True)
    with torch.no_grad():
        found = [compiled(input_ids=IDS, attention_mask=MASK)[0], compiled(input_ids=IDS)[0]]
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


# ---------------------------------------------------------------- what cannot be done


def test_blocks_before_in_which_rows_cannot_be_hidden() -> None:
    assert "block 0 of this MambaForCausalLM tokens read one another in a mixer" in refused("mamba", late(b=1))
    assert output(applied("mamba", late(b=0)), input_ids=IDS).shape[1] == IDS.shape[1]


def test_rows_between_tokens_whose_distance_counts() -> None:
    assert "farther apart" in refused("llama", late(b=1, k=1))
    applied("llama", late(b=0, k=1))
    applied("gpt2", late(b=1, k=1))


def test_edits_before_the_block_that_read_other_tokens() -> None:
    pools = "use { modify ffn form { w: [d_in, d_out] ~ zeros delta = mean(x @ w, tokens) } compose add } as g"
    rows = "use { layers 2 .. 3 modify block.input form { P: [2, d_out] ~ zeros delta = P } compose prepend(delta, h) } as a"
    picks = "use { layers WHICH modify block.input tokens inserted compose { t: [] ~ zeros out = t * h } } as t"
    assert "`g` reads other tokens in block 0" in refused("bert", unipelt.parse(f"method m {{ {rows} {pools} }}"))
    first = picks.replace("WHICH", "first 2")
    assert "`t` selects rows in block 0" in refused("bert", unipelt.parse(f"method m {{ {rows} {first} }}"))
    unipelt.apply(model("bert"), unipelt.parse(f"method m {{ {rows} {picks.replace('WHICH', '2 .. 3')} }}"))
    m = model("bert")  # and in two adapters, where both act
    unipelt.apply(m, unipelt.parse(f"method m {{ {rows} }}"), name="a")
    unipelt.apply(m, unipelt.parse(f"method m {{ {pools} }}"), name="b")
    with pytest.raises(unipelt.PeltError, match="`g` reads other tokens in block 0"):
        unipelt.activate(m, "a", "b")
    assert unipelt.active(m) == ("b",)
