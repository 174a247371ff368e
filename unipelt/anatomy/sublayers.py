"""What a sublayer is, and its parts: attention by its softmax of products of two activations, a feed-forward layer by maps of
each token by itself, experts by a choice of the largest scores, and a mixer where it is neither."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from .flow import Added, Block
from .record import SAME, Key, Step

#: Operations that bend: what passes one is no linear function of what entered it.
BENDS = frozenset(
    "relu gelu silu tanh sigmoid mish hardswish hardsigmoid hardtanh leaky_relu elu softplus clamp clamp_min clamp_max pow erf exp "
    "threshold where log_sigmoid_forward relu_ silu_ _prelu_kernel maximum sin square celu selu glu".split()
)
#: Operations by which a token reads others, besides products of two activations.
_MIXES = ("conv", "scan", "cumsum", "cumprod", "fft", "logcumsumexp", "roll", "flip", "constant_pad_nd")
_CHOOSES = ("topk", "sort", "argmax", "max")
_PRODUCTS = ("bmm", "baddbmm", "mm", "matmul")
#: A map of so many times fewer positions than its sublayer has reads pooled tokens: it yields a factor for the channels.
_POOLED = 64


@dataclass(frozen=True, slots=True)
class Projected:
    """A projection, and the columns of its output that are meant, in ascending order (None: all)."""

    step: Step
    columns: tuple[int, ...] | None = None


@dataclass(slots=True)
class Sublayer:
    """One sublayer. ``parts`` are its projections by the last word of their sites' names; ``attention`` is (q, k, v, output)."""

    kind: str
    added: Added
    inside: set[int]
    stop: list[Key]  # what the stream was before it
    parts: dict[str, Projected] = field(default_factory=dict)
    attention: tuple[Key, Key, Key, Key] | None = None
    asks: str = ""  # the module that asks transformers' interface for its attention function
    reasons: dict[str, str] = field(default_factory=dict)  # of parts that it lacks
    experts: set[int] = field(default_factory=set)

    @property
    def first(self) -> list[Step]:
        """The projections that read what the sublayer reads."""
        names = ("q_a" if "q_a" in self.parts else "q", "up", "gate", "in", "router")
        return [p.step for n, p in self.parts.items() if n in names]


def sublayers(b: Block) -> list[Sublayer]:
    """The sublayers of a block, in the order in which they are added to its stream."""
    found = [_sublayer(b, a, [t.total for t in b.added[:i]]) for i, a in enumerate(b.added)]
    kinds = {s.kind for s in found}
    if kinds & {"attn", "cross"} and "ffn" not in kinds:
        # convolutions stand beside attention as feed-forward layers do
        mixing = [s for s in found if s.kind == "mixer" and _convolves(b, s)]
        if mixing:
            again = mixing[-1]
            again.parts.clear()
            again.reasons.clear()
            _feed_forward(b, again, [s for i in sorted(again.inside) if (s := b.r.steps[i]).weight])
    return found


def _convolves(b: Block, s: Sublayer) -> bool:
    """Whether tokens read their neighbours by convolutions alone."""
    mixing = [t for i in s.inside if _mixes(b, t := b.r.steps[i])]
    return all(t.op in ("convolution", "constant_pad_nd") for t in mixing) and any(t.weight for t in mixing)


def _sublayer(b: Block, a: Added, before: list[Key]) -> Sublayer:
    """What is added there; ``before`` are the sums that the stream was before it."""
    inside = b.walk(a.h, [a.residual, *before])
    steps = [b.r.steps[i] for i in sorted(inside)]
    found = Sublayer("", a, inside, [a.residual, *before])
    core = _attention(b, steps)
    if core is not None:
        _attention_parts(b, found, *core)
        return found
    chooses = [s for s in steps if s.op in _CHOOSES and any(b.nearest(i, found.stop) for i in s.ins)]
    if chooses:
        _experts(b, found, steps, chooses[0])
    elif any(_mixes(b, s) for s in steps):
        _mixer(b, found, steps)
    else:
        _feed_forward(b, found, [s for s in steps if s.weight])
    return found


def _mixes(b: Block, s: Step) -> bool:
    """Whether tokens may read each other there."""
    if s.weight:
        return s.op == "convolution"
    if s.op in _PRODUCTS:
        return len(b.given(s)) > 1 and all(b.projections(i) for i in b.given(s)[-2:])
    return any(w in s.op for w in _MIXES)


# ---------------------------------------------------------------- attention


