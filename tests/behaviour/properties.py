"""What must hold of every method on every model: one function a property. A case is a method on a model.

Each function puts the method on, with randomised tensors, asserts, and takes it off again; the model it was lent is
afterwards exactly what it was (the fixture `bases` holds that after every cell).
"""

from __future__ import annotations

import copy
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable

import pytest
import torch
from small import with_cache
from tiny import (
    DECODERS, PAD, Bases, batch, distance, footprint, giving, look, loss, outputs, put, randomise, same,
    same_values, size, small, trained, values,
)  # fmt: skip
from torch import nn
from transformers import DynamicCache, StaticCache

import unipelt

EFFECT = 1e-3
PROPERTIES: dict[str, Callable[["Case"], None]] = {}


@dataclass
class Case:
    spec: str
    kind: str
    bases: Bases
    folder: Path | None = None

    def base(self, dtype: torch.dtype = torch.float32, copy_number: int = 0) -> nn.Module:
        return self.bases.get(self.kind, dtype, copy_number)

    @property
    def inputs(self) -> dict[str, torch.Tensor]:
        return batch(self.kind)

    def put(self, model: nn.Module, name: str = "a", noise: int = 0, **options: Any) -> Any:
        return put(model, self.spec, name, noise, **options)

    @property
    def plan(self) -> Any:
        return unipelt.plan(self.base(), small(self.spec), allow_future=True)


def holds(name: str) -> Callable[[Callable[[Case], None]], Callable[[Case], None]]:
    def add(f: Callable[[Case], None]) -> Callable[[Case], None]:
        PROPERTIES[name] = f
        return f

    return add


# ---------------------------------------------------------------- switching and removing


@holds("disabled")
def disabled(case: Case) -> None:
    """Disabled is the base, bit for bit: nested, after an exception, and with no adapter active."""
    m, inputs = case.base(), case.inputs
    before = look(m, inputs)
    case.put(m)
    acting = look(m, inputs)
    assert distance(acting, before) > EFFECT
    with unipelt.disabled(m):
        assert same(look(m, inputs), before)
        with unipelt.disabled(m):
            assert same(look(m, inputs), before)
        assert same(look(m, inputs), before)
    assert same(look(m, inputs), acting)
    with pytest.raises(ZeroDivisionError):
        with unipelt.disabled(m):
            raise ZeroDivisionError
    assert same(look(m, inputs), acting)
    unipelt.activate(m)
    assert unipelt.active(m) == ()
    assert same(look(m, inputs), before)
    unipelt.activate(m, "a")
    assert same(look(m, inputs), acting)
    unipelt.remove(m, "a")


@holds("removed")
def removed(case: Case) -> None:
    """Removed leaves the base bit for bit, and no hook, name or flag."""
    m, inputs = case.base(), case.inputs
    flags = {n: p.requires_grad for n, p in m.named_parameters()}
    try:
        for i, p in enumerate(m.parameters()):
            p.requires_grad_(i % 3 != 0)  # the user's own freezing comes back too
        traces, weights, before = footprint(m), values(m), look(m, inputs)
        case.put(m)
        assert footprint(m) != traces
        assert distance(look(m, inputs), before) > EFFECT
        case.put(m, "b", noise=1)
        look(m, inputs)
        unipelt.remove(m, "a")
        unipelt.remove(m, "b")
        assert footprint(m) == traces
        assert same_values(values(m), weights)
        assert same(look(m, inputs), before)
        assert not unipelt.adapters(m) and unipelt.active(m) == ()
    finally:
        for n, p in m.named_parameters():
            p.requires_grad_(flags.get(n, True))


# ---------------------------------------------------------------- saving and merging


@holds("saved")
def saved(case: Case) -> None:
    """Saved and attached to a fresh base, unfolded and folded, it computes the same."""
    m, other, inputs = case.base(), case.base(copy_number=1), case.inputs
    before = look(m, inputs)
    case.put(m)
    acting = look(m, inputs)
    assert distance(acting, before) > EFFECT
    tensors = {n: t.clone() for n, t in unipelt.state_dict(m, "a").items()}
    for fold in (False, True):
        folder = unipelt.save(m, case.folder / f"fold-{fold}", "a", fold=fold)
        assert same(look(other, inputs), before)
        assert unipelt.attach(other, folder, allow_future=True) == "a"
        again = look(other, inputs)
        if fold:
            assert distance(again, acting) <= 1e-5 * max(1.0, size(acting))
        else:
            assert same(again, acting)
            assert same_values(unipelt.state_dict(other, "a"), tensors)
        assert not any(p.requires_grad for p in other.parameters())  # attached to be used, not trained
        unipelt.remove(other, "a")
    unipelt.remove(m, "a")


