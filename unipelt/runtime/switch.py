"""Which adapters act, and the per-thread holder in which a tensor travels from one hook to the next."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import nn

from ..anatomy.interrupts import ended_by
from ..language.report.diagnostics import counted, error
from .prompts.passes import Pass

#: What an adapter may be called.
ADAPTER_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_\-]*")


@dataclass(frozen=True)
class Group:
    """The rows of a batch that one adapter has (``name`` None: the base): a run of them, or a list.

    Where the adapter is a bank, ``slots`` says for each row in which slot its tensors are.
    """

    name: str | None
    at: tuple[int, ...]
    slots: tuple[int, ...] = ()
    last: bool = True  # whether the adapter has no further rows in the batch

    @cached_property
    def slot(self) -> int | None:
        """The slot of all rows, where it is the same."""
        return self.slots[0] if len(set(self.slots)) == 1 else None

    def slots_on(self, device: torch.device) -> torch.Tensor:
        """The slot of each row: [rows]."""
        if self._on.get(device) is None:
            self._on[device] = torch.tensor(self.slots, device=device)
        return self._on[device]

    @cached_property
    def _on(self) -> dict[torch.device, torch.Tensor]:
        return {}

    def of(self, t: torch.Tensor) -> torch.Tensor:
        """These rows of a tensor; a view where they are one run."""
        first, last = self.at[0], self.at[-1]
        if last - first + 1 == len(self.at):
            return t[first : last + 1]
        return t.index_select(0, torch.tensor(self.at, device=t.device))


class Weighted(tuple[str, ...]):
    """Adapters that act in this order, the change of each with a weight (see `weighed`)."""

    weights: dict[str, float]

    @staticmethod
    def of(weights: Mapping[str, float]) -> tuple[str, ...]:
        """The names as they are, where all weights are 1."""
        if all(w == 1 for w in weights.values()):
            return tuple(weights)
        found = Weighted(weights)
        found.weights = dict(weights)
        return found

    def __reduce__(self) -> Any:
        return Weighted.of, (self.weights,)

    def __deepcopy__(self, memo: dict) -> tuple[str, ...]:
        return Weighted.of(self.weights)


def without(acting: tuple[str, ...], name: str) -> tuple[str, ...]:
    """The adapters that act, but for one."""
    if isinstance(acting, Weighted):
        return Weighted.of({n: w for n, w in acting.weights.items() if n != name})
    return tuple(n for n in acting if n != name)


class Mixture(tuple[str, ...]):
    """The adapters of a batch in which each example has its own: their names, and ``examples``, whose is which (None: the base's).

    Adapters of a bank have the bank's name there, and ``slots`` their slots in it; ``names`` are all as the user calls them.
    """

    examples: tuple[str | None, ...]
    slots: tuple[int | None, ...]
    names: tuple[str, ...]
    #: By the size of a batch, and whether each slot has a group of its own: its groups, and where each of its rows is once they stand
    #: one behind the other (None: where it was).
    known: dict[tuple[int, bool], tuple[list[Group], list[int] | None]]

    @staticmethod
    def of(names: Sequence[str | None], held: Mapping[str, tuple[str, int]] | None = None) -> Mixture:
        """``held`` has, for each adapter of a bank, the bank's name and its slot there."""
        placed = [(held or {}).get(n, (n, None)) if n is not None else (None, None) for n in names]
        found = Mixture(dict.fromkeys(n for n, _ in placed if n is not None))
        found.examples, found.slots = tuple(n for n, _ in placed), tuple(s for _, s in placed)
        found.names, found.known = tuple(dict.fromkeys(n for n in names if n is not None)), {}
        return found

    def groups(self, batch: int, apart: bool = False) -> list[Group]:
        """Whose the rows of a batch are. A batch of a multiple of the examples (beams, several answers) has each in a run.

        The rows of a bank are one group, or, ``apart``, one for each slot.
        """
        if (batch, apart) not in self.known:
            n = len(self.examples)
            if batch % n:
                raise error("E0852", f"a batch of {batch} came, and {counted(n, 'adapter')} {'was' if n == 1 else 'were'} named, one for each example",
                            help="name as many as the batch has examples, None for the base")  # fmt: skip
            at: dict[tuple[str | None, int | None], list[int]] = {}
            slots = [self.slots[i * n // batch] for i in range(batch)]
            for i in range(batch):
                at.setdefault((self.examples[i * n // batch], slots[i] if apart else None), []).append(i)
            order = [i for rows in at.values() for i in rows]
            back = sorted(range(batch), key=order.__getitem__)
            last = {name: rows for (name, _), rows in at.items()}
            groups = [
                Group(name, tuple(rows), tuple(s for i in rows if (s := slots[i]) is not None), last[name] is rows)
                for (name, _), rows in at.items()
            ]
            self.known[batch, apart] = groups, None if order == sorted(order) else back
        return self.known[batch, apart][0]

    def together(self, parts: Sequence[torch.Tensor], apart: bool = False) -> torch.Tensor:
        """The rows of all groups in the order of the batch. Where heads score labels of different number, what a row has none for is
        -inf: no label."""
        if len(parts) == 1:
            return parts[0]
        widest = max(t.shape[-1] for t in parts)
        if any(t.shape[-1] < widest for t in parts):
            parts = [nn.functional.pad(t, (0, widest - t.shape[-1]), value=-torch.inf) for t in parts]
        whole = torch.cat(list(parts))
        back = self.known[len(whole), apart][1]
        return whole if back is None else whole.index_select(0, torch.tensor(back, device=whole.device))


class Holder(threading.local):
    """Values on their way between two hooks of one forward pass, one dictionary for each thread.

    A copied or unpickled model gets an empty one: what is under way belongs to the pass, not to the model.
    """

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}
        self.current = Pass()
        #: What the `using` and `disabled` blocks of this thread choose; the innermost counts.
        self.blocks: list[tuple[str, ...]] = []
        #: The module whose pass this thread is in, and what acts in it from its first hook to its last.
        self.entered: Any = None
        self.acting: tuple[str, ...] = ()
        #: The rows of a mixed batch that are computed now.
        self.part: Group | None = None
        self.rows = 0  # how many `with_rows` blocks
        self.given: dict[str, Any] = {}  # arguments of the forward pass that an `inputs` block gives

    @contextmanager
    def using(self, names: tuple[str, ...]) -> Iterator[None]:
        """These adapters act in this thread while the block lasts, however it ends."""
        depth = len(self.blocks)

        def end() -> None:
            del self.blocks[depth:]
            self.entered = None  # a pass that was broken off has ended

        with ended_by(end):
            end()
            self.blocks.append(names)
            yield

    @contextmanager
    def of_rows(self, group: Group) -> Iterator[None]:
        """Only the adapter of these rows of the batch acts."""
        with ended_by(lambda: setattr(self, "part", None)):
            self.part = group
            yield

    @contextmanager
    def with_rows(self) -> Iterator[None]:
        before = self.rows
        with ended_by(lambda: setattr(self, "rows", before)):
            self.rows = before + 1
            yield

    def __deepcopy__(self, memo: dict) -> Holder:
        return Holder()

    def __reduce__(self):
        return Holder, ()


class Switch:
    """The state all seams of a model share: the active adapters in order of application."""

    def __init__(self) -> None:
        self.active: tuple[str, ...] = ()
        self.holder = Holder()
        #: Whether examples have ever had adapters of their own here; before that no pass asks. It is never taken back: threads
        #: that counted their blocks could lose one.
        self.mixes = False
        #: How far training has come, in [0, 1]: one tensor for good, which compiled code reads.
        self.progress = torch.zeros(())

    @property
    def chosen(self) -> tuple[str, ...]:
        """The adapters that a pass of this thread would have."""
        blocks = self.holder.blocks
        return blocks[-1] if blocks else self.active

    @property
    def live(self) -> tuple[str, ...]:
        """The adapters that act in this thread now: in a pass those that were chosen when it began."""
        holder = self.holder
        if self.mixes and holder.part is not None:
            return () if holder.part.name is None else (holder.part.name,)
        return holder.acting if holder.entered is not None else self.chosen

    @property
    def takes(self) -> bool:
        """Whether what was left for an edit is taken now: no further rows of its adapter follow."""
        part = self.holder.part if self.mixes else None
        return part is None or part.last

    def mixture(self) -> Mixture | None:
        """The mixture that acts in this thread now, outside a part of it."""
        live = self.live
        return live if isinstance(live, Mixture) else None

    def own(self, t: Any) -> Any:
        """A tensor of the batch, of which only the rows that are computed now are meant."""
        part = self.holder.part if self.mixes else None
        return t if part is None or t is None else part.of(t)

    # What is switched while a pass is under way, by another thread, acts from the next pass on: half of an adapter computes nothing.

    def begin(self, module: Any, args: Any) -> None:
        """A hook before a module that a pass may begin with; the modules inside it begin no pass of their own."""
        holder = self.holder
        if holder.entered is None or holder.entered is module:
            holder.entered, holder.acting = module, self.chosen

    def end(self, module: Any, args: Any, output: Any) -> None:
        if self.holder.entered is module:
            self.holder.entered = None
