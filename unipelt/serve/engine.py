"""The thread that owns the model: it takes requests from a queue, lets them run together, and ends them.

No HTTP is known here: `submit` takes a job from any thread, whose future gets the answer. What is done with a job is the `Work`'s
(`writing`, `labelling`). The order is that of arrival: who waits for room is not overtaken. A fault in a batch ends that batch's
requests with an error and nothing else.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from functools import partial
from operator import is_
from typing import Any, Protocol

from .catalogue import Catalogue
from .jobs import Job
from .listener import Listener
from .options import ServeOptions
from .refusals import Refusal, broken, queue_full, stopping
from .shelf import Shelf

log = logging.getLogger(__name__)


class Work(Protocol):
    """What a server's model is for, of the task ``kind``. Its methods are called by the engine's thread, but for `check`."""

    kind: str
    tokenizer: Any
    listener: Listener

    def check(self, job: Job) -> None:
        """Refuses a job that cannot be met, before it waits. Any thread."""

    def room(self) -> int:
        """How many texts may begin now."""

    def begin(self, job: Job) -> None:
        """A job whose adapter is in the model."""

    def running(self) -> list[Job]: ...

    def leave(self, jobs: Iterable[Job]) -> None:
        """Jobs that are not to go on."""

    def step(self) -> list[tuple[Job, Any]]:
        """A bit of the work; jobs that ended, each with its answer or a `Refusal`."""


class Engine:
    """``work`` is done with the model that ``shelf`` fills with adapters of ``catalogue``. Used as a block it ends what it began."""

    def __init__(self, work: Work, shelf: Shelf, catalogue: Catalogue, options: ServeOptions):
        self.work, self.shelf, self.catalogue, self.options = work, shelf, catalogue, options
        self._waiting: deque[Job] = deque()
        self._running = 0
        self._changed = threading.Condition()
        self._stopping = False
        self._until: float | None = None
        self._ended = threading.Event()
        self._looker = threading.Thread(target=self._look, name="unipelt-folders", daemon=True)
        self._thread = threading.Thread(target=self._run, name="unipelt-engine", daemon=True)

    def __enter__(self) -> Engine:
        self._thread.start()
        if self.options.reload:
            self._looker.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self.stop()

    # ------------------------------------------------------------ from any thread

    def submit(self, job: Job) -> Job:
        """Puts a job into the queue. Raises `Refusal` where it cannot be met, the queue is full or the engine stops."""
        if job.adapter is not None:
            self.catalogue.find(job.adapter)
        self.work.check(job)
        with self._changed:
            if self._stopping or not self.alive:
                raise stopping()
            if self.waiting + job.size > self.options.max_queue:
                raise queue_full(self.waiting)
            self._waiting.append(job)
            self._changed.notify_all()
        return job

    def refuse_new(self) -> None:
        """From now on `submit` refuses; what is there goes on."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()

    def stop(self, grace: float | None = None) -> None:
        """Takes nothing new, ends what is there, for at most ``grace`` seconds (default: the options'), and returns."""
        self.refuse_new()
        with self._changed:
            self._until = time.monotonic() + (self.options.grace if grace is None else grace)
            self._changed.notify_all()
        if self._thread.is_alive():
            self._thread.join()
        self._ended.set()
        if self._looker.is_alive():
            self._looker.join()

    def listen(self, listener: Listener) -> None:
        """From now on ``listener`` is told what happens."""
        self.shelf.listener = self.work.listener = listener

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    @property
    def stopping(self) -> bool:
        return self._stopping

    @property
    def waiting(self) -> int:
        """How many texts wait."""
        with self._changed:
            return sum(job.size for job in self._waiting)

    @property
    def running(self) -> int:
        """How many requests are computed."""
        return self._running

    def wake(self) -> None:
        """A job was cancelled: the engine looks at once."""
        with self._changed:
            self._changed.notify_all()

    # ------------------------------------------------------------ the engine's own thread

    def _run(self) -> None:
        try:
            while self._rest():
                self._give_up()
                self.shelf.tidy()
                self._admit()
                self._step()
        except Exception:  # a mistake in this loop
            log.exception("the engine ended")
        finally:  # nobody is to wait for ever
            self._stopping = True
            cut = self.work.running()
            self.work.leave(cut)
            for job in cut:
                self._finish(job, broken("stopped", "the server was stopped before the answer was complete", 503))
            for job in self._taken(lambda job: True):
                job.refuse(stopping())

    def _rest(self) -> bool:
        """Waits for something to do, half a second at most; False when all is done, or the time for it is over."""
        with self._changed:
            if not self._waiting and not self.work.running():
                if self._stopping:
                    return False
                self._changed.wait(0.5)
            return self._until is None or time.monotonic() <= self._until

    def _give_up(self) -> None:
        """Ends what was cancelled and what has taken too long."""
        over = [job for job in self.work.running() if job.over()]
        self.work.leave(over)
        for job in over + self._taken(lambda job: job.over() is not None):
            self._finish(job, job.over())

    def _taken(self, wanted: Callable[[Job], bool]) -> list[Job]:
        """Takes jobs out of the queue."""
        with self._changed:
            found = [job for job in self._waiting if wanted(job)]
            if found:
                self._waiting = deque(job for job in self._waiting if job not in found)
        return found

    def _admit(self) -> None:
        """Lets as many begin as there is room for, in their order."""
        while self._waiting and (room := self.work.room()) > 0:
            job = self._waiting[0]
            if job.size > room and self.work.running():
                return
            try:
                if job.adapter is not None:
                    job.loaded = self.shelf.take(job.adapter)
                    if job.loaded is None:
                        return
                with self._changed:
                    self._waiting.popleft()
                self.work.begin(job)
            except Exception as e:  # noqa: BLE001
                self._taken(partial(is_, job))
                self._finish(job, e)

    def _step(self) -> None:
        self._running = len(self.work.running())
        if not self._running:
            return
        for job, found in self.work.step():
            self._finish(job, found)
        self._running = len(self.work.running())

    def _finish(self, job: Job, found: Any) -> None:
        """Hands an answer, or the reason why there is none, to who waits for it."""
        if job.loaded is not None:
            self.shelf.give_back(job.loaded)
            job.loaded = None
        if isinstance(found, BaseException):
            job.refuse(told(found))
        else:
            job.answer(found)

    def _look(self) -> None:
        while not self._ended.wait(self.options.reload):
            try:
                if self.catalogue.refresh():
                    for folder, reason in self.catalogue.table.refused.items():
                        log.warning("%s is not served: %s", folder, reason)
            except Exception:  # the next look may find the folders well
                log.exception("the folders could not be read")


def told(e: BaseException) -> Refusal:
    """What a client is told of an exception: of a mistake in here no more than that there was one."""
    if isinstance(e, Refusal):
        return e
    log.error("a request failed", exc_info=e)
    return broken("internal", "the server failed at this request; its log says why")
