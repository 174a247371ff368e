"""An anatomy's text as data: which entry speaks of which stack, and what its path means on a model.

An entry without a stack in front speaks of every stack. ``block`` names the blocks (``*`` for each of a `ModuleList`),
``stack`` the module that takes the stack's tokens (the base model by default), ``depth`` the configuration's number of
layers where one module serves several; these and ``embed`` are relative to the base model, every other path to the block
(``"."`` is the block itself). A path that ends with ``?`` need not be in every block. A stack may have any name.
``config.NAME`` is a condition on the configuration, not a path; ``like`` names an anatomy whose
entries hold where this one is silent (`find` puts them together). Of a fused projection a path names a part (`parts`):
``module[i/n]``, ``module[i/n per head]``, ``module[q of q k v]``, ``module[q of q k v per group]`` or ``module[0:64, 128:192]``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn

from ..language.report.diagnostics import error, near
from ..language.sites import FIRST_WORDS, SITES, STACKS
from ..language.syntax.nodes import AnatomyDef
from .parts import FORMS, Part, part

_REFERENCE = re.compile(r"(before +)?([\w.]+)(?:\[([^\[\]]*)\])?(\?)?")
#: Entries that say something of a sublayer's surroundings, after its name: ``attn.x``, ``ffn.residual``, …
AROUND = ("x", "residual", "norm", "rows")
#: What an entry may be about, by its name. Other sites are found from these.
_NAMES = (
    *(n for n, s in SITES.items() if not s.entry and not s.outside_the_layers),
    *(f"{n}.{beside}" for n, s in SITES.items() if s.is_sublayer for beside in AROUND),
)
#: Those whose paths are relative to the base model.
_OUTSIDE = tuple(n for n, s in SITES.items() if s.outside_the_layers and not s.entry)
#: What every stack must name: its sizes and its other sites are read from these. One with a mixer need not have such sublayers.
_ALWAYS = ("attn.heads", "ffn.x", "ffn.down")
#: Entries of a stack that are no sites.
_SPECIAL = ("block", "stack", "depth")
#: Stacks that a site's name without a stack means, beside others; the last one, where there is none of these.
_MAIN = ("", "encoder", "decoder", "text")


@dataclass(frozen=True, slots=True)
class Entries:
    """What an anatomy says of one stack. ``parts`` are relative to the block, the others to the base model. ``main`` as in `Stack`."""

    name: str
    block: str
    module: str
    depth: str | None
    outside: tuple[tuple[str, str], ...]
    parts: tuple[tuple[str, str], ...]
    main: bool = True


def _names_of_stacks(a: AnatomyDef) -> list[str]:
    """What stands in front of entries, an encoder's before its decoder's, otherwise in the order in which they are met."""
    said = [n.partition(".") for n, _ in a.entries]
    known = (*_SPECIAL, *_NAMES, *_OUTSIDE)
    found = dict.fromkeys(
        f for f, _, rest in said if rest and f not in FIRST_WORDS and (f in STACKS or rest in known) and f != "config"
    )
    return sorted(found, key=lambda n: STACKS.index(n) if n in ("encoder", "decoder") else len(STACKS))


def stacks_of(a: AnatomyDef) -> list[Entries]:
    """The stacks an anatomy describes, the unnamed one if it names none; in the order of the data flow."""
    named = _names_of_stacks(a)
    main = [n for n in named if n in _MAIN] or named[-1:]
    found = []
    for stack in named or [""]:
        mine: dict[str, str] = {}
        for name, text in a.entries:
            first, _, rest = name.partition(".")
            if first == "config" or (first in named and first != stack):
                continue
            site = SITES.get(name)
            if site is not None and site.times == "between" and stack != (named or [""])[0]:
                continue  # it is there once, whatever the stacks
            mine[rest if first == stack else name] = text
        special = {n: mine.pop(n, None) for n in _SPECIAL}
        if special["block"] is None:
            raise error("E0700", f"the anatomy `{a.name}` names no `{stack + '.' if stack else ''}block`", a.name_span)
        outside = tuple((n, t) for n, t in mine.items() if n.split(".")[0] in _OUTSIDE)
        parts = tuple((n, t) for n, t in mine.items() if n.split(".")[0] not in _OUTSIDE)
        found.append(
            Entries(
                stack,
                special["block"],
                special["stack"] or "",
                special["depth"],
                outside,
                parts,
                not named or stack in main,
            )
        )
    return found


def check(a: AnatomyDef, e: Entries) -> None:
    """Every entry has a name that says something (E0702), and what other entries need is there (E0509)."""
    entries = [n for n, _ in (*e.outside, *e.parts)]
    for name in entries:
        if name not in _NAMES and name not in _OUTSIDE:
            raise error("E0702", f"the anatomy `{a.name}` has an entry `{name}`, which is the name of nothing here", a.name_span,
                        help=near(name, (*_NAMES, *_OUTSIDE)) or f"entries: {', '.join((*_OUTSIDE, *_NAMES))}")  # fmt: skip
    sites = [SITES[n] for n in entries if n in SITES]
    mixed, sublayers = any(s.mixes for s in sites), {s.sublayer for s in sites}
    always = [n for n in _ALWAYS if not mixed or SITES.get(n, SITES[n.split(".")[0]]).sublayer in sublayers]
    needed = [*always]
    for name in (*always, *entries):
        site = SITES.get(name)
        if site is not None and site.sublayer and not site.has_weight:
            needed += [f"{site.sublayer}.x", *([f"{name}.residual"] if site.is_sublayer else []), *dict(site.bases)]
    given = {*entries, *(n for s in sites for n in s.instead)}
    lacking = [n for n in dict.fromkeys(needed) if n not in given]
    if lacking:
        front = f"{e.name}." if e.name else ""
        raise error("E0509", f"the anatomy `{a.name}` does not say where {' and '.join(f'`{front}{n}`' for n in lacking)} "
                    f"{'is' if len(lacking) == 1 else 'are'}", a.name_span, help=f'add an entry, as in `{front}{lacking[0]}: "path.in.the.block"`')  # fmt: skip


def conditions(a: AnatomyDef) -> Iterator[tuple[str, str]]:
    """(name, value as text) of the configuration's entries an anatomy asks for."""
    for name, text in a.entries:
        first, _, rest = name.partition(".")
        if first == "config":
            yield rest, text


