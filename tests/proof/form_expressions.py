"""Which expressions of a form a judge looks at, and what each reads, by the names that are written there.

Nothing is typed, and no rule of the checker's is asked: what an expression comes to is for the judge to measure.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from trial import Tap

from unipelt.language.syntax.nodes import (
    Apply,
    Attr,
    Choose,
    Expr,
    Index,
    Later,
    Let,
    Name,
    Number,
    Slice,
    String,
    children,
    dotted,
    walk,
)

#: Names of the base, or of what varies from pass to pass; a token's position is the same in all batches.
_BASE = ("W", "bias", "scale", "log_mass", "drop", "training", "chance", "noise", "positions")


def computed(tap: Tap) -> Iterator[Expr]:
    """The expressions of the form's lets that out reads, by what is carried too, but for those of the base."""
    lets = [s for s in (*tap.edit.row.form, *tap.edit.row.compose) if isinstance(s, (Let, Later))]
    needed = {"out"} | {n.id for s in tap.edit.row.gate or () for n in walk(s) if isinstance(n, Name)}
    for s in reversed(lets):
        if needed & set(s.names):
            values = s.values if isinstance(s, Later) else (s.value,)
            needed |= {n.id for v in values for n in walk(v) if isinstance(n, Name)}
    for s in tap.edit.row.form:
        if isinstance(s, Let) and needed & set(s.names):
            yield from (e for e in _expressions(s.value) if not _of_base(e, tap))


def _expressions(e: Any) -> Iterator[Expr]:
    """An expression and those below it that compute something."""
    if isinstance(e, Choose) and not any(isinstance(n, Name) and n.id == "training" for n in walk(e.test)):
        return  # what sizes or arguments choose is never folded, as a whole or in part
    if isinstance(e, (Name, Number, String)) or (isinstance(e, (Attr, Index)) and isinstance(e.value, Name)):
        return
    if hasattr(e, "kind") and not isinstance(e, Slice):
        yield e
    for below in children(e):
        if not (isinstance(e, Apply) and below is e.function):
            yield from _expressions(below)


def _of_base(e: Expr, tap: Tap) -> bool:
    """Whether it reads the base, by itself or by what its names stand for."""
    lets = {s.names[0]: s.value for s in tap.edit.row.form if isinstance(s, Let)}
    base = {*_BASE, "z", "h"} if tap.edit.site.kind.is_weight else _BASE
    for n in walk(e):
        if isinstance(n, Apply) and "." in (dotted(n.function) or ""):
            return True
        if isinstance(n, Name) and (n.id in base or (n.id in lets and lets[n.id] != e and _of_base(lets[n.id], tap))):
            return True
    return False


def closed(e: Expr, tap: Tap) -> bool:
    """Whether an expression reads learned tensors and nothing that the model computes, by its names."""
    lets = {s.names[0]: s.value for s in tap.edit.row.form if isinstance(s, Let)}
    learned = {x.name for x in tap.edit.typing.tensors if not x.frozen}
    names = _read(e)
    while more := set().union(*(_read(lets[name]) for name in names & set(lets))) - names:
        names |= more
    of_a_pass = {"x", "z", "h", "q", "residual", "log_mass", *(i.name for i in tap.edit.typing.inputs)}
    return bool(names & learned) and not names & of_a_pass


def _read(e: Any) -> set[str]:
    """The names whose values an expression reads; of a width only the size is read."""
    if isinstance(e, Apply) and dotted(e.function) == "width":
        return set()
    own = {e.id} if isinstance(e, Name) else set()
    return own.union(*(_read(below) for below in children(e)))
