"""A method that reads trained adapters with these written out in it: what each does at a site as lines of the row that reads it.

The members are methods here, by name; the values of their tensors come with a model (`runtime.members`). What comes out is a method
like any other: it is checked, planned, compiled, merged and saved as if it had been written so, and needs its members no more. Their
tensors are frozen and start as `given`, and they act as outside training: nothing is dropped, what is drawn in training is not.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any

from .analyse.meaning import bound
from .check.definitions import SITE_WORDS, WORDS
from .check.methods import sites_of
from .ir import Method, Row
from .report.diagnostics import PeltError, error
from .sites import SiteSignature, TensorType, signature, site_name
from .syntax.lines import lines_for
from .syntax.nodes import (
    Apply,
    Arg,
    Attr,
    Axis,
    Binary,
    Choose,
    Expr,
    Index,
    Input,
    Later,
    Let,
    Name,
    Number,
    Path,
    Require,
    Scope,
    Selection,
    Statement,
    Tensor,
    rewrite,
    walk,
)  # fmt: skip
from .syntax.parser import parse_expression
from .syntax.printer import to_text
from .types.inputs import places_rows
from .types.members import read_of
from .types.primitives import entry_of
from .types.rows import typed_row
from .types.softmax import shares_softmax
from .types.typed import TypedRow

MOST = 64  # members of one argument
_TOGETHER = 8  # what `concat` takes


@dataclass(frozen=True, slots=True)
class Member:
    """A trained adapter: what it is called, and its method with its arguments."""

    name: str
    method: Method


@dataclass(frozen=True, slots=True)
class Source:
    """Whose values a tensor has: a member of an argument by its number, the row there, and the tensor's label in that row."""

    of: str
    member: int
    row: str
    label: str


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
            raise error("E0421", f"`{of}` has {len(given)} adapters, and a method takes {MOST} at most", help="give fewer")
    whole = _Whole(method, {of: [replace(m, method=bound(m.method)) for m in given] for of, given in members.items()})
    rows = [new for row in method.rows for new in whole.row(row)]
    said = [f"{', '.join(f'{m.name} ({m.method.name})' for m in given)}" for given in members.values()]
    doc = f"{(method.doc or '').rstrip()} Frozen in it: {'; '.join(said)}.".strip()
    params = tuple(p for p in method.params if p.name not in members)
    counts = {of: Number(len(given)) for of, given in members.items()}
    rows = [rewrite(r, lambda n: counts.get(n.id, n) if isinstance(n, Name) else n) for r in rows]
    requires = tuple(rewrite(r, lambda n: counts.get(n.id, n) if isinstance(n, Name) else n) for r in method.requires)
    return Written(replace(method, params=params, rows=tuple(rows), requires=requires, doc=doc), whole.sources, whole.apart())


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
            groups.setdefault(found, []).append(path)
        several = len(groups) > 1
        out = []
        for found, paths in groups.items():
            name = f"{row.name}_{str(paths[0]).replace('.', '_')}" if several else row.name
            one = replace(row, name=name, sites=tuple(paths), columns=replace(row.columns, modify=", ".join(map(str, paths))))
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
    names = {n.value.id for n in row.nodes if isinstance(n, Attr) and isinstance(n.value, Name) and n.name != "T"}
    own = {n for s in row.parts for n in (s.names if isinstance(s, Let) else (getattr(s, "name", ""),))}
    known = SITE_WORDS | own
    lent = sorted(n for n in names if n not in known)
    return f"it reads tensors of the row `{lent[0]}`" if lent else ""


