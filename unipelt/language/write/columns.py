"""The rows of the unified view's table: each row of a method as its columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..check.methods import sites_of
from ..ir import Method, Row, Trained
from ..syntax.nodes import Selection
from ..syntax.printer import to_text

COLUMNS = ("modify", "insert", "form", "compose")
#: What else decides what a row is; a table has these columns where a row has something there.
BESIDE = ("layers", "tokens", "gated by", "lr")
#: Columns whose cells are code.
CODE = (*COLUMNS, *BESIDE, "weight", "bias")


def columns_of(row: Row, method: Method) -> dict[str, str]:
    """The four columns of a row and what stands beside them, as text; an argument that is bound to sites is shown as these."""
    c = row.columns
    sites = ", ".join(map(str, sites_of(row.sites, method.params)))
    return {"modify": sites or c.modify, "insert": c.insert, "form": c.form, "compose": c.compose, "layers": _layers(row.layers),
            "tokens": ", ".join(map(to_text, row.tokens)), "gated by": c.gate}  # fmt: skip


def trained_of(t: Trained) -> dict[str, str]:
    """What `train` trains, as text: the parameters, in which layers, at which multiple of the learning rate."""
    return {
        "trains": ", ".join(map(str, t.paths)),
        "layers": _layers(t.layers),
        "lr": to_text(t.lr) if t.lr is not None else "",
    }


def _layers(chosen: Selection | None) -> str:
    return "" if chosen is None or chosen.word == "all" else to_text(chosen)


def rows_of(methods: Sequence[Method]) -> list[dict[str, Any]]:
    """The rows of the unified view's table, trained copies among them."""
    out: list[dict[str, Any]] = []
    for m in methods:
        out += [{"method": m.name, "row": r.name, **columns_of(r, m)} for r in m.rows]
        for t in m.trains:
            trained = trained_of(t)
            out.append({"method": m.name, "row": t.name, "modify": trained.pop("trains"), "insert": "", "form": "a trained copy",
                        "compose": "in its place", **trained})  # fmt: skip
    return out


def columns_met(rows: Sequence[Mapping[str, Any]], first: Sequence[str]) -> list[str]:
    """The columns of a table: the ``first``, and those beside them in which a row has something."""
    return [*first, *(c for c in BESIDE if any(r.get(c) for r in rows))]
