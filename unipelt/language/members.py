"""A method that reads trained adapters with these written out in it: what each does at a site as lines of the row that reads it.

The members are methods here, by name; the values of their tensors come with a model (`runtime.members`). What comes out is a method
like any other: it is checked, planned, compiled, merged and saved as if it had been written so, and needs its members no more. Their
tensors are frozen and start as `given`, and they act as outside training: nothing is dropped, what is drawn in training is not.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from .analyse.meaning import bound
from .check.definitions import SITE_WORDS, WORDS
from .check.methods import sites_of
from .ir import Method, Row
from .member_lines import Average, Lines, Source, insertion, renamed, width
from .report.diagnostics import error
from .sites import SiteSignature, signature, site_name
from .syntax.lines import lines_for, names_of
from .syntax.nodes import (
    Apply,
    Arg,
    Attr,
    Axis,
    Expr,
    Input,
    Later,
    Let,
    Name,
    Number,
    Path,
    Scope,
    Selection,
    Statement,
    Tensor,
    rewrite,
    walk,
)  # fmt: skip
from .syntax.printer import to_text
from .types.carried import carries
from .types.inputs import places_rows
from .types.members import read_of
from .types.rows import typed_row
from .types.softmax import shares_softmax

MOST = 64  # members of one argument
_TOGETHER = 8  # what `concat` takes


@dataclass(frozen=True, slots=True)
class Member:
    """A trained adapter: what it is called, and its method with its arguments."""

    name: str
    method: Method


@dataclass(frozen=True, slots=True)
class Written:
    """The method with its members in it. ``sources`` are the values of tensors by their row's name and their label: one member's, or,
    where there is an entry for each along an axis, those of all in order. ``apart`` says what of members takes no part."""

    method: Method
    sources: Mapping[tuple[str, str], tuple[Source, ...]]
    apart: tuple[str, ...] = ()


def asks(method: Method) -> list[str]:
    """The arguments of a method that are adapters and are read in it, which are still to be written out."""
    read = {a.value.id for r in method.rows for a in read_of(r.parts, method.params)}  # type: ignore[union-attr]
    return [p.name for p in method.params if p.type == "adapters" and (p.name in read or _counted(method, p.name))]


def _counted(method: Method, name: str) -> bool:
    """Whether a row reads how many adapters there are."""
    return any(name in r.reads for r in method.rows)


def written_out(method: Method, members: Mapping[str, Sequence[Member]]) -> Written:
    """The method with the members of each of its arguments in it. Raises `PeltError` where that cannot be."""
    for of, given in members.items():
        if len(given) > MOST:
            raise error(
                "E0421", f"`{of}` has {len(given)} adapters, and a method takes {MOST} at most", help="give fewer"
            )
    whole = _Whole(method, {of: [replace(m, method=bound(m.method)) for m in given] for of, given in members.items()})
    rows = [new for row in method.rows for new in whole.row(row)]
    said = [f"{', '.join(f'{m.name} ({m.method.name})' for m in given)}" for given in members.values()]
    doc = f"{(method.doc or '').rstrip()} Frozen in it: {'; '.join(said)}.".strip()
    params = tuple(p for p in method.params if p.name not in members)
    counts = {of: Number(len(given)) for of, given in members.items()}
    rows = [rewrite(r, lambda n: counts.get(n.id, n) if isinstance(n, Name) else n) for r in rows]
    requires = tuple(rewrite(r, lambda n: counts.get(n.id, n) if isinstance(n, Name) else n) for r in method.requires)
    return Written(
        replace(method, params=params, rows=tuple(rows), requires=requires, doc=doc), whole.sources, whole.apart()
    )


class _Whole:
    """A method while its rows are written out."""

    def __init__(self, method: Method, members: Mapping[str, Sequence[Member]]):
        self.method, self.members = method, members
        self.sources: dict[tuple[str, str], tuple[Source, ...]] = {}
        self.used: set[tuple[str, int, str, str]] = set()  # the members' rows that take part, and where

    def row(self, row: Row) -> list[Row]:
        """The row, one for each group of its sites at which its members have the same rows."""
        read = sorted({a.value.id for a in read_of(row.parts, self.method.params)})  # type: ignore[union-attr]
        if not read:
            return [row]
        groups: dict[Any, list[Path]] = {}
        for path in sites_of(row.sites, self.method.params):
            found = tuple((of, tuple(self._there(of, i, path) for i in range(len(self.members[of])))) for of in read)
            groups.setdefault((found, _site(path).owner), []).append(path)
        several = len(groups) > 1
        out = []
        for (found, _), paths in groups.items():
            name = f"{row.name}_{str(paths[0]).replace('.', '_')}" if several else row.name
            one = replace(
                row, name=name, sites=tuple(paths), columns=replace(row.columns, modify=", ".join(map(str, paths)))
            )
            out.append(_Row(self, one, dict(found)).written())
        return out

    def _there(self, of: str, i: int, path: Path) -> tuple[Row, ...]:
        """The rows of a member at a site."""
        member, wanted = self.members[of][i], str(path)
        bare = site_name(wanted)[1]
        found = tuple(r for r in member.method.rows if {wanted, bare} & {*map(str, r.sites)})
        if not found:
            there = sorted({str(p) for r in member.method.rows for p in r.sites})
            raise error("E0421", f"the adapter `{member.name}` does nothing at `{wanted}`, where `{self.method.name}` reads what it does",
                        path.span, help=f"it has rows at {', '.join(there)}" if there else "it has trained copies alone, and no rows")  # fmt: skip
        for r in found:
            why = _refused(r)
            if why:
                raise error("E0421", f"the row `{r.name}` of the adapter `{member.name}` cannot be read as a value: {why}", path.span,
                            help="leave that adapter out")  # fmt: skip
            self.used.add((of, i, r.name, wanted))
        if len(found) > 1 and any(map(shares_softmax, found)):
            raise error("E0421", f"the adapter `{member.name}` has several rows at `{wanted}`, of which one shares the softmax", path.span,
                        help="leave that adapter out")  # fmt: skip
        return found

    def apart(self) -> tuple[str, ...]:
        """What of the members takes no part, in words."""
        said = []
        for of, members in self.members.items():
            for i, m in enumerate(members):
                taken = {(row, where) for o, n, row, where in self.used if (o, n) == (of, i)}
                at = {w for _, w in taken} | {site_name(w)[1] for _, w in taken}
                rest = sorted({str(p) for r in m.method.rows for p in r.sites} - at)
                rest += [f"the trained copies of {', '.join(map(str, t.paths))}" for t in m.method.trains]
                if rest:
                    said.append(f"of the adapter `{m.name}` takes no part what it has at {', '.join(rest)}")
        return tuple(said)


def _refused(row: Row) -> str:
    """Why a row's h cannot be read as a value."""
    if places_rows(row):
        return "it changes the length of the sequence"
    if row.tokens:
        return "it acts on some tokens only"
    if carries(row):
        return "it carries something from layer to layer"
    names = {n.value.id for n in row.nodes if isinstance(n, Attr) and isinstance(n.value, Name) and n.name != "T"}
    own = {n for s in row.parts for n in names_of(s)}
    known = SITE_WORDS | own
    lent = sorted(n for n in names if n not in known)
    return f"it reads tensors of the row `{lent[0]}`" if lent else ""