@holds("merged")
def merged(case: Case) -> None:
    """Merged computes what unmerged computed; unmerging puts the base's weights back bit for bit."""
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.float64, 1e-10)):
        m, inputs = case.base(dtype), case.inputs
        before, weights = look(m, inputs), values(m)
        case.put(m)
        acting = look(m, inputs)
        assert distance(acting, before) > EFFECT
        unipelt.merge(m, "a")
        once = look(m, inputs)
        # large outputs carry their rounding: the bound is relative above 1
        assert distance(once, acting) <= tolerance * max(1.0, size(acting))
        with unipelt.disabled(m):
            assert same(look(m, inputs), once)  # it is in the weights now
        unipelt.merge(m, "a")
        assert same(look(m, inputs), once)  # twice is once
        with pytest.raises(unipelt.PeltError, match="E0554"):
            unipelt.remove(m, "a")
        unipelt.unmerge(m)
        base = {n: t for n, t in values(m).items() if n in weights}
        assert same_values(base, weights)
        assert unipelt.active(m) == ("a",)
        assert same(look(m, inputs), acting)
        unipelt.remove(m, "a")
        assert same(look(m, inputs), before)


@holds("merge refused")
def merge_refused(case: Case) -> None:
    """What cannot be merged says which rows forbid it and why, and changes nothing."""
    m, inputs = case.base(), case.inputs
    before = look(m, inputs)
    plan = case.put(m)
    acting, weights = look(m, inputs), values(m)
    assert distance(acting, before) > EFFECT
    with pytest.raises(unipelt.PeltError) as caught:
        unipelt.merge(m, "a")
    codes = {d.code for d in caught.value.diagnostics}
    assert codes == {"E0563"}
    from unipelt.language.properties import mergeable

    rows = {e.row.name for e in plan.edits if mergeable(e.typing).value != "yes"}
    assert rows
    for row in rows:
        assert f"`{row}`" in str(caught.value)
    assert all(d.help and "because" not in d.message and ":" in d.message for d in caught.value.diagnostics)
    assert same_values(values(m), weights)
    assert same(look(m, inputs), acting)
    unipelt.remove(m, "a")


# ---------------------------------------------------------------- training


@holds("gradients")
def gradients(case: Case) -> None:
    """Every trained tensor gets a gradient, the base gets none, and a step changes the trained tensors only."""
    m, inputs = case.base(), case.inputs
    plan = case.put(m)
    loss(m, inputs).backward()
    own = trained(m, "a")
    assert len(own) == sum(not t.frozen for t in plan.tensors.values()) + len(plan.copies)
    for n, p in own.items():
        assert p.grad is not None, n
        assert torch.isfinite(p.grad).all() and p.grad.abs().max() > 0, n
    ids = {id(p) for p in own.values()}
    for n, p in m.named_parameters():
        assert id(p) in ids or (p.grad is None and not p.requires_grad), n
    before = values(m)
    torch.optim.SGD(unipelt.parameter_groups(m, "a", 0.1)).step()
    after = values(m)
    moved = {id(p) for n, p in m.named_parameters(remove_duplicate=False) if not torch.equal(before[n], after[n])}
    # a bias of the keys adds the same to every score of a query and cancels in the softmax: only rounding is left of it
    still = {id(p) for p in own.values() if p.grad is not None and p.grad.abs().max() < 1e-5}
    assert moved <= ids and ids - moved <= still and len(still) <= len(ids) // 4
    unipelt.remove(m, "a")


@holds("train mode")
def train_mode(case: Case) -> None:
    """Without dropout, train mode computes what eval mode computes."""
    m, inputs = case.base(), case.inputs
    before = look(m, inputs)
    case.put(m)
    acting = look(m, inputs)
    assert distance(acting, before) > EFFECT
    m.train()
    assert same(look(m, inputs), acting)
    m.eval()
    assert same(look(m, inputs), acting)
    unipelt.remove(m, "a")


