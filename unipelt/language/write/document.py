"""Methods in documents: the unified view's table in Markdown, and all that is known of a method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..analyse.counts import formula, symbols
from ..analyse.merged import merged
from ..analyse.verdicts import verdicts
from ..ir import Method
from ..report.render import escape
from ..report.texts import shown
from .columns import CODE, COLUMNS, columns_met, rows_of
from .formula import as_latex


def markdown(methods: Sequence[Method]) -> str:
    """The table for a document; of one method also its formula, counts and verdicts."""
    rows = rows_of(methods)
    parts = [markdown_table(rows, columns_met(rows, ("method", "row", *COLUMNS)))]
    if len(methods) == 1:
        m = methods[0]
        if m.rows:
            body = as_latex(m).replace("align*", "aligned")
            parts.append(f"$$\n{body}\n$$")
        counts = {k: str(v) for k, v in formula(m).items()}
        parts.append(
            markdown_table([{"parameters": k, "formula": v} for k, v in counts.items()], ["parameters", "formula"])
        )
        where = symbols(counts.values(), m.arguments)
        parts += [", ".join(f"{n}: {meaning}" for n, meaning in where.items())] if where else []
        parts.append(markdown_table([{"property": k, "verdict": v.value, "because": v.reason, "at": shown(v.span)}
                                     for k, v in verdicts(m).items()], ["property", "verdict", "because", "at"]))  # fmt: skip
        changed = [m_.to_json() for m_ in merged(m)]
        if changed:
            parts.append(markdown_table(changed, ["row", "site", "into", "weight", "bias"]))
    return "\n\n".join(parts)


def markdown_table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> str:
    """Rows under their columns; what is code is set as such."""

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cells) + " |"

    def cell(column: str, value: Any) -> str:
        text = escape(str(value).replace("\n", " ")).replace("|", "\\|")
        return f"`{text}`" if column in CODE and text else text.replace("<", "&lt;")

    return "\n".join(
        [line(columns), "|" + "---|" * len(columns), *(line([cell(c, r.get(c, "")) for c in columns]) for r in rows)]
    )
