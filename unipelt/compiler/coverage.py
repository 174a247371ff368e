"""What a method's sites cover of a model, and what it says of that: the towers that a bare name means, blocks without a site, values
that no module of the model has, factors before the residual sum.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

from torch import nn

from ..anatomy.heads import word_embeddings
from ..anatomy.sites import Site, SiteMap, Stack
from ..language.ir import Row
from ..language.report.diagnostics import Diagnostic, counted, near
from ..language.sites import SITES, site_name
from ..language.syntax.nodes import Apply, Path, Span
from ..language.syntax.tree import dotted
from ..language.types.typed import TypedRow

#: So many layers, or projections, are named one by one.
LISTED = 12
#: What a row may read of a site and no module need have, with what to do then.
_OPTIONAL = {
    "x": "`insert sequential` reads what leaves it",
    "residual": "read `x`, what the sublayer reads, or leave it out",
}


def no_stack(name: str, sites: SiteMap, model: nn.Module, span: Span) -> Diagnostic:
    """The mistake of naming a tower that a model does not have."""
    has = [s.name for s in sites.stacks if s.name]
    listed = ", ".join(f"`{n}`" for n in has)
    known = f"it has the {'stack' if len(has) == 1 else 'stacks'} {listed}"
    return Diagnostic("E0704", f"this {type(model).__name__} has no {name}", span,
                      help=" ".join(filter(None, (near(name, has), known))) if has else f"it has one stack: leave `{name}.` out")  # fmt: skip


# ---------------------------------------------------------------- towers


def towers(paths: Iterable[Path], sites: SiteMap) -> list[str]:
    """Which tower bare names mean, and which are left alone; nothing where they mean every one."""
    alone: dict[tuple[str, ...], list[str]] = {}
    for path in paths:
        tower, name = site_name(str(path))
        if tower is None and name in SITES:
            here = {s.stack for s in sites.named(name)}
            others = tuple(
                dict.fromkeys(s.stack for s in sites.sites if s.name == name and s.stack and s.stack not in here)
            )
            if others:
                alone.setdefault(others, []).append(name)
    mine = " and ".join(map(the, sites.main))
    return [
        f"{_names(names)} {'means' if len(set(names)) == 1 else 'mean'} {mine} here; {' and '.join(the(sites.stack(o)) for o in others)} "
        f"{'is' if len(others) == 1 else 'are'} left alone (`{others[0]}.{names[0]}` is a name for what is there)"
        for others, names in alone.items()
    ]  # fmt: skip


# ---------------------------------------------------------------- blocks


def partial(found: Sequence[Site], sites: SiteMap) -> list[str]:
    """The sites that only some blocks of a tower have, with their layers, and why others lack them, where that is known."""
    said = []
    for stack, name, layers in _layers(found, sites):
        lacking = [b for i, b in enumerate(stack.blocks) if i not in layers]
        if not lacking or stack.shared:
            continue
        why = {sites.refused[k]: k for b in lacking if (k := f"{b}.{name}") in sites.refused}
        reasons = "".join(f"; `{k}`: {reason}" for reason, k in why.items())
        said.append(
            f"`{name}` is in {len(layers)} of {len(stack.blocks)} blocks of {the(stack)}: {numbered(layers)}{reasons}"
        )
    return said


def unselected(
    row: Row, found: Sequence[Site], chosen: Mapping[str, frozenset[int]], sites: SiteMap
) -> tuple[list[Diagnostic], list[str]]:
    """What is wrong where no selected layer has a site of the row, and what is to be said where it has some of them."""
    outside = any(s.layer is None for s in found)
    bare = [
        (stack, name, layers)
        for stack, name, layers in _layers(found, sites)
        if not layers & chosen.get(stack.name, frozenset())
    ]
    notes = [
        f"row `{row.name}`: no selected layer of {the(stack)} has `{name}`, which is in {numbered(layers)}"
        for stack, name, layers in bare
    ]
    if not bare or outside or len(bare) < len(list(_layers(found, sites))):
        return [], notes
    span = row.layers.span if row.layers is not None else row.span
    where = "; ".join(f"`{name}` is in {numbered(layers)} of {the(stack)}" for stack, name, layers in bare)
    return [
        Diagnostic("E0526", f"no layer that is selected has {_names([n for _, n, _ in bare])}", span, help=where)
    ], []


def _layers(found: Sequence[Site], sites: SiteMap) -> Iterator[tuple[Stack, str, frozenset[int]]]:
    """Each stack and name of some sites in the layers, with the layers that have it."""
    for stack in sites.stacks:
        names = dict.fromkeys(s.name for s in found if s.stack == stack.name and s.layer is not None)
        for name in names:
            yield (
                stack,
                name,
                frozenset(s.layer for s in found if s.name == name and s.stack == stack.name and s.layer is not None),
            )


def uncovered(found: Sequence[Site], sites: SiteMap) -> list[str]:
    """How many projections of the blocks no site covers, where projections there are changed."""
    root = f"{sites.prefix}." if sites.prefix else ""
    blocks = {f"{root}{s.block}." for s in found if s.block and s.kind.has_weight}
    open_ = [(path, reason) for path, reason in sites.uncovered.items() if any(path.startswith(b) for b in blocks)]
    if not open_:
        return []
    path, reason = open_[0]
    return [
        f"{counted(len(open_), 'projection')} of these blocks {'is' if len(open_) == 1 else 'are'} covered by no site, as `{path}` ({reason})"
    ]


def refused(name: str, tower: str | None, sites: SiteMap) -> str:
    """Why a site was left out of a map; nothing where that is not known."""
    full = f"{tower}.{name}" if tower else name
    return next((w for n, w in sites.refused.items() if n == full or n.endswith(f".{full}")), "")


def elsewhere(name: str, sites: SiteMap) -> str:
    """What to write for a site that only towers have which a bare name does not mean; nothing where none has it."""
    others = {s.stack: s for s in sites.sites if s.name == name and s.kind.times != "input"}  # one input is the model's
    there = [f"`{s.full_name}`" for s in others.values()]
    return f"write {' or '.join(there)}" if there else ""


# ---------------------------------------------------------------- what a site has


def without(site: Site, typing: TypedRow, model: nn.Module, sites: SiteMap) -> list[Diagnostic]:
    """What a row reads at a site and no module of this model has there."""
    found, row = [], typing.row
    for name, remedy in _OPTIONAL.items():
        if name in typing.reads and name in typing.site.types and getattr(site, name) is None:
            found.append(Diagnostic(
                "E0525", f"`{name}` of `{site.full_name}` enters no module of this {type(model).__name__}, and `{row.name}` reads it",
                row.span, help=f"{remedy}, or modify another site"))  # fmt: skip
    for name, _ in site.kind.bases:
        calls = [n.span for n in row.nodes if isinstance(n, Apply) and dotted(n.function) == name]
        if calls and name not in site.bases:
            found.append(Diagnostic(
                "E0525", f"this {type(model).__name__} has no module `{name}` at `{site.full_name}`, and `{row.name}` calls it",
                calls[0], help=f"leave it out, or modify sites that have it: see `unipelt explain {site.name}`"))  # fmt: skip
    since = next((c for c in typing.tokens if c.word == "since"), None)
    if since is not None and not _words_at(site, model, sites):
        tower = f"the {site.stack} of this" if site.stack else "this"
        found.append(Diagnostic("E0707", f"`tokens since` finds words, and {tower} {type(model).__name__} reads none", since.span,
                                help="select the first or the last tokens"))  # fmt: skip
    return found


def _words_at(site: Site, model: nn.Module, sites: SiteMap) -> bool:
    """Whether the tokens at a site are words, and not the parts of a picture or of sound, which enter first."""
    enters = bool(sites.main) and (site.tokens or site.stack) == sites.main[0].name
    words = not enters or getattr(model, "main_input_name", "input_ids") == "input_ids"
    return words and word_embeddings(model) is not None


def said_of(found: Sequence[Site]) -> list[str]:
    """What is to be said of how the model goes on behind some sites."""
    factors: dict[tuple[str, float | None, bool], None] = dict.fromkeys(
        (s.full_name, s.factor, s.kind.times == "input") for s in found if s.factor != 1.0
    )
    scaled = dict.fromkeys((s.full_name, s.view.module) for s in found if s.scaled)
    return [
        f"the model multiplies `{name}` by {'learned numbers' if factor is None else f'{factor:g}'} before "
        f"{'its first block' if enters else 'the residual sum'}; what is modified is what it is before that"
        for name, factor, enters in factors
    ] + [
        f"`{name}` is behind the factor by which `{module}` multiplies its entries: rows there are not multiplied"
        for name, module in scaled
    ]


def before_the_blocks(found: Sequence[Site], sites: SiteMap) -> list[str]:
    """Where rows stand if the model does something to its words in no module of its own: a factor, a norm, positions."""
    said = []
    for site in (s for s in found if s.kind.times == "input" and not s.view.enters):
        inner = [s for s in sites.entered() if s.stack == site.stack and s.view.enters]
        said += [f"`{site.name}` is what leaves `{site.view.module}`: what the model does to it before its first block (a factor, a norm, "
                 "positions) is done to rows there too" for _ in inner[:1]]  # fmt: skip
    return said


def common_sizes(sites: SiteMap, stack: Stack) -> dict[str, int]:
    """The sizes that all sites in a stack's blocks agree on; projections, which may have some of their own, say what others do not."""
    found: dict[str, int] = {}
    for projections in (False, True):
        values: dict[str, set[int]] = {}
        for s in sites.sites:
            if s.stack == stack.name and s.layer is not None and s.kind.has_weight is projections:
                for n, v in s.sizes.items():
                    values.setdefault(n, set()).add(v)
        found = {**{n: min(v) for n, v in values.items() if len(v) == 1}, **found}
    return found


# ---------------------------------------------------------------- words


def numbered(layers: Collection[int]) -> str:
    """``layers 3, 7, 11``; the first ones of many."""
    ordered = sorted(layers)
    listed = ", ".join(map(str, ordered[:LISTED])) + (", …" if len(ordered) > LISTED else "")
    return f"{'layer' if len(ordered) == 1 else 'layers'} {listed}"


def the(stack: Stack) -> str:
    """A stack in words."""
    if not stack.name:
        return "the model"
    return f"the {stack.name}" if stack.name in ("encoder", "decoder") else f"the {stack.name} tower"


def _names(names: Sequence[str]) -> str:
    return " and ".join(f"`{n}`" for n in dict.fromkeys(names))