@holds("seed")
def seed(case: Case) -> None:
    """The same seed gives the same tensors, whatever else is attached; another seed gives others."""
    m = case.base()
    method = small(case.spec)

    def start(name: str, seed: int) -> dict[str, torch.Tensor]:
        unipelt.apply(m, method, name=name, seed=seed, allow_future=True)
        return {n: t.clone() for n, t in unipelt.state_dict(m, name).items()}

    first = start("a", 3)
    other = start("b", 4)
    unipelt.remove(m, "a")
    torch.randn(5)
    unipelt.activate(m)
    again = start("c", 3)
    assert same_values(first, again)
    random = any(n.startswith(_RANDOM) for n in _starts(case.plan))
    assert same_values(first, other) is not random
    unipelt.remove(m, "b")
    unipelt.remove(m, "c")


_RANDOM = ("normal", "truncated_normal", "uniform", "kaiming", "xavier", "torch_linear", "orthogonal", "sampled")


def _starts(plan: Any) -> set[str]:
    return {t.start.name for t in plan.tensors.values() if t.start is not None}


# ---------------------------------------------------------------- the same by other ways


@holds("literal")
def literal(case: Case) -> None:
    """Lowered and evaluated as written agree in float64, outputs and gradients."""
    m, inputs = case.base(torch.float64), case.inputs
    before = look(m, inputs)
    found = []
    for lowering in (True, False):
        case.put(m, lowering=lowering)
        acting = look(m, inputs)
        loss(m, inputs).backward()
        found.append((acting, {n: p.grad for n, p in trained(m, "a").items()}))
        unipelt.remove(m, "a")
    (lowered, fast), (written, slow) = found
    assert distance(lowered, before) > EFFECT
    assert distance(lowered, written) <= 1e-10 * max(1.0, size(written))
    assert fast.keys() == slow.keys()
    for n in fast:
        assert (fast[n] - slow[n]).abs().max() <= 1e-10 * max(1.0, float(slow[n].abs().max())), n


@holds("attention")
def attention(case: Case) -> None:
    """SDPA and eager agree, switched by `set_attn_implementation` with the adapter on."""
    m, inputs = case.base(), case.inputs
    assert m.config._attn_implementation == "sdpa"
    before = look(m, inputs)
    case.put(m)
    fused = look(m, inputs)
    try:
        m.set_attn_implementation("eager")
        eager = look(m, inputs)
        with unipelt.disabled(m):
            assert distance(look(m, inputs), before) <= 1e-5 * max(1.0, size(before))
    finally:
        m.set_attn_implementation("sdpa")
    assert distance(fused, before) > EFFECT
    assert distance(fused, eager) <= 1e-5 * max(1.0, size(eager))
    unipelt.remove(m, "a")


@holds("copies")
def copies(case: Case) -> None:
    """A deep copy and a pickled one compute the same, and share nothing with the original."""
    m, inputs = case.base(), case.inputs
    before = look(m, inputs)
    case.put(m)
    acting = look(m, inputs)
    file = io.BytesIO()
    torch.save(m, file)
    file.seek(0)
    for twin in (copy.deepcopy(m), torch.load(file, weights_only=False)):
        assert same(look(twin, inputs), acting)
        assert not {t.data_ptr() for t in twin.state_dict().values()} & {t.data_ptr() for t in m.state_dict().values()}
        randomise(twin, "a", seed=5)
        assert distance(look(twin, inputs), acting) > EFFECT
        assert same(look(m, inputs), acting)
        with unipelt.disabled(twin):
            assert same(look(twin, inputs), before)
            assert same(look(m, inputs), acting)
        unipelt.remove(twin, "a")
        assert same(look(twin, inputs), before)
        assert footprint_names(twin) == footprint_names(case.base(copy_number=1))
    assert same(look(m, inputs), acting)
    unipelt.remove(m, "a")


def footprint_names(m: nn.Module) -> tuple:
    found = footprint(m)
    return tuple(found["modules"].items()), tuple(found["state"].items()), tuple(found["parameters"])


# ---------------------------------------------------------------- number formats

# bfloat16 has 8 bits: 2**-8 = 0.4 % a rounding, some dozens of them from the embeddings to the output. A tenth of the
# largest output for the worst entry, 3 % of it on average: a wrong edit is off by more than the effect, as asserted.
WORST, AVERAGE = 0.1, 0.03


