"""Reads rows into normal form: lets are inlined, tensors noted, one row after another at a site.

Names get their values where they are bound, line by line, so a name that is bound twice means at each place what it
meant there. Non-goal: which rows meet at a site (`meaning`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

from ..syntax import nodes as S
from ..types.algebra import ONE, Sizes, Term, add, atom, atoms, call, contract, number, regrouped, scaled, times, turn
from ..types.declared import TensorTyping
from ..types.draws import PROGRESS, draw_of
from ..types.inputs import InputTyping
from ..types.owners import Owner
from ..types.initialisers import INITIALISERS, Initialiser
from ..types.typed import Part, TypedRow
from ..types.primitives import PRIMITIVES
from ..syntax.printer import to_text
from ..sites import TensorType
from ..sizes import Size
from ..types.softmax import shares_softmax
from ..types.values import IndexType, NumberType, Value, WordType


#: What is carried along depth, as a call: under which name the layer before is read, the first value and the next one.
CARRY = "carry"
#: What the name begins with under which a term reads what the layer before had.
CARRIED = "carried "


@dataclass(frozen=True, slots=True)
class Start:
    """A distribution's name and its arguments, each a number or, where that is not known, its text."""

    name: str
    args: tuple[Size | str, ...] = ()

    def __str__(self) -> str:
        return f"{self.name}({', '.join(written(a) if isinstance(a, Size) else a for a in self.args)})"

    @property
    def known(self) -> Initialiser | None:
        """Its entry; None for a start that is an argument."""
        return INITIALISERS.get(self.name)

    @property
    def drawn(self) -> bool:
        return self.known is None or self.known.drawn

    @property
    def value(self) -> Size | None:
        """The one number that all entries are, where it is known."""
        if self.known is None or not self.known.one_number:
            return None
        if self.known.level is not None:
            return Size.of(float(self.known.level))
        at = self.args[0]
        return at if isinstance(at, Size) and at.number is not None else None


@dataclass(frozen=True, slots=True)
class Learned:
    """A tensor as far as it matters: what it is called does not. ``start`` is None where it is exact, or an argument without
    a value; the owner's axes name a declared one with its size."""

    shape: Sizes
    owner: Owner
    frozen: bool
    lr: Size
    start: Start | None
    exact: Term | None = None

    @property
    def drawn(self) -> bool:
        return self.exact is None and (self.start is None or self.start.drawn)

    @property
    def whole(self) -> bool:
        """Whether it holds whole numbers that are drawn."""
        return self.start is not None and self.start.known is not None and self.start.known.whole

    @property
    def start_value(self) -> Size | None:
        """The one number that all entries start as, where it is known."""
        return self.start.value if self.exact is None and self.start is not None else None


def written(size: Size) -> str:
    """A polynomial for people: a number that is no small fraction as a decimal."""
    n = size.number
    if n is None or n.denominator == 1:
        return str(size)
    try:
        return str(n) if n.denominator < 100 else repr(float(n))
    except OverflowError:  # larger than any float
        return str(n)


