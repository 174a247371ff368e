"""What was worked out before, as JSON in a folder: the maps of models, and what a check found of files.

The folder is ``UNIPELT_CACHE`` (``off``: none), else ``unipelt`` in the user's cache folder. The name of an entry says all that
the entry depends on, so that none is ever out of date. What cannot be read there is worked out anew, and a folder that cannot be
written is left alone.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from time import time
from typing import Any

from . import files

#: The folder, or ``off``.
FOLDER = "UNIPELT_CACHE"
#: Bytes of an entry that are read.
MAX_BYTES = 1 << 26
#: Seconds after which an unfinished file has been left behind.
LEFT_BEHIND = 3600


def folder() -> Path | None:
    """Where entries are kept; None where they are not."""
    named = os.environ.get(FOLDER, "")
    if named.lower() in ("off", "0", "no"):
        return None
    if named:
        return Path(named)
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "unipelt"
    except RuntimeError:  # no home folder is known
        return None


def name_of(kind: str, *depends_on: Any) -> str:
    """The name of the entry of a kind that depends on these values, which JSON can say."""
    return f"{kind}-{hashlib.sha256(json.dumps(depends_on).encode()).hexdigest()[:32]}.json"


def digest(paths: Iterable[Path]) -> str:
    """Of files' paths and texts."""
    return hashlib.sha256(
        b"\0".join(b for p in sorted(paths) for b in (str(p).encode(errors="surrogateescape"), p.read_bytes()))
    ).hexdigest()


def get(name: str) -> Any:
    """An entry as it was put there, whoever may have put it; None where there is none."""
    try:
        return json.loads(files.contents(where / name, MAX_BYTES)) if (where := folder()) is not None else None
    except (OSError, ValueError, RecursionError):
        return None


def put(kind: str, entries: Mapping[str, Any], most: int) -> None:
    """Keeps entries of a kind by their names, and the newest ``most`` of the kind."""
    where = folder()
    if where is None or not entries:
        return
    try:
        where.mkdir(parents=True, exist_ok=True)
        for name, value in entries.items():
            files.replace(where / name, json.dumps(value, separators=(",", ":")).encode(), synced=False)
        kept = sorted(where.glob(f"{kind}-*.json"), key=lambda f: f.stat().st_mtime)
        parts = where.glob(f"{files.part_prefix(f'{kind}-*.json')}*")
        left = [p for p in parts if p.stat().st_mtime < time() - LEFT_BEHIND]
        for file in [*kept[:-most], *left]:
            file.unlink(missing_ok=True)
    except OSError:  # among them that another process was quicker
        pass
