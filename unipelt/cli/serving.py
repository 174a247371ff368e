"""The command `serve`."""

from __future__ import annotations

import logging
import sys
from typing import Annotated

import typer

from ..serve.options import ServeOptions
from .options import AsJson
from .output import emit, say, visible


class _Lines(logging.Handler):
    """The log as lines on stderr, with what would control a terminal escaped."""

    def emit(self, record: logging.LogRecord) -> None:
        say(visible(self.format(record)))


def serve(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="The base: a model folder, or a name on the hub.")],
    folders: Annotated[
        list[str],
        typer.Argument(
            metavar="DIR…",
            help="Folders of adapters (each a folder of `unipelt train --out`, of `unipelt.save`, of peft or of AdapterHub's `adapters`), or adapters' own folders. "
            "A folder's name is the adapter's; new, changed and removed ones are noticed.",
        ),
    ],
    options: ServeOptions,
    as_json: AsJson = False,
) -> None:
    """Serve a base with many adapters over HTTP, the `model` of a request names the adapter: OpenAI's /v1/completions and /v1/chat/completions for language models, /predict for other tasks; /v1/models, /health, /metrics. Requests for different adapters are computed together. There are no accounts: put a proxy that knows its users before it."""
    from ..serve.server import serve as run

    handler = _Lines()
    for name in ("unipelt", "uvicorn.error"):
        logging.getLogger(name).addHandler(handler)

    def ready(address: str) -> None:
        if as_json:
            emit({"ok": True, "address": address})
            sys.stdout.flush()  # who started the server waits for this
        else:
            say(f"listening on {address}; Ctrl-C ends it")

    run(model, folders, options, say, ready)
