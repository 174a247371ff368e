"""Which adapters act, and the per-thread holder in which a tensor travels from one hook to the next."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

#: The one name under which everything of ours is registered in a module.
NAME = "unipelt"
#: What an adapter may be called.
ADAPTER_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_\-]*")


class Holder(threading.local):
    """Values on their way between two hooks of one forward pass, one dictionary for each thread.

    A copied or unpickled model gets an empty one: what is under way belongs to the pass, not to the model.
    """

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}
        self.depth = 0  # how many `disabled` blocks this thread is in
        self.rows = 0  # how many `with_rows` blocks
        self.given: dict[str, Any] = {}  # arguments of the forward pass that an `inputs` block gives

    @contextmanager
    def within(self, block: Literal["depth", "rows"]) -> Iterator[None]:
        """Counts a block of this thread while it lasts, however it ends."""
        setattr(self, block, getattr(self, block) + 1)
        try:
            yield
        finally:
            setattr(self, block, getattr(self, block) - 1)

    def __deepcopy__(self, memo: dict) -> Holder:
        return Holder()

    def __reduce__(self):
        return Holder, ()


class Switch:
    """The state all seams of a model share: the active adapters in order of application."""

    def __init__(self) -> None:
        self.active: tuple[str, ...] = ()
        self.holder = Holder()

    @property
    def live(self) -> tuple[str, ...]:
        """The adapters that act in this thread now."""
        return () if self.holder.depth else self.active
