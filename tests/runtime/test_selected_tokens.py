"""Rows that change some tokens: which ones these are, with pads at either side, with a cache, with a prompt, as a loop finds them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from names import spec
from small import cache_of, inputs, model, output, randomise, with_cache

import unipelt
from unipelt.runtime.edits import Edit

sys.path.append(str(Path(__file__).parents[1] / "zoo"))

SHIFT = "form { b: [d_out] ~ normal(1.0) delta = b } compose h + delta"
FORMS = {
    "block": SHIFT,
    "attn.q": SHIFT,
    "ffn.hidden": "insert sequential form { b: [d_out] ~ normal(1.0) delta = tanh(z) * b } compose h + delta",
    "attn.heads": "form { b: [d_out] ~ normal(1.0) delta = b } compose h * delta",
}


def method(tokens: str, site: str = "block", front: str = "") -> unipelt.Method:
    return unipelt.parse(spec(f"method m {{ {front} modify {site} tokens {tokens} {FORMS[site]} }}"))


class Ids:
    """A tokenizer: the ids of the words of a text, which are numbers."""

    def __call__(self, text: str, **_) -> dict[str, list[int]]:
        return {"input_ids": [int(w) for w in text.split()]}


def real_ones(mask: torch.Tensor) -> list[list[int]]:
    return [[i for i, on in enumerate(row) if on] for row in mask.tolist()]


def firsts(k: int) -> Callable:
    return lambda ids, real: real[:k]


def lasts(k: int) -> Callable:
    return lambda ids, real: real[-k:] if k else []


def from_text(*text: int) -> Callable:
    def find(ids: Sequence[int], real: Sequence[int]) -> list[int]:
        own = [ids[i] for i in real]
        at = [i for i in range(len(own) - len(text) + 1) if own[i : i + len(text)] == list(text)]
        return real[at[-1] :] if at else []

    return find


def expected(ids: torch.Tensor, mask: torch.Tensor, *choices: Callable) -> torch.Tensor:
    out = torch.zeros_like(mask, dtype=torch.bool)
    for row, (own, real) in enumerate(zip(ids.tolist(), real_ones(mask))):
        for choice in choices:
            out[row, choice(own, real)] = True
    return out


def changed(m: torch.nn.Module, **given) -> list[torch.Tensor]:
    """For each edit of a pass, in the order of the pass, where its out differs from its h: [batch, tokens]."""
    from reference import watched

    with watched(m) as found, torch.no_grad():
        m(**given)
    out = []
    for s in found:
        differs = (s.out - s.h).abs().amax(-1) > 0
        out.append(differs.all(1) if differs.dim() == 3 else differs)
        if differs.dim() == 3:  # every head, or none
            assert torch.equal(differs.any(1), differs.all(1))
    return out


IDS = torch.tensor([[5, 6, 7, 8, 9, 7, 8, 11, 12], [7, 8, 20, 21, 22, 23, 24, 0, 0], [30, 31, 7, 32, 33, 0, 0, 0, 0]])
MASK = (IDS != 0).long()
SIDES = {
    "right": (IDS, MASK),
    "left": (
        torch.stack([r.roll(int((r == 0).sum())) for r in IDS]),
        torch.stack([r.roll(int((r == 0).sum())) for r in MASK]),
    ),
}
CHOICES = {
    "first 2": [firsts(2)],
    "first 0": [firsts(0)],
    "last 3": [lasts(3)],
    "first 2, last 2": [firsts(2), lasts(2)],
    "first 7, last 7": [firsts(7), lasts(7)],
    'since "7 8"': [from_text(7, 8)],
    "since [7]": [from_text(7)],
    'since "8", first 1': [from_text(8), firsts(1)],
}


@pytest.mark.parametrize("site", FORMS)
@pytest.mark.parametrize("tokens", CHOICES)
def test_the_selected_tokens_change_and_no_others(tokens: str, site: str) -> None:
    for kind in ("llama", "bert"):
        m = model(kind)
        unipelt.apply(m, method(tokens, site), tokenizer=Ids(), allow_future=True)
        for ids, mask in SIDES.values():
            for found in changed(m, input_ids=ids, attention_mask=mask):
                # what follows a text to the end includes the pads, which nobody reads
                assert torch.equal(found & mask.bool(), expected(ids, mask, *CHOICES[tokens])), (kind, tokens)
        for found in changed(m, input_ids=IDS):
            assert torch.equal(found, expected(IDS, torch.ones_like(IDS), *CHOICES[tokens]))


@pytest.mark.parametrize("site", FORMS)
def test_what_is_written_and_what_is_compiled_agree(site: str) -> None:
    outs = []
    for lowering in (True, False):
        m = model("llama", dtype=torch.float64)
        unipelt.apply(m, method("first 1, last 2", site), allow_future=True, lowering=lowering)
        randomise(m)
        outs.append(output(m))
    torch.testing.assert_close(*outs, rtol=1e-12, atol=1e-12)


def test_heads_that_share_the_softmax_leave_other_tokens_alone() -> None:
    text = "{ modify attn.heads tokens first 2 insert parallel form attend(3) compose share_softmax }"
    one = unipelt.parse(spec(f"method m {text}"))
    outs = []
    for lowering in (True, False):
        m = model("llama", dtype=torch.float64)
        base = output(m)
        unipelt.apply(m, one, lowering=lowering)
        randomise(m)
        first = m.model.layers[0].self_attn
        found = {}
        handle = first.o_proj.register_forward_pre_hook(lambda _, args, found=found: found.update(x=args[0]))
        outs.append(output(m))
        with unipelt.disabled(m):
            own = found.pop("x")
            assert torch.equal(output(m), base)
        handle.remove()
        assert float((own - found["x"])[:, 2:].abs().max()) == 0 and float((own - found["x"])[:, :2].abs().max()) > 1e-3
    torch.testing.assert_close(*outs, rtol=1e-10, atol=1e-10)


def test_two_prefixes_of_other_tokens_see_each_other_only_where_both_are() -> None:
    text = """method m {
      use { modify attn.heads tokens first 2 insert parallel form attend(3) compose share_softmax } as a
      use { modify attn.heads insert parallel form attend(2) compose share_softmax } as b
    }"""
    outs = []
    for lowering in (True, False):
        m = model("llama", dtype=torch.float64)
        unipelt.apply(m, unipelt.parse(spec(text)), lowering=lowering)
        randomise(m)
        outs.append(output(m))
    torch.testing.assert_close(*outs, rtol=1e-10, atol=1e-10)


def steps(m: torch.nn.Module, ids: torch.Tensor, mask: torch.Tensor, parts: Sequence[int]) -> torch.Tensor:
    """Where the first edit changes tokens, put together from steps with a cache."""
    from reference import watched

    found, cache, at = [], None, 0
    for n in parts:
        with watched(m) as seen, torch.no_grad():
            o = m(
                input_ids=ids[:, at : at + n], attention_mask=mask[:, : at + n], use_cache=True, **with_cache(m, cache)
            )
        found.append((seen[0].out - seen[0].h).abs().amax(-1) > 0)
        cache, at = cache_of(o), at + n
    return torch.cat(found, 1)


@pytest.mark.parametrize("side", SIDES)
def test_the_first_tokens_are_the_first_however_a_text_is_cut(side: str) -> None:
    ids, mask = SIDES[side]
    m = model("llama")
    unipelt.apply(m, method("first 4"))
    for parts in ((9,), (3, 1, 5), (5, 1, 1, 1, 1)):
        assert torch.equal(steps(m, ids, mask, parts), expected(ids, mask, firsts(4)))


def test_the_last_tokens_are_those_of_the_prompt_and_none_that_is_decoded() -> None:
    ids, mask = SIDES["left"]
    m = model("llama")
    unipelt.apply(m, method("last 2"), allow_future=True)
    found = steps(m, ids, mask, (7, 1, 1))
    assert torch.equal(found[:, :7], expected(ids[:, :7], mask[:, :7], lasts(2))) and not found[:, 7:].any()


def test_a_text_found_in_a_prompt_reaches_into_what_is_decoded() -> None:
    ids, mask = SIDES["left"]
    m = model("llama")
    unipelt.apply(m, method('since "7 8"'), allow_future=True, tokenizer=Ids())
    found = steps(m, ids, mask, (7, 1, 1))
    there = expected(ids[:, :7], mask[:, :7], from_text(7, 8))
    assert torch.equal(found[:, :7], there)
    assert torch.equal(found[:, 7:], torch.tensor([[True] * 2, [True] * 2, [False] * 2]))
    assert torch.equal(steps(m, ids, mask, (3, 3, 3))[:, 6:], torch.tensor([[True] * 3, [True] * 3, [False] * 3]))
    with pytest.raises(unipelt.PeltError) as e, torch.no_grad():  # a cache that was filled without the adapter
        with unipelt.disabled(m):
            o = m(input_ids=ids, use_cache=True)
        m(input_ids=ids[:, :1], use_cache=True, **with_cache(m, cache_of(o)))
    assert e.value.diagnostics[0].code == "E0796"
    with pytest.raises(unipelt.PeltError) as e:
        m(inputs_embeds=torch.randn(1, 4, 32))
    assert e.value.diagnostics[0].code == "E0796"


PROMPT = "form { P: [3, d_out] ~ normal(1.0) delta = P } compose"


@pytest.mark.parametrize("place", ["prepend(delta, h)", "prepend(delta, h, 1)", "append(delta, h)"])
def test_rows_of_a_prompt_are_no_tokens(place: str) -> None:
    for tokens, choices in (
        ("first 2", [firsts(2)]),
        ("last 2", [lasts(2)]),
        ("inserted", []),
        ("inserted, first 1", [firsts(1)]),
    ):
        text = f"method m {{ use {{ modify embed.words {PROMPT} {place} }} as p use {{ modify block tokens {tokens} {SHIFT} }} as b }}"
        m = model("llama")
        unipelt.apply(m, unipelt.parse(spec(text)), allow_future=True)
        for ids, mask in SIDES.values():
            found = changed(m, input_ids=ids, attention_mask=mask)[1]
            at = unipelt.at_tokens(m, found[..., None].float())[..., 0].bool()
            assert torch.equal(at, expected(ids, mask, *choices))
            rows = found.sum(1) - at.sum(1)
            assert torch.equal(rows, torch.full((3,), 3 if "inserted" in tokens else 0)), (tokens, rows)


@pytest.mark.parametrize("tokens", ["first 4", "inserted", 'since "7 8"'])
def test_a_prompt_in_a_cache_counts_no_tokens(tokens: str) -> None:
    text = f"method m {{ use {{ modify embed.words {PROMPT} prepend(delta, h) }} as p use {{ modify block tokens {tokens} {SHIFT} }} as b }}"
    m = model("llama", dtype=torch.float64)
    unipelt.apply(m, unipelt.parse(spec(text)), allow_future=True, tokenizer=Ids())
    randomise(m)
    ids, mask = SIDES["left"]
    with torch.no_grad():
        whole = m(input_ids=ids, attention_mask=mask).logits
        cache, parts = None, []
        for at, n in ((0, 7), (7, 1), (8, 1)):
            o = m(
                input_ids=ids[:, at : at + n], attention_mask=mask[:, : at + n], use_cache=True, **with_cache(m, cache)
            )
            parts.append(o.logits)
            cache = cache_of(o)
    torch.testing.assert_close(torch.cat(parts, 1)[mask.bool()], whole[mask.bool()], rtol=1e-9, atol=1e-9)


def test_generation_with_a_cache_is_generation_without() -> None:
    ids, mask = SIDES["left"]
    for tokens in ("first 3", 'since "7 8"'):
        m = model("llama", dtype=torch.float64)
        unipelt.apply(m, method(tokens), allow_future=True, tokenizer=Ids())
        both = [
            m.generate(
                input_ids=ids, attention_mask=mask, max_new_tokens=5, do_sample=False, use_cache=c, pad_token_id=0
            )
            for c in (True, False)
        ]
        assert torch.equal(*both)


def test_it_is_saved_with_the_ids_of_its_text_and_needs_no_tokenizer_again(tmp_path: Path) -> None:
    m = model("llama")
    with pytest.raises(unipelt.PeltError) as e:
        unipelt.apply(m, method('since "7 8"'), allow_future=True)
    assert e.value.diagnostics[0].code == "E0521" and 'since "7 8"' in str(e.value)
    unipelt.apply(m, method('since "7 8"'), allow_future=True, tokenizer=Ids())
    randomise(m)
    after = output(m, input_ids=IDS, attention_mask=MASK)
    unipelt.save(m, tmp_path / "a")
    assert "since [7, 8]" in (tmp_path / "a" / "method.pelt").read_text()
    again = model("llama")
    unipelt.attach(again, tmp_path / "a")
    assert torch.equal(output(again, input_ids=IDS, attention_mask=MASK), after)
    assert not torch.equal(output(model("llama"), input_ids=IDS, attention_mask=MASK), after)


def test_a_text_may_be_an_argument(tmp_path: Path) -> None:
    text = f"method m(text: string) {{ modify block tokens since text {SHIFT} }}"
    m = model("llama")
    unipelt.apply(m, unipelt.parse(spec(text))(text="7 8"), allow_future=True, tokenizer=Ids())
    assert torch.equal(changed(m, input_ids=IDS)[0], expected(IDS, torch.ones_like(IDS), from_text(7, 8)))
    unipelt.save(m, tmp_path / "a")
    again = model("llama")
    unipelt.attach(again, tmp_path / "a")
    assert torch.equal(output(again, input_ids=IDS), output(m, input_ids=IDS))


def test_only_what_the_text_s_end_decides_is_refused_on_a_causal_model() -> None:
    assert unipelt.plan(model("llama"), method("first 2")).properties["cache-consistent"] == "yes"
    for tokens in ("last 2", 'since "7"'):
        with pytest.raises(unipelt.PeltError) as e:
            unipelt.plan(model("llama"), method(tokens))
        assert [d.code for d in e.value.diagnostics] == ["E0530"]
        assert unipelt.plan(model("bert"), method(tokens)).properties["padding-invariant"] == "yes"
    assert unipelt.plan(model("llama"), method("last 0")).properties["causal"] == "yes"


def test_the_plain_text_of_pytorch_takes_the_selection() -> None:
    source = method("first 2").torch_source()
    scope: dict = {}
    exec(source, scope)
    module = scope["M"](4)
    h, chosen = torch.randn(2, 3, 4), torch.tensor([[True, False, True], [False, True, False]])
    out = module(h, chosen=chosen)
    assert torch.equal((out != h).any(-1), chosen)


def test_a_mask_that_is_prepared_is_refused() -> None:
    m = model("llama")
    unipelt.apply(m, method("first 2"))
    with pytest.raises(unipelt.PeltError) as e:
        m(input_ids=IDS, attention_mask=torch.zeros(3, 1, 9, 9))
    assert e.value.diagnostics[0].code == "E0796"


def test_an_adapter_without_a_selection_is_not_touched() -> None:
    m = model("bert")
    unipelt.apply(m, method("first 1"))
    unipelt.apply(m, unipelt.load("lora")(r=2), name="other")
    unipelt.activate(m, "other")
    assert [e.chosen for e in m.modules() if isinstance(e, Edit)].count(()) == 6
    plain = output(m, **inputs())
    unipelt.remove(m, "default")
    assert torch.equal(output(m, **inputs()), plain)