@dataclass(frozen=True, slots=True)
class Reference:
    """What an entry's text names: a module, and of its output a part (or all); or what ``enters`` the module.

    Blocks that lack the module lack the place, unless it is ``everywhere``: then the anatomy does not fit.
    """

    module: str
    part: Part | None = None
    enters: bool = False
    everywhere: bool = True  # whether every block has it


def reference(text: str, front: str = "", entry: str = "") -> Reference:
    """What an entry names; ``front`` is the path of the block or base it is relative to, with its dot, ``entry`` its name (E0505)."""
    match = _REFERENCE.fullmatch(text.strip())
    if match is None:
        raise error("E0505", f"{f'`{entry}`: ' if entry else ''}an anatomy's path reads `module`, `module[part]` or `before module`, with a `?` "
                    f"behind it where only some blocks have it, not {text!r}", help=f"a part reads {FORMS}")  # fmt: skip
    path = front.removesuffix(".") if match[2] == "." else front + match[2]
    said = None if match[3] is None else part(match[3], entry_text(entry, text))
    return Reference(path, said, bool(match[1]), not match[4])


def entry_text(entry: str, text: str) -> str:
    """An entry as messages name it."""
    return f"`{entry}: {text!r}`" if entry else repr(text)


def blocks_of(base: nn.Module, pattern: str) -> tuple[str, ...]:
    """The paths a block's pattern stands for, in order; none if the model has no such list."""
    paths = [""]
    for piece in pattern.split("*"):
        grown = []
        for path in paths:
            inner = (path + piece).strip(".")
            if piece and not has(base, inner):
                continue
            module = base.get_submodule(inner)
            grown += [f"{inner}.{i}" for i in range(len(module))] if isinstance(module, nn.ModuleList) else [inner]
        paths = grown
    return tuple(paths)


def has(base: nn.Module, path: str) -> bool:
    """Whether the model has a module of that path."""
    try:
        module: Any = base.get_submodule(path)
    except AttributeError:
        return False
    return isinstance(module, nn.Module)


def missing(base: nn.Module, e: Entries) -> str | None:
    """A path of a stack that the model lacks, None if it has them all. Every block is looked at."""
    if e.module and not has(base, e.module):
        return e.module
    blocks = blocks_of(base, e.block)
    for block in blocks:
        for name, text in e.parts:
            at = reference(text, f"{block}.", name)
            if at.everywhere and not has(base, at.module):
                return at.module
    for name, text in e.parts:  # what some block has is in one of them
        paths = [reference(text, f"{block}.", name).module for block in blocks]
        if paths and not any(has(base, p) for p in paths):
            return paths[0]
    return next((p for p in (reference(t, "", n).module for n, t in e.outside) if not has(base, p)), None)