class _Row:
    """One row that reads members, at sites where these have the same rows."""

    def __init__(self, whole: _Whole, row: Row, rows: Mapping[str, Sequence[Sequence[Row]]]):
        self.whole, self.row, self.rows = whole, row, rows
        self.params = whole.method.params
        self.sites = [_site(p) for p in row.sites]
        self.site = self.sites[0]
        inputs = {s.name for of in rows.values() for m in of for r in m for s in r.parts if isinstance(s, Input)}
        own = {n for s in row.parts for n in names_of(s)}
        taken = {
            *WORDS,
            *SITE_WORDS,
            *own,
            *inputs,
            *(p.name for p in self.params),
            *(n.id for n in row.nodes if isinstance(n, Name)),
        }
        #: What z is in words of the site; at a weight, and where z is h, forms read h by that name.
        self.z = insertion(row.insert, self.site)
        self.h = Name("z") if self.z == Name("h") else Name("h")
        self.lines = Lines(row.name, self.site, self.z, self.h, taken, whole.sources)
        # an input is an argument of the model's forward and keeps its name, so what this row calls by that name has another
        mine = {n for s in row.parts if not isinstance(s, Input) for n in names_of(s)}
        self.row = _renamed_row(row, {n: self.lines.fresh(n) for n in sorted(mine & inputs)})

    def written(self) -> Row:
        row = self.row
        layers = self._layers()
        lines: list[Statement] = []
        done: dict[tuple[str, str, str], Expr] = {}
        for s in row.form:
            lines += self._line(s, done)
        compose: list[Statement] = []
        for s in row.compose:
            compose += self._line(s, done)
        for s in row.gate or ():
            if read_of(s, self.params):  # it stands before the form
                raise error(
                    "E0421", f"the gate of the row `{row.name}` reads adapters", row.span, help="read them in its form"
                )
        if self.h == Name("h") and any(n == Name("h") for s in lines for n in walk(s)):
            row, lines, compose = self._reading_h(row, lines, compose)
        return replace(row, form=tuple(lines), compose=tuple(compose), layers=layers)

    def _reading_h(
        self, row: Row, form: list[Statement], compose: list[Statement]
    ) -> tuple[Row, list[Statement], list[Statement]]:
        """The row with h as what is inserted, since members read it and forms read nothing else of that; what z was has a name."""
        own: dict[str, Expr] = {}
        before: list[Statement] = []
        if self.z is not None:
            z = renamed(self.z, {"h": Name("z")})
            name = z if isinstance(z, Name) else Name(self.lines.fresh(f"{row.name}_z"))
            before = [Let((name.id,), z)] if name != z else []
            own = {"z": name, "d_in": width(name)}
            of_gate = {"z": z, "d_in": width(z)}
            row = replace(row, gate=renamed(row.gate, of_gate) if row.gate is not None else None)
        lines = [renamed(s, {**own, "h": Name("z")}) for s in form]
        return replace(row, insert=Name("sequential")), [*before, *lines], [renamed(s, own) for s in compose]

    def _layers(self) -> Selection | None:
        """The layers on which all act."""
        selected = {
            r.layers if r.layers is not None and r.layers.word != "all" else None
            for of in self.rows.values()
            for m in of
            for r in m
        }
        own = self.row.layers if self.row.layers is not None and self.row.layers.word != "all" else None
        if selected == {None} or selected == {own}:
            return self.row.layers
        if len(selected) == 1 and own is None:
            return selected.pop()
        shown = sorted(f"`layers {to_text(s) if s is not None else 'all'}`" for s in selected)
        raise error("E0421", f"the adapters act on other layers than one another, or than `{self.row.name}`: {', '.join(shown)}", self.row.span,
                    help="give adapters of the same layers, and select no others")  # fmt: skip

    # ------------------------------------------------------------ lines of the row that reads

    def _line(self, s: Statement, done: dict[tuple[str, str, str], Expr]) -> list[Statement]:
        """A line with names in place of what it reads of members, behind the lines that these names are bound in."""
        before: list[Statement] = []

        def change(n: Any) -> Any:
            attr = n.function if isinstance(n, Apply) else n
            if not isinstance(attr, Attr) or not read_of(attr, self.params) or not isinstance(attr.value, Name):
                return n
            weights = n.args[0].value if isinstance(n, Apply) else None
            key = (attr.value.id, attr.name, to_text(weights) if weights is not None else "")
            if key not in done:
                made = self._joined(*key[:2]) if weights is None else self._averaged(*key[:2], weights)
                before.extend(made[0])
                done[key] = made[1]
            return done[key]

        new = _top_down(s, change)  # which fills what stands before it
        return [*before, new]

    def _axis(self, of: str) -> str:
        """The axis of the members, which the check has found to be there where it is needed."""
        return next(
            (s.name for s in (*self.row.form, *self.row.compose) if isinstance(s, Axis) and s.size == Name(of)), ""
        )

    def _joined(self, of: str, what: str) -> tuple[list[Statement], Expr]:
        """What each member makes, beside one another along their axis."""
        lines: list[Statement] = []
        ends: list[Expr] = []
        for i, rows in enumerate(self.rows[of]):
            made, out, delta = self._member(of, i, rows, _word(self.whole.members[of][i].name))
            end = out if what == "out" else delta
            lines += lines_for(made, end)
            ends.append(end)
        while len(ends) > 1:
            ends = [Apply(Name("concat"), tuple(map(Arg, part))) if len(part) > 1 else part[0] for part in _parts(ends)]
        name = self.lines.fresh(f"{of}_{what}")
        return [*lines, Let((name,), Apply(Name("split"), (Arg(ends[0]), Arg(Name(self._axis(of))))))], Name(name)

    def _averaged(self, of: str, what: str, weights: Expr) -> tuple[list[Statement], Expr]:
        """What one adapter makes whose tensors are the sums of the members' times their weights."""
        rows = self.rows[of]
        for i, other in enumerate(rows):
            if _forms(other) != _forms(rows[0]):
                a, b = (self.whole.members[of][n] for n in (0, i))
                raise error("E0422", f"the adapters `{a.name}` ({a.method.name}) and `{b.name}` ({b.method.name}) are not of one form at "
                            f"`{self.row.sites[0]}`, so their tensors cannot be averaged", self.row.span,
                            help=f"give adapters of one method with the same sizes, or mix what they do: read `{of}.{what}`")  # fmt: skip
        lines: list[Statement] = []
        axis = self._axis(of)
        if not axis:
            axis = self.lines.fresh("member")
            lines.append(Axis(axis, Number(len(rows))))
        w = self.lines.fresh(f"{of}_weights")
        lines.append(Let((w,), weights))
        made, out, delta = self._member(of, 0, rows[0], of, Average(axis, Name(w), rows))
        end = out if what == "out" else delta
        return [*lines, *lines_for(made, end)], end

    def _member(
        self, of: str, i: int, rows: Sequence[Row], front: str, average: Average | None = None
    ) -> tuple[list[Statement], Expr, Expr]:  # fmt: skip
        """The lines of a member's rows, the h that they make, and what that adds to the h of the site."""
        method = self.whole.members[of][i].method
        return self.lines.of_member(
            of, i, rows, lambda row: [typed_row(method, row, s) for s in self.sites], front, average
        )


