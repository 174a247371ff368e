"""Primitives that transform: matrices from frequencies, from wavelets; vectors by rotations in planes."""

from __future__ import annotations

from ..sites import TensorType, united_axes
from ..syntax.nodes import Expr, Span
from .primitive import Reporter, Rule, primitive
from ..sizes import Size
from .values import Value, bend, product


def _fourier(name: str) -> Rule:
    def rule(check: Reporter, span: Span, args: list[Value], exprs: list[Expr]) -> Value:
        (a,) = args
        if not isinstance(a.type, TensorType) or len(a.type.sizes) < 2:
            return check.fail("E0331", f"`{name}` transforms a matrix [.., p, q], and this is {a.type}", span)
        return a

    return rule


for _name, _what in (("fft2", ""), ("ifft2", "inverse ")):
    primitive(_name, (1, 1), f"the real part of the {_what}Fourier transform of a tensor [.., p, q] in two dimensions", linear=True,
              tied=True)(_fourier(_name))  # fmt: skip
primitive("idct2", (1, 1), "the inverse cosine transform (DCT-III, orthonormal) of a tensor [.., p, q] in two dimensions", linear=True,
          tied=True)(_fourier("idct2"))  # fmt: skip


@primitive("idwt2", (1, 1), "one level of the inverse Haar wavelet transform of a tensor [.., p, q] in two dimensions: the first half "
           "of the rows and of the columns are means, the second half differences", linear=True)  # fmt: skip
def _idwt2(check: Reporter, span: Span, args: list[Value], exprs: list[Expr]) -> Value:
    (a,) = args
    if not isinstance(a.type, TensorType) or len(a.type.sizes) < 2:
        return check.fail("E0331", f"`idwt2` transforms a matrix [.., p, q], and this is {a.type}", span)
    odd = next((s for s in a.type.sizes[-2:] if (s / 2).number is not None and (s / 2).number.denominator != 1), None)
    if odd is not None:
        return check.fail("E0337", f"`idwt2` halves both sizes, and one of {a.type} is {odd}", span, where=check.bindings(odd),
                          help="fill a tensor of even sizes, and leave a row or a column of what it yields")  # fmt: skip
    return a


@primitive("givens", (2, 2), "givens(z, t): rotations in planes, along a tree: of z: [.., n] neighbours are rotated by the first angles of t: [n - 1], "
           "then the entries 2 apart by the next ones, then those 4 apart, until one is left. Instead of an angle may stand a matrix, "
           "t: [n - 1, 2, 2], by which a pair is multiplied from the right", linear=True, tied=True)  # fmt: skip
def _givens(check: Reporter, span: Span, args: list[Value], exprs: list[Expr]) -> Value:
    z, t = (v.type for v in args)
    if not isinstance(z, TensorType) or not z.sizes:
        return check.fail("E0331", f"`givens` rotates a vector [.., n], not {z}", exprs[0].span)
    planes, two = z.sizes[-1] - 1, Size.of(2)
    if not isinstance(t, TensorType) or (len(t.sizes) != 1 and t.sizes[1:] != (two, two)):
        return check.fail("E0331", f"`givens` takes angles [n - 1] or matrices [n - 1, 2, 2], not {t}", exprs[1].span)
    if t.sizes[0] != planes:
        return check.fail("E0312", f"`givens` rotates {z.sizes[-1]} entries in {planes} planes, and there are {t.sizes[0]}", exprs[1].span,
                          where=check.bindings(planes, t.sizes[0]), help="declare one angle less than there are entries")  # fmt: skip
    return product(args[0], bend(args[1], exprs[1].span), TensorType(united_axes(z.axes, t.axes), z.sizes), span)
