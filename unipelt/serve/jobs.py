"""What waits in the engine's queue: a request with its deadline, and the way on which its answer goes back."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from .refusals import Refusal, cancelled, too_late
from .sampling import Sampling
from .shelf import Loaded


@dataclass(eq=False)
class Job:
    """A request under one adapter (None: the base). Any thread may `cancel` it; the engine alone ends it.

    ``future`` gets the answer, or a `Refusal`. ``size`` is how many texts it has.
    """

    adapter: str | None
    seconds: float
    size: int = 1
    future: Future[Any] = field(default_factory=Future)
    begun: float = field(default_factory=time.monotonic)
    loaded: Loaded | None = None
    _gone: bool = False

    def __post_init__(self) -> None:
        self.future.set_running_or_notify_cancel()  # so that whoever waits for it cannot end it: that is the engine's

    def cancel(self) -> None:
        """Nobody waits for the answer any more: it leaves at the next token."""
        self._gone = True

    @property
    def inside(self) -> str | None:
        """The adapter's name in the model."""
        return None if self.loaded is None else self.loaded.placed.inside

    def over(self) -> Refusal | None:
        """Why the job is not to go on, if it is not."""
        if self._gone:
            return cancelled()
        if time.monotonic() - self.begun > self.seconds:
            return too_late(self.seconds)
        return None

    def answer(self, value: Any) -> None:
        if not self.future.done():
            self.future.set_result(value)

    def refuse(self, why: Refusal) -> None:
        if not self.future.done():
            self.future.set_exception(why)


@dataclass(eq=False)
class Completion(Job):
    """A text to go on with. ``heard`` is called in the engine's thread with each piece of the answer, as it is written."""

    prompt: Sequence[int] = ()
    max_tokens: int = 16
    sampling: Sampling = Sampling()
    stop: Sequence[str] = ()
    heard: Callable[[str], None] | None = None


@dataclass(frozen=True)
class Completed:
    """An answer. ``reason``: `stop` where the model or a text to stop at ended it, `length` where it was cut."""

    text: str
    ids: tuple[int, ...]
    reason: str
    prompt_tokens: int


@dataclass(eq=False)
class Prediction(Job):
    """Texts to predict for: for each a text for each of the task's columns, in their order or by their names; one text where there
    is one column. ``cut``: whether texts that are too long may be cut."""

    inputs: Sequence[Any] = ()
    cut: bool = False
