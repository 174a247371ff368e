"""Primitives that take matrices apart or invert them.

A decomposition has several results, and singular vectors have arbitrary signs: so it is computed once, where a method is
attached, and only starts may read it. What they make of it is stored.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from ..sites import TensorType
from ..sizes import Size
from ..syntax.nodes import Expr, Span
from .primitive import Reporter, primitive
from .values import Several, Value, bend


def smaller(a: Size, b: Size) -> Size:
    """The smaller of two sizes; where that is not known a symbol that is named as `min` names it."""
    if a == b:
        return a
    if a.number is not None and b.number is not None:
        return a if a.number < b.number else b
    return Size.of(f"min({a.text}, {b.text})")


def _matrix(check: Reporter, name: str, a: Value, span: Span) -> TensorType | Value:
    """The type of a matrix, or the value of a mistake."""
    if isinstance(a.type, TensorType) and len(a.type.sizes) >= 2:
        return a.type
    return check.fail("E0331", f"`{name}` takes a matrix [.., n, m], and this is {a.type}", span)


def _apart(
    check: Reporter, name: str, a: Value, span: Span, parts: Callable[[Size, Size, Size], tuple[tuple[Size, ...], ...]]
) -> Value:
    """The factors of a matrix [n, m]; ``parts`` are their sizes, from n, m and the smaller of the two."""
    t = _matrix(check, name, a, span)
    if isinstance(t, Value):
        return t
    *front, n, m = t.sizes
    factors = tuple(TensorType(t.axes, (*front, *own)) for own in parts(n, m, smaller(n, m)))
    return replace(bend(a, span), type=Several(factors), at_start=span)


@primitive("svd", (1, 1), "U, S, V = svd(A) of A: [.., n, m]: singular vectors U: [.., n, k] and V: [.., m, k] in columns, singular "
           "values S: [.., k], the largest first, k = min(n, m), A = (U * S) @ V.T; the largest entry of each column of U is positive")  # fmt: skip
def _svd(check: Reporter, span: Span, args: list[Value], exprs: list[Expr]) -> Value:
    return _apart(check, "svd", args[0], span, lambda n, m, k: ((n, k), (k,), (m, k)))


@primitive("qr", (1, 1), "Q, R = qr(A) of A: [.., n, m]: orthonormal columns Q: [.., n, k] and R: [.., k, m], upper triangular with "
           "no negative entry on its diagonal, k = min(n, m), A = Q @ R")  # fmt: skip
def _qr(check: Reporter, span: Span, args: list[Value], exprs: list[Expr]) -> Value:
    return _apart(check, "qr", args[0], span, lambda n, m, k: ((n, k), (k, m)))


@primitive("inverse", (1, 1), "the inverse of a square matrix [.., n, n]", tied=True)
def _inverse(check: Reporter, span: Span, args: list[Value], exprs: list[Expr]) -> Value:
    t = _matrix(check, "inverse", args[0], span)
    if isinstance(t, Value):
        return t
    if t.sizes[-1] != t.sizes[-2]:
        return check.fail("E0312", f"`inverse` takes a square matrix, and this is {t}", span,
                          where=check.bindings(*t.sizes[-2:]), help="`pinv` is the inverse of any matrix, as far as there is one")  # fmt: skip
    return bend(args[0], span)


@primitive("pinv", (1, 1), "the pseudo-inverse [.., m, n] of a matrix [.., n, m]", linear=True, tied=True)
def _pinv(check: Reporter, span: Span, args: list[Value], exprs: list[Expr]) -> Value:
    t = _matrix(check, "pinv", args[0], span)
    if isinstance(t, Value):
        return t
    *front, n, m = t.sizes
    return bend(args[0].typed(TensorType(t.axes, (*front, m, n))), span)
