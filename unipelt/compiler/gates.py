"""The gates of a row: learned scalars by which something is multiplied. Found by structure, never by name.

A gate that wraps the row (``gated by``), a gate that was called in a form (it is a let by now), a learned scale and a
share of a softmax are all such scalars: an expression without sizes that reads learned tensors and is a factor of an
expression with sizes. Non-goal: gates with a value for each feature; they are edits, and seen as such.
"""

from __future__ import annotations

import re
from itertools import chain, count
from typing import Any

from ..language.once import once
from ..language.types.typed import Binding, TypedRow
from ..language.syntax.printer import to_text
from ..language.sites import TensorType
from ..language.syntax.nodes import Binary, Expr, Name, walk
from ..language.types.values import Value

#: What the gate around a row is called, and the name under which its value is found (see `runtime.edits.Edit.evaluate`).
AROUND, ITS_VALUE = "gate", "gate.g"
#: Texts that are labels as they stand.
_SHORT = re.compile(r"[\w() .*+\-]{1,16}")


@once
def gates(t: TypedRow) -> dict[str, Expr]:
    """The gates of a row by label, as expressions over the row's names; the gate around it is `ITS_VALUE`.

    A gate's label is its name or its text, and ``gate`` where that is long. One that is made of others (``1 - lam``
    beside ``lam``) is left out.
    """
    found: list[Expr] = []
    for line in t.lines("form", "compose"):
        for e in walk(line.expression) if line.expression is not None else ():
            found += [f for f in _factors(e, line) if f not in found]
    named = {e.id for e in found if isinstance(e, Name)}
    kept = [e for e in found if isinstance(e, Name) or not named & {n.id for n in walk(e) if isinstance(n, Name)}]
    out: dict[str, Expr] = {AROUND: Name(ITS_VALUE)} if t.row.gate is not None else {}
    for e in kept:
        out[_label(e, out)] = e
    return out


def _factors(e: Any, line: Binding) -> list[Expr]:
    """The learned scalars in a product with something that has sizes."""
    if not (isinstance(e, Binary) and e.op == "*"):
        return []
    sides = [(side, line.of(side)) for side in (e.left, e.right)]
    if all(_is_scalar(v) for _, v in sides):
        return []
    return [f for side, v in sides if _is_scalar(v) and v.learned for f in _parts(side, line)]


def _parts(e: Expr, line: Binding) -> list[Expr]:
    """A product of scalars is its learned factors."""
    if isinstance(e, Binary) and e.op == "*":
        return [p for side in (e.left, e.right) if line.of(side).learned for p in _parts(side, line)]
    return [e]


def _is_scalar(v: Value) -> bool:
    return not (isinstance(v.type, TensorType) and v.type.sizes)


def _label(e: Expr, taken: dict[str, Expr]) -> str:
    text = to_text(e)
    front = text if _SHORT.fullmatch(text) else AROUND
    return next(x for x in chain([front], (f"{front}_{n}" for n in count(2))) if x not in taken)
