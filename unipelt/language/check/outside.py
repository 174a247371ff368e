"""Rows that select layers at sites that stand outside the layers.

At `head` one layer may be selected: its states are `x` there, as a probe reads them. Everywhere else a selection would mean nothing.
"""

from __future__ import annotations

from ..report.diagnostics import Diagnostic, put
from ..ir import Row
from ..types.typed import TypedRow
from ..report.texts import before


def selects(row: Row) -> bool:
    """Whether a row names layers, not all of them."""
    return row.layers is not None and row.layers.word != "all"


def outside_the_layers(t: TypedRow) -> Diagnostic | None:
    """What is wrong with a selection of layers at a site outside the layers, on any model."""
    selection = t.row.layers
    if selection is None or not selects(t.row):
        return None
    clause = before(selection.span, "layers")
    edits = put("", clause) if clause else ()
    if t.site.outside_the_layers and not t.site.probes:
        alone = len(t.row.sites) == 1
        return Diagnostic("E0518", f"`{t.site.name}` is outside the layers, so no layer can be selected there", selection.span,
                          help="leave `layers` out" if alone else f"let a row of its own, without `layers`, modify `{t.site.name}`",
                          edits=edits if alone else ())  # fmt: skip
    if t.site.probes and "x" not in t.out.reads:
        return Diagnostic("E0519", f"at `{t.site.name}` the selected layer is the one whose states `x` is, and this row does not read `x`",
                          selection.span, help="leave `layers` out, or read `x`, as `insert parallel` does", edits=edits)  # fmt: skip
    return None


def not_one(row: Row, count: int) -> Diagnostic:
    """The mistake of selecting more than one layer at the head."""
    return Diagnostic("E0519", f"`head` reads the states of one layer, and {count} are selected", row.layers.span if row.layers else row.span,
                      help="select one, as in `layers 6` or `layers last 1`; where other sites need more, let a row of its own modify `head`")  # fmt: skip
