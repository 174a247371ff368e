"""Which adapters of a bank are in which slot: found by name, pinned while they are in use, the others in order of their last use.

No tensor is known here. One lock guards the table and is never held while a file is read or a slot is filled, so that an
adapter on its way from the disk keeps no other one waiting.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from ..language.report.diagnostics import error, near


@dataclass(eq=False)
class Entry:
    """One adapter as it was when it was added. Replaced, it has a successor of the same name, and stays for those who use it."""

    name: str
    source: Any = None  # from where its tensors are read again; None: they are nowhere but in its slot
    slot: int | None = None
    ready: bool = False  # whether its tensors are in the slot
    pins: int = 0  # in how many blocks it is used
    gone: bool = False  # evicted or replaced: the slot is free after the last of these


class Table:
    """The adapters of a bank by name. ``fill`` reads an entry's tensors into its slot; nobody else uses the slot then.

    Who waits for a slot longer than ``patience`` seconds gets an error.
    """

    def __init__(self, slots: int, fill: Callable[[Entry], None], patience: float):
        self.slots, self.fill, self.patience = slots, fill, patience
        self.entries: dict[str, Entry] = {}
        self.reads = 0  # how often an adapter was filled in again
        self._free = list(range(slots))[::-1]
        self._idle: dict[Entry, None] = {}  # in a slot, in no block, and readable again: the longest unused first
        self._writing: set[str] = set()  # names that are added, replaced or evicted now
        self._changed = threading.Condition()

    # ------------------------------------------------------------ use

    def take(self, names: Iterable[str]) -> dict[str, Entry]:
        """The entries of some names, in slots, and there to stay until they are released."""
        wanted = list(dict.fromkeys(names))
        if len(wanted) > self.slots:
            raise error("E0855", f"a batch names {len(wanted)} adapters of a bank of {self.slots} slots",
                        help="give the bank more slots, or run the batch in parts")  # fmt: skip
        until = time.monotonic() + self.patience
        while True:
            pinned, missing = self._pin(wanted, until)
            try:
                for e in missing:
                    self._fill(e)
                if self._all_ready(pinned):
                    return {e.name: e for e in pinned}
            except BaseException as e:
                again = isinstance(e, Exception) and self._superseded(missing)
                self._unpin(pinned, missing)
                if not again:
                    raise
            else:
                self._unpin(pinned, missing)  # what another thread was to fill failed there: try it here

    def _pin(self, names: Sequence[str], until: float) -> tuple[list[Entry], list[Entry]]:
        """Pins the entries of some names, all at once or after a wait, and gives slots to those that have none, which are returned
        apart."""
        with self._changed:
            while True:
                found = [self._entry(n) for n in names]
                missing = [e for e in found if e.slot is None]
                unused = sum(e not in found for e in self._idle) if missing and self._short(missing, found) else None
                if unused is None or len(self._free) + unused >= len(missing):
                    break
                if not self._changed.wait(until - time.monotonic()):
                    raise error("E0855", f"no slot of the bank came free within {self.patience:g} s: its {self.slots} are all in use",
                                help="give the bank more slots, or leave `using` blocks sooner")  # fmt: skip
            for e in found:
                e.pins += 1
                self._idle.pop(e, None)
            for e in missing:
                e.slot = self._free.pop() if self._free else self._oldest()
            return found, missing

    def _short(self, missing: Sequence[Entry], found: Sequence[Entry]) -> bool:
        """Whether it must be counted if there are slots enough."""
        return len(self._free) + len(self._idle) - len(found) < len(missing)

    def _oldest(self) -> int:
        e = next(iter(self._idle))
        del self._idle[e]
        slot, e.slot, e.ready = e.slot, None, False
        assert slot is not None
        return slot

    def _entry(self, name: str) -> Entry:
        if name not in self.entries:
            raise error("E0551", f"the bank has no adapter named `{name}`",
                        help=near(name, self.entries) or "add it: bank.add(name, folder)")  # fmt: skip
        return self.entries[name]

    def _fill(self, e: Entry) -> None:
        self.fill(e)
        with self._changed:
            e.ready = True
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
            return any(e.gone for e in failed)

    def _unpin(self, entries: Iterable[Entry], filling: Sequence[Entry] = ()) -> None:
        with self._changed:
            for e in filling:
                if not e.ready and e.slot is not None:
                    self._free.append(e.slot)
                    e.slot = None
            for e in entries:
                e.pins -= 1
                self._settle(e)
            self._changed.notify_all()

    def _settle(self, e: Entry) -> None:
        """What becomes of an entry's slot when nobody uses it."""
        if e.pins or e.slot is None:
            return
        if e.gone:
            self._free.append(e.slot)
            e.slot, e.ready = None, False
        elif e.source is not None and e.ready:
            self._idle.pop(e, None)
            self._idle[e] = None

    def release(self, entries: Iterable[Entry]) -> None:
        self._unpin(entries)

    # ------------------------------------------------------------ change

    @contextmanager
    def changing(self, name: str, there: bool) -> Iterator[None]:
        """A block in which nobody else adds, replaces or evicts this name, which is ``there`` or is not."""
        with self._changed:
            while name in self._writing:
                self._changed.wait()
            if there:
                self._entry(name)
            elif name in self.entries:
                raise error("E0553", f"the bank has an adapter named `{name}` already",
                            help=f"bank.replace({name!r}, …), or choose another name")  # fmt: skip
            self._writing.add(name)
        try:
            yield
        finally:
            with self._changed:
                self._writing.discard(name)
                self._changed.notify_all()

    def put(self, name: str, source: Any, write: Callable[[int], None]) -> None:
        """An entry of this name from now on, in place of any there is. ``write`` fills a slot, if there is one for it.

        One that can be read again takes a free slot; one that cannot makes room for itself.
        """
        e = Entry(name, source)
        with self._changed:
            if self._free:
                e.slot = self._free.pop()
            elif source is None and self._idle:
                e.slot = self._oldest()
            elif source is None:
                old = self.entries.get(name)
                if old is None or old.pins or old.slot is None:
                    raise error("E0855", f"the bank's {self.slots} slots are taken, and what was given as tensors is kept nowhere else",
                                help="give the bank a folder to keep adapters in, or more slots, or evict one")  # fmt: skip
                e.slot, old.slot = old.slot, None
                self._forget(name)
                self.entries[name] = e  # who wants it now waits until it is ready
        try:
            if e.slot is not None:
                write(e.slot)
                e.ready = True
        except BaseException:
            self._unpin((), [e])
            raise
        with self._changed:
            if self.entries.get(name) is not e:
                self._forget(name)
            self.entries[name] = e
            self._settle(e)
            self._changed.notify_all()

    def put_aside(self, name: str, source: Any) -> None:
        """A new entry that is read when it is named."""
        with self._changed:
            self.entries[name] = Entry(name, source)

    def drop(self, name: str) -> None:
        """The name is known no longer; its slot is free after those who use it."""
        with self._changed:
            self._forget(name)
            self._changed.notify_all()

    def _forget(self, name: str) -> None:
        old = self.entries.pop(name, None)
        if old is not None:
            old.gone = True
            self._idle.pop(old, None)
            self._settle(old)

    # ------------------------------------------------------------ seen

    def counts(self) -> Counter[str]:
        """How many slots are ``free``, ``idle`` (filled, in no block) and ``used``."""
        with self._changed:
            free, idle = len(self._free), len(self._idle)
            return Counter(free=free, idle=idle, used=self.slots - free - idle)
