"""One judge for each verdict: what it measures by running the model, never what the checker thinks.

Each gives the largest deviation from what the verdict claims, relative to the values where they are large: a "yes"
allows 1e-9, a "no" must show more than 1e-7 somewhere. A judge gives None where its question has no meaning on the
model: causality where nothing is causal, padding where nothing is padded.

Deviations are looked for in the model's outputs and in what every edit yields, since a norm or a softmax behind an edit
may take away what it does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from form_expressions import closed, computed
from small import cache_of, with_cache
from tiny import ENCODER_DECODERS, PAD, batch, giving
from torch import nn
from trial import Exact, Inputs, Pass, Tap, Trial, Unstable, deviation

import unipelt
from unipelt.anatomy.columns import taken
from unipelt.compiler import evaluator
from unipelt.compiler.drawn import Draws, numbers as numbers_of_a_pass
from unipelt.compiler.evaluator import bind, evaluate
from unipelt.compiler.named import Named
from unipelt.language.analyse.method import analyse
from unipelt.language.ir import Method
from unipelt.language.syntax.nodes import Let
from unipelt.language.types.draws import Draw
from unipelt.runtime import straight
from unipelt.runtime.copies import CopyEdit
from unipelt.runtime.folding import folded

HOLDS, SHOWS = 1e-9, 1e-7
Judge = Callable[[Trial], "float | None"]
JUDGES: dict[str, Judge] = {}

#: Models that can be decoded step by step, and those in which pad positions are left out by a mask.
DECODERS = ("gpt2", "llama", "opt", "mistral", "qwen2", *ENCODER_DECODERS)
PADDED = ("bert_head", "bert_words", "gpt2", "llama", "t5", "bart", "albert_head")
#: Of these, models to which positions can be told, or which have relative ones.
PADDED_LEFT = ("bert_head", "bert_words", "gpt2", "llama", "albert_head", "t5")


def judge(name: str) -> Callable[[Judge], Judge]:
    def add(f: Judge) -> Judge:
        JUDGES[name] = f
        return f

    return add


def _largest(found: Iterator[float]) -> float:
    return max(found, default=0.0)


def _apart(a: Pass, b: Pass, cut: Callable[[torch.Tensor, Tap | None], torch.Tensor | None]) -> float:
    """The largest deviation between two passes in what ``cut`` leaves of an output (no tap) and of an edit's out."""
    assert a.outputs.keys() == b.outputs.keys() and len(a.taps) == len(b.taps)
    pairs = [(a.outputs[n], b.outputs[n], None) for n in a.outputs] + [
        (x.out, y.out, x) for x, y in zip(a.taps, b.taps)
    ]
    cuts = [(cut(x, tap), cut(y, tap)) for x, y, tap in pairs]
    return _largest(deviation(x, y) for x, y in cuts if x is not None and y is not None)


def _outputs_apart(a: Pass, b: Pass) -> float:
    assert a.outputs.keys() == b.outputs.keys()
    return _largest(deviation(a.outputs[n], b.outputs[n]) for n in a.outputs)


@contextmanager
def _acting(t: Trial, method: Method, tensors: Mapping[str, torch.Tensor]) -> Iterator[None]:
    """A block in which another method acts in place of the trial's, with these tensors."""
    plan = t.apply(method, "b")
    try:
        t.watch("b", plan)
        own = unipelt.state_dict(t.model, "b")
        assert own.keys() == tensors.keys()
        with torch.no_grad():
            for n, x in own.items():
                x.copy_(tensors[n])
        yield
    finally:
        unipelt.remove(t.model, "b")
        unipelt.activate(t.model, "a")


# ---------------------------------------------------------------- the start


@judge("identity at start")
def identity(t: Trial) -> float:
    """The model with the method at its start, against the model without it; every edit's out against its h."""
    names = [(t.started.outputs[n], t.plain.outputs[n]) for n in t.plain.outputs]
    return _largest(deviation(a, b) for a, b in [*names, *((tap.out, tap.h) for tap in t.started.taps)])


# ---------------------------------------------------------------- what an edit sees


