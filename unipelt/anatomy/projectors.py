"""What stands between two towers: the module that makes of what one yields what the next one reads among its tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from .record import Call, Key, Recording
from .sites import NOT_YET, Site, Stack, View


def projectors(r: Recording, stacks: Sequence[Stack], root: str, sizes: dict[str, int]) -> Iterator[Site]:
    """The projector of each tower that a main tower reads in a pass; ``root`` stands before the paths of blocks."""
    blocks = {s.name: [f"{root}{b}" for b in s.blocks] for s in stacks}
    inside = tuple(f"{b}." for own in blocks.values() for b in own)
    ends = [r.of(blocks[s.name][0])[:1] for s in stacks if s.main]
    reading = [c[0] for c in ends if c]
    for stack in (s for s in stacks if not s.main):
        # from the last block on: of some towers that one's output is not what is read
        for last, main in ((c[-1], main) for b in reversed(blocks[stack.name]) if (c := r.of(b)) for main in reading):
            call = _between(r, last, main, inside)
            if call is None or call.first is None or call.left is None:
                continue
            own = {**sizes, "d_model": r.width(call.left), "d_x": r.width(call.first)}
            # else several tokens become one, and `x` and `h` do not meet
            same = r.positions(call.left) == r.positions(call.first)
            yield Site("projector", View(call.path), own, stack=stack.name, x=call.path, tokens=stack.name, proof=NOT_YET,
                       lacks=frozenset() if same else frozenset(["x"]))  # fmt: skip
            break


def _between(r: Recording, last: Call, main: Call, inside: tuple[str, ...]) -> Call | None:
    """The widest call between what leaves a tower and what enters another that holds all linear maps on the way."""
    if last.left is None:
        return None
    behind = _reached(r, last.left, last.stop, main.start)
    if main.first is None or main.first not in behind:
        return None
    needed = {main.first}  # else a pooler that nothing reads would be on the way
    for s in reversed(r.steps[last.stop : main.start]):
        if not needed.isdisjoint(s.outs):
            needed.update(s.ins)
    maps = [
        s.at for s in r.steps[last.stop : main.start]
        if s.weight and not f"{s.weight}.".startswith(inside) and behind & set(s.ins) and needed & set(s.outs)
    ]  # fmt: skip
    for c in r.calls:  # outermost first
        whole = maps and all(c.start <= at < c.stop for at in maps) and c.start >= last.stop and c.stop <= main.start
        if (
            whole
            and c.first in behind
            and c.left in behind
            and r.times[c.path] == 1
            and main.first in _reached(r, c.left, c.stop, main.start)
        ):
            return c
    return None


def _reached(r: Recording, key: Key, start: int, stop: int) -> set[Key]:
    """The values that depend on one, among steps."""
    found = {key}
    for s in r.steps[start:stop]:
        if not found.isdisjoint(s.ins):
            found.update(s.outs)
    return found