def _near(rough: dict[str, torch.Tensor], exact: dict[str, torch.Tensor]) -> None:
    assert distance(rough, exact) <= WORST * size(exact)
    for n in exact:
        assert (rough[n].double() - exact[n].double()).abs().mean() <= AVERAGE * exact[n].double().abs().max()


@holds("bfloat16")
def bfloat16(case: Case) -> None:
    """A bfloat16 model with the adapter is finite, near the float32 one, and stays bfloat16."""
    m, rough, inputs = case.base(), case.base(torch.bfloat16), case.inputs
    before, rough_before = look(m, inputs), look(rough, inputs)
    case.put(m)
    case.put(rough)
    with torch.no_grad():
        for n, t in unipelt.state_dict(rough, "a").items():
            assert t.dtype == torch.bfloat16, n
            t.copy_(unipelt.state_dict(m, "a")[n])
    exact, found = look(m, inputs), look(rough, inputs)
    for n, t in found.items():
        assert t.dtype == rough_before[n].dtype == torch.bfloat16
    _near(found, exact)
    assert distance(exact, before) > EFFECT
    assert distance(found, rough_before) > EFFECT
    loss(rough, inputs).backward()
    for n, p in trained(rough, "a").items():
        assert p.grad is not None and torch.isfinite(p.grad).all(), n
    unipelt.remove(m, "a")
    unipelt.remove(rough, "a")


@holds("autocast")
def autocast(case: Case) -> None:
    """Under autocast a float32 model with the adapter is near float32, in the dtype that the base has there."""
    m, inputs = case.base(), case.inputs
    with torch.autocast("cpu", torch.bfloat16):
        before = look(m, inputs)
    case.put(m)
    exact = look(m, inputs)
    with torch.autocast("cpu", torch.bfloat16):
        found = look(m, inputs)
        total = loss(m, inputs)
    assert {n: t.dtype for n, t in found.items()} == {n: t.dtype for n, t in before.items()}
    assert distance(found, before) > EFFECT
    _near(found, exact)
    total.backward()
    for n, p in trained(m, "a").items():
        assert p.grad is not None and p.grad.dtype == torch.float32 and torch.isfinite(p.grad).all(), n
    unipelt.remove(m, "a")


# ---------------------------------------------------------------- several adapters


@holds("side by side")
def side_by_side(case: Case) -> None:
    """Two adapters: each alone computes what it computes alone; both together act in the order they are named."""
    m, inputs = case.base(), case.inputs
    alone = []
    for noise in (0, 1):
        case.put(m, noise=noise)
        alone.append(look(m, inputs))
        unipelt.remove(m, "a")
    assert distance(*alone) > EFFECT
    case.put(m, "one", noise=0)
    case.put(m, "two", noise=1)
    own = {n: list(unipelt.state_dict(m, n)) for n in ("one", "two")}
    assert own["one"] == own["two"]
    assert unipelt.active(m) == ("two",)
    for name, wanted in zip(("one", "two"), alone):
        unipelt.activate(m, name)
        assert same(look(m, inputs), wanted)
        loss(m, inputs).backward()
        idle = "two" if name == "one" else "one"
        mine = {id(p) for p in trained(m, name).values()}
        assert not trained(m, idle)
        assert (
            mine
            == {id(p) for p in m.parameters() if p.grad is not None}
            == {id(p) for p in m.parameters() if p.requires_grad}
        )
        for p in m.parameters():
            p.grad = None
    unipelt.activate(m, "one", "two")
    both = look(m, inputs)
    assert same(look(m, inputs), both)
    assert len(trained(m, "one")) == len(trained(m, "two")) > 0
    replaced = [e.site.name == "head" or (e.places is not None and e.places.word == "fill") for e in case.plan.edits]
    if all(replaced):  # copies, heads and fillings stand in place of what was there: the later one replaces the earlier
        assert distance(both, alone[1]) <= 1e-5 * max(1.0, size(alone[1]))
    else:
        assert distance(both, alone[0]) > EFFECT and distance(both, alone[1]) > EFFECT
    unipelt.remove(m, "one")
    assert unipelt.active(m) == ("two",)
    assert same(look(m, inputs), alone[1])
    unipelt.remove(m, "two")


