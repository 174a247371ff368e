"""The map of a model's sites, made of one recorded pass: what was found by what flows where, at the modules that have it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

from torch import nn

from ..language.sites import SITES
from .alike import put_into, structure
from .calls import times as how_often
from .experts import of_experts
from .flow import Added, Block
from .heads import head_modules, word_embeddings
from .hosts import Hosts
from .laid import axis, lies, map_view
from .layout import Layout
from .naming import names_of
from .outside import Ends, ends
from .own_attention import divides
from .projectors import projectors
from .read import head_site
from .readers import read_past
from .record import Attended, Call, Recording
from .scattered import scattered
from .sites import NOT_YET, Site, SiteMap, Stack, View
from .sizes import projection_shape
from .sublayers import Projected, Sublayer, sublayers
from .towers import Tower, towers


@dataclass(frozen=True, slots=True)
class _Inside:
    """A tower, the recording that shows it, and the flow and the sublayers of its blocks: those of the first that does the same."""

    r: Recording
    tower: Tower
    blocks: list[tuple[Call, Block, list[Sublayer]]]

    @property
    def kinds(self) -> set[str]:
        return {s.kind for _, _, parts in self.blocks for s in parts}


def found(
    model: nn.Module, base: nn.Module, prefix: str, recordings: Sequence[Recording], whole: Recording | None = None
) -> SiteMap:
    """The map of the sites that recordings of a model and of parts of it show. Towers are in the order of the data flow; the head comes
    last. ``whole`` is a recording of a pass through all towers, if there is one."""
    seen = {t.path: (r, t) for r in reversed(recordings) for t in towers(model, r)}  # where it is seen first
    in_order = [(r, t) for r in recordings for t in towers(model, r) if seen[t.path] == (r, t)]
    kept = [inside for r, t in in_order if (inside := _inside(r, t)) is not None]
    if not kept:
        every = [(r, t, sums) for r in recordings for t, sums in scattered(model, r)]
        kept = [inside for r, t, sums in every if (inside := _inside(r, t, sums)) is not None]
    root = f"{prefix}." if prefix else ""
    if any(not b.startswith(root) for i in kept for b in i.tower.blocks):
        prefix, root = "", ""
    names, main = names_of(model, [(i.tower, i.kinds) for i in kept])
    vocab = _vocab(model)
    stacks: list[Stack] = []
    sites: list[Site] = []
    missing: dict[str, dict[str, str]] = {}
    for i in kept:
        name = names[i.tower.path]
        times = i.r.times
        causal = _causal(model, i)
        paths = tuple(p[len(root) :] for p in i.tower.blocks)
        at = ends(model, i.r, i.blocks[0][0], i.blocks[-1][0])
        stacks.append(
            Stack(
                name,
                i.tower.depth,
                paths,
                causal,
                i.tower.depth > len(paths),
                at.positions,
                i.tower.module,
                i.tower.path in main,
            )
        )
        mine: list[Site] = []
        known: dict[Call, tuple[list[Site], dict[str, str]]] = {}
        for layer, (call, b, parts) in enumerate(i.blocks):
            if b.call not in known:
                common: dict[str, Any] = dict(
                    stack=name, layer=layer, block=paths[layer], causal=causal, tokens=name, proof=NOT_YET
                )
                known[b.call] = _block_sites(model, i.r, b, parts, times, common, vocab, at.words is None)
            got, reasons = known[b.call]
            if call is not b.call:
                got = [put_into(s, b.call.path, call.path, layer, paths[layer]) for s in got]
                reasons = {n: why.replace(f"`{b.call.path}.", f"`{call.path}.") for n, why in reasons.items()}
            mine += got
            for n, why in reasons.items():
                missing.setdefault((f"{name}.{n}" if name else n), {})[f"{paths[layer]}.{n}"] = why
        mine += _outside(model, at, mine, name, causal)
        sites += mine
    if whole is not None and len(stacks) > 1 and sites:
        sites += projectors(whole, stacks, root, dict(sites[0].sizes))
    have, labels = {s.full_name for s in sites}, {s.label for s in sites}
    refused: dict[str, str] = {}
    for n, by_block in missing.items():  # in every block, or in those that are named
        if n not in have:
            refused[n] = next(iter(by_block.values()))
        else:
            refused.update({label: why for label, why in by_block.items() if label not in labels})
    uncovered = {n: why for r in recordings for n, why in _uncovered(r, sites, kept).items()}
    return _with_head(
        SiteMap("", prefix, tuple(stacks), tuple(sites), (), refused, uncovered, read_past(model, recordings)),
        model,
        base,
    )


def _inside(r: Recording, tower: Tower, sums: Mapping[Call, Added] | None = None) -> _Inside | None:
    """A tower with the blocks of it that add something to a stream, or (by ``sums``) are added as a whole; None where none is."""
    alike: dict[Hashable, tuple[Block, list[Sublayer]]] = {}
    blocks = []
    for call in tower.calls:
        whole = sums[call] if sums else None
        does = structure(r, call, r.times) if whole is None else call  # norms around it are its own
        if does not in alike:
            b = Block(r, call, whole)
            alike[does] = b, sublayers(b)
        b, parts = alike[does]
        if parts:
            blocks.append((call, b, parts))
    if not blocks:
        return None
    calls = tuple(c for c, _, _ in blocks)
    depth = sum(r.times[c.path] for c in calls)
    return _Inside(r, Tower(tower.path, calls, depth, tower.module), blocks)


def _vocab(model: nn.Module) -> int:
    words = word_embeddings(model)
    return (
        words.num_embeddings
        if words is not None
        else int(getattr(getattr(model, "config", None), "vocab_size", 0) or 0)
    )


def _causal(model: nn.Module, inside: _Inside) -> bool:
    """Whether a tower's tokens see no later ones: as its attention says; without one that says it, as the model's type is used."""
    asking = inside.r.asking
    said = [asking[s.asks] for _, _, parts in inside.blocks for s in parts if s.kind == "attn" and s.asks in asking]
    if said:
        return any(said)
    return "cross" in inside.kinds or _writes(model)


def _writes(model: nn.Module) -> bool:
    """Whether models of this type write texts word by word, and do not fill in masked words."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_MASKED_LM_MAPPING

    config: Any = getattr(model, "config", None)
    kind = type(config)
    if config is None or getattr(config, "is_encoder_decoder", False):
        return False
    return bool(getattr(config, "is_decoder", False)) or (
        kind in MODEL_FOR_CAUSAL_LM_MAPPING and kind not in MODEL_FOR_MASKED_LM_MAPPING
    )


