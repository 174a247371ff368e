"""A row reads a tensor of a row above it by that row's name: `a.A`. Both then have one tensor, where they have one place.

What it is is read off its declaration, in the scope of the row that reads it; how it starts is the other row's affair.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from ..report.diagnostics import instead
from ..syntax.lines import lines_for
from ..syntax.nodes import Attr, Axis, Let, Name, Tensor
from .members import member_value
from .values import POISON, Value

if TYPE_CHECKING:
    from .rows import RowChecker


def lent(check: RowChecker, e: Attr, weights: Value | None) -> Value | None:
    """What `a.A` is; None where neither a row nor a list of adapters has that name. ``weights`` are those of a call."""
    inf = check.inf
    if not isinstance(e.value, Name):
        return None
    member = member_value(check, e, weights)
    if member is not None or weights is not None:
        return member
    name = f"{e.value.id}.{e.name}"
    if name in inf.names:
        return inf.names[name]
    names = [r.name for r in check.rows]
    if e.value.id not in names or e.value.id in (*inf.names, *inf.hidden):
        return None
    row = check.rows[names.index(e.value.id)]
    if names.index(row.name) >= names.index(check.row.name):
        return inf.fail("E0376", f"the row `{row.name}` does not stand above the one that reads its `{e.name}`", e.span,
                        help="change the order of the rows" if row.name != check.row.name else f"write `{e.name}`")  # fmt: skip
    body = next(
        (b for b in (row.form, row.compose) if any(isinstance(s, Tensor) and s.name == e.name for s in b)), None
    )
    if body is None:
        own = [s.name for s in (*row.form, *row.compose) if isinstance(s, Tensor)]
        return inf.fail("E0376", f"the row `{row.name}` has no tensor `{e.name}`", e.span,
                        **instead(e.name, own, e.span, f"it has: {', '.join(own) or 'none'}"))  # fmt: skip
    at, declared = next((i, s) for i, s in enumerate(body) if isinstance(s, Tensor) and s.name == e.name)
    names_here, nodes, varies = dict(inf.names), inf.nodes, check.varies
    for s in lines_for([*(row.form if body is row.compose else ()), *body[:at]], declared):
        inf.nodes = {}
        if isinstance(s, Axis):
            check._axis(s)
        elif isinstance(s, Let):
            inf.names |= dict.fromkeys(s.names, inf.infer(s.value))
        elif isinstance(s, Tensor):
            t = check._tensor(s, "lent")
            inf.names[s.name] = t.value if t is not None else Value(POISON)
    inf.nodes = {}
    found = check._tensor(declared, "lent")
    inf.names, inf.nodes, check.varies = names_here, nodes, varies
    if found is None:
        return Value(POISON)
    found = replace(found, name=name, part="", lender=row.name, exact=None)
    check._bind(name, "form", found.value, declared=found)
    return found.value
