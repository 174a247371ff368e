"""Trained adapters as values: an argument `of` of the type `adapters`, of which a row reads what each member does at its site.

`of.out` is the h that each member makes of the site's, `of.delta` what it adds to it, with an entry for each along the row's axis
of that length (`axis member = of`). `of.delta(w)` is what one adapter adds whose every tensor is the sum of the members' times w.
Which adapters they are is said where the method is attached; until then nothing is known of them (`language.members`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ..report.diagnostics import instead
from ..sites import TensorType
from ..sizes import Size
from ..syntax.nodes import Apply, Attr, Name, Param, walk
from ..syntax.printer import to_text
from .values import AFFINE, CONSTANT, OTHER, NumberType, Poison, Value, join

if TYPE_CHECKING:
    from .rows import RowChecker

#: What may be read of members.
WORDS = ("delta", "out")


def member_value(check: RowChecker, e: Attr, weights: Value | None) -> Value | None:
    """What `of.delta` is, or with the weights of a call `of.delta(w)`; None where `of` is no list of adapters."""
    inf, of = check.inf, e.value.id if isinstance(e.value, Name) else ""
    if of not in check.params or check.params[of].type != "adapters":
        return None
    if e.name not in WORDS:
        return inf.fail("E0381", f"`{of}.{e.name}` is nothing that adapters have", e.span,
                        **instead(f"{of}.{e.name}", [f"{of}.{w}" for w in WORDS], e.span, f"read {of}.delta or {of}.out"))  # fmt: skip
    h = check.h
    axis = next((n for n, size in inf.axes.items() if size == Size.of(of)), None)
    if axis is None and (weights is None or isinstance(weights.type, TensorType)):
        return inf.fail("E0382", f"`{of}.{e.name}` has an entry for each adapter, and this row has no axis for them", e.span,
                        help=f"write `axis member = {of}` above this line")  # fmt: skip
    # What is affine whatever its members do is decided with them; what is not stays so.
    degree = CONSTANT if check.site.is_weight else AFFINE
    value = Value(h, degree, reads=frozenset({f"{of}.{e.name}"}))
    if weights is None:
        inf.names[f"{of}.{e.name}"] = found = replace(value, type=TensorType(h.axes | {str(axis)}, h.sizes))
        return found
    if isinstance(weights.type, Poison):
        return weights
    if isinstance(weights.type, NumberType):
        inf.names[f"{of}.{e.name}()"] = found = join((value, weights), h)
        return found
    if not isinstance(weights.type, TensorType) or weights.type.sizes or axis not in weights.type.axes:
        return inf.fail("E0383", f"the weights of adapters are a number, or one for each of them, and this is {weights.type}", e.span,
                        help=f"declare `w: [] ~ constant(1 / {of}) per {axis or 'member'}`")  # fmt: skip
    found = join((value, weights), TensorType(h.axes | (weights.type.axes - {axis}), h.sizes))
    found = replace(found, degree=OTHER, bends=e.span) if weights.degree else found
    inf.names[f"{of}.{e.name}()"] = found
    return found


def read_of(node: Any, params: Iterable[Param]) -> list[Attr]:
    """Where some expressions or lines read adapters: the `of.delta` and `of.out` in them."""
    names = {p.name for p in params if p.type == "adapters"}
    found = (n for n in walk(node) if isinstance(n, Attr) and isinstance(n.value, Name) and n.value.id in names)
    return [n for n in found if n.name in WORDS]


def averaged(node: Any, params: Iterable[Param]) -> list[str]:
    """The `of.delta` and `of.out` that are called with weights."""
    calls = [n.function for n in walk(node) if isinstance(n, Apply)]
    return list(dict.fromkeys(to_text(a) for f in calls for a in read_of(f, params) if a is f))
