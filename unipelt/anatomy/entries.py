"""An anatomy's text as data: which entry speaks of which stack, and what its path means on a model.

An entry without a stack in front speaks of every stack. ``block`` names the blocks (``*`` for each of a `ModuleList`),
``stack`` the module that takes the stack's tokens (the base model by default), ``depth`` the configuration's number of
layers where one module serves several; these and ``embed`` are relative to the base model, every other path to the block
(``"."`` is the block itself). ``config.NAME`` is a condition on the configuration, not a path; ``like`` names an anatomy whose
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
from ..language.sites import SITES, STACKS
from ..language.syntax.nodes import AnatomyDef
from .parts import FORMS, Part, part

_REFERENCE = re.compile(r"(before +)?([\w.]+)(?:\[([^\[\]]*)\])?")
#: Entries that say something of a sublayer's surroundings, after its name: ``attn.x``, ``ffn.residual``, …
AROUND = ("x", "residual", "norm", "rows")
#: What an entry may be about, by its name. Other sites are found from these.
_NAMES = (
    *(n for n, s in SITES.items() if not s.entry and not s.outside_the_layers),
    *(f"{n}.{beside}" for n, s in SITES.items() if s.is_sublayer for beside in AROUND),
)
#: Those whose paths are relative to the base model.
_OUTSIDE = tuple(n for n, s in SITES.items() if s.outside_the_layers and not s.entry)
#: What every stack must name: its sizes and its other sites are read from these.
_ALWAYS = ("attn.heads", "ffn.x", "ffn.down")


@dataclass(frozen=True, slots=True)
class Entries:
    """What an anatomy says of one stack. ``parts`` are relative to the block, the others to the base model."""

    name: str
    block: str
    module: str
    depth: str | None
    outside: tuple[tuple[str, str], ...]
    parts: tuple[tuple[str, str], ...]


def stacks_of(a: AnatomyDef) -> list[Entries]:
    """The stacks an anatomy describes, the unnamed one if it names none; in the order of the data flow."""
    named = [s for s in STACKS if any(n.startswith(f"{s}.") for n, _ in a.entries)]
    found = []
    for stack in named or [""]:
        mine: dict[str, str] = {}
        for name, text in a.entries:
            first, _, rest = name.partition(".")
            if first == "config" or (first in named and first != stack):
                continue
            mine[rest if first == stack else name] = text
        special = {n: mine.pop(n, None) for n in ("block", "stack", "depth")}
        if special["block"] is None:
            raise error("E0700", f"the anatomy `{a.name}` names no `{stack + '.' if stack else ''}block`", a.name_span)
        outside = tuple((n, t) for n, t in mine.items() if n.split(".")[0] in _OUTSIDE)
        parts = tuple((n, t) for n, t in mine.items() if n.split(".")[0] not in _OUTSIDE)
        found.append(Entries(stack, special["block"], special["stack"] or "", special["depth"], outside, parts))
    return found


def check(a: AnatomyDef, e: Entries) -> None:
    """Every entry has a name that says something (E0702), and what other entries need is there (E0509)."""
    entries = [n for n, _ in (*e.outside, *e.parts)]
    for name in entries:
        if name not in _NAMES and name not in _OUTSIDE:
            raise error("E0702", f"the anatomy `{a.name}` has an entry `{name}`, which is the name of nothing here", a.name_span,
                        help=near(name, (*_NAMES, *_OUTSIDE)) or f"entries: {', '.join((*_OUTSIDE, *_NAMES))}")  # fmt: skip
    needed = [*_ALWAYS]
    for name in (*_ALWAYS, *entries):
        site = SITES.get(name)
        if site is not None and site.sublayer and not site.has_weight:
            needed += [f"{site.sublayer}.x", *([f"{name}.residual"] if site.is_sublayer else []), *dict(site.bases)]
    lacking = [n for n in dict.fromkeys(needed) if n not in entries]
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
    """What an entry's text names: a module, and of its output a part (or all); or what ``enters`` the module."""

    module: str
    part: Part | None = None
    enters: bool = False


def reference(text: str, front: str = "", entry: str = "") -> Reference:
    """What an entry names; ``front`` is the path of the block or base it is relative to, with its dot, ``entry`` its name (E0505)."""
    match = _REFERENCE.fullmatch(text.strip())
    if match is None:
        raise error("E0505", f"{f'`{entry}`: ' if entry else ''}an anatomy's path reads `module`, `module[part]` or `before module`, not {text!r}",
                    help=f"a part reads {FORMS}")  # fmt: skip
    path = front.removesuffix(".") if match[2] == "." else front + match[2]
    return Reference(path, None if match[3] is None else part(match[3], entry_text(entry, text)), bool(match[1]))


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
    for block in blocks_of(base, e.block):
        for name, text in e.parts:
            path = reference(text, f"{block}.", name).module
            if not has(base, path):
                return path
    return next((p for p in (reference(t, "", n).module for n, t in e.outside) if not has(base, p)), None)
