"""The type checker of a row at a site, with sizes as symbols (before any model) or as a model's numbers (in a plan)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

from .arguments import parameters
from .carried import Carried
from .declared import Declared, TensorTyping
from ..once import once
from ..report.diagnostics import Diagnostic, PeltError, instead, nearest, put
from .draws import DRAWN
from .infer import Inference, bounded, reading
from .indexing import INSERTED, POSITIONS
from .on_basis import on_basis, reads_parallel
from .inputs import InputTyping, changes_length, disagreement, input_typing, placing_problem
from ..ir import Method, Row
from .layers import layered
from .lending import lent
from .owners import OWNERS
from ..syntax.printer import to_text
from ..sites import AXES, COUNTED, RESERVED, SIZES, SiteSignature, TensorType, united_axes
from ..sizes import Size
from ..report.texts import before
from ..syntax.nodes import (
    Binary,
    Axis,
    Compare,
    Expr,
    Input,
    Later,
    Let,
    Name,
    Param,
    Require,
    Statement,
    Tensor,
)  # fmt: skip
from .selections import chosen_tokens
from .trained import Trained
from .typed import SYMBOLS, Binding, Part, Sizes, TypedRow
from .values import OTHER, POISON, IndexType, NumberType, Poison, Several, Value, WordType, join, product


INSERTIONS = ("parallel", "sequential")  # the words for what z is
#: What a model does not have that lacks a size.
_LACKS = {"labels": "no head", "vocab": "no vocabulary"}


def lacking(sizes: Mapping[str, int]) -> dict[str, str]:
    """The sizes that a model does not have, each with the reason."""
    return {
        n: f"is no size of this model, which has {_LACKS.get(n, 'none such')}" for n in SIZES if sizes.get(n, 0) < 1
    }


class RowChecker(Declared, Trained, Carried):
    """Checks one row at one kind of site."""

    def __init__(self, row: Row, site: SiteSignature, params: Sequence[Param], sizes: Sizes, rows: Sequence[Row] = ()):
        self.site, self.sizes, self.rows = site, sizes, rows
        self.params = {p.name: p for p in params}
        self.bindings: list[Binding] = []
        bound = {n: sizes.of(n) for n in SIZES}
        where = {p.name: "parameter" for p in params} | {"d_in": "last size of z", "d_out": "last size of h"}
        problems: list[Diagnostic] = []
        self.row = _at(row, site, params, problems)
        known = parameters(params, sizes.values is not None, sizes.numbers, problems)
        values = {p.name: to_text(p.default) for p in params if p.default is not None and p.type in ("int", "float")}
        self.inf = Inference(known, bound, where=where, problems=problems, values=values)
        for number, value in sizes.numbers.items():
            known[number] = Value(NumberType(Size.of(value), value), reads=frozenset({number}))
        if site.outside_the_layers or (sizes.values is not None and sizes.layer is None):
            outside = f"has a value for each layer, and `{site.name}` is outside the layers"
            self.inf.hidden |= {n: outside for n in ("layer", *layered(params))}
            self.inf.remedies |= {
                n: "give one number, in a row of its own for this site" for n in ("layer", *layered(params))
            }
            for n in layered(params):
                known.pop(n, None)
        for n, why in lacking(sizes.values).items() if sizes.values is not None else ():
            self._unknown(n, why, "leave it out, or write a number")
        self.alike: tuple[str, Size] | None = (
            None  # two sizes that are required to be equal, which the check did not know
        )
        self.inf.lent = partial(lent, self)
        self.varies = False  # whether what was read last depends on the layer
        self.h = site.h
        self.inf.axes |= {axis: sizes.of(COUNTED[axis]) for axis in site.own_axes}
        self.inf.bases = {n: (sizes.of(a), sizes.of(b)) for n, (a, b) in site.bases}

    def _unknown(self, size: str, why: str, remedy: str) -> None:
        """A size that there is not here."""
        self.inf.sizes.pop(size, None)
        self.inf.hidden[size], self.inf.remedies[size] = why, remedy

    def _bound(self, t: TensorType) -> TensorType:
        return TensorType(t.axes, tuple(self.sizes.bound(s) for s in t.sizes))

    def check(self) -> TypedRow:
        """The row, typed; read once more where it requires sizes to be equal that were not known to be."""
        typed = self._read_through()
        if self.alike is None:
            return typed
        sizes = replace(self.sizes, equal=(*self.sizes.equal, self.alike))
        RowChecker.__init__(self, self.row, self.site, tuple(self.params.values()), sizes, self.rows)
        return self.check()

    def _read_through(self) -> TypedRow:
        inf, site = self.inf, self.site
        tokens = chosen_tokens(self.row, site, inf)
        h_type = self.h = self._bound(site.h)
        h = Value(h_type, reads=frozenset({"h"})) if site.is_weight else reading(h_type, "h")
        inf.names |= self._scope()
        self._sizes_of_the_site(h_type)
        inf.nodes = {}
        self._bind_z(h)
        inf.hidden["h"] = "is visible to compositions, not to forms and gates"
        self._body(self.row.form, "form")
        gate = None
        if self.row.gate is not None:
            before = dict(inf.names)
            self._body(self.row.gate, "gate")
            gate = inf.names.get("g", Value(POISON))
            inf.names = before
        del inf.hidden["h"]
        inf.names["h"] = h
        if not self.row.form:
            inf.hidden["delta"] = "is bound by a form, and this row has none"
            inf.remedies["delta"] = "add a form, as in `form { delta = tanh(z) }`"
        self._body(self.row.compose, "compose")
        out = self._result(inf.names.get("out", Value(POISON)), h, gate)
        typed = TypedRow(
            self.row, site, tuple(self.params.values()), self.sizes, tuple(self.bindings), dict(inf.names), out, dict(inf.sizes),
            dict(inf.bases), dict(inf.axes), tokens=tokens, rows=tuple(self.rows),
        )  # fmt: skip
        problem = placing_problem(self.row, site) or disagreement(typed.inputs)
        if problem is not None:
            inf.problems.append(problem)
        return typed

    def _of_the_text(self, t: TensorType) -> dict[str, Value]:
        """The ids of the tokens and their numbers in the text, by which tensors can be read."""

        found = {POSITIONS: self._numbers("positions", POSITIONS)}
        if self.sizes.values is not None and self.sizes.values.get("vocab", 0) < 1:
            self.inf.hidden["ids"], self.inf.remedies["ids"] = (
                "are those of words, and this model reads none",
                "leave it out",
            )
            return found
        return {**found, "ids": self._numbers("vocab", "ids")}

    def _numbers(self, below: str, name: str) -> Value:
        """A whole number for each token."""
        kind = IndexType(frozenset({"batch", "token"}), (), self.sizes.of(below))
        return Value(kind, OTHER, self.row.span, reads=frozenset({name}))

    # ------------------------------------------------------------ parts

    def _bind(self, name: str, part: Part, value: Value, e: Expr | None = None,
              declared: TensorTyping | InputTyping | None = None, result: int | None = None) -> None:  # fmt: skip
        self.inf.names[name] = value
        self.bindings.append(Binding(name, part, value, self.inf.nodes or {}, e, declared=declared, result=result))

    def _scope(self) -> dict[str, Value]:
        """What a row may read at its site, but for ``z`` and ``h``."""
        site = self.site
        scope: dict[str, Value] = {}
        if site.x is not None:
            scope["x"] = reading(self._bound(site.x), "x")
        if {"batch", "token"} <= site.h.axes:
            scope[INSERTED] = self._numbers("inserted", INSERTED)
        for name, t in site.scope:
            if name == "ids":
                scope |= self._of_the_text(t)
                continue
            of_pass = t.axes and not site.is_weight
            scope[name] = reading(self._bound(t), name) if of_pass else Value(self._bound(t), reads=frozenset({name}))
            if name == "log_mass":
                scope[name] = bounded(replace(scope[name], degree=OTHER), self.row.span)
        return scope | {n: Value(NumberType(), reads=frozenset({n})) for n in site.numbers}

    def _sizes_of_the_site(self, h: TensorType) -> None:
        inf, site = self.inf, self.site
        inf.sizes["d_out"] = h.sizes[-1]
        x = h if site.is_weight else self._bound(site.x) if site.x is not None else None
        if x is not None:
            inf.sizes["d_x"] = x.sizes[0]
        else:
            self._unknown("d_x", f"is the size of `x`, and there is none at `{site.name}`", "write `d_out`")

    def _bind_z(self, h: Value) -> None:
        """What the form reads, and its size."""
        inf, e = self.inf, _inserted(self.row, self.site)
        z = self._insertion(e, h)
        if z is not None:
            self._bind("z", "insert", z, e)
            if isinstance(z.type, TensorType) and z.type.sizes:
                inf.sizes["d_in"] = z.type.sizes[0 if self.site.is_weight else -1]
            elif isinstance(z.type, Poison):
                inf.names["d_in"] = Value(POISON)  # the mistake is said already
        else:
            inf.hidden["z"] = "is what `insert` says, and this row has no `insert`"
            inf.remedies["z"] = "add `insert parallel` or `insert sequential`"
            inf.sizes["d_in"] = inf.sizes["d_out"]

    def _insertion(self, e: Expr | None, h: Value) -> Value | None:
        written, site = self.row.insert, self.site
        if site.is_weight and written is not None:
            clause = before(written.span, "insert")
            self.inf.fail("E0305", "at a weight z is the weight itself: `insert` does not apply", written.span,
                          help="leave `insert` out", edits=put("", clause) if clause else ())  # fmt: skip
        if e is None:
            return None
        if e == Name("parallel"):
            self.inf.fail("E0306", f"nothing runs parallel to `{site.name}`: it is an input", e.span,
                          help="write `insert sequential`", edits=put("sequential", e.span))  # fmt: skip
            return Value(POISON)
        if isinstance(e, Name) and e.id not in self.inf.names and e.id != "h" and nearest(e.id, INSERTIONS):
            return self.inf.fail("E0301", f"there is no insertion `{e.id}`", e.span,
                                 **instead(e.id, INSERTIONS, e.span))  # fmt: skip
        self.inf.names["h"] = h
        z = self.inf.infer(e)
        del self.inf.names["h"]
        if not isinstance(z.type, (TensorType, Poison)):
            what = "a number" if isinstance(z.type, NumberType) else z.type
            return self.inf.fail("E0307", f"`insert` takes what the model computes, and `{to_text(e)}` is {what}", e.span,
                                 help="write `insert parallel` or `insert sequential`", edits=put("sequential", e.span))  # fmt: skip
        return z

    def _body(self, body: Sequence[Statement], part: Part) -> None:
        for s in body:
            self.inf.nodes = {}
            if isinstance(s, Tensor):
                t = self._tensor(s, "gate" if part == "gate" else "")
                self._bind(s.name, part, t.value if t is not None else Value(POISON), declared=t)
            elif isinstance(s, Let):
                for i, (name, value) in enumerate(zip(s.names, self._let(s), strict=True)):
                    self._bind(name, part, value, s.value, result=i if len(s.names) > 1 else None)
            elif isinstance(s, Axis):
                self._axis(s)
                axis = Value(WordType("axis", s.name))
                self.bindings.append(Binding(s.name, part, axis, self.inf.nodes, axis=s.size))
            elif isinstance(s, Require):
                require(s, self.inf)
                self._equal(s.condition)
            elif isinstance(s, Input):
                found = self._input(s)
                self._bind(s.name, part, found.value if found is not None else Value(POISON), declared=found)
            elif isinstance(s, Later) and s.word == "carry":
                self.carry(s, part)
            elif isinstance(s, Later):
                self.later(s, part)

    def _equal(self, e: Expr) -> None:
        """Notes that a size of the site is required to be another one, where sizes are symbols."""
        if not isinstance(e, Compare) or e.op != "==" or self.sizes.values is not None or self.alike is not None:
            return
        sizes = [v.type.size for v in map(self.inf.infer, (e.left, e.right)) if isinstance(v.type, NumberType)]
        known = [s for s in sizes if s is not None]
        if len(known) < 2:
            return
        a, b = known
        for one, other in ((a, b), (b, a)) if a != Size.of("d_model") else ((b, a), (a, b)):
            name = next(iter(one.symbols), "")
            if name in dict(self.sizes.equal):
                continue  # it is an argument of that name, which is a mistake of its own
            if name in (*SIZES, "d_in", "d_out") and one == Size.of(name) and name not in other.symbols:
                self.alike = name, other
                return

    def _axis(self, s: Axis) -> None:
        size = self._size(s.size, "an axis")
        if s.name in (*OWNERS, "true", "false", "training", "progress", *AXES, *DRAWN):
            self.inf.fail(
                "E0224", f"`{s.name}` has a meaning of its own here", s.span, help="give the axis another name"
            )
        elif s.name in self.site.own_axes:
            self.inf.fail(
                "E0224",
                f"`{s.name}` is an axis of `{self.site.name}` itself",
                s.span,
                help="give the axis another name, or leave the line out",
            )
        elif size is not None and self.inf.axes.setdefault(s.name, size) != size:
            self.inf.fail("E0348", f"the axis `{s.name}` is declared twice in this row, with different sizes", s.span,
                          help="rename one of them")  # fmt: skip

    def _input(self, s: Input) -> InputTyping | None:
        found = input_typing(s, self.inf, self._size)
        if s.name in self.inf.names and all(
            b.name != s.name for b in self.bindings if isinstance(b.declared, InputTyping)
        ):
            self.inf.fail(
                "E0369", f"`{s.name}` has a value already and cannot be an input", s.span, help="choose another name"
            )
            return None
        return found

    def _let(self, s: Let) -> list[Value]:
        """The value of each name."""
        n = len(s.names)
        self.inf.apart = s.value if n > 1 else None
        value = self.inf.infer(s.value)
        self.inf.apart = None
        for name in s.names:
            if name in self.inf.names and name not in ("delta", "out", "g") and name in RESERVED:
                return [self.inf.fail("E0224", f"`{name}` has a meaning of its own here", s.span)] * n
        if n == 1 or isinstance(value.type, Poison):
            return [value] * n
        parts = value.type.parts if isinstance(value.type, Several) else ()
        if len(parts) != n or len(set(s.names)) < n:
            given = f"gives {value.type}" if parts else f"is {value.type}"
            return [self.inf.fail("E0391", f"there are {n} names on the left, and `{to_text(s.value)}` {given}", s.span,
                                  help="give as many different names as there are values: `U, S, V = svd(W)`, `Q, R = qr(W)`")] * n  # fmt: skip
        return [value.typed(t) for t in parts]

    def _change(self, out: Value, h: Value) -> Value:
        """Facts of ``out - h``, which a gate multiplies; where ``out = h + E`` they are those of E."""
        last = self.row.compose[-1] if self.row.compose else None
        if isinstance(last, Let) and last.names == ("out",):
            added = _beside(last.value, Name("h"))
            if added:
                return join([self.inf.infer(e) for e in added], out.type)
        return join((out, h), out.type)

    def _result(self, out: Value, h: Value, gate: Value | None) -> Value:
        inf, row = self.inf, self.row
        span = row.compose[-1].span if row.compose else row.span
        if gate is not None and not isinstance(gate.type, Poison):
            if changes_length(row):
                return inf.fail("E0351", "a composition that changes the length cannot be gated", row.span)
            if not isinstance(gate.type, (TensorType, NumberType)):
                bound = [s.span for s in row.gate or () if isinstance(s, Let) and "g" in s.names]
                return inf.fail(
                    "E0352", f"a gate is a tensor or a number, not {gate.type}", bound[-1] if bound else row.span
                )
            out = join((h, product(gate, self._change(out, h), out.type, span)), out.type)
            if isinstance(gate.type, TensorType) and isinstance(out.type, TensorType):
                out = out.typed(TensorType(united_axes(out.type.axes, gate.type.axes), out.type.sizes))
        if isinstance(out.type, Poison) or not isinstance(h.type, TensorType):
            return out
        if out.at_start is not None:
            return inf.fail("E0375", "this is computed once, where a method is attached, and the new `h` reads it at every pass", out.at_start,
                            help="store what is needed of it in a tensor, as in `frozen P: [d_in, r] = U[:, : r]`, and read that")  # fmt: skip
        if not isinstance(out.type, TensorType):
            return inf.fail("E0350", f"`out` replaces `h`, which is {h.type}, and this is {out.type}", span)
        declared = sorted(out.type.axes & set(inf.axes) - h.type.axes)
        if declared:
            return inf.fail("E0353", f"`out` still carries the axis `{declared[0]}`", span,
                            help=f"reduce it, for example with `sum(…, {declared[0]})`")  # fmt: skip
        if not out.type.axes <= h.type.axes or out.type.sizes != h.type.sizes:
            return inf.fail("E0350", f"`out` has the type {out.type}, and `h` at `{self.site.name}` is {h.type}", span,
                            where=inf.bindings(*out.type.sizes, *h.type.sizes))  # fmt: skip
        return out


def _at(row: Row, site: SiteSignature, params: Sequence[Param], problems: list[Diagnostic]) -> Row:
    """The row as it is read at a site: at a map's weight one that reads what enters the map is read on the basis of that."""
    if not (site.is_weight and len(site.h.sizes) == 2 and (site.has_weight or site.own_axes) and reads_parallel(row)):
        return row
    found = on_basis(row, params)
    if isinstance(found, Row):
        return found
    problems.append(found)
    return replace(row, insert=None, form=(), compose=(Let(("out",), Name("h")),), gate=None)


