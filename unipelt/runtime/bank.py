"""A bank: many adapters of one method on one model, their tensors stacked in slots, the others on disk until they are named.

The model's modules know one adapter, whose tensors are [slots, …]; a batch picks the slots of its examples from them, and the rows of
all are computed in one product. So neither modules nor memory grow with the number of adapters. `slots` says who is where.

An adapter that was added from a folder is read back from there, and one that was given as tensors from the bank's own folder,
where it was written as `unipelt.save` writes: whole or not there, with hashes. Nothing is read back that is not what was added.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from os.path import isfile
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..anatomy.interrupts import ended_by, finish
from ..anatomy.packed import apart
from ..compiler.labels import Labels
from ..compiler.lower import lowerings
from ..compiler.plan import Plan
from ..language.files import reason
from ..language.ir import Method, as_file
from ..language.report.diagnostics import PeltError, error
from ..language.report.warned import warn
from .acting import alone
from .attach import create, hang, refuse_name, refuse_new, take_out
from .checkpoint import check_whole_numbers, compare_shapes, head_of, tensors_in
from .folder import bring_back, read_manifest, read_method, read_tensors
from .hub import MANIFEST, METHOD, WEIGHTS, located
from .members import resolved
from .references import load
from .registry import Attached, refuse_in_use, registry, unwrapped
from .same_base import compare_fingerprints
from .saving import as_saved, fingerprint, labels_json
from .sharding import put
from .slots import Entry, Lease, Table
from .switch import ADAPTER_NAME

#: Tensors by their names, or the folder of a saved adapter.
Given = Mapping[str, torch.Tensor] | str | Path


@dataclass(frozen=True)
class Source:
    """The folder from which an adapter is read again, and the hash that its tensors' file had."""

    folder: Path
    sha256: str


def bank(
    model: nn.Module, method: Method | str | Path, name: str = "bank", *, slots: int = 64, folder: str | Path | None = None,
    labels: int | Sequence[str] | Labels | None = None, allow_future: bool = False, dtype: torch.dtype | None = None,
    patience: float = 60.0, force: bool = False,
) -> Bank:  # fmt: skip
    """Makes a bank for adapters of one method on a model, and returns it: ``bank.add("ann", "adapters/ann")``, then
    ``with unipelt.using(model, ["ann", None, "bob"]): …``.

    ``method`` is a method with its arguments, or a folder: that of a saved adapter like those to come. The tensors of ``slots`` adapters
    are held in the model (`Bank.bytes`), however many are added. The others are read when a batch names them; those go that
    have not been named for the longest time. Who finds all slots in use waits ``patience`` seconds at most.
    ``folder`` is where adapters are kept that are given as tensors; those that lie there already are in the bank. ``labels``,
    ``allow_future`` and ``dtype`` are as in `unipelt.apply`, ``force`` as in `unipelt.attach`.

    Tensors that are drawn and not trained (VeRA's) are held once: all adapters of a bank have the same. Nothing is trained in a
    bank. Raises `PeltError` for a method that cannot share a batch with others (`unipelt.using`); the model is then as it was.
    """
    model = unwrapped(model)
    refuse_new(model, name, dtype)
    if slots < 1 or not patience > 0:
        raise error("E0855", f"a bank has 1 slot or more and some patience, not {slots} and {patience:g} s")
    asked: dict[str, Any] = {"head": None, "labels": labels}
    if not isinstance(method, Method):
        if isfile(Path(method) / MANIFEST):
            manifest = read_manifest(Path(method))
            asked = head_of(model, Path(method), manifest)
            allow_future = allow_future or bool(manifest.get("allow_future"))
        method = load(method)
    planned = resolved(model, method).planned(model, allow_future=allow_future, **asked)
    # what is folded is kept for tensors that stay as they are, and here others may be meant at every call
    attached = Attached(planned, 0, lowerings(True) - {"folded"}, trainable=False)
    attached.stacked = frozenset(attached.names) - {n for n, t in planned.tensors.items() if t.frozen}
    why = alone(model, planned)
    if why:
        raise error("E0853", f"adapters of `{planned.method.name}` cannot share a batch with others: {why}",
                    help="attach them one by one: unipelt.attach")  # fmt: skip
    with apart(model):
        made = create(model, attached, None, dtype)
    if any(t.is_meta for t in made.values()):
        raise error("E0855", "the model is on the meta device, where slots hold no values", help="load the base first")
    stacks = {
        n: t.detach().new_zeros((slots, *t.shape)) if n in attached.stacked else t.detach() for n, t in made.items()
    }
    base = fingerprint(model)
    hang(model, name, attached, stacks, act=False)
    r = registry(model)
    assert r is not None
    found = Bank(model, name, attached, slots, Path(folder) if folder is not None else None, patience, base, force)
    r.banks[name] = found
    try:
        found._adopt()
    except BaseException:
        finish(found.close)
        raise
    return found


