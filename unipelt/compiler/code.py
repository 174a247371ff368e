"""Values in generated code: torch expressions whose axes and sizes are known when the code is written.

The rules are those of `named`, one for one: axes unite by name, head refines group, sizes align at the right, ``@`` contracts
a's last size with b's first. There they act on tensors, here they write what acts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Union

from ..language.sizes import Size
from .named import ordered

# How strongly an expression of Python binds, from weak to strong.
CHOICE, COMPARISON, SUM, PRODUCT, SIGN, POWER, ATOM = range(7)
LEVELS = {"+": SUM, "-": SUM, "*": PRODUCT, "/": PRODUCT, "@": PRODUCT, "**": POWER,
          "==": COMPARISON, "!=": COMPARISON, "<=": COMPARISON, ">=": COMPARISON, "<": COMPARISON, ">": COMPARISON}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Code:
    """An expression whose value is a tensor: its dimensions are ``axes``, in their order, then ``sizes``.

    ``product`` is what it is made of where it is ``a @ W`` or ``a @ W + b`` with W and b the same for every position. ``column`` is an
    expression of the same with a last size of 1, for a value without sizes that is a column of a product: what it multiplies has sizes.
    """

    text: str
    axes: tuple[str, ...]
    sizes: tuple[Size, ...]
    level: int = ATOM
    product: tuple[Code, Code, Code | None] | None = None
    column: str | None = None

    def through(self, function: Callable[[str], str], level: int = ATOM) -> Code:
        """What a function of each entry, or one that reduces axes alone, makes of it: the axes are left to who calls this."""
        return replace(
            self, text=function(self.text), column=self.column and function(self.column), level=level, product=None
        )

    @property
    def rank(self) -> int:
        return len(self.axes) + len(self.sizes)


@dataclass(frozen=True, slots=True)
class Num:
    """An expression whose value is a plain number that is not known yet; ``size`` where it may be a size."""

    text: str
    level: int = ATOM
    size: Size | None = None


Plain = Union[int, float, bool]
Written = Union[Code, Num, Plain, str]


def is_name(v: Code) -> bool:
    return v.level == ATOM and v.text.replace(".", "").isidentifier()


class Unwritten(Exception):
    """There is no straight code for an expression: it is evaluated as written."""


def text_of(v: Written, level: int = CHOICE) -> str:
    """The expression, in brackets where it binds more weakly than ``level``."""
    if isinstance(v, (Code, Num)):
        return f"({v.text})" if v.level < level else v.text
    text = repr(v)
    return f"({text})" if text.startswith("-") and level > SUM else text


def union(*values: Code) -> tuple[str, ...]:
    """The axes of all; where head and group meet, group operands repeat."""
    axes = {a for v in values for a in v.axes}
    return ordered(tuple(axes - {"group"} if "head" in axes else axes))


def refine(v: Code, axes: Sequence[str], repeats: Written) -> Code:
    """A group operand repeated for the heads of each group, where ``axes`` has head instead."""
    if "group" not in v.axes or "head" not in axes:
        return v
    dim = v.axes.index("group")
    named = tuple("head" if a == "group" else a for a in v.axes)
    if repeats == 1:
        return replace(v, axes=named)
    v = replace(v, column=None)
    return Code(f"{text_of(v, ATOM)}.repeat_interleave({text_of(repeats)}, {dim})", named, v.sizes)


def spread(v: Code, axes: Sequence[str], n_sizes: int, whole: bool = False) -> str:
    """The expression with a dimension for each of ``axes`` and ``n_sizes`` sizes, binding as strongly as a name.

    Dimensions in front that it lacks are left to broadcasting, unless the ``whole`` is asked for.
    """
    if v.column is not None and n_sizes > 0:
        v = Code(v.column, v.axes, (Size.of(1),), v.level)
    dims = [a in v.axes for a in axes] + [i >= n_sizes - len(v.sizes) for i in range(n_sizes)]
    while dims and not dims[0] and not whole:
        dims.pop(0)
    index = [":" if there else "None" for there in dims]
    while index and index[-1] == ":":
        index.pop()
    return f"{text_of(v, ATOM)}[{', '.join(index)}]" if index else text_of(v, ATOM)


def broadcast(a: tuple[Size, ...], b: tuple[Size, ...]) -> tuple[Size, ...]:
    """The sizes of an elementwise operation: aligned at the right, a literal 1 stretches."""
    long, short = (a, b) if len(a) >= len(b) else (b, a)
    out = list(long)
    for i, s in enumerate(short, len(long) - len(short)):
        out[i] = s if out[i].number == 1 else out[i]
    return tuple(out)


def operation(op: str, a: Code, b: Code, repeats: Written) -> Code:
    """``a op b`` of two tensors, entry by entry."""
    axes = union(a, b)
    a, b = refine(a, axes, repeats), refine(b, axes, repeats)
    n = max(len(a.sizes), len(b.sizes))
    level = LEVELS[op]
    left, right = (
        v if spread(v, axes, n) == text_of(v, ATOM) else Code(spread(v, axes, n), axes, v.sizes) for v in (a, b)
    )
    weak = level + 1 if op == "**" else level
    text = f"{text_of(left, weak)} {op} {text_of(right, level + (op != '+'))}"
    return Code(text, axes, broadcast(a.sizes, b.sizes), level)


def with_number(op: str, a: Written, b: Written) -> Code:
    """``a op b`` where one side is a number."""
    level = LEVELS[op]
    tensor = a if isinstance(a, Code) else b
    assert isinstance(tensor, Code)
    weak = level + 1 if op == "**" else level

    def written(text: str) -> str:
        left, right = (replace(v, text=text) if v is tensor else v for v in (a, b))  # type: ignore[arg-type]
        return f"{text_of(left, weak)} {op} {text_of(right, level + (op != '+'))}"

    return tensor.through(written, level)


def matmul(a: Code, b: Code, repeats: Written) -> Code:
    """``a @ b``; leading axes are batched."""
    p, q = len(a.sizes), len(b.sizes)
    sizes = a.sizes[:-1] + b.sizes[1:]
    if not b.axes and q <= 2:
        return Code(f"{text_of(a, PRODUCT)} @ {text_of(b, SIGN)}", a.axes, sizes, PRODUCT, (a, b, None))
    axes = union(a, b)
    a, b = refine(a, axes, repeats), refine(b, axes, repeats)
    if p > 2 or q > 2:
        return _einsum(a, b, axes, p, q, sizes)
    rows = p == 1 and bool(axes) and axes[-1] == "token" and "token" not in b.axes and "token" in a.axes
    left = spread(a, axes, p) if rows or p == 2 else f"{spread(a, axes, p)}.unsqueeze(-2)"
    if p == q == 2 and not a.axes:
        # Else torch copies b to make one product of all, and keeps the copy for the backward pass.
        left = f"{text_of(a, ATOM)}.expand(*{text_of(b, ATOM)}.shape[:{len(b.axes)}], -1, -1)"
    right = spread(b, axes[:-1] if rows else axes, q) + ("" if q == 2 else ".unsqueeze(-1)")
    out = Code(f"{left} @ {right}", axes, sizes, PRODUCT)
    if q == 1:
        out = Code(f"({out.text}).squeeze(-1)", axes, sizes)
    if p == 1 and not rows:
        out = Code(f"{text_of(out, ATOM)}.squeeze({-1 if q == 1 else -2})", axes, sizes)
    return out


def _einsum(a: Code, b: Code, axes: tuple[str, ...], p: int, q: int, sizes: tuple[Size, ...]) -> Code:
    letters = iter("abcdefghijklmnopqrstuvwxyz")
    named = {axis: next(letters) for axis in axes}
    left, right = [next(letters) for _ in range(p)], [next(letters) for _ in range(q - 1)]
    first = "".join(named[x] for x in a.axes) + "".join(left)
    second = "".join(named[x] for x in b.axes) + left[-1] + "".join(right)
    out = "".join(named.values()) + "".join(left[:-1]) + "".join(right)
    return Code(f'torch.einsum("{first},{second}->{out}", {text_of(a)}, {text_of(b)})', axes, sizes)


def picked(v: Code, i: int, index: Code) -> Code:
    """The entries of size i at whole numbers, whose axes join v's and whose sizes stand in the place of that size."""
    dim, axes = len(v.axes) + i, ordered((*v.axes, *index.axes))
    sizes = (*v.sizes[:i], *index.sizes, *v.sizes[i + 1 :])
    text = text_of(v, ATOM)
    if index.rank == 1:
        text = f"{text}.index_select({dim}, {index.text})"
    else:
        text = f"{text}[{', '.join([':'] * dim + [text_of(index)])}]"
    lead = [dim + index.axes.index(a) if a in index.axes else v.axes.index(a) for a in axes]
    order = [*lead, *(d for d in range(len(axes) + len(sizes)) if d not in lead)]
    moved = f".permute({', '.join(map(str, order))})" if order != sorted(order) else ""
    return Code(text + moved, axes, sizes)


def transposed(v: Code) -> Code:
    *front, p, q = v.sizes
    turned = "T" if v.rank == 2 else "mT"
    return Code(f"{text_of(v, ATOM)}.{turned}", v.axes, (*front, q, p))
