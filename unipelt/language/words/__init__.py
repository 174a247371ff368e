"""The words of the language with an example each: primitives, distributions, clauses and lines of a body.

What a primitive or a distribution is stands in its table's entry; an example, what a word of the grammar is, and what a word
means elsewhere stand in the files beside this one (``shapes.toml``). A test holds that every word has an example that checks and uses it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from ..report.diagnostics import nearest
from ..types.initialisers import INITIALISERS
from ..types.primitives import PRIMITIVES

FOLDER = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class Word:
    """``kind``: function, distribution, clause, line. ``takes``: the least and the most arguments of what is called."""

    name: str
    kind: str
    doc: str
    example: str
    takes: tuple[int, int] | None = None


@lru_cache(maxsize=1)
def _written() -> dict[str, dict[str, str]]:
    import tomllib

    found: dict[str, dict[str, str]] = {}
    for path in sorted(FOLDER.glob("*.toml")):
        found |= tomllib.loads(path.read_text(encoding="utf-8"))
    return found


@lru_cache(maxsize=1)
def words() -> dict[str, Word]:
    """Every word by its name, in the order of the alphabet."""
    written = _written()
    tables = [("function", p.name, p.doc, p.arity) for p in PRIMITIVES.values()]
    tables += [("distribution", i.name, i.doc, i.arity) for i in INITIALISERS.values()]
    found = {n: Word(n, e["kind"], e["doc"], e["example"]) for n, e in written.items() if "kind" in e}
    for kind, name, doc, arity in tables:
        entry = written.get(name, {})
        also = f". {entry['doc']}" if "doc" in entry else ""  # what the word means elsewhere
        found[name] = Word(name, kind, doc + also, entry.get("example", ""), arity)
    return dict(sorted(found.items()))


def close_to(name: str) -> str:
    """The word that a misspelt one may be, if there is one."""
    return nearest(name, words())
