"""A method's module diagram as data, in the style of the unified view's figure: for each row the frozen part, the
learned parts along the way of z, where z is taken from, and how delta meets h. Drawing it is `cli.picture`'s.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from ..syntax import nodes as S
from ..analyse.method import analyse
from ..check.methods import settled
from .composition import composition, reads_h
from .formula import lines, place, write
from ..ir import Method, Row

Kind = Literal["learned", "function", "frozen", "plain"]
_INPUT = frozenset(("z", "x", "q", "h", "residual", "log_mass", "W"))


@dataclass(frozen=True, slots=True)
class Box:
    """One step from z to delta, bottom up: a learned tensor with its sizes, a function, a frozen module, anything else."""

    kind: Kind
    label: str
    note: str = ""


@dataclass(frozen=True, slots=True)
class Panel:
    """One row: ``source`` is where z comes from (x, h, q, an expression, or nothing), ``boxes`` lead to delta."""

    title: str
    place: str  # the sites, and the layers where they are chosen
    site: str  # the first one, whose sizes the boxes show
    inside: str  # what the base does there; nothing for trained copies
    enters: str  # what enters it, if anything does
    source: str
    boxes: tuple[Box, ...]
    gate: str
    node: str
    delta: str  # as a formula
    change: str  # what the arrow brings to the node, as a formula: delta, or what is left of it behind scales and gates
    formula: str
    where: tuple[str, ...] = ()  # the lets that the boxes mention


def diagram(method: Method) -> list[Panel]:
    """A panel for each row, then one for each `train`. Raises `PeltError` where a row's sites have no value."""
    settled(method)
    panels = [_panel(method, row) for row in method.rows]
    for t in method.trains:
        what = ", ".join(str(p) for p in t.paths)
        panels.append(
            Panel(
                t.name,
                what,
                what,
                "",
                "",
                "",
                (Box("learned", what, "trained copy"),),
                "",
                "=",
                "",
                "",
                "the copy in its place",
            )
        )
    return panels


def _panel(method: Method, row: Row) -> Panel:
    typing = analyse(method).of(row)[0]
    row = typing.acting
    shapes = {t.name: _shape(t) for t in typing.tensors if t.part != "gate"}
    boxes = _Way(row, shapes).boxes()
    source = "" if row.insert is None or typing.insert is None else write(typing.insert)
    if "z" not in row.reads:
        source = next(
            (i for i in ("q", "x", "W") for s in row.form for n in S.walk(s) if isinstance(n, S.Name) and n.id == i), ""
        )
    gate = row.columns.gate.split("(")[0] if row.gate is not None else ""
    written = lines(row, typing.insert)
    where = tuple(f"{n} = {f}" for n, f in written[:-1] if n not in ("z", "Δ", "scores"))
    meets = composition(row)
    delta = dict(written).get("Δ", "")
    site = typing.site
    enters = "" if site.x is None else site.parallel if source == site.parallel else "x"
    return Panel(row.name, place(row, method), typing.place, site.inside, enters or "", source, boxes, gate, meets.sign, delta, write(meets.change),
                 f"h ← {write(meets.new)}", where)  # fmt: skip


def _shape(t) -> str:  # type: ignore[no-untyped-def]
    sizes = " × ".join(str(s) for s in t.type.sizes) or "one number"
    return ", per ".join([sizes, *sorted(t.owner.axes), *([t.owner.each] if t.owner.shared else [])])


