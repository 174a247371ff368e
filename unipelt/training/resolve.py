"""Methods as they are named on a command line: parts joined by ``+``, arguments as ``name=value``. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..language.report.diagnostics import error, near
from ..language.library import library_names
from ..language.loading import parts_of
from ..runtime.references import load


def resolve_method(spec: str, arguments: Mapping[str, Any] | None = None, head: str | None = None) -> Any:
    """A method from whatever names one (`unipelt.load`), its arguments bound.

    An argument goes to each part that has it; ``part.name`` binds one part's. ``head`` adds the library's method of
    that name, or of that name with ``_head`` behind it.
    """
    names = parts_of(spec)
    if head:
        names.append(head if head in library_names("method") else f"{head}_head")
    parts = [load(n) for n in names]
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
