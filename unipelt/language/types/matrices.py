"""Primitives of small matrices: Kronecker products, skew matrices, rotations, matrices with orthonormal columns."""

from __future__ import annotations

from ..sites import TensorType, united_axes
from ..syntax.nodes import Expr, Name, Number, Span
from ..syntax.printer import to_text
from .primitive import Reporter, primitive
from .values import NumberType, Value, bend, is_count, join, product


@primitive("kron", (2, 2), "the Kronecker product of two matrices (or vectors): [a, b] and [c, d] give [a c, b d], in which each entry "
           "of the first multiplies the whole of the second", bilinear=True)  # fmt: skip
def _kron(check: Reporter, span: Span, args: list[Value], exprs: list[Expr]) -> Value:
    a, b = (v.type for v in args)
    if not isinstance(a, TensorType) or not isinstance(b, TensorType) or not 0 < len(a.sizes) == len(b.sizes) <= 2:
        return check.fail("E0337", f"`kron` takes two matrices, or two vectors, not {a} and {b}", span)
    sizes = tuple(s * t for s, t in zip(a.sizes, b.sizes))
    return product(args[0], args[1], TensorType(united_axes(a.axes, b.axes), sizes), span)


@primitive("skew", (2, 2), "skew(S, n): the n (n - 1) / 2 numbers of the last size, row by row, above the diagonal of a matrix "
           "[n, n], their negatives below it", linear=True, tied=True)  # fmt: skip
def _skew(check: Reporter, span: Span, args: list[Value], exprs: list[Expr]) -> Value:
    a, n = args[0], args[1].type
    if not isinstance(n, NumberType) or n.size is None:
        return check.fail("E0331", f"`skew` takes the number of rows, not {n}", exprs[1].span)
    if not isinstance(a.type, TensorType) or not a.type.sizes:
        return check.fail("E0331", f"`skew` takes a tensor with a size, not {a.type}", exprs[0].span)
    wanted = n.size * (n.size - 1) / 2
    if a.type.sizes[-1] != wanted:
        rows = to_text(exprs[1]) if isinstance(exprs[1], (Name, Number)) else f"({to_text(exprs[1])})"
        return check.fail("E0339", f"`skew` fills {n.size} rows with {wanted} numbers, and this has {a.type.sizes[-1]}", exprs[0].span,
                          where=check.bindings(wanted, a.type.sizes[-1]),
                          help=f"declare it with the size `{rows} * ({rows} - 1) / 2`")  # fmt: skip
    return join(args, TensorType(a.type.axes, (*a.type.sizes[:-1], n.size, n.size)))


@primitive("cayley", (1, 2), "cayley(S): (I + S) (I - S)^-1, a rotation where S is skew; cayley(S, k): the first k powers of the same, "
           "I + 2 S + 2 S^2 + ... + 2 S^k (Neumann's series)", tied=True)  # fmt: skip
def _cayley(check: Reporter, span: Span, args: list[Value], exprs: list[Expr]) -> Value:
    if len(args) > 1 and not is_count(args[1]):
        return check.fail(
            "E0331", f"`cayley` takes a whole number of powers, at least 1, not {args[1].type}", exprs[1].span
        )
    return _square(check, "cayley", args, exprs)


def _square(check: Reporter, name: str, args: list[Value], exprs: list[Expr]) -> Value:
    a = args[0]
    if not isinstance(a.type, TensorType) or len(a.type.sizes) < 2 or a.type.sizes[-1] != a.type.sizes[-2]:
        code = "E0339" if isinstance(a.type, TensorType) and len(a.type.sizes) > 1 else "E0337"
        return check.fail(code, f"`{name}` takes a square matrix [n, n], not {a.type}", exprs[0].span)
    return bend(join(args, a.type), exprs[0].span)


@primitive("orthonormal", (1, 1), "the columns of a matrix [d, r], r at most d, made orthonormal one after another (Gram and Schmidt): "
           "Q of A = Q R with a positive diagonal of R", tied=True)  # fmt: skip
def _orthonormal(check: Reporter, span: Span, args: list[Value], exprs: list[Expr]) -> Value:
    (a,) = args
    if not isinstance(a.type, TensorType) or len(a.type.sizes) < 2:
        return check.fail("E0337", f"`orthonormal` takes a matrix [d, r], not {a.type}", span)
    beyond = (a.type.sizes[-1] - a.type.sizes[-2]).number
    if beyond is not None and beyond > 0:
        return check.fail("E0339", f"{a.type.sizes[-1]} columns of size {a.type.sizes[-2]} cannot all be orthogonal", exprs[0].span,
                          help="write no more columns than rows")  # fmt: skip
    return bend(a, span)


@primitive("householder", (1, 1), "the product H_1 H_2 ... H_k of the reflections I - 2 v v^T / |v|^2 in the columns v of a matrix [n, k], as "
           "[n, n]; a column of zeros reflects nothing", tied=True)  # fmt: skip
def _householder(check: Reporter, span: Span, args: list[Value], exprs: list[Expr]) -> Value:
    (a,) = args
    if not isinstance(a.type, TensorType) or len(a.type.sizes) < 2:
        return check.fail("E0337", f"`householder` takes a matrix [n, k], not {a.type}", span)
    return bend(a.typed(TensorType(a.type.axes, (*a.type.sizes[:-1], a.type.sizes[-2]))), span)


@primitive("circulant", (1, 1), "the matrix [n, n] whose first column is the vector [n], each further column the one before moved down by one "
           "place: `c @ circulant(z).T` and `z @ circulant(c).T` are the circular convolution of z and c", linear=True, tied=True)  # fmt: skip
def _circulant(check: Reporter, span: Span, args: list[Value], exprs: list[Expr]) -> Value:
    (a,) = args
    if not isinstance(a.type, TensorType) or not a.type.sizes:
        return check.fail("E0337", f"`circulant` takes a vector [n], not {a.type}", span)
    return a.typed(TensorType(a.type.axes, (*a.type.sizes, a.type.sizes[-1])))