@contextmanager
def _drawn_by_token(side: str = "right") -> Iterator[None]:
    """A block in which a token is given the same numbers by `chance[token]`, however many stand at this side of it: other numbers
    for another length are chance, and nothing that the row reads."""
    given, most = numbers_of_a_pass, 64

    def numbers(draw: Draw, sizes: Any, known: Draws, training: bool) -> Named:
        tokens = known.lengths.get("token") if "token" in draw.axes else None
        if tokens is None:
            return given(draw, sizes, known, training)
        found = given(draw, sizes, replace(known, lengths={**known.lengths, "token": most}), training)
        start = 0 if side == "right" else most - tokens
        return Named(found.data.narrow(found.axes.index("token"), start, tokens), found.axes)

    try:
        evaluator.numbers = straight.numbers = numbers
        yield
    finally:
        evaluator.numbers = straight.numbers = given


def _changed_ids(ids: torch.Tensor, since: int) -> torch.Tensor:
    out = ids.clone()
    out[:, since:] = 95 - out[:, since:]
    return out


@judge("causal")
def causal(t: Trial) -> float | None:
    """Later tokens are changed: what happens at earlier positions."""
    if not any(s.causal for s in t.plan.sites.stacks):
        return None
    inputs = t.batch(rows=2, tokens=9, padded=False, seed=t.seed)
    since = 4
    other = {**inputs, t.ids: _changed_ids(inputs[t.ids], since)}

    def early(x: torch.Tensor, tap: Tap | None) -> torch.Tensor | None:
        if tap is None:
            return x[:, :since] if x.dim() > 2 else None  # what is pooled is at no token
        return x[..., :since, :] if tap.edit.site.causal and not t.grows and x.dim() > 2 else None

    other = t.marked(other, 7, last=True)
    found = _apart(t.run(inputs), t.run(other), early)
    # which tokens are selected may depend on how long the text is, and where rows stand among them
    if t.grows or any(c.word != "inserted" for e in t.plan.edits for c in e.typing.tokens):
        whole = t.batch(rows=2, tokens=24, padded=False, seed=t.seed, at=(2, 20))
        cut = {
            n: x[:, :12] if n.startswith(t.ids.removesuffix("input_ids")) and x.dim() == 2 else x
            for n, x in whole.items()
        }
        # what follows a text may be foretold by rows behind it
        since = 12 - any(e.prompt is not None and e.prompt.behind is None for e in t.plan.edits)
        with _drawn_by_token():
            found = max(found, _apart(t.run(cut), t.run(whole), early))
    return found


@judge("cache-consistent")
def cached(t: Trial) -> float | None:
    """Decoding in steps with a cache, against one full pass. What is drawn for a pass is drawn for each step."""
    if t.kind not in DECODERS:
        return None
    inputs = t.batch(rows=2, tokens=9, padded=False, seed=t.seed, at=(2, 7))
    inputs = {n: x.double() if x.is_floating_point() else x for n, x in inputs.items()}
    ids, logits, cache, start = inputs.pop(t.ids), [], None, 0
    inputs.pop(t.ids.replace("input_ids", "attention_mask"), None)
    steps: list[list[torch.Tensor]] = []
    encoder = dict(inputs)
    with torch.no_grad(), Exact(), giving(t.model, {"input_ids": inputs.get("input_ids", ids)}):
        torch.manual_seed(0)
        t.seen.clear()
        full = t.at_tokens(t.model(**inputs, **{t.ids: ids}, use_cache=False).logits)
        whole = _decoded(t)
        for n in (3, 1, ids.shape[1] - 4):
            t.seen.clear()
            o = t.model(**encoder, **{t.ids: ids[:, start : start + n]}, **with_cache(t.model, cache), use_cache=True)
            logits.append(t.at_tokens(o.logits))
            steps.append(_decoded(t))
            cache, start = cache_of(o), start + n
            if t.kind in ENCODER_DECODERS:
                encoder = {n: x for n, x in encoder.items() if n == "attention_mask"}
                encoder["encoder_outputs"] = (o.encoder_last_hidden_state,)
    outs = [(torch.cat(parts, -2), y) for *parts, y in zip(*steps, whole, strict=True)]
    return _largest(deviation(x, y) for x, y in [(torch.cat(logits, 1), full), *outs])


def _decoded(t: Trial) -> list[torch.Tensor]:
    """What the edits of the tokens that are decoded yield."""
    own = t.plan.sites.stacks[-1].name
    return (
        []
        if t.grows
        else [x.out for x in t.seen if x.out.dim() > 2 and x.edit.site.tokens == own and x.edit.site.stack == own]
    )


