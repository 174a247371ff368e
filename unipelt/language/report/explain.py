"""Finding the page of an error code, also where the code is misspelt."""

from __future__ import annotations

import re
from collections.abc import Sequence
from difflib import get_close_matches

from ..sites import SITES
from .diagnostics import error, nearest
from .pages import Page, pages

_CODE = re.compile(r"[EW]?(\d{1,4})")


def page(code: str) -> Page:
    """The page of a code; ``e312`` and ``312`` mean E0312. Another word is a `PeltError` with the codes, or the site, that are most like it."""
    written = _CODE.fullmatch(code.strip().upper())
    wanted = f"E{int(written[1]):04d}" if written else code.strip().upper()
    if wanted not in pages():
        site = nearest(code.strip(), SITES)
        if site:
            raise error("E0409", f"there is no site and no error code `{code}`", help=f"did you mean `{site}`?")
        raise error("E0409", f"there is no error code `{code}`", help=_near(wanted))
    return pages()[wanted]


def _near(code: str) -> str:
    close: Sequence[str] = get_close_matches(code, pages(), n=5, cutoff=0.75)
    if not close:
        return "`unipelt explain` lists the codes"
    first, *rest = (f"`{c}` ({pages()[c].title})" for c in close)
    return "\n".join([f"did you mean {first}?", *(f"or {c}" for c in rest)])
