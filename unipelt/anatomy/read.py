"""An anatomy that fits a model, read into the map of its sites."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import combinations
from typing import Any

from torch import nn

from ..language.report.diagnostics import error
from ..language.sites import SITES
from ..language.syntax.nodes import AnatomyDef
from .attention import Heads
from .entries import AROUND, Entries, Reference, blocks_of, check, entry_text, has, reference
from .heads import head_modules, is_language_model, labels, reads, word_embeddings
from .sites import Site, SiteMap, Stack, View
from .sizes import block_sizes, projection_shape, projection_view, width


def read(a: AnatomyDef, entries: list[Entries], model: nn.Module, base: nn.Module, prefix: str) -> SiteMap:
    """The map of a model's sites. The stacks come in the order of the data flow; the head last."""
    root = f"{prefix}." if prefix else ""
    stacks: list[Stack] = []
    sites: list[Site] = []
    for e in entries:
        check(a, e)
        stack, found = _stack(e, model, base, root)
        stacks.append(stack)
        sites += found
    entered = {v.module for s in sites for v in (s.view,)} | {f"{root}{b}" for s in stacks for b in s.blocks}
    head = head_modules(model, base, prefix, entered)
    if head:
        last = next(s for s in reversed(stacks) if s.main)
        sizes = next(s.sizes for s in reversed(sites) if s.stack == last.name and s.layer is not None)
        sites.append(head_site(model, base, prefix, head, last, sizes))
    return SiteMap(a.name, prefix, tuple(stacks), tuple(sites), head)


def _stack(e: Entries, model: nn.Module, base: nn.Module, root: str) -> tuple[Stack, list[Site]]:
    config: Any = model.config
    words = word_embeddings(model)
    vocab = words.num_embeddings if words is not None else int(getattr(config, "vocab_size", 0) or 0)
    blocks = blocks_of(base, e.block)
    depth = _depth(e, config, base, blocks)
    sites: list[Site] = []
    causal = False
    for layer, block in enumerate(blocks):
        views = _views(model, e, f"{root}{block}.", config)
        _apart(views)
        sizes = block_sizes(model, views, config, vocab)
        causal = causal or _causal(model, views)
        common: dict[str, Any] = dict(stack=e.name, layer=layer, block=block, causal=causal, tokens=e.name)
        named = [n for n in views if n in SITES]
        views["block"] = View(f"{root}{block}")
        for name in (*named, *(n for n, s in SITES.items() if n not in named and (s.entry or n) in views)):
            sites.append(_site(name, views, sizes, common, model))
    sites = [replace(s, causal=causal) if s.tokens == e.name else s for s in sites]
    stack = Stack(
        e.name, depth, blocks, causal, depth > len(blocks), _learned(e), f"{root}{e.module}".removesuffix("."), e.main
    )
    views = {n: _view(model, n, t, reference(t, root, n)) for n, t in e.outside}
    table = next((model.get_submodule(v.module) for n, v in views.items() if not SITES[n].positions), None)
    for name, at in views.items():
        own, kind, module = sizes, SITES[name], model.get_submodule(at.module)
        if kind.times == "input" and not at.enters:
            d = width(module, table, sizes["d_model"])
            own = {**sizes, "d_model": d, "d_x": d}
        elif kind.times == "between":
            own = {**sizes, "d_model": labels(module, config), "d_x": reads(module, sizes["d_model"])}
        sites.append(Site(name, at, own, stack=e.name, x=at.module if SITES[name].x is not None else None, causal=causal,
                          tokens=e.name))  # fmt: skip
    return stack, sites


def _views(model: nn.Module, e: Entries, front: str, config: Any) -> dict[str, View]:
    """The places of a block that it has."""
    places = {n: (t, at) for n, t in e.parts if (at := reference(t, front, n)).everywhere or has(model, at.module)}
    attention = places.get("attn.heads")
    heads = Heads(
        model.get_submodule(attention[1].module if attention is not None else front.removesuffix(".")), config
    )
    return {n: _view(model, n, t, at, heads) for n, (t, at) in places.items()}


def _causal(model: nn.Module, views: Mapping[str, View]) -> bool:
    """Whether attention says that its tokens see no later ones. A mixer's goes from left to right, unless it says otherwise."""
    at = views.get("attn.heads") or views.get("mixer.x")
    return at is not None and bool(getattr(model.get_submodule(at.module), "is_causal", "attn.heads" not in views))