@judge("batch-independent")
def alone(t: Trial) -> float:
    """The other examples of a batch are exchanged: what happens to the first."""
    other = t.batch(seed=t.seed + 1)
    other = {n: torch.cat([x[:1], other[n][1:]]) for n, x in t.inputs.items()}
    return _apart(t.run(t.inputs), t.run(other), lambda x, tap: x[:1])


def _pad(inputs: Inputs, room: int, side: str, stacks: tuple[str, ...]) -> Inputs:
    """More tokens in the ids and masks of these fronts (``""``, ``"decoder_"``), hidden by the mask."""
    out = dict(inputs)
    for front in stacks:
        for name, value in ((f"{front}input_ids", PAD), (f"{front}attention_mask", 0)):
            more = torch.full((inputs[name].shape[0], room), value)
            out[name] = torch.cat([inputs[name], more] if side == "right" else [more, inputs[name]], 1)
    return out


@judge("padding-invariant")
def padded(t: Trial) -> float | None:
    """Pad tokens at the right, and at the left where the model can take them: what happens at the real ones."""
    if t.kind not in PADDED:
        return None
    real = t.batch(rows=2, tokens=6, padded=False, seed=t.seed)
    found = []
    for side in ("right", "left"):
        if side == "left" and t.kind not in PADDED_LEFT:
            continue
        fronts = ("", "decoder_") if t.kind in ENCODER_DECODERS else ("",)
        pair = [real, _pad(real, 3, side, fronts)]
        if t.kind not in ENCODER_DECODERS:
            pair = [{**x, "position_ids": (x["attention_mask"].cumsum(1) - 1).clamp(min=0)} for x in pair]
        with _drawn_by_token(side):
            a, b = (t.run(x) for x in pair)
        found.append(_apart(a, b, _Real(t, real, side)))
    return max(found)


class _Real:
    """Cuts pads away: what is as long as the real tokens is left as it is."""

    def __init__(self, t: Trial, real: Inputs, side: str):
        self.t, self.real, self.side = t, real, side

    def __call__(self, x: torch.Tensor, tap: Tap | None) -> torch.Tensor | None:
        if tap is not None:
            if self.t.grows or x.dim() < 3:
                return None
            stack = tap.edit.site.tokens
            n = self.real["decoder_input_ids" if stack == "decoder" else "input_ids"].shape[1]
            return x[..., :n, :] if self.side == "right" else x[..., -n:, :]
        if x.dim() == 3:
            n = self.real[self.t.ids].shape[1]
            return x[:, :n] if self.side == "right" else x[:, -n:]
        return x if self.side == "right" else None  # these models read the first position, here a pad


# ---------------------------------------------------------------- merging


@judge("mergeable")
def mergeable(t: Trial) -> float:
    """Whether each edit with the linear map beside it is an affine map again: the rest of a least-squares fit of what
    comes out of the two to what goes in, over more vectors than it has inputs.

    The map beside is the one that yields the edit's h, or the only one that reads what it leaves (behind heads and the inner
    activation). Where there is none, nothing can absorb the edit: the deviation is what it does. A weight can be replaced by what
    is the same from input to input.
    """
    pooled = any(e.site.kind.pools for e in t.plan.edits)  # a vector for each example, not for each token
    inputs = t.batch(rows=48 if pooled else 24, tokens=8, padded=False, seed=t.seed)
    if t.kind in ENCODER_DECODERS:  # what is read of a first token that is always the same would be one number
        start = batch("bert", rows=len(inputs[t.ids]), tokens=1, padded=False, seed=t.seed + 3)["input_ids"]
        inputs[t.ids] = torch.cat([start, inputs[t.ids][:, 1:]], 1)
    half = len(inputs[t.ids if t.ids in inputs else next(iter(inputs))]) // 2
    passes, insides = [], []  # two, since what is read of a whole batch is one number in a pass
    for part in ({n: x[:half] for n, x in inputs.items()}, {n: x[half:] for n, x in inputs.items()}):
        with _Inside(t) as inside:
            passes.append(t.run(part))
        insides.append(inside)
    again = t.run({n: x[half:] for n, x in inputs.items()}, seed=1)  # what is drawn is drawn anew
    worst = _apart(passes[1], again, lambda x, tap: x)
    one, two = (p.taps for p in passes)
    with torch.no_grad(), Exact():
        for i, (tap, other) in enumerate(zip(one, two, strict=True)):
            if tap.edit.site.kind.is_weight:
                worst = max(worst, deviation(tap.out, other.out))
                continue
            pairs = [inside.pair(p.taps[:i], p.taps[i], p.taps[i + 1 :]) for p, inside in zip(passes, insides)]
            known = [p for p in pairs if p is not None]
            worst = max(
                worst, deviation(tap.out, tap.h) if len(known) < 2 else _unfit(*(torch.cat(x) for x in zip(*known)))
            )
    return worst