# ---------------------------------------------------------------- one block


def _block_sites(
    model: nn.Module,
    r: Recording,
    b: Block,
    parts: list[Sublayer],
    times: Counter[str],
    common: dict[str, Any],
    vocab: int,
    pictures: bool,
) -> tuple[list[Site], dict[str, str]]:
    hosts = Hosts(r, b, times)
    reasons: dict[str, str] = {}
    last = {s.kind: s for s in parts}  # of two of a kind, the last
    for s in parts:
        if last[s.kind] is not s:
            reasons[f"{s.kind} (another one)"] = f"a block has several; `{s.kind}` is the last"
    sizes = _sizes(model, r, b, last, vocab)
    made: list[Site] = []
    for s in last.values():
        made += _sublayer_sites(model, r, b, hosts, s, sizes, common, reasons, pictures)
    path = b.call.path
    widths = {s.sizes["d_model"] for s in made if s.kind.is_sublayer} or {sizes["d_model"]}
    ends = [k for k in (b.call.first, b.call.left) if k is not None]
    if b.whole is None and {r.width(k) for k in ends} == widths and len({axis(r, k) for k in ends}) == 1:
        at_blocks = [n for n, k in SITES.items() if "block" in (n, k.entry)]
        view = View(path, layout=lies(r, ends[-1], pictures))
        made += [Site(n, view, sizes, x=path, **common) for n in at_blocks]
    return made, reasons


