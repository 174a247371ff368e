"""The adapters that are in the model now: read from their folders on demand, at most so many, the one used longest ago makes room.

Only the thread that owns the model calls anything here. A changed folder is read beside what is there; requests that run keep
what they began with, and the old one goes when the last of them has ended.
"""

from __future__ import annotations

import itertools
import logging
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from ..language.report.diagnostics import PeltError
from ..training.models import quiet
from .catalogue import Catalogue, Entry, Stamp
from .listener import SILENT, Listener
from .placing import Placed, Placing
from .refusals import Refusal, broken

log = logging.getLogger(__name__)


@dataclass(eq=False)
class Loaded:
    """An adapter in the model. ``users``: how many texts run under it; ``known``: what the work at hand has found out about it."""

    entry: Entry
    placed: Placed
    known: Any = None
    users: int = 0
    used: int = 0  # when it was asked for last


class Shelf:
    """``look`` finds out about an adapter that has just been attached, and raises where it cannot be used; ``force`` as for `unipelt.attach`."""

    def __init__(
        self, model: nn.Module, catalogue: Catalogue, most: int, look: Callable[[Entry, Placed], Any],
        listener: Listener = SILENT, force: bool = False, tokenizer: Any = None,
    ):  # fmt: skip
        self.model, self.catalogue, self.most = model, catalogue, most
        self._look, self.listener, self._placing = look, listener, Placing(model, most, force, tokenizer)
        self._now: dict[str, Loaded] = {}  # what new requests get
        self._leaving: list[Loaded] = []  # what running requests still have
        self._failed: dict[str, Stamp] = {}  # folders that could not be read as they were
        self._clock = itertools.count(1)
        self._table = catalogue.table

    def __len__(self) -> int:
        return len(self._now) + len(self._leaving)

    @property
    def names(self) -> list[str]:
        return sorted(self._now)

    def take(self, name: str) -> Loaded | None:
        """The adapter of that name, for a text more; None where there is no room before something that runs has ended.

        Raises `Refusal` where there is none of that name, or it cannot be read.
        """
        entry = self.catalogue.find(name)
        there = self._now.get(name)
        if there is None or there.entry.stamp != entry.stamp:
            if self._failed.get(name) != entry.stamp:
                if len(self) >= self.most and not self._make_room(besides=there):
                    return None
                there = self._read(entry, there)
            elif there is None:  # else what was read before goes on
                raise _unusable(name)
        there.users += 1
        there.used = next(self._clock)
        return there

    def give_back(self, loaded: Loaded) -> None:
        """A text under it has ended."""
        loaded.users -= 1
        if loaded in self._leaving and not loaded.users:
            self._leaving.remove(loaded)
            self._placing.take_out(loaded.placed)

    def tidy(self) -> None:
        """Takes out what is in no folder any more. Cheap where the catalogue has not changed."""
        table = self.catalogue.table
        if table is self._table:
            return
        self._table = table
        self._failed = {n: s for n, s in self._failed.items() if n in table.entries}
        for name in [n for n in self._now if n not in table.entries]:
            self._retire(name)

    def _read(self, entry: Entry, old: Loaded | None) -> Loaded:
        try:
            with quiet(), warnings.catch_warnings(record=True) as notes:
                warnings.simplefilter("always")
                placed = self._placing.put(entry)
                try:
                    known = self._look(entry, placed)
                except BaseException:
                    self._placing.take_out(placed)
                    raise
        except Exception as e:  # noqa: BLE001 - a folder may hold anything
            if not isinstance(e, (OSError, MemoryError, RuntimeError)):  # these may pass
                self._failed[entry.name] = entry.stamp
            self.listener.adapter("failed")
            why = e.diagnostics[0].message if isinstance(e, PeltError) else str(e) or type(e).__name__
            log.error("the adapter `%s` cannot be used: %s", entry.name, why)
            if old is not None:
                log.error("`%s` goes on as it was before", entry.name)
                return old
            raise _unusable(entry.name) from None
        for note in notes:
            log.warning("the adapter `%s`: %s", entry.name, note.message)
        self._failed.pop(entry.name, None)
        self.listener.adapter("loaded")
        if old is not None:
            self._retire(entry.name, "replaced")
        made = self._now[entry.name] = Loaded(entry, placed, known)
        return made

    def _make_room(self, besides: Loaded | None) -> bool:
        """Takes out what nobody uses and was used longest ago. What is about to be replaced may go itself."""
        idle = [x for x in self._now.values() if not x.users and x is not besides]
        if not idle:
            return besides is not None and not besides.users  # one more for a moment: the old one goes at once
        oldest = min(idle, key=lambda x: x.used)
        self._retire(oldest.entry.name, "evicted")
        return True

    def _retire(self, name: str, what: str = "removed") -> None:
        loaded = self._now.pop(name)
        if loaded.users:
            self._leaving.append(loaded)
        else:
            self._placing.take_out(loaded.placed)
        self.listener.adapter(what)


def _unusable(name: str) -> Refusal:
    return broken("adapter_unusable", f"the adapter `{name}` cannot be used: the server's log says why")