def _unfit(x: torch.Tensor, y: torch.Tensor) -> float:
    """What is left of y [n, out] after the best affine function of x [n, in]."""
    if not torch.isfinite(x).all() or not torch.isfinite(y).all():
        raise Unstable
    x = torch.cat([x, torch.ones_like(x[:, :1])], 1)
    assert x.shape[0] > x.shape[1] + 4, (x.shape, "too few vectors")
    return deviation(x @ torch.linalg.lstsq(x, y, driver="gelsd", rcond=1e-12).solution, y)


class _Inside:
    """What enters each linear map of the model, and what it makes of that by itself."""

    def __init__(self, t: Trial):
        self.t = t
        self.maps = [m for m in t.model.modules() if isinstance(m, nn.Linear) or type(m).__name__ == "Conv1D"]
        self.entered: list[
            tuple[nn.Module, torch.Tensor]
        ] = []  # a module that serves several layers is entered by each
        self.copied: list[tuple[torch.Tensor, torch.Tensor]] = []  # what enters a map's trained copy and what leaves it

    def __enter__(self) -> _Inside:
        def enters(m: nn.Module, args: tuple) -> None:
            self.entered.append((m, args[0]))

        def copies(m: nn.Module, args: tuple, output: torch.Tensor) -> None:
            self.copied.append((args[0][0], output))

        twins = [m for m in self.t.model.modules() if isinstance(m, CopyEdit) and m._base[0] in self.maps]
        self.handles = [m.register_forward_pre_hook(enters) for m in self.maps]
        self.handles += [m.register_forward_hook(copies) for m in twins]
        return self

    def __exit__(self, *_: Any) -> None:
        for handle in self.handles:
            handle.remove()

    def pair(self, before: list[Tap], tap: Tap, after: list[Tap]) -> tuple[torch.Tensor, torch.Tensor] | None:
        """What goes into an edit and its map, and what comes out of both: [vectors, size] each."""
        site = tap.edit.site
        if site.side in ("input", "attention"):
            heads, left = site.kind.has_heads, tap.out
            for later in after:
                left = later.out if later.h.shape == left.shape and torch.equal(later.h, left) else left
            left = _vectors(left, heads)
            readers = {m for m, x in self.entered if x.shape[-1] == left.shape[-1] and torch.equal(_vectors(x), left)}
            return (_vectors(tap.h, heads), _vectors(tap.out, heads)) if len(readers) == 1 else None
        h = tap.h
        for earlier in reversed(before):  # what several rows make of one h counts together
            if earlier.out.shape == h.shape and torch.equal(earlier.out, h):
                h = earlier.h
        weights = [w for w in (*before, *after) if w.edit.site.kind.is_weight and w.edit.site.view == site.view]
        for m, x in self.entered if weights else ():  # what a row left of the map's weight
            if m is self.t.model.get_submodule(site.view.module):
                bias = taken(m.bias, site.view.columns) if m.bias is not None else 0.0
                y = x @ weights[-1].out + bias
                if y.shape == h.shape and deviation(y, h) <= HOLDS:
                    return _vectors(x), _vectors(tap.out)
        for x, y in [*((x, m.forward(x)) for m, x in self.entered), *self.copied]:
            if site.view.columns is not None and site.view.columns.ranges[-1][1] > y.shape[-1]:
                continue  # another map, which has fewer columns
            y = taken(y, site.view.columns)
            if y.shape == h.shape and torch.equal(y, h):
                return _vectors(x), _vectors(tap.out)
        return None


def _vectors(x: torch.Tensor, heads: bool = False) -> torch.Tensor:
    x = x.transpose(1, 2).flatten(2) if heads else x
    return x.reshape(-1, x.shape[-1])


