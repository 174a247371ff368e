"""Where tokens enter a tower, and what stands behind its last block."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from .heads import word_embeddings
from .laid import lies
from .record import SAME, Call, Key, Recording, Step
from .sites import View

#: How many operations back from the first block the table of words is looked for.
_FAR = 400


@dataclass(frozen=True, slots=True)
class Ends:
    """``embed`` and ``words`` are where tokens enter, ``final`` is the norm behind the last block; ``width`` each's last size (None: its
    tokens lie behind their numbers).

    ``positions``: whether something is added to the words before the first block. ``factor``: by what the words are multiplied
    behind their module and before it; ``scaled``: whether it multiplies them itself.
    """

    embed: tuple[View, int | None] | None
    words: tuple[View, int | None] | None
    final: tuple[View, int | None] | None
    positions: bool
    factor: float = 1.0
    scaled: bool = False

    def views(self) -> Iterator[tuple[str, View, int | None]]:
        for name, at in (("embed", self.embed), ("final", self.final), ("embed.words", self.words)):
            if at is not None:
                yield name, *at


def ends(model: nn.Module, r: Recording, start: Call, stop: Call) -> Ends:
    """The ends of a tower whose first block's call is ``start``, and whose last's is ``stop``."""
    assert start.first is not None and stop.left is not None
    entering = r.origin(start.first)
    table = _words(model, r, entering)
    words: tuple[View, int | None] | None = None
    if table is not None:
        words = _view(r, table.path, table.left or 0), r.shapes[table.left or 0][-1]
    yields = _yields(r, entering, start, table)
    maker = r.made_by.get(entering)
    if maker is not None and maker.op == "projection" and [c.path for c in yields] == [maker.weight]:
        entering = r.origin(maker.ins[0])  # a map to the width of the blocks is none of the words
        yields = _yields(r, entering, start, table)
    factor = None
    embed: tuple[View, int | None] | None
    if table is not None and table.left is not None and not (yields and r.origin(table.left) != entering):
        factor = _multiplied(r, entering, r.origin(table.left))
    if factor is not None:
        embed = words
    elif yields:
        c = max(yields, key=lambda c: c.order)
        embed = _view(r, c.path, c.left or 0), _width(r, c.left or 0)
    else:
        embed = View(start.path, enters=True), _width(r, start.first)
    positions = table is None or table.left is None or _adds(r, entering, r.origin(table.left))
    return Ends(embed, words, _final(r, stop), positions, factor or 1.0, table is not None and _scales(r, table))


def _multiplied(r: Recording, key: Key, until: Key) -> float | None:
    """By what a value was multiplied on the way from another one, where nothing else was done to it."""
    factor = 1.0
    while key != until:
        s = r.made_by.get(key)
        if s is None or not s.ins:
            return None
        if s.op in ("mul", "div"):
            number = _number(s)
            if number is None:
                return None
            factor *= number
        elif s.op not in SAME:
            return None
        key = s.ins[0]
    return factor


def _scales(r: Recording, table: Call) -> bool:
    """Whether a table's module multiplies its entries."""
    steps = r.steps[table.start : table.stop]
    return any(s.op in ("mul", "div") and _number(s) != 1.0 for s in steps)


def _number(s: Step) -> float | None:
    """The number that a step multiplies its tensor by; None where a tensor holds it, which is not known on the meta device."""
    by = s.args[1] if len(s.args) > 1 else None
    return None if not isinstance(by, (int, float)) or not by else float(by) if s.op == "mul" else 1 / float(by)


def _yields(r: Recording, key: Key, start: Call, table: Call | None) -> list[Call]:
    """The calls before a tower's first block that yield a value, of modules that are called once."""
    found = [
        c
        for c in r.calls
        if c.left is not None and c.start <= start.start and c.order < start.order and r.origin(c.left) == key
    ]
    return [c for c in found if len(r.of(c.path)) == 1 or (table is not None and c.path == table.path)]


def _words(model: nn.Module, r: Recording, entering: Key) -> Call | None:
    """The call of the table of words whose entries reach a tower."""
    tables = [c for c in r.calls if c.left is not None and isinstance(getattr(c.module, "num_embeddings", None), int)]
    behind = _behind(r, entering)
    own = word_embeddings(model)
    given = {r.origin(k) for k in r.inputs}
    tables = [c for c in tables if c.module is own or (c.first is not None and r.origin(c.first) in given)]
    reached = [
        c for c in tables if c.left in behind or r.origin(c.left or 0) in behind or r.origin(c.left or 0) == entering
    ]
    chosen = [c for c in reached if c.module is own] or sorted(reached, key=lambda c: -int(c.module.num_embeddings))[:1]  # type: ignore[arg-type]
    return chosen[0] if chosen else None


def _behind(r: Recording, key: Key) -> set[Key]:
    seen: set[Key] = set()
    left = [key]
    while left and len(seen) < _FAR:
        k = left.pop(0)
        s = r.made_by.get(k)
        if k in seen or s is None or s.op == "attention":
            continue
        seen.add(k)
        left += [i for i in s.ins if i not in r.parameters]
    return seen | set(left)


def _adds(r: Recording, key: Key, until: Key) -> bool:
    """Whether something is added on the way from one value to another."""
    for _ in range(_FAR):
        if key == until:
            return False
        s: Step | None = r.made_by.get(key)
        if s is None or s.op in ("add", "add_") or not s.ins:
            return True
        key = (
            s.ins[0]
            if s.op in SAME or s.ins[0] not in r.parameters
            else next((i for i in s.ins if i not in r.parameters), s.ins[0])
        )
    return True


def _final(r: Recording, last: Call) -> tuple[View, int | None] | None:
    """The norm that is given what leaves the last block."""
    left = r.origin(last.left or 0)
    for c in r.calls:
        behind = c.first is not None and c.start >= last.stop and r.origin(c.first) == left and c.path not in last.outer
        if behind and c.left is not None and r.norms(c):
            return _view(r, c.path, c.left), _width(r, c.left)
    return None


def _view(r: Recording, path: str, key: Key) -> View:
    """What leaves a module, where its tokens may lie before the examples."""
    return View(path, layout=lies(r, key, pictures=False))


def _width(r: Recording, key: Key) -> int | None:
    return None if key in r.axes else r.shapes[key][-1]