def _inserted(row: Row, site: SiteSignature) -> Expr | None:
    """What z is, as an expression: at a weight the weight itself; the words for insertions are names of the site's scope."""
    e = row.insert
    if site.is_weight:
        return Name("h")
    if isinstance(e, Name) and e.id in INSERTIONS:
        return Name({"sequential": "h", "parallel": site.parallel or "parallel"}[e.id], span=e.span)
    return e


def check_row(
    row: Row, site: SiteSignature, params: Sequence[Param], sizes: Sizes = SYMBOLS, stack: str | None = None, rows: Sequence[Row] = (),
) -> TypedRow:  # fmt: skip
    """The row at a site, typed; raises `PeltError` with every mistake. `typed_row` keeps what it has typed. ``rows`` are those whose
    tensors it may read."""
    checker = RowChecker(row, site, params, sizes, rows)
    typed = checker.check()
    if checker.inf.problems:
        raise PeltError(distinct(checker.inf.problems))
    return replace(typed, stack=stack) if stack is not None else typed


@once
def in_training(t: TypedRow) -> TypedRow:
    """The row with `training` true; itself where it does not read the word."""
    if "training" not in t.row.reads:
        return t
    checker = RowChecker(t.row, t.site, t.params, t.numbers, t.rows)
    checker.inf.names["training"] = Value(NumberType(None, True))
    return replace(checker.check(), stack=t.stack)


