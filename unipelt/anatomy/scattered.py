"""Sublayers that lie in lists of their own: all attentions in one, all feed-forward layers in another. No module is a block there.

What holds the lists adds what a sublayer yields to the stream that it read, itself or behind a norm. Each sublayer then stands for
a block, in the order in which they are called.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from .flow import Added
from .record import SAME, Call, Key, Recording
from .towers import Tower, elements_of, outermost_lists, taker

#: Steps behind a call among which its sum is looked for.
_NEAR = 24


def scattered(model: nn.Module, r: Recording) -> list[tuple[Tower, Mapping[Call, Added]]]:
    """Towers of such sublayers, each with the sums by which they are some; lists that one module holds are one tower."""
    first: dict[str, Call] = {}
    for c in r.calls:
        first.setdefault(c.path, c)
    held: dict[str, dict[Call, Added]] = {}
    for path in outermost_lists(model, "", first):
        for element in elements_of(model.get_submodule(path), path, first):
            whole = _sum_behind(r, first[element])
            if whole is not None:
                held.setdefault(path.rpartition(".")[0], {})[first[element]] = whole
    found = []
    for path, sums in held.items():
        calls = tuple(sorted(sums, key=lambda c: c.start))
        if len(calls) > 1:
            depth = sum(r.times[c.path] for c in calls)
            found.append((Tower(path, calls, depth, taker(calls, first)), sums))
    return sorted(found, key=lambda f: f[0].calls[0].start)


def _sum_behind(r: Recording, call: Call) -> Added | None:
    """The sum of what a call yields and of the stream that it read; None where there is none near behind it."""
    if call.left is None or call.first is None:
        return None
    read = _read(r, call.first)
    mine = {call.left}
    for s in r.steps[call.stop : call.stop + _NEAR]:
        here = [k for k in s.ins if k in mine]
        if not here:
            continue
        others = [k for k in s.ins if k not in mine]
        if s.op in ("add", "add_") and len(others) == 1 and r.origin(others[0]) in read:
            return Added(call.left, r.origin(others[0]), s.outs[0], 1.0, 1.0)
        if s.op not in SAME:
            return None
        mine.update(s.outs)
    return None


def _read(r: Recording, key: Key) -> set[Key]:
    """The streams that a value may be: itself, and what a norm read that yields it."""
    found = {r.origin(key)}
    for c in r.calls:
        if c.first is not None and c.left is not None and r.origin(c.left) in found and r.norms(c):
            return found | {r.origin(c.first)}
    return found
