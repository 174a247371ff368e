"""Recognising a method by what it means: which of the library's it is, with which arguments, and what differs.

A known method is a pattern: its arguments are unknowns, and what its lines erase (coefficients, sizes, activations) are
equations in them. A match is a statement about functions: with these arguments the two compute the same; different
starts, missing biases and other sites are said.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import lru_cache
from typing import Any

from ..language import syntax as S
from ..language.canonical import Canonical, Leaf, canonical
from ..language.diagnostics import PeltError
from ..language.infer import Inference
from ..language.ir import Method, Row, plain
from ..language.library import library_names
from ..language.loading import load
from ..language.meaning import Atom, Meaning, Term, bound, meaning
from ..language.parser import parse_expression
from ..language.sizes import Size
from ..language.values import NumberType, Value


@dataclass(frozen=True, slots=True)
class Match:
    """A known row or method that something is: its name, the arguments that make it so, and the differences left."""

    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    sites: tuple[str, ...] = ()  # where, if elsewhere than the known one
    starts: bool = False  # whether its tensors start otherwise
    biases: str = ""  # "with" or "without" biases that the known one lacks or has
    activation: str = ""  # "gelu for relu"

    @property
    def exact(self) -> bool:
        return not (self.sites or self.starts or self.biases or self.activation)

    def __str__(self) -> str:
        shown = ", ".join(f"{k} = {v}" for k, v in self.arguments.items())
        text = f"{self.name}({shown})" if shown else self.name
        if self.sites:
            text += f" at {', '.join(self.sites)}"
        less = [f"{self.biases} biases"] if self.biases else []
        less += [f"with {self.activation}"] if self.activation else []
        less += ["with other starts"] if self.starts else []
        return " ".join([text, *([", ".join(less)] if less else [])])


@dataclass(frozen=True, slots=True)
class _Pattern:
    method: str
    row: str
    alone: bool  # the method has no other row
    sites: tuple[str, ...]
    lines: tuple[Canonical, ...]  # of each site
    params: Mapping[str, S.Param]
    biases: str


@dataclass(frozen=True, slots=True)
class Recognised:
    """What is known of a method: the whole, or each of its rows by name."""

    whole: Match | None
    rows: tuple[tuple[str, Match | None], ...]
    sentence: str


# ---------------------------------------------------------------- patterns


def _lines(found: Meaning, erase: bool) -> list[tuple[str, Canonical]]:
    """Each site by itself: (site, lines)."""
    return [(s.site, canonical(replace(found, sites=(s,), trains=()), erase)) for s in found.sites]


def _key(c: Canonical) -> str:
    return "\n".join([*(x.text for x in c.sites), *(x.text for x in c.tensors)])


@lru_cache(maxsize=None)
def _known(name: str) -> Method | None:
    """A method of the library; None for one with mistakes."""
    try:
        return load(name)
    except PeltError:
        return None


@lru_cache(maxsize=None)
def _known_rows(name: str) -> tuple[tuple[Row, tuple[Match, ...]], ...]:
    method = _known(name)
    assert method is not None
    return tuple((r, tuple(recognise_row(method, r))) for r in method.rows)


@lru_cache(maxsize=1)
def _patterns() -> dict[str, list[_Pattern]]:
    """Every row of the library's methods under the skeleton of each of its sites."""
    out: dict[str, list[_Pattern]] = {}
    for name in library_names("method"):
        method = _known(name)
        if method is None:
            continue
        for variant in _variants(method):
            for row in variant.rows:
                single = replace(variant, rows=(replace(row, gate=None),), trains=(), requires=())
                found = meaning(single, arguments=False)
                for biases, m in (("", found), ("with", without_biases(found))):
                    if biases and m == found:
                        continue
                    lines = _lines(m, True)
                    p = _Pattern(name, row.name, len(method.rows) == 1, tuple(s for s, _ in lines),
                                 tuple(c for _, c in lines), {q.name: q for q in method.params}, biases)  # fmt: skip
                    for key in {_key(c) for _, c in lines}:
                        out.setdefault(key, []).append(p)
    return out