def _attention(b: Block, steps: list[Step]) -> tuple[tuple[Key, Key, Key, Key], str] | None:
    """(q, k, v, output) and the module that asked for the function; none where no softmax of products is."""
    for s in steps:
        if s.op == "attention":
            return (s.ins[0], s.ins[1], s.ins[2], s.outs[0]), s.module
        if "scaled_dot_product" in s.op and len(s.ins) > 2:
            return (s.ins[0], s.ins[1], s.ins[2], s.outs[0]), ""
    for s in steps:
        if "softmax" in s.op and (found := _around(b, s, steps)) is not None:
            return found, ""
    return None


def _around(b: Block, soft: Step, steps: list[Step]) -> tuple[Key, Key, Key, Key] | None:
    """(q, k, v, output) around a softmax of products of two activations; a router's softmax is none."""
    scores = [
        s
        for i in sorted(b.walk(soft.ins[0], past=False))
        if (s := b.r.steps[i]).op in _PRODUCTS and not s.weight and len(b.given(s)) > 1
    ]
    if not scores:
        return None
    of_the_stream = [s for s in scores if all(i in b.streams for i in b.given(s)[-2:])]
    q, k = b.given((of_the_stream or scores)[0])[-2:]
    reached = set(soft.outs)
    for s in steps:
        if s.at > soft.at and any(i in reached for i in s.ins):
            others = [i for i in b.given(s) if i not in reached]
            if s.op in _PRODUCTS and not s.weight and others:
                return q, k, others[0], s.outs[0]
            if s.weight:
                return None
            reached.update(s.outs)
    return None


def _attention_parts(b: Block, found: Sublayer, core: tuple[Key, Key, Key, Key], asks: str) -> None:
    q, k, v, out = core
    found.attention, found.asks = core, asks
    stop = found.stop
    crosses = k not in b.streams and q in b.streams
    found.kind = "cross" if crosses else "attn"
    for name, value in (("q", q), ("k", k), ("v", v)):
        behind = b.nearest(value, stop)
        if not crosses and any(set(s.ins) & b.streams for s in behind):  # positions have projections of their own
            behind = [s for s in behind if set(s.ins) & b.streams]
        if len(behind) != 1:
            found.reasons[name] = _several(behind) if behind else "no projection of the block yields it"
            continue
        columns = b.columns(behind[0], value, stop)
        width = b.r.width(behind[0].outs[0])
        if columns is None or not columns:
            found.reasons[name] = f"which columns of `{behind[0].weight}` are its own cannot be told"
        else:
            found.parts[name] = Projected(behind[0], None if len(columns) == width else tuple(columns))
    _apart(found)
    _latent(b, found, stop)
    after = _after(b, out, found.inside)
    if len(after) == 1:
        found.parts["o"] = Projected(after[0])
    else:
        found.reasons["o"] = _several(after) if after else "no projection reads what attention yields"


def _several(steps: Iterable[Step]) -> str:
    return "several projections yield it: " + ", ".join(f"`{s.weight}`" for s in steps)


def _apart(found: Sublayer) -> None:
    """Where two parts have the same columns of one projection, the numbers of both are one, and neither is a place of its own."""
    names = [n for n in ("q", "k", "v") if n in found.parts]
    for one in names:
        for other in names:
            a, c = found.parts.get(one), found.parts.get(other)
            if one < other and a is not None and c is not None and a.step.at == c.step.at:
                if a.columns is None or c.columns is None or set(a.columns) & set(c.columns):
                    for n in (one, other):
                        found.parts.pop(n)
                        found.reasons[n] = f"`{a.step.weight}` yields the same numbers for `{one}` and `{other}`"


def _latent(b: Block, found: Sublayer, stop: list[Key]) -> None:
    """Latent attention: queries and keys are made of a few numbers, which another projection yields."""
    for names, part in ((("q_a", "q_b"), "q"), (("kv_a", "kv_b"), "v")):
        inner = found.parts.get(part)
        if inner is None:
            continue
        before = [s for i in inner.step.ins if i in b.behind for s in b.nearest(i, stop)]
        if len(before) == 1 and before[0].op == "projection":
            found.parts[names[0]], found.parts[names[1]] = Projected(before[0]), Projected(inner.step)


def _after(b: Block, key: Key, inside: set[int]) -> list[Step]:
    """The projections that read a value with no other between."""
    reached, found = {key}, []
    for at in sorted(inside):
        s = b.r.steps[at]
        if any(i in reached for i in s.ins):
            if s.weight:
                found.append(s)
            else:
                reached.update(s.outs)
    return found


# ---------------------------------------------------------------- feed-forward layers


def _feed_forward(b: Block, found: Sublayer, maps: list[Step]) -> None:
    found.kind = "ffn"
    stop = found.stop
    down = b.nearest(found.added.h, stop)
    if len(down) != 1 or len(maps) < 2:
        found.reasons["down"] = _several(down) if len(down) > 1 else "it has one projection" if down else "it has none"
        if len(maps) == 1 and len(down) == 1:
            found.kind = "mixer"
            found.parts["in"] = found.parts["out"] = Projected(down[0])
        return
    found.parts["down"] = Projected(down[0])
    _gated(b, found, down[0], stop)


