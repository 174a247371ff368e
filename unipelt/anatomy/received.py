"""What attention functions receive as queries, keys and values, wherever a module gets or calls them in a way that can be seen."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn import functional

from .calls import lock
from .interrupts import ended_by

#: What is told of a call: the module that calls (None where it is not known), and its queries, keys and values.
Saw = Callable[[Any, tuple[torch.Tensor, ...]], None]
_NAMES = ("query", "key", "value")


@contextmanager
def received(saw: Saw) -> Iterator[None]:
    """Shows ``saw`` each call of an attention function in this thread, before it runs.

    Seen are the functions of transformers' interface and `scaled_dot_product_attention`, which many modules call
    themselves (and the interface, too: a call in a call is not told again). A softmax that a module writes out is not.
    """
    from transformers.modeling_utils import AttentionInterface

    mine, inside = threading.get_ident(), [0]

    def telling(module: Any, args: tuple, kwargs: dict[str, Any]) -> None:
        found = [*args[:3], *(kwargs[n] for n in _NAMES[len(args) :] if n in kwargs)]
        if not inside[0] and len(found) == 3 and all(isinstance(t, torch.Tensor) for t in found):
            saw(module, tuple(found))

    def within(function: Callable, *args: Any, **kwargs: Any) -> Any:
        inside[0] += 1
        try:
            return function(*args, **kwargs)
        finally:
            inside[0] -= 1

    with lock:
        ask, direct = AttentionInterface.get_interface, functional.scaled_dot_product_attention

        def asked(self: Any, implementation: str, default: Callable) -> Callable:
            function = ask(self, implementation, default)
            if threading.get_ident() != mine:
                return function

            def call(module: Any, *args: Any, **kwargs: Any) -> Any:
                telling(module, args, kwargs)
                return within(function, module, *args, **kwargs)

            return call

        def attend(*args: Any, **kwargs: Any) -> Any:
            if threading.get_ident() != mine:
                return direct(*args, **kwargs)
            telling(None, args, kwargs)
            return within(direct, *args, **kwargs)

        def end() -> None:
            if AttentionInterface.get_interface is asked:  # nobody has put something else there meanwhile
                AttentionInterface.get_interface = ask  # type: ignore[method-assign]
            if functional.scaled_dot_product_attention is attend:
                functional.scaled_dot_product_attention = direct

        with ended_by(end):
            AttentionInterface.get_interface = asked  # type: ignore[method-assign,assignment]
            functional.scaled_dot_product_attention = attend  # type: ignore[assignment]
            yield
