"""Learned rows in a cache: steps of a generation find them there, and everyone else finds the tokens alone."""

from __future__ import annotations

import copy
import pickle
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import small
import torch
from names import name as named
from torch import nn
from transformers import (
    Gemma3nTextConfig,
    Gemma3nForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)
from transformers.cache_utils import DynamicCache, DynamicLayer

import unipelt
from unipelt.runtime.rows_in_cache import WithRows
from unipelt.runtime.steady import Kinds

SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2,
         "vocab_size": 99, "pad_token_id": 0, "eos_token_id": None, "bos_token_id": 1, "max_position_embeddings": 128}  # fmt: skip
IDS = torch.tensor([[5, 17, 60, 3, 8], [9, 4, 33, 71, 2]])


def adapted(method: str = "prefix_tuning", attention: str = "sdpa", **more: str) -> nn.Module:
    torch.manual_seed(0)
    m = LlamaForCausalLM(LlamaConfig(**SIZES)).double().eval()
    m.set_attn_implementation(attention)
    for name, one in {"default": method, **more}.items():
        unipelt.apply(m, unipelt.load(named(one)), name, allow_future=True)
        small.randomise(m, name, seed=len(name))
    unipelt.activate(m, "default")
    return m


@contextmanager
def as_ever(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Within the block no pass is like another, so nothing is kept."""
    with monkeypatch.context() as patch:
        patch.setattr(Kinds, "of", lambda self, acting, holder: None)
        yield


@torch.no_grad()
def steps(m: nn.Module, cache: Any, count: int, first: int = 20, batch: int = 2) -> list[torch.Tensor]:
    """The logits of so many tokens, one after the other."""
    return [
        m(torch.full((batch, 1), first + i), **small.with_cache(m, cache), use_cache=True).logits for i in range(count)
    ]


@torch.no_grad()
def begun(m: nn.Module, count: int = 4) -> tuple[Any, list[torch.Tensor]]:
    """A cache that has read a text and so many tokens more."""
    cache = DynamicCache(config=m.config)
    out = [m(IDS, **small.with_cache(m, cache), use_cache=True).logits]
    return cache, out + steps(m, cache, count)


def kept(cache: Any) -> list[bool]:
    return [type(layer) is WithRows for layer in cache.layers]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("method", ["prefix_tuning", "mam"])
def test_steps_find_them_there_and_compute_the_same(
    method: str, attention: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    m = adapted(method, attention)
    begun(m, 0)
    cache, out = begun(m)
    with as_ever(monkeypatch):
        other, expected = begun(m)
    assert all(kept(cache)) and not any(kept(other))
    torch.testing.assert_close(out, expected)
    whole = m(torch.cat((IDS, torch.arange(20, 24).expand(2, -1)), 1)).logits
    torch.testing.assert_close(torch.cat(out, 1), whole)
    assert cache.get_seq_length() == 9 and cache.get_mask_sizes(1, 0) == other.get_mask_sizes(1, 0)


def test_a_generation_of_padded_texts_and_beams_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    m, mask = adapted(), torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
    given = dict(attention_mask=mask, max_new_tokens=12, do_sample=False, return_dict_in_generate=True, output_logits=True)  # fmt: skip
    for beams in (1, 3):
        m.generate(IDS, **given, num_beams=beams)
        found = m.generate(IDS, **given, num_beams=beams)
        assert any(kept(small.cache_of(found)))
        with as_ever(monkeypatch):
            expected = m.generate(IDS, **given, num_beams=beams)
        assert torch.equal(found.sequences, expected.sequences)
        torch.testing.assert_close(found.logits, expected.logits)


def _longer(m: nn.Module, cache: Any) -> list[torch.Tensor]:
    return [m(IDS[:, :3], **small.with_cache(m, cache), use_cache=True).logits]


def _of_the_base(m: nn.Module, cache: Any) -> list[torch.Tensor]:
    with unipelt.disabled(m):
        return steps(m, cache, 2)


def _of_another(m: nn.Module, cache: Any) -> list[torch.Tensor]:
    with unipelt.using(m, "other"):
        return steps(m, cache, 4)


def _mixed(m: nn.Module, cache: Any) -> list[torch.Tensor]:
    with unipelt.using(m, ["other", None]):
        return steps(m, cache, 3)


def _graded(m: nn.Module, cache: Any) -> list[torch.Tensor]:
    with torch.enable_grad():
        return [m(IDS[:, :1], **small.with_cache(m, cache), use_cache=True).logits]


def _of_other_values(m: nn.Module, cache: Any) -> list[torch.Tensor]:
    small.randomise(m, seed=9)
    return steps(m, cache, 3)


def _in_another_thread(m: nn.Module, cache: Any) -> list[torch.Tensor]:
    found: list[torch.Tensor] = []

    def other() -> None:
        found.extend(steps(m, cache, 3))

    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    return found


def _in_eager_attention(m: nn.Module, cache: Any) -> list[torch.Tensor]:
    m.set_attn_implementation("eager")
    return steps(m, cache, 3)


def _removed(m: nn.Module, cache: Any) -> list[torch.Tensor]:
    unipelt.remove(m, "default")
    unipelt.remove(m, "other")
    return steps(m, cache, 2)


def _cropped(m: nn.Module, cache: Any) -> list[torch.Tensor]:
    cache.crop(-2)
    return steps(m, cache, 3)


def _repeated(m: nn.Module, cache: Any) -> list[torch.Tensor]:
    cache.batch_repeat_interleave(2)
    return steps(m, cache, 2, batch=4)


def _selected(m: nn.Module, cache: Any) -> list[torch.Tensor]:
    cache.batch_select_indices(torch.tensor([1]))
    return steps(m, cache, 2, batch=1)


def _reordered(m: nn.Module, cache: Any) -> list[torch.Tensor]:
    cache.reorder_cache(torch.tensor([1, 1]))
    return steps(m, cache, 2)


def _emptied(m: nn.Module, cache: Any) -> list[torch.Tensor]:
    cache.reset()
    return [*_longer(m, cache), *steps(m, cache, 2)]


def _copied(m: nn.Module, cache: Any) -> list[torch.Tensor]:
    return [
        t for c in (copy.deepcopy(cache), copy.copy(cache), pickle.loads(pickle.dumps(cache))) for t in steps(m, c, 2)
    ]


def _read(m: nn.Module, cache: Any) -> list[torch.Tensor]:
    return [t for layer in cache for t in layer[:2]]


def _written(m: nn.Module, cache: Any) -> list[torch.Tensor]:
    for layer in cache.layers:
        layer.values = 2 * layer.values
    return steps(m, cache, 2)


@pytest.mark.parametrize(
    "go_on",
    [_longer, _of_the_base, _of_another, _mixed, _graded, _of_other_values, _in_another_thread, _in_eager_attention, _removed,
     _cropped, _repeated, _selected, _reordered, _emptied, _copied, _read, _written],
)  # fmt: skip
def test_whoever_goes_on_with_the_cache_finds_the_tokens_alone(
    go_on: Callable[[nn.Module, Any], list[torch.Tensor]], monkeypatch: pytest.MonkeyPatch
) -> None:
    m, again = adapted(other="mam"), adapted(other="mam")
    begun(m)
    cache, _ = begun(m)
    assert all(kept(cache))
    with torch.no_grad():
        found = go_on(m, cache)
        with as_ever(monkeypatch):
            expected = go_on(again, begun(again)[0])
    torch.testing.assert_close(found, expected)


def test_an_adapter_is_trained_behind_a_generation() -> None:
    m = adapted()
    begun(m)
    begun(m)
    m.train()
    m(IDS, labels=IDS).loss.backward()
    grads = [p.grad for n, p in m.named_parameters() if p.requires_grad]
    assert grads and all(g is not None and g.any() for g in grads)


def _window() -> nn.Module:
    return MistralForCausalLM(MistralConfig(**SIZES, sliding_window=4))


def _shares() -> nn.Module:
    """Its last layers read the keys and values of earlier ones."""
    return Gemma3nForCausalLM(Gemma3nTextConfig(
        **{**SIZES, "num_hidden_layers": 4}, head_dim=8, num_kv_shared_layers=2, layer_types=["full_attention"] * 4, hidden_size_per_layer_input=8, vocab_size_per_layer_input=99, laurel_rank=4,
        activation_sparsity_pattern=[0.0] * 4,
    ))  # fmt: skip


@pytest.mark.parametrize("build", [_window, _shares])
def test_caches_of_other_kinds_keep_none(build: Callable[[], nn.Module], monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    m = build().double().eval()
    unipelt.apply(m, unipelt.load(named("prefix_tuning")))
    small.randomise(m)
    begun(m)
    cache, found = begun(m)
    with as_ever(monkeypatch):
        _, expected = begun(m)
    assert not any(kept(cache)) and type(cache.layers[0]) in (DynamicLayer, *DynamicLayer.__subclasses__())
    torch.testing.assert_close(found, expected)
