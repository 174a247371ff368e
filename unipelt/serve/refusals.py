"""What a client is told when it does not get what it asked for: a status of HTTP and plain words, in the shape of OpenAI's errors.

Nothing of this machine is said: no paths, no traceback. What an operator needs goes to the log.
"""

from __future__ import annotations

from typing import Any

from ..language.report.diagnostics import counted


class Refusal(Exception):
    """``kind`` says whose mistake it is, ``code`` which one; ``param`` is the field of the request that is meant."""

    def __init__(self, status: int, kind: str, code: str, message: str, param: str | None = None):
        super().__init__(message)
        self.status, self.kind, self.code, self.message, self.param = status, kind, code, message, param

    def to_json(self) -> dict[str, Any]:
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}


def wrong(code: str, message: str, param: str | None = None, status: int = 400) -> Refusal:
    """The request cannot be met as it is."""
    return Refusal(status, "invalid_request_error", code, message, param)


def broken(code: str, message: str, status: int = 500) -> Refusal:
    """The request may be right, and the server cannot meet it."""
    return Refusal(status, "server_error", code, message)


def too_long(tokens: int, room: int) -> Refusal:
    return wrong("context_length_exceeded", f"the text has {tokens} tokens, and at most {room} are read here: shorten it", "prompt")  # fmt: skip


def use_predict(kind: str) -> Refusal:
    return wrong("wrong_endpoint", f"this server's model is for {kind}: use /predict")


def queue_full(waiting: int) -> Refusal:
    message = f"the queue has no room ({counted(waiting, 'text')} waiting): try again in a moment"
    return Refusal(429, "rate_limit_error", "queue_full", message)


def stopping() -> Refusal:
    return broken("stopping", "the server is being stopped and takes no new requests", 503)


def too_late(seconds: float) -> Refusal:
    return broken("timeout", f"the request was given up after {seconds:g} seconds: ask for fewer tokens, or try again later", 504)  # fmt: skip


def cancelled() -> Refusal:
    return Refusal(499, "invalid_request_error", "cancelled", "the client has gone")