class Bank:
    """Adapters of one method by name, for `unipelt.using`; made by `unipelt.bank`. Every method may be called from any thread.

    A block sees each adapter as it was when the block began: one that is replaced or evicted meanwhile stays until its end.
    """

    def __init__(
        self, model: nn.Module, name: str, attached: Attached, slots: int, folder: Path | None, patience: float, base: Mapping[str, Any],
        force: bool,
    ):  # fmt: skip
        self.model, self.name, self.folder = model, name, folder
        self._attached, self._base, self._force = attached, base, force
        self._labels = labels_json(model, attached.plan)
        self._table = Table(slots, self._fill, patience)
        self._same_method: set[str] = set()  # hashes of `method.pelt` files that hold the bank's method
        self._first = threading.Lock()  # while it is not known what the frozen tensors are
        self._known = not self._frozen

    # ------------------------------------------------------------ seen

    @property
    def method(self) -> Method:
        return self._attached.method

    @property
    def plan(self) -> Plan:
        return self._attached.plan

    @property
    def names(self) -> tuple[str, ...]:
        """The adapters in the bank."""
        return tuple(self._table.entries)

    def __contains__(self, name: object) -> bool:
        return name in self._table.entries

    def __len__(self) -> int:
        return len(self._table.entries)

    @property
    def slots(self) -> int:
        return self._table.slots

    @property
    def resident(self) -> tuple[str, ...]:
        """The adapters whose tensors are in slots now."""
        return tuple(n for n, e in [*self._table.entries.items()] if e.ready)

    @property
    def reads(self) -> int:
        """How often an adapter was read back."""
        return self._table.reads

    @property
    def bytes(self) -> int:
        """What the slots take of the model's memory: the same from the first adapter to the last."""
        return sum(t.numel() * t.element_size() for t in self._attached.values().values())

    def __repr__(self) -> str:
        return f"Bank({self.name!r}: {self.method.name}, {len(self)} adapters in {self.slots} slots)"

    def state_dict(self, name: str) -> dict[str, torch.Tensor]:
        """The tensors of an adapter by name, as `unipelt.state_dict` gives them; copies."""
        with self.held([name]) as slots:
            a = self._attached
            return {
                n: (t[slots[name]] if n in self._stacked else t).detach().reshape(a.shape(n)).clone()
                for n, t in a.values().items()
            }

    # ------------------------------------------------------------ change

    def add(self, name: str, adapter: Given) -> None:
        """Adds an adapter: the folder of a saved one, or its tensors (`unipelt.state_dict`).

        All is checked as `unipelt.attach` does. `PeltError` for a name that is taken, for another method or other arguments than
        the bank's, for another base, for files that are broken; for tensors in a bank without a folder, where no slot is free.
        The bank is then as it was.
        """
        if name not in self:
            refuse_name(self.model, name)
        self._refuse_closed()
        with self._table.changing(name, there=False):
            self._put(name, adapter)

    def replace(self, name: str, adapter: Given) -> None:
        """Puts another adapter in an adapter's place, as `add` does, from the next block on."""
        self._refuse_closed()
        with self._table.changing(name, there=True):
            before = self._table.entries[name].source
            self._put(name, adapter)
            now = self._table.entries[name].source
            if before is not None and (now is None or now.folder != before.folder):
                self._delete(before.folder)

    def evict(self, name: str) -> None:
        """Takes an adapter out, from the next block on. What the bank's folder has of it is deleted; a folder that it was added from
        is not."""
        self._refuse_closed()
        with self._table.changing(name, there=True):
            source = self._table.entries[name].source
            self._table.drop(name)
            if source is not None:
                self._delete(source.folder)

    @property
    def closed(self) -> bool:
        r = registry(self.model)
        return r is None or r.banks.get(self.name) is not self

    def _refuse_closed(self) -> None:
        if self.closed:
            raise error("E0854", f"the bank `{self.name}` is closed", help="make another one: unipelt.bank(model, …)")

    def close(self) -> None:
        """Takes the bank out of the model; what is in folders stays. `PeltError` while a block uses one of its adapters."""
        r = registry(self.model)
        if r is None or self.closed:
            return
        refuse_in_use(r, self.name)
        if self._table.in_use:
            raise error("E0592", f"the bank `{self.name}` is in use in another thread", help="leave its blocks first")

        def commit() -> None:
            take_out(self.model, r, self.name)
            r.banks.pop(self.name, None)

        finish(commit)

    def __enter__(self) -> Bank:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __deepcopy__(self, memo: dict) -> Bank:
        raise error("E0854", f"the model has the bank `{self.name}`, which is not copied",
                    help="close it first (bank.close()), and make another one on the copy")  # fmt: skip

    def __reduce__(self) -> Any:
        return self.__deepcopy__({})

    @contextmanager
    def held(self, names: Sequence[str]) -> Iterator[dict[str, int]]:
        """The slots of some adapters, which keep them while the block lasts."""
        lease = Lease()
        with ended_by(lambda: self._table.release(lease)):
            found = self._table.take(names, lease)
            yield {n: e.slot for n, e in found.items() if e.slot is not None}

    # ------------------------------------------------------------ tensors

    @property
    def _stacked(self) -> frozenset[str]:
        return self._attached.stacked or frozenset()

    @property
    def _frozen(self) -> frozenset[str]:
        """The tensors that all adapters share."""
        return frozenset(self._attached.names) - self._stacked

    def _put(self, name: str, adapter: Given) -> None:
        source, tensors = self._read(name, adapter)
        self._table.put(name, source, lambda slot: self._write(slot, tensors))

    def _read(self, name: str, adapter: Given) -> tuple[Source | None, Mapping[str, torch.Tensor]]:
        """An adapter's tensors, checked, and where they are read again."""
        plan = self.plan
        if isinstance(adapter, (str, Path)):
            folder = located(adapter)
            source, manifest = self._source(folder)
            tensors: Mapping[str, torch.Tensor] = tensors_in(plan, folder, manifest)
            check_whole_numbers(plan, tensors)
            self._share(name, tensors)
            return source, tensors
        tensors = {n: t.detach() for n, t in adapter.items()}
        compare_shapes(plan, {n: tuple(t.shape) for n, t in tensors.items()}, f"what was given for `{name}`")
        check_whole_numbers(plan, tensors)
        bad = next((n for n, t in tensors.items() if not torch.isfinite(t).all()), None)
        if bad is not None:
            raise error("E0584", f"the tensor `{bad}` that was given for `{name}` holds NaN or infinity")
        self._share(name, tensors)
        if self.folder is None:
            return None, tensors
        said = {"adapter": name, "seed": 0, "folded": False, "base": self._base, "drawn": {}, "card": {}}
        kept = {n: t.cpu() for n, t in tensors.items()}
        as_saved(self.model, plan, self.method, kept, said).write(self.folder / name)
        return self._source(self.folder / name)[0], tensors

    def _source(self, folder: Path) -> tuple[Source, dict[str, Any]]:
        """A folder and its manifest, if what it holds is an adapter for this bank; its tensors are not read."""
        manifest = read_manifest(folder)
        compare_fingerprints(self._base, manifest.get("base") or {}, folder, self._force)
        written = str(manifest["sha256"].get(METHOD))
        if written not in self._same_method:
            found = read_method(folder, manifest)
            if as_file(found) != as_file(self.method):
                what = f"with {found.arguments}" if found.name == self.method.name else f"the method `{found.name}`"
                raise error("E0856", f"the adapter in {folder} has {what}, and the bank has `{self.method.name}` with {self.method.arguments}",
                            help="make a bank for each method: unipelt.bank(model, folder)")  # fmt: skip
            self._same_method.add(written)
        if manifest.get("labels") != self._labels:
            raise error("E0856", f"the adapter in {folder} has other labels than the bank",
                        help="make a bank for it: unipelt.bank(model, folder), or attach it by itself")  # fmt: skip
        return Source(folder, str(manifest["sha256"].get(WEIGHTS))), manifest

    def _share(self, name: str, tensors: Mapping[str, torch.Tensor]) -> None:
        """The frozen tensors are those of the first adapter; others must have the same."""
        with self._first:
            own = self._attached.values()
            for n in self._frozen:
                new = tensors[n].reshape(own[n].shape).to(own[n].device, own[n].dtype)
                if self._known and not torch.equal(own[n], new):
                    raise error("E0856", f"the frozen tensor `{n}` of `{name}` is not the one that the bank's adapters share",
                                help="train the adapters of a bank with one seed, or make another bank")  # fmt: skip
                if not self._known:
                    put(own[n], new)
            self._known = True

    @torch.no_grad()
    def _write(self, slot: int, tensors: Mapping[str, torch.Tensor]) -> None:
        """Fills a slot, which nobody reads."""
        own = self._attached.values()
        devices = {t.device for t in own.values() if t.device.type == "cuda"}
        for device in devices:  # what was queued, on whatever stream, for the adapter that was here
            torch.cuda.synchronize(device)
        for n in self._stacked:
            # past torch's count of changes: other slots are not changed, and a backward pass may still need them
            own[n].data[slot].copy_(tensors[n].reshape(own[n].shape[1:]))
        for device in devices:
            torch.cuda.synchronize(device)

    def _fill(self, e: Entry) -> None:
        """Reads an adapter back into its slot."""
        assert e.slot is not None
        folder = e.source.folder
        manifest = read_manifest(folder)
        if manifest["sha256"].get(WEIGHTS) != e.source.sha256:
            raise error("E0857", f"the adapter in {folder} is another than was added as `{e.name}`",
                        help=f"bank.replace({e.name!r}, {str(folder)!r})")  # fmt: skip
        self._write(e.slot, read_tensors(folder, manifest))

    # ------------------------------------------------------------ the bank's own folder

    def _adopt(self) -> None:
        """Takes in what lies in the bank's folder; a warning names what does not belong to the bank."""
        if self.folder is None:
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as e:
            raise error("E0575", f"the bank's folder {self.folder} cannot be made: {reason(e)}") from e
        for room in self.folder.glob(".*.saving-*"):  # a replacement that was killed between its two steps
            bring_back(self.folder / room.name[1:].rpartition(".saving-")[0])
        left: list[str] = []
        for place in sorted(p for p in self.folder.iterdir() if p.is_dir() and not p.name.startswith(".")):
            try:
                if not ADAPTER_NAME.fullmatch(place.name):
                    raise error("E0552", f"{place.name!r} is no adapter's name")
                self._take_in(place)
            except PeltError as e:
                left.append(f"{place.name} ({e.diagnostics[0].message})")
        if left:
            warn(f"of {self.folder} these are not in the bank: {'; '.join(left)}")

    def _take_in(self, place: Path) -> None:
        refuse_name(self.model, place.name)
        source, manifest = self._source(place)
        if self._frozen:
            self._share(place.name, tensors_in(self.plan, place, manifest))
        self._table.put_aside(place.name, source)

    def _delete(self, place: Path) -> None:
        """Deletes an adapter's folder, if it is in the bank's: whole or not at all, wherever this is broken off."""
        if self.folder is None or place.parent != self.folder or not place.exists():
            return
        room = Path(tempfile.mkdtemp(prefix=f".{place.name}.evicted-", dir=self.folder))
        os.rename(place, room / place.name)
        shutil.rmtree(room, ignore_errors=True)