@once
def typed_row(
    method: Method, row: Row, site: SiteSignature, sizes: Sizes = SYMBOLS, stack: str | None = None
) -> TypedRow:
    """A row of a method at a site, typed once for the same numbers. Raises `PeltError` with every mistake."""
    if stack is not None:
        return replace(typed_row(method, row, site, sizes), stack=stack)
    return check_row(row, site, method.params, sizes, rows=method.rows)


def distinct(problems: Sequence[Diagnostic]) -> list[Diagnostic]:
    """A mistake seen at two sites is one mistake."""
    seen: dict[tuple, Diagnostic] = {}
    for d in problems:
        # Where no place tells two mistakes apart, their words do.
        seen.setdefault((d.code, d.span.file or d.message, d.span.start, d.span.end), d)
    return list(seen.values())


def _beside(e: Expr, name: Name) -> list[Expr] | None:
    """What is added to a name, or taken from it; None where the expression is no such sum."""
    if e == name:
        return []
    if not isinstance(e, Binary) or e.op not in ("+", "-"):
        return None
    for side, other in ((e.left, e.right), (e.right, e.left)):
        if (found := _beside(side, name)) is not None and (side is e.left or e.op == "+"):
            return [*found, other]
    return None


def require(s: Require, inf: Inference) -> None:
    """A requirement whose numbers are known must hold; one that is no condition is an error."""
    v = inf.infer(s.condition)
    if isinstance(v.type, NumberType) and v.type.value is not None and not v.type.value:
        inf.fail("E0360", s.message or f"the requirement `{to_text(s.condition)}` does not hold", s.span)
    elif not isinstance(v.type, (NumberType, Poison)):
        inf.fail("E0361", f"a requirement is a condition, not {v.type}", s.span)
