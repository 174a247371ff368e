"""Abstract values: what is known of an expression without running it – its type and a few facts with their reasons.

Facts travel with the type through one inference: how the value depends on the input (not at all, affinely, otherwise),
whether it sees later positions or padding, whether it reads learned tensors, whether it is random in training. Each
fact that forbids something keeps the span that decides it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Union

from ..sites import TensorType
from ..sizes import Size
from ..syntax.nodes import Expr, Span

CONSTANT, AFFINE, OTHER = 0, 1, 2  # degree in the input


@dataclass(frozen=True, slots=True)
class NumberType:
    """A plain number; ``size`` is set where it may be a size, ``value`` once it is known."""

    size: Size | None = None
    value: float | int | bool | None = None

    def __str__(self) -> str:
        return "a number" if self.value is None else f"the number {self.value}"


@dataclass(frozen=True, slots=True)
class WordType:
    """A name that stands for no tensor: an activation, a distribution, a domain, a string."""

    what: str
    word: Any = None

    def __str__(self) -> str:
        return f"{self.what} `{self.word}`" if self.word is not None else self.what


@dataclass(frozen=True, slots=True)
class IndexType:
    """Whole numbers from 0 to less than ``below`` that say where something stands, for each entry of ``axes`` and ``sizes``.
    Tensors are read and filled at them; nothing is computed with them, so whatever is not made for them refuses them."""

    axes: frozenset[str]
    sizes: tuple[Size, ...]
    below: Size

    @property
    def fits(self) -> TensorType:
        """The tensor type with these axes and sizes."""
        return TensorType(self.axes, self.sizes)

    def __str__(self) -> str:
        return f"whole numbers {self.fits} below {self.below}"


@dataclass(frozen=True, slots=True)
class Poison:
    """The type after an error: everything fits it, so one mistake gives one error."""

    def __str__(self) -> str:
        return "unknown"


@dataclass(frozen=True, slots=True)
class Several:
    """What a function gives that has several results, until a line names them: `U, S, V = svd(W)`."""

    parts: tuple[TensorType, ...]

    def __str__(self) -> str:
        return f"{len(self.parts)} values"


Type = Union[TensorType, NumberType, WordType, IndexType, Several, Poison]
POISON = Poison()


@dataclass(frozen=True, slots=True)
class Placed:
    """How a composition puts rows among the tokens: the word, how many rows, and behind how many tokens they stand."""

    word: str
    rows: Size
    after: Size
    span: Span


@dataclass(frozen=True, slots=True)
class Value:
    """A type with facts. ``bends`` is the span that makes it non-affine in the input; ``future``, ``padding`` and ``chunk``
    are the spans through which a later position, a pad token or another position at all is seen (a step with a cache has
    only those of its own chunk); ``mixed`` is the span through which other examples of the batch are seen; ``placed`` says that
    rows stand among its tokens; ``at_start`` is the span of what is known only while a method is attached: starts may read it, a
    forward pass may not."""

    type: Type
    degree: int = CONSTANT
    bends: Span | None = None
    future: Span | None = None
    padding: Span | None = None
    chunk: Span | None = None
    learned: bool = False
    random: bool = False
    reads: frozenset[str] = frozenset()
    placed: Placed | None = None
    mixed: Span | None = None
    at_start: Span | None = None

    def typed(self, kind: Type) -> Value:
        return replace(self, type=kind)


def is_whole(value: Value) -> bool:
    """Whether a value is a number that may be a whole one."""
    return isinstance(value.type, NumberType) and (value.type.size is not None or isinstance(value.type.value, int))


def is_count(value: Value) -> bool:
    """Whether a value is a number that may be a whole one of at least 1."""
    n = value.type.value if isinstance(value.type, NumberType) else None
    return is_whole(value) and (n is None or n >= 1)


def join(values: Iterable[Value], kind: Type = POISON) -> Value:
    """The facts of a value that reads all of these; the degree is the largest."""
    out = Value(kind)
    for v in values:
        out = Value(
            kind,
            max(out.degree, v.degree),
            out.bends or v.bends,
            out.future or v.future,
            out.padding or v.padding,
            out.chunk or v.chunk,
            out.learned or v.learned,
            out.random or v.random,
            out.reads | v.reads,
            out.placed or v.placed,
            out.mixed or v.mixed,
            out.at_start or v.at_start,
        )
    return out


def product(a: Value, b: Value, kind: Type, span: Span) -> Value:
    """Facts of ``a * b`` or ``a @ b``: two factors that read the input are not affine in it."""
    out = join((a, b), kind)
    return replace(out, degree=OTHER, bends=out.bends or span) if a.degree and b.degree else out


def bend(value: Value, span: Span) -> Value:
    """Facts after a function that is not affine."""
    return replace(value, degree=OTHER, bends=value.bends or span) if value.degree else value


@dataclass(frozen=True, slots=True)
class Distribution:
    """A starting distribution, resolved: an initialiser's name and its arguments as expressions."""

    name: str
    args: tuple[Expr, ...] = ()
