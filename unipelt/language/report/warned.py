"""Warnings that name the line which called the library."""

from __future__ import annotations

import sys
import warnings

#: Modules whose frames lie between the caller's line and the warning.
_WITHIN = ("unipelt", "contextlib")


def warn(text: str, category: type[Warning] = UserWarning) -> None:
    """Warns at the caller's line, however deep in the library it comes up."""
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] in _WITHIN:
        frame, level = frame.f_back, level + 1
    warnings.warn(text, category, stacklevel=level)
