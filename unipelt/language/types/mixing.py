"""Primitives in which tokens read one another: causal where the site is, and none reads a pad."""

from __future__ import annotations

from dataclasses import replace

from ..sites import TensorType, united_axes
from ..syntax.nodes import Expr, Span
from .primitive import Reporter, primitive
from .values import Value, bend, join, product


def _of_tokens(check: Reporter, name: str, a: Value, e: Expr) -> TensorType | None:
    """The type of a vector for each token; None where it is none, which is said."""
    if not isinstance(a.type, TensorType) or len(a.type.sizes) != 1:
        check.fail("E0331", f"`{name}` takes a vector for each token, not {a.type}", e.span)
    elif "token" not in a.type.axes:
        check.fail("E0335", f"this value has no axis `token`: {a.type}", e.span)
    else:
        return a.type
    return None


@primitive("attention", (3, 3), "attention(q, k, v): each token reads v of the others, by the softmax of its q times their k over the "
           "square root of the size; the earlier ones alone where the model is causal, and never pads", mixes=True)  # fmt: skip
def _attention(check: Reporter, span: Span, args: list[Value], exprs: list[Expr]) -> Value:
    found = [_of_tokens(check, "attention", a, e) for a, e in zip(args, exprs)]
    q, k, v = found
    if q is None or k is None or v is None:
        return Value(join(args).type)
    if q.sizes != k.sizes:
        return check.fail("E0312", "the queries and the keys of `attention` have other sizes", exprs[1].span, label=str(k),
                          where=check.bindings(*q.sizes, *k.sizes), help=f"project both to one size: {q.sizes[0]} and {k.sizes[0]}")  # fmt: skip
    out = bend(join(args, TensorType(united_axes(q.axes, k.axes, v.axes), v.sizes)), span)
    return replace(out, chunk=out.chunk or span)  # a step with a cache has the tokens of its own chunk alone


@primitive("conv", (2, 2), "conv(z, w): a convolution along the tokens, each channel by itself with w: [k, d], or w: [k, d, e]; its last "
           "row meets the token itself where the model is causal, its middle row elsewhere. Pads count as 0", linear=True, bilinear=True, mixes=True)  # fmt: skip
def _conv(check: Reporter, span: Span, args: list[Value], exprs: list[Expr]) -> Value:
    return _convolved(check, "conv", ("k",), span, args, exprs)


@primitive("conv2d", (2, 2), "conv2d(z, w): a convolution over the rows and columns in which the parts of a picture lie, each channel by "
           "itself with w: [a, b, d], or w: [a, b, d, e]; its middle meets the part itself, and what lies outside counts as 0. Any other "
           "token (a class token, a row of a prompt) is a picture of one part", linear=True, bilinear=True, mixes=True, grid=True)  # fmt: skip
def _conv2d(check: Reporter, span: Span, args: list[Value], exprs: list[Expr]) -> Value:
    out = _convolved(check, "conv2d", ("a", "b"), span, args, exprs)
    return replace(out, future=out.future or span)  # parts of the rows below stand behind it


def _convolved(
    check: Reporter, name: str, along: tuple[str, ...], span: Span, args: list[Value], exprs: list[Expr]
) -> Value:
    """What a kernel [.., d] or [.., d, e], with a size for each direction that it goes ``along``, makes of the tokens."""
    z, w, n = _of_tokens(check, name, args[0], exprs[0]), args[1].type, len(along)
    if z is None:
        return Value(join(args).type)
    if not isinstance(w, TensorType) or len(w.sizes) not in (n + 1, n + 2) or w.axes & {"batch", "token"}:
        front = ", ".join(along)
        return check.fail(
            "E0331",
            f"`{name}` takes a kernel [{front}, d] or [{front}, d, e], the same for every token, not {w}",
            exprs[1].span,
        )
    if w.sizes[n] != z.sizes[0]:
        which = ("second", "third")[n - 1]
        return check.fail("E0312", f"the sizes of `{name}` do not agree", exprs[1].span, label=str(w),
                          where=check.bindings(w.sizes[n], z.sizes[0]), help=f"the kernel's {which} size is that of a token: {z.sizes[0]}")  # fmt: skip
    out = product(args[0], args[1], TensorType(united_axes(z.axes, w.axes), (w.sizes[-1],)), span)
    return replace(out, chunk=out.chunk or span)