class _Row:
    """One row that reads members, at sites where these have the same rows."""

    def __init__(self, whole: _Whole, row: Row, rows: Mapping[str, Sequence[Sequence[Row]]]):
        self.whole, self.row, self.rows = whole, row, rows
        self.params = whole.method.params
        bare = site_name(str(row.sites[0]))[1]
        found = signature(bare)
        assert found is not None
        self.site: SiteSignature = found
        own = {n for s in row.parts for n in (s.names if isinstance(s, Let) else (getattr(s, "name", ""),))}
        self.taken = {*WORDS, *SITE_WORDS, *own, *(p.name for p in self.params), *(n.id for n in row.nodes if isinstance(n, Name))}
        self.inputs: dict[str, Input] = {}
        #: What z is in words of the site; at a weight, and where z is h, forms read h by that name.
        self.z = _insertion(row.insert, self.site)
        self.h = Name("z") if self.z == Name("h") else Name("h")

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
                raise error("E0421", f"the gate of the row `{row.name}` reads adapters", row.span, help="read them in its form")
        if self.h == Name("h") and any(n == Name("h") for s in lines for n in walk(s)):
            row, lines, compose = self._reading_h(row, lines, compose)
        return replace(row, form=tuple(lines), compose=tuple(compose), layers=layers)

    def _reading_h(self, row: Row, form: list[Statement], compose: list[Statement]) -> tuple[Row, list[Statement], list[Statement]]:
        """The row with h as what is inserted, since members read it and forms read nothing else of that; what z was has a name."""
        own: dict[str, Expr] = {}
        before: list[Statement] = []
        if self.z is not None:
            z = _renamed(self.z, {"h": Name("z")})
            name = z if isinstance(z, Name) else Name(self._fresh(f"{row.name}_z"))
            before = [Let((name.id,), z)] if name != z else []
            own = {"z": name, "d_in": _width(name)}
            of_gate = {"z": z, "d_in": _width(z)}
            row = replace(row, gate=_renamed(row.gate, of_gate) if row.gate is not None else None)
        lines = [_renamed(s, {**own, "h": Name("z")}) for s in form]
        return replace(row, insert=Name("sequential")), [*before, *lines], [_renamed(s, own) for s in compose]

    def _layers(self) -> Selection | None:
        """The layers on which all act."""
        selected = {r.layers if r.layers is not None and r.layers.word != "all" else None for of in self.rows.values() for m in of for r in m}
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
        return next((s.name for s in (*self.row.form, *self.row.compose) if isinstance(s, Axis) and s.size == Name(of)), "")

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
        name = self._fresh(f"{of}_{what}")
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
            axis = self._fresh("member")
            lines.append(Axis(axis, Number(len(rows))))
        w = self._fresh(f"{of}_weights")
        lines.append(Let((w,), weights))
        made, out, delta = self._member(of, 0, rows[0], of, (axis, Name(w)))
        end = out if what == "out" else delta
        return [*lines, *lines_for(made, end)], end

    # ------------------------------------------------------------ lines of a member

    def _member(
        self, of: str, i: int, rows: Sequence[Row], front: str, average: tuple[str, Expr] | None = None
    ) -> tuple[list[Statement], Expr, Expr]:
        """The lines of a member's rows, the h that they make, and what that adds to the h of the site."""
        lines: list[Statement] = []
        h: Name = self.h
        added: Expr | None = None
        for n, r in enumerate(rows):
            typed = self._typed(of, i, r)
            tag = f"{front}_{r.name}" if len(rows) > 1 else front
            part, h, added = self._one(of, i, r, typed, tag, h, n == 0, average)
            lines += part
        if len(rows) > 1 or added is None:
            name = self._fresh(f"{front}_delta")
            lines.append(Let((name,), Binary("-", h, self.h)))
            added = Name(name)
        return lines, h, added

    def _typed(self, of: str, i: int, row: Row) -> TypedRow:
        return typed_row(self.whole.members[of][i].method, row, self.site)

    def _one(
        self, of: str, i: int, row: Row, typed: TypedRow, front: str, h: Name, first: bool, average: tuple[str, Expr] | None
    ) -> tuple[list[Statement], Name, Expr | None]:
        """The lines of one row of a member, the new h, and what was added where the row adds."""
        lines: list[Statement] = []
        names: dict[str, Expr] = {"h": h}
        z = _insertion(row.insert, self.site)
        if self.site.is_weight:
            names |= {"z": h, "W": h}
        elif z is not None and first and z == self.z:
            names["z"] = Name("z")
        elif z is not None:
            z = rewrite(z, lambda n: h if n == Name("h") else n)
            if not isinstance(z, Name):
                name = self._fresh(f"{front}_z")
                lines.append(Let((name,), z))
                z = Name(name)
            names["z"] = z
            names["d_in"] = Name("d_out") if z == h else _width(z)
        axes: dict[str, str] = {}
        for part, body in (("", row.form), ("gate", row.gate or ()), ("", row.compose)):
            inner = dict(names)
            for s in body:
                lines += self._copied(s, of, i, row, typed, front, part, inner if part else names, axes, average)
            if part:
                gate = inner.get("g")
        out = names["out"]
        assert isinstance(out, Name)
        added = self._added(row, typed) if row.gate is None else None
        if row.gate is not None:
            name = self._fresh(f"{front}_out")
            change = Binary("*", gate, Binary("-", out, h))  # type: ignore[arg-type]
            lines.append(Let((name,), Binary("+", h, change)))
            return lines, Name(name), None
        if added is None:
            return lines, out, None
        last = next(s for s in reversed(lines) if isinstance(s, Let) and s.names == (out.id,))
        assert isinstance(last.value, Binary)
        delta = last.value.right
        if not isinstance(delta, Name):
            name = self._fresh(f"{front}_delta")
            at = lines.index(last)
            lines[at:] = [Let((name,), delta), replace(last, value=replace(last.value, right=Name(name)))]
            delta = Name(name)
        return lines, out, delta

    def _added(self, row: Row, typed: TypedRow) -> Expr | None:
        """E where the row's last line is `out = h + E` and E has the sizes of h and does not read it."""
        last = row.compose[-1]
        if not isinstance(last, Let) or last.names != ("out",) or not isinstance(last.value, Binary):
            return None
        e = last.value
        if e.op != "+" or e.left != Name("h") or any(n == Name("h") for n in walk(e.right)):
            return None
        kind = typed.value(e.right).type
        lets = [s for s in row.compose[:-1] if isinstance(s, Let) and any(n == Name("h") for n in walk(s))]
        fits = isinstance(kind, TensorType) and kind.sizes == typed.site.h.sizes
        return e.right if fits and not lets else None

    def _copied(
        self, s: Statement, of: str, i: int, row: Row, typed: TypedRow, front: str, part: str, names: dict[str, Expr], axes: dict[str, str],
        average: tuple[str, Expr] | None,
    ) -> list[Statement]:  # fmt: skip
        """A line of a member in the names of the row that reads it."""
        if isinstance(s, (Require, Later)):
            return []
        if isinstance(s, Input):
            known = self.inputs.setdefault(s.name, s)
            return [_renamed(s, names)] if known is s else []
        if isinstance(s, Axis):
            axes[s.name] = self._fresh(f"{front}_{s.name}")
            new = Axis(axes[s.name], _renamed(s.size, names))
            names[s.name] = Name(new.name)
            return [new]
        if isinstance(s, Let):
            value = _renamed(_outside_training(s.value), names)
            fresh = tuple(self._fresh(f"{front}_{n}") for n in s.names)
            names |= {n: Name(f) for n, f in zip(s.names, fresh, strict=True)}
            return [Let(fresh, value)]
        assert isinstance(s, Tensor)
        label = f"{part}.{s.name}" if part else s.name
        found = next(t for t in typed.tensors if t.label == label)
        name = self._fresh(f"{front}_{s.name}")
        names[s.name] = Name(name)
        per = tuple(Scope(axes.get(w.name, w.name), _renamed(w.argument, names) if w.argument is not None else None) for w in s.per)
        start: Expr = Name("given")
        if found.below is not None:
            start = Apply(Name("given_integers"), (Arg(_renamed(parse_expression(found.below.text), names)),))
        shape = tuple(_renamed(e, names) for e in s.shape)
        key = (self.row.name, name)
        if average is None:
            self.whole.sources[key] = (Source(of, i, row.name, label),)
            return [Tensor(name, shape, start, frozen=True, per=per)]
        if found.below is not None:
            raise error("E0422", f"the adapters of `{of}` hold whole numbers (`{s.name}`), which have no average", self.row.span,
                        help=f"mix what they do: read `{of}.delta`")  # fmt: skip
        axis, w = average
        members = range(len(self.rows[of]))
        at = list(self.rows[of][0]).index(row)
        self.whole.sources[key] = tuple(Source(of, m, self.rows[of][m][at].name, label) for m in members)
        per = (*(per or tuple(Scope(a) for a in sorted(found.owner.axes))), Scope(axis))
        mean = self._fresh(f"{name}_mean")
        names[s.name] = Name(mean)
        total = Apply(Name("sum"), (Arg(Binary("*", w, Name(name))), Arg(Name(axis))))
        return [Tensor(name, shape, start, frozen=True, per=per), Let((mean,), total)]

    def _fresh(self, wanted: str) -> str:
        """A name that nothing in the row has."""
        name, n = wanted, 2
        while name in self.taken:
            name, n = f"{wanted}_{n}", n + 1
        self.taken.add(name)
        return name


