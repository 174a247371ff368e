"""Which adapters act, and the per-thread holder in which a tensor travels from one hook to the next."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from ..anatomy.interrupts import ended_by
from .prompts.passes import Pass

#: What an adapter may be called.
ADAPTER_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_\-]*")


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
        return holder.acting if holder.entered is not None else self.chosen

    # What is switched while a pass is under way, by another thread, acts from the next pass on: half of an adapter computes nothing.

    def begin(self, module: Any, args: Any) -> None:
        """A hook before a module that a pass may begin with; the modules inside it begin no pass of their own."""
        holder = self.holder
        if holder.entered is None or holder.entered is module:
            holder.entered, holder.acting = module, self.chosen

    def end(self, module: Any, args: Any, output: Any) -> None:
        if self.holder.entered is module:
            self.holder.entered = None
