"""What is worked out for an object is worked out once, and kept with it.

An object is known by itself and not by its value: nodes that are equal may stand at different places of a text.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from inspect import signature
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


class Remembers:
    """Keeps what `once` has worked out for it. A copy, a changed one and one from a pickle begin with nothing."""

    __slots__ = ("known",)


def once(function: Callable[P, R]) -> Callable[P, R]:
    """The function, called once for each first argument (a `Remembers`) and the others; a mistake is raised anew each time."""
    anew: Callable[..., R] = function
    defaults = {n: p.default for n, p in signature(function).parameters.items()}

    @wraps(function)
    def found(*given: P.args, **named: P.kwargs) -> R:
        args: Any = (*given, *({**defaults, **named}[n] for n in [*defaults][len(given) :]))
        try:
            known = args[0].known
        except AttributeError:
            known = {}
            object.__setattr__(args[0], "known", known)
        key = (function, *(id(a) if isinstance(a, Remembers) else a for a in args[1:]))
        if key not in known:
            known[key] = anew(*args), args[1:]  # those that are told apart by their identity must live on
        return known[key][0]

    return found
