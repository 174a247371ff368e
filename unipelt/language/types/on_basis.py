"""What a row of a linear map's input makes of the map's weight: `insert parallel` at a weight.

The weight is what a map yields of the basis of its input, row by row. So a row that reads ``x`` is, at the weight, the row read on
that basis: ``z`` is the identity, and ``z @ A`` is ``A``. That is the same row only where what it adds is linear in what enters: where
nothing bends it, adds a constant to it or multiplies it by what enters once more. A row that is not is a mistake here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ..ir import Row
from ..report.diagnostics import Diagnostic
from ..syntax.nodes import Apply, Arg, Binary, Expr, Let, Name, Negative, Number, Param, Statement
from ..syntax.tree import walk

#: Words that are linear in their first argument, whatever axis they are told.
_LINEAR = ("sum", "join")
_PARALLEL = Name("parallel")
_Z = Name("z")


class _NotLinear(Exception):
    def __init__(self, why: str, at: Expr):
        self.why, self.at = why, at


def on_basis(row: Row, params: Sequence[Param]) -> Row | Diagnostic:
    """The row as it is read on the basis of what enters, or what is wrong with that. Its insertion is gone."""
    reading = _Reading(params)
    try:
        form = tuple(map(reading.line, row.form))
        gate = next((n for s in row.gate or () for n in walk(s) if n in (_Z, Name("x"))), None)
        if gate is not None:
            raise _NotLinear("its gate reads what enters", gate)
        reading.linear.add("h")
        compose = tuple(map(reading.line, row.compose))
    except _NotLinear as e:
        return Diagnostic("E0305", f"at a weight `insert parallel` needs a row that is linear in what enters: {e.why}",
                          e.at.span if e.at.span.file else row.span, help="modify the projection itself, or leave `insert` out: then `z` is the weight")  # fmt: skip
    return replace(row, insert=None, form=form, compose=compose)


def reads_parallel(row: Row) -> bool:
    """Whether a row inserts what enters, and reads it."""
    return row.insert == _PARALLEL and any(
        n == _Z for s in (*row.form, *(row.gate or ()), *row.compose) for n in walk(s)
    )


class _Reading:
    def __init__(self, params: Sequence[Param]):
        self.values = {p.name: p.default for p in params}
        self.linear: set[str] = set()  # the names of what is linear in what enters

    def line(self, s: Statement) -> Statement:
        if not isinstance(s, Let):
            met = next((n for n in walk(s) if n == _Z or (isinstance(n, Name) and n.id in self.linear)), None)
            if met is not None:
                raise _NotLinear(f"`{met.id}` is read where no value is made of it", met)
            return s
        value, linear = self.read(s.value)
        if value == _Z:
            raise _NotLinear("what enters is passed on as it is", s.value)
        self.linear.difference_update(s.names)
        if linear:
            self.linear.update(s.names)
        return replace(s, value=value)

    def read(self, e: Expr) -> tuple[Expr, bool]:
        """An expression on the basis, and whether it is linear in what enters; else it reads nothing of that."""
        if isinstance(e, Name):
            return e, e == _Z or e.id in self.linear
        if not any(n == _Z or (isinstance(n, Name) and n.id in self.linear) for n in walk(e)):
            return e, False
        match e:
            case Negative(value):
                return replace(e, value=self.whole(value)), True
            case Binary(op, left, right):
                return self.two(e, op, left, right), True
            case Apply(Name("drop"), (Arg(value=value), Arg(value=rate))):
                if not self.is_zero(rate):
                    raise _NotLinear(
                        "each token would drop entries of its own, and a weight is the same for all of them", e
                    )
                return self.read(value)
            case Apply(Name(name), (first, *others)) if name in _LINEAR and first.name is None:
                return replace(e, args=(replace(first, value=self.whole(first.value)), *others)), True
        raise _NotLinear("this need not be linear", e)

    def whole(self, e: Expr) -> Expr:
        """As `read`, of what is linear, and not what enters itself, which would have its place on the left of a product."""
        value, linear = self.read(e)
        if value == _Z or not linear:
            raise _NotLinear(
                "what enters is read otherwise than in a product `z @ …`"
                if linear
                else "this adds what reads nothing of what enters",
                e,
            )
        return value

    def two(self, e: Binary, op: str, left: Expr, right: Expr) -> Expr:
        (a, first), (b, second) = self.read(left), self.read(right)
        if op == "@" and a == _Z and not second:
            return b
        if _Z in (a, b):
            raise _NotLinear("what enters is read otherwise than in a product `z @ …`", e)
        if op in ("+", "-"):
            if first and second:
                return replace(e, left=a, right=b)
            raise _NotLinear("this adds what reads nothing of what enters", e)
        if (op in ("*", "@") and first != second and (first or op == "*")) or (op == "/" and not second):
            return replace(e, left=a, right=b)
        raise _NotLinear("this need not be linear", e)

    def is_zero(self, e: Expr) -> bool:
        """Whether a number is 0, or an argument that has no value yet."""
        found = self.values.get(e.id, e) if isinstance(e, Name) else e
        return found is None or found == Number(0) or (isinstance(found, Number) and not found.value)
