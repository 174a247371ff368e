"""Primitives that put rows among the tokens."""

from __future__ import annotations

from dataclasses import replace

from ..sites import TensorType
from ..sizes import Size
from ..syntax.nodes import Expr, Span
from .primitive import Reporter, Rule, primitive
from .values import NumberType, Placed, Value, join


def _placing(name: str) -> Rule:
    """Rows [l, d] and tokens of width d; the fact ``placed`` tells where the rows stand."""

    def rule(check: Reporter, span: Span, args: list[Value], exprs: list[Expr]) -> Value:
        rows, h = (a.type for a in args[:2])
        if not (isinstance(rows, TensorType) and isinstance(h, TensorType) and "token" in h.axes):
            return check.fail("E0331", f"`{name}` puts rows among the tokens of h", span)
        if len(rows.sizes) != 2 or len(h.sizes) != 1 or not rows.axes <= {"batch"}:
            return check.fail("E0337", f"`{name}` takes rows of type [l, d], not {rows}", exprs[0].span)
        if rows.sizes[1] != h.sizes[0]:
            return check.fail("E0312", f"the rows are {rows.sizes[1]} wide and h is {h.sizes[0]}", exprs[0].span)
        after = Size.of(0)
        if len(args) > 2:
            k = args[2].type
            if not isinstance(k, NumberType) or k.size is None or (k.value is not None and k.value < 0):
                return check.fail("E0331", f"rows are placed after a whole number of tokens, not {k}", exprs[2].span)
            after = k.size
        out = replace(join(args, h), placed=Placed(name, rows.sizes[0], after, span))
        return replace(out, chunk=out.chunk or span) if name == "append" else out  # the last token is that of its chunk

    return rule


primitive("prepend", (2, 3), "prepend(P, h): the rows of P before the tokens; prepend(P, h, k): behind the first k tokens. "
          "The length changes; mask, positions and labels follow")(_placing("prepend"))  # fmt: skip
primitive("append", (2, 2), "append(P, h): the rows of P behind the last real token. The length changes; mask, positions and "
          "labels follow")(_placing("append"))  # fmt: skip
primitive("fill", (2, 2), "fill(P, h): row k of P in place of the k-th pseudo-token of the text, which the forward argument "
          "`pseudo_tokens` marks")(_placing("fill"))  # fmt: skip

#: Primitives that put rows among the tokens, and whether they make the sequence longer.
PLACING = {"prepend": True, "append": True, "fill": False}
