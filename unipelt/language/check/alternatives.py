"""The mistakes of a space that are there before its members are enumerated: those that an alternative has by itself.

What an alternative calls, and whether there is a place at which it fits, does not hang on what is chosen in the other
slots. Whether the parts of a row fit together does: that is no mistake of a space, whose enumeration drops such members.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Set
from dataclasses import replace
from typing import Any

from .definitions import at_the_best_place, bound_by_forms, called_definition
from ..analyse.method import analyse
from .methods import site_problem, sites_of
from ..report.diagnostics import Diagnostic, PeltError
from .elaborate import elaborate
from ..ir import Method, Row
from .names import Names
from .parameters import check_parameters
from ..types.rows import RowChecker, distinct
from ..types.typed import SYMBOLS
from ..sites import SITES
from .space import Choice, space_of
from ..syntax.nodes import Expr, Let, MethodDef, Name, Param, Span


def check_space(definition: MethodDef, names: Names) -> list[Diagnostic]:
    """Every mistake that all members have in which an alternative is chosen, or that all members have. ``[]`` if there is none.

    A member is looked at for each alternative, beside others that are sound.
    """
    owner = f"the method `{definition.name}`"
    problems, params = check_parameters(definition.params, owner)
    chosen = {p.name: p for p in definition.params}
    for choice in definition.choices:
        for value in choice.values:
            problems += check_parameters([replace(chosen[choice.name], default=value)], owner)[0]
    space = space_of(replace(definition, params=tuple(params), choices=()), names, one=True)
    members: dict[int, Method | None] = {}
    picks, before = [0] * len(space.choices), None
    while picks != before:
        for index in space.around(picks):
            if index not in members:
                members[index] = _member(space.member(index), names, problems)
        before, picks = picks, [_sound(c, problems) for c in space.choices]
    methods = [m for m in members.values() if m is not None]
    rows = Counter(row for m in methods for row in set(m.rows))
    parts = dict.fromkeys(part for row, n in rows.items() if n < len(methods) for part in _parts(row))
    given = bound_by_forms(names) if parts else frozenset[str]()
    for what, part, span in parts:
        problems += _part(what, part, span, params, given)
    if methods:  # what no alternative makes a difference to is a method by itself
        try:
            analyse(
                replace(
                    methods[0], params=tuple(params), rows=tuple(r for r in methods[0].rows if rows[r] == len(methods))
                )
            )
        except PeltError as e:
            problems += e.diagnostics
    return distinct([called_definition(d, names) for d in problems])


def _member(definition: MethodDef, names: Names, problems: list[Diagnostic]) -> Method | None:
    try:
        return elaborate(definition, names, problems)
    except PeltError as e:
        problems += e.diagnostics
        return None


def _sound(choice: Choice, problems: list[Diagnostic]) -> int:
    """The first alternative in which there is no mistake."""
    wrong = {p.span for p in problems}
    spans = [[p.span for p in (o if isinstance(o, tuple) else (o,))] for o in choice.options]
    return next((i for i, own in enumerate(spans) if not any(_holds(s, w) for s in own for w in wrong)), 0)


def _holds(outer: Span, inner: Span) -> bool:
    return outer.file == inner.file and outer.start <= inner.start and inner.end <= outer.end


def _parts(row: Row) -> Iterator[tuple[str, Any, Span]]:
    """The parts of a row that are checked by themselves, each with its kind and place."""
    yield "modify", row.sites, row.span
    yield "insert", row.insert, row.span
    for what in ("form", "compose", "gate"):
        yield what, getattr(row, what), row.span


def _part(what: str, part: Any, span: Span, params: list[Param], given: Set[str]) -> list[Diagnostic]:
    """The mistakes that a part of a row has at every place."""
    if not part:
        return []
    if what == "modify":
        return [p for path in sites_of(part, params) if (p := site_problem(path)) is not None]
    if what == "insert":
        return _insertion(part, params)
    return at_the_best_place(what, part, params, frozenset() if what == "form" else given, span)


def _insertion(insert: Expr, params: list[Param]) -> list[Diagnostic]:
    """What is wrong with an insertion at the site where it fits best."""
    best: list[Diagnostic] | None = None
    for site in SITES.values():
        checker = RowChecker(Row("", (), insert, (), (Let(("out",), Name("h")),)), site, params, SYMBOLS)
        checker.check()
        if best is None or len(checker.inf.problems) < len(best):
            best = checker.inf.problems
        if not best:
            break
    return best or []