def _view(model: nn.Module, name: str, text: str, at: Reference, heads: Heads | None = None) -> View:
    """Where an entry is in a model. Only projections have a part of a module's output, only inputs what enters one (E0505)."""
    site = SITES.get(name)
    if site is not None and site.has_weight and not at.enters and heads is not None:
        return projection_view(model, at, heads, entry_text(name, text))
    if at.part is not None or (at.enters and not (site is not None and site.takes_rows)):
        inputs = " and ".join(f"`{n}`" for n, s in SITES.items() if s.takes_rows)
        raise error("E0505", f"{entry_text(name, text)}: " + (
            "only a projection can be a part of what a module yields" if at.part is not None else
            f"only {inputs} can be what enters a module"), help="name the module that yields it")  # fmt: skip
    return View(at.module, enters=at.enters)


def _apart(views: Mapping[str, View]) -> None:
    """No number that a module yields belongs to two projections: an edit of one would change the other (E0508)."""
    named = [(n, v) for n, v in views.items() if n in SITES and SITES[n].has_weight]
    for (one, a), (other, b) in combinations(named, 2):
        if a.module == b.module and (a.columns is None or b.columns is None or a.columns.meets(b.columns)):
            raise error("E0508", f"`{one}` and `{other}` share columns of `{a.module}`, so that an edit of one would change the other",
                        help="correct the parts of the module that are theirs")  # fmt: skip


def _depth(e: Entries, config: Any, base: nn.Module, blocks: tuple[str, ...]) -> int:
    """How many layers run: as many as there are blocks, unless the outer list's are called in turn."""
    if e.depth is None:
        return len(blocks)
    outer = len(base.get_submodule(e.block.split(".*")[0]))  # type: ignore[arg-type]
    layers = getattr(config, e.depth, None)
    if not isinstance(layers, int):
        raise error(
            "E0503", f"the anatomy reads the number of layers from `{e.depth}`, which the configuration does not have"
        )
    return layers * len(blocks) // outer


def _learned(e: Entries) -> bool:
    """Whether something adds positions between the two places at which tokens enter, or before the only one."""
    inputs = {SITES[n].positions: text for n, text in e.outside if SITES[n].times == "input"}
    return True in inputs and inputs[True] != inputs.get(False)


def _site(name: str, views: dict[str, View], sizes: dict[str, int], common: dict[str, Any], model: nn.Module) -> Site:
    """A site of a block. ``x`` is what enters its sublayer; at a linear map and outside the sublayers, its own module."""
    kind = SITES[name]
    at = views[kind.entry or name]
    wanted = AROUND if kind.is_sublayer else ("rows",) if kind.has_weight else ("x", "rows")
    beside = {n: views[e].module for n in wanted if (e := f"{kind.sublayer}.{n}") in views}
    if kind.has_weight:
        d_in, d_out = projection_shape(model, at)
        sizes = {**sizes, "d_x": d_in}
        W = dict(kind.scope)["W"]
        if kind.into == name and any(f"{kind.sublayer}.v" in SITES[n].instead for n in views if n in SITES):
            sizes = {**sizes, str(W.sizes[0]): d_in, str(W.sizes[1]): d_out}
            sizes["d_head"] = sizes["d_q"] // sizes["heads"]  # of the values, where they have another
        if (d_in, d_out) != tuple(sizes[str(s)] for s in W.sizes):
            raise error("E0504", f"`{name}` of {type(model).__name__} maps {d_in} to {d_out}, which does not agree with the sizes "
                        f"of its other projections ({W})")  # fmt: skip
    if kind.tokens:  # no position of a decoder is read there
        common = {**common, "tokens": kind.tokens, "causal": False}
    return Site(
        name,
        at,
        sizes,
        bases={n: views[n] for n, _ in kind.bases if n in views},
        **{"x": at.module, **beside, **common},
    )


def head_site(
    model: nn.Module, base: nn.Module, prefix: str, head: tuple[str, ...], last: Stack, sizes: Any
) -> Site:  # fmt: skip
    """The head's site. A language model's reads what enters it, other heads the last hidden states."""
    words = is_language_model(model)
    d = reads(model.get_submodule(head[0]), sizes["d_model"])
    own = {**sizes, "labels": labels(model.get_submodule(head[-1]), model.config), "d_model": d, "d_x": d}
    source = head[0] if words else last.module if base is model else prefix
    return Site("head", View(head[-1]), own, x=source, x_leaves=not words, causal=last.causal and words,
                tokens=last.name)  # fmt: skip