# ---------------------------------------------------------------- pieces


def _insertion(e: Expr | None, site: SiteSignature) -> Expr | None:
    """What z is, in names of the site."""
    if site.is_weight:
        return Name("h")
    return {Name("sequential"): Name("h"), Name("parallel"): Name(site.parallel or "x")}.get(e, e) if isinstance(e, Name) else e


def _width(z: Expr) -> Expr:
    """The last size of what is read."""
    return Name("d_x") if z == Name("x") else Apply(Name("width"), (Arg(z),))


def _renamed(node: Any, names: Mapping[str, Expr]) -> Any:
    """The node with other names; those of functions stay, unless the row bound them."""

    def change(n: Any) -> Any:
        return names.get(n.id, n) if isinstance(n, Name) else n

    return rewrite(node, change)


def _outside_training(e: Expr) -> Expr:
    """The expression as it is outside training."""

    def change(n: Any) -> Any:
        entry = entry_of(n)
        if entry is not None and (entry.still or entry.draws):
            return n.args[0].value
        if isinstance(n, Choose) and n.test == Name("training"):
            return n.other
        if n == Name("training"):
            return Name("false")
        if n == Name("progress"):
            return Number(1)
        if isinstance(n, Index) and n.value == Name("noise"):
            return Binary("*", Number(0), n)
        return n

    return rewrite(e, change)


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
