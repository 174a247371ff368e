"""Rows among the tokens: where they stand, what follows them, and that they equal embeddings fed by hand."""

from __future__ import annotations

import random

import pytest
import torch
from names import name, spec
from small import GROUPS, WIDTH, inputs, model, randomise, with_cache
from transformers import BertConfig, BertForQuestionAnswering, DynamicCache, StaticCache

import unipelt
from unipelt.runtime.registry import record
from unipelt.runtime.prompts.layout import Layout, Rows

SMALL = {"pad_token_id": 0, "eos_token_id": None}


def method(text: str) -> unipelt.Method:
    return unipelt.parse(spec(text))


def rows(compose: str, at: str = "embed.words", l: int = 3) -> unipelt.Method:
    return method(f"method m {{ modify {at} form {{ P: [{l}, d_out] ~ normal(0.5) delta = P }} compose {compose} }}")


def value(m: torch.nn.Module, label: str, adapter: str = "default") -> torch.Tensor:
    return next(t for n, t in unipelt.state_dict(m, adapter).items() if n.endswith(f".{label}"))


def ids(seed: int = 0, shape: tuple[int, int] = (3, 7)) -> torch.Tensor:
    return torch.randint(5, 80, shape, generator=torch.Generator().manual_seed(seed))


def right_padded(lengths: list[int], tokens: int = 7) -> torch.Tensor:
    return (torch.arange(tokens) < torch.tensor(lengths)[:, None]).long()


def out(m: torch.nn.Module, **given) -> torch.Tensor:
    """With the entries of the rows, which are left out of what users see (`test_outputs`)."""
    with torch.no_grad(), unipelt.with_rows(m):
        return m(**given)[0]


def fails(code: str, call, *words: str) -> str:
    with pytest.raises(unipelt.PeltError) as caught:
        call()
    (d,) = caught.value.diagnostics
    said = f"{d.message} | {d.help}"
    assert d.code == code and all(w in said for w in words), said
    return said


# ---------------------------------------------------------------- where rows stand


def reference(kinds: list[Rows], mask: list[int]) -> tuple[list, list]:
    """The longer sequence of one example, one entry at a time: ("token", j) and ("rows i", j), and position numbers."""
    real = [j for j, v in enumerate(mask) if v]
    anchors = []
    for r in kinds:
        if not real:
            anchors.append(len(mask) if r.after is None else min(r.after, len(mask)))
        else:
            end = real[-1] + 1
            anchors.append(end if r.after is None else min(real[0] + r.after, end))
    sequence = []
    for j in range(len(mask) + 1):
        here = [i for i, a in enumerate(anchors) if a == j]
        front = [i for i in reversed(here) if kinds[i].after is not None]
        back = [i for i in here if kinds[i].after is None]
        sequence += [(f"rows {i}", k) for i in front + back for k in range(kinds[i].count)]
        sequence += [("token", j)] if j < len(mask) else []
    positions, seen, moved = [], 0, 0
    for what, k in sequence:
        if what == "token":
            positions.append(k + moved)
            seen += mask[k]
        elif kinds[int(what.split()[1])].moves:
            first = real[0] if real else None
            positions.append(None if first is None else first + seen + moved)
            moved += 1
        else:
            positions.append(0)
    return sequence, positions


@pytest.mark.parametrize("seed", range(40))
def test_every_layout_is_what_one_entry_at_a_time_gives(seed: int) -> None:
    rng = random.Random(seed)
    kinds = [
        Rows(rng.randint(1, 3), rng.choice([0, 0, 1, 2, None]), rng.random() < 0.5) for _ in range(rng.randint(1, 4))
    ]
    n = rng.randint(1, 6)
    masks = []
    for _ in range(4):
        left, right = rng.randint(0, n - 1), rng.randint(0, n - 1)
        masks.append([int(left <= j < n - right) for j in range(n)] if left + right < n else [1] * n)
    layout = Layout(kinds, (4, n), torch.tensor(masks), torch.device("cpu"))
    position = torch.arange(n)[None]
    positions = layout.positions(position)
    tokens = torch.arange(1, n + 1)[None] * torch.ones(4, 1, dtype=torch.long)
    spread = layout.spread(tokens, -7)
    for b, mask in enumerate(masks):
        sequence, numbers = reference(kinds, mask)
        assert len(sequence) == n + layout.total == spread.shape[1]
        for place, (what, k) in enumerate(sequence):
            if what == "token":
                assert layout.tokens[b, k] == place and spread[b, place] == k + 1
            else:
                assert layout.rows[int(what.split()[1])][b, k] == place and spread[b, place] == -7
            if numbers[place] is not None:
                assert positions[b, place] == numbers[place], (sequence, numbers, positions[b])


