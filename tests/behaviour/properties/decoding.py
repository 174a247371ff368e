"""Written token by token: through caches, greedily, with beams, beside other texts."""

from __future__ import annotations

import torch
from small import with_cache
from tiny import distance, look
from torch import Tensor, nn

import unipelt

from .case import EFFECT, NEW, Case, Inputs, holds

TOLERANCE = 1e-5  # of float32; the rotary tables and Llama's softmax are float32 in a float64 model as well


def _through_cache(case: Case, m: nn.Module, inputs: Inputs, chunks: list[int], room: int | None) -> Tensor:
    assert case.written is not None
    ids, read = inputs[case.written.ids], case.read_once(m, inputs)
    cache = case.cache(m, read, room)
    found = []
    for chunk in ids.split(chunks, 1):
        with torch.no_grad():
            o = m(**read, **{case.written.ids: chunk}, **with_cache(m, cache), use_cache=True)
        found.append(case.at_tokens(m, {"logits": o.logits})["logits"])
    return torch.cat(found, 1)


def _decoding(case: Case, room: int | None) -> None:
    m, inputs = case.acting(), case.text(rows=2, tokens=8)
    assert case.written is not None
    n = inputs[case.written.ids].shape[1]
    before = look(case.base(), inputs)["logits"]
    with case.giving(m, inputs):
        full = case.logits(m, inputs, use_cache=False)
        found = {str(chunks): _through_cache(case, m, inputs, chunks, room) for chunks in ([1] * n, [3, 1, n - 4])}
    assert (full - before).abs().max() > EFFECT
    for chunks, cached in found.items():
        assert (cached - full).abs().max() <= TOLERANCE * max(1.0, float(full.abs().max())), chunks


@holds("dynamic cache")
def dynamic_cache(case: Case) -> None:
    """Token by token and in chunks through a dynamic cache: the logits of one full pass."""
    _decoding(case, None)


@holds("static cache")
def static_cache(case: Case) -> None:
    """The same through a static cache with more room than is used."""
    _decoding(case, 24)


@holds("greedy")
def greedy(case: Case) -> None:
    """`generate` is the same with and without a cache, and is what one full pass says at every step."""
    m, inputs = case.acting(), case.text(rows=2, tokens=6, seed=2)
    with_cache = case.generate(m, inputs)
    assert torch.equal(with_cache, case.generate(m, inputs, use_cache=False))
    with case.giving(m, inputs):
        logits = case.logits(m, case.written_on(inputs, with_cache))
    chosen = logits[:, -NEW - 1 : -1]
    best = chosen.amax(-1)
    picked = chosen.gather(-1, with_cache[..., None])[..., 0]
    assert (best - picked).abs().max() <= TOLERANCE * max(1.0, float(best.abs().max()))
    with unipelt.disabled(m):
        bare = case.generate(m, inputs)
    assert torch.equal(bare, case.generate(case.base(), inputs))
    assert torch.equal(case.generate(m, inputs), with_cache)


@holds("beams")
def beams(case: Case) -> None:
    """Beam search, which reorders the cache, is the same with and without one."""
    m, inputs = case.acting(), case.text(rows=2, tokens=6, seed=2)
    assert distance(look(m, inputs), look(case.base(), inputs)) > EFFECT
    with_cache, without = (case.generate(m, inputs, num_beams=3, use_cache=use) for use in (True, False))
    assert torch.equal(with_cache, without)


@holds("padded generation")
def padded_generation(case: Case) -> None:
    """A text beside a longer one, padded (at the left where it is written on), is continued as it is alone."""
    m, texts = case.acting(), case.prompts()
    assert texts is not None
    *alone, both = texts
    assert distance(look(m, alone[1]), look(case.base(), alone[1])) > EFFECT
    wanted = torch.cat([case.generate(m, inputs) for inputs in alone])
    assert torch.equal(case.generate(m, both), wanted)
