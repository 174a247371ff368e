"""`PeltError` carries the diagnostics that were collected; what helps to word them."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from itertools import islice
from pathlib import Path
from typing import Any

from ..syntax.nodes import NOWHERE, Span
from .diagnostic import Diagnostic, TextEdit, Label, Severity
from .render import render_all

__all__ = [  # the values are part of what this module offers
    "Diagnostic",
    "TextEdit",
    "Label",
    "PeltError",
    "Severity",
    "counted",
    "error",
    "instead",
    "near",
    "near_path",
    "nearest",
    "plural",
    "put",
    "repeated",
]

_PLURALS = {"entry": "entries", "anatomy": "anatomies", "process": "processes"}


class PeltError(ValueError):
    """Bad input. ``diagnostics`` holds every mistake found; ``str()`` renders them with their places."""

    def __init__(self, diagnostics: Iterable[Diagnostic] | Diagnostic):
        self.diagnostics = (diagnostics,) if isinstance(diagnostics, Diagnostic) else tuple(diagnostics)
        super().__init__("; ".join(d.message for d in self.diagnostics))

    def __reduce__(self):  # exceptions pickle their args, ours is the tuple of diagnostics
        return (type(self), (self.diagnostics,))

    def __str__(self) -> str:
        return render_all(self.diagnostics)


def error(code: str, message: str, span: Span = NOWHERE, **more) -> PeltError:
    return PeltError(Diagnostic(code, message, span, **more))


def nearest(word: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """The nearest known word, or nothing. Of the close ones that with the same letters, which are in another order."""
    others = [k for k in islice(known, MAX_COMPARED) if k != word]
    found = get_close_matches(word, others, n=8, cutoff=cutoff)
    return next((k for k in found if sorted(k) == sorted(word)), found[0] if found else "")


def repeated(words: Iterable[str]) -> list[str]:
    """The words that stand there more than once, in the order in which they are met again."""
    seen: set[str] = set()
    return list(dict.fromkeys(w for w in words if w in seen or seen.add(w)))  # type: ignore[func-returns-value]


#: Up to so many words are compared letter by letter.
MAX_COMPARED = 5000


def near(word: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """A help sentence that names the nearest known word, or nothing."""
    found = nearest(word, known, cutoff)
    return f"did you mean `{found}`?" if found else ""


def plural(word: str, n: float) -> str:
    """The word for so many."""
    return word if n == 1 else _PLURALS.get(word, f"{word}s")


def counted(n: int, word: str) -> str:
    return f"{n} {plural(word, n)}"


def near_path(path: Path, folders: bool = False) -> str:
    """A help sentence that names what lies where a path first goes wrong, or nothing; only ``folders``, where asked."""
    try:
        while not path.parent.exists() and path.parent != path:
            path = path.parent
        names = [f.name for f in path.parent.iterdir() if f.is_dir() or not folders]
        # What ends alike is compared by what stands before the ending, which would make it alike to some part already.
        alike = {Path(n).stem: n for n in names if Path(n).suffix == path.suffix}
        stem = nearest(path.stem, alike)
        whole = next((n for n in sorted(names) if Path(n).stem == path.name), "")  # the ending was left out
        name = alike[stem] if stem else whole or nearest(path.name, [n for n in names if n not in alike.values()])
    except OSError:  # what cannot be listed has no names to offer
        return ""
    found = f"did you mean `{name}`?" if name else ""
    return f"in `{path.parent}`: {found}" if found and path.parent != Path() else found


def instead(word: str, known: Iterable[str], span: Span, otherwise: str = "", *, cutoff: float = 0.6) -> dict[str, Any]:
    """Help and edits of a diagnostic about a misspelt word that stands at ``span``; ``otherwise``: where none is close."""
    found = nearest(word, known, cutoff)
    if not found:
        return {"help": otherwise}
    return {"help": f"did you mean `{found}`?", "edits": (TextEdit(span, found),)}


def put(text: str, *spans: Span) -> tuple[TextEdit, ...]:
    """Edits that write the same text at each span."""
    return tuple(TextEdit(s, text) for s in spans)
