"""Methods as they are named on a command line: parts joined by ``+``, arguments as ``name=value``. No torch."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..language.diagnostics import error, near
from ..language.library import library_names
from ..language.loading import load, parse
from ..language.source import read
from ..runtime.hub import METHOD, located, repository

METHOD_FILE = ".pelt"


def resolve_method(spec: str, arguments: Mapping[str, Any] | None = None, head: str | None = None) -> Any:
    """A method from ``a``, ``mine.pelt``, ``mine.pelt:name``, a saved adapter's folder, ``user/name`` or ``a+b``, its
    arguments bound.

    An argument goes to each part that has it; ``part.name`` binds one part's. ``head`` adds the library's method of
    that name, or of that name with ``_head`` behind it.
    """
    names = [n.strip() for n in spec.split("+")]
    if head:
        names.append(head if head in library_names("method") else f"{head}_head")
    if not all(names):
        raise error("E0401", f"`{spec}` names no method" if not spec.strip(" +") else f"a name is missing in `{spec}`",
                    help="write `a`, or `a+b`; `unipelt list` shows the methods there are")  # fmt: skip
    parts = [_load_one(n) for n in names]
    left = dict(arguments or {})
    bound = []
    for part in parts:
        mine: dict[str, Any] = {}
        for key in list(left):
            owner, _, name = key.rpartition(".")
            if owner in ("", part.name) and name in {p.name for p in part.params}:
                mine[name] = arguments[key] if arguments else None
        bound.append(part(**mine) if mine else part)
    known = {k for part in parts for p in part.params for k in (p.name, f"{part.name}.{p.name}")}
    unknown = [k for k in left if k not in known]
    if unknown and len(parts) == 1:
        parts[0](**{k: left[k] for k in unknown})  # the language's own error, with the place of the parameters
    if unknown:
        have = sorted({p.name for part in parts for p in part.params})
        raise error("E0621", f"none of {', '.join(f'`{p.name}`' for p in parts)} has an argument `{unknown[0]}`",
                    help=near(unknown[0], have) or f"their arguments are {', '.join(have) or 'none'}")  # fmt: skip
    method = bound[0]
    for part in bound[1:]:
        method = method + part
    return method


def _load_one(name: str) -> Any:
    file, sep, method = name.rpartition(f"{METHOD_FILE}:")
    if sep:
        return load(file + METHOD_FILE, method)
    if name.endswith(METHOD_FILE) or name in library_names("method"):
        return load(name)
    return _of_adapter(name) if Path(name).is_dir() or repository(name) is not None else load(name)


def _of_adapter(place: str) -> Any:
    """The method that lies beside a saved adapter's tensors, here or on the hub; like every adapter's it imports nothing."""
    path = located(place) / METHOD
    if not path.is_file():
        raise error("E0401", f"there is no method named `{place}` in the library, and the folder of that name is no adapter: "
                    f"it has no {METHOD}", help="name the `--out` folder of `unipelt train`, or a `.pelt` file")  # fmt: skip
    return parse(read(path).text, file=str(path))


def argument(text: str) -> tuple[str, Any]:
    """``r=16`` as a name and a value; what is no number stays a text of the language."""
    name, sep, value = text.partition("=")
    if not sep or not name.strip() or not value.strip():
        raise error("E0621", f"`{text}` is not an argument", help="write it as `name=value`, as in `--set r=16`")
    value = value.strip()
    for number in (int, float):
        with contextlib.suppress(ValueError):
            return name.strip(), number(value)
    return name.strip(), value


def read_arguments(texts: list[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for text in texts:
        name, value = argument(text)
        if name in found:
            raise error("E0621", f"the argument `{name}` is given twice", help="give it once")
        found[name] = value
    return found
