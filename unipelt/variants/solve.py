"""Solving for the arguments of a known method: each leaf that two skeletons leave out is an equation."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from functools import reduce
from itertools import islice, permutations
from typing import Any

from ..language.syntax import nodes as S
from ..language.analyse.canonical import Canonical, Leaf
from ..language.report.diagnostics import PeltError
from ..language.types.fitting import plain
from ..language.types.infer import Inference
from ..language.syntax.parser import parse_expression
from ..language.syntax.printer import to_text
from ..language.types.primitives import PRIMITIVES
from ..language.sites import NUMBERS
from ..language.sizes import Size
from ..language.types.values import NumberType, Value
from .patterns import key_of_lines


#: How many ways are tried to lay parts upon each other that may stand in any order.
MOST = 120
#: Where a polynomial, such as one below a line, leaves out the sign of a product.
_PRODUCT = re.compile(r"(?<=[\w)]) (?=[A-Za-z_(])")
#: A whole number of more digits than an expression may have: below a decimal that became a fraction, a power of 2.
_LONG = re.compile(r"\b\d{21,300}\b")


def _expression(symbol: str) -> S.Expr:
    """What a symbol such as ``(1) / (2 r^2 + n)`` computes."""
    short = _LONG.sub(lambda n: repr(float(n[0])), symbol)
    return parse_expression(_PRODUCT.sub(" * ", short.replace("^", "**")))


@dataclass(frozen=True, slots=True)
class Solution:
    """Arguments under which a pattern is the method; ``activation`` is the one that stands for another: (new, old)."""

    arguments: Mapping[str, Any]
    activation: tuple[str, str] | None = None


def solve(pairs: Sequence[tuple[Leaf, Leaf]], params: Mapping[str, S.Param]) -> Solution | None:
    """Arguments under which every leaf of a pattern is that of the method; None where there are none.

    One activation may stand for another everywhere.
    """
    found = (_solved(read, params) for read in islice(_readings(list(pairs)), MOST))
    return next((f for f in found if f is not None), None)


def _readings(pairs: list[tuple[Leaf, Leaf]]) -> Iterator[list[tuple[Leaf, Leaf]]]:
    """The pairs, with those of parts that may stand in any order laid upon each other in each."""
    at = next((n for n, (p, m) in enumerate(pairs) if p.kind == m.kind == "any"), None)
    if at is None:
        yield pairs
        return
    p, m = pairs[at]
    for order in permutations(m.value) if len(p.value) == len(m.value) else ():
        if all(len(a) == len(b) for a, b in zip(p.value, order)):
            inner = [pair for a, b in zip(p.value, order) for pair in zip(a, b)]
            yield from _readings([*pairs[:at], *inner, *pairs[at + 1 :]])


def _solved(pairs: list[tuple[Leaf, Leaf]], params: Mapping[str, S.Param]) -> Solution | None:
    words: dict[str, str] = {}
    instead: dict[str, str] = {}
    left: list[tuple[Size, Size]] = []
    for pattern, mine in pairs:
        if pattern.kind != mine.kind:
            return None
        if pattern.kind == "word":
            name = str(pattern.value).removeprefix("?")
            asked = words if str(pattern.value).startswith("?") else instead
            if asked.setdefault(name, mine.value) != mine.value:
                return None
        else:
            left.append((pattern.value, _evaluated(mine.value, {})))
    changed = [(a, b) for a, b in instead.items() if a != b]
    numbers = _numbers(left, {}, params, again=True) if len(changed) < 2 else None
    if numbers is None:
        return None
    return Solution({**words, **numbers}, (changed[0][1], changed[0][0]) if changed else None)


def _numbers(
    left: list[tuple[Size, Size]], known: Mapping[str, Size], params: Mapping[str, S.Param], again: bool
) -> dict[str, Any] | None:
    """The arguments that are numbers. Of several in one equation all but one are supposed to have their defaults (``again``: each in
    turn), as have those that stand in nothing but `ceil(d_in / n)` and the like."""
    known = dict(known)
    while left:
        later: list[tuple[Size, Size]] = []
        for p, m in left:
            p = _evaluated(p.bind(known), known)
            if p == m or _close(p, m):
                continue
            unknown = [s for s in p.symbols if s in params]
            # waits for what it reads; one that stands in both is of the site's sizes
            opaque = any("(" in s for s in p.symbols if s not in m.symbols)
            if not unknown and not opaque:
                return None
            found = _unknown(p, m, unknown[0]) if len(unknown) == 1 and not opaque else None
            if found is None:
                later.append((p, m))
            else:
                known[unknown[0]] = found
        if len(later) == len(left):
            supposed = _defaults({s for p, _ in left for s in p.symbols if "(" in s}, params, known)
            if supposed:
                return _numbers(later, known | supposed, params, again)
            asked = [n for n in params if any(n in p.symbols for p, _ in left)]
            tries = ({n: v} for n in asked if (v := _default(params[n])) is not None)
            for one in tries if again else islice(tries, 1):
                if (numbers := _numbers(later, known | one, params, again=False)) is not None:
                    return numbers
            return None
        left = later
    out: dict[str, Any] = {}
    for name, size in known.items():
        value = _argument(size, params[name])
        if value is None:
            return None
        out[name] = value
    return out


def _argument(size: Size, param: S.Param) -> Any:
    """A value for a parameter: a number, or an expression in what each layer knows of itself; None where it can have none."""
    n = size.number
    if n is None:
        if size == _default(param):
            return plain(param.default)
        read = {x.id for x in S.walk(parse_expression(size.text)) if isinstance(x, S.Name)} - PRIMITIVES.keys()
        return size.text if read <= set(NUMBERS) else None
    if param.type == "int":
        return int(n) if n.denominator == 1 else None
    return rounded(float(n))


def rounded(x: float) -> float:
    """A number as it is written: without what comes of rounding."""
    short = float(f"{x:.12g}")
    return short if math.isclose(x, short, rel_tol=1e-14) else x


def _default(param: S.Param) -> Size | None:
    """The default of a parameter that is a number, or an expression of such."""
    if param.type not in ("int", "float") or param.default is None or isinstance(param.default, S.ListOf):
        return None
    return _polynomial(param.default, {})


def _defaults(opaque: Iterable[str], params: Mapping[str, S.Param], known: Mapping[str, Size]) -> dict[str, Size]:
    """The defaults of arguments that stand in nothing but symbols such as ``ceil(d_in / n)``, which are not solved for."""
    read: set[str] = set()
    for symbol in opaque:
        with suppress(PeltError):  # a name of its own
            read |= {n.id for n in S.walk(_expression(symbol)) if isinstance(n, S.Name)}
    found = {n: _default(p) for n, p in params.items() if n in read and n not in known}
    return {n: v for n, v in found.items() if v is not None}


def _evaluated(p: Size, known: Mapping[str, Size]) -> Size:
    """A polynomial whose opaque symbols, such as ``sqrt(d_in / r)``, are read anew with what is known: those that are equal have one
    text then, whoever wrote them."""
    new: dict[str, Size] = {}
    for symbol in p.symbols:
        if "(" in symbol:
            with suppress(PeltError):  # a name of its own
                new[symbol] = _polynomial(_expression(symbol), known)
    return p.bind(new) if new else p


def _polynomial(e: S.Expr, known: Mapping[str, Size]) -> Size:
    """A number of an expression, as a polynomial in what is not known and in calls of it."""
    match e:
        case S.Name(id):
            return known.get(id, Size.of(id))
        case S.Number(value):
            return Size.of(Fraction(value))
        case S.Negative(value):
            return -_polynomial(value, known)
        case S.Binary("+" | "-" | "*" | "/" as op, left, right):
            a, b = _polynomial(left, known), _polynomial(right, known)
            if op != "/" or b.terms:
                return {"+": a.__add__, "-": a.__sub__, "*": a.__mul__, "/": a.__truediv__}[op](b)
        case S.Binary("**", left, S.Number(int() as times)) if 0 < times < 9:
            return reduce(Size.__mul__, [_polynomial(left, known)] * times)
        case S.Binary(op, left, right):
            a, b = _polynomial(left, known), _polynomial(right, known)
            found = _number(lambda x, y: S.Binary(op, x, y), a, b)
            return found or Size.of(f"({a.text}) {op} ({b.text})")
        case S.Apply(function, args):
            inner = [_polynomial(a.value, known) for a in args]
            found = _number(lambda *names: S.Apply(function, tuple(map(S.Arg, names))), *inner)
            return found or Size.of(f"{to_text(function)}({', '.join(x.text for x in inner)})")
    return Size.of(to_text(e))


def _number(made: Callable[..., S.Expr], *of: Size) -> Size | None:
    """What is made of some numbers; None where one is not known, or what is made is none."""
    values = {}
    for i, n in enumerate(size.number for size in of):
        if n is None:
            return None
        values[f"v{i}"] = Value(NumberType(None, int(n) if n.denominator == 1 else float(n)))
    try:
        found = Inference(values, {}).infer(made(*map(S.Name, values))).type
    except PeltError:  # a name of its own
        return None
    known = isinstance(found, NumberType) and found.value is not None and math.isfinite(found.value)
    return Size.of(Fraction(found.value)) if known else None  # type: ignore[union-attr, arg-type]


def _close(p: Size, m: Size) -> bool:
    """Numbers that differ by rounding only."""
    a, b = p.number, m.number
    return a is not None and b is not None and math.isclose(a, b, rel_tol=1e-12)


def _unknown(p: Size, m: Size, name: str) -> Size | None:
    """The value of the one unknown of a monomial, ``k name = m`` or ``k / name = m``, or a number of times that a sum is taken:
    ``name (d_in + d_out) = m``; more may be added to it, ``name + 1 = m``."""
    beside = Size(tuple((monomial, c) for monomial, c in p.terms if name not in dict(monomial)))
    p, m = p - beside, m - beside
    if not m.terms:
        return Size.of(0) if beside.terms and all(dict(monomial)[name] > 0 for monomial, _ in p.terms) else None
    if len(p.terms) != 1:
        if any(dict(monomial).get(name) != 1 for monomial, _ in p.terms):
            return None
        once = p / Size.of(name)
        monomial, c = once.terms[0]
        times = Size.of(dict(m.terms).get(monomial, Fraction(0)) / c)
        return times if once * times == m else None
    exponent = dict(p.terms[0][0]).get(name, 0)
    if exponent == 1:
        return m / (p / Size.of(name))
    return (p * Size.of(name)) / m if exponent == -1 and len(m.terms) == 1 else None


def fits(pattern: Canonical, mine: Canonical, params: Mapping[str, S.Param]) -> Solution | None:
    """The arguments under which a pattern at a site is the method at a site."""
    if key_of_lines(pattern) != key_of_lines(mine):
        return None
    pairs = []
    for a, b in zip((*pattern.sites, *pattern.tensors), (*mine.sites, *mine.tensors)):
        if len(a.leaves) != len(b.leaves):
            return None
        pairs += list(zip(a.leaves, b.leaves))
    return solve(pairs, params)
