"""One mistake as a value: its code, place, reason and remedy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..syntax.nodes import NOWHERE, Span

Severity = Literal["error", "warning"]


@dataclass(frozen=True, slots=True)
class Label:
    """A secondary span with what stands there."""

    span: Span
    text: str


@dataclass(frozen=True, slots=True)
class TextEdit:
    """The text that a help puts in the place of a span; an empty span is a place where it is put in."""

    span: Span
    text: str


@dataclass(frozen=True, slots=True)
class Diagnostic:
    """One mistake: stable code, place, reason, and what to do about it.

    ``where`` are the bindings of the sizes that took part (``r = 64 (parameter)``), ``help`` a remedy as a statement.
    ``edits`` do what the help says, where that is a change of the text that needs no further thought.
    """

    code: str
    message: str
    span: Span = NOWHERE
    label: str = ""
    labels: tuple[Label, ...] = ()
    where: tuple[str, ...] = ()
    help: str = ""
    severity: Severity = "error"
    edits: tuple[TextEdit, ...] = ()

    def __repr__(self) -> str:
        return f"<{self.severity} {self.code}: {self.message}>"
