"""Lowerings: rewrites of a row into something faster that computes the same. Each can be switched off.

- ``added``: a composition ``out = h + E`` lets a gate multiply E alone; a plain ``factor`` of E goes into the addition.
- ``z @ W + b`` is one linear map (`evaluator.Context.fused`).
- ``rests``: a row whose gate is 0 or whose ``out`` is ``h`` outside training is passed over there.
- ``keys``/``values``: attention over learned rows that shares the softmax (h, scores, log_mass joined as in He et al.
  2022, equation 7) equals that many more key/value rows in the fused attention kernel.

Recognition is by structure after inlining lets, never by name. Non-goals: merging (`runtime.merge`), folding (`language.analyse.fold`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..language.types.typed import TypedRow
from ..language.ir import Row
from ..language.sites import TensorType
from ..language.types.softmax import inlined, shares_softmax
from ..language.syntax.nodes import Apply, Attr, Binary, Choose, Expr, Index, Let, Name, Statement, rewrite, walk
from ..language.types.values import NumberType
from .evaluator import Context, evaluate

#: Names that stand for the same everywhere outside training, besides the functions on numbers.
_PLAIN = frozenset(("true", "false", "training", "max", "min", "floor", "ceil", "divides", "abs", "sqrt"))


@dataclass(frozen=True, slots=True)
class Lowered:
    added: Expr | None = None
    factor: Expr | None = None
    before: tuple[Statement, ...] = ()
    keys: Expr | None = None
    values: Expr | None = None


def _result(row: Row) -> Expr | None:
    """The composition's ``out`` with its lets inlined."""
    return inlined(row.compose, "out")


def rests(row: Row, constants: Mapping[str, Any], sizes: Mapping[str, int]) -> bool:
    """Whether outside training the row leaves ``h`` as it is, by its constants alone: nothing need be computed then."""
    context = Context(dict(constants), sizes)

    def closed(e: Expr) -> bool:
        names = {n.id for n in walk(e) if isinstance(n, Name)}
        return not any(isinstance(n, (Attr, Index)) for n in walk(e)) and names <= {*constants, *_PLAIN}

    def decide(n: Any) -> Any:
        if isinstance(n, Choose) and closed(n.test):
            return n.then if evaluate(n.test, context) else n.other
        return n

    gate = inlined(row.gate, "g") if row.gate is not None else None
    gate = rewrite(gate, decide) if gate is not None else None
    if gate is not None and closed(gate) and not evaluate(gate, context):
        return True
    out = _result(row)
    return out is not None and rewrite(out, decide) == Name("h")


def lower(row: Row, typing: TypedRow, grouped: bool = False) -> Lowered:
    """What can be done with a row; an empty `Lowered` if nothing. ``grouped``: several heads share a key."""
    rows = _rows(row, typing, grouped) if shares_softmax(row) else None
    added = _added(row)
    factor: Expr | None = None
    if isinstance(added, Binary) and added.op == "*" and isinstance(typing.value(added.left).type, NumberType):
        factor = added.left
        added = added.right
    if added is not None and not isinstance(typing.value(added).type, TensorType):
        added, factor = None, None  # a plain number is added: as written
    return Lowered(added, factor, *(rows or ((), None, None)))


def _added(row: Row) -> Expr | None:
    last = row.compose[-1]
    if isinstance(last, Let) and last.names == ("out",) and isinstance(last.value, Binary) and last.value.op == "+":
        left, right = last.value.left, last.value.right
        if left == Name("h") and Name("h") not in list(walk(right)):
            return right
    return None


def _rows(row: Row, typing: TypedRow, grouped: bool) -> tuple[tuple[Statement, ...], Expr, Expr] | None:
    """``scores = q @ K.T * scale`` and ``delta = softmax(scores) @ V``, with K and V the same for every token."""
    lets = {s.names[0]: s.value for s in row.form if isinstance(s, Let)}
    scores, delta = lets.get("scores"), lets.get("delta")
    keys = _keys(scores)
    values = _values(delta)
    if keys is None or values is None:
        return None
    before = tuple(s for s in row.form if not (isinstance(s, Let) and s.names[0] in ("scores", "delta")))
    reads = {n.id for e in (keys, values, *before) for n in walk(e) if isinstance(n, Name)}
    if reads & {"scores", "delta", "q", "z", "residual"}:
        return None
    for e in (keys, values):
        t = typing.value(e).type
        if not isinstance(t, TensorType) or "token" in t.axes or len(t.sizes) != 2:
            return None
        if grouped and "head" in t.axes:
            return None  # the kernel has keys for groups only
    return before, keys, values


def _keys(e: Any) -> Expr | None:
    match e:
        case Binary("*", Binary("@", Name("q"), Attr(keys, "T")), Name("scale")):
            return keys
    return None


def _values(e: Any) -> Expr | None:
    match e:
        case Binary("@", Apply(Name("softmax"), (arg,)), values) if arg.value == Name("scores") and arg.name is None:
            return values
    return None
