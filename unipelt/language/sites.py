"""The vocabulary of sites: one entry for each, with everything that is said of it, from what a row may read there to what a picture shows.

A type is written as axes and trailing sizes. The sizes here are symbols; a plan binds them to a model's numbers.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import lru_cache
from math import prod
from typing import Literal

from .sizes import Size
from .types.owners import Owner


@dataclass(frozen=True, slots=True)
class TensorType:
    """Named axes (unordered, kept sorted) and trailing sizes."""

    axes: frozenset[str]
    sizes: tuple[Size, ...]

    @property
    def entries(self) -> Size:
        """Entries of one copy, its axes not counted."""
        return prod(self.sizes, start=Size.of(1))

    def __str__(self) -> str:
        return ", ".join([*sorted(self.axes, key=axis_order), "[" + ", ".join(map(str, self.sizes)) + "]"])


def united_axes(*groups: frozenset[str]) -> frozenset[str]:
    """Axes unite by name; head refines group."""
    axes = frozenset().union(*groups)
    return axes - {"group"} if "head" in axes else axes


AXES = ("batch", "group", "head", "token")
#: The size that says how many entries an axis of a site has.
COUNTED = {"head": "heads", "group": "groups", "expert": "d_experts"}


def axis_order(name: str) -> tuple[int, str]:
    """Axes in the order in which tensors lay them out: batch, declared ones, group, head, token."""
    rank = {"batch": 0, "group": 2, "head": 2, "token": 3}
    return rank.get(name, 1), name


def tensor(axes: str, *sizes: str | int) -> TensorType:
    return TensorType(frozenset(axes.split()), tuple(Size.of(s) for s in sizes))


#: Where an edit hangs: on what leaves a module, on what enters it, in its attention function, or where tokens enter the model.
Side = Literal["output", "input", "attention", "prompt"]
#: How often a site is there: in each layer; once in each stack, in the stack that a model's input enters, in its head, or between
#: two stacks.
Times = Literal["layers", "stacks", "input", "head", "between"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteSignature:
    """All that is said of a site. Nothing else asks for a site's name."""

    name: str
    h: TensorType
    x: TensorType | None = None
    parallel: str | None = "x"  # what `insert parallel` reads
    scope: tuple[tuple[str, TensorType], ...] = ()  # what else may be read
    numbers: tuple[str, ...] = ()  # numbers that may be read
    #: The frozen modules that may be called (``attn.k(P)``): name → (input size, output size).
    bases: tuple[tuple[str, tuple[str, str]], ...] = ()
    owner: Owner = Owner()  # of a tensor that does not say whose it is

    side: Side = "output"
    times: Times = "layers"
    entry: str = ""  # the entry of an anatomy that names the module, where it is another site's
    cross: bool = False  # only in layers that read an encoder
    mixes: bool = False  # only in layers with a mixer
    gated: bool = False  # only where the feed-forward layer has a gate
    instead: tuple[str, ...] = ()  # the projections in whose place it yields what attention reads
    among: bool = False  # whether rows may be put among the tokens there, behind the blocks before
    tokens: str = ""  # the stack whose tokens the axis `token` is, where it is another one
    positions: bool = True  # whether tokens have their positions there
    into: str = ""  # the linear map that can absorb an edit
    pools: bool = False  # whether h may be one vector for each example, which some models decide
    probes: bool = False  # whether `layers` says which layer's states `x` is
    by_path: bool = False  # whether a regular expression says which modules of a model it is
    of: str = ""  # where h is a parameter of the base: the site whose module holds it
    of_norm: bool = False  # the norm of that site's sublayer holds it
    parameter: str = "weight"  # what that module calls it; empty where only a pass tells (`View.parameter`)

    inside: str  # in a picture, what the base does there
    x_is: str = ""  # in words
    h_is: str
    shown_by: str = ""  # by what a pass shows it, in a model that no anatomy describes

    @property
    def types(self) -> dict[str, TensorType]:
        """Everything that may be read or changed, with its type."""
        return {"h": self.h, **({"x": self.x} if self.x is not None else {}), **dict(self.scope)}

    def described(self) -> dict[str, str]:
        """What a form may read here, in words."""
        also = [*dict(self.scope), *self.numbers, *(f"{n}(…)" for n, _ in self.bases), *["heads(…)"] * self.has_heads,
                *["prepend(delta, h)"] * (self.takes_rows or self.among)]  # fmt: skip
        x = self.x_is if self.x is not None else ""
        return {"x": x, "h": self.h_is, "insert parallel reads": self.parallel or "", "also": ", ".join(also)}

    def without(self, names: frozenset[str]) -> SiteSignature:
        """The signature of a place at which some of ``x``, ``W`` and ``bias`` cannot be read; without ``W`` nothing absorbs an edit."""
        x = {"x": None, "parallel": None} if "x" in names else {}
        scope = tuple((n, t) for n, t in self.scope if n not in names)
        return replace(self, scope=scope, into="" if "W" in names else self.into, **x)  # type: ignore[arg-type]

    @property
    def outside_the_layers(self) -> bool:
        return self.times != "layers"

    @property
    def once(self) -> bool:
        """Whether it is there once in a model, however many stacks that has."""
        return self.times in ("head", "between")

    @property
    def is_weight(self) -> bool:
        """Whether h is a weight of the base, which no example and no token passes."""
        return not self.h.axes & {"batch", "token"}

    @property
    def has_weight(self) -> bool:
        """Whether it is a linear map (or its weight), which rows may read as ``W``."""
        return any(name == "W" for name, _ in self.scope) and (not self.is_weight or bool(self.into))

    @property
    def own_axes(self) -> frozenset[str]:
        """The axes of h that a form may name besides those that it declares: of experts. (What has heads may name groups as well.)"""
        return self.h.axes - frozenset(AXES)

    @property
    def has_heads(self) -> bool:
        """Whether h has the axis of attention heads."""
        return "head" in self.h.axes

    @property
    def is_sublayer(self) -> bool:
        """Whether h is added to a residual."""
        return any(name == "residual" for name, _ in self.scope)

    @property
    def sublayer(self) -> str:
        """The sublayer that it is or lies in: nothing for sites of no sublayer."""
        first = self.name.split(".")[0]
        return first if first in SITES and SITES[first].is_sublayer else ""

    @property
    def has_labels(self) -> bool:
        """Whether h has an entry for each label, of which an adapter may have its own."""
        return self.h.sizes[-1] == Size.of("labels")

    @property
    def takes_rows(self) -> bool:
        """Whether tokens enter the model there, among which rows may be put, or in their place."""
        return self.side == "prompt"


