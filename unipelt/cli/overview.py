"""`unipelt list --table`: the library as the unified view's table, with counts, verdicts and what verified each method."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ..language.loading import Entry, load
from ..language.record import MODELS, Recorded, digest, is_current, record
from ..language.write.columns import BESIDE, COLUMNS
from .output import emit, table

#: The verdicts in short, where they differ from what most methods have.
SHORT = {
    "identity at start": {"yes": "starts as the base", "no": "", "unknown": "start unknown"},
    "mergeable": {"yes": "merges", "no": "", "depends": "may merge", "unknown": "merging unknown"},
    "causal": {"yes": "", "no": "sees later tokens", "unknown": "causality unknown"},
    "cache-consistent": {"no": "not with a cache"},
    "padding-invariant": {"no": "padding takes part"},
    "batch-independent": {"no": "examples meet"},
    "foldable": {"yes": "folds"},
    "deterministic in training": {"no": "random in training", "depends": ""},
}
COLUMNS_SHOWN = ("method", *COLUMNS, *MODELS, "verdicts", "verified by", "lines")


def show_table(entries: Sequence[Entry], as_json: bool) -> None:
    found = recorded(entries)
    if as_json:
        emit({"ok": True, "methods": [{"method": n, **m.to_json()} for n, m in found.items()]})
        return
    table([row for n, m in found.items() for row in rows(n, m)], COLUMNS_SHOWN)


def recorded(entries: Iterable[Entry]) -> dict[str, Recorded]:
    """What the record has of these methods, and of those that read otherwise by now what is known without a model."""
    known, current, found = record(), is_current(), {}
    for e in entries:
        if e.kind != "method":
            continue
        if not current or e.name not in known:
            method = load(e.name)
            if e.name not in known or known[e.name].text != digest(method):
                found[e.name] = Recorded.of(method, Path(e.file).stem, {}, (), {})
                continue
        found[e.name] = known[e.name]
    return found


def rows(name: str, m: Recorded) -> list[dict[str, Any]]:
    """A line for each row of a method; what is said of the whole stands in the first."""
    shown: list[dict[str, Any]] = []
    for i, r in enumerate(m.rows):
        beside = "; ".join(f"{c} {r[c]}" for c in BESIDE if r.get(c))
        line: dict[str, Any] = {"method": name if not i else "", **{c: r.get(c, "") for c in COLUMNS}}
        line["compose"] += f" ({beside})" if beside else ""
        if not i:
            line |= {k: counted(m.counts.get(k, "")) for k in MODELS}
            line |= {"verdicts": in_short(m.verdicts), "verified by": verified(m), "lines": in_lines(m)}
        shown.append(line)
    return shown


def counted(n: int | str) -> str:
    return f"{n:,}" if isinstance(n, int) else n and f"refused: {n}"


def in_short(found: dict[str, str]) -> str:
    words = [SHORT.get(name, {}).get(value, "") for name, value in found.items()]
    return ", ".join(filter(None, words))


def verified(m: Recorded) -> str:
    return "; ".join(f"{v.by} {v.error}" if v.by != "count" else "count" for v in m.verified)


def in_lines(m: Recorded) -> str:
    """Lines of the method, and of a library's Python for it."""
    beside = "; ".join(f"{n:,} in {where}" for where, n in m.python.items())
    return f"{m.lines}" + (f" ({beside})" if beside else "")


# ---------------------------------------------------------------- the page


PAGE = "README.md"
INTRODUCTION = """# The library of methods

{count} methods, each a row of the unified view's table (He et al. 2022). `unipelt show METHOD` has all of it: formula, tensors, reasons.

- **{models}**: parameters that are trained with the default arguments (and two adapters, where a method reads such), without a head; a code where the model has no such place (`unipelt explain CODE`).
- **verified by**: what the method was compared with, and the largest difference, as a share of the largest entry: `peft` (outputs and gradients of the
  live library, float32), `recording` (of peft or `adapters`, float32), `formula` (the published formula as other code, float64), `count` (a published number of parameters, to the unit).
- **lines**: of the method as it is written, without its docstring; behind it the lines of Python for it in the library that has it, without comments, docstrings and blank lines.

This page is generated from `verified.json`: `python tests/zoo/test_record.py --write`.
"""


def page(methods: dict[str, Recorded]) -> str:
    """The table as Markdown, a part for each family."""
    out = [INTRODUCTION.format(count=len(methods), models=", ".join(MODELS))]
    families: dict[str, list[str]] = {}
    for name, m in sorted(methods.items(), key=lambda item: (item[1].family, item[0])):
        families.setdefault(m.family, []).extend(_line(r) for r in rows(name, m))
    for family, lines in families.items():
        out.append(
            f"\n## {family.replace('_', ' ').capitalize()}\n\n| {' | '.join(COLUMNS_SHOWN)} |\n|{'---|' * len(COLUMNS_SHOWN)}\n"
        )
        out.append("".join(lines))
    return "".join(out)


def _line(row: dict[str, Any]) -> str:
    code = (*COLUMNS, "method")
    cells = [_cell(str(row.get(c, "")), c in code) for c in COLUMNS_SHOWN]
    return f"| {' | '.join(cells)} |\n"


def _cell(text: str, code: bool) -> str:
    text = " ".join(text.split()).replace("|", "\\|")
    return f"`{text}`" if code and text else text
