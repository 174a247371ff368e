"""Solving for the arguments of a known method: each leaf that two skeletons leave out is an equation."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from ..language.syntax import nodes as S
from ..language.analyse.canonical import Canonical, Leaf
from ..language.report.diagnostics import PeltError
from ..language.types.fitting import plain
from ..language.types.infer import Inference
from ..language.syntax.parser import parse_expression
from ..language.sites import SIZES
from ..language.sizes import Size
from ..language.types.values import NumberType, Value
from .patterns import key_of_lines


#: Sizes that a symbol such as ``ceil(d_in / n)`` may read.
_SIZES = {name: Size.of(name) for name in (*SIZES, "d_in", "d_out")}


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


def solve(pairs: Iterable[tuple[Leaf, Leaf]], params: Mapping[str, S.Param]) -> Solution | None:
    """Arguments under which every leaf of a pattern is that of the method; None where there are none.

    One activation may stand for another everywhere.
    """
    known: dict[str, Size] = {}
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
            left.append((pattern.value, mine.value))
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
            if not supposed:
                return None
            known |= supposed
        left = later
    changed = [(a, b) for a, b in instead.items() if a != b]
    if len(changed) > 1:
        return None
    out: dict[str, Any] = dict(words)
    for name, size in known.items():
        n = size.number
        if n is None or (params[name].type == "int" and n.denominator != 1):
            return None
        out[name] = int(n) if params[name].type == "int" else float(f"{float(n):.12g}")
    return Solution(out, (changed[0][1], changed[0][0]) if changed else None)


def _defaults(opaque: Iterable[str], params: Mapping[str, S.Param], known: Mapping[str, Size]) -> dict[str, Size]:
    """The defaults of arguments that stand in nothing but symbols such as ``ceil(d_in / n)``, which are not solved for."""
    read: set[str] = set()
    for symbol in opaque:
        with suppress(PeltError):  # a name of its own
            read |= {n.id for n in S.walk(_expression(symbol)) if isinstance(n, S.Name)}
    found = {n: plain(p.default) for n, p in params.items() if n in read and n not in known and p.default is not None}
    return {n: Size.of(v) for n, v in found.items() if isinstance(v, (int, float)) and not isinstance(v, bool)}


def _evaluated(p: Size, known: Mapping[str, Size]) -> Size:
    """A polynomial whose opaque symbols, such as ``sqrt(r)``, are computed where what they read is known."""
    values = {
        k: Value(NumberType(v, int(n) if n.denominator == 1 else float(n)))
        for k, v in known.items()
        if (n := v.number) is not None
    }
    new: dict[str, Size] = {}
    for symbol in p.symbols:
        if "(" in symbol:
            try:
                found = Inference(dict(values), _SIZES).infer(_expression(symbol)).type
            except PeltError:  # a name of its own
                continue
            if isinstance(found, NumberType) and found.value is not None:
                new[symbol] = Size.of(Fraction(found.value))
            elif isinstance(found, NumberType) and found.size is not None and found.size != Size.of(symbol):
                new[symbol] = found.size  # of sizes of the site, which no argument is
    return p.bind(new) if new else p


def _close(p: Size, m: Size) -> bool:
    """Numbers that differ by rounding only."""
    a, b = p.number, m.number
    return a is not None and b is not None and math.isclose(a, b, rel_tol=1e-12)


def _unknown(p: Size, m: Size, name: str) -> Size | None:
    """The value of the one unknown of a monomial, ``k name = m`` or ``k / name = m``, or a number of times that a sum is taken:
    ``name (d_in + d_out) = m``."""
    if not m.terms:
        return None
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