def _variants(method: Method) -> list[Method]:
    """The method with every argument unknown, and with those that are 0 by default left 0: they take a part away."""
    zero = {p.name for p in method.params if isinstance(p.default, S.Number) and p.default.value == 0}
    if not zero:
        return [method]
    fixed = replace(method, params=tuple(p for p in method.params if p.name in zero))
    left = tuple(p for p in method.params if p.name not in zero)
    rest = bound(replace(method, params=fixed.params))
    return [method, replace(rest, params=left)]


def without_biases(found: Meaning) -> Meaning:
    """The meaning with every learned vector that is only added left out."""

    def strip(t: Term) -> Term:
        kept = []
        for factors, c in t.products:
            if factors and all(_is_bias(a, found) for a in factors):
                continue
            kept.append((tuple(atom(a) for a in factors), c))
        return Term(tuple(sorted(kept, key=lambda p: [a.text for a in p[0]])), t.sizes)

    def atom(a: Atom) -> Atom:
        if a.kind in ("read", "tensor"):
            return a
        return Atom.of(a.kind, a.sizes, *(strip(p) if isinstance(p, Term) else atom(p) if isinstance(p, Atom) else p for p in a.parts))

    return replace(found, sites=tuple(replace(s, out=strip(s.out)) for s in found.sites))


def _is_bias(a: Atom, found: Meaning) -> bool:
    if a.kind != "tensor" or len(a.sizes) != 1:
        return False
    t = found.tensors[a.parts[0]]
    return t.start.startswith("zeros") and not t.frozen


# ---------------------------------------------------------------- matching


#: The key under which a solution keeps that one activation stands for another.
_INSTEAD = " for "


def _solve(pairs: Iterable[tuple[Leaf, Leaf]], params: Mapping[str, S.Param]) -> dict[str, Any] | None:
    """Arguments under which every leaf of a pattern is that of the method; None where there are none.

    One activation may stand for another everywhere (`_INSTEAD`).
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
            opaque = any("(" in s for s in p.symbols)  # waits for what it reads
            if not unknown and not opaque:
                return None
            found = _unknown(p, m, unknown[0]) if len(unknown) == 1 and not opaque else None
            if found is None:
                later.append((p, m))
            else:
                known[unknown[0]] = found
        if len(later) == len(left):
            return None
        left = later
    changed = [(a, b) for a, b in instead.items() if a != b]
    if len(changed) > 1:
        return None
    out: dict[str, Any] = dict(words)
    if changed:
        out[_INSTEAD] = f"{changed[0][1]}{_INSTEAD}{changed[0][0]}"
    for name, size in known.items():
        n = size.number
        if n is None or (params[name].type == "int" and n.denominator != 1):
            return None
        out[name] = int(n) if params[name].type == "int" else float(f"{float(n):.12g}")
    return out


def _evaluated(p: Size, known: Mapping[str, Size]) -> Size:
    """A polynomial whose opaque symbols, such as ``sqrt(r)``, are computed where what they read is known."""
    values = {k: Value(NumberType(v, int(n) if n.denominator == 1 else float(n))) for k, v in known.items() if (n := v.number) is not None}
    new: dict[str, Size] = {}
    for symbol in p.symbols:
        if "(" in symbol:
            found = Inference(dict(values), {}).infer(parse_expression(symbol)).type
            if isinstance(found, NumberType) and found.value is not None:
                new[symbol] = Size.of(Fraction(found.value))
    return p.bind(new) if new else p


def _close(p: Size, m: Size) -> bool:
    """Numbers that differ by rounding only."""
    a, b = p.number, m.number
    return a is not None and b is not None and math.isclose(a, b, rel_tol=1e-12)


def _unknown(p: Size, m: Size, name: str) -> Size | None:
    """The value of the one unknown of a monomial: ``k name = m`` or ``k / name = m``."""
    if len(p.terms) != 1 or not m.terms:
        return None
    exponent = dict(p.terms[0][0]).get(name, 0)
    if exponent == 1:
        return m / (p / Size.of(name))
    return (p * Size.of(name)) / m if exponent == -1 and len(m.terms) == 1 else None


def _fits(pattern: Canonical, mine: Canonical, params: Mapping[str, S.Param]) -> dict[str, Any] | None:
    if _key(pattern) != _key(mine):
        return None
    pairs = []
    for a, b in zip((*pattern.sites, *pattern.tensors), (*mine.sites, *mine.tensors)):
        if len(a.leaves) != len(b.leaves):
            return None
        pairs += list(zip(a.leaves, b.leaves))
    return _solve(pairs, params)


def recognise_row(method: Method, row: Row) -> list[Match]:
    """The known rows that a row is, best first; its own gate is not looked at."""
    single = bound(replace(method, rows=(replace(row, gate=None),), trains=(), requires=()))
    found = meaning(single)
    out: list[tuple[tuple, _Pattern, dict[str, Any], Match]] = []
    for own, m in (("", found), ("without", without_biases(found))):
        if own and m == found:
            continue
        lines = _lines(m, True)
        for p in _patterns().get(_key(lines[0][1]), []):
            arguments = _everywhere(p, lines)
            if arguments is None:
                continue
            biases = "" if bool(own) == bool(p.biases) else "with" if own else "without"
            if own and p.biases:
                continue  # the same as without stripping
            match = _match(p, arguments, tuple(s for s, _ in lines), biases)
            changed = [k for k in match.arguments if p.params[k].type != "int"]  # a size is no other method
            differ = bool(biases) + bool(match.sites) + 2 * bool(match.activation) + len(changed)
            rank = (not p.alone, differ, len(match.arguments))
            out.append((rank, p, arguments, match))
    if not out:
        return []
    best = min(x[0] for x in out)
    mine = {tuple(sorted(x.start for x in c.tensors)) for _, c in _lines(meaning(single), False)}
    finished = []
    for rank, p, arguments, match in out:
        if rank == best:  # how the others start is not looked at: it would not make them better
            match = replace(match, starts=not (mine & _starts_of(p.method, p.row, tuple(sorted(arguments.items())))))
        finished.append(((*rank, match.starts, len(p.params), p.method), match))
    return [m for _, m in sorted(finished, key=lambda x: x[0])]


def _everywhere(p: _Pattern, lines: list[tuple[str, Canonical]]) -> dict[str, Any] | None:
    """The arguments under which the pattern is the row at each of the row's sites."""
    total: dict[str, Any] = {}
    for site, mine in lines:
        same = [c for s, c in zip(p.sites, p.lines) if s == site] or list(p.lines)
        found = next((f for c in same if (f := _fits(c, mine, p.params)) is not None), None)
        if found is None or any(total.get(k, v) != v for k, v in found.items()):
            return None
        total |= found
    return total


