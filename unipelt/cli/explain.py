"""The command `explain`: the page of an error code, all codes with their titles, what may be read at a site, what a word is."""

from __future__ import annotations

import shutil
import sys
import textwrap
from typing import Any

from ..language.report.diagnostics import Diagnostic, counted
from ..language.report.explain import page
from ..language.report.pages import Page, pages
from ..language.loading import check_text
from ..language.report.render import escape, render_all, to_json
from ..language.sites import SiteSignature
from ..language.words import Word
from .output import WIDTH, colored, emit, tell

#: What an example's file is called in its messages.
FILE = "example.pelt"


def mistakes(p: Page) -> list[Diagnostic]:
    """The checker's messages for a page's example."""
    return [d for c in check_text(p.example, FILE) for d in (*c.diagnostics, *c.hints)] if p.example else []


def list_codes(as_json: bool) -> None:
    """Every code with its title."""
    if as_json:
        emit({"ok": True, "codes": [{"code": p.code, "title": p.title} for p in pages().values()]})
        return
    for p in pages().values():
        tell(f"{p.code}  {p.title}")


def explain_code(code: str, as_json: bool) -> None:
    """A code's page, with what the checker says of its example today."""
    found = page(code)
    if as_json:
        emit({"ok": True, **_data(found)})
        return
    tell(_text(found, colored(sys.stdout)), styled=True)


def explain_site(site: SiteSignature, as_json: bool) -> None:
    """What a form may read at a site."""
    found = {**site.described(), "types": "; ".join(f"{name}: {t}" for name, t in site.types.items())}
    if as_json:
        emit({"ok": True, "site": site.name, **found})
        return
    width = max(map(len, found))
    tell("\n".join([site.name, *(f"  {name:<{width}}  {text or '–'}" for name, text in found.items())]))


def explain_word(word: Word, as_json: bool) -> None:
    """What a word of the language is, with an example."""
    if as_json:
        takes = list(word.takes) if word.takes is not None else None
        emit(
            {
                "ok": True,
                "word": word.name,
                "kind": word.kind,
                "doc": word.doc,
                "arguments": takes,
                "example": word.example,
            }
        )
        return
    least, most = word.takes or (0, 0)
    count = f", {counted(least, 'argument') if least == most else f'{least} to {most} arguments'}" if word.takes else ""
    tell(
        "\n\n".join(
            [
                f"{word.name} ({word.kind}{count})",
                textwrap.fill(word.doc, WIDTH),
                "An example:",
                _indented(word.example.rstrip()),
            ]
        )
    )


def _data(p: Page) -> dict[str, Any]:
    return {
        "code": p.code, "title": p.title, "meaning": p.meaning, "remedy": p.remedy, "example": p.example or None,
        "diagnostics": [to_json(d) for d in mistakes(p)], "needs": p.needs or None, "command": p.command or None,
    }  # fmt: skip


def _text(p: Page, color: bool) -> str:
    width = min(shutil.get_terminal_size().columns, WIDTH) if sys.stdout.isatty() else WIDTH
    title = f"{p.code}: {p.title}"
    parts = [f"\x1b[1m{title}\x1b[0m" if color else title, textwrap.fill(p.meaning, width)]
    if p.example:
        parts += ["A program that raises it:", _indented("\n".join(map(escape, p.example.rstrip("\n").split("\n"))))]
        parts += ["What the check says of it:", _indented(render_all(mistakes(p), color))]
    else:
        parts += [f"An example that is not run here, since it needs {p.needs}:", _indented(p.command)]
    parts += ["What to do:", _indented(textwrap.fill(p.remedy, width - 2))]
    return "\n\n".join(parts)


def _indented(text: str) -> str:
    return textwrap.indent(text, "  ")
