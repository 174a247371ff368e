"""Wrong maps made of right ones: one mistake each, at a place that is drawn, with the sites that it makes wrong."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from unipelt.anatomy.columns import Columns
from unipelt.anatomy.sites import Site, SiteMap, View


@dataclass(frozen=True)
class Mutant:
    """A map with a mistake. ``wrong`` are its sites that are not what it says, by label; ``near`` those that may be lost with
    them, as they are known through them: the others of the sublayer, and in ``parallel`` blocks the sublayer that is of the same sum."""

    what: str
    sites: SiteMap
    wrong: frozenset[str]
    near: frozenset[str]


def mutants(sites: SiteMap, seed: int) -> Iterator[Mutant]:
    """One of each kind of mistake that a map can have, where the map has what can be mistaken."""
    for number, kind in enumerate(KINDS):
        found = kind(sites, random.Random(100 * seed + number))
        if found is not None:
            yield found


Kind = Callable[[SiteMap, random.Random], Mutant | None]


def _layers(sites: SiteMap) -> list[tuple[str, int]]:
    return sorted({(s.stack, s.layer) for s in sites.sites if s.layer is not None})


def _get(sites: SiteMap, place: tuple[str, int], name: str) -> Site | None:
    return next((s for s in sites.sites if (s.stack, s.layer) == place and s.name == name), None)


def _mutant(sites: SiteMap, new: list[tuple[Site, Site]], what: str, wrong: list[Site] | None = None) -> Mutant:
    by = {s.label: t for s, t in new}
    bad = frozenset(s.label for s in (wrong if wrong is not None else [s for s, _ in new]))
    parts = {(s.stack, s.layer, s.kind.sublayer) for s, _ in new if s.layer is not None}
    near = frozenset(s.label for s in sites.sites if s.kind.sublayer and (s.stack, s.layer, s.kind.sublayer) in parts)
    where = ", ".join(list(by)[:2])
    return Mutant(
        f"{what} ({where})", replace(sites, sites=tuple(by.get(s.label, s) for s in sites.sites)), bad, bad | near
    )


def swapped(one: str, other: str) -> Kind:
    """Two projections of a layer have each other's place."""

    def kind(sites: SiteMap, rng: random.Random) -> Mutant | None:
        places = [p for p in _layers(sites) if _get(sites, p, one) and _get(sites, p, other)]
        if not places:
            return None
        place = rng.choice(places)
        a, b = (_get(sites, place, n) for n in (one, other))
        assert a and b
        return _mutant(
            sites, [(a, replace(a, view=b.view, x=b.x)), (b, replace(b, view=a.view, x=a.x))], f"{one} ↔ {other}"
        )

    return kind


def copied(one: str, other: str) -> Kind:
    """A site stands where another of the layer does."""

    def kind(sites: SiteMap, rng: random.Random) -> Mutant | None:
        places = [p for p in _layers(sites) if _get(sites, p, one) and _get(sites, p, other)]
        if not places:
            return None
        place = rng.choice(places)
        a, b = (_get(sites, place, n) for n in (one, other))
        assert a and b
        x = b.x if a.kind.has_weight else a.x
        return _mutant(sites, [(a, replace(a, view=b.view, x=x))], f"{one} := {other}")

    return kind


def elsewhere(name: str, field: str) -> Kind:
    """Something of a site is that of another layer."""

    def kind(sites: SiteMap, rng: random.Random) -> Mutant | None:
        places = [p for p in _layers(sites) if (s := _get(sites, p, name)) and getattr(s, field) is not None]
        pairs = [(p, q) for p in places for q in places if p != q and p[0] == q[0]]
        if not pairs:
            return None
        p, q = rng.choice(pairs)
        a, b = _get(sites, p, name), _get(sites, q, name)
        assert a and b
        own = {field: getattr(b, field), **({"x": b.x} if field == "view" and a.kind.has_weight else {})}
        return _mutant(sites, [(a, replace(a, **own))], f"{name}.{field} of another layer")

    return kind


def around(name: str, what: str, change: Callable[[Site, SiteMap], Site | None]) -> Kind:
    """A sublayer's surroundings are wrong."""

    def kind(sites: SiteMap, rng: random.Random) -> Mutant | None:
        found = [(s, t) for s in sites.sites if s.name == name and (t := change(s, sites)) is not None]
        return _mutant(sites, [rng.choice(found)], f"{name}: {what}") if found else None

    return kind