def _match(p: _Pattern, arguments: dict[str, Any], sites: tuple[str, ...], biases: str) -> Match:
    elsewhere = () if set(sites) == set(p.sites) else sites
    instead = arguments.pop(_INSTEAD, "")
    given = {k: v for k, v in arguments.items() if plain(p.params[k].default) != v}
    return Match(p.method if p.alone else f"{p.method}'s {p.row}", given, elsewhere, False, biases, instead)


@lru_cache(maxsize=4096)
def _starts_of(name: str, row: str, arguments: tuple[tuple[str, Any], ...]) -> frozenset[tuple[str, ...]]:
    method = _known(name)
    assert method is not None
    bound_ = method(**dict(arguments))
    chosen = next(r for r in bound_.rows if r.name == row)
    found = meaning(replace(bound_, rows=(replace(chosen, gate=None),), trains=(), requires=()))
    return frozenset(tuple(sorted(x.start for x in c.tensors)) for _, c in _lines(found, False))


# ---------------------------------------------------------------- whole methods


def recognise(method: Method) -> Recognised:
    """What a method is: one of the library's, one of them with a row replaced, or what its rows are."""
    rows = []
    for row in method.rows:
        found = recognise_row(method, row)
        rows.append((row, found))
    best = tuple((r.name, m[0] if m else None) for r, m in rows)
    trains = _trained(method)
    whole = None
    if not rows:
        same = [n for n in library_names("method") if (k := _known(n)) and not k.rows and _trained(k) == trains]
        whole = Match(same[0]) if same else None
    if len(rows) == 1 and rows[0][1]:
        alone = [m for m in rows[0][1] if _same_rest(m.name, method, trains)]
        whole = alone[0] if alone else None
    union = _union(method, rows) if len(rows) > 1 else ""
    return Recognised(whole, best, union or _sentence(method, rows, whole))


