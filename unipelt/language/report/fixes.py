"""The help of diagnostics carried out: their edits applied to a text, again and again, until none is left."""

from __future__ import annotations

from collections.abc import Iterable

from .diagnostics import Diagnostic, TextEdit

#: One edit may uncover a mistake that was not seen before, as a file that did not parse.
ROUNDS = 20


def edited(text: str, edits: Iterable[TextEdit]) -> str:
    """The text after all edits; of two that touch each other the first given counts."""
    chosen: list[TextEdit] = []
    for e in dict.fromkeys(edits):
        if all(e.span.end <= c.span.start or c.span.end <= e.span.start for c in chosen):
            chosen.append(e)
    for e in sorted(chosen, key=lambda e: e.span.start, reverse=True):
        text = text[: e.span.start] + e.text + text[e.span.end :]
    return text


def fixed(text: str, file: str) -> tuple[str, list[Diagnostic]]:
    """The text after its mistakes' edits, and those mistakes; the text as it was where it would not get better.

    A text that can be read, so that its other mistakes are seen, is better than one that cannot.
    """
    from ..loading import check_text
    from .texts import normalised

    def mistakes(of: str) -> tuple[bool, list[Diagnostic]]:
        checked = check_text(of, file)
        return any(c.kind == "file" and c.diagnostics for c in checked), [d for c in checked for d in c.diagnostics]

    first = now = normalised(text)
    unread, found = mistakes(now)
    begun, applied = (unread, len(found)), list[Diagnostic]()
    for _ in range(ROUNDS):
        able = [d for d in found if d.edits and all(e.span.file == file for e in d.edits)]
        new = edited(now, (e for d in able for e in d.edits))
        if new == now:
            break
        now, applied = new, [*applied, *able]
        unread, found = mistakes(now)
    return (now, applied) if (unread, len(found)) < begun else (first, [])