_TOKEN = tensor("batch token", "d_model")
_HEAD = tensor("batch head token", "d_head")


def _sublayer(name: str, into: str, shown_by: str, cross: bool = False, mixes: bool = False) -> SiteSignature:
    return SiteSignature(
        name=name, h=_TOKEN, x=_TOKEN, scope=(("residual", _TOKEN),), bases=((f"{name}.norm", ("d_model", "d_model")),),
        cross=cross, mixes=mixes, into=into,
        inside="the sublayer", x_is="the sublayer's input", h_is="its output before the residual sum",
        shown_by=f"{shown_by}, added to the residual",
    )  # fmt: skip


def _projection(
    name: str,
    d_x: str,
    d_out: str,
    shown_by: str,
    cross: bool = False,
    mixes: bool = False,
    tokens: str = "",
    instead: tuple[str, ...] = (),
    gated: bool = False,
) -> SiteSignature:
    return SiteSignature(
        name=name, h=tensor("batch token", d_out), x=tensor("batch token", d_x),
        scope=(("W", tensor("", d_x, d_out)), ("bias", tensor("", d_out))), cross=cross, mixes=mixes, tokens=tokens,
        instead=instead, gated=gated, into=name,
        inside="x W + bias", x_is="its input", h_is="its output", shown_by=shown_by,
    )  # fmt: skip