def shifted(name: str, by: int, wider: int = 0) -> Kind:
    """A projection's columns begin (and end) elsewhere, of a fused module or of one that has more than it."""

    def kind(sites: SiteMap, rng: random.Random) -> Mutant | None:
        found = [
            s for s in sites.sites if s.name == name and s.view.columns is not None and len(s.view.columns.ranges) == 1
        ]
        if not found:
            return None
        s = rng.choice(found)
        assert s.view.columns is not None
        ((a, b),) = s.view.columns.ranges
        whole = 3 * (b - a)
        a, b = (a + by, b + by + wider) if b + by + wider <= whole else (a - by, b - by - wider)
        if not 0 <= a < b <= whole:
            return None
        sizes = {**s.sizes, **({str(s.kind.h.sizes[-1]): b - a} if wider else {})}
        return _mutant(
            sites,
            [(s, replace(s, view=View(s.view.module, Columns.span(a, b)), sizes=sizes))],
            f"{name} shifted by {by}, wider by {wider}",
        )

    return kind


def narrower(name: str) -> Kind:
    """A projection is said to be the first half of its module only."""

    def kind(sites: SiteMap, rng: random.Random) -> Mutant | None:
        found = [s for s in sites.sites if s.name == name and s.view.columns is None]
        if not found:
            return None
        s = rng.choice(found)
        symbol = str(s.kind.h.sizes[-1])
        half = s.sizes[symbol] // 2
        return _mutant(
            sites,
            [(s, replace(s, view=View(s.view.module, Columns.span(0, half)), sizes={**s.sizes, symbol: half}))],
            f"half of {name}",
        )

    return kind


