"""Who is told what happens, to count it."""

from __future__ import annotations


class Listener:
    """Hears everything and keeps nothing; `metrics.Metrics` keeps it. Called by the engine's thread."""

    def adapter(self, what: str) -> None:
        """An adapter was ``loaded``, ``failed`` to load, was ``evicted``, ``replaced`` or ``removed``."""

    def batch(self, texts: int, adapters: int) -> None:
        """A pass with so many texts, under so many adapters (the base counts as one)."""


SILENT = Listener()