def _heads(name: str, cross: bool = False) -> SiteSignature:
    part = name.split(".")[0]
    bases = tuple((f"{part}.{n}", ("d_model", "d_q" if n == "q" else "d_kv")) for n in "qkv")
    return SiteSignature(
        name=name, h=_HEAD, x=_TOKEN, parallel="q", scope=(("q", _HEAD), ("log_mass", tensor("batch head token"))), numbers=("scale",),
        bases=bases, owner=Owner("site", frozenset(["head"])), side="attention", cross=cross, into=f"{part}.o",
        inside="softmax(q Kᵀ) V", x_is="the sublayer's input", h_is="each head's output",
        shown_by="what an attention function of transformers' interface yields",
    )  # fmt: skip


def _embedded(name: str, h_is: str, shown_by: str, positions: bool) -> SiteSignature:
    return SiteSignature(
        name=name, h=_TOKEN, parallel=None, scope=(("ids", tensor("batch token")),), side="prompt", times="input", positions=positions,
        inside="the embedded tokens", h_is=h_is, shown_by=shown_by,
    )  # fmt: skip


def _entered(
    name: str, entry: str, what: str, h_is: str, cross: bool = False, mixes: bool = False, among: bool = False
) -> SiteSignature:
    return SiteSignature(
        name=name,
        h=_TOKEN,
        parallel=None,
        side="input",
        entry=entry,
        inside=what,
        h_is=h_is,
        shown_by=h_is,
        cross=cross,
        mixes=mixes,
        among=among,
    )


def _sublayer_input(part: str, cross: bool = False, mixes: bool = False) -> SiteSignature:
    h_is = "enters the sublayer, behind a norm before it"
    return _entered(f"{part}.input", f"{part}.x", "the sublayer's input", h_is, cross, mixes)


def _parameter(name: str, of: str, what: str, *sizes: str, norm: bool = False, gives: str = "") -> SiteSignature:
    """A parameter of the module of a site that is no projection, or of the norm of a sublayer."""
    at, h = SITES[of], tensor("", *sizes)
    return SiteSignature(name=name, h=h, parallel=None, scope=(("W", h),), of=of, of_norm=norm, parameter=name.rpartition(".")[2],
                         times=at.times, cross=at.cross, mixes=at.mixes, inside=what, h_is=what, shown_by=gives)  # fmt: skip


def _of_experts(name: str, shown_by: str, *sizes: str, gated: bool = False) -> SiteSignature:
    """The weights of a feed-forward layer's experts, one matrix for each, which their module has in one parameter."""
    h = tensor("expert", *sizes)
    return SiteSignature(
        name=f"ffn.experts.{name}.weight", h=h, parallel=None, scope=(("W", h),), owner=Owner("site", h.axes), gated=gated, parameter="",
        inside="the experts' weights", h_is="the weight of each expert", shown_by=shown_by,
    )  # fmt: skip