# ---------------------------------------------------------------- equal to embeddings fed by hand


def by_hand(m: torch.nn.Module, pieces: list[list[torch.Tensor]], masks: list[list[int]]) -> torch.Tensor:
    """The base model on embeddings put together by hand, one example after another, padded at the right."""
    width = max(sum(len(p) for p in example) for example in pieces)
    embeds, full = [], []
    for example, mask in zip(pieces, masks):
        e = torch.cat(example)
        embeds.append(torch.cat([e, e.new_zeros(width - len(e), e.shape[1])]))
        full.append(mask + [0] * (width - len(mask)))
    with unipelt.disabled(m):
        return out(m, inputs_embeds=torch.stack(embeds), attention_mask=torch.tensor(full))


@pytest.mark.parametrize("kind", ["bert", "gpt2", "llama"])
@pytest.mark.parametrize(
    ("compose", "after"), [("prepend(delta, h)", 0), ("prepend(delta, h, 2)", 2), ("append(delta, h)", None)]
)
def test_rows_equal_embeddings_fed_by_hand(kind: str, compose: str, after: int | None) -> None:
    m, tokens, lengths = model(kind, dtype=torch.float64), ids(), [7, 4, 5]
    mask = right_padded(lengths)
    unipelt.apply(m, rows(compose))
    P = value(m, "P").double()
    words = m.get_input_embeddings()
    with unipelt.disabled(m):
        e = words(tokens).detach()
    pieces = []
    for b, n in enumerate(lengths):
        at = n if after is None else after
        pieces.append([e[b, :at], P, e[b, at:n]])
    wanted = by_hand(m, pieces, [[1] * (n + 3) for n in lengths])
    for given in ({"input_ids": tokens}, {"inputs_embeds": e}):
        found = out(m, attention_mask=mask, **given)
        assert found.shape[1] == 10
        for b, n in enumerate(lengths):
            assert torch.allclose(found[b, : n + 3], wanted[b, : n + 3], atol=1e-6), (b, given.keys())
    kept = unipelt.at_tokens(m, found)
    assert kept.shape[1] == 7
    at = 7 if after is None else after
    assert torch.equal(kept[0], torch.cat([found[0, :at], found[0, at + 3 :]]))


@pytest.mark.parametrize("kind", ["bert", "gpt2", "llama"])
def test_filling_equals_the_same_embeddings_fed_by_hand(kind: str) -> None:
    m, tokens = model(kind, dtype=torch.float64), ids()
    mask = right_padded([7, 4, 5])
    marks = torch.tensor([[1, 2, 0, 0, 3, 0, 0], [0, 3, 0, 0, 0, 0, 0], [2, 0, 1, 0, 2, 0, 0]])
    unipelt.apply(m, rows("fill(delta, h)"))
    P = value(m, "P").double()
    with unipelt.disabled(m):
        e = m.get_input_embeddings()(tokens).detach()
        plain = e.clone()
        for b in range(3):
            for j in range(7):
                if marks[b, j]:
                    e[b, j] = P[marks[b, j] - 1]
        wanted = out(m, inputs_embeds=e, attention_mask=mask)
    found = out(m, input_ids=tokens, attention_mask=mask, pseudo_tokens=marks)
    assert torch.allclose(found, wanted, atol=1e-6)
    other = tokens.clone()
    other[marks > 0] = 79  # which id stands for a pseudo-token does not matter
    assert torch.equal(out(m, input_ids=other, attention_mask=mask, pseudo_tokens=marks), found)
    given = out(m, inputs_embeds=plain, attention_mask=mask, pseudo_tokens=marks)
    assert torch.allclose(given, wanted, atol=1e-6)
    with unipelt.disabled(m):  # the base, whatever the batch carries
        assert torch.equal(out(m, input_ids=tokens, pseudo_tokens=marks), out(m, input_ids=tokens))


