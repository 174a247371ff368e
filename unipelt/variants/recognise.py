"""Recognising a method by what it means: which of the library's it is, with which arguments, and what differs.

A known method is a pattern (`patterns`): its arguments are unknowns, and what its lines erase (coefficients, sizes,
activations) are equations in them (`solve`). A match is a statement about functions: with these arguments the two
compute the same; different starts, missing biases, other sites, other layers and gates are said.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from types import MappingProxyType
from typing import Any

from ..language.syntax import nodes as S
from ..language.analyse.canonical import Canonical, difference
from ..language.write.columns import COLUMNS, columns_of
from ..language.types.fitting import plain
from ..language.ir import Method, Row
from ..language.report.diagnostics import PeltError
from ..language.analyse.meaning import bound, meaning
from ..language.syntax.printer import to_text
from .catalogue import catalogue, known, of_rows, with_skeleton
from .patterns import Pattern, compared, key_of_lines, lines_of, patterns_of, with_bound, without_biases
from .solve import Solution, fits


@dataclass(frozen=True, slots=True)
class Match:
    """A known row or method that was recognised: its name, its arguments, and the differences that remain."""

    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    sites: tuple[str, ...] = ()  # where, if elsewhere than the known one
    starts: bool = False  # whether its tensors start otherwise
    biases: str = ""  # "with" or "without" biases that the known one lacks or has
    activation: tuple[str, str] | None = None  # one that stands for another: ("gelu", "relu")
    around: tuple[str, ...] = ()  # other layers, tokens and gates than the known one's

    @property
    def plain(self) -> bool:
        """Whether it is the known row at its own sites, perhaps with other starts."""
        return not (self.sites or self.biases or self.activation or self.around)

    @property
    def exact(self) -> bool:
        return self.plain and not self.starts

    def __str__(self) -> str:
        shown = ", ".join(f"{k} = {str(v).lower() if isinstance(v, bool) else v}" for k, v in self.arguments.items())
        text = f"{self.name}({shown})" if shown else self.name
        if self.sites:
            text += f" at {', '.join(self.sites)}"
        less = [f"{self.biases} biases"] if self.biases else []
        less += [f"with {self.activation[0]} for {self.activation[1]}"] if self.activation else []
        less += ["with other starts"] if self.starts else []
        return ", ".join([" ".join([text, *([", ".join(less)] if less else [])]), *self.around])


@dataclass(frozen=True, slots=True)
class Recognised:
    """What is known of a method: the whole, or each of its rows by name."""

    whole: Match | None
    rows: tuple[tuple[str, Match | None], ...]
    sentence: str


# ---------------------------------------------------------------- rows


def _of_library(name: str) -> Method:
    found = known(name)
    assert found is not None
    return found


@lru_cache(maxsize=4096)
def _bound_row(name: str, row: str, arguments: tuple[tuple[str, Any], ...]) -> tuple[Method, Row]:
    """A known method at some arguments, and one of its rows."""
    found = bound(_of_library(name)(**dict(arguments)))
    return found, next(r for r in found.rows if r.name == row)


@lru_cache(maxsize=None)
def _known_rows(name: str) -> tuple[tuple[Row, tuple[Match, ...]], ...]:
    method = _of_library(name)
    return tuple((r, tuple(recognise_row(method, r))) for r in method.rows)


def _match_themselves(name: str, row: Row) -> bool:
    """Whether a known row is recognised as itself."""
    return any(m.exact for known_row, matches in _known_rows(name) if known_row is row for m in matches)


def _alone(method: Method, row: Row) -> Method:
    """The row as a method of its own, without what stands around it."""
    return replace(method, rows=(replace(row, gate=None, layers=None, tokens=()),), trains=(), requires=())


def _inputs(method: Method, row: Row) -> tuple[tuple[str, str], ...]:
    """The arguments that a bound row adds to the forward pass."""
    return meaning(_alone(method, row)).inputs if any(isinstance(s, S.Input) for s in row.parts) else ()


def _around(mine: Row, theirs: Row) -> tuple[str, ...]:
    """In what two bound rows differ besides their function: layers, tokens, gate."""
    out: list[str] = []
    here, there = (None if r.layers is None or r.layers.word == "all" else r.layers for r in (mine, theirs))
    if here != there:
        out.append(f"in layers {to_text(here)}" if here is not None else "in every layer")
    if mine.tokens != theirs.tokens:
        out.append(f"at tokens {', '.join(map(to_text, mine.tokens))}" if mine.tokens else "at every token")
    if mine.gate != theirs.gate:
        out.append(f"gated by {mine.columns.gate}" if mine.gate is not None else "without its gate")
    return tuple(out)


def recognise_row(method: Method, row: Row) -> list[Match]:
    """The known rows that a row is, best first."""
    whole = bound(replace(method, rows=(row,), trains=(), requires=()))
    mine, alone = whole.rows[0], _alone(whole, whole.rows[0])
    try:
        found = meaning(alone)
    except PeltError:  # it has no meaning without the tokens that it selects
        return []
    starts: frozenset[Any] = frozenset()
    ranked: list[tuple[tuple, Match]] = []
    for own, m in (("", found), ("without", without_biases(found))):
        if own and m == found:
            continue
        lines = lines_of(m)
        sites = tuple(s for s, _ in lines)
        for p in with_skeleton(key_of_lines(lines[0][1])):
            solution = _everywhere(p, lines)
            if solution is None or (own and p.biases):  # the latter is the same as without stripping
                continue
            solution = replace(solution, arguments={**solution.arguments, **p.fixed})
            place = (p.method, p.row, tuple(sorted(solution.arguments.items())))
            other, theirs = _bound_row(*place)
            if _inputs(whole, mine) != _inputs(other, theirs):
                continue  # it is called otherwise
            starts = starts or _starts(alone)
            match = Match(
                p.method if p.alone else f"{p.method}'s {p.row}",
                {k: v for k, v in solution.arguments.items() if plain(p.params[k].default) != v},
                () if set(sites) == set(p.sites) else sites,
                not (starts & _starts_of(*place)),
                "" if bool(own) == bool(p.biases) else "with" if own else "without",
                solution.activation,
                _around(mine, theirs),
            )
            changed = [k for k in match.arguments if p.params[k].type != "int"]  # a size is no other method
            differ = sum(map(bool, (match.biases, match.sites, match.starts))) + 2 * bool(match.activation)
            differ += len(match.around) + len(changed)
            around = sum(map(bool, (theirs.layers, theirs.tokens, theirs.gate)))  # the plainer one is nearer
            rank = (not p.alone, differ, match.starts, len(match.arguments), around, len(p.params), p.method)
            ranked.append((rank, match))
    return [m for _, m in sorted(ranked, key=lambda x: x[0])]


def arguments_of(
    method: Method, row: Row, other: Method, fixed: Mapping[str, Any] = MappingProxyType({})
) -> Mapping[str, Any] | None:
    """The arguments under which a method of one row computes what a row does, whatever layers, tokens and gates; None without any.

    Some are ``fixed``. What the row does not depend on is left out.
    """
    other = with_bound(other, fixed) if fixed else other
    whole = bound(replace(method, rows=(row,), trains=(), requires=()))
    there = replace(other.rows[0], sites=whole.rows[0].sites)  # where sizes have the names that they have in the row
    try:
        lines = lines_of(meaning(_alone(whole, whole.rows[0])))
        patterns = patterns_of(other.name, _alone(other, there))
    except PeltError:  # it has no meaning without the tokens that it selects
        return None
    key = key_of_lines(lines[0][1])
    for _, p in (x for x in patterns if x[0] == key and not x[1].biases):
        found = _everywhere(p, lines)
        if found is not None and found.activation is None:
            return {**found.arguments, **p.fixed}
    return None


def _everywhere(p: Pattern, lines: list[tuple[str, Canonical]]) -> Solution | None:
    """The arguments under which the pattern is the row at each of the row's sites."""
    total = Solution({})
    for n, (site, mine) in enumerate(lines):
        same = [c for s, c in zip(p.sites, p.lines) if s == site] or list(p.lines)
        found = next((f for c in same if (f := fits(c, mine, p.params)) is not None), None)
        if found is None or any(total.arguments.get(k, v) != v for k, v in found.arguments.items()):
            return None
        if n and found.activation != total.activation:
            return None
        total = Solution({**total.arguments, **found.arguments}, found.activation)
    return total