def _sizes(model: nn.Module, r: Recording, b: Block, last: dict[str, Sublayer], vocab: int) -> dict[str, int]:
    assert b.call.first is not None
    d = r.width(b.call.left if b.call.left is not None else b.call.first)
    sizes = {"d_model": d, "d_x": d, "vocab": vocab}
    attention = last.get("attn") or last.get("cross")
    if attention is not None and attention.attention is not None:
        q, k, v, _ = (r.shapes[i] for i in attention.attention)
        widths = {n: _width(r, p) for n, p in attention.parts.items()}
        sizes["d_head"] = q[-1]
        sizes["d_q"] = widths.get("q") or q[1] * q[-1]
        received = k[1] * k[-1] if attention.asks and len(k) == 4 else sizes["d_q"]
        sizes["d_kv"] = widths.get("k") or widths.get("v") or received
        sizes["heads"], sizes["groups"] = max(1, sizes["d_q"] // q[-1]), max(1, sizes["d_kv"] // q[-1])
    if "ffn" in last and "down" in last["ffn"].parts:
        sizes["d_ff"] = r.width(last["ffn"].parts["down"].step.ins[0])
    for kind, sublayer in last.items():
        for part, p in sublayer.parts.items():
            site = SITES.get(f"{kind}.{part}")
            if site is not None and site.has_weight and p.step.op == "projection":
                wide = (r.width(p.step.ins[0]), _width(r, p))
                for size, number in zip(dict(site.scope)["W"].sizes, wide):
                    sizes.setdefault(str(size), number)
    return sizes


def _width(r: Recording, p: Projected) -> int:
    return len(p.columns) if p.columns is not None else r.width(p.step.outs[0])


def _sublayer_sites(
    model: nn.Module,
    r: Recording,
    b: Block,
    hosts: Hosts,
    s: Sublayer,
    sizes: dict[str, int],
    common: dict[str, Any],
    reasons: dict[str, str],
    pictures: bool,
) -> list[Site]:
    kind = s.kind
    reads, x = hosts.input(s)
    host, still, scaled = hosts.output(s, x)
    if host is None and x is not None and (found := hosts.unmoved(s, x)) is not None:
        (reads, x, host), still = found, True
    residual = hosts.residual(s, x, reads, host) if still else None
    norm = hosts.norm(s, x) if still else None
    views: dict[str, View] = {}
    for part, p in s.parts.items():
        if p.step.op != "projection":
            reasons[f"{kind}.{part}"] = (
                f"`{p.step.weight}` is used by the module that holds it, not by a linear map of its own"
            )
        elif hosts.times[p.step.weight] != hosts.once:
            n = hosts.times[p.step.weight] / hosts.once
            reasons[f"{kind}.{part}"] = f"`{p.step.weight}` is called {how_often(n)} in a layer"
        elif p.columns is not None and p.step.outs[0] in r.axes:
            reasons[f"{kind}.{part}"] = f"it is some of the channels that the convolution `{p.step.weight}` yields"
        else:
            views[f"{kind}.{part}"] = map_view(model, r, p, pictures)
    reasons.update({f"{kind}.{n}": why for n, why in s.reasons.items()})
    if norm is not None:
        normed = hosts.r.of(norm)[0].left
        views[f"{kind}.norm"] = View(
            norm, layout=None if normed is None or normed not in r.axes else Layout(axis(r, normed))
        )
    if reads is not None and reads.first is not None:
        views[f"{kind}.x"] = View(reads.path, layout=lies(r, reads.first, pictures))
    made: list[Site] = []
    beside: dict[str, Any] = dict(
        x=None if reads is None else reads.path,
        residual=residual,
        norm=norm,
        factor=None if scaled else s.added.factor,
        keeps=s.added.keeps,
    )
    if kind in SITES:
        if host is None:
            reasons[kind] = "no module yields what is added to the residual"
        elif reads is None:
            reasons[kind] = "no module is given what it reads"
        elif (width := r.width(host.left or 0)) != (read := r.width(reads.first or 0)):
            reasons[kind] = f"it reads {read} numbers for each token and yields {width}"
        elif axis(r, host.left or 0) != axis(r, reads.first or 0):
            reasons[kind] = f"what enters `{reads.path}` has its tokens elsewhere than what leaves `{host.path}`"
        else:
            own = {**sizes, "d_model": width, "d_x": width}
            lain = lies(r, host.left or 0, pictures) or lies(r, reads.first or 0, pictures)
            beside["next_to_map"] = _yields(b, s, SITES[kind].into, host.left)
            made.append(
                _site(model, r, b, kind, View(host.path, layout=lain), views, own, {**common, **beside}, host.left)
            )
    for name, view in views.items():
        if name in SITES:
            key = s.parts[name.split(".")[1]].step.outs[0]
            summed = name == f"{kind}.down" and bool(s.experts)
            made.append(
                _site(model, r, b, name, view, views, sizes, {**common, "x": view.module, "with_others": summed}, key)
            )
    width = r.width(reads.first) if reads is not None and reads.first is not None else sizes["d_model"]
    made += _derived(
        model, r, b, s, reads, views, {**sizes, "d_model": width, "d_x": width}, {**common, "x": beside["x"]}, reasons
    )
    if s.experts:
        made += of_experts(b, hosts, s, sizes, common, reasons)
    return made


def _derived(
    model: nn.Module,
    r: Recording,
    b: Block,
    s: Sublayer,
    reads: Call | None,
    views: dict[str, View],
    sizes: dict[str, int],
    common: dict[str, Any],
    reasons: dict[str, str],
) -> list[Site]:
    """The sites at other sides of modules: the heads of attention, and what enters a projection."""
    made = []
    for name, kind in SITES.items():
        if kind.sublayer != s.kind or kind.is_sublayer or kind.has_weight:
            continue
        if kind.has_heads:
            own = None if s.asks else _attends(r, b, s, sizes)
            why = _no_heads(r, b, s, own)
            if why:
                reasons[name] = why
                continue
            host, how = (s.asks, "") if own is None or own.within is None else (own.within.path, own.how)
            made.append(
                _site(
                    model,
                    r,
                    b,
                    name,
                    View(host, layout=views[f"{s.kind}.x"].layout if f"{s.kind}.x" in views else None),
                    views,
                    sizes,
                    {**common, "attends": how, "next_to_map": _enters(b, s, kind.into)},
                    None,
                )
            )
        elif kind.entry in views and common["x"] is not None:
            of_part = s.parts.get(kind.entry.split(".")[1])
            key = of_part.step.ins[0] if of_part is not None else reads.first if reads is not None else None
            summed = kind.entry == f"{s.kind}.down" and bool(s.experts)
            made.append(
                _site(model, r, b, name, views[kind.entry], views, sizes, {**common, "with_others": summed}, key)
            )
    return made


def _attends(r: Recording, b: Block, s: Sublayer, sizes: dict[str, int]) -> Attended | None:
    """An attention that a module of the block computes past transformers' interface, alone and with heads that can be told from
    the batch; None where it is not recognised as one."""
    assert s.attention is not None
    made = b.made.get(s.attention[3])
    for a in r.attended:
        if made is not None and a.within is not None and a.start <= made.at < a.stop:
            alone = sum(other.within is a.within for other in r.attended) == 1
            whole = all(divides(shape, sizes["heads"]) for shape in (a.q, a.out))
            first = r.shapes[a.within.first] if a.within.first is not None else ()
            tokens = prod(first[:-1]) * sizes["heads"] == prod(a.out[:-1])  # all that enter, and no others
            return a if alone and whole and tokens and b.call.path in (*a.within.outer, a.within.path) else None
    return None


def _yields(b: Block, s: Sublayer, into: str, h: int | None) -> bool:
    """Whether h is what the map that could absorb an edit yields, and nothing else."""
    p = s.parts.get(into.rpartition(".")[2])
    return p is not None and h is not None and b.origin(h) == b.origin(p.step.outs[0])


def _enters(b: Block, s: Sublayer, into: str) -> bool:
    """Whether what attention yields enters the map that could absorb an edit as it is."""
    p = s.parts.get(into.rpartition(".")[2])
    assert s.attention is not None
    return p is not None and s.attention[3] in b.moved(p.step.ins[0])


def _no_heads(r: Recording, b: Block, s: Sublayer, own: Attended | None) -> str:
    """Why there is no site at the heads of an attention; nothing where there is one."""
    assert s.attention is not None
    q, k, v, _ = (r.shapes[i] for i in s.attention)
    if own is not None and own.within is not None:
        called = r.times[own.within.path] / r.times[b.call.path]
        if called != 1:
            return f"`{own.within.path}` is called {how_often(called)} in a layer"
        return _uneven(own.q[-1], own.out[-1])
    asked = sum(r.steps[i].op == "attention" and r.steps[i].module == s.asks for i in s.inside)
    if asked > 1:
        return f"`{s.asks}` calls its attention function {how_often(asked)} in a layer"
    if not s.asks:
        return (
            "its attention is computed past the interface of transformers, and not by one product of weights and values"
        )
    return _uneven(q[-1], v[-1])


def _uneven(d_q: int, d_v: int) -> str:
    return "" if d_q == d_v else f"a head has {d_q} numbers for its queries and {d_v} for its values"


def _site(
    model: nn.Module, r: Recording, b: Block, name: str, view: View, views: dict[str, View], sizes: dict[str, int], common: dict[str, Any],
    key: int | None,
) -> Site:  # fmt: skip
    kind = SITES[name]
    if kind.has_weight:
        d_in, d_out = projection_shape(model, view)
        W = dict(kind.scope)["W"]
        sizes = {**sizes, **dict(zip(map(str, W.sizes), (d_in, d_out))), "d_x": d_in}
    if kind.tokens:
        common = {**common, "tokens": kind.tokens, "causal": False}
    if key is not None and len(r.shapes[key]) == 2 and b.call.shapes is not None and len(b.call.shapes[0]) == 3:
        common = {**common, "rows": b.call.path}
    bases = {
        n: v for n, _ in kind.bases if (v := views.get(n)) is not None and (v.layout is None or v.layout.axis == -1)
    }
    return Site(name, view, sizes, bases=bases, **common)


# ---------------------------------------------------------------- outside the blocks


def _outside(model: nn.Module, at: Ends, mine: list[Site], name: str, causal: bool) -> list[Site]:
    sizes = mine[0].sizes if mine else {}
    found = []
    for site, view, width in at.views():
        if width is None:  # of a picture's channels no prompt can be made, and what stands there is no table of tokens
            continue
        own = {**sizes, "d_model": width, "d_x": width}
        x = view.module if SITES[site].x is not None else None
        at_words = SITES[site].times == "input" and at.words is not None and view == at.words[0]
        beside: dict[str, Any] = dict(factor=at.factor, scaled=at.scaled) if at_words else {}
        found.append(Site(site, view, own, stack=name, x=x, causal=causal, tokens=name, proof=NOT_YET, **beside))
    return found


def _with_head(sites: SiteMap, model: nn.Module, base: nn.Module) -> SiteMap:
    """The map with the model's head, where it has one: its maps are covered then."""
    if not sites.stacks or not hasattr(model, "config"):
        return sites
    root = f"{sites.prefix}." if sites.prefix else ""
    entered = {s.view.module for s in sites.sites} | {f"{root}{b}" for s in sites.stacks for b in s.blocks}
    head = head_modules(model, base, sites.prefix, entered)
    main = [s for s in sites.stacks if s.main]
    if not head or not main:
        return sites
    last = [s for s in sites.sites if s.stack == main[-1].name]
    site = replace(head_site(model, base, sites.prefix, head, main[-1], last[-1].sizes), proof=NOT_YET)
    inside = tuple(f"{h}." for h in head)
    left = {
        n: why for n, why in sites.uncovered.items() if not f"{n}.".startswith(inside)
    }  # the head's maps are its own
    return replace(sites, head=head, sites=(*sites.sites, site), uncovered=left)


def _uncovered(r: Recording, sites: list[Site], kept: list[_Inside]) -> dict[str, str]:
    """The linear maps that no site covers, in order, with the reason."""
    covered = {s.view.path for s in sites if s.kind.has_weight or s.view.parameter}
    blocks = tuple(f"{path}." for i in kept for path in i.tower.blocks)
    experts = {
        i.r.steps[at - b.call.start + c.start].weight
        for i in kept
        for c, b, parts in i.blocks
        for s in parts
        for at in s.experts
    }
    found: dict[str, str] = {}
    for s in r.steps:
        if s.weight and s.weight not in covered:
            why = ("one of the experts" if s.weight in experts else "it is used by the module that holds it" if s.op != "projection" else
                   "it is no part of a sublayer that is known" if s.weight.startswith(blocks) else "it lies outside the blocks")  # fmt: skip
            found.setdefault(s.weight, why)
    return found
