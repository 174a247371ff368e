"""How a row's change meets h: one structure, of which the formula is the text and the diagram the picture.

The gate is part of it: ``gated by g`` makes the new h ``h + g * (out - h)``, which for a sum ``h + E`` is ``h + g * E``.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..ir import Row
from ..syntax.nodes import Apply, Binary, Expr, Let, Name, walk

_H, _G, _DELTA = Name("h"), Name("g"), Name("delta")
_SIGNS = {"+": "+", "-": "−", "*": "×", "/": "/"}


@dataclass(frozen=True, slots=True)
class Composition:
    """``new`` is the new h, the gate in it.

    Where it is ``h SIGN E``, ``brought`` is E before the gate multiplies it, and ``change`` E with the gate. ``sign`` is
    ``=`` where E replaces h, and the name of a function that takes E and h. In any other case it is ``λ`` or ``∘``: E is
    delta, and what happens to it is in the formula alone.
    """

    sign: str
    brought: Expr
    change: Expr
    new: Expr


def result(row: Row) -> Expr:
    """What the composition makes the new h, before the gate."""
    return next(s.value for s in reversed(row.compose) if isinstance(s, Let) and s.names[0] == "out")


def reads_h(e: Expr, row: Row) -> bool:
    """Whether an expression of the composition reads h, itself or through the lines above it."""
    lets = {s.names[0]: s.value for s in row.compose if isinstance(s, Let) and s.names[0] != "out"}
    names = {n.id for n in walk(e) if isinstance(n, Name)}
    return "h" in names or any(reads_h(lets[n], row) for n in names & lets.keys())


def composition(row: Row) -> Composition:
    found = _bare(row, result(row))
    if row.gate is None:
        return found
    if found.sign in ("+", "−"):
        op, brought = "+" if found.sign == "+" else "-", found.brought
    else:
        op, brought = "+", Binary("-", result(row), _H)
    change = Binary("*", _G, brought)
    return Composition(_SIGNS[op], brought, change, Binary(op, _H, change))  # type: ignore[arg-type]


def _bare(row: Row, out: Expr) -> Composition:
    def one(sign: str, e: Expr) -> Composition:
        return Composition(sign, e, e, out)

    match out:
        case Binary("+" | "-" as op, Name("h"), e):
            return one(_SIGNS[op], e)
        case Binary("*" | "/" as op, Name("h"), e) if not reads_h(e, row):
            return one(_SIGNS[op], e)
        case Binary("+" | "*" as op, e, Name("h")) if not reads_h(e, row):
            return one(_SIGNS[op], e)
        case Apply(Name(id), args) if _H in (values := [a.value for a in args]):
            rest = [v for v in values if any(n == _DELTA for n in walk(v)) and not reads_h(v, row)]
            if rest:
                return one(id, rest[0])
    if not reads_h(out, row):
        return one("=", out)
    names = {n.id for n in walk(out) if isinstance(n, Name)}
    lets = any(isinstance(s, Let) and s.names[0] in names for s in row.compose)
    return Composition("λ" if lets else "∘", _DELTA, _DELTA, out)
