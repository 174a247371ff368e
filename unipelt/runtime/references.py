"""Whatever names a method, in Python and on the command line alike: the language's own names, and adapters here and on the hub."""

from __future__ import annotations

from collections.abc import Mapping
from functools import reduce
from operator import add
from os.path import isdir, isfile
from pathlib import Path
from typing import Any

from ..language import loading
from ..language.report.diagnostics import error, near
from ..language.ir import Method
from ..language.library import library_names
from ..language.report.source import read
from .hub import METHOD, located, repository


def load(
    name: str | Path, method: str | None = None, *, arguments: Mapping[str, Any] | None = None, head: str | None = None
) -> Method:
    """A checked method. ``name`` is one of the library, or a ``.pelt`` file, of which ``method`` or ``file.pelt:name`` names the
    method where it has several, or a saved adapter's folder, or ``user/name`` of an adapter on the hub.

    ``a+b`` is the union of two methods. ``arguments`` binds theirs: one goes to each part that has it, ``part.name`` to one part
    alone. ``head`` adds the library's method of that name, or of that name with ``_head`` behind it. Raises `PeltError` with
    place and remedy.
    """
    parts = loading.load_parts(name, method, of_adapter)
    if head:
        parts.append(loading.load(head if head in library_names("method") else f"{head}_head"))
    return reduce(add, _bound(parts, arguments) if arguments else parts)


def _bound(parts: list[Method], arguments: Mapping[str, Any]) -> list[Method]:
    """Each method with the arguments that are its own; an argument that is none's is an error."""
    own = [
        {n: v for p in part.params for key, v in arguments.items() if key in ((n := p.name), f"{part.name}.{n}")}
        for part in parts
    ]
    known = {k for part in parts for p in part.params for k in (p.name, f"{part.name}.{p.name}")}
    unknown = [k for k in arguments if k not in known]
    if unknown and len(parts) == 1:
        parts[0](**{k: arguments[k] for k in unknown})  # the language's own error, with the place of the parameters
    if unknown:
        have = sorted({p.name for part in parts for p in part.params})
        raise error("E0621", f"none of {', '.join(f'`{p.name}`' for p in parts)} has an argument `{unknown[0]}`",
                    help=near(unknown[0], have) or f"their arguments are {', '.join(have) or 'none'}")  # fmt: skip
    return [part(**mine) if mine else part for part, mine in zip(parts, own)]


def of_adapter(place: str) -> Method | None:
    """The method that lies beside a saved adapter's tensors, here or on the hub; like every adapter's it imports nothing."""
    if not isdir(place) and repository(place) is None:
        return None
    path = located(place) / METHOD
    if not isfile(path):
        raise error("E0401", f"there is no method named `{place}` in the library, and the folder of that name is no adapter: "
                    f"it has no {METHOD}", help="name the `--out` folder of `unipelt train`, or a `.pelt` file")  # fmt: skip
    return loading.parse(read(path).text, file=str(path))
