"""A method whose slots or arguments hold alternatives, as a space: its members by number, without making them all."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

from ..syntax import nodes as S
from .methods import sites_of
from ..report.diagnostics import error
from .elaborate import SLOTS, is_space
from .names import Names
from ..syntax.printer import to_text


@dataclass(frozen=True, slots=True)
class Choice:
    """One place with alternatives: a slot of a row, or a parameter."""

    what: str  # modify, insert, form, compose, layers, tokens, or the parameter's name
    options: tuple[Any, ...]

    def shown(self, index: int, params: Sequence[S.Param] = (), brief: bool = False) -> str:
        """An alternative as text: a parameter for sites as its sites, and, if ``brief``, an own body as what it binds last."""
        option = self.options[index]
        if self.what == "modify":
            return ", ".join(map(str, sites_of(option, params) or option))
        if brief and isinstance(option, S.Block) and option.body and isinstance(last := option.body[-1], S.Let):
            return to_text(last.value)
        return to_text(option)


@dataclass(frozen=True, slots=True)
class Space:
    """The members of a definition with alternatives. Member ``i`` counts through the last choice first."""

    definition: S.MethodDef
    names: Names
    choices: tuple[Choice, ...]

    @property
    def size(self) -> int:
        """How many members there are; more than `len` could say, in a space of many choices."""
        return prod(len(c.options) for c in self.choices)

    def __len__(self) -> int:
        return self.size

    def picks(self, index: int) -> tuple[int, ...]:
        """Which alternative each choice has in a member."""
        out: list[int] = []
        for c in reversed(self.choices):
            index, rest = divmod(index, len(c.options))
            out.append(rest)
        return tuple(reversed(out))

    def member(self, index: int, name: str = "") -> S.MethodDef:
        """The definition of a member: one alternative in each place."""
        picks = iter(self.picks(index))
        values = {c.name: c.values[next(picks)] for c in self.definition.choices}
        params = tuple(replace(p, default=values.get(p.name, p.default)) for p in self.definition.params)
        clauses = _chosen(self.definition.clauses, picks)
        return replace(self.definition, name=name or self.definition.name, params=params, clauses=clauses, choices=())

    def around(self, picks: Sequence[int]) -> Iterator[int]:
        """The member with these alternatives and those that differ from it in one place, so that every alternative occurs."""
        yield (here := self.index(picks))
        size = self.size
        for c, picked in zip(self.choices, picks):
            size //= len(c.options)
            yield from (here + (option - picked) * size for option in range(len(c.options)) if option != picked)

    def index(self, picks: Sequence[int]) -> int:
        """The number of the member with these alternatives: the inverse of `picks`."""
        found = 0
        for c, picked in zip(self.choices, picks):
            found = found * len(c.options) + picked
        return found

    def columns(self, index: int, brief: bool = False) -> tuple[tuple[str, str], ...]:
        """(place, alternative) of each choice of a member, as text."""
        chosen = {c.name for c in self.definition.choices}
        params = [p for p in self.definition.params if p.name not in chosen]
        return tuple((c.what, c.shown(i, params, brief)) for c, i in zip(self.choices, self.picks(index)))

    def indices(self, sample: int | None = None, seed: int = 0) -> Iterator[int]:
        """Every member's number, or that many drawn without repetition."""
        return drawn(self.size, sample, seed)


def drawn(total: int, sample: int | None = None, seed: int = 0) -> Iterator[int]:
    """The numbers below a total, or so many of them in a random order; none is made before it is asked for."""
    if sample is None or sample >= total:
        yield from range(total)
        return
    draw = random.Random(seed)
    seen: set[int] = set()
    while len(seen) < sample:
        index = draw.randrange(total)
        if index not in seen:
            seen.add(index)
            yield index


def space_of(definition: S.MethodDef, names: Names, one: bool = False) -> Space:
    """The space of a definition; one without alternatives is an error unless ``one`` says that it may be."""
    if not one and not is_space(definition):
        raise error("E0800", f"`{definition.name}` is one method, not a space: no slot has an alternative", definition.name_span,
                    help="write alternatives with `|`, or `unipelt vary` makes a space of it")  # fmt: skip
    choices: list[Choice] = [Choice(c.name, c.values) for c in definition.choices]
    choices += _choices(definition.clauses)
    return Space(definition, names, tuple(choices))


def _choices(clauses: tuple[Any, ...]) -> Iterator[Choice]:
    for c in clauses:
        if type(c) in SLOTS and len(getattr(c, "alternatives", ())) > 1:
            yield Choice(SLOTS[type(c)], c.alternatives)
        elif isinstance(c, S.Use):
            if isinstance(c.target, S.RowBlock):
                yield from _choices(c.target.clauses)
            yield from _choices(c.overrides)


def _chosen(clauses: tuple[Any, ...], picks: Iterator[int]) -> tuple[Any, ...]:
    """The clauses with the picked alternatives, in the order of `_choices`."""
    out: list[Any] = []
    for c in clauses:
        if type(c) in SLOTS and len(getattr(c, "alternatives", ())) > 1:
            c = replace(c, alternatives=(c.alternatives[next(picks)],))
        elif isinstance(c, S.Use):
            if isinstance(c.target, S.RowBlock):
                c = replace(c, target=replace(c.target, clauses=_chosen(c.target.clauses, picks)))
            c = replace(c, overrides=_chosen(c.overrides, picks))
        out.append(c)
    return tuple(out)
