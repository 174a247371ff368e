"""How methods and plans look in a notebook: HTML and SVG, in which nothing of a spec is markup."""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping, Sequence
from typing import Any

from .cli.picture import drawn
from .compiler.plan import Plan
from .language.write.columns import COLUMNS, CODE, columns_met, rows_of
from .language.write.formula import as_text
from .language.ir import Method
from .language.report.render import escape
from .training.picture import style, written


def method_html(method: Method) -> str:
    """A method's rows of the table, its formula and, where matplotlib is installed, its picture."""
    rows = rows_of([method])
    parts = [
        f"<b>{_text(method.name)}</b>",
        _text(method.doc or ""),
        _table(rows, columns_met(rows, ("row", *COLUMNS))),
    ]
    parts += [f"<pre>{_text(as_text(method))}</pre>"] if method.rows else []
    svg = method_svg(method)
    if svg is not None:
        # As an image: what is inside an image runs nothing, and its names do not meet those of the page.
        source = base64.b64encode(svg.encode()).decode()
        parts.append(f'<img alt="the diagram of {_text(method.name)}" src="data:image/svg+xml;base64,{source}"/>')
    return "\n".join(f"<div>{p}</div>" for p in parts if p)


def method_svg(method: Method) -> str | None:
    """A method's picture; None where matplotlib is missing."""
    try:
        with style():
            return written(drawn(method), "svg").decode()
    except ImportError:
        return None


def plan_html(plan: Plan) -> str:
    """Where a plan's edits are, with the counts and the notes."""
    c = plan.counts
    share = f" ({100 * c.trained / c.base:.2f} % of the base's {c.base:,})" if c.base else ""
    rows = [{**e, "gated by": e["gate"], "parameters": f"{e['parameters']:,}"} for e in plan.table()]
    columns = [
        "row",
        "site",
        "layers",
        *COLUMNS[1:],
        *(["gated by"] if any(e["gate"] for e in rows) else []),
        "parameters",
    ]
    parts = [f"<b>{_text(plan.method.name)} on {_text(plan.model)}</b>", _table(rows, columns),
             f"trained {c.trained:,}{share}, stored {c.stored:,}, frozen {c.frozen:,}, head {c.head:,}"]  # fmt: skip
    parts += [f"note: {_text(w)}" for w in plan.warnings] + [f"needs: {_text(n)}" for n in plan.needs]
    return "\n".join(f"<div>{p}</div>" for p in parts)


def _table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> str:
    def cell(column: str, value: Any) -> str:
        text = _text(str(value))
        return f"<td><code>{text}</code></td>" if column in CODE and text else f"<td>{text}</td>"

    head = "".join(f"<th>{_text(c)}</th>" for c in columns)
    body = "".join("<tr>" + "".join(cell(c, r.get(c, "")) for c in columns) + "</tr>" for r in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _text(text: str) -> str:
    """Text of a spec as text of HTML, line by line."""
    return "\n".join(html.escape(escape(line)) for line in text.split("\n"))