SITES: dict[str, SiteSignature] = {
    s.name: s
    for s in (
        _sublayer("attn", "attn.o", "softmax of q kᵀ"),
        _sublayer("cross", "cross.o", "softmax of q kᵀ, the keys not of the block's own tokens", cross=True),
        _sublayer("ffn", "ffn.down", "maps of each token by itself"),
        SiteSignature(name="block", h=_TOKEN, x=_TOKEN, inside="the block", x_is="enters the block", h_is="leaves the block", shown_by="calls of the modules of one list follow one another"),
        _projection("attn.q", "d_model", "d_q", "the last projection before the softmax's queries"),
        _projection("attn.k", "d_model", "d_kv", "the last projection before the softmax's keys"),
        _projection("attn.v", "d_model", "d_kv", "the last projection before what the softmax weighs"),
        _projection("attn.o", "d_q", "d_model", "the first projection behind attention"),
        _projection("cross.q", "d_model", "d_q", "the last projection before the softmax's queries", cross=True),
        _projection("cross.k", "d_model", "d_kv", "the last projection before the softmax's keys", cross=True, tokens="encoder"),
        _projection("cross.v", "d_model", "d_kv", "the last projection before what the softmax weighs", cross=True, tokens="encoder"),
        _projection("cross.o", "d_q", "d_model", "the first projection behind attention", cross=True),
        _projection("ffn.up", "d_model", "d_ff", "reads the sublayer's input; where there is a gate, it does not bend before their product"),
        _projection("ffn.gate", "d_model", "d_ff", "reads the sublayer's input and bends before a product", gated=True),
        _projection("ffn.down", "d_ff", "d_model", "the last projection before the sum"),
        _heads("attn.heads"),
        _heads("cross.heads", cross=True),
        SiteSignature(
            name="ffn.hidden", h=tensor("batch token", "d_ff"), x=_TOKEN, side="input", entry="ffn.down", into="ffn.down",
            inside="the inner activation", x_is="the sublayer's input", h_is="the inner activation", shown_by="enters the last projection before the sum",
        ),
        _embedded("embed", "the embedded tokens", "enters the first block", positions=True),
        _embedded("embed.words", "the embedded words, before positions are added", "entries of the table of words", positions=False),
        SiteSignature(name="final", h=_TOKEN, x=_TOKEN, times="stacks", inside="the last norm", x_is="leaves the last block", h_is="leaves the norm behind it, where there is one", shown_by="a norm that reads what leaves the last block"),
        SiteSignature(
            name="head", h=tensor("batch token", "labels"), x=_TOKEN, times="head", into="head", pools=True, probes=True,
            inside="the head", x_is="its input", h_is="its output", shown_by="yields the logits, outside the base model",
        ),
        _sublayer("mixer", "mixer.out", "tokens read one another without a softmax of q kᵀ", mixes=True),
        _projection("mixer.in", "d_model", "d_mix", "the first projection of the sublayer", mixes=True),
        _projection("mixer.out", "d_inner", "d_model", "the last projection before the sum", mixes=True),
        _projection("ffn.router", "d_model", "d_experts", "experts are chosen by its largest scores"),
        _projection("attn.q_a", "d_model", "d_q_rank", "the projection before `attn.q_b`"),
        _projection("attn.q_b", "d_q_rank", "d_q", "the last projection before the softmax's queries", instead=("attn.q",)),
        _projection("attn.kv_a", "d_model", "d_kv_a", "the projection before `attn.kv_b`"),
        _projection("attn.kv_b", "d_kv_rank", "d_kv_b", "the last projection before the softmax's keys and what it weighs", instead=("attn.k", "attn.v")),
        _entered("block.input", "block", "the block's input", "enters the block", among=True),
        _sublayer_input("attn"),
        _sublayer_input("cross", cross=True),
        _sublayer_input("ffn"),
        _sublayer_input("mixer", mixes=True),
        SiteSignature(
            name="projector", h=_TOKEN, x=tensor("batch token", "d_x"), times="between",
            inside="the projector", x_is="what one tower yields", h_is="what the next one reads of it", shown_by="the first map of what leaves a tower, before another reads it",
        ),
    )
}  # fmt: skip

#: Parameters of the base that are sites as well: like the weight of a projection (`attn.q.weight`, which is derived), what is
#: modified is the parameter itself.
PARAMETERS: dict[str, SiteSignature] = {
    s.name: s
    for s in (
        _parameter("embed.weight", "embed.words", "the table of words, a row for each", "vocab", "d_model", gives="the table whose rows are looked up"),
        _parameter("head.weight", "head", "the weight of the map that yields the logits", "d_model", "labels", gives="the last map of the head"),
        _parameter("projector.weight", "projector", "the projector's weight, where it is one map", "d_x", "d_model", gives="the first map of what leaves a tower"),
        *(
            _parameter(f"{at}.{name}", at.removesuffix(".norm"), what, "d_model", norm=at != "final", gives="a parameter of the norm")
            for at in ("attn.norm", "cross.norm", "ffn.norm", "mixer.norm", "final")
            for name, what in (("weight", "what the norm multiplies by"), ("bias", "what the norm adds"))
        ),
        _of_experts("up", "one matrix for each expert; where there is a gate, it does not bend before their product", "d_model", "d_expert_ff"),
        _of_experts("gate", "one matrix for each expert; it bends before a product", "d_model", "d_expert_ff", gated=True),
        _of_experts("down", "one matrix for each expert, the last before their sum", "d_expert_ff", "d_model"),
    )
}  # fmt: skip

