"""Where a trained copy of a parameter lives: the modules in whose twins it acts, and why there is none for some parameters."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torch import nn

from ..anatomy.base import children
from ..anatomy.sites import SiteMap
from ..language.report.diagnostics import Diagnostic


@dataclass(frozen=True, slots=True)
class Parameter:
    """A parameter of the base: its path, and every (module path, attribute) that holds it."""

    path: str
    uses: tuple[tuple[str, str], ...]
    count: int
    shape: tuple[int, ...]


def hosts(model: nn.Module, sites: SiteMap, p: Parameter) -> list[tuple[str, str]]:
    """The modules in whose twins a trained copy of the parameter lives, each with its name for it; none: it cannot be trained.

    A twin computes what its module does, on the same input; it is that of a leaf module, if one has the parameter. The twin of a
    module that holds others, as an embedding layer that owns the token of a class, shares what it holds, which runs twice; within a
    block, whose attention may write into a cache, the twin computes in its module's place (`stands_in`). A module that holds a
    block has no twin. A copy of what a
    module reads past the one that holds it lives in the twin of the one that reads it.
    """
    called = [_caller(model, m, n) for m, n in p.uses if m]
    readers = sites.read_past.get(p.path)
    if readers is not None:
        names = {r: _names_from(r, p) for r in readers}
        twins = {f"{r}.{n.rpartition('.')[0]}" for r, own in names.items() for n in own if "." in n}
        # a twin's child has the copy already
        read = [[(r, n) for n in own] for r, own in names.items() if r not in twins]
        served = all(uses and _may_host(model, sites, uses[0][0]) for uses in read)
        return [use for uses in read for use in uses] if served else []
    called = [_with_siblings(model, sites, m, n) for m, n in called]
    leaves = [(m, n) for m, n in called if "." in n or _alone(model.get_submodule(m))]
    return leaves or [(m, n) for m, n in p.uses if _may_host(model, sites, m)]


def _with_siblings(model: nn.Module, sites: SiteMap, module: str, name: str) -> tuple[str, str]:
    """Where a twin has the copy of a parameter: that of the module around, if that reads another parameter past this one."""
    around, _, child = module.rpartition(".")
    read = any(around in readers for path, readers in sites.read_past.items() if path.rpartition(".")[0] == module)
    return (around, f"{child}.{name}") if read and around and stands_in(model, sites, around) else (module, name)


def _names_from(reader: str, p: Parameter) -> list[str]:
    """A module's names for a parameter of its own or of its children's."""
    names = [n for m, n in p.uses if m == reader]
    return names + [f"{m.rpartition('.')[2]}.{n}" for m, n in p.uses if m and m.rpartition(".")[0] == reader]


def _may_host(model: nn.Module, sites: SiteMap, module: str) -> bool:
    """Whether a twin of a module may run beside it, or in its place: it holds no block."""
    if not module or _alone(model.get_submodule(module)):
        return bool(module)
    return not any(b.startswith(f"{module}.") and b != f"{module}." for b in _blocks(sites))


def stands_in(model: nn.Module, sites: SiteMap, module: str) -> bool:
    """Whether a twin of a module computes in its place: it holds others, and lies within a block or is one; or it holds experts, which
    compute long."""
    if any(s.view.parameter and s.view.module == module for s in sites.sites):
        return True
    return not _alone(model.get_submodule(module)) and any(f"{module}.".startswith(b) for b in _blocks(sites))


def _blocks(sites: SiteMap) -> list[str]:
    root = f"{sites.prefix}." if sites.prefix else ""
    return [f"{root}{block}." for stack in sites.stacks for block in stack.blocks]


def _alone(module: nn.Module) -> bool:
    """Whether a module calls no other: torch's attention holds one and computes with its weight."""
    return isinstance(module, nn.MultiheadAttention) or not children(module)


def _caller(model: nn.Module, module: str, name: str) -> tuple[str, str]:
    """The module that computes with a parameter, and its name for it. torch's attention never calls its output projection."""
    parent, _, own = module.rpartition(".")
    holds = isinstance(model.get_submodule(parent), nn.MultiheadAttention) if own else False
    return (parent, f"{own}.{name}") if holds else (module, name)


# ---------------------------------------------------------------- what cannot be trained


