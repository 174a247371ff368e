"""The vocabulary of sites: one typed signature for each, as in the design's table "What is in scope".

A type is written as axes and trailing sizes. The sizes here are symbols; a plan binds them to a model's numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from .sizes import Size


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


def merged_axes(*groups: frozenset[str]) -> frozenset[str]:
    """Axes unite by name; head refines group."""
    axes = frozenset().union(*groups)
    return axes - {"group"} if "head" in axes else axes


AXES = ("batch", "group", "head", "token")


def axis_order(name: str) -> tuple[int, str]:
    """Axes in the order in which tensors lay them out: batch, declared ones, group, head, token."""
    rank = {"batch": 0, "group": 2, "head": 2, "token": 3}
    return rank.get(name, 1), name


def tensor(axes: str, *sizes: str | int) -> TensorType:
    return TensorType(frozenset(axes.split()), tuple(Size.of(s) for s in sizes))


@dataclass(frozen=True, slots=True)
class SiteSignature:
    """What a site binds. ``z`` is what ``insert parallel`` reads; ``scope`` the further names; ``bases`` the frozen
    base modules that may be called (``attn.k(P)``): name → (input size, output size)."""

    name: str
    family: str
    h: TensorType
    x: TensorType | None
    parallel: str | None
    scope: tuple[tuple[str, TensorType], ...] = ()
    bases: tuple[tuple[str, tuple[str, str]], ...] = ()
    implied: tuple[str, ...] = ()  # axes that every learned tensor at this site gets unless a scope is named


_TOKEN = tensor("batch token", "d_model")
_HEAD = tensor("batch head token", "d_head")


def _sublayer(name: str) -> SiteSignature:
    return SiteSignature(
        name, "sublayer", _TOKEN, _TOKEN, "x", (("residual", _TOKEN),), ((f"{name}.norm", ("d_model", "d_model")),)
    )


def _projection(name: str, d_x: str, d_out: str) -> SiteSignature:
    x, h = tensor("batch token", d_x), tensor("batch token", d_out)
    return SiteSignature(name, "projection", h, x, "x", (("W", tensor("", d_x, d_out)), ("bias", tensor("", d_out))))


def _heads(name: str) -> SiteSignature:
    scope = (("q", _HEAD), ("log_mass", tensor("batch head token")))
    part = name.split(".")[0]
    bases = ((f"{part}.k", ("d_model", "d_kv")), (f"{part}.v", ("d_model", "d_kv")), (f"{part}.q", ("d_model", "d_q")))
    return SiteSignature(name, "heads", _HEAD, _TOKEN, "q", scope, bases, ("head",))


SITES: dict[str, SiteSignature] = {
    s.name: s
    for s in (
        _sublayer("attn"),
        _sublayer("cross"),
        _sublayer("ffn"),
        SiteSignature("block", "block", _TOKEN, _TOKEN, "x"),
        _projection("attn.q", "d_model", "d_q"),
        _projection("attn.k", "d_model", "d_kv"),
        _projection("attn.v", "d_model", "d_kv"),
        _projection("attn.o", "d_q", "d_model"),
        _projection("cross.q", "d_model", "d_q"),
        _projection("cross.k", "d_model", "d_kv"),
        _projection("cross.v", "d_model", "d_kv"),
        _projection("cross.o", "d_q", "d_model"),
        _projection("ffn.up", "d_model", "d_ff"),
        _projection("ffn.gate", "d_model", "d_ff"),
        _projection("ffn.down", "d_ff", "d_model"),
        _heads("attn.heads"),
        _heads("cross.heads"),
        SiteSignature("ffn.hidden", "hidden", tensor("batch token", "d_ff"), _TOKEN, "x"),
        SiteSignature("embed", "embed", _TOKEN, None, None),
        SiteSignature("embed.words", "embed", _TOKEN, None, None),
        SiteSignature("head", "head", tensor("batch token", "labels"), _TOKEN, "x"),
    )
}

#: Sizes every site has in scope besides ``d_in`` and ``d_out``.
SIZES = ("d_model", "d_x", "d_head", "d_ff", "d_kv", "d_q", "vocab", "heads", "groups", "labels")
#: Numbers that a spec may read; ``layer`` counts from 0 within its stack.
NUMBERS = ("layer", "depth")
#: Names that forms, gates and compositions read or bind and that nothing else may rebind.
RESERVED = frozenset(["x", "h", "z", "q", "k", "v", "W", "bias", "residual", "log_mass", "scale", "delta", "out", "g"])
STACKS = ("encoder", "decoder")


def site_name(path: str) -> tuple[str | None, str]:
    """``decoder.attn.q`` → (``decoder``, ``attn.q``); a bare name means every stack."""
    first, _, rest = path.partition(".")
    return (first, rest) if first in STACKS and rest else (None, path)


def weight_site(name: str) -> str | None:
    """``attn.q.weight`` → ``attn.q`` where that is a projection."""
    base, _, last = name.rpartition(".")
    return base if last == "weight" and base in SITES and SITES[base].family == "projection" else None


def signature(name: str) -> SiteSignature | None:
    """The signature of a site name without its stack; ``SITE.weight`` has one derived from its projection."""
    if name in SITES:
        return SITES[name]
    base = weight_site(name)
    if base is None:
        return None
    W = dict(SITES[base].scope)["W"]
    return SiteSignature(name, "weight", W, None, None, (("W", W),))