#: Sizes every site has in scope besides ``d_in`` and ``d_out``, with what they are. A model has those of the sites it has.
#: New ones begin with ``d_``: other names may be those of arguments.
SIZES = {
    "d_model": "size of a token", "d_x": "size of what is read there", "d_head": "size of a head",
    "d_ff": "inner size of the feed-forward layer", "d_kv": "all heads of the keys or values together", "d_q": "all heads of the queries together",
    "vocab": "entries of the vocabulary", "heads": "attention heads", "groups": "heads of the keys and values", "labels": "labels of the head",
    "d_mix": "size of what a mixer's first projection yields", "d_inner": "size of what a mixer's last projection reads",
    "d_experts": "experts among which a router chooses", "d_expert_ff": "inner size of an expert", "d_q_rank": "size between the two projections of the queries",
    "d_kv_a": "size of what the keys' and values' first projection yields",
    "d_kv_rank": "size of what their second projection reads of it", "d_kv_b": "size of what their second projection yields",
}  # fmt: skip
#: Numbers that a spec may read; ``layer`` counts from 0 within its stack.
NUMBERS = ("layer", "depth")
#: Names that forms, gates and compositions read or bind and that nothing else may rebind.
RESERVED = frozenset(["x", "h", "z", "q", "k", "v", "W", "bias", "residual", "log_mass", "scale", "delta", "out", "g"])
#: Names of stacks that many models have. Others are called as their models call them (``qformer``).
STACKS = ("encoder", "decoder", "text", "vision", "audio")
#: What a path begins with that names a site without its stack.
FIRST_WORDS = frozenset(s.split(".")[0] for s in SITES)
#: The site that a regular expression of modules' paths names, which is matched as a whole.
_MODULE = re.compile(r'module\("(.*)"\)', re.DOTALL)


def site_name(path: str) -> tuple[str | None, str]:
    """``decoder.attn.q`` → (``decoder``, ``attn.q``), and so with any name in front of a site; a bare name means every main stack."""
    first, _, rest = path.partition(".")
    front = bool(rest) and first.isidentifier() and first not in FIRST_WORDS
    return (first, rest) if front and (first in STACKS or signature(rest) is not None) else (None, path)


@lru_cache(maxsize=1024)
def signature(name: str) -> SiteSignature | None:
    """The signature of a site name without its stack; those of ``module("regex")`` and ``SITE.weight`` are derived."""
    expression = regular(name)
    if expression is not None:
        return replace(_projection(name, "d_x", "d_out", ""), by_path=True, inside="x W + bias where it is a linear map",
                       x_is="what enters the module", h_is="what leaves it")  # fmt: skip
    if name in PARAMETERS:
        return PARAMETERS[name]
    base, _, last = name.rpartition(".")
    site = signature(base) if last == "weight" else None
    if site is None or not site.has_weight:
        return SITES.get(name)
    W = dict(site.scope)["W"]
    return SiteSignature(name=name, h=W, parallel=None, scope=(("W", W),), into=base, of=base, cross=site.cross, mixes=site.mixes, gated=site.gated,
                         times=site.times, by_path=site.by_path, instead=site.instead,
                         inside="the weight W", h_is="the weight itself")  # fmt: skip


def regular(name: str) -> str | None:
    """The regular expression of ``module("regex")``; None of another site."""
    found = _MODULE.fullmatch(name)
    return found[1] if found else None
