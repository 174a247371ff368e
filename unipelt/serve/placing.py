"""Where an adapter stands in the model: in a bank of its method, whose rows are computed in one product, or by itself.

Adapters share a bank that have the same method, arguments and labels; prompts and heads of their own are no obstacle. By itself stands
an adapter that cannot share a batch, one whose frozen draws are not the bank's, one that is too large for two slots, and one that
another library wrote with a head. A method has as many banks as its adapters need; one without adapters is closed.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

from torch import nn

import unipelt

from ..compiler.plan import Plan
from ..language.ir import as_file
from ..language.report.diagnostics import PeltError
from ..runtime.bank import Bank, Given
from ..runtime.folder import read_manifest, read_method
from ..runtime.registry import registry
from .catalogue import Entry

#: A bank reserves memory for all its slots: for so many, but for no more bytes than this.
SLOTS, BYTES = 16, 2**30
#: Codes of what is right by itself and has no place in a bank.
_ALONE = ("E0853", "E0856")
#: What adapters of one bank have in common: the method, the labels, whether a head is trained.
_Kind = tuple[Any, str, bool]


@dataclass(frozen=True)
class Placed:
    """An adapter in the model, under a name that no client chooses."""

    inside: str
    plan: Plan
    bank: Bank | None = None

    @property
    def rows(self) -> int:
        """How many rows it puts among the tokens."""
        return sum(e.prompt.rows for e in self.plan.edits if e.prompt is not None and e.prompt.grows)


class Placing:
    """Puts adapters into a model and takes them out; ``most`` is how many there will be at most. ``force`` is as for `unipelt.attach`."""

    def __init__(self, model: nn.Module, most: int, force: bool = False, tokenizer: Any = None):
        self.model, self.most, self.force, self.tokenizer = model, most, force, tokenizer
        self.banks: dict[_Kind, list[Bank]] = {}
        self._alone: set[_Kind] = set()  # what no bank takes
        self._names = itertools.count()

    def put(self, entry: Entry) -> Placed:
        """Reads an adapter's folder. Raises `PeltError`, the model as it was."""
        if entry.foreign:
            return self._foreign(entry)
        manifest = read_manifest(entry.folder)
        method = read_method(entry.folder, manifest)
        kind = (as_file(method), repr(manifest.get("labels")), bool(manifest["head"]))
        banked = self._in_bank(kind, entry.folder, entry, entry.folder)
        if banked is not None:
            return banked
        inside = unipelt.attach(self.model, entry.folder, self._name(), force=self.force, tokenizer=self.tokenizer)
        return self._by_itself(inside)

    def take_out(self, placed: Placed) -> None:
        bank = placed.bank
        if bank is None:
            unipelt.remove(self.model, placed.inside)
            return
        bank.evict(placed.inside)
        if not len(bank):
            self._close(next(kind for kind, banks in self.banks.items() if bank in banks), bank)

    def _foreign(self, entry: Entry) -> Placed:
        """An adapter of another library: it is read into the model, and goes into a bank from there unless it has a head."""
        placed = self._by_itself(unipelt.attach(self.model, entry.folder, self._name()))
        if placed.plan.labels is not None or placed.plan.copies:
            return placed
        method = placed.plan.method
        try:
            given = unipelt.state_dict(self.model, placed.inside)
            banked = self._in_bank((as_file(method), "", False), method, entry, given)
        except BaseException:
            self.take_out(placed)
            raise
        if banked is not None:
            self.take_out(placed)
        return banked or placed

    def _by_itself(self, inside: str) -> Placed:
        self.model.eval()
        unipelt.activate(self.model)
        return Placed(inside, self._plan(inside))

    def _plan(self, name: str) -> Plan:
        r = registry(self.model)
        assert r is not None
        return r.attached[name].plan

    def _in_bank(self, kind: _Kind, made_of: Any, entry: Entry, given: Given) -> Placed | None:
        """None where the adapter has no place in a bank, which would be made of ``made_of``."""
        slots = self._slots(entry)
        if kind in self._alone or slots < 2:
            return None
        bank, new = next((b for b in self.banks.get(kind, ()) if len(b) < b.slots), None), False
        try:
            if bank is None:
                bank, new = unipelt.bank(self.model, made_of, self._name("b"), slots=slots, force=self.force), True
                self.banks.setdefault(kind, []).append(bank)
                self.model.eval()
            inside = f"{bank.name}_{self._name()}"  # rows of one bank stand together when they are sorted
            bank.add(inside, given)
        except BaseException as e:
            if bank is not None and new:
                self._close(kind, bank)
            if not isinstance(e, PeltError) or e.diagnostics[0].code not in _ALONE:
                raise
            if bank is None:
                self._alone.add(kind)
            return None
        return Placed(inside, self._plan(bank.name), bank)

    def _close(self, kind: _Kind, bank: Bank) -> None:
        bank.close()
        self.banks[kind].remove(bank)
        if not self.banks[kind]:
            del self.banks[kind]

    def _slots(self, entry: Entry) -> int:
        stored = max(size for _, size, *_ in entry.stamp)  # that of the tensors
        return min(SLOTS, self.most, BYTES // max(2 * stored, 1))

    def _name(self, front: str = "a") -> str:
        return f"{front}{next(self._names)}"
