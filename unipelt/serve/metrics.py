"""Counts for an operator, as Prometheus reads them; a server has its own, so that two in one process do not add up."""

from __future__ import annotations

from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from .listener import Listener

_SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100)
_TEXTS = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics(Listener):
    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        own: Any = {"registry": self.registry}
        self._requests = Counter("unipelt_requests", "Requests by route and status", ["route", "status"], **own)
        self._seconds = Histogram("unipelt_request_seconds", "Seconds of a request", ["route"], buckets=_SECONDS, **own)
        self._of = Counter("unipelt_adapter_requests", "Requests that were taken, by adapter", ["adapter"], **own)
        self._tokens = Counter("unipelt_tokens", "Tokens read (prompt) and written (completion)", ["kind"], **own)
        self._adapters = Counter("unipelt_adapters", "What happened to adapters", ["what"], **own)
        self._batch = Histogram("unipelt_batch_texts", "Texts of a pass of the model", buckets=_TEXTS, **own)
        self._mixed = Histogram("unipelt_batch_adapters", "Adapters of a pass of the model", buckets=_TEXTS, **own)
        self._waiting = Gauge("unipelt_waiting", "Texts in the queue", **own)
        self._running = Gauge("unipelt_running", "Requests that are computed", **own)
        self._in_memory = Gauge("unipelt_adapters_in_memory", "Adapters in the model", **own)
        self._on_disk = Gauge("unipelt_adapters_on_disk", "Adapters in the folders", **own)

    def adapter(self, what: str) -> None:
        self._adapters.labels(what).inc()

    def batch(self, texts: int, adapters: int) -> None:
        self._batch.observe(texts)
        self._mixed.observe(adapters)

    def request(self, route: str, status: int, seconds: float) -> None:
        """``route`` is one of the server's own: what a client makes up is no label."""
        self._requests.labels(route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def taken(self, adapter: str) -> None:
        """A request for an adapter that is known, or for the base."""
        self._of.labels(adapter).inc()

    def tokens(self, read: int, written: int) -> None:
        self._tokens.labels("prompt").inc(read)
        self._tokens.labels("completion").inc(written)

    def text(self, waiting: int, running: int, in_memory: int, on_disk: int) -> bytes:
        for gauge, value in (
            (self._waiting, waiting), (self._running, running), (self._in_memory, in_memory), (self._on_disk, on_disk)
        ):  # fmt: skip
            gauge.set(value)
        return generate_latest(self.registry)