class SiteState:
    """A site while the rows that edit it are read. ``first``: no edit of the site comes before, so ``h`` is the base's.

    With ``evaluation`` what is read is what the rows are outside training.
    """

    def __init__(self, site: str, tensors: dict[Any, Learned], first: bool = True, evaluation: bool = False):
        self.site, self.tensors, self.first, self.evaluation = site, tensors, first, evaluation
        self.declared: list[Any] = []  # keys of the tensors of this place
        self.inputs: dict[str, str] = {}
        self.drops: dict[Any, int] = {}  # dropouts of the same value: each draws for itself
        self.weight: Term | None = None  # of a projection, as its weight edits leave it
        self.edited = False  # whether a row here has edited the weight
        self.training: list[tuple[str, Term]] = []  # penalties, and what tensors become after a step
        self.carried = 0  # how many values have been carried here
        self.mass: Term | None = None  # ``log_mass``, as the prefixes before have left it
        self.h: Term | None = None
        self.symbols: dict[str, str] = {}
        self.axes: dict[str, str] = {}  # what declared axes are called, by what stands for them in terms
        self.lengths: dict[str, Size] = {}  # and their sizes
        self.ranges: dict[str, Sizes] = {}  # the ends of ranges and the sizes of draws, by their text

    def read(self, typing: TypedRow) -> None:
        site = typing.site
        if site.has_weight:
            W = scope_sizes(typing, "W", dict(site.scope)["W"])
            self.symbols = {str(W[1]): "d_out", str(W[0]): "d_in"}
            if self.weight is None:
                self.weight = atom("read", W, "W")
            if site.is_weight:
                self.weight, self.edited = Reader(self, typing, self.weight).out(), True
                return
        if self.h is None:
            plain = site.has_weight and not site.is_weight and (self.first or self.edited)
            self.h = self.affine() if plain else atom("read", scope_sizes(typing, "h", site.h), "h")
        self.h = Reader(self, typing, self.h).out()

    def affine(self) -> Term:
        """``x @ W + bias``: what a projection computes, its weight perhaps edited."""
        assert self.weight is not None
        d_in, d_out = self.weight.sizes
        return add(contract(atom("read", (d_in,), "x"), self.weight), atom("read", (d_out,), "bias"))

    @property
    def out(self) -> Term:
        return self.h if self.h is not None else self.affine()

    def leaves(self, later: Sequence[Term]) -> Term:
        """The new ``h``, with what else edits of their own that come ``later`` find changed here: the weight, ``log_mass``."""
        read = set().union(*(reads(t) for t in later))
        changed = {"W": self.weight if self.edited else None, "log_mass": self.mass}
        left = [t for name, t in changed.items() if name in read and t is not None]
        return call(self.out.sizes, "leaves", self.out, *left) if left else self.out


