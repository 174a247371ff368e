"""A batch whose examples have adapters of their own gives each what it gets by itself."""

from __future__ import annotations

import threading
from itertools import permutations
from typing import Any

import pytest
import torch
from names import name as named
from one_by_one import alone, batch
from small import model, randomise
from torch import nn

import unipelt
from unipelt.language.report.diagnostics import PeltError
from unipelt.runtime.mixture import Mixture
from unipelt.runtime.registry import registry

#: Eleven methods of six families.
METHODS: dict[str, dict[str, Any]] = {
    "lora": {"r": 2}, "dora": {"r": 2}, "parallel_adapter": {"r": 3}, "pfeiffer": {"r": 3}, "ia3": {}, "prefix_tuning": {"l": 3},
    "mam": {"l": 2, "r": 3}, "ln_tuning": {}, "unipelt_apl_causal": {}, "llama_adapter": {"l": 2}, "prompt_tuning": {"l": 2},
}  # fmt: skip


def load(name: str) -> unipelt.Method:
    return unipelt.load(named(name), arguments=METHODS[name])


def with_adapters(kind: str, *names: str) -> nn.Module:
    m = model(kind)
    for i, name in enumerate(names):
        unipelt.apply(m, load(name), name=name, seed=i, allow_future=True)
        randomise(m, name)
    return m.eval()


@pytest.mark.parametrize("kind", ["bert", "llama", "gpt2"])
@pytest.mark.parametrize("padded", [False, True])
def test_any_mixture_equals_each_alone(kind: str, padded: bool) -> None:
    names = list(METHODS)
    m = with_adapters(kind, *names).double()
    who = [*names, None, names[0], None]
    x = batch(len(who), padded)
    with torch.no_grad():
        expected = alone(m, who, x)
        real = x["attention_mask"].bool()
        with unipelt.using(m, who):
            found = m(**x)[0]
        torch.testing.assert_close(found[real], expected[real], rtol=1e-6, atol=1e-6)
        assert len({tuple(row[0, :2].tolist()) for row in expected}) > 8, "the adapters differ"
        order = torch.randperm(len(who), generator=torch.Generator().manual_seed(1)).tolist()
        with unipelt.using(m, [who[i] for i in order]):
            again = m(**{n: t[order] for n, t in x.items()})[0]
        torch.testing.assert_close(again[real[order]], expected[order][real[order]], rtol=1e-6, atol=1e-6)


def test_frozen_maps_run_once() -> None:
    m = with_adapters("llama", "lora", "ia3")
    calls = []
    m.model.layers[0].self_attn.q_proj.register_forward_hook(lambda *_: calls.append(1))
    with torch.no_grad(), unipelt.using(m, ["lora", None, "ia3", "lora"]):
        m(**batch(4))
    assert len(calls) == 1


@pytest.mark.parametrize(
    "who, editing, parts",
    [
        ("aabbcc", "b", ["aa-", "bb", "cc-"]), ("aabbcc", "bc", ["aa-", "bb", "cc"]), ("aaccbb", "b", ["aacc-", "bb"]),
        ("abcab", "b", ["bb", "aca-"]), ("abc", "", ["abc-"]), ("aa", "a", ["aa"]), ("ab-", "ab", ["a", "b", "--"]),
    ],
)  # fmt: skip
def test_rows_that_nothing_edits_stay_together(who: str, editing: str, parts: list[str]) -> None:
    """A ``-`` behind a part: it is the base's there."""
    mixture = Mixture.of([None if c == "-" else c for c in who])
    split = mixture.split(len(who), tuple(editing))
    rows = torch.arange(len(who))[:, None]
    found = [p.of(rows) for p in split.parts]
    said = ["".join(who[i] for i in t[:, 0]) + ("-" if p.name is None else "") for p, t in zip(split.parts, found)]
    assert said == parts and torch.equal(split.together(found), rows)