def test_filling_trains_the_rows_that_stand_in_the_text() -> None:
    m, tokens = model("bert"), ids()
    marks = torch.zeros_like(tokens)
    marks[:, 1], marks[0, 4] = 1, 3
    unipelt.apply(m, rows("fill(delta, h)"))
    m(input_ids=tokens, pseudo_tokens=marks)[0].square().sum().backward()
    (P,) = record(m, "default").trained().values()
    assert P.grad is not None and (P.grad.abs().amax(1) > 1e-6).tolist() == [True, False, True]


def test_rows_at_both_sites_and_in_several_places() -> None:
    """Rows at the words shift the tokens' positions, rows behind the embeddings do not; each stands where it says."""
    m, tokens = model("bert", dtype=torch.float64), ids()
    mask = right_padded([7, 4, 5])
    both = method("""method m {
      use { modify embed.words form { P: [2, d_out] ~ normal(0.5) delta = P } compose prepend(delta, h, 1) } as words
      use { modify embed form { Q: [3, d_out] ~ normal(0.5) delta = Q } compose append(delta, h) } as behind
    }""")
    unipelt.apply(m, both)
    P, Q = value(m, "P").double(), value(m, "Q").double()
    found = out(m, input_ids=tokens, attention_mask=mask)
    layers = []

    def swap(module, args, output):
        layers.append(output.shape)
        output = output.clone()
        for b, n in enumerate([7, 4, 5]):
            output[b, n + 2 : n + 5] = Q
        return output

    e = m.get_input_embeddings()(tokens).detach()
    pieces, position = [], []
    for b, n in enumerate([7, 4, 5]):
        example = torch.cat([e[b, :1], P, e[b, 1:n], torch.zeros(12 - n - 2, WIDTH, dtype=torch.float64)])
        pieces.append(example)
        position.append([*range(n + 2), 0, 0, 0, *range(n + 2, 9)])
    handle = m.embeddings.register_forward_hook(swap)
    with unipelt.disabled(m):
        wanted = out(m, inputs_embeds=torch.stack(pieces), attention_mask=right_padded([12, 9, 10], 12),
                     position_ids=torch.tensor(position))  # fmt: skip
    handle.remove()
    assert layers == [(3, 12, WIDTH)]
    for b, n in enumerate([12, 9, 10]):
        assert torch.allclose(found[b, :n], wanted[b, :n], atol=1e-6)


# ---------------------------------------------------------------- what follows the rows


def test_types_and_answers_follow_the_rows() -> None:
    torch.manual_seed(0)
    config = BertConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48, vocab_size=80)
    m = BertForQuestionAnswering(config).eval()
    tokens = ids()
    mask, types = (
        right_padded([7, 4, 5]),
        torch.tensor([[0, 0, 0, 1, 1, 1, 1], [0, 1, 1, 1, 0, 0, 0], [0, 0, 0, 0, 1, 0, 0]]),
    )
    start, end = torch.tensor([3, 1, 0]), torch.tensor([6, 3, 99])  # one is beyond the text: ignored
    unipelt.apply(m, rows("prepend(delta, h, 1)", l=2), head=False)
    seen = {}
    m.bert.register_forward_pre_hook(lambda module, args, kwargs: seen.update(kwargs), with_kwargs=True)
    with unipelt.with_rows(m):
        o = m(input_ids=tokens, attention_mask=mask, token_type_ids=types, start_positions=start, end_positions=end)
    assert seen["token_type_ids"].tolist()[1] == [0, 0, 0, 1, 1, 1, 0, 0, 0]
    assert seen["attention_mask"].tolist()[1] == [1, 1, 1, 1, 1, 1, 0, 0, 0]
    moved = [5, 3, 0], [8, 5]
    by_hand_ = torch.nn.functional.cross_entropy(o.start_logits, torch.tensor(moved[0]))
    by_hand_ = by_hand_ + torch.nn.functional.cross_entropy(o.end_logits[:2], torch.tensor(moved[1]))
    assert torch.allclose(o.loss, by_hand_ / 2, atol=1e-6)
    assert torch.equal(unipelt.at_tokens(m, o.start_logits)[:, 1:], o.start_logits[:, 3:])
    unipelt.remove(m, "default")
    unipelt.apply(m, rows("append(delta, h)", l=2), head=False)
    m(input_ids=tokens, attention_mask=mask, token_type_ids=types)
    assert seen["token_type_ids"].tolist()[0] == [0, 0, 0, 1, 1, 1, 1, 1, 1]
    assert seen["token_type_ids"].tolist()[2] == [0, 0, 0, 0, 1, 1, 1, 0, 0]


