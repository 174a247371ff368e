"""Which adapters act, and the per-thread holder in which a tensor travels from one hook to the next."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch.compiler import is_compiling

from ..anatomy.interrupts import ended_by
from . import caches
from .mixture import Group, Mixture
from .prompts.passes import Pass
from .steady import Kinds, Steady

T = TypeVar("T")
#: What an adapter may be called.
ADAPTER_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_\-]*")


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
        #: What hosts do in this pass where nothing has changed since the last one.
        self.steady: Steady | None = None
        #: The cache of a steady pass, as long as learned rows may stay in it, and the keys with rows that a layer of it gave last (see
        #: `rows_in_cache`).
        self.cache: Any = None
        self.with_rows_in: torch.Tensor | None = None
        #: The rows of a mixed batch that are computed now.
        self.part: Group | None = None
        self.rows = 0  # how many `with_rows` blocks
        self.given: dict[str, Any] = {}  # arguments of the forward pass that an `inputs` block gives
        self._mixture: Mixture | None = None

    @contextmanager
    def using(self, names: tuple[str, ...]) -> Iterator[None]:
        """These adapters act in this thread while the block lasts, however it ends."""
        depth = len(self.blocks)

        def end() -> None:
            del self.blocks[depth:]
            # a pass that was broken off has ended
            self.entered = self.steady = self.cache = self.with_rows_in = None

        with ended_by(end):
            end()
            self.blocks.append(names)
            yield

    def of_rows(self, group: Group, compute: Callable[[], T]) -> T:
        """Computes something while only the adapter of these rows of the batch acts."""
        self.part = group
        try:
            return compute()
        finally:  # where even this is broken off, the next pass begins with the whole batch
            self.part = None

    def mixture(self, names: Sequence[str | None], held: Mapping[str, tuple[str, int]]) -> Mixture:
        """The mixture of these names (see `Mixture.of`): the last one again, where it is the same, with what it has found out."""
        new = Mixture.of(names, held)
        last = self._mixture
        if last is None or (last.examples, last.slots, last.names) != (new.examples, new.slots, new.names):
            last = self._mixture = new
        return last

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
        self.kinds = Kinds()
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

    def begin(self, module: Any, args: Any, kwargs: Mapping[str, Any]) -> None:
        """A hook before a module that a pass may begin with; the modules inside it begin no pass of their own."""
        holder = self.holder
        if holder.entered is None or holder.entered is module:
            holder.entered, holder.acting, holder.part = module, self.chosen, None
            holder.current.carried = {}
            if not is_compiling():
                holder.steady = None if self.mixes else self.kinds.of(holder.acting, holder)
                holder.cache = None if holder.steady is None else caches.given(kwargs)
                holder.with_rows_in = None

    def end(self, module: Any, args: Any, output: Any) -> None:
        if self.holder.entered is module:
            self.holder.entered = self.holder.current.carried = None
            if not is_compiling():
                self.holder.steady = self.holder.cache = self.holder.with_rows_in = None