def head_size(times: float) -> Kind:
    """Heads are larger or smaller in a layer."""

    def kind(sites: SiteMap, rng: random.Random) -> Mutant | None:
        place = rng.choice(_layers(sites))
        new = []
        for s in sites.sites:
            if (s.stack, s.layer) == place and s.name in ("attn.heads", "attn.q", "attn.k", "attn.v"):
                d = int(s.sizes["d_head"] * times)
                new.append(
                    (
                        s,
                        replace(
                            s,
                            sizes={
                                **s.sizes,
                                "d_head": d,
                                "heads": s.sizes["d_q"] // d,
                                "groups": max(1, s.sizes["d_kv"] // d),
                            },
                        ),
                    )
                )
        return _mutant(sites, new, f"heads {times} times as large") if new else None

    return kind


def flipped(sites: SiteMap, rng: random.Random) -> Mutant | None:
    """A stack's tokens are said to see later ones, or not to."""
    stack = rng.choice(sites.stacks)
    new = [
        (s, replace(s, causal=not s.causal)) for s in sites.sites if s.tokens == stack.name and s.kind.times != "head"
    ]
    stacks = tuple(replace(k, causal=not k.causal) if k is stack else k for k in sites.stacks)
    return _mutant(replace(sites, stacks=stacks), new, "causal flipped")


def one_flipped(sites: SiteMap, rng: random.Random) -> Mutant | None:
    s = rng.choice([s for s in sites.sites if s.name == "attn.v"])
    return _mutant(sites, [(s, replace(s, causal=not s.causal))], "causal flipped at one site")


def another_tower(sites: SiteMap, rng: random.Random) -> Mutant | None:
    """A block of one stack is said to be of another, with all its sites."""
    if len(sites.stacks) < 2:
        return None
    a, b = rng.sample(list(sites.stacks), 2)
    i = rng.randrange(min(len(a.blocks), len(b.blocks)))
    stacks = tuple(
        replace(k, blocks=(*k.blocks[:i], b.blocks[i], *k.blocks[i + 1 :])) if k is a else k for k in sites.stacks
    )
    out = [s for s in sites.sites if not (s.stack == a.name and s.layer == i)]
    into = [
        replace(s, stack=a.name, tokens=a.name, causal=a.causal)
        for s in sites.sites
        if s.stack == b.name and s.layer == i
    ]
    rest = [s for s in out if not (s.stack == b.name and s.layer == i)]
    ends = [s.label for s in sites.sites if s.layer is None and s.stack in (a.name, b.name)]
    labels = frozenset(s.label for s in into)
    every = labels | frozenset(ends)
    return Mutant(
        f"block {i} of {a.name} := that of {b.name}", replace(sites, stacks=stacks, sites=(*rest, *into)), labels, every
    )


def turned(sites: SiteMap, rng: random.Random) -> Mutant | None:
    """The blocks of a stack are counted from the end."""
    stack = rng.choice(sites.stacks)
    if len(stack.blocks) < 2:
        return None
    n = len(stack.blocks)
    stacks = tuple(replace(k, blocks=k.blocks[::-1]) if k is stack else k for k in sites.stacks)
    new = [(s, replace(s, layer=n - 1 - s.layer)) for s in sites.sites if s.stack == stack.name and s.layer is not None]
    ends = frozenset(s.label for s in sites.sites if s.layer is None and s.stack == stack.name)
    found = _mutant(replace(sites, stacks=stacks), new, "blocks counted from the end")
    return replace(found, near=found.near | ends)


def at_end(name: str, what: str, change: Callable[[Site, SiteMap], str | None]) -> Kind:
    """A place around the blocks is another one."""

    def kind(sites: SiteMap, rng: random.Random) -> Mutant | None:
        found = [(s, path) for s in sites.sites if s.name == name and (path := change(s, sites)) is not None]
        if not found:
            return None
        s, path = rng.choice(found)
        x = path if s.name == "final" else s.x
        return _mutant(sites, [(s, replace(s, view=View(path), x=x))], f"{name}: {what}")

    return kind


def _behind(s: Site, sites: SiteMap) -> Site | None:
    return replace(s, residual=s.x) if s.x != s.residual else None


def _before(s: Site, sites: SiteMap) -> Site | None:
    return replace(s, x=s.residual) if s.x != s.residual else None


def _other_norm(s: Site, sites: SiteMap) -> Site | None:
    other = next(
        (t for t in sites.sites if t.block == s.block and t.kind.is_sublayer and t.name != s.name and t.norm != s.norm),
        None,
    )
    return (
        replace(s, norm=other.norm, bases={n: View(other.norm) for n in s.bases})
        if other and other.norm and s.norm
        else None
    )


def _first_view(name: str) -> Callable[[Site, SiteMap], str | None]:
    def found(s: Site, sites: SiteMap) -> str | None:
        return next((t.view.module for t in sites.sites if t.name == name and t.stack == s.stack and not t.view.enters
                     and t.view.module != s.view.module), None)  # fmt: skip

    return found


def _other_words(s: Site, sites: SiteMap) -> str | None:
    return next(
        (
            t.view.module
            for t in sites.sites
            if t.name == s.name and t.stack != s.stack and t.view.module != s.view.module
        ),
        None,
    )


KINDS: tuple[Kind, ...] = (
    *(swapped(a, b) for a, b in (("attn.q", "attn.k"), ("attn.q", "attn.v"), ("attn.k", "attn.v"), ("cross.q", "cross.k"), ("cross.k", "cross.v"),
                                 ("ffn.gate", "ffn.up"), ("ffn.up", "ffn.down"), ("attn.q", "attn.o"), ("attn.q", "cross.q"), ("attn.k", "cross.k"))),
    *(copied(a, b) for a, b in (("attn.o", "cross.o"), ("cross.o", "attn.o"), ("attn.o", "attn.v"), ("attn.q", "attn.k"), ("attn.v", "attn.k"), ("ffn.down", "attn.o"),
                                ("attn.o", "ffn.down"), ("ffn.up", "attn.q"), ("attn.v", "ffn.up"), ("attn", "ffn"), ("ffn", "attn"), ("cross", "attn"),
                                ("ffn.up", "ffn.gate"), ("ffn.hidden", "attn.o"), ("ffn.down", "ffn.up"), ("attn.heads", "cross.heads"))),
    *(elsewhere(n, f) for n, f in (("attn", "norm"), ("ffn", "norm"), ("attn.q", "view"), ("attn.o", "view"), ("ffn.up", "view"), ("ffn.down", "view"), ("attn", "x"),
                                   ("ffn", "residual"), ("attn", "view"), ("attn.heads", "view"), ("block", "view"), ("ffn", "view"))),
    *(around(n, "residual behind the norm", _behind) for n in ("attn", "cross", "ffn")),
    *(around(n, "x before the norm", _before) for n in ("attn", "cross", "ffn")),
    *(around(n, "another norm", _other_norm) for n in ("attn", "ffn")),
    *(around(n, f"{f} times the factor", lambda s, _, f=f: replace(s, factor=f * s.factor)) for n, f in (("attn", 0.5), ("ffn", 2.0), ("cross", -1.0), ("attn", 1.01))),
    around("ffn.hidden", "x is its own", lambda s, _: replace(s, x=s.view.module)),
    around("attn.heads", "two groups become one", lambda s, _: replace(s, sizes={**s.sizes, "groups": 3 * s.sizes["groups"]})),
    *(shifted(n, by, wider) for n in ("attn.q", "attn.k", "attn.v") for by, wider in ((1, 0), (8, 0), (16, 0), (0, 8))),
    *(narrower(n) for n in ("attn.q", "attn.v", "ffn.up")),
    head_size(2), head_size(0.5), flipped, one_flipped, another_tower, turned,
    at_end("final", "the norm in a block", lambda s, m: next((t.norm for t in m.sites if t.name == "ffn" and t.stack == s.stack and t.norm), None)),
    at_end("embed", "the words", lambda s, m: next((t.view.module for t in m.sites if t.name == "embed.words" and t.stack == s.stack and t.view != s.view
                                                    and m.stack(s.stack).learned_positions), None)),
    at_end("embed.words", "another stack's", _other_words),
    at_end("head", "a projection in a block", _first_view("ffn.down")),
)  # fmt: skip