@holds("names")
def names(case: Case) -> None:
    """Names that contain one another, or are methods of containers, stay apart."""
    m, inputs = case.base(), case.inputs
    chosen = ("a", "ab", "a_b", ("keys", "values", "items", "pop", "forward", "training")[len(case.spec) % 6])
    alone = {}
    for noise, name in enumerate(chosen):
        case.put(m, name, noise=noise)
        alone[name] = look(m, inputs)
    assert all(distance(alone[a], alone[b]) > EFFECT for a, b in zip(chosen, chosen[1:]))
    for name in chosen:
        unipelt.activate(m, name)
        assert same(look(m, inputs), alone[name])
    unipelt.remove(m, "a")
    for name in chosen[1:]:
        unipelt.activate(m, name)
        assert same(look(m, inputs), alone[name])
    for name in chosen[1:]:
        unipelt.remove(m, name)


# ---------------------------------------------------------------- padding


def _padded(case: Case, model: nn.Module, side: str) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor], int]:
    """Outputs of one sentence alone, and of the same sentence beside a longer one, cut to its real tokens."""
    alone = batch(case.kind, rows=1, tokens=5, padded=False)
    longer = batch(case.kind, rows=1, tokens=9, padded=False, seed=8)
    room = torch.full((1, 4), PAD)
    ids, mask = alone["input_ids"], alone["attention_mask"]
    parts = (room, ids) if side == "left" else (ids, room)
    masks = (torch.zeros_like(room), mask) if side == "left" else (mask, torch.zeros_like(room))
    both = {
        "input_ids": torch.cat([torch.cat(parts, 1), longer["input_ids"]]),
        "attention_mask": torch.cat([torch.cat(masks, 1), longer["attention_mask"]]),
    }
    for b in (alone, both):
        b["position_ids"] = (b["attention_mask"].cumsum(1) - 1).clamp(min=0)
    wanted, got = _at_tokens(model, alone), _at_tokens(model, both)
    cut = {}
    for n, t in got.items():
        if t.dim() == 3:
            cut[n] = t[:1, 4:] if side == "left" else t[:1, :5]
        elif side == "right" or case.kind == "gpt2":
            cut[n] = t[:1]
        else:
            continue  # BERT's pooler reads the first position, here a pad
    return {n: wanted[n] for n in cut}, cut, len(cut)


