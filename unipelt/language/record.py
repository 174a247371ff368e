"""What is recorded of the library's methods: their rows, verdicts and counts, and what each was verified by, with which error.

``specs/verified.json`` holds it; a test's `--write` makes it, as that measures every reference. An entry is of one text of a
method: where the method reads otherwise by now, nothing is said of it.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

from ..resources import folder
from .analyse.verdicts import verdicts
from .ir import Method
from .library import digest_of_library, library_definition
from .write.columns import rows_of

FILE = "verified.json"
#: The models whose parameters are counted.
MODELS = ("BERT-base", "Llama-3-8B")


@dataclass(frozen=True, slots=True)
class Verified:
    """``by`` peft, a recording, a formula or a count; ``error``: the largest difference, to one digit."""

    by: str
    against: str
    error: str


@dataclass(frozen=True, slots=True)
class Recorded:
    """A method of the library. ``counts``: trained parameters on each of `MODELS`, or why there are none. ``lines`` of the
    method as it is written; ``python``: lines of a library's code for it, by the folder they stand in."""

    text: str
    family: str
    rows: tuple[dict[str, str], ...]
    verdicts: dict[str, str]
    lines: int
    counts: dict[str, int | str]
    verified: tuple[Verified, ...]
    python: dict[str, int]

    @staticmethod
    def of(
        method: Method,
        family: str,
        counts: dict[str, int | str],
        verified: tuple[Verified, ...],
        python: dict[str, int],
    ) -> Recorded:
        """What is known of a method without a model, and what is given."""
        rows = tuple({k: v for k, v in r.items() if k != "method" and v} for r in rows_of([method]))
        found: dict[str, str] = {k: v.value for k, v in verdicts(method).items()}
        return Recorded(digest(method), family, rows, found, lines_of(method.name), counts, verified, python)

    def to_json(self) -> dict[str, Any]:
        return {k: v for k, v in asdict(self).items() if v}


def digest(method: Method) -> str:
    """Of all that a method means: two texts with one digest are one method, in the same words."""
    return hashlib.sha256(str(method).encode()).hexdigest()[:16]


def lines_of(name: str) -> int:
    """Lines of a method as it is written in the library, without its docstring, comments and blank lines."""
    definition = library_definition("method", name)
    if definition is None:
        return 0
    span = definition.span
    with open(span.file, encoding="utf-8") as f:
        text = f.read()[span.start : span.end]
    doc = text.find('"""')
    if doc >= 0:
        text = text[:doc] + text[text.index('"""', doc + 3) + 3 :]
    return sum(bool(line.split("#")[0].strip()) for line in text.splitlines())


@lru_cache(maxsize=1)
def _read() -> dict[str, Any]:
    path = folder("specs") / FILE
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"specs": "", "methods": {}}


def record() -> dict[str, Recorded]:
    """Every method that is recorded, by its name."""
    return {n: _entry(m) for n, m in _read()["methods"].items()}


def is_current() -> bool:
    """Whether the record is of the library as it is, to the letter."""
    return _read()["specs"] == digest_of_library()


def _entry(m: dict[str, Any]) -> Recorded:
    return Recorded(m["text"], m["family"], tuple(m.get("rows", ())), m.get("verdicts", {}), m["lines"], m.get("counts", {}),
                    tuple(Verified(**v) for v in m.get("verified", ())), m.get("python", {}))  # fmt: skip


def written(methods: dict[str, Recorded]) -> str:
    """The record as JSON, a line for each method."""
    lines = ",\n".join(
        f"  {json.dumps(n)}: {json.dumps(m.to_json(), ensure_ascii=False)}" for n, m in sorted(methods.items())
    )
    return f'{{"specs": "{digest_of_library()}", "methods": {{\n{lines}\n}}}}\n'
