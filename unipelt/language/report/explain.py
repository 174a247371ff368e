"""A page for each error code: what it means, a wrong program, and the remedy.

The pages are data (``pages/E03.toml``: those of E0300 to E0399). What the checker says of an example is never written down:
it is checked when its page is shown. Codes that need a model or data have a call to read instead.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path

from .diagnostics import error

FOLDER = Path(__file__).parent / "pages"
_CODE = re.compile(r"[EW]?(\d{1,4})")


@dataclass(frozen=True, slots=True)
class Page:
    """``example`` is a wrong program; without one, ``command`` raises the code where there is what it ``needs``."""

    code: str
    title: str
    meaning: str
    remedy: str
    example: str = ""
    needs: str = ""
    command: str = ""


@lru_cache(maxsize=1)
def pages() -> dict[str, Page]:
    """Every page by its code, in the order of the codes."""
    import tomllib

    found: dict[str, Page] = {}
    for path in sorted(FOLDER.glob("*.toml")):
        for code, entry in tomllib.loads(path.read_text(encoding="utf-8")).items():
            found[code] = Page(code, **entry)
    return dict(sorted(found.items()))


@lru_cache(maxsize=64)
def remedy_of(code: str) -> str:
    """A page's remedy as the help of a message. Only the file with the code is read."""
    import tomllib

    path = FOLDER / f"{code[:3]}.toml"
    entry = tomllib.loads(path.read_text(encoding="utf-8")).get(code) if path.is_file() else None
    text = entry["remedy"].removesuffix(".") if entry else ""
    return text[:1].lower() + text[1:]


def page(code: str) -> Page:
    """The page of a code; ``e312`` and ``312`` mean E0312. Another code is a `PeltError` that names those close to it."""
    written = _CODE.fullmatch(code.strip().upper())
    wanted = f"E{int(written[1]):04d}" if written else code.strip().upper()
    if wanted not in pages():
        raise error("E0409", f"there is no error code `{code}`", help=_near(wanted))
    return pages()[wanted]


def _near(code: str) -> str:
    close: Sequence[str] = get_close_matches(code, pages(), n=5, cutoff=0.75)
    if not close:
        return "`unipelt explain` lists the codes"
    first, *rest = (f"{c} ({pages()[c].title})" for c in close)
    return "\n".join([f"codes that are close: {first}", *rest])
