"""The lines of a trained adapter's rows in the names of another row, which reads what they do (`members`).

Tensors are frozen and start as given, dropout and draws are as outside training, penalties and what happens after a step are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from .ir import Row
from .report.diagnostics import error
from .sites import SiteSignature, TensorType
from .syntax.nodes import (
    Apply,
    Arg,
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
    Require,
    Scope,
    Statement,
    Tensor,
    rewrite,
    walk,
)  # fmt: skip
from .syntax.parser import parse_expression
from .types.primitives import entry_of
from .types.typed import TypedRow


@dataclass(frozen=True, slots=True)
class Source:
    """Whose values a tensor has: a member of an argument by its number, the row there, and the tensor's label in that row."""

    of: str
    member: int
    row: str
    label: str


@dataclass(frozen=True, slots=True)
class Average:
    """That a tensor is the sum of those of several members times their weights: their axis, and these, by name. ``rows`` are the
    members' rows, which are of one form."""

    axis: str
    weights: Expr
    rows: Sequence[Sequence[Row]]


@dataclass
class Lines:
    """Writes members' lines for one row at a site. ``z`` is what that row reads, in words of the site, ``h`` its name for the site's h;
    ``taken`` are names that it has. ``sources`` gets the values of tensors by the names of rows and tensors."""

    row: str
    site: SiteSignature
    z: Expr | None
    h: Name
    taken: set[str]
    sources: dict[tuple[str, str], tuple[Source, ...]]
    inputs: dict[str, Input] = field(default_factory=dict)

    def of_member(
        self, of: str, i: int, rows: Sequence[Row], typed: Callable[[Row], Sequence[TypedRow]], front: str, average: Average | None = None
    ) -> tuple[list[Statement], Expr, Expr]:  # fmt: skip
        """The lines of a member's rows, the h that they make, and what that adds to the h of the site. Names begin with ``front``;
        ``typed`` gives a row at each of the sites."""
        lines: list[Statement] = []
        h: Name = self.h
        added: Expr | None = None
        for n, r in enumerate(rows):
            tag = f"{front}_{r.name}" if len(rows) > 1 else front
            part, h, added = self._one(of, i, r, typed(r), tag, h, n == 0, average)
            lines += part
        if len(rows) > 1 or added is None:
            name = self.fresh(f"{front}_delta")
            lines.append(Let((name,), Binary("-", h, self.h)))
            added = Name(name)
        return lines, h, added

    def _one(
        self,
        of: str,
        i: int,
        row: Row,
        typed: Sequence[TypedRow],
        front: str,
        h: Name,
        first: bool,
        average: Average | None,
    ) -> tuple[list[Statement], Name, Expr | None]:
        """The lines of one row of a member, the new h, and what was added where the row adds."""
        lines: list[Statement] = []
        names: dict[str, Expr] = {"h": h}
        z = insertion(row.insert, self.site)
        if self.site.is_weight:
            names |= {"z": h, "W": h}
        elif z is not None and first and z == self.z:
            names["z"] = Name("z")
        elif z is not None:
            z = rewrite(z, lambda n: h if n == Name("h") else n)
            if not isinstance(z, Name):
                name = self.fresh(f"{front}_z")
                lines.append(Let((name,), z))
                z = Name(name)
            names["z"] = z
            names["d_in"] = Name("d_out") if z == h else width(z)
        axes: dict[str, str] = {}
        for part, body in (("", row.form), ("gate", row.gate or ()), ("", row.compose)):
            inner = dict(names)
            for s in body:
                lines += self._copied(s, of, i, row, typed, front, part, inner if part else names, axes, average)
            if part:
                gate = inner.get("g")
        out = names["out"]
        assert isinstance(out, Name)
        added = self._added(row, typed[0]) if row.gate is None else None
        if row.gate is not None:
            name = self.fresh(f"{front}_out")
            change = Binary("*", gate, Binary("-", out, h))  # type: ignore[arg-type]
            lines.append(Let((name,), Binary("+", h, change)))
            return lines, Name(name), None
        if added is None:
            return lines, out, None
        last = next(s for s in reversed(lines) if isinstance(s, Let) and s.names == (out.id,))
        assert isinstance(last.value, Binary)
        delta = last.value.right
        if not isinstance(delta, Name):
            name = self.fresh(f"{front}_delta")
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
        self, s: Statement, of: str, i: int, row: Row, typed: Sequence[TypedRow], front: str, part: str, names: dict[str, Expr], axes: dict[str, str],
        average: Average | None,
    ) -> list[Statement]:  # fmt: skip
        """A line of a member in the names of the row that reads it."""
        if isinstance(s, (Require, Later)):
            return []
        if isinstance(s, Input):
            new_input = renamed(s, names)
            again = self.inputs.setdefault(s.name, new_input) == new_input
            return (
                [] if again and new_input is not self.inputs[s.name] else [new_input]
            )  # the check compares what differs
        if isinstance(s, Axis):
            axes[s.name] = self.fresh(f"{front}_{s.name}")
            new = Axis(axes[s.name], renamed(s.size, names))
            names[s.name] = Name(new.name)
            return [new]
        if isinstance(s, Let):
            value = renamed(_outside_training(s.value), names)
            fresh = tuple(self.fresh(f"{front}_{n}") for n in s.names)
            names |= {n: Name(f) for n, f in zip(s.names, fresh, strict=True)}
            return [Let(fresh, value)]
        assert isinstance(s, Tensor)
        label = f"{part}.{s.name}" if part else s.name
        found = next(t for t in typed[0].tensors if t.label == label)
        name = self.fresh(f"{front}_{s.name}")
        names[s.name] = Name(name)
        per = tuple(
            Scope(axes.get(w.name, w.name), renamed(w.argument, names) if w.argument is not None else None)
            for w in s.per
        )
        start: Expr = Name("given")
        if found.below is not None:
            start = Apply(Name("given_integers"), (Arg(renamed(_bound(s, typed), names)),))
        shape = tuple(renamed(e, names) for e in s.shape)
        key = (self.row, name)
        if average is None:
            self.sources[key] = (Source(of, i, row.name, label),)
            return [Tensor(name, shape, start, frozen=True, per=per)]
        if found.below is not None:
            raise error("E0422", f"the adapters of `{of}` hold whole numbers (`{s.name}`), which have no average", row.span,
                        help=f"mix what they do: read `{of}.delta`")  # fmt: skip
        axis, w = average.axis, average.weights
        at = list(average.rows[0]).index(row)
        self.sources[key] = tuple(Source(of, m, rows[at].name, label) for m, rows in enumerate(average.rows))
        per = (*(per or tuple(Scope(a) for a in sorted(found.owner.axes))), Scope(axis))
        mean = self.fresh(f"{name}_mean")
        names[s.name] = Name(mean)
        total = Apply(Name("sum"), (Arg(Binary("*", w, Name(name))), Arg(Name(axis))))
        return [Tensor(name, shape, start, frozen=True, per=per), Let((mean,), total)]

    def fresh(self, wanted: str) -> str:
        """A name that nothing in the row has."""
        name, n = wanted, 2
        while name in self.taken:
            name, n = f"{wanted}_{n}", n + 1
        self.taken.add(name)
        return name


