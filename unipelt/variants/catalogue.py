"""What recognition looks for first, of every method of the library, so that it loads only the methods that may be meant.

``specs/catalogue.json`` holds it, and a digest of the specs that it was made of; with other specs it is worked out anew.
`python -m unipelt.variants.catalogue` writes it; a test holds that it is current.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import sys
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from ..language.ir import Method
from ..language.library import digest_of_library, library_names
from ..language.loading import load
from ..language.report.diagnostics import PeltError
from ..language.types.members import read_of
from ..resources import folder
from .patterns import Pattern, compared, patterns_of

FILE = "catalogue.json"


@dataclass(frozen=True, slots=True)
class Listed:
    """A method of the library: its rows' number, the digests of their skeletons, and its columns where it has one row."""

    rows: int
    keys: tuple[str, ...]
    columns: dict[str, Any] | None


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@lru_cache(maxsize=None)
def known(name: str) -> Method | None:
    """A method of the library, unless it has mistakes."""
    with contextlib.suppress(PeltError):
        return load(name)
    return None


@lru_cache(maxsize=None)
def _patterns(name: str) -> list[tuple[str, Pattern]]:
    method = known(name)
    return patterns_of(name, method) if method is not None else []


def _worked_out() -> dict[str, Listed]:
    found = {}
    for name in library_names("method"):
        method = known(name)
        if method is None:
            continue
        keys = sorted({digest(key) for key, _ in _patterns(name)})
        # what reads trained adapters is near to nothing that does not
        single = len(method.rows) == 1 and not read_of(method.rows[0].parts, method.params)
        columns = compared(method.rows[0], method) if single else None
        found[name] = Listed(len(method.rows), tuple(keys), columns)
    return found


@lru_cache(maxsize=1)
def catalogue() -> dict[str, Listed]:
    """Every method of the library that has no mistakes."""
    path = folder("specs") / FILE
    if path.is_file():
        written = json.loads(path.read_text(encoding="utf-8"))
        if written["specs"] == digest_of_library():
            return {n: Listed(m["rows"], tuple(m["keys"]), m["columns"]) for n, m in written["methods"].items()}
    return _worked_out()


def with_skeleton(key: str) -> list[Pattern]:
    """The patterns of the library's rows that have this skeleton."""
    wanted = digest(key)
    names = [name for name, m in catalogue().items() if wanted in m.keys]
    return [p for name in names for k, p in _patterns(name) if k == key]


def of_rows(count: int) -> dict[str, Method]:
    """The methods of the library that have so many rows."""
    found = {name: known(name) for name, m in catalogue().items() if m.rows == count}
    return {name: m for name, m in found.items() if m is not None}


def generate() -> str:
    """The catalogue as JSON."""
    methods = {name: asdict(m) for name, m in sorted(_worked_out().items())}
    lines = ",\n".join(f"  {json.dumps(n)}: {json.dumps(m, ensure_ascii=False)}" for n, m in methods.items())
    return f'{{\n "specs": "{digest_of_library()}",\n "methods": {{\n{lines}\n }}\n}}\n'


def main() -> None:
    path: Path = folder("specs") / FILE
    text = generate()
    path.write_text(text, encoding="utf-8", newline="\n")
    print(f"{path}: {len(text):,} bytes", file=sys.stderr)


if __name__ == "__main__":
    main()
