"""The page of each error code as data: what it means, a wrong program, and the remedy.

Each is written down once (``codes/E03.toml``: those of E0300 to E0399). What the checker says of an example is never written
down: it is checked when its page is shown. Codes that need a model or data have a call to read instead.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

FOLDER = Path(__file__).parent / "codes"


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