# ---------------------------------------------------------------- pieces


def _bound(s: Tensor, typed: Sequence[TypedRow]) -> Expr:
    """What a tensor's whole numbers are less than, in words that say it at each site."""
    if not s.exact and isinstance(s.start, Apply) and s.start.function != Name("listed"):
        return s.start.args[0].value
    below = [next(t.below for t in at.tensors if t.name == s.name) for at in typed]
    words = {n: [at.sizes[n] for at in typed] for n in ("d_in", "d_out")}
    words["d_in * d_out"] = [at.sizes["d_in"] * at.sizes["d_out"] for at in typed]
    words |= {b.text: [b] * len(typed) for b in below if b is not None}
    word = next((word for word, sizes in words.items() if sizes == below), None)
    if word is None:
        raise error("E0421", f"the whole numbers of `{s.name}` are below one number at one site and another elsewhere", s.span,
                    help="read that adapter at one site, in a method of its own")  # fmt: skip
    return parse_expression(word)


def insertion(e: Expr | None, site: SiteSignature) -> Expr | None:
    """What z is, in names of the site."""
    if site.is_weight:
        return Name("h")
    return (
        {Name("sequential"): Name("h"), Name("parallel"): Name(site.parallel or "x")}.get(e, e)
        if isinstance(e, Name)
        else e
    )


def width(z: Expr) -> Expr:
    """The last size of what is read."""
    return Name("d_x") if z == Name("x") else Apply(Name("width"), (Arg(z),))


def renamed(node: Any, names: Mapping[str, Expr]) -> Any:
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