def why_not(model: nn.Module, sites: SiteMap, p: Parameter) -> tuple[str, str]:
    """Why no twin can hold a copy of a parameter, and the rule that says so; both go on from its name."""
    holder, kind = p.uses[0][0], type(model.get_submodule(p.uses[0][0])).__name__
    if not holder:
        rule = "only parameters of the modules in it can be trained as copies"
        return f"belongs to the model itself, a {kind}", rule
    readers = [r for r in sites.read_past.get(p.path, ()) if r != holder]
    if readers:
        reader = readers[0]
        by = type(model.get_submodule(reader)).__name__
        said = f"`{reader}`, a {by}, reads" if reader else f"the model itself, a {by}, reads"
        rule = "a trained copy acts in the module that reads it, and that must be none that holds a block"
        return f"belongs to a {kind}, but {said} past that module", rule
    rule = "a trained copy acts in a twin of the module that owns it, and there is none of a module that holds blocks"
    return f"belongs to a {kind}, which holds blocks", rule


def instead(model: nn.Module, sites: SiteMap, p: Parameter, everything: Iterable[Parameter]) -> str:
    """What to write instead of a path that names no parameter that can be trained."""
    others = [q for q in everything if hosts(model, sites, q)]
    if not others:
        return "put the model into another, as torch.nn.Sequential(model)"
    root = f"{sites.prefix}." if sites.prefix else ""
    blocks = tuple(f"{root}{b}." for stack in sites.stacks for b in stack.blocks)
    others.sort(key=lambda q: not q.path.startswith(blocks))
    last = p.path.rpartition(".")[2].rpartition("_")[2]
    near = next((q for q in others if q.path.rpartition(".")[2] == last), others[0])
    return f"name others, for example `train *.{'.'.join(near.path.split('.')[-2:])}`"


def refused_heads(model: nn.Module, sites: SiteMap, head: Iterable[Parameter]) -> list[Diagnostic]:
    """What is wrong with training the whole head of a model: some of it that no copy could act for."""
    return [
        Diagnostic("E0511", f"the parameter `{p.path}` {'; '.join(why_not(model, sites, p))}",
                   help="it is the head's: leave that as it is with head=False")
        for p in head if not hosts(model, sites, p)
    ]  # fmt: skip


def left_out(model: nn.Module, sites: SiteMap, named: str, left: Sequence[Parameter], of: int) -> list[str]:
    """One note on the parameters among those that a path names that cannot be trained; like ones of several blocks together."""
    if not left:
        return []
    alike: dict[str, list[str]] = {}
    for p in left:
        names = alike.setdefault(_numberless(why_not(model, sites, p)[0]), [])
        names += [n for n in (f"`{_numberless(p.path)}`",) if n not in names]
    stay = "it stays as the base has it" if len(left) == 1 else "they stay as the base has them"
    told = [f"{', '.join(n)} {why if len(n) == 1 else why.replace('belongs', 'belong', 1)}" for why, n in alike.items()]
    return [
        f"`train {named}` leaves out {len(left)} of the {of} tensors that it names, and {stay}, since no trained copy could act: "
        + "; ".join(told)
    ]


def _numberless(text: str) -> str:
    return re.sub(r"\.\d+(?=[.`])", ".*", text)


def towers_alone(sites: SiteMap, named: str, found: Sequence[Parameter]) -> list[str]:
    """A note where all that a path names lies in parts that the model's own tokens do not pass."""
    root = f"{sites.prefix}." if sites.prefix else ""
    main = [f"{root}{b}." for s in sites.main for b in s.blocks]
    parts = [_outermost(f"{root}{s.blocks[0]}", main) for s in sites.stacks if not s.main]
    inside = [next((part for part in parts if _lies_in(p, part)), "") for p in found]
    if not inside or "" in inside:
        return []
    where = list(dict.fromkeys(f"`{part}`" for part in inside))
    passed = "that part" if len(where) == 1 else "those parts"
    return [
        f"all that `train {named}` names lies in {' and '.join(where)}: nothing changes for inputs that do not reach {passed}"
    ]


def _outermost(block: str, main: Sequence[str]) -> str:
    """The outermost module around a block that holds none of these."""
    names = block.split(".")
    around = [".".join(names[:n]) for n in range(1, len(names) + 1)]
    return next((p for p in around if not any(m.startswith(f"{p}.") for m in main)), block)


def _lies_in(p: Parameter, module: str) -> bool:
    return all(f"{m}.".startswith(f"{module}.") for m, _ in p.uses)
