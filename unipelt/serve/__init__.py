"""One base and many adapters behind HTTP: ``unipelt serve MODEL DIR…``.

The parts, each usable by itself, from the bottom up:

- `options`: the limits of a server; `refusals`: what a client is told when it does not get what it asked for;
- `catalogue`: folders on disk, by name; `shelf`: those of them that are in the model now;
- `decoding`: rows of texts that go on together, with a cache; `sampling` and `texts`: from scores to tokens to text;
- `writing` (language models) and `labelling` (all other tasks): what is done with the requests;
- `engine`: the thread that owns the model, and its queue. It knows no HTTP;
- `placing`: adapters of one method in banks, others by themselves;
- `schemas`, `app`, `metrics`, `server`: HTTP. Only these need ``pip install 'unipelt[serve]'``.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

_WHERE = {"ServeOptions": "options", "open_engine": "opening", "make_app": "app", "serve": "server"}

__all__ = sorted(_WHERE)

if TYPE_CHECKING:
    from .app import make_app as make_app
    from .opening import open_engine as open_engine
    from .options import ServeOptions as ServeOptions
    from .server import serve as serve


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'unipelt.serve' has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_WHERE[name]}"), name)