class _Way:
    """Follows the input through a form, and on to what is added to h: what meets it on the way, in order."""

    def __init__(self, row: Row, shapes: dict[str, str]):
        self.lets: dict[str, Any] = {
            s.names[0]: s.value for s in (*row.form, *row.compose) if isinstance(s, S.Let) and s.names[0] != "out"
        }
        carried = (s for s in row.form if isinstance(s, S.Later) and s.names)
        self.lets |= {s.names[0]: S.Then(s.names[0], s.values[0], s.values[1]) for s in carried}
        self.row = row
        self.shapes = shapes
        self.depth = 0

    def boxes(self) -> tuple[Box, ...]:
        """The way to delta, and on to what meets h, before the gate."""
        if "delta" not in self.lets:
            return ()
        meets = composition(self.row)
        if not reads_h(meets.brought, self.row):
            return tuple(self.way(meets.brought))
        # h comes in once more, beside delta: the way is delta's, and what becomes of both is one step.
        return (*self.way(self.lets["delta"]), Box(self.kind(meets.brought), write(meets.brought)))

    def reads(self, e: S.Expr, seen: frozenset[str] = frozenset()) -> bool:
        """Whether what flows through the picture is in an expression: the input, or delta, which may be made of tensors alone."""
        for n in S.walk(e):
            if isinstance(n, S.Name):
                if n.id == "delta":
                    return True
                if n.id in self.lets and n.id not in seen:
                    if self.reads(self.lets[n.id], seen | {n.id}):
                        return True
                elif n.id in _INPUT:
                    return True
        return False

    def learned(self, e: S.Expr) -> bool:
        names = {n.id for n in S.walk(e) if isinstance(n, S.Name)} - {e.name if isinstance(e, S.Then) else ""}
        return any(n in self.shapes or (n in self.lets and n != "delta" and self.learned(self.lets[n])) for n in names)

    def way(self, e: S.Expr) -> list[Box]:
        self.depth += 1
        if self.depth > 200:
            return [Box("plain", write(e))]
        match e:
            case S.Name(id) if id in self.lets:
                return self.way(self.lets[id])
            case S.Name(id) if id in _INPUT:
                return []
            case S.Attr(value, "T") if self.reads(value):
                return [*self.way(value), Box("function", "ᵀ")]
            case S.Apply(function, args) if args and self.reads(args[0].value):
                name = S.dotted(function) or write(function)
                rest = [write(a.value) for a in args[1:]]
                if name == "drop" and rest in (["0.0"], ["0"]):
                    return self.way(args[0].value)
                return [*self.way(args[0].value), Box("frozen" if "." in name else "function", name, ", ".join(rest))]
            case S.Binary(op, left, right):
                return self.binary(op, left, right)
        return [self.block(e)] if not self.reads(e) else [Box(self.kind(e), write(e))]

    def kind(self, e: S.Expr) -> Kind:
        return "learned" if self.learned(e) else "plain"

    def aside(self, e: S.Expr) -> bool:
        """Whether this reads the input by lines of its own alone, which are written beside the picture; delta is the way itself."""
        return not any(isinstance(n, S.Name) and (n.id in _INPUT or n.id == "delta") for n in S.walk(e))

    def binary(self, op: str, left: S.Expr, right: S.Expr) -> list[Box]:
        a, b = self.reads(left), self.reads(right)
        if a and b and op == "@" and self.learned(right):
            return [*self.way(left), self.block(right)]
        if not a and not b:
            return [self.block(S.Binary(op, left, right))]  # type: ignore[arg-type]
        if a and b and op in ("*", "+") and self.aside(left):
            moving, still = right, left
        elif a and b and self.aside(right):
            moving, still = left, right
        elif a and b:
            return [Box(self.kind(S.Binary(op, left, right)), write(S.Binary(op, left, right)))]  # type: ignore[arg-type]
        else:
            moving, still = (left, right) if a else (right, left)
        before = self.way(moving)
        if op == "@":
            return [*before, self.block(still)]
        if op in "+-" and before and before[-1].kind == "learned" and not self.reads(still):
            last = before[-1]
            sign = " + " if op == "+" else " − "
            return [*before[:-1], Box("learned", last.label + sign + write(still), last.note)]
        return [
            *before,
            Box(self.kind(still), f"{ {'*': '·', '+': '+', '-': '−', '/': '/'}.get(op, op) } {write(still)}"),
        ]

    def block(self, e: S.Expr) -> Box:
        """What does not read the input: a tensor with its sizes, or an expression over tensors."""
        turned = e.value if isinstance(e, S.Attr) and e.name == "T" else e
        if isinstance(turned, S.Name) and turned.id in self.shapes:
            return Box("learned", write(e), self.shapes[turned.id])
        if isinstance(turned, S.Name) and turned.id in self.lets:
            return Box(self.kind(turned), write(e))
        if self.learned(e):
            return Box("learned", write(e))
        frozen = any(isinstance(n, S.Apply) and "." in (S.dotted(n.function) or "") for n in S.walk(e))
        return Box("frozen" if frozen else "plain", write(e))