def _at_tokens(model: nn.Module, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {n: unipelt.at_tokens(model, t) if t.dim() == 3 else t for n, t in look(model, inputs).items()}


def _padding(case: Case, side: str) -> None:
    m = case.base(torch.float64)
    wanted, got, n = _padded(case, m, side)
    assert n
    assert distance(wanted, got) <= 1e-6  # the base itself
    case.put(m)
    acting, padded, _ = _padded(case, m, side)
    assert distance(acting, wanted) > EFFECT
    # float64, but for rotary tables and the softmax that models keep in float32
    assert distance(acting, padded) <= 1e-6 * max(1.0, size(acting))
    unipelt.remove(m, "a")


@holds("padding right")
def padding_right(case: Case) -> None:
    """Padding at the right changes nothing at the real tokens."""
    _padding(case, "right")


@holds("padding left")
def padding_left(case: Case) -> None:
    """Padding at the left changes nothing at the real tokens."""
    _padding(case, "left")


@holds("padding seen")
def padding_seen(case: Case) -> None:
    """Where the verdict says that pads take part, they do, and the plan warns of it."""
    m = case.base(torch.float64)
    plan = case.put(m)
    assert any("pad positions" in w for w in plan.warnings)
    right, left = _padded(case, m, "right"), _padded(case, m, "left")
    seen = max(distance(wanted, got) for wanted, got, n in (right, left) if n)
    assert seen > 1e-6
    unipelt.remove(m, "a")


# ---------------------------------------------------------------- decoding

TOLERANCE = 1e-5  # of float32; the rotary tables and Llama's softmax are float32 in a float64 model as well


def _logits(m: nn.Module, case: Case, cache: Any, ids: torch.Tensor, chunks: list[int]) -> torch.Tensor:
    found, start = [], 0
    for n in chunks:
        with torch.no_grad():
            o = m(input_ids=ids[:, start : start + n], **with_cache(m, cache), use_cache=True)
        found.append(unipelt.at_tokens(m, o.logits))
        start += n
    return torch.cat(found, 1)


def _decoding(case: Case, make: Callable[[nn.Module], Any]) -> None:
    m = case.base()
    ids = batch(case.kind, rows=2, tokens=8, padded=False)["input_ids"]
    before = look(m, {"input_ids": ids})
    case.put(m)
    with giving(m, ids):
        full = unipelt.at_tokens(m, look(m, {"input_ids": ids}, use_cache=False)["logits"])
        found = {str(chunks): _logits(m, case, make(m), ids, chunks) for chunks in ([1] * 8, [4, 1, 3])}
    assert (full - before["logits"]).abs().max() > EFFECT
    for chunks, cached in found.items():
        assert (cached - full).abs().max() <= TOLERANCE * max(1.0, float(full.abs().max())), chunks
    unipelt.remove(m, "a")


@holds("dynamic cache")
def dynamic_cache(case: Case) -> None:
    """Token by token and in chunks through a dynamic cache: the logits of one full pass."""
    _decoding(case, lambda m: DynamicCache(config=m.config))


@holds("static cache")
def static_cache(case: Case) -> None:
    """The same through a static cache with more room than is used."""
    _decoding(case, lambda m: StaticCache(config=m.config, max_cache_len=24))


def _generate(m: nn.Module, ids: torch.Tensor, mask: torch.Tensor | None = None, **options: Any) -> torch.Tensor:
    mask = torch.ones_like(ids) if mask is None else mask
    with giving(m, ids):
        out = m.generate(
            input_ids=ids, attention_mask=mask, max_new_tokens=5, do_sample=False, pad_token_id=PAD, **options
        )
    assert out.shape[1] == ids.shape[1] + 5 and torch.equal(out[:, : ids.shape[1]], ids)
    return out[:, ids.shape[1] :]


@holds("greedy")
def greedy(case: Case) -> None:
    """`generate` is the same with and without a cache, and is what one full pass says at every step."""
    m = case.base()
    ids = batch(case.kind, rows=2, tokens=6, padded=False, seed=2)["input_ids"]
    before = _generate(m, ids)
    case.put(m)
    with_cache = _generate(m, ids)
    assert torch.equal(with_cache, _generate(m, ids, use_cache=False))
    whole = torch.cat([ids, with_cache], 1)
    with giving(m, ids):
        logits = look(m, {"input_ids": whole})["logits"]
    chosen = logits[:, -6:-1]
    best = chosen.amax(-1)
    picked = chosen.gather(-1, with_cache[..., None])[..., 0]
    assert (best - picked).abs().max() <= TOLERANCE * max(1.0, float(best.abs().max()))
    with unipelt.disabled(m):
        assert torch.equal(_generate(m, ids), before)
    assert torch.equal(_generate(m, ids), with_cache)
    unipelt.remove(m, "a")


@holds("beams")
def beams(case: Case) -> None:
    """Beam search, which reorders the cache, is the same with and without one."""
    m = case.base()
    ids = batch(case.kind, rows=2, tokens=6, padded=False, seed=2)["input_ids"]
    before = look(m, {"input_ids": ids})
    case.put(m)
    assert distance(look(m, {"input_ids": ids}), before) > EFFECT
    assert torch.equal(_generate(m, ids, num_beams=3), _generate(m, ids, num_beams=3, use_cache=False))
    unipelt.remove(m, "a")


@holds("left-padded generation")
def left_padded(case: Case) -> None:
    """A prompt beside a longer one, padded at the left, is continued as it is alone."""
    m = case.base()
    short = batch(case.kind, rows=1, tokens=4, padded=False, seed=3)["input_ids"]
    long = batch(case.kind, rows=1, tokens=7, padded=False, seed=4)["input_ids"]
    before = look(m, {"input_ids": long})
    case.put(m)
    assert distance(look(m, {"input_ids": long}), before) > EFFECT
    ids = torch.cat([torch.cat([torch.full((1, 3), PAD), short], 1), long])
    mask = torch.ones_like(ids)
    mask[0, :3] = 0
    wanted = torch.cat([_generate(m, short), _generate(m, long)])
    assert torch.equal(_generate(m, ids, mask), wanted)
    unipelt.remove(m, "a")


__all__ = ["DECODERS", "PROPERTIES", "Case", "outputs"]
