"""What stands before the routes: the body of a request is bounded in bytes and in time, and every request is counted."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from starlette.responses import JSONResponse

from .refusals import Refusal, wrong

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class Guard:
    """ASGI middleware. ``told`` hears the route, the status and the seconds of each request."""

    def __init__(self, app: Any, most: int, seconds: float, told: Callable[[str, int, float], None]):
        self.app, self.most, self.seconds, self.told = app, most, seconds, told

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        begun, status = time.monotonic(), 499  # unless an answer begins

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            body = await self._body(scope, receive)
        except Refusal as e:
            await JSONResponse(e.to_json(), e.status, {"connection": "close"})(scope, receive, sending)
        else:
            if body is not None:
                await self.app(scope, _again(body, receive), sending)
        finally:
            route = getattr(scope.get("route"), "path", "other")
            self.told(route, status, time.monotonic() - begun)

    async def _body(self, scope: Message, receive: Receive) -> bytes | None:
        """The whole body; None where the client has gone. Raises `Refusal`."""
        said = next((v for k, v in scope["headers"] if k == b"content-length"), b"")
        if said.isdigit() and int(said[:20]) > self.most:
            raise self._too_large()
        found = bytearray()
        try:
            async with asyncio.timeout(self.seconds):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return None
                    found += message.get("body", b"")
                    if len(found) > self.most:
                        raise self._too_large()
                    if not message.get("more_body"):
                        return bytes(found)
        except TimeoutError:
            raise wrong("slow_body", f"the body did not come within {self.seconds:g} seconds", status=408) from None

    def _too_large(self) -> Refusal:
        return wrong("body_too_large", f"the body has more than {self.most} bytes", status=413)


def _again(body: bytes, receive: Receive) -> Receive:
    """Hands out a body that has been read already, then what comes after it."""
    given = False

    async def receiving() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return receiving