def _same_rest(name: str, method: Method, trains: set[tuple[str, str]]) -> bool:
    """Whether gate, layers and trained copies are the known method's too."""
    if name not in library_names("method"):
        return False
    known = _known(name)
    assert known is not None
    if _trained(known) != trains:
        return False
    mine, theirs = method.rows[0], known.rows[0]
    return (mine.gate is None) == (theirs.gate is None) and mine.layers == theirs.layers


def _trained(method: Method) -> set[tuple[str, str]]:
    return {(str(p), str(t.layers)) for t in method.trains for p in t.paths}


def _gated(row: Row) -> str:
    return f", gated by {row.columns.gate}" if row.gate is not None else ""


def _sentence(method: Method, rows: list[tuple[Row, list[Match]]], whole: Match | None) -> str:
    if whole is not None:
        return f"this is {whole}"
    parts = []
    for row, found in rows:
        what = str(found[0]) if found else f"new: {_described(row)}{_nearest(row)}"
        parts.append(f"{what}{_gated(row)}")
    copies = ", ".join(sorted({str(p) for t in method.trains for p in t.paths}))
    if copies:
        parts.append(f"training {copies}")
    return f"this is {parts[0]}" + "".join(f", {p}" for p in parts[1:]) if rows and rows[0][1] else "; ".join(parts)


def _described(row: Row) -> str:
    c = row.columns
    return ", ".join(f"{k} {v}" for k, v in (("modify", c.modify), ("insert", c.insert), ("form", c.form), ("compose", c.compose)) if v)


def _nearest(row: Row) -> str:
    """The library's row that shares the most columns with a new one, and in which it differs."""
    mine = _heads(row)
    best: tuple[int, str, list[str]] = (1, "", [])
    for name in library_names("method"):
        known = _known(name)
        for k in known.rows if known is not None and len(known.rows) == 1 else ():
            theirs = _heads(k)
            differ = [c for c in mine if mine[c] != theirs[c]]
            if len(mine) - len(differ) > best[0]:
                best = (len(mine) - len(differ), name, differ)
    differs = " and ".join(best[2]) or "its arguments"
    return f" (nearest: {best[1]}, which differs in {differs})" if best[1] else ""


def _heads(row: Row) -> dict[str, Any]:
    c = row.columns
    return {"modify": frozenset(c.modify.split(", ")), "insert": c.insert, "form": c.form.partition("(")[0],
            "compose": c.compose.partition("(")[0]}  # fmt: skip


def _union(method: Method, rows: list[tuple[Row, list[Match]]]) -> str:
    """A method of several rows as a known one, or as one with a row replaced."""
    for name in library_names("method"):
        known = _known(name)
        if known is None or len(known.rows) != len(rows) or known.trains or method.trains:
            continue
        pairs = _paired(list(_known_rows(name)), rows)
        if pairs is None:
            continue
        odd = [(k, m, found) for k, (m, found), same in pairs if not same]
        if not odd:
            return f"this is {name} up to its arguments"
        if len(odd) == 1:
            k, m, found = odd[0]
            what = str(found[0]) if found else f"a new row ({_described(m)})"
            return f"{name} with its {k.name} replaced by {what}{_gated(m)}"
    return ""


def _paired(known: list[tuple[Row, tuple[Match, ...]]], mine: list[tuple[Row, list[Match]]]) -> list | None:
    """Known rows with mine; at least one pair must be the same row at the same sites."""
    left = list(mine)
    out: list = []
    for k, found in known:
        names = {m.name for m in found if not (m.sites or m.biases or m.activation)}
        same = next((x for x in left if any(m.name in names and not (m.sites or m.biases or m.activation) for m in x[1])
                     and (x[0].gate is None) == (k.gate is None)), None)  # fmt: skip
        out.append([k, same, True] if same is not None else [k, None, False])
        if same is not None:
            left.remove(same)
    if len(left) == len(mine):
        return None
    for entry in out:
        if entry[1] is None:
            entry[1] = left.pop(0)
    return [tuple(x) for x in out]
