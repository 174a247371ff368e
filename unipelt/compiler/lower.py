"""Lowerings: rewrites of a row into something faster that computes the same. Each has a name and can be switched off.

Some are done on the row (here), the others where its code is written (`recipe`, `writer`, `lines`). Recognition is by structure,
never by a method's name. Non-goals: merging (`runtime.merge`), folding for good (`language.analyse.fold`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import reduce
from typing import Any

from ..language.types.typed import TypedRow
from ..language.report.diagnostics import error, near
from ..language.ir import Row
from ..language.once import once
from ..language.sites import TensorType
from ..language.types.draws import draw_of
from ..language.types.softmax import inlined, shares_softmax
from ..language.syntax.nodes import Apply, Attr, Binary, Choose, Expr, Index, Let, Name, Statement, rewrite, walk
from ..language.types.values import NumberType
from .evaluator import Context, evaluate

#: Names that stand for the same everywhere outside training, besides the functions on numbers.
_PLAIN = frozenset(("true", "false", "training", "max", "min", "floor", "ceil", "round", "divides", "abs", "sqrt"))


#: The lowerings by name.
LOWERINGS: dict[str, str] = {
    "rests": "outside training a row whose gate is 0 or whose `out` is `h` is passed over",
    "added": "in `out = h + E` a gate multiplies E alone",
    "fused": "the addition's kernel takes the gate and a plain factor of E",
    "linear": "`z @ W + b` is one linear map",
    "narrow": "in training a gate multiplies the narrow side of a product, g · (u @ W) = (g · u) @ W: u is kept for the backward pass, not u @ W",
    "joined": "products that read the same are one product",
    "again": "in training the product, entry by entry, of two low-rank products is computed again in the backward pass: their factors are kept",
    "contracted": "a sum over an axis of products that are larger than both their sides is one product: they are not made",
    "small first": "in a product, entry by entry, of a matrix and vectors the vectors are multiplied first",
    "circular": "in training a product with a circulant matrix is a convolution by Fourier transforms, and a sum over an axis is taken among the frequencies: the matrix is not made",
    "recomputed": "in training a product that narrows does not keep what a layer norm yields: it is computed again from what the norm keeps",
    "folded": "what reads the adapter's tensors alone is computed first, outside training once and not at every call",
    "rows": "attention over learned rows that shares the softmax (He et al. 2022, equation 7) is that many more keys and values of the attention kernel",
    "gated rows": "the same where a scalar of each query multiplies the scores or what the rows yield",
}  # fmt: skip


def lowerings(which: bool | Collection[str]) -> frozenset[str]:
    """The lowerings of ``apply``'s argument: all, none or those that it names."""
    if isinstance(which, bool):
        return frozenset(LOWERINGS if which else ())
    found = [which] if isinstance(which, str) else [*which]
    for name in found:
        if name not in LOWERINGS:
            raise error("E0593", f"there is no lowering `{name}`",
                        help=near(str(name), LOWERINGS) or f"write True, False or some of {', '.join(LOWERINGS)}")  # fmt: skip
    return frozenset(found)


@dataclass(frozen=True, slots=True)
class Lowered:
    """``out = h + factor · added`` where `added`; the row as keys and values where ``keys``, with what multiplies scores and what they
    yield at each query; ``on`` are the lowerings that the code is written with."""

    on: frozenset[str] = frozenset()
    added: Expr | None = None
    factor: Expr | None = None
    before: tuple[Statement, ...] = ()
    keys: Expr | None = None
    values: Expr | None = None
    on_scores: Expr | None = None
    on_values: Expr | None = None

    @property
    def gated(self) -> bool:
        return self.on_scores is not None or self.on_values is not None


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


@once
def lower(typing: TypedRow, on: frozenset[str], grouped: bool = False) -> Lowered:
    """What can be done with a row. ``grouped``: several heads share a key."""
    row = typing.acting
    if typing.site.is_weight:
        on -= {
            "folded"
        }  # all of it reads the adapter's tensors alone: what is kept is what comes of it (`runtime.weights`)
    shares = "rows" in on and shares_softmax(row) and not row.tokens  # keys are the same for every query
    rows = _rows(row, typing, on, grouped) if shares else None
    added = _added(row) if "added" in on else None
    factor: Expr | None = None
    if isinstance(added, Binary) and added.op == "*" and isinstance(typing.value(added.left).type, NumberType):
        factor = added.left
        added = added.right
    if added is not None and not isinstance(typing.value(added).type, TensorType):
        added, factor = None, None  # a plain number is added: as written
    return Lowered(on, added, factor, *(rows or ()))


