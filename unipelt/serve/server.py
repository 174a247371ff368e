"""The process of a server: its socket, its signals, its end."""

from __future__ import annotations

import logging
import signal
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType

from ..language.report.diagnostics import PeltError, error
from .options import DEFAULTS, ServeOptions


def serve(
    model: str, folders: Sequence[str | Path], options: ServeOptions = DEFAULTS,
    say: Callable[[str], None] = lambda text: None, ready: Callable[[str], None] = lambda address: None,
) -> None:  # fmt: skip
    """Serves until the process is told to end (SIGINT, SIGTERM): then what runs is ended and nothing new is taken.

    ``ready`` gets the address once requests are heard. Raises `PeltError`: without the extra (E0862), for an address that cannot be
    listened on (E0863), and as `open_engine` does.
    """
    options.check()
    try:
        import fastapi  # noqa: F401
        import prometheus_client  # noqa: F401
        import uvicorn
    except ImportError as e:
        raise missing(e) from None

    from .app import make_app
    from .opening import open_engine

    listening = _listen(options)
    try:
        engine = open_engine(model, folders, options, say=say)
        app = make_app(engine)

        class Server(uvicorn.Server):
            def handle_exit(self, sig: int, frame: FrameType | None) -> None:
                """The first signal ends the server when what runs has ended, a second Ctrl-C at once; being told to stop is no failure."""
                engine.refuse_new()
                self.force_exit = self.should_exit and sig == signal.SIGINT
                self.should_exit = True

            async def startup(self, sockets: list[socket.socket] | None = None) -> None:
                await super().startup(sockets)
                if self.started:
                    ready(_address(listening))

        config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=int(options.grace) + 1)
        logging.getLogger("unipelt").setLevel(logging.INFO)
        with engine:
            Server(config).run([listening])
    finally:
        listening.close()
    say("stopped: what was running has ended")


def missing(e: ImportError) -> PeltError:
    return error("E0862", f"a server needs {e.name}, which is not installed", help="pip install 'unipelt[serve]'")


def _listen(options: ServeOptions) -> socket.socket:
    """Binds before anything is loaded: an address in use is said at once."""
    try:
        family, *_, address = socket.getaddrinfo(options.host, options.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]  # fmt: skip
        made = socket.socket(family, socket.SOCK_STREAM)
        try:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            made.bind(address)
        except OSError:
            made.close()
            raise
    except (OSError, UnicodeError, OverflowError) as e:
        why = getattr(e, "strerror", None) or str(e)
        raise error("E0863", f"the server cannot listen on {options.host}:{options.port}: {why}",
                    help="choose another `--port` or `--host`; 0 is any port that is free") from None  # fmt: skip
    return made


def _address(listening: socket.socket) -> str:
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
