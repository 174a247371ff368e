"""Diagnostics as SARIF 2.1.0, the format that code hosts and editors read (OASIS standard, 2020)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from .diagnostics import Diagnostic
from .pages import pages
from .render import remedy
from .texts import place
from ..syntax.nodes import Span

SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"


def to_sarif(diagnostics: Sequence[Diagnostic], version: str) -> dict[str, Any]:
    """A log of one run of that version of unipelt: a rule for each code that occurs, with its page, and a result for each diagnostic."""
    codes = sorted({d.code for d in diagnostics})
    driver = {
        "name": "unipelt", "version": version, "semanticVersion": version, "rules": [_rule(c) for c in codes],
    }  # fmt: skip
    run = {
        "tool": {"driver": driver}, "columnKind": "unicodeCodePoints",
        "results": [_result(d, codes.index(d.code)) for d in diagnostics],
    }  # fmt: skip
    return {"$schema": SCHEMA, "version": "2.1.0", "runs": [run]}


def _rule(code: str) -> dict[str, Any]:
    page = pages()[code]
    return {
        "id": code,
        "shortDescription": {"text": page.title},
        "fullDescription": {"text": page.meaning},
        "help": {"text": page.remedy},
        "defaultConfiguration": {"level": "error"},
    }


def _result(d: Diagnostic, rule: int) -> dict[str, Any]:
    text = "\n".join([d.message, *(f"where {w}" for w in d.where), *([f"help: {remedy(d)}"] if remedy(d) else [])])
    found: dict[str, Any] = {
        "ruleId": d.code, "ruleIndex": rule, "level": d.severity, "message": {"text": text},
        "locations": [{"physicalLocation": _physical(d.span), **_said(d.label)}] if d.span.file else [],
    }  # fmt: skip
    related = [m for m in d.labels if m.span.file]
    if related:
        found["relatedLocations"] = [
            {"id": n, "physicalLocation": _physical(m.span), **_said(m.text)} for n, m in enumerate(related, 1)
        ]
    if d.edits:
        found["fixes"] = [{"description": {"text": remedy(d)}, "artifactChanges": _changes(d)}]
    return found


def _changes(d: Diagnostic) -> list[dict[str, Any]]:
    files = dict.fromkeys(e.span.file for e in d.edits)
    return [
        {"artifactLocation": _artifact(f), "replacements": [
            {"deletedRegion": _region(e.span), "insertedContent": {"text": e.text}} for e in d.edits if e.span.file == f
        ]}
        for f in files
    ]  # fmt: skip


def _said(text: str) -> dict[str, Any]:
    return {"message": {"text": text}} if text else {}


def _physical(span: Span) -> dict[str, Any]:
    region = _region(span)
    return {"artifactLocation": _artifact(span.file), **({"region": region} if region else {})}


def _region(span: Span) -> dict[str, Any] | None:
    """Lines and columns count from 1; the end column is the first one behind the region."""
    found = place(span)
    if found is None or found["line"] is None:
        return None
    return {
        "startLine": found["line"], "startColumn": found["column"], "endLine": found["end_line"],
        "endColumn": found["end_column"], "charOffset": span.start, "charLength": span.end - span.start,
    }  # fmt: skip


def _artifact(file: str) -> dict[str, Any]:
    path = Path(file)
    return {"uri": path.as_uri() if path.is_absolute() else quote(path.as_posix())}