def _added(row: Row) -> Expr | None:
    last = row.compose[-1]
    if isinstance(last, Let) and last.names == ("out",) and isinstance(last.value, Binary) and last.value.op == "+":
        left, right = last.value.left, last.value.right
        if left == Name("h") and Name("h") not in list(walk(right)):
            return right
    return None


def _rows(
    row: Row, typing: TypedRow, on: frozenset[str], grouped: bool
) -> tuple[tuple[Statement, ...], Expr, Expr, Expr | None, Expr | None] | None:
    """``scores = a * (q @ K.T) * scale`` and ``delta = b * (softmax(scores) @ V)`` with K and V the same for every token: the lines
    before, K, V, and those factors of a and b that differ between tokens (the others go into K and V)."""
    lets = {s.names[0]: s.value for s in row.form if isinstance(s, Let)}
    keys, on_scores = _parted(lets.get("scores"), _keys, typing)
    values, on_values = _parted(lets.get("delta"), _values, typing)
    if keys is None or values is None:
        return None
    before = tuple(s for s in row.form if not (isinstance(s, Let) and s.names[0] in ("scores", "delta")))
    shares = [e for e in (on_scores, on_values) if e is not None]
    if shares and "gated rows" not in on:
        return None
    nodes = [n for e in (keys, values, *shares, *before) for n in walk(e)]
    if any(
        d is not None and {"batch", "token"} & {*d.axes}
        for d in (draw_of(n, typing.values, typing.axes) for n in nodes)
    ):
        return None  # how many there are is not known where the rows are made
    reads = {n.id for n in nodes if isinstance(n, Name)}
    if reads & {"scores", "delta", "q", "z", "residual"}:
        return None
    for e in (keys, values):
        t = typing.value(e).type
        if not isinstance(t, TensorType) or "token" in t.axes or len(t.sizes) != 2:
            return None
        if grouped and "head" in t.axes:
            return None  # the kernel has keys for groups only
    if grouped and any({"head", "group"} & {*getattr(typing.value(e).type, "axes", ())} for e in shares):
        return None
    return before, keys, values, on_scores, on_values


def _parted(e: Expr | None, rows: Callable[[Expr], Expr | None], typing: TypedRow) -> tuple[Expr | None, Expr | None]:
    """A product as its learned rows, as ``rows`` finds them in one of its factors, multiplied by the scalars that are the same
    for every token; and the product of the other scalars."""
    found: Expr | None = None
    fixed: list[Expr] = []
    shares: list[Expr] = []
    todo = _factors(e)
    while todo:
        f = todo.pop(0)
        t = typing.value(f).type
        matrix = rows(f) if found is None else None
        if matrix is not None:
            *scalars, found = sorted(_factors(matrix), key=lambda m: _is_matrix(typing.value(m).type))
            if len(scalars) and any(_is_matrix(typing.value(s).type) for s in scalars):
                found, scalars = matrix, []
            todo += scalars
        elif isinstance(t, NumberType):
            fixed += [f] if f != _SCALE else []
        elif isinstance(t, TensorType) and not t.sizes:
            (shares if "token" in t.axes else fixed).append(f)
        else:
            return None, None
    if found is None or _factors(e).count(_SCALE) != (rows is _keys):
        return None, None
    return _times([*fixed, found]), _times(shares) if shares else None


_SCALE = Name("scale")  # the kernel multiplies by it


def _is_matrix(t: Any) -> bool:
    return isinstance(t, TensorType) and bool(t.sizes)


def _factors(e: Any) -> list[Any]:
    return [*_factors(e.left), *_factors(e.right)] if isinstance(e, Binary) and e.op == "*" else [e]


def _times(factors: list[Any]) -> Expr:
    return reduce(lambda a, b: Binary("*", a, b), factors)


def _keys(e: Any) -> Expr | None:
    match e:
        case Binary("@", Name("q"), Attr(keys, "T")):
            return keys
    return None


def _values(e: Any) -> Expr | None:
    match e:
        case Binary("@", Apply(Name("softmax"), (arg,)), values) if arg.value == Name("scores") and arg.name is None:
            return values
    return None