def test_labels_of_tokens_follow_the_rows() -> None:
    m, tokens = model("gpt2"), ids()
    unipelt.apply(m, rows("prepend(delta, h, 2)"))
    with unipelt.with_rows(m):
        o = m(input_ids=tokens, labels=tokens)
    logits = o.logits  # [2 tokens, 3 rows, 5 tokens]: the third token is foretold by the last row
    wanted = torch.nn.functional.cross_entropy(
        torch.cat([logits[:, :1], logits[:, 4:9]], 1).reshape(-1, logits.shape[-1]), tokens[:, 1:].reshape(-1)
    )
    assert torch.allclose(o.loss, wanted, atol=1e-6)


def test_packed_sequences_are_refused() -> None:
    m = model("llama")
    unipelt.apply(m, rows("prepend(delta, h)"))
    tokens = ids(shape=(1, 7))
    packed = torch.tensor([[0, 1, 2, 0, 1, 2, 3]])
    fails("E0734", lambda: m(input_ids=tokens, position_ids=packed), "packed")
    left = {
        "attention_mask": torch.tensor([[0, 0, 1, 1, 1, 1, 1]]),
        "position_ids": torch.tensor([[1, 1, 0, 1, 2, 3, 4]]),
    }
    assert out(m, input_ids=tokens, **left).shape[1] == 10  # as generate numbers padding at the left
    unipelt.remove(m, "default")
    unipelt.apply(m, rows("fill(delta, h)"))  # no length changes, so packing is as ever
    marks = torch.tensor([[1, 0, 0, 1, 2, 0, 0]])
    both = out(m, input_ids=tokens, position_ids=packed, pseudo_tokens=marks, use_cache=False)
    alone = out(m, input_ids=tokens[:, 3:], pseudo_tokens=marks[:, 3:])
    assert torch.allclose(both[:, 3:], alone, atol=1e-5)


def test_masks_that_cannot_grow_are_refused() -> None:
    m, tokens = model("gpt2"), ids()
    unipelt.apply(m, rows("prepend(delta, h)"))
    fails("E0545", lambda: m(input_ids=tokens, attention_mask=torch.ones(3, 1, 7, 7)), "[batch, tokens]")
    fails("E0545", lambda: m(input_ids=tokens, attention_mask=torch.ones(3, 9)), "9 entries", "7 tokens")
    fails("E0544", lambda: m(attention_mask=torch.ones(3, 9)), "input_ids")


def test_an_output_of_another_pass_has_no_tokens_to_find() -> None:
    m, tokens = model("bert"), ids()
    unipelt.apply(m, rows("append(delta, h)"))
    first = out(m, input_ids=tokens)
    out(m, input_ids=tokens[:, :4])
    fails("E0737", lambda: unipelt.at_tokens(m, first), "4 tokens and 3 rows")
    with unipelt.disabled(m):
        assert unipelt.at_tokens(m, first) is first


# ---------------------------------------------------------------- caches


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_rows_behind_the_text_and_a_cache(kind: str) -> None:
    """What is generated follows the rows; the plan says that a step with a cache differs from one whole pass."""
    m, tokens = model(kind), ids(shape=(2, 6))
    plan = unipelt.apply(m, rows("append(delta, h)"))
    assert any("cache" in w for w in plan.warnings) and plan.properties["cache-consistent"].startswith("no")
    mask = torch.tensor([[0, 0, 1, 1, 1, 1], [1] * 6])
    with torch.no_grad():
        new = m.generate(
            input_ids=tokens, attention_mask=mask, max_new_tokens=4, do_sample=False, pad_token_id=0, eos_token_id=None
        )
    P = value(m, "P")
    with unipelt.disabled(m):
        words = m.get_input_embeddings()
        for b, start in ((0, 2), (1, 0)):
            e = torch.cat([words(tokens[b, start:]), P, words(new[b, 6:])]).detach()
            logits = out(m, inputs_embeds=e[None])[0]
            behind = 6 - start + 3 - 1
            assert logits[behind:-1].argmax(-1).tolist() == new[b, 6:].tolist()


