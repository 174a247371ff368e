"""Which adapters of a bank are in which slot: found by name, held while they are in use, the others in order of their last use.

No tensor is known here. One lock guards the table and is never held while a file is read or a slot is filled, so that an
adapter on its way from the disk keeps no other one waiting. Every step leaves a state from which the next call goes on, wherever
Ctrl-C comes: who owns a slot is said in one place, and what is derived from that is derived again when slots are short.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from ..anatomy.interrupts import ended_by
from ..language.report.diagnostics import error, near


@dataclass(eq=False)
class Entry:
    """One adapter as it was when it was added. Replaced, it has a successor of the same name, and stays for those who use it."""

    name: str
    source: Any = None  # from where its tensors are read again; None: they are nowhere but in its slot
    slot: int | None = None
    filled: int | None = None  # the slot that its tensors were written to
    users: set[Lease] = field(default_factory=set)  # the blocks in which it is used

    @property
    def ready(self) -> bool:
        return self.slot is not None and self.filled == self.slot


@dataclass(eq=False)
class Lease:
    """The entries that one block uses, and those of them that it has to fill."""

    entries: Sequence[Entry] = ()
    filling: Sequence[Entry] = ()


class Table:
    """The adapters of a bank by name. ``fill`` reads an entry's tensors into its slot; nobody else uses the slot then.

    Who waits for a slot longer than ``patience`` seconds gets an error.
    """

    def __init__(self, slots: int, fill: Callable[[Entry], None], patience: float):
        self.slots, self.fill, self.patience = slots, fill, patience
        self.entries: dict[str, Entry] = {}
        self.reads = 0  # how often an adapter was filled in again
        self._owners: list[Entry | None] = [None] * slots  # of one that is elsewhere by now, the slot is free
        self._free = list(range(slots))[::-1]
        self._idle: dict[Entry, None] = {}  # in a slot, in no block, and readable again: the longest unused first
        self._writing: dict[str, object] = {}  # names that are added, replaced or evicted now
        self._changed = threading.Condition()

    # ------------------------------------------------------------ use

    def take(self, names: Iterable[str], lease: Lease) -> dict[str, Entry]:
        """The entries of some names, in slots, and there to stay until the lease is released, which also follows an error."""
        wanted = list(dict.fromkeys(names))
        if len(wanted) > self.slots:
            raise error("E0855", f"a batch names {len(wanted)} adapters of a bank of {self.slots} slots",
                        help="give the bank more slots, or run the batch in parts")  # fmt: skip
        until = time.monotonic() + self.patience
        while True:
            self._lease(wanted, until, lease)
            try:
                for e in lease.filling:
                    self._fill(e)
                if self._all_ready(lease.entries):
                    return {e.name: e for e in lease.entries}
            except Exception:
                if not self._superseded(lease.filling):
                    raise
            self.release(lease)  # what another thread was to fill failed there: try it here

    def _lease(self, names: Sequence[str], until: float, lease: Lease) -> None:
        """Holds the entries of some names, all at once or after a wait, and gives slots to those that have none."""
        with self._changed:
            while True:
                found = [self._entry(n) for n in names]
                missing = [e for e in found if e.slot is None]
                if self._has_room(len(missing), found):
                    break
                if not self._changed.wait(until - time.monotonic()):
                    raise error("E0855", f"no slot of the bank came free within {self.patience:g} s: its {self.slots} are all in use",
                                help="give the bank more slots, or leave `using` blocks sooner")  # fmt: skip
            lease.entries, lease.filling = found, missing  # first: what follows is taken back by these
            for e in found:
                e.users.add(lease)
                self._idle.pop(e, None)
            for e in missing:
                self._give(e, self._free.pop() if self._free else self._oldest())

    def _has_room(self, count: int, beside: Sequence[Entry]) -> bool:
        """Whether so many slots are free, or can be made so, and those of some entries stay."""
        if count == 0 or len(self._free) + len(self._idle) - len(beside) >= count:
            return True
        self._recount()
        return len(self._free) + sum(e not in beside for e in self._idle) >= count

    def _recount(self) -> None:
        """Free and idle slots, from who owns them."""
        for e in self._owners:
            if e is not None and e.slot is not None and not e.users and (self._gone(e) or not e.ready):
                e.slot = None
        owned = {e.slot: e for i, e in enumerate(self._owners) if e is not None and e.slot == i}
        self._free = [i for i in range(self.slots) if i not in owned]
        idle = [e for e in owned.values() if not e.users and e.source is not None]
        self._idle = dict.fromkeys([*(e for e in self._idle if e in idle), *idle])

    def _give(self, e: Entry, slot: int) -> None:
        e.filled = None
        self._owners[slot] = e
        e.slot = slot

    def _oldest(self) -> int:
        """The slot of the entry that has not been used for the longest time, which it leaves."""
        e = next(iter(self._idle))
        del self._idle[e]
        slot, e.slot = e.slot, None
        assert slot is not None
        return slot

    def _entry(self, name: str) -> Entry:
        if name not in self.entries:
            raise error("E0551", f"the bank has no adapter named `{name}`",
                        help=near(name, self.entries) or "add it: bank.add(name, folder)")  # fmt: skip
        return self.entries[name]

    def _gone(self, e: Entry) -> bool:
        """Whether it was evicted or replaced."""
        return self.entries.get(e.name) is not e

    def _fill(self, e: Entry) -> None:
        self.fill(e)
        with self._changed:
            e.filled = e.slot
            self.reads += 1
            self._changed.notify_all()

    def _all_ready(self, entries: Sequence[Entry]) -> bool:
        """Whether all are there, after those that other threads fill; False where one of these failed."""
        with self._changed:
            while any(not e.ready and e.slot is not None for e in entries):
                self._changed.wait()
            return all(e.ready for e in entries)

    def _superseded(self, missing: Sequence[Entry]) -> bool:
        """Whether one that could not be read is another by now, or gone: after that its name is looked up again."""
        with self._changed:
            failed = [e for e in missing if not e.ready]
            while any(e.name in self._writing for e in failed):
                self._changed.wait()
            return any(self._gone(e) for e in failed)

    def release(self, lease: Lease) -> None:
        """The end of a block; may be repeated."""
        with self._changed:
            for e in lease.filling:
                if e.slot is not None and not e.ready:
                    self._leave(e)
            for e in lease.entries:
                e.users.discard(lease)
                self._settle(e)
            self._changed.notify_all()

    def _leave(self, e: Entry) -> None:
        slot, e.slot = e.slot, None
        self._free.append(slot)  # type: ignore[arg-type]

    def _settle(self, e: Entry) -> None:
        """What becomes of an entry's slot when nobody uses it."""
        if e.users or e.slot is None:
            return
        self._idle.pop(e, None)
        if self._gone(e):
            self._leave(e)
        elif e.source is not None and e.ready:
            self._idle[e] = None

    # ------------------------------------------------------------ change

    @contextmanager
    def changing(self, name: str, there: bool) -> Iterator[None]:
        """A block in which nobody else adds, replaces or evicts this name, which is ``there`` or is not."""
        me = object()

        def end() -> None:
            with self._changed:
                if self._writing.get(name) is me:
                    del self._writing[name]
                self._changed.notify_all()

        with ended_by(end):
            with self._changed:
                while name in self._writing:
                    self._changed.wait()
                if there:
                    self._entry(name)
                elif name in self.entries:
                    raise error("E0553", f"the bank has an adapter named `{name}` already",
                                help=f"bank.replace({name!r}, …), or choose another name")  # fmt: skip
                self._writing[name] = me
            yield

    def put(self, name: str, source: Any, write: Callable[[int], None]) -> None:
        """An entry of this name from now on, in place of any there is. ``write`` fills a slot, if there is one for it.

        One that can be read again takes a free slot; one that cannot makes room for itself.
        """
        e, lease = Entry(name, source), Lease()

        def end() -> None:
            with self._changed:
                if self.entries.get(name) is e and source is None and not e.ready:
                    del self.entries[name]
                self.release(lease)

        with ended_by(end):
            with self._changed:
                slot = self._slot_for(e)
                lease.entries, lease.filling = [e], [e]
                e.users.add(lease)
                if slot is not None:
                    self._give(e, slot)
            if e.slot is not None:
                write(e.slot)
                e.filled = e.slot
            with self._changed:
                old = self.entries.get(name)
                self.entries[name] = e
                if old is not None and old is not e:
                    self._settle(old)

    def _slot_for(self, e: Entry) -> int | None:
        """A slot for a new entry; none where it need not have one."""
        if self._free or e.source is None and self._has_room(1, ()):
            return self._free.pop() if self._free else self._oldest()
        if e.source is not None:
            return None
        old = self.entries.get(e.name)
        if old is None or old.users or old.slot is None:
            raise error("E0855", f"the bank's {self.slots} slots are taken, and what was given as tensors is kept nowhere else",
                        help="give the bank a folder to keep adapters in, or more slots, or evict one")  # fmt: skip
        self.entries[e.name] = e  # who wants it now waits until it is ready
        slot, old.slot = old.slot, None
        return slot

    def put_aside(self, name: str, source: Any) -> None:
        """A new entry that is read when it is named."""
        with self._changed:
            self.entries[name] = Entry(name, source)

    def drop(self, name: str) -> None:
        """The name is known no longer; its slot is free after those who use it."""
        with self._changed:
            old = self.entries.pop(name, None)
            if old is not None:
                self._settle(old)
            self._changed.notify_all()

    # ------------------------------------------------------------ seen

    @property
    def in_use(self) -> bool:
        """Whether a block uses an adapter that the table knows."""
        with self._changed:
            return any(e.users for e in self.entries.values())

    def counts(self) -> Counter[str]:
        """How many slots are ``free``, ``idle`` (filled, in no block) and ``used``."""
        with self._changed:
            self._recount()
            free, idle = len(self._free), len(self._idle)
            return Counter(free=free, idle=idle, used=self.slots - free - idle)