def _starts(method: Method) -> frozenset[Any]:
    """At each site which tensor starts how, told by the part it plays."""
    return frozenset(
        (*(x.text for x in c.sites), *((x.text, x.start) for x in c.tensors))
        for _, c in lines_of(meaning(method), True)
    )


@lru_cache(maxsize=4096)
def _starts_of(name: str, row: str, arguments: tuple[tuple[str, Any], ...]) -> frozenset[Any]:
    try:
        return _starts(_alone(*_bound_row(name, row, arguments)))
    except PeltError:  # a start that its other arguments do not go with, such as a list of another length
        return frozenset()


# ---------------------------------------------------------------- whole methods


def recognise(method: Method) -> Recognised:
    """What a method is: one of the library's, one of them with a row replaced, or what its rows are."""
    rows = [(row, recognise_row(method, row)) for row in method.rows]
    best = tuple((r.name, m[0] if m else None) for r, m in rows)
    nearest = _nearest_union(method, rows) if len(rows) > 1 else None
    if nearest is not None:
        sentence, whole = nearest
        return Recognised(whole, best, sentence)
    whole = _single(method, rows) if len(rows) < 2 else None
    return Recognised(whole, best, f"this is {whole}" if whole is not None else _sentence(method, rows))


def _single(method: Method, rows: Sequence[tuple[Row, list[Match]]]) -> Match | None:
    """The known method that one of a single row, or of trained copies only, is."""
    if not rows:
        same = [n for n, k in of_rows(0).items() if not _training(method, k)]
        return Match(same[0]) if same else None
    alone = [m for m in rows[0][1] if m.name in catalogue() and not m.around]
    return next((m for m in alone if not _training(method, known(m.name))), None)


