"""What flows where in one block: its stream, the sublayers that are added to it, and which columns of a projection a value comes from.

The stream is what reaches the block's output from its input through sums, scalings and norms. What is added to it is a
sublayer's output.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod
from typing import Any

import torch
from torch.utils._pytree import tree_flatten, tree_map

from .record import SAME, Call, Key, Recording, Step

#: Operations that yield numbers they are given, perhaps some of them or in another order.
MOVES = SAME | frozenset(
    "t transpose permute expand unsqueeze squeeze select slice split split_with_sizes chunk unbind unflatten narrow "
    "roll index index_select movedim swapaxes".split()
)
#: Operations of each number by itself: what they yield has the columns of what they are given.
_EACH = frozenset("clamp clamp_min clamp_max mul div neg add sub add_".split())
_PLUS = ("add", "add_")


@dataclass(frozen=True, slots=True)
class Added:
    """What is added to the stream: ``factor`` · ``h`` to ``keeps`` · ``residual`` (None: learned numbers), which gives ``total``."""

    h: Key
    residual: Key
    total: Key
    factor: float
    keeps: float | None


class Block:
    """The flow in the first call of a block."""

    def __init__(self, r: Recording, call: Call, whole: Added | None = None):
        """``whole``: the sum outside by which the block as a whole is one sublayer (see `scattered`)."""
        self.r, self.call, self.whole = r, call, whole
        self.steps: list[Step] = r.steps[call.start : call.stop]
        self.entered = {r.origin(k) for k in call.entered} | set(call.entered)
        self._traces: dict[int, list[tuple[int, Key, frozenset[int]]] | None] = {}
        self._held: dict[
            int, dict[Key, frozenset[int]]
        ] = {}  # the columns of values that are moved numbers of a projection
        self.made: dict[Key, Step] = {o: s for s in self.steps for o in s.outs}
        #: The projections between the block's inputs and a value, by their places in the recording.
        self.behind: dict[Key, frozenset[int]] = {}
        #: Whether a value depends on what the stream was when it entered the block.
        self.streams: set[Key] = {
            k for k in (call.first, None if call.first is None else r.origin(call.first)) if k is not None
        }
        #: The values that depend on something that entered; all others are parameters, or made of them.
        self.moving: set[Key] = set(self.entered)
        for s in self.steps:
            if any(i in self.moving for i in s.ins):
                self.moving.update(s.outs)
            own = frozenset([s.at]) if s.weight else frozenset()
            found = own.union(*(self.behind[i] for i in s.ins if i in self.behind))
            moved = any(i in self.streams for i in s.ins)
            for o in s.outs:
                self.behind[o] = found
                if moved:
                    self.streams.add(o)

    # ------------------------------------------------------------ values

    def projections(self, key: Key) -> frozenset[int]:
        return self.behind.get(key, frozenset())

    def given(self, s: Step) -> list[Key]:
        """What a step is given besides parameters."""
        return [i for i in s.ins if i not in self.r.parameters]

    def origin(self, key: Key) -> Key:
        """The value in the block that a copy, or a view of all of it, was made of."""
        while (s := self.made.get(key)) is not None and s.op in SAME and s.ins:
            key = s.ins[0]
        return key

    def is_input(self, key: Key) -> bool:
        return key in self.entered or (
            self.call.first is not None and self.r.origin(key) == self.r.origin(self.call.first)
        )

    def sides(self, key: Key) -> list[Key] | None:
        """The two tensors whose sum a value is."""
        s = self.made.get(self.origin(key))
        if s is None or s.op not in _PLUS or s.weight:
            return None
        sides = self.given(s)
        return sides if len(sides) == 2 and all(k in self.r.floating for k in sides) else None

    @cached_property
    def _through(self) -> set[Key]:
        """The values that hold the stream in sums and scalings alone."""
        found: set[Key] = {k for k in (self.call.first,) if k is not None}
        for s in self.steps:
            held = [i for i in s.ins if i in found]
            if held and not s.weight and s.op in (SAME | {"mul", "div", *_PLUS}):
                found.update(s.outs)
        return found

    # ------------------------------------------------------------ the stream

    @cached_property
    def added(self) -> list[Added]:
        """What is added to the stream, in the order in which it is."""
        if self.whole is not None:
            return [self.whole]
        found: list[Added] = []
        at = self.call.left
        for _ in range(len(self.steps)):
            if at is None or self.is_input(at):
                break
            sides = self.sides(at)
            if sides is not None:
                stream = self._stream_of(sides)
                other = next(k for k in sides if k != stream) if sides[0] != sides[1] else sides[1]
                if self.projections(other):
                    found += [self._added(h, stream, at) for h in reversed(list(self._summands(other)))]
                at = stream
                continue
            s = self.made.get(self.origin(at))
            ways = [k for k in self.given(s) if k != at] if s is not None else []
            at = max(ways, key=lambda k: (len(self.projections(k)), k in self.streams), default=None)
        return self._beside(found[::-1])

    def _beside(self, found: list[Added]) -> list[Added]:
        """Sublayers that are added one after the other and do not read each other stand beside each other: the stream that
        they are added to is the one that was there before all of them."""
        apart: list[Added] = []
        for a in found:
            made = self.made.get(a.residual)
            if apart and made is not None and made.at not in self.walk(a.h):
                a = replace(a, residual=apart[-1].residual)
            apart.append(a)
        return apart

    def _stream_of(self, sides: list[Key]) -> Key:
        direct = [k for k in sides if k in self._through or self.is_input(k)]
        return min(
            direct or sides, key=lambda k: (k not in self.streams and not self.is_input(k), len(self.projections(k)))
        )

    def _summands(self, key: Key) -> Iterator[Key]:
        sides = self.sides(key)
        if sides and all(self.projections(k) for k in sides) and self._apart(sides):
            for k in sides:
                yield from self._summands(k)
        else:
            yield key

    def _apart(self, sides: list[Key]) -> bool:
        """Whether two summands are two sublayers beside each other: neither's projections are all the other's, and no side has one alone."""
        a, b = (self.projections(k) for k in sides)
        return not (a & b) and len(a) > 1 and len(b) > 1

    def _added(self, summand: Key, residual: Key, total: Key) -> Added:
        h, factor = self.unscaled(summand)
        stream, kept = self.unscaled(residual)
        keeps: float | None = kept
        made, sums = self.made.get(stream), self.made.get(self.origin(total))
        if (
            made is not None and sums is not None and made.op == "mul" and made.module == sums.module
        ):  # not the last step of a norm
            if len(ways := self.varying(made)) == 1:
                stream, keeps = self.unscaled(ways[0])[0], None
        return Added(h, self.origin(stream), total, factor, keeps)

    def varying(self, s: Step) -> list[Key]:
        """What a step is given besides parameters and what is made of them."""
        return [i for i in s.ins if i in self.moving and i not in self.r.parameters]

    def unscaled(self, key: Key) -> tuple[Key, float]:
        """What a value was before it was multiplied by a number, and the number."""
        factor = 1.0
        while (s := self.made.get(key)) is not None:
            number = self._number(s)
            if number is not None:
                factor *= number
            elif s.op not in SAME:
                break
            key = s.ins[0]
        return key, factor

    @staticmethod
    def _number(s: Step) -> float | None:
        """The number that a step multiplies its tensor by."""
        if s.op.rstrip("_") in ("mul", "div") and len(s.args) == 2 and isinstance(s.args[1], (int, float)):
            return float(s.args[1]) if s.op.startswith("mul") else 1 / float(s.args[1])
        return None

    # ------------------------------------------------------------ walks

    def walk(self, key: Key, stop: Iterable[Key] = (), past: bool = True) -> set[int]:
        """The places of the steps behind a value within the block; none behind ``stop``, nor (without ``past``) behind a projection."""
        stop, seen, left, found = set(stop), set(), [key], set()
        while left:
            k = left.pop()
            s = self.made.get(k)
            if k in seen or k in stop or k in self.entered or s is None:
                continue
            seen.add(k)
            found.add(s.at)
            if past or not s.weight:
                left += s.ins
        return found

    def moved(self, key: Key) -> list[Key]:
        """A value, and what it was before its numbers were moved about."""
        found = [key]
        while (s := self.made.get(found[-1])) is not None and s.op in MOVES and s.ins:
            found.append(s.ins[0])
        return found

    def nearest(self, key: Key, stop: Iterable[Key] = ()) -> list[Step]:
        """The projections that a value comes from with no other between, in order."""
        return [s for at in sorted(self.walk(key, stop, past=False)) if (s := self.r.steps[at]).weight]

    # ------------------------------------------------------------ columns

    def columns(self, projection: Step, key: Key, stop: Iterable[Key] = ()) -> list[int] | None:
        """Which columns of a projection a value comes from, in ascending order; None where that cannot be told."""
        inside = self.walk(key, stop, past=False)
        ends = self._ends(projection)
        if ends is None:
            return None
        found: set[int] = set(self._held[projection.at].get(key, ()))
        if found:
            return sorted(found)
        for at, k, columns in ends:
            if k == key or at in inside:
                found.update(columns)
        return sorted(found)

    def _ends(self, projection: Step) -> list[tuple[int, Key, frozenset[int]]] | None:
        """Where the numbers of a projection end up: (step that computes with them, key of what it reads, their columns)."""
        if projection.at not in self._traces:
            self._traces[projection.at] = self._traced(projection)
        return self._traces[projection.at]

    def _traced(self, projection: Step) -> list[tuple[int, Key, frozenset[int]]] | None:
        out = projection.outs[0]
        shape = self.r.shapes[out]
        if prod(shape) > 1 << 22:
            return None
        axis, width = self.r.axes.get(out, len(shape) - 1), self.r.width(out)
        own = torch.arange(width).reshape(-1, *[1] * (len(shape) - 1 - axis))
        held: dict[Key, torch.Tensor] = {out: own.expand(shape)}
        ends: list[tuple[int, Key, frozenset[int]]] = []
        for s in self.steps:
            mine = [i for i in s.ins if i in held]
            if s.at <= projection.at or not mine:
                continue
            moved = self._moved(s, held, mine)
            if moved is None:
                ends += [(s.at, i, _which(held[i], width)) for i in dict.fromkeys(mine)]
            else:
                held.update(moved)
        self._held[projection.at] = {k: _which(t, width) for k, t in held.items()}
        return ends

    def _moved(self, s: Step, held: dict[Key, torch.Tensor], mine: list[Key]) -> dict[Key, torch.Tensor] | None:
        """Where a step puts the columns of what it moves; None where it computes with them."""
        whole = held[mine[0]].contiguous()  # a view in another shape is one of numbers that lie in order
        if s.op == "_to_copy" or (s.op in _EACH and len(mine) == 1 and self.r.shapes[s.outs[0]] == tuple(whole.shape)):
            return {s.outs[0]: whole}
        if s.op == "cat" and len(set(mine)) == 1:
            return None
        if s.op not in MOVES or s.function is None or s.ins[0] not in held:
            return None
        source = s.args[0]
        args, kwargs = tree_map(lambda t: whole if t is source else t, (s.args, dict(s.kwargs)))
        if any(isinstance(t, torch.Tensor) and t.device != whole.device for t in tree_flatten((args, kwargs))[0]):
            return None  # which numbers an index means is not known on the meta device
        made: Any = s.function(*args, **kwargs)
        made = made if isinstance(made, (tuple, list)) else [made]
        return dict(zip(s.outs, made))


def _which(columns: torch.Tensor, width: int) -> frozenset[int]:
    """The columns that a tensor holds, of so many."""
    there = torch.zeros(width, dtype=torch.bool)
    there[columns.reshape(-1)] = True
    return frozenset(there.nonzero().flatten().tolist())
