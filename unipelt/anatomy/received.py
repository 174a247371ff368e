"""What attention functions receive as queries, keys and values, wherever a module gets or calls them in a way that can be seen."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from .calls import interface_watched
from .own_attention import Core, OwnAttention

#: What is told of a call: the module that calls (None where it is not known), its queries, keys and values, and (past
#: transformers' interface) what it yields.
Saw = Callable[[Any, tuple[torch.Tensor, ...], torch.Tensor | None], None]
_NAMES = ("query", "key", "value")


@contextmanager
def received(saw: Saw) -> Iterator[None]:
    """Shows ``saw`` each call of an attention function in this thread.

    Seen are the functions of transformers' interface, `scaled_dot_product_attention`, which many modules call themselves (and
    the interface, too: a call in a call is not told again), and attention that is written out (see `own_attention`).
    """
    inside = [0]

    def telling(module: Any, args: tuple, kwargs: dict[str, Any], out: torch.Tensor | None = None) -> None:
        found = [*args[:3], *(kwargs[n] for n in _NAMES[len(args) :] if n in kwargs)]
        if not inside[0] and len(found) == 3 and all(isinstance(t, torch.Tensor) for t in found):
            saw(module, tuple(found), out)

    def call(module: Any, function: Callable, args: tuple, kwargs: dict[str, Any]) -> Any:
        telling(module, args, kwargs)
        inside[0] += 1
        try:
            return function(module, *args, **kwargs)
        finally:
            inside[0] -= 1

    with interface_watched(call), _Own(telling):
        yield


class _Own(OwnAttention):
    def __init__(self, telling: Callable[..., None]):
        super().__init__()
        self.telling = telling

    def attends(self, function: Callable, args: tuple, kwargs: dict[str, Any]) -> Any:
        out = function(*args, **kwargs)
        self.telling(None, args, kwargs, out)
        return out

    def yields(self, core: Core) -> None:
        self.telling(None, (core.scores.q, core.scores.k, core.v), {}, core.out)
