"""Towers and their blocks: which modules a model calls one after the other, each on what the one before yields."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from .base import children
from .record import Call, Recording

#: Arguments by which a tower's own module takes tokens, pictures or sound. What stands further inside takes their vectors.
_TAKES = (
    "input_ids",
    "inputs_embeds",
    "pixel_values",
    "pixel_values_videos",
    "input_features",
    "input_values",
    "decoder_input_ids",
)
_LISTS = (nn.ModuleList, nn.Sequential)


@dataclass(frozen=True, slots=True)
class Tower:
    """``calls`` are the first calls of its blocks, in order; ``depth`` counts all calls. ``module`` takes what the tower reads."""

    path: str
    calls: tuple[Call, ...]
    depth: int
    module: str

    @property
    def blocks(self) -> tuple[str, ...]:
        return tuple(c.path for c in self.calls)


def towers(model: nn.Module, r: Recording) -> list[Tower]:
    """The towers that ran, in the order in which they were entered. A list of modules whose calls do not follow one another is none."""
    first: dict[str, Call] = {}
    times: dict[str, int] = {}
    for c in r.calls:
        first.setdefault(c.path, c)
        times[c.path] = times.get(c.path, 0) + 1
    found = []
    for path in outermost_lists(model, "", first):
        blocks = _blocks(model, r, path, first)
        if not blocks:
            continue
        calls = sorted((first[b] for b in blocks), key=lambda c: c.start)
        found.append(Tower(path, tuple(calls), sum(times[b] for b in blocks), taker(calls, first)))
    return sorted(found, key=lambda t: t.calls[0].start)


def outermost_lists(module: nn.Module, path: str, called: dict[str, Call]) -> list[str]:
    """The lists of modules below a module that lie in no other list."""
    found = []
    for name, child in children(module).items():
        at = f"{path}.{name}" if path else name
        if isinstance(child, _LISTS) and elements_of(child, at, called):
            found.append(at)
        else:
            found += outermost_lists(child, at, called)
    return found


def elements_of(module: nn.Module, path: str, called: dict[str, Call]) -> list[str]:
    """The elements of a list that were called, those of lists within it that are no modules of their own among them."""
    found = []
    for name, child in children(module).items():
        at = f"{path}.{name}"
        if at in called:
            found.append(at)
        elif isinstance(child, _LISTS):
            found += elements_of(child, at, called)
    return [p for p in found if any(True for _ in called[p].module.parameters())]


def _blocks(model: nn.Module, r: Recording, path: str, called: dict[str, Call]) -> list[str]:
    """The blocks of a list: its elements, or what lies in lists within them where an element is a stage or only holds another list.
    An element that adds what came in to what a list of blocks within it makes of that is not itself the block."""
    elements = elements_of(model.get_submodule(path), path, called)
    inner = [
        [b for p in outermost_lists(model.get_submodule(e), e, called) for b in _blocks(model, r, p, called)]
        for e in elements
    ]
    around = [
        _sums(r, called[e]) and bool(found) and all(_sums(r, called[b]) for b in found)
        for e, found in zip(elements, inner)
    ]
    if any(around):
        return [b for e, found, held in zip(elements, inner, around) for b in (found if held else [e])]
    stages = any(_resizes(called[e]) for e in elements) and not any(_sums(r, called[e]) for e in elements)
    if elements and all(inner) and (stages or all(_only_holds(model.get_submodule(e)) for e in elements)):
        return [b for found in inner for b in found]
    return elements


def _sums(r: Recording, call: Call) -> bool:
    """Whether a module itself adds two tensors of the size that it yields: it is a block, and no stage of blocks."""
    made = (s for s in r.steps[call.start : call.stop] if s.module == call.path and s.op in ("add", "add_"))
    size = call.shapes[1] if call.shapes is not None else None
    return any(len(s.ins) == 2 and all(k in r.floating and r.shapes[k] == size for k in s.ins) for s in made)


def _resizes(call: Call) -> bool:
    """Whether what leaves has another size than what enters, or lies so deep in what a module yields that it is no stream."""
    return call.shapes is None or call.shapes[0] != call.shapes[1]


def _only_holds(module: nn.Module) -> bool:
    """Whether all parameters of a module lie in one list within it, of modules of one kind."""
    inside = [m for m in children(module).values() if any(True for _ in m.parameters())]
    if len(inside) != 1 or any(True for _ in module.parameters(recurse=False)):
        return False
    return isinstance(inside[0], _LISTS) and len({type(m) for m in children(inside[0]).values()}) == 1


def taker(calls: Sequence[Call], first: dict[str, Call]) -> str:
    """The innermost module around a tower that takes tokens, pictures or sound; else the one around all its blocks."""
    outer = [p for p in calls[0].outer if all(p in c.outer for c in calls)]
    for path in reversed(outer):
        taken = inspect.signature(first[path].module.forward).parameters
        if any(n in taken for n in _TAKES):
            return path
    return outer[-1] if outer else ""
