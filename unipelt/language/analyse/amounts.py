"""What is counted of a method's parameters: polynomials in the sizes of a model, and their numbers on a model whose sizes are known.

The symbols are those of `counts`, which makes these values.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from math import prod

from ..sizes import Size
from ..syntax.nodes import Param, Selection
from ..syntax.parser import parse_expression
from ..syntax.printer import to_text
from ..types.arguments import parameters
from ..types.infer import Inference
from ..types.layers import chosen
from ..types.values import NumberType, Value

#: Sizes that are products of others.
ALIKE = {"d_q": Size.of("heads") * Size.of("d_head"), "d_kv": Size.of("groups") * Size.of("d_head")}
NONE = Size(())
#: Symbols that say how many layers of a stack a site is confined to (none, if there are none), and whether there are some.
OF_A_PART = re.compile(r"(?:L|has)_(\w+)")


@dataclass(frozen=True, slots=True)
class LayerSum:
    """``sum_layer(size)`` over the layers of a selection, of ``depth`` (a symbol) there are."""

    size: Size
    selection: Selection | None
    depth: str

    def __str__(self) -> str:
        of = "" if self.selection is None or self.selection.word == "all" else f", {to_text(self.selection)}"
        text = self.size.text
        bare = text[1:-1] if text in self.size.symbols and text.startswith("(") else text
        return f"sum_layer{self.depth[1:]}({bare}{of})"

    def number(self, values: Mapping[str, int], params: Sequence[Param]) -> int:
        depth = values[self.depth]
        word = self.selection.word if self.selection is not None else "all"
        ends = (
            [_value(to_text(v), {**values, "depth": depth}) for v in self.selection.values]
            if self.selection is not None
            else []
        )
        total = 0
        for layer in chosen(word, ends, depth):
            numbers = {"layer": layer, "depth": depth}
            total += _number(self.size, {**_bound(params, numbers), **values, **numbers})
        return total


def _bound(params: Sequence[Param], numbers: Mapping[str, int]) -> dict[str, int]:
    """The arguments that are numbers once ``numbers`` (``layer``, ``depth``) are known, and those."""
    found = {n: v.type for n, v in parameters(params, True, numbers).items()}
    return {n: t.value for n, t in found.items() if isinstance(t, NumberType) and isinstance(t.value, int)} | dict(
        numbers
    )


@dataclass(frozen=True, slots=True)
class Shared:
    """A tensor that the layers of a whole model share: one for each shape that it has in the stacks, or in those that have a ``part``."""

    tensor: str
    shape: tuple[Size, ...]
    part: str

    @property
    def size(self) -> Size:
        return prod(self.shape, start=Size.of(1))


@dataclass(frozen=True, slots=True)
class Amount:
    """What is counted in every stack, what once in the whole model, what in the first stack, which the input enters, and what
    all layers share."""

    each: Size = NONE
    once: Size = NONE
    first: Size = NONE
    shared: tuple[Shared, ...] = ()

    def __add__(self, other: Amount) -> Amount:
        return Amount(
            self.each + other.each, self.once + other.once, self.first + other.first, self.shared + other.shared
        )

    @property
    def size(self) -> Size:
        shared = {x.tensor: x.size for x in self.shared}
        return sum(shared.values(), self.each + self.once + self.first)

    def number(self, stacks: Sequence[Mapping[str, int]]) -> int:
        """The count on a model whose stacks have these sizes."""
        shapes = {
            (x.tensor, tuple(_number(s, known) for s in x.shape))
            for x in self.shared
            for known in stacks
            if not x.part or known.get(f"L_{x.part}")
        }
        return (
            sum(_number(self.each, known) for known in stacks)
            + _number(self.once, stacks[-1])
            + _number(self.first, stacks[0])
            + sum(prod(shape) for _, shape in shapes)
        )


@dataclass(frozen=True, slots=True)
class Count:
    """A polynomial, and in words what has none. ``folds`` pairs a row's amount as declared with that after folding;
    the smaller of the two is stored. ``sums`` are what symbols like ``sum_layer(r)`` stand for, ``params`` the arguments."""

    amount: Amount = Amount()
    words: tuple[str, ...] = ()
    folds: tuple[tuple[Amount, Amount], ...] = ()
    sums: Mapping[str, LayerSum] = field(default_factory=dict)
    params: tuple[Param, ...] = ()

    @property
    def size(self) -> Size:
        return self.amount.size

    def number(self, values: Mapping[str, int], *more: Mapping[str, int]) -> int:
        """The count on a model: ``values`` are its sizes, ``L``, ``L_cross`` and the arguments that are one number each;
        for an encoder–decoder the encoder's (with ``L_encoder``), then the decoder's. Words are not counted."""
        stacks = [self._known(v) for v in (values, *more)]
        return self.amount.number(stacks) + sum(min(a.number(stacks), b.number(stacks)) for a, b in self.folds)

    def _known(self, values: Mapping[str, int]) -> dict[str, int]:
        """A stack's values with all that follows from them."""
        symbols = {s for a in (self.amount, *(f for pair in self.folds for f in pair)) for s in a.size.symbols}
        params = {p.name for p in self.params}
        words = {w for s in (*symbols, *(s.depth for s in self.sums.values())) for w in re.findall(r"\w+", s)}
        depths = {f"L_{m[1]}": values.get(f"L_{m[1]}", 0) for w in words - params if (m := OF_A_PART.fullmatch(w))}
        depth = {"depth": values.get("depth", values["L"])} if "L" in values else {}
        full = {
            **_bound(self.params, depth),
            **depths,
            **{f"has_{n.removeprefix('L_')}": int(layers > 0) for n, layers in depths.items()},
            **values,
        }
        return {**full, **{n: s.number(full, self.params) for n, s in self.sums.items() if n in symbols}}

    def __str__(self) -> str:
        total = self.size
        for _, after in self.folds:
            total = total + after.size
        parts = ([str(total)] if total.terms or not self.words else []) + list(self.words)
        return " + ".join(parts) + (" (folded)" if self.folds else "")


def _number(size: Size, values: Mapping[str, int]) -> int:
    """The value of a polynomial; its opaque symbols (`min(top, L)`) are expressions of the language."""
    known = dict(values)
    for name, product in ALIKE.items():  # within what is no polynomial, such as `ceil(d_kv / 2)`
        number = product.bind(known).number
        known |= {name: int(number)} if number is not None and name not in known else {}
    for symbol in size.symbols - set(known):
        known[symbol] = _value(symbol, known)
    total = size.bind(known).number
    assert total is not None and total.denominator == 1, f"unbound size {size}"
    return int(total)


def _value(text: str, values: Mapping[str, int]) -> int:
    """The whole number that an expression of the language is."""
    names = {n: Value(NumberType(Size.of(v) if isinstance(v, int) else None, v)) for n, v in values.items()}
    found = Inference(names, {}).infer(parse_expression(text)).type
    if not isinstance(found, NumberType) or not isinstance(found.value, (int, Fraction)):
        raise KeyError(text)
    return int(found.value)