@pytest.mark.parametrize("compose", ["prepend(delta, h)", "prepend(delta, h, 2)", "append(delta, h)"])
@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_what_rows_behind_the_text_foretell_is_said(kind: str, compose: str) -> None:
    """No token sees them, but what follows the last one is foretold from them, whichever that is; a loss within the text is not."""
    m, tokens = model(kind, dtype=torch.float64), ids(shape=(2, 7))
    plan = unipelt.apply(m, rows(compose))
    behind = compose.startswith("append")
    assert plan.properties["causal"] == "yes" and any("only what follows that" in w for w in plan.warnings) == behind
    with torch.no_grad():
        apart = (m(input_ids=tokens).logits[:, :5] - m(input_ids=tokens[:, :5]).logits).abs().amax((0, 2))
    assert apart[:4].max() < 1e-9 and (apart[4] > 1e-7) == behind
    m(input_ids=tokens, labels=tokens).loss.backward()
    gradients = [p.grad.abs().max() for p in m.parameters() if p.requires_grad]
    assert gradients and (max(gradients) == 0) == behind
    assert not any("only what follows" in w for w in unipelt.plan(model("bert"), rows(compose)).warnings)


def test_pads_behind_the_text_in_a_cache_are_refused() -> None:
    m, tokens = model("llama"), ids(shape=(2, 6))
    unipelt.apply(m, rows("append(delta, h)"))
    mask = torch.tensor([[1, 1, 1, 1, 0, 0], [1] * 6])
    cache = DynamicCache(config=m.config)
    m(input_ids=tokens, attention_mask=mask, **with_cache(m, cache), use_cache=True)
    longer = torch.cat([mask, torch.ones(2, 1, dtype=torch.long)], 1)
    fails("E0735", lambda: m(input_ids=tokens[:, :1], attention_mask=longer, **with_cache(m, cache)), "left")
    unipelt.remove(m, "default")
    unipelt.apply(m, rows("prepend(delta, h, 4)"))
    fails("E0735", lambda: m(input_ids=tokens[:, :2], **with_cache(m, DynamicCache(config=m.config))), "first 4 tokens")
    assert out(m, input_ids=tokens[:, :2]).shape[1] == 5  # without a cache: a text shorter than that, behind all of it
    unipelt.remove(m, "default")
    unipelt.apply(m, rows("prepend(delta, h)"))
    pads = torch.tensor(
        [[0, 0], [1, 1]]
    )  # the first chunk of a longer text, padded at the left: its first token is not here
    fails(
        "E0735",
        lambda: m(input_ids=tokens[:, :2], attention_mask=pads, **with_cache(m, DynamicCache(config=m.config))),
        "only pads",
    )


def test_a_static_cache_has_room_for_the_rows_or_is_refused() -> None:
    m, tokens = model("llama"), ids(shape=(2, 6))
    unipelt.apply(m, rows("prepend(delta, h)"))
    wanted = out(m, input_ids=tokens)
    fails(
        "E0546",
        lambda: m(input_ids=tokens, **with_cache(m, StaticCache(config=m.config, max_cache_len=8))),
        "8 positions",
        "9",
    )
    found = out(m, input_ids=tokens, **with_cache(m, StaticCache(config=m.config, max_cache_len=9)))
    grows = out(m, input_ids=tokens, **with_cache(m, DynamicCache()))
    assert (found - wanted).abs().max() < 1e-5 and (grows - wanted).abs().max() < 1e-5


@pytest.mark.parametrize("beams", [1, 3])
def test_pseudo_tokens_in_generation(beams: int) -> None:
    """`generate` knows no further argument; a block gives it, repeated for beams, and what is generated has none."""
    m, tokens = model("gpt2"), ids(shape=(2, 6))
    unipelt.apply(m, rows("fill(delta, h)"))
    marks = torch.tensor([[1, 0, 2, 0, 0, 3], [0, 0, 1, 2, 0, 0]])
    options = dict(max_new_tokens=4, do_sample=False, num_beams=beams, attention_mask=torch.ones_like(tokens), **SMALL)
    with unipelt.inputs(m, pseudo_tokens=marks):
        cached = m.generate(input_ids=tokens, **options)
        whole = m.generate(input_ids=tokens, use_cache=False, **options)
    assert torch.equal(cached, whole)
    longer = torch.cat([marks, torch.zeros(2, 4, dtype=torch.long)], 1)
    if beams == 1:
        logits = out(m, input_ids=cached, pseudo_tokens=longer)
        assert torch.equal(logits[:, 5:-1].argmax(-1), cached[:, 6:])
        plain = out(m, input_ids=cached, pseudo_tokens=torch.zeros_like(longer))
        assert (plain - logits).abs().max() > 1e-3
    fails("E0731", lambda: m.generate(input_ids=tokens, **options), "pseudo_tokens", "unipelt.inputs")


