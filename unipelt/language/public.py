"""Public functions refuse an argument of a wrong kind before they do anything: the annotations say what each takes."""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import wraps
from itertools import accumulate, starmap
from os import PathLike
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from .report.diagnostics import error

#: Labels may come from anywhere; what is wrong with them is said in one place, for all.
ELSEWHERE = ("labels", "problem_type")
_KINDS = {
    NoneType: "None",
    str: "a text",
    Path: "a path",
    bool: "True or False",
    int: "a whole number",
    float: "a number",
}


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function with its arguments checked. Names that are given one by one (``*names``, ``**arguments``) are its own affair."""
    signature = inspect.signature(function)
    single = [p.name for p in signature.parameters.values()
              if p.name not in ELSEWHERE and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]  # fmt: skip
    hints: dict[str, Any] = {}

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            given = signature.bind(*args, **kwargs).arguments
        except TypeError:
            return function(*args, **kwargs)  # which says what is missing, or which name it does not know
        if not hints:
            hints.update(get_type_hints(function))
        for name in single:
            if name in given and not fits(given[name], hints[name]):
                raise error("E0593", f"the argument `{name}` of `{function.__name__}` is {kind(hints[name])}, not {_shown(given[name])}",
                            help=f"call {_call(function.__name__, signature)}")  # fmt: skip
            takes = Path in get_args(hints[name]) and isinstance(given.get(name), (str, PathLike))
            if takes and (why := _no_path(given[name])):
                raise error("E0594", f"the argument `{name}` of `{function.__name__}` is no path that this system can have: {why}",
                            help="give another path")  # fmt: skip
        return function(*args, **kwargs)

    call.__module__ = "unipelt"  # where it is found, also by pickle
    return call


def fits(value: Any, hint: Any) -> bool:
    """Whether a value is of the kind that an annotation names; numbers of other libraries are numbers."""
    origin, inner = get_origin(hint), get_args(hint)
    if hint is Any:
        return True
    if origin in (Union, UnionType):
        return any(fits(value, h) for h in inner)
    if origin is not None and issubclass(origin, Mapping):
        return isinstance(value, origin) and all(fits(k, inner[0]) and fits(v, inner[1]) for k, v in value.items())
    if origin is not None and issubclass(origin, Sequence):
        return (
            isinstance(value, origin) and not isinstance(value, (str, bytes)) and all(fits(v, inner[0]) for v in value)
        )
    if origin is Iterable:  # what yields its entries once is not looked into
        single = isinstance(value, (str, bytes, Mapping)) or not isinstance(value, Iterable)
        return not single and (not isinstance(value, Sequence) or all(fits(v, inner[0]) for v in value))
    if hint in (int, float):
        return not isinstance(value, bool) and _converts(value, "__index__" if hint is int else "__float__")
    return isinstance(value, PathLike if hint is Path else origin or hint)


def _no_path(path: Any) -> str:
    """Why a text can be no path anywhere: a character that none may have. Other trouble is that of who opens it."""
    try:
        os.stat(path)
    except ValueError as e:
        return str(e)
    except OSError:
        pass
    return ""


def _converts(value: Any, method: str) -> bool:
    """Whether an object converts itself to a number: a tensor of one entry does, one of several has the method, too."""
    try:
        return getattr(type(value), method)(value) is not None
    except (AttributeError, TypeError, ValueError, RuntimeError):
        return False


_PLURALS = {str: "texts", int: "whole numbers", float: "numbers"}


def kind(hint: Any) -> str:
    """An annotation in words: a text or a path or None."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return " or ".join(map(kind, inner))
    if origin is not None and issubclass(origin, Mapping):
        values = f" and whose values are {_PLURALS[inner[1]]}" if inner[1] in _PLURALS else ""
        return f"a dict whose keys are {_PLURALS[inner[0]]}{values}"
    if origin is not None and issubclass(origin, Sequence):
        return f"a list of {_PLURALS[inner[0]]}" if inner[0] in _PLURALS else "a list"
    if origin is Iterable:
        return "an iterable of dicts" if get_origin(inner[0]) is Mapping else "an iterable"
    if getattr(hint, "_is_protocol", False):
        return f"a {hint.__name__.lower()}"
    return _KINDS.get(hint) or f"a `{_public_name(hint)}`"


def _public_name(cls: type) -> str:
    """The shortest name under which a class is imported: `torch.nn.Module`, which is written in `torch.nn.modules.module`."""
    fronts = list(accumulate(cls.__module__.split("."), "{}.{}".format))
    found = (f for f in fronts if getattr(sys.modules.get(f), cls.__name__, None) is cls)
    return f"{next(found, fronts[-1])}.{cls.__name__}"


def _shown(value: Any) -> str:
    """A short value itself, of any other its class: a model's text is long."""
    if isinstance(value, type):
        return f"the class `{value.__name__}`"
    if isinstance(value, (str, bytes, int, float, list, tuple, dict, NoneType)) and len(text := repr(value)) <= 60:
        return text
    return f"a `{type(value).__name__}`"


def _call(name: str, signature: inspect.Signature) -> str:
    """How a function is called: what it must be given, then what it may."""
    return f"unipelt.{name}({', '.join(starmap(_argument, signature.parameters.items()))})"


def _argument(name: str, p: inspect.Parameter) -> str:
    if p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD):
        return f"*{name}" if p.kind is p.VAR_POSITIONAL else f"{name[:-1]}=…"
    return name if p.default is p.empty else f"{name}={p.default!r}"