# ---------------------------------------------------------------- pieces


def _site(path: Path) -> SiteSignature:
    """What a path's site is, which the check has found to be one."""
    found = signature(site_name(str(path))[1])
    assert found is not None
    return found


def _renamed_row(row: Row, names: Mapping[str, str]) -> Row:
    """The row with other names for what it binds, where it binds and where it reads."""

    def change(n: Any) -> Any:
        if isinstance(n, Name):
            return replace(n, id=names[n.id]) if n.id in names else n
        if isinstance(n, (Let, Later)):
            return replace(n, names=tuple(names.get(x, x) for x in n.names))
        if isinstance(n, (Tensor, Axis, Scope)):
            return replace(n, name=names.get(n.name, n.name))
        return n

    return rewrite(row, change) if names else row


def _top_down(node: Any, change: Any) -> Any:
    """A copy with calls changed before what is called: `of.delta(w)` is one thing."""
    from .syntax.tree import descend

    return descend(node, lambda n: new if (new := change(n)) is not n else None)


def _forms(rows: Sequence[Row]) -> list[Any]:
    """What rows are but for their names and their tensors' starts."""

    def plain(n: Any) -> Any:
        return replace(n, start=Name("given"), exact=False, frozen=True, lr=None) if isinstance(n, Tensor) else n

    parts = (tuple(rewrite(s, plain) for s in body or ()) for r in rows for body in (r.form, r.gate, r.compose))
    return [[to_text(r.insert) if r.insert is not None else "" for r in rows], *parts]


def _parts(ends: Sequence[Expr]) -> list[Sequence[Expr]]:
    return [ends[i : i + _TOGETHER] for i in range(0, len(ends), _TOGETHER)]


def _word(name: str) -> str:
    """A name of a file or an adapter as one of the language."""
    found = re.sub(r"\W+", "_", name, flags=re.ASCII).strip("_").lower()
    return found if re.match(r"[a-z_]", found) else f"m_{found}".rstrip("_")