# ---------------------------------------------------------------- other edits where tokens enter


def test_an_edit_of_the_embeddings_that_places_no_rows() -> None:
    m, tokens = model("bert", dtype=torch.float64), ids()
    unipelt.apply(m, method("method m { modify embed form { b: [d_out] ~ normal(0.5) delta = b } compose add }"))
    b = value(m, "b").double()
    found = out(m, input_ids=tokens)
    handle = m.embeddings.register_forward_hook(lambda module, args, output: output + b)
    with unipelt.disabled(m):
        wanted = out(m, input_ids=tokens)
    handle.remove()
    assert torch.allclose(found, wanted, atol=1e-6) and found.shape[1] == 7


def test_a_trained_copy_of_the_words_and_rows_beside_them() -> None:
    """The copy makes the words, then rows take their places, whichever was attached first."""
    m, tokens = model("gpt2"), ids()
    found = []
    for order in ((0, 1), (1, 0)):
        for i in order:
            text = ("method m { train embed.words.* }", "")[i]
            unipelt.apply(m, method(text) if text else rows("prepend(delta, h)"), name=f"a{i}")
        randomise(m, "a0", scale=0.1)
        with torch.no_grad():
            value(m, "P", "a1").fill_(0.25)
        unipelt.activate(m, "a0", "a1")
        found.append(out(m, input_ids=tokens))
        unipelt.remove(m, "a0")
        unipelt.remove(m, "a1")
    assert torch.equal(*found)


# ---------------------------------------------------------------- saving


@pytest.mark.parametrize("spec_name", ["p_tuning", "p_tuning_mlp"])
def test_a_prompt_encoder_folds_away(spec_name: str, tmp_path) -> None:
    """The saved folder has the rows alone: no LSTM, no MLP, and the same outputs."""
    m, tokens = model("bert"), ids()
    marks = torch.zeros_like(tokens)
    marks[:, [0, 3, 6]] = torch.tensor([1, 2, 3])
    plan = unipelt.apply(m, unipelt.load(name(spec_name))(l=3))
    assert plan.counts.stored == 3 * WIDTH < plan.counts.trained
    randomise(m, scale=0.2)
    before = out(m, input_ids=tokens, pseudo_tokens=marks)
    folder = unipelt.save(m, tmp_path / "saved")
    text = (folder / "method.pelt").read_text()
    assert "lstm" not in text and "relu" not in text and "fill" in text
    from safetensors.torch import load_file

    (stored,) = load_file(folder / "adapter.safetensors").values()
    assert stored.shape == (3, WIDTH) and stored.numel() == plan.counts.stored
    fresh = model("bert")
    unipelt.attach(fresh, folder)
    after = out(fresh, input_ids=tokens, pseudo_tokens=marks)
    assert (
        torch.allclose(before, after, atol=1e-5) and (before - out(model("bert"), input_ids=tokens)).abs().max() > 1e-3
    )
    fails("E0731", lambda: fresh(input_ids=tokens), "pseudo_tokens")


# ---------------------------------------------------------------- starts from the words of labels


class Words:
    """A tokenizer of words of letters: a letter is a token."""

    def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
        assert not add_special_tokens
        return {"input_ids": [ord(c) % 70 + 5 for c in text if c.isalpha()]}


def all_words(found: torch.Tensor, table: torch.Tensor) -> bool:
    return bool((found[:, None] == table).all(-1).any(1).all())