def _trained(method: Method | None) -> tuple[str, ...]:
    """The copies that a method trains, each as text."""
    found = meaning(replace(method, rows=())).trains if method is not None else ()
    return tuple(
        f"{p}{f' in layers {at}' if at else ''}{f' at a rate of {lr}' if lr != '1' else ''}" for p, at, lr in found
    )


def _training(method: Method, other: Method | None) -> str:
    """Which copies a method trains that the other does not, and the other way round; none where they agree."""
    mine, theirs = _trained(method), _trained(other)
    more, less = [t for t in mine if t not in theirs], [t for t in theirs if t not in mine]
    parts = [f"training {', '.join(more)}"] if more else []
    return ", ".join([*parts, *([f"without training {', '.join(less)}"] if less else [])])


def _sentence(method: Method, rows: Sequence[tuple[Row, list[Match]]]) -> str:
    parts = []
    for row, found in rows:
        what = str(found[0]) if found else f"new: {_described(row, method)}{_nearest(row, method)}"
        if not found and row.layers is not None and row.layers.word != "all":
            what += f", in layers {to_text(bound(replace(method, rows=(row,))).rows[0].layers)}"
        parts.append(what + (f", gated by {row.columns.gate}" if not found and row.gate is not None else ""))
    base = known(rows[0][1][0].name) if len(rows) == 1 and rows[0][1] else None
    training = _training(method, base)
    parts += [training] if training else []
    return f"this is {', '.join(parts)}" if rows and rows[0][1] else "; ".join(parts)


def _described(row: Row, method: Method) -> str:
    columns = columns_of(row, method)
    return ", ".join(f"{c} {columns[c]}" for c in COLUMNS if columns[c])


def _nearest(row: Row, method: Method) -> str:
    """The library's row that shares the most columns with a new one, arguments apart, and in which it differs; of several the one
    that has more of them with the same arguments."""
    mine = compared(row, method)
    best: tuple[tuple[int, int], str, list[str]] = ((3, len(mine)), "", [])
    for name, other in catalogue().items():
        if (theirs := other.columns) is None:
            continue
        differ = [c for c in mine if _without_arguments(c, mine[c]) != _without_arguments(c, theirs[c])]
        shared = len(mine) - len(differ), sum(mine[c] == theirs[c] for c in mine)
        if shared > best[0]:
            best = shared, name, differ
    differs = " and ".join(best[2]) or "its arguments"
    return f" (nearest: {best[1]}, which differs in {differs})" if best[1] else ""


def _without_arguments(column: str, value: Any) -> Any:
    """What a column says, without the arguments of what it calls."""
    return value.partition("(")[0] if column in ("form", "compose", "gated by") else value


# ---------------------------------------------------------------- methods of several rows


def _nearest_union(method: Method, rows: list[tuple[Row, list[Match]]]) -> tuple[str, Match | None] | None:
    """The nearest known method of as many rows, as a sentence, and as a match where it means the same.

    One that means the same is before one that differs in its arguments, that one before one with a row replaced.
    """
    found: list[tuple[tuple, str, Match | None]] = []
    for name, other in of_rows(len(rows)).items():
        odd = [(k, m, matches) for k, (m, matches), same in _paired(_known_rows(name), rows) if not same]
        # a row that reads another's tensors, or tokens that another put there, is known by the whole alone
        if odd and not any(_match_themselves(name, k) for k, _, _ in odd) and difference(method, other) is None:
            found.append(((0, name), f"this is {name}", Match(name)))
            continue
        if len(odd) > 1:
            continue
        training = _training(method, other)
        behind = f", {training}" if training else ""
        if not odd and difference(method, other) is None:
            found.append(((0, name), f"this is {name}", Match(name)))
        elif not odd:
            found.append(((1, bool(training), name), f"this is {name} up to its arguments{behind}", None))
        else:
            k, m, matches = odd[0]
            what = str(matches[0]) if matches else f"a new row ({_described(m, method)})"
            sentence = f"{name} with its {k.name} replaced by {what}{behind}"
            found.append(((2, not matches, bool(training), name), sentence, None))
    return min(found, key=lambda f: f[0])[1:] if found else None


def _paired(
    theirs: Sequence[tuple[Row, Sequence[Match]]], mine: list[tuple[Row, list[Match]]]
) -> list[tuple[Row, Any, bool]]:
    """Each known row with one of mine, and whether they are the same row at the same sites, starts included."""
    left = list(mine)
    out: list[list[Any]] = []
    for k, found in theirs:
        names = {m.name for m in found if m.exact}
        same = next((x for x in left if any(m.name in names and m.exact for m in x[1])), None)
        out.append([k, same, same is not None])
        if same is not None:
            left.remove(same)
    for entry in out:
        if entry[1] is None:
            entry[1] = left.pop(0)
    return [tuple(x) for x in out]  # type: ignore[misc]