def merged(t: Trial) -> float | None:
    """What the model computes after merging, against before; None where this model refuses (a tied parameter, a bias it has none of)."""
    before = t.run(t.inputs)
    t.seen.clear()  # edits are copied to be merged, with those who watch them and what these have seen
    try:
        with Exact():
            unipelt.merge(t.model, "a")
    except unipelt.PeltError as e:
        assert {d.code for d in e.diagnostics} <= {"E0564", "E0749"}, e
        return None
    try:
        return _outputs_apart(before, t.run(t.inputs))
    finally:
        unipelt.unmerge(t.model)


# ---------------------------------------------------------------- folding


@judge("foldable")
def foldable(t: Trial) -> float | None:
    """Of every expression of a form that learned tensors have a part in: how much it differs from input to input, or where z and
    frozen tensors are any numbers (`x <= z` is always true where z is x; all columns of a constant matrix are one).

    The least counts. Names, their ranges and transposes are tensors already; what calls or reads the base is not made of
    learned tensors alone.
    """
    if not t.plan.edits:
        return None
    other = {
        n: torch.where(x < 90, x + 1, x - 1) if n.endswith("input_ids") else x
        for n, x in t.batch(seed=t.seed + 1).items()
    }
    taps = t.run(t.inputs).taps
    others = t.run(other).taps
    one, two = _values(taps), _values(others)
    loose = [_values([_with_noise(a, z) for a, z in zip(taps, of, strict=True)]) for of in (taps, others)]
    t.randomise(t.seed + 7)
    drawn = _values(t.run(t.inputs).taps)
    by_name = [closed(e, tap) for tap in taps for e in computed(tap)]
    varies = (
        max(deviation(x, y), deviation(v, w))
        for x, y, v, w, z, own in zip(one, two, *loose, drawn, by_name, strict=True)
        if own or deviation(x, z) > SHOWS
    )
    return min(varies, default=float("inf"))


def _with_noise(tap: Tap, other: Tap) -> Tap:
    """An evaluation whose lines read another one's z, and noise in place of frozen tensors."""
    g, names = torch.Generator().manual_seed(0), dict(tap.context.names)
    for t in tap.edit.typing.tensors:
        old = names.get(t.name)
        if t.frozen and isinstance(old, Named) and old.data.is_floating_point():
            names[t.name] = Named(torch.randn(old.data.shape, generator=g, dtype=old.data.dtype), old.axes)
    if "z" in names:
        names["z"] = other.context.names["z"]
    context = replace(tap.context, names=names)
    with torch.no_grad(), Exact():
        for s in tap.edit.row.form:
            if isinstance(s, Let) and names.keys() >= set(s.names):  # no start, which is computed once
                bind(s, context)
    return replace(tap, context=context)


def _values(taps: list[Tap]) -> list[torch.Tensor]:
    with torch.no_grad(), Exact():
        found = [evaluate(e, tap.context) for tap in taps for e in computed(tap)]
        return [v.data.clone() if isinstance(v, Named) else torch.tensor(float(v)) for v in found]  # type: ignore[arg-type]


def folding(t: Trial) -> float:
    """The method with its folds stored, against as it is."""
    before = t.run(t.inputs)
    method, tensors = folded(t.model, "a", t.plan, unipelt.state_dict(t.model, "a"))
    with _acting(t, method, tensors):
        return _outputs_apart(before, t.run(t.inputs))


# ---------------------------------------------------------------- chance and order


@judge("deterministic in training")
def deterministic(t: Trial) -> float:
    """Passes of one batch in training, from one state of the generator and from others."""
    with t.training():
        first, *others = [t.run(t.inputs, seed=i) for i in range(4)]
    return _largest(_apart(first, o, lambda x, tap: x) for o in others)


@judge("rows commute")
def commute(t: Trial) -> float | None:
    """The rows in the other order, with the same tensors: what the model computes, and what each site is left with."""
    other = replace(t.method, rows=t.method.rows[::-1])
    if len(t.method.rows) < 2:
        return None
    try:
        analyse(other)
    except unipelt.PeltError as e:
        assert {d.code for d in e.diagnostics} == {"E0376"}, e  # a row reads tensors of one above it
        return None
    before = t.run(t.inputs)
    with _acting(t, other, unipelt.state_dict(t.model, "a")):
        after = t.run(t.inputs)
    last = [{x.edit.site.label: x.out for x in p.taps} for p in (before, after)]
    sites = _largest(deviation(last[0][n], last[1][n]) for n in last[0])
    return max(sites, _outputs_apart(before, after))