def test_label_words_are_the_means_of_their_tokens_then_sampled(tmp_path) -> None:
    m, start = model("bert_labels"), unipelt.load(name("prompt_tuning"))(l=4, start="label_words")
    table = m.get_input_embeddings().weight.detach()
    plan = unipelt.plan(m, start)
    assert plan.needs == (f"a tokenizer and the words of the class labels (for `embed.{name('prompt_tuning')}.P`)",)
    fails("E0521", lambda: unipelt.apply(m, start), "words of the class labels", "tokenizer")
    fails("E0730", lambda: unipelt.apply(m, start, tokenizer=Words()), "label_words=")
    fails("E0730", lambda: unipelt.apply(m, start, tokenizer=Words(), label_words=["bad", ""]), "one for each class")
    fails("E0522", lambda: unipelt.apply(m, start, tokenizer=Words(), label_words=["bad", "!?"]), "no tokens")
    assert not unipelt.adapters(m)
    unipelt.apply(m, start, tokenizer=Words(), label_words=["bad", "so", "good"], name="given")
    m.config.id2label = {2: "good", 1: "so", 0: "bad"}
    unipelt.apply(m, start, tokenizer=Words(), name="configured")
    unipelt.apply(m, start, tokenizer=Words(), labels=["bad", "so", "good"], name="labelled")
    P = value(m, "P", "given")
    wanted = [table[torch.tensor(Words()(w, False)["input_ids"])].mean(0) for w in ("bad", "so", "good")]
    assert torch.allclose(P[:3], torch.stack(wanted), atol=1e-6)
    assert all_words(P[3:], table)
    assert torch.equal(P, value(m, "P", "configured")) and torch.equal(P, value(m, "P", "labelled"))
    unipelt.apply(m, unipelt.load(name("prompt_tuning"))(l=1, start="label_words"), tokenizer=Words(), name="short")
    assert torch.allclose(value(m, "P", "short"), wanted[0][None], atol=1e-6)
    unipelt.attach(
        model("bert_labels"), unipelt.save(m, tmp_path / "a", "given")
    )  # the values are there: no data is needed


@pytest.mark.parametrize("text", [
    'modify embed.words  form { P: [3, d_out] ~ tokens("a b c")  delta = P }  compose prepend(delta, h)',
    'modify embed.words  form { delta = 1.0 }  compose { P: [3, d_out] ~ tokens("a b c")  out = prepend(P, h) }',
    'use { modify ffn  insert parallel  form { delta = z }  compose h + delta } as row gated by { P: [3, d_in] ~ tokens("a b c")  g = tanh(mean(z @ P.T)) }',
])  # fmt: skip
def test_what_started_from_a_text_comes_back_without_a_tokenizer(text, tmp_path) -> None:
    m, other = model("llama"), model("llama")
    unipelt.apply(m, method(f"method m {{ {text} }}"), tokenizer=Words())
    unipelt.attach(other, unipelt.save(m, tmp_path / "a", fold=False))
    assert torch.equal(value(m, "P"), value(other, "P")) and value(m, "P").any()


def test_groups_of_rows_have_samples_of_their_own() -> None:
    m = model("llama")
    assert m.config.num_key_value_heads == GROUPS
    unipelt.apply(m, unipelt.load(name("prompt_ensemble"))(n=3, l=4))
    P, table = value(m, "P"), m.get_input_embeddings().weight.detach()
    assert P.shape == (3, 4, WIDTH) and all_words(P.flatten(0, 1), table)
    assert not torch.equal(P[0], P[1])


def test_a_prompt_made_of_the_text_reads_its_tokens_only() -> None:
    """Not the places that are kept for rows, its own and those of another prompt, and no pads."""
    text = "method m { modify embed  insert mean(h, tokens)  form { A: [d_in, 2, d_out] ~ normal(0.5)  delta = z @ A }  compose prepend(delta, h) }"
    base, given = model("bert", dtype=torch.float64), inputs()
    embedded = base.embeddings(given["input_ids"]).detach()
    real = given["attention_mask"].double()[..., None]
    means = (embedded * real).sum(1) / real.sum(1)
    entered: list[torch.Tensor] = []
    for others in ("", f"+{name('prompt_tuning')}"):
        m = model("bert", dtype=torch.float64)
        method = unipelt.parse(text) if not others else unipelt.parse(text) + unipelt.load(name("prompt_tuning"))(l=3)
        unipelt.apply(m, method)
        A = next(t for n, t in record(m, "default").trained().items() if n.endswith("A")).detach()
        m.encoder.layer[0].register_forward_pre_hook(lambda block, args: entered.append(args[0].detach()))
        m(**given)
        entering = entered.pop()
        rows = torch.einsum("bi,ilo->blo", means, A)
        found = [entering[:, i : i + 2] for i in range(entering.shape[1] - 1)]
        assert min(float((f - rows).abs().max()) for f in found) < 1e-12
