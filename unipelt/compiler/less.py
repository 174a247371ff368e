"""Products that are written so that less is made: what they read decides, never a method's name.

Each function gives the code of an expression, or None where the expression is something else.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..language.syntax.nodes import Apply, Binary, Expr, Name
from .code import Code, is_name, union

if TYPE_CHECKING:
    from .writer import Writer


def circular(writer: Writer, e: Expr, over: str | None = None) -> Code | None:
    """``z @ circulant(w)``, summed over an axis where one is given, without the matrix; None where this is something else."""
    if not writer.training or "circular" not in writer.on or "circulant" in writer.names:
        return None
    match e:
        case Binary("@", left, Apply(Name("circulant"), (argument,))):
            z, w = writer.write(left), writer.write(argument.value)
        case _:
            return None
    if not isinstance(z, Code) or not isinstance(w, Code) or len(z.sizes) != 1 or len(w.sizes) != 1:
        return None
    letters = _letters(z, w)
    if letters is None or (over is not None and over not in letters):
        return None
    out = tuple(a for a in letters if a != over)
    named = ",".join("".join(letters[a] for a in each) for each in (z.axes, w.axes, out))
    return Code(writer.helper("circular", z.text, w.text, repr(named)), out, z.sizes)


def contracted(writer: Writer, e: Expr, over: str) -> Code | None:
    """The sum over an axis of ``a * b`` or ``a @ b`` as one product, where both have the axis and each has more than the other;
    None where this is something else."""
    if "contracted" not in writer.on or not isinstance(e, Binary) or e.op not in ("*", "@"):
        return None
    a, b = writer.write(e.left), writer.write(e.right)
    if not isinstance(a, Code) or not isinstance(b, Code) or over not in a.axes or over not in b.axes:
        return None
    letters = _letters(a, b)
    if letters is None:
        return None
    if e.op == "@":
        if not 1 <= len(a.sizes) <= 2 or not 1 <= len(b.sizes) <= 2:
            return None
        own, other, sizes = "yz"[2 - len(a.sizes) :], "zx"[: len(b.sizes)], a.sizes[:-1] + b.sizes[1:]
        left = own[:-1] + other[1:]
    elif not a.sizes or not b.sizes or a.sizes == b.sizes:
        sizes = a.sizes or b.sizes
        left = "xyzuvw"[: len(sizes)]
        own, other = left[: len(a.sizes)], left[: len(b.sizes)]
    else:
        return None
    front = ["".join(letters[x] for x in v.axes) for v in (a, b)]
    if {*front[0], *own} <= {*front[1], *other} or {*front[1], *other} <= {*front[0], *own}:
        return None
    out = tuple(x for x in letters if x != over)
    equation = f"{front[0]}{own},{front[1]}{other}->{''.join(letters[x] for x in out)}{left}"
    a, b = writer.apart(a, b)
    return Code(f"torch.einsum({equation!r}, {a.text}, {b.text})", out, sizes)


def small_first(writer: Writer, e: Binary) -> Code | None:
    """``a * W / b`` as ``(a / b) * W``: of a product entry by entry of one matrix and several vectors, those of the vectors."""
    if "small first" not in writer.on:
        return None
    factors: list[tuple[str, Expr]] = []
    rest: Expr = e
    while isinstance(rest, Binary) and rest.op in ("*", "/"):
        factors.append((rest.op, rest.right))
        rest = rest.left
    factors.append(("*", rest))
    if len(factors) < 3:
        return None
    found = [(op, v) for op, v in ((op, writer.write(x)) for op, x in reversed(factors)) if isinstance(v, Code)]
    matrices = [v for op, v in found if len(v.sizes) == 2 and op == "*"]
    vectors = sorted(
        (f for f in found if len(f[1].sizes) == 1), key=lambda f: f[0] == "/"
    )  # what multiplies before what divides
    if (
        len(found) < len(factors)
        or len(matrices) != 1
        or len(vectors) != len(found) - 1
        or any(v.axes for _, v in found)
    ):
        return None
    (op, small), *others = vectors
    if op == "/" or any(v.sizes != small.sizes for _, v in others):
        return None
    for op, v in others:
        small = writer.combined(op, small, v)  # type: ignore[assignment]
    return writer.combined("*", small, matrices[0])  # type: ignore[return-value]


def _letters(a: Code, b: Code) -> dict[str, str] | None:
    """A letter for each axis of two values, in their order; None where heads meet groups, which an einsum cannot repeat."""
    axes = union(a, b)
    if not {*a.axes, *b.axes} <= {*axes} or len(axes) > 16:
        return None
    return dict(zip(axes, "abcdefghijklmnop"))


def is_low_rank(v: Code) -> bool:
    """Whether a value is a product of two matrices, not bound yet, that is larger in both directions than what they share."""
    if v.product is None or v.product[2] is not None or v.axes or len(v.sizes) != 2 or is_name(v):
        return False
    a, b, _ = v.product
    sizes = [s.number for s in (*a.sizes, *b.sizes)]
    return len(sizes) == 4 and None not in sizes and sizes[1] < min(sizes[0], sizes[3])  # type: ignore[operator,type-var]
