"""The options of commands: those that several have, each with one help text, and those that are fields of a class.

A command that takes an object of a class with options (`training.options`) has them all. What values mean is known to those who
act on them.
"""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields, is_dataclass
from types import NoneType
from typing import Annotated, Any, get_args

import typer

from ..training.config import TrainConfig
from ..training.options import Option, choices, flag, options_of, read_arguments
from .output import MISTAKES

AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]


def methods_that_begin(incomplete: str) -> list[str]:
    """The library's methods that a shell may complete a word to."""
    from ..language.library import library_names

    return [name for name in library_names("method") if name.startswith(incomplete)]


def declared(name: str, kind: Any, option: Option) -> Any:
    """An option as typer knows it."""
    if name == "method":
        return typer.Argument(metavar="METHOD", help=option.help, autocompletion=methods_that_begin)
    names = [option.flag or flag(name) + (f"/--no-{name}" if kind == bool | None else "")]
    names += [option.short] if option.short else []
    return typer.Option(*names, help=option.help, metavar="NAME=VALUE" if kind == Mapping[str, Any] else None)


def of_training(name: str) -> Any:
    """An option of `unipelt train` that another command has too."""
    return declared(name, *options_of(TrainConfig)[name])


def written(kind: Any, default: Any) -> tuple[Any, Any, Callable[[Any], Any]]:
    """How a value of a type is typed on a command line: the type, its default there, and a function that makes the value.

    A flag turns what is off by default on, and what is on off. A mapping is `NAME=VALUE`, again and again, names are one after
    the other, and names that may be None are separated by commas. The words of a `Literal` are checked with all other values.
    """
    if kind is bool and default is True:
        return bool, False, operator.not_
    if kind == Mapping[str, Any]:
        return list[str] | None, None, read_arguments
    if kind == tuple[str, ...]:
        return list[str] | None, None, lambda names: tuple(names or ())
    if kind == tuple[str, ...] | None:
        return str | None, None, lambda text: tuple(c.strip() for c in text.split(",")) if text else None
    if choices(kind):
        return (str | None if NoneType in get_args(kind) else str), default, lambda word: word
    return kind, default, lambda value: value


def _parameters(cls: Any, command: str) -> dict[str, tuple[inspect.Parameter, Callable[[Any], Any]]]:
    """The options of a class that a command has, required ones first, each with the function that reads its value."""
    defaults = {f.name: f.default for f in fields(cls)}
    found = {}
    for name, (kind, option) in options_of(cls).items():
        if option.commands and command not in option.commands.split():
            continue
        typed, default, read = written(kind, defaults[name])
        hint = Annotated[typed, declared(name, kind, option)]  # type: ignore[valid-type]
        given = {} if default is MISSING else {"default": default}
        found[name] = inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=hint, **given), read
    return dict(sorted(found.items(), key=lambda item: item[1][0].default is not inspect.Parameter.empty))


def with_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The command with an option for each field of the option classes that it takes. It gets objects made of their values.

    A command that returns False has found mistakes, and its exit code says so.
    """
    parameters: list[inspect.Parameter] = []
    objects: dict[str, tuple[Any, dict[str, Callable[[Any], Any]]]] = {}
    for p in inspect.signature(command, eval_str=True).parameters.values():
        if is_dataclass(p.annotation):
            found = _parameters(p.annotation, command.__name__.strip("_"))
            objects[p.name] = p.annotation, {name: read for name, (_, read) in found.items()}
            parameters += [q for q, _ in found.values()]
        else:
            parameters.append(p.replace(kind=inspect.Parameter.KEYWORD_ONLY))

    def run(**given: Any) -> None:
        for name, (cls, readers) in objects.items():
            given[name] = cls(**{n: read(given.pop(n)) for n, read in readers.items()})
        if command(**given) is False:
            raise SystemExit(MISTAKES)

    run.__name__, run.__doc__ = command.__name__, command.__doc__
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {}
    return run


# ---------------------------------------------------------------- options of several commands

MethodName = Annotated[str, of_training("method")]
Data = Annotated[str, of_training("data")]
Arguments = Annotated[list[str] | None, of_training("set")]
AllowFuture = Annotated[bool, of_training("allow_future")]
HeadName = Annotated[str | None, of_training("head")]
RowName = Annotated[str | None, typer.Option("--row", help="The row, where the method has several.")]
#: Of a saved adapter.
Folder = Annotated[
    str,
    typer.Argument(
        metavar="DIR",
        help="The folder of `unipelt train --out` or `unipelt.save`, or `user/name[@revision]` on the hub.",
    ),
]
