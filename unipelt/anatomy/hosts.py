"""Which modules of a block have a value at their input or output: a hook can only be where a module is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from math import prod

from .flow import MOVES, Block
from .record import Call, Key, Recording, Step
from .sublayers import Sublayer

#: Operations that put tokens elsewhere.
MOVED = frozenset("permute transpose roll index constant_pad_nd slice cat flip index_select".split())


#: Operations that put numbers into a value, whose tokens stay where they are.
_PUTS = frozenset("masked_scatter index_put index_put_ scatter".split())


class Hosts:
    """The modules that a block called, in order, and what entered and left them."""

    def __init__(self, r: Recording, block: Block, times: Counter[str]):
        self.r, self.b = r, block
        path = block.call.path
        self.calls: list[Call] = [] if block.whole is None else [block.call]
        for c in r.calls[block.call.number + 1 :]:
            if path not in c.outer:
                break
            self.calls.append(c)
        self.once = times[path]
        self.times = times

    # ------------------------------------------------------------ values

    def enters(self, key: Key | None) -> list[Call]:
        """The calls that are given a value first, outermost first."""
        if key is None:
            return []
        return [c for c in self.calls if c.first is not None and self.b.origin(c.first) == key and self._once(c)]

    def leaves(self, key: Key) -> list[Call]:
        """The calls that yield a value first, the last to be left first."""
        found = [c for c in self.calls if c.left is not None and self.b.origin(c.left) == key and self._once(c)]
        return sorted(found, key=lambda c: -c.order)

    def _once(self, c: Call) -> bool:
        return self.times[c.path] == self.once

    # ------------------------------------------------------------ sublayers

    def output(self, s: Sublayer, x: Key | None) -> tuple[Call | None, bool, bool]:
        """The module that yields a sublayer's h; whether its tokens stand there as they do in the stream; whether it is
        multiplied by learned numbers behind it.

        Where the sublayer reads its tokens moved about (in windows, for instance), h is taken where they are moved alike.
        """
        key = self.b.origin(s.added.h)
        moved = x is not None and self._moved(x, s)
        ways = [
            (k, scaled)
            for k, scaled in ((key, False), *self._before(key))
            if k not in self.b.entered and self.leaves(k)
        ]
        if moved and x is not None:
            # the last of them, before anything is moved back
            tokens = self.r.positions(x)
            ways = [(k, scaled) for k, scaled in ways if k != key and self.r.positions(k) == tokens][-1:]
        if not ways:
            return None, not moved, False
        found, scaled = ways[0]
        return self.leaves(found)[0], not moved and (found == key or scaled), scaled

    def unmoved(self, s: Sublayer, x: Key) -> tuple[Call, Key, Call] | None:
        """Where a sublayer's tokens are moved about and back again around its maps: the module that is given the stream's
        tokens before that, what they are, and the module that yields what is added. None where there are no such modules."""
        host = next(iter(self.leaves(self.b.origin(s.added.h))), None)
        if host is None:
            return None
        widest, read = self._widest(s, [t for i in s.inside if (t := self.r.steps[i]).weight])
        if widest is not None and read is not None and not self._moved(read, s):
            return widest, read, host
        for key in (k for k, scaled in self._before(x) if not scaled):
            if not self._moved(key, s):
                reads = self.enters(key) or ([self.b.call] if self.b.is_input(key) else [])
                return (reads[0], key, host) if reads else None
        return None

    def _moved(self, x: Key, s: Sublayer) -> bool:
        """Whether the stream's tokens are put in another order, or others among them, before a sublayer reads them."""
        seen, left = set(s.stop), [x]
        while left:
            key = left.pop()
            step = self.b.made.get(key)
            if key in seen or key in self.b.entered or step is None:
                continue
            seen.add(key)
            if step.op in MOVED:
                return True
            left += [] if step.weight else step.ins[:1] if step.op in _PUTS else step.ins
        return False

    def _before(self, key: Key) -> Iterator[tuple[Key, bool]]:
        """What a value was before its numbers were moved about or multiplied by learned ones, and whether they were multiplied."""
        scaled = False
        while (step := self.b.made.get(key)) is not None and step.ins:
            given = self.b.varying(step)
            if step.op == "mul" and len(step.ins) == 2 and len(given) == 1:
                scaled = True
            elif step.op not in MOVES | {"constant_pad_nd", "cat"}:
                return
            # of what is put together, the most
            most = max(given, key=lambda k: prod(self.r.shapes[k])) if step.op == "cat" and given else None
            key = self.b.origin(most if most is not None else given[0] if given else step.ins[0])
            yield key, scaled

    def input(self, s: Sublayer) -> tuple[Call | None, Key | None]:
        """The module that is given what a sublayer reads, and that value: the widest that holds the sublayer and not its sum."""
        maps = [self.r.steps[i] for i in s.inside if self.r.steps[i].weight]
        places = {m.at for m in maps if m.op != "convolution"} or {m.at for m in maps}
        firsts = [m.at for m in maps if m.at in places and not any(self.b.walk(i, s.stop) & places for i in m.ins)]
        keys = {self.b.origin(self.b.given(m)[0]) for m in s.first if self.b.given(m)}
        x = keys.pop() if len(keys) == 1 else None
        if x is None:
            if (found := self._widest(s, maps))[0] is not None:
                return found
            every = {m.at for m in maps}
            first = [m for m in maps if not any(self.b.walk(i, s.stop) & every for i in m.ins)]
            keys, firsts = {self.b.origin(self.b.given(m)[0]) for m in first}, [m.at for m in first]
            if len(keys) != 1:
                return None, None
            x = keys.pop()
        whole = self._whole(x, s, firsts)
        if whole or not self._moved(x, s):
            loose = [c for c in self.enters(x) if all(c.start <= at < c.stop for at in firsts)]
            if not whole and not loose and (before := self._before_positions(x, s, firsts)) is not None:
                return before
            if entered := whole or loose or self._any(x, firsts):
                return entered[0], x
        # a module that moves tokens about inside reads them as they stand in the stream
        for key in (k for k, scaled in self._before(x) if not scaled):
            if whole := self._whole(key, s, firsts):
                return whole[0], key
        widest, read = self._widest(s, maps)
        if widest is not None and read is not None and not self._moved(read, s):
            return widest, read
        return next(iter(self._any(x, firsts)), None), x

    def _before_positions(self, x: Key, s: Sublayer, firsts: list[int]) -> tuple[Call, Key] | None:
        """Where a module adds something that is not made of the stream (positions) to what it reads, for some of its maps: that
        module, and what it reads."""
        step = self.b.made.get(x)
        given = self.b.given(step) if step is not None and step.op in ("add", "add_") else []
        for key in given:
            own = self.b.origin(key)
            alone = not any(k in self.b.streams for k in given if k != key)
            if alone and (whole := self._whole(own, s, firsts)):
                return whole[0], own
        return None

    def _widest(self, s: Sublayer, maps: list[Step]) -> tuple[Call | None, Key | None]:
        """The widest module around all projections of a sublayer that reads the stream, and not its sum; and what it reads."""
        for c in self._around(m.at for m in maps):
            reads = c.first is not None and not self.b.nearest(c.first, s.stop)
            if c.first is not None and reads and not self._holds(c, s) and self._once(c):
                return c, self.b.origin(c.first)
        return None, None

    def _whole(self, key: Key, s: Sublayer, firsts: list[int]) -> list[Call]:
        """The calls that are given a value and hold the first projections, and not the sum with the stream."""
        return [c for c in self.enters(key) if all(c.start <= at < c.stop for at in firsts) and not self._holds(c, s)]

    def _any(self, x: Key, firsts: list[int]) -> list[Call]:
        """The calls that are given a value, of which one of the first projections is a part."""
        return [c for c in self.enters(x) if any(c.start <= at < c.stop for at in firsts)]

    def _around(self, places: Iterable[int]) -> list[Call]:
        at = list(places)
        return [c for c in self.calls if all(c.start <= i < c.stop for i in at)]

    def _holds(self, c: Call, s: Sublayer) -> bool:
        """Whether the sum with the stream is made within a call."""
        made = self.b.made.get(self.b.origin(s.added.total))
        return made is not None and c.start <= made.at < c.stop

    def residual(self, s: Sublayer, x: Key | None, reads: Call | None, host: Call | None) -> str | None:
        """The path of a module that is given the stream before the sublayer is added to it; None where no module is in time."""
        key = s.added.residual
        if x is not None and x == key and reads is not None:
            return reads.path
        if self.b.whole is not None:
            return next((c.path for c in self._outside(key) if c.stop <= self.b.call.start), None)
        limit = len(self.r.steps) if host is None else host.stop
        entered = [
            c
            for c in self.enters(key)
            if c.start <= limit and (host is None or c.order <= host.order or c.start < host.stop)
        ]
        plain = None if x is None else self.b.unscaled(x)[0]
        normed = [c for c in entered if c.left is not None and self.b.origin(c.left) in (x, plain)]
        if normed or entered:
            return (normed or entered)[0].path
        return self.b.call.path if self.b.is_input(key) else None

    def norm(self, s: Sublayer, x: Key | None) -> str | None:
        """The sublayer's own norm: between the stream and what it reads, else behind the sum, else between its last map and the sum."""
        if self.b.whole is not None:
            return next(
                (c.path for k in (s.added.residual, s.added.total) for c in self._outside(k) if self.r.norms(c)), None
            )
        before = [
            c
            for c in self.enters(s.added.residual)
            if x is not None and c.left is not None and self.b.origin(c.left) in (x, self.b.unscaled(x)[0])
        ]
        goes_on = {self.b.origin(k) for k in (self.b.call.left, *(a.residual for a in self.b.added)) if k is not None}
        behind = [c for c in self.enters(self.b.origin(s.added.total)) if self.b.origin(c.left or 0) in goes_on]
        last = self.leaves(self.b.origin(s.added.h))
        found = [c for c in (*before, *behind, *last) if self.r.norms(c)]
        return found[0].path if found else None

    def _outside(self, key: Key) -> list[Call]:
        """The calls of other modules than the block that are given a value first."""
        mine = self.b.call.path
        return [
            c for c in self.r.calls
            if c.first is not None and self.r.origin(c.first) == self.r.origin(key) and self._once(c)
            and not f"{c.path}.".startswith(f"{mine}.") and not f"{mine}.".startswith(f"{c.path}.")
        ]  # fmt: skip