def _gated(b: Block, found: Sublayer, down: Step, stop: list[Key]) -> None:
    """What makes the inner activation: one projection, or the product of two, of which one bends before it."""
    (hidden,) = down.ins[:1]
    made = product(b, hidden)
    factors = b.given(made)[-2:] if made is not None else [hidden]
    if len(factors) == 2:
        behind = [b.nearest(f, stop) for f in factors]
        bent = [_bends(b, f, stop) for f in factors]
        if all(len(n) == 1 for n in behind) and bent[0] != bent[1]:
            for factor, (step,), gate in zip(factors, behind, bent):
                columns = b.columns(step, factor, stop)
                width = b.r.width(step.outs[0])
                if columns:
                    found.parts["gate" if gate else "up"] = Projected(
                        step, None if len(columns) == width else tuple(columns)
                    )
            a, c = found.parts.get("gate"), found.parts.get("up")
            if (
                a is not None
                and c is not None
                and a.step.at == c.step.at
                and (a.columns is None or c.columns is None or set(a.columns) & set(c.columns))
            ):
                del found.parts["gate"]
                found.parts["up"] = Projected(c.step)
            return
    up = b.nearest(hidden, stop)
    while len(up) == 1 and _by_channels(b, up[0]):
        up = b.nearest(up[0].ins[0], stop)
    if len(up) == 1:
        found.parts["up"] = Projected(up[0])
    else:
        found.reasons["up"] = _several(up) if up else "no projection yields the inner activation"


def _by_channels(b: Block, s: Step) -> bool:
    """Whether a convolution takes each channel by itself."""
    return s.op == "convolution" and len(s.args) > 8 and s.args[8] == b.r.width(s.ins[0]) > 1


def product(b: Block, key: Key) -> Step | None:
    """The product of two activations that a value is, behind norms and copies."""
    for _ in range(8):
        s = b.made.get(key)
        if s is None:
            return None
        given = [i for i in b.given(s) if i in b.behind and b.behind[i]]
        if (
            s.op == "mul"
            and len(given) == 2
            and given[0] != given[1]
            and all(b.r.shapes[i] == b.r.shapes[s.outs[0]] for i in given)
        ):
            return s
        if not given or s.weight or s.op not in SAME:
            return None
        key = given[0]
    return None


def _bends(b: Block, key: Key, stop: list[Key]) -> bool:
    return any(b.r.steps[i].op in BENDS for i in b.walk(key, stop, past=False))


def _experts(b: Block, found: Sublayer, steps: list[Step], choice: Step) -> None:
    """Experts that a router chooses. Projections of a shared expert, which every token passes, are those of the layer."""
    found.kind = "ffn"
    stop = found.stop
    router = [s for i in choice.ins for s in b.nearest(i, stop)]
    if len(router) == 1:
        found.parts["router"] = Projected(router[0])
    maps = [s for s in steps if s.weight and s not in router]
    shared = [s for s in maps if s.op == "projection" and b.r.width(s.ins[0]) > 1 and not _chosen(b, s, choice)]
    found.experts = {s.at for s in maps if s not in shared}
    last = [s for s in b.nearest(found.added.h, stop) if s in shared]
    down = [s for s in last if len(b.walk(s.ins[0], stop) & {t.at for t in shared}) >= 1]
    if len(down) == 1:
        found.parts["down"] = Projected(down[0])
        _gated(b, found, down[0], stop)
    else:
        why = "its projections are those of experts, of which a token passes some"
        found.reasons.update({n: why for n in ("up", "gate", "down")})


def _chosen(b: Block, s: Step, choice: Step) -> bool:
    """Whether what a projection reads depends on which experts were chosen."""
    return choice.at in b.walk(s.ins[0])


# ---------------------------------------------------------------- mixers


def _mixer(b: Block, found: Sublayer, steps: list[Step]) -> None:
    found.kind = "mixer"
    stop = found.stop
    tokens = b.r.positions(found.added.h)
    maps = [s for s in steps if s.weight and s.op != "convolution" and b.r.positions(s.outs[0]) * _POOLED >= tokens]
    places = {s.at for s in maps}
    first = [s for s in maps if not any(b.walk(i, stop) & places for i in s.ins)]
    last = b.nearest(found.added.h, stop)
    if len(first) == 1:
        found.parts["in"] = Projected(first[0])
    else:
        found.reasons["in"] = _several(first) if first else "no projection reads its input"
    if len(last) == 1:
        found.parts["out"] = Projected(last[0])
    else:
        found.reasons["out"] = _several(last) if last else "no projection yields its output"