class Reader:
    """Reads one row at one site, whose ``h`` the rows before have left as it is given; ``line`` is the one that is read."""

    def __init__(self, state: SiteState, typing: TypedRow, h: Term):
        self.state, self.row, self.typing, self.h = state, typing.row, typing, h
        bound = {b.name for b in typing.lines("form", "compose")}
        #: What stands for a word, such as an activation: an argument, and lets.
        self.words = {n for n, v in typing.values.items() if isinstance(v.type, WordType)} - bound
        self.known: dict[str, Term] = {}
        self.numbers: dict[str, Size] = {}  # lets that are plain numbers
        self.plain: dict[str, S.Expr] = {}  # lets that are plain numbers or words, without lets
        self.axes: dict[str, str] = {}  # the declared ones, by what tells them apart
        self.declared: dict[str, str] = {}  # and the other way round

    def out(self) -> Term:
        """The new ``h``."""
        site, row = self.typing.site, self.row
        for name, type_ in site.types.items():
            if name != "h":
                self.known[name] = atom("read", scope_sizes(self.typing, name, type_), name)
        if site.is_weight:
            self.known["W"] = self.h
        elif site.has_weight:
            assert self.state.weight is not None
            self.known["W"] = self.state.weight
        if self.state.mass is not None:
            self.known["log_mass"] = self.state.mass
        self.known["h"] = self.h  # which the checker lets only the insertion and the composition read
        self._lines("insert", "form", "penalty", "after")
        gate = None
        if row.gate is not None:
            before = dict(self.known), set(self.words), dict(self.numbers), dict(self.plain)
            self._lines("gate")
            gate = self._named("g")
            self.known, self.words, self.numbers, self.plain = before
        self._lines("compose")
        out = self._named("out")
        if gate is not None:
            out = add(self.h, times(gate, add(out, scaled(self.h, Size.of(-1)))))
        if site.has_heads and shares_softmax(row):
            scores = self._named("scores")
            own = call(scores.sizes[:-1], "logsumexp", scores)
            self.state.mass = call((), "log(exp + exp)", self.known["log_mass"], own)
        return Term(out.products, scope_sizes(self.typing, "h", site.h))

    def _lines(self, *parts: Part) -> None:
        for line in self.typing.lines(*parts):
            self.line, found, e = line, line.declared, line.expression
            if isinstance(found, TensorTyping):
                self._bind(found.name, self._tensor(found))
            elif isinstance(found, InputTyping):
                sizes = f"[{', '.join(map(written, found.sizes))}]"
                self.state.inputs[found.name] = f"index({written(found.count)})" if found.count is not None else sizes
                self._bind(found.name)
            elif line.axis is not None:
                self._declare(line.name, self._plain(line.axis, self.value(line.axis).type))
            elif line.part == "penalty":
                assert e is not None
                self.state.training.append(("penalty", self.term(e, line.value)))
            elif e is not None and line.part == "after" and line.name in {t.name for t in self.typing.tensors}:
                key = self.known[line.name]
                self.state.training.append(("after step", call((), "becomes", key, self.term(e, line.value))))
            elif e is not None:
                self._let(line.name, e, line.value, line.result)

    def _let(self, name: str, e: S.Expr, value: Value, result: int | None) -> None:
        if isinstance(e, S.Then):
            self._bind(name, self._then(e, value))
        elif result is not None and isinstance(value.type, TensorType):
            whole = self.term(e, value)
            self._bind(name, call(value.type.sizes, f"result {result + 1}", Term(whole.products, ())))
        elif self._is_plain(value) or isinstance(value.type, WordType):
            shown = self._without_lets(e)
            size = self._plain(e, value.type) if isinstance(value.type, NumberType) else None
            self._bind(name)
            self.plain[name] = shown
            if size is not None:
                self.numbers[name] = size
            else:
                self.words.add(name)
        else:
            self._bind(name, self.term(e, value))

    def _then(self, e: S.Then, value: Value) -> Term:
        """What is carried: the first value and the next one, which reads that of the layer before by a name of its own."""
        self.state.carried += 1
        before, first = f"{CARRIED}{self.state.carried}", self.term(e.first)
        self.known[e.name] = atom("read", first.sizes, before)
        following = self.term(e.next)
        if following.products == first.products:
            return first
        return call(first.sizes, CARRY, before, first, following)

    def _named(self, name: str) -> Term:
        """What a name stands for now."""
        return self.known[name] if name in self.known else number(self.numbers[name])

    def _bind(self, name: str, term: Term | None = None) -> None:
        """From here on the name is this, whatever it was."""
        for names in (self.plain, self.numbers, self.known):
            names.pop(name, None)
        self.words.discard(name)
        if term is not None:
            self.known[name] = term

    def _tensor(self, t: TensorTyping) -> Term:
        site = self.state.site + ".weight" * self.typing.site.is_weight  # two sites beside each other
        owner = replace(t.owner, axes=frozenset(map(self._axis, t.owner.axes)))
        key = "/".join(
            [t.lender or self.row.name, t.home, *filter(None, [owner.named(kind=site, layer="", site=site)])]
        )
        exact = self.term(t.exact) if t.exact is not None else None
        start = None if t.start is None else Start(t.start.name, tuple(self._number_or_text(a) for a in t.start.args))
        lr = ONE if t.declaration.lr is None else self._plain(t.declaration.lr, self.value(t.declaration.lr).type)
        if not t.lender or key not in self.state.tensors:  # the row that declares it knows how it starts
            self.state.tensors[key] = Learned(t.type.sizes, owner, t.frozen, lr, start, exact)
        self.state.declared.append(key)
        return atom("tensor", t.type.sizes, key)

    # ------------------------------------------------------------ expressions

    def value(self, e: S.Expr) -> Value:
        """What is known of an expression of the line."""
        return self.line.of(e)

    def term(self, e: S.Expr, value: Value | None = None) -> Term:
        """The normal form of an expression. Each is asked for once: a dropout draws anew wherever it is written."""
        value = value or self.value(e)
        if isinstance(value.type, NumberType) and self._is_plain(value):
            return number(self._plain(e, value.type))
        sizes = value.type.sizes if isinstance(value.type, (TensorType, IndexType)) else ()
        match e:
            case S.Name(id) if id in self.known:
                return self.known[id]
            case S.Negative(inner):
                return scaled(self.term(inner), Size.of(-1))
            case S.Binary("+", left, right):
                return add(self.term(left), self.term(right))
            case S.Binary("-", left, right):
                return add(self.term(left), scaled(self.term(right), Size.of(-1)))
            case S.Binary("*", left, right):
                return times(self.term(left), self.term(right))
            case S.Binary("@", left, right):
                return contract(self.term(left), self.term(right))
            case S.Binary("/", left, right):
                return self._quotient(left, right)
            case S.Binary(op, left, right) | S.Compare(op, left, right):
                return call(sizes, op, self.term(left), self.term(right))
            case S.Attr(S.Name(id), name) if f"{id}.{name}" in self.known:
                return self.known[f"{id}.{name}"]
            case S.Attr(inner, "T"):
                return turn(self.term(inner))
            case S.Apply(function, args):
                return self._call(function, args, sizes)
            case S.Choose(then, test, other):
                decided = self.value(test)
                if isinstance(decided.type, NumberType) and decided.type.value is not None and self._is_plain(decided):
                    return self.term(then if decided.type.value else other)
                asked, one, another = self._argument(test), self.term(then), self.term(other)
                return one if one == another else call(sizes, "if", asked, one, another)
            case S.Name(id) if id == PROGRESS and self.state.evaluation:
                return number(ONE)
            case S.Index(inner, items) if (draw := draw_of(e, self.typing.values, self.typing.axes)) is not None:
                if draw.word == "noise" and self.state.evaluation:
                    return Term((), sizes)
                shown = f"[{', '.join(map(written, sizes))}]"
                self.state.ranges[shown] = sizes
                return call(sizes, draw.word, draw.owner, *sorted(map(self._axis, draw.axes)), shown)
            case S.Index(inner, items):
                shown = ", ".join(self._slice(i) if isinstance(i, S.Slice) else "·" for i in items)
                ends = [v for i in items if isinstance(i, S.Slice) for v in (i.low, i.high) if v is not None]
                self.state.ranges[f"[{shown}]"] = tuple(self._plain(v, self.value(v).type) for v in ends)
                picks = [self._argument(i) for i in items if not isinstance(i, S.Slice)]
                return call(sizes, f"[{shown}]", self.term(inner), *picks)
        return call(sizes, to_text(self._without_lets(e)))

    def _quotient(self, left: S.Expr, right: S.Expr) -> Term:
        below = self.value(right)
        if isinstance(below.type, NumberType) and self._is_plain(below):
            by = self._plain(right, below.type)
            if by.terms:
                return scaled(self.term(left), ONE / by)
        divisor = self.term(right)
        return times(self.term(left), call(divisor.sizes, "1 /", divisor))

    def _slice(self, i: S.Slice) -> str:
        ends = [None if v is None else self._shown(v) for v in (i.low, i.high)]
        return ":".join(v or "" for v in ends)

    def _argument(self, e: S.Expr) -> Term | str:
        """An argument of a call: a term, or a word such as `tokens`."""
        found = self.value(e)
        if not isinstance(found.type, WordType) or found.type.what == "index":
            return self.term(e, found)
        word = found.type.word
        if found.type.what == "axis":
            return self._axis(str(word))
        return word if found.type.what == "domain" else self._word(e)

    def _axis(self, name: str) -> str:
        """An axis; a declared one by its size, since its name is the row's own affair."""
        return self.axes.get(name, name)

    def _declare(self, name: str, size: Size) -> None:
        text, n = f"axis of {written(size)}", 2
        shown = text
        while self.declared.get(shown, name) != name:
            shown, n = f"{text} #{n}", n + 1
        self.axes[name], self.declared[shown] = shown, name
        self.state.axes[shown] = name
        self.state.lengths[shown] = size

    def _word(self, e: S.Expr) -> str:
        """A word, such as an activation; one that is an argument still is a symbol."""
        shown = self._without_lets(e)
        argument = isinstance(shown, S.Name) and shown.id in self.words - self.plain.keys()
        return f"?{to_text(shown)}" if argument else to_text(shown)

    def _call(self, function: S.Expr, args: tuple[S.Arg, ...], sizes: Sizes) -> Term:
        named = isinstance(function, S.Name) and function.id in self.words
        name = self._word(function) if named else S.dotted(function) or to_text(function)
        values = [self._argument(a.value) for a in args]
        entry = PRIMITIVES.get(name)
        if entry is None:
            return call(sizes, name, *values)
        if isinstance(values[0], Term) and (name == "identity_map" or (entry.still and self.state.evaluation)):
            return values[0]
        if name in ("split", "join") and isinstance(values[0], Term) and isinstance(values[1], str):
            return regrouped(name, sizes, values[0], values[1])
        if entry.draws and isinstance(values[0], Term) and isinstance(values[1], Term):
            if not values[1].products:
                return values[0]
            drawn = self.state.drops[tuple(values)] = self.state.drops.get(tuple(values), 0) + 1
            values += [f"draw {drawn}"] if drawn > 1 else []
        return call(sizes, name, *values)

    # ------------------------------------------------------------ numbers

    def _is_plain(self, value: Value) -> bool:
        """Whether a value is a number that training does not change."""
        known = isinstance(value.type, NumberType) and value.type.value is not None
        return isinstance(value.type, NumberType) and (not value.random or (self.state.evaluation and known))

    def _number_or_text(self, e: S.Expr) -> Size | str:
        found = self.value(e)
        return self._plain(e, found.type) if self._is_plain(found) else to_text(self._without_lets(e))

    def _shown(self, e: S.Expr) -> str:
        found = self._number_or_text(e)
        return written(found) if isinstance(found, Size) else found

    def _without_lets(self, e: Any) -> Any:
        """The expression with its lets that are numbers or words in place of their names."""
        calls = [n.function for n in S.walk(e) if isinstance(n, S.Apply) and isinstance(n.function, S.Name)]
        functions = {id(f) for f in calls if f.id not in self.words}  # those are no lets

        def change(n: Any) -> Any:
            return self.plain.get(n.id, n) if isinstance(n, S.Name) and id(n) not in functions else n

        return S.rewrite(e, change)

    def _plain(self, e: S.Expr, type_: Any) -> Size:
        """A number as a polynomial in what is not known of it; what is no polynomial is a symbol of its own."""
        if not isinstance(type_, NumberType):
            return Size.of(to_text(self._without_lets(e)))
        if type_.value is not None:
            return Size.of(Fraction(type_.value)) if math.isfinite(type_.value) else Size.of(repr(type_.value))
        if type_.size is not None:
            return type_.size
        match e:
            case S.Name(id):
                return self.numbers.get(id, Size.of(id))
            case S.Negative(value):
                return -self._plain(value, self.value(value).type)
            case S.Binary(op, left, right) if op in ("+", "-", "*", "/"):
                a, b = (self._plain(x, self.value(x).type) for x in (left, right))
                if op != "/" or b.terms:
                    return {"+": a.__add__, "-": a.__sub__, "*": a.__mul__, "/": a.__truediv__}[op](b)
            case S.Apply(function, args) if S.dotted(function) not in self.words:
                inner = ", ".join(self._plain(a.value, self.value(a.value).type).text for a in args)
                return Size.of(f"{to_text(function)}({inner})")
        return Size.of(to_text(self._without_lets(e)))


def reads(part: Any) -> set[str]:
    """The names of the site's scope that a term reads."""
    return {a.parts[0] for a in atoms(part) if a.kind == "read"}


def scope_sizes(typing: TypedRow, name: str, type_: TensorType) -> Sizes:
    """The sizes of a name of the site's scope: a model's numbers where the row was checked with them."""
    found = typing.values[name].type if name in typing.values else type_
    return found.sizes if isinstance(found, TensorType) else type_.sizes