def test_what_a_mixture_found_out_serves_the_next_block() -> None:
    """Blocks of the same names share it, whether a block has gradients or not; another adapter of a name is seen."""
    m = with_adapters("llama", "lora", "ia3")
    who, x = ["lora", "ia3", "lora"], batch(3, padded=False)
    with torch.inference_mode(), unipelt.using(m, who):
        expected = m(**x)[0].clone()
    with unipelt.using(m, who):
        found = m(**x)[0]
        found.sum().backward()
    torch.testing.assert_close(found, expected)
    unipelt.remove(m, "lora")
    unipelt.apply(m, load("pfeiffer"), name="lora", seed=9)
    randomise(m, "lora")
    m.eval()
    with torch.no_grad():
        with unipelt.using(m, who):
            found = m(**x)[0]
        torch.testing.assert_close(found, alone(m, who, x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("beams", [1, 3])
def test_generation_with_a_cache(beams: int) -> None:
    m = with_adapters("llama", "lora", "prefix_tuning", "ia3")
    who: list[str | None] = ["prefix_tuning", None, "lora", "ia3"]
    x = batch(4, padded=False)
    options = {"max_new_tokens": 6, "do_sample": False, "num_beams": beams, "pad_token_id": 0, "eos_token_id": None}
    expected = []
    for i, name in enumerate(who):
        with unipelt.using(m, name):
            expected.append(m.generate(**{n: t[i : i + 1] for n, t in x.items()}, **options))
    with unipelt.using(m, who):
        found = m.generate(**x, **options)
    assert torch.equal(found, torch.cat(expected))


def test_gradients_reach_each_adapter_from_its_own_examples() -> None:
    m = with_adapters("llama", "lora", "pfeiffer")
    unipelt.activate(m, "lora", "pfeiffer")
    x = batch(3)
    with unipelt.using(m, ["lora", "pfeiffer", "lora"]):
        m(**x)[0].square().mean(dim=(1, 2))[0].backward()
    own = {n: p.grad for n, p in m.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
    assert own and all("adapter_lora" in n for n in own)
    first = {n: g.clone() for n, g in own.items()}
    m.zero_grad()
    with unipelt.using(m, "lora"):
        m(**{n: t[:1] for n, t in x.items()})[0].square().mean().backward()
    for n, p in m.named_parameters():
        if n in first:
            torch.testing.assert_close(p.grad, first[n], rtol=1e-4, atol=1e-6)


def test_threads_have_mixtures_of_their_own() -> None:
    m = with_adapters("llama", "lora", "ia3", "parallel_adapter")
    x = batch(3, padded=False)
    orders = [list(p) for p in permutations(["lora", "ia3", "parallel_adapter", None], 3)][:8]
    with torch.no_grad():
        expected = [alone(m, who, x) for who in orders]
    wrong: list[str] = []

    def run(k: int) -> None:
        for _ in range(6):
            with torch.no_grad(), unipelt.using(m, orders[k]):
                if not torch.allclose(m(**x)[0], expected[k], rtol=1e-5, atol=1e-5):
                    wrong.append(str(orders[k]))

    threads = [threading.Thread(target=run, args=(k,)) for k in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong and not registry(m).switch.holder.blocks


def test_blocks_nest_and_exceptions_restore() -> None:
    m = with_adapters("llama", "lora", "ia3")
    x = batch(2, padded=False)
    with torch.no_grad():
        expected = alone(m, ["lora", "ia3"], x)
        with unipelt.using(m, ["lora", "ia3"]):
            with unipelt.using(m, None):
                base = m(**x)[0]
            assert torch.allclose(m(**x)[0], expected, atol=1e-5)
            with pytest.raises(PeltError, match="E0852"):
                m(**batch(3))
            assert torch.allclose(m(**x)[0], expected, atol=1e-5)
        with unipelt.disabled(m):
            assert torch.equal(m(**x)[0], base)


@pytest.mark.parametrize(
    "who, code",
    [([], "E0852"), ([3], "E0852"), (["nobody"], "E0551"), (["lora", "last"], "E0853"), (["word"], "E0853")],
    ids=str,
)
def test_what_cannot_share_a_batch(who: list[Any], code: str) -> None:
    m = with_adapters("bert_labels", "lora")
    unipelt.apply(m, unipelt.load(named("loreft")), name="last")
    unipelt.apply(m, unipelt.load(named("per_user_prefixes")), name="word")
    with pytest.raises(PeltError) as caught, unipelt.using(m, who):
        pass
    assert caught.value.diagnostics[0].code == code
    assert not registry(m).switch.holder.blocks and registry(m).switch.holder.part is None
