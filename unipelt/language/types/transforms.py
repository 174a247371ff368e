"""Primitives that transform matrices: from frequencies, from wavelets."""

from __future__ import annotations

from ..sites import TensorType
from ..syntax.nodes import Expr, Span
from .primitive import Reporter, Rule, primitive
from .values import Value


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
