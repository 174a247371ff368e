"""The options of commands: those that several have, each with one help text, and those that are fields of a class.

A command that takes an object of a class with options (`training.options`) has them all. What values mean is known to those who
act on them.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import MISSING, fields, is_dataclass
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_origin

import typer

from ..training.config import TrainConfig
from ..training.options import Option, flag, options_of
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
    either = f"/--no-{name}" if kind == bool | None else ""
    names = option.flags or (flag(name) + either,)
    return typer.Option(*names, help=option.help, metavar=option.metavar)


def of_training(name: str) -> Any:
    """An option that a command has as `unipelt train` has it."""
    return declared(name, *options_of(TrainConfig)[name])


def _plain(kind: Any) -> Any:
    """A type as a command line reads it: the words of a `Literal` are checked with all other values."""
    if get_origin(kind) is Literal:
        return str
    return functools.reduce(lambda a, b: a | b, map(_plain, get_args(kind))) if NoneType in get_args(kind) else kind


def _parameters(cls: Any, command: str) -> dict[str, tuple[inspect.Parameter, Option]]:
    """The options that a command has of a class, those that must be given first."""
    defaults = {f.name: f.default for f in fields(cls)}
    found = {}
    for name, (kind, option) in options_of(cls).items():
        if option.commands and command not in option.commands.split():
            continue
        written: Any = option.written or _plain(kind)
        default = defaults[name] if option.read is None else False if written is bool else None
        hint = Annotated[written, declared(name, kind, option)]  # type: ignore[valid-type]
        found[name] = inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=hint,
                                        default=inspect.Parameter.empty if default is MISSING else default), option  # fmt: skip
    return dict(sorted(found.items(), key=lambda item: item[1][0].default is not inspect.Parameter.empty))


def with_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The command with an option for each field of the objects that it takes, which it is given made of them.

    A command that returns False has found what it says, and its exit code is that of mistakes.
    """
    parameters: list[inspect.Parameter] = []
    objects: dict[str, tuple[Any, dict[str, Option]]] = {}
    for p in inspect.signature(command, eval_str=True).parameters.values():
        if is_dataclass(p.annotation):
            found = _parameters(p.annotation, command.__name__.strip("_"))
            objects[p.name] = p.annotation, {name: option for name, (_, option) in found.items()}
            parameters += [q for q, _ in found.values()]
        else:
            parameters.append(p.replace(kind=inspect.Parameter.KEYWORD_ONLY))

    def run(**given: Any) -> None:
        for name, (cls, options) in objects.items():
            values = {n: given.pop(n) for n in options}
            given[name] = cls(**{n: v if (read := options[n].read) is None else read(v) for n, v in values.items()})
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
