"""What a method means, however it is written: the new ``h`` of each site in a normal form.

Two methods whose normal forms are equal compute the same function, draw the same starts and train the same tensors,
whatever their tensors, lets, rows and definitions are called and in which order they are written. The rules are
identities of the language's algebra (sums and products commute, ``@`` is associative over matrices and linear in both
sides, a projection's ``h`` is ``x @ W + bias``), so the answer "equal" is never wrong; "different" may be said of
methods that are equal for a deeper reason. Non-goals: making anything faster (`compiler.lower`), a model's numbers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any

from . import syntax as S
from .check import RowTyping, TensorTyping, check_row, sites_of
from .elaborate import substitute
from .infer import Inference
from .ir import Method, Row
from .printer import to_text
from .sites import TensorType, signature, site_name, weight_site
from .sizes import Size
from .values import NumberType, Value, WordType

Sizes = tuple[Size, ...]
ONE = Size.of(1)


@dataclass(frozen=True, slots=True)
class Atom:
    """One factor. ``parts`` are names, atoms, terms and sizes; ``text`` orders factors and is the same for equal ones."""

    kind: str  # read, tensor, turned, chain, times, sum, call
    parts: tuple[Any, ...]
    sizes: Sizes = field(compare=False)
    text: str = field(compare=False, repr=False)

    @staticmethod
    def of(kind: str, sizes: Sizes, *parts: Any) -> Atom:
        inner = ", ".join(p.text if isinstance(p, (Atom, Term)) else str(p) for p in parts)
        return Atom(kind, parts, sizes, f"{kind}({inner})")


Product = tuple[Atom, ...]


@dataclass(frozen=True, slots=True)
class Term:
    """A sum of products with their coefficients, sorted; a number is the empty product."""

    products: tuple[tuple[Product, Size], ...]
    sizes: Sizes = field(compare=False)

    @property
    def text(self) -> str:
        return " + ".join(f"{c}·" + "·".join(a.text for a in p) for p, c in self.products) or "0"


@dataclass(frozen=True, slots=True)
class Learned:
    """A tensor as far as it matters: what it is called does not. ``start``: a distribution's name and its arguments."""

    shape: Sizes
    axes: tuple[str, ...]
    place: str
    frozen: bool
    lr: Size
    start: str
    exact: Term | None = None


@dataclass(frozen=True, slots=True)
class SiteMeaning:
    """The new ``h`` at a site in some layers. ``symbols`` names the site's own sizes as they are called anywhere."""

    site: str
    layers: str
    out: Term
    symbols: Mapping[str, str] = field(compare=False)


@dataclass(frozen=True, slots=True)
class Meaning:
    """All that a method changes: sites with their tensors, and trained copies (path, layers, learning-rate multiple)."""

    sites: tuple[SiteMeaning, ...]
    tensors: Mapping[Any, Learned]
    trains: tuple[tuple[str, str, str], ...]


def bound(method: Method) -> Method:
    """The method with its arguments in place of its parameters."""
    mapping: dict[str, Any] = {}
    for p in method.params:
        if p.default is not None:
            mapping[p.name] = substitute(p.default, mapping)
    rows = tuple(
        replace(substitute(r, mapping), sites=tuple(sites_of(r.sites, method.params))) for r in method.rows
    )
    return replace(substitute(replace(method, rows=()), mapping), rows=rows, params=())


def meaning(method: Method, arguments: bool = True) -> Meaning:
    """The meaning of a method at its arguments; with ``arguments=False`` numbers and activations stay symbols.

    Raises `PeltError` where the method has mistakes.
    """
    if arguments:
        method = bound(method)
    places: dict[tuple[str, str], _Place] = {}
    tensors: dict[Any, Learned] = {}
    for row in _weights_first(method.rows):
        for path in sites_of(row.sites, method.params):
            stack, name = site_name(str(path))
            found = signature(name)
            if found is None:
                continue
            at = weight_site(name) or name
            site = f"{stack}.{at}" if stack else at
            layers = _layers(row.layers) + "".join(f" tokens {to_text(t)}" for t in row.tokens)
            place = places.setdefault((site, layers), _Place(site, layers, tensors))
            place.read(row, check_row(row, found, method.params))
    trains = sorted(
        (str(p), _layers(t.layers), to_text(t.lr) if t.lr is not None else "1") for t in method.trains for p in t.paths
    )
    sites = sorted((p.meaning() for p in places.values()), key=lambda s: (s.site, s.layers))
    return Meaning(tuple(sites), tensors, tuple(trains))


@dataclass(frozen=True, slots=True)
class Edit:
    """One row at one site: ``h`` before, ``out`` after, the tensors by key, and their own names."""

    h: Term
    out: Term
    tensors: Mapping[Any, Learned]
    names: Mapping[Any, str]


def edit_of(typing: RowTyping) -> Edit:
    """The meaning of a row that has been checked at a site, by itself."""
    place = _Place(typing.site.name, "", {})
    place.read(typing.row, typing)
    before = _Place(typing.site.name, "", {})
    if typing.site.family in ("projection", "weight"):
        before.weight = atom("read", dict(typing.site.scope)["W"].sizes, "W")
        h = before._affine()
    else:
        h = atom("read", typing.site.h.sizes, "h")
    names = {k: k.split("/")[1].removeprefix("gate.") for k in place.tensors}
    return Edit(h, place.meaning().out, place.tensors, names)


def _weights_first(rows: tuple[Row, ...]) -> list[Row]:
    """Weight edits precede activation edits (ruling 6)."""
    return sorted(rows, key=lambda r: not all(str(p).endswith(".weight") for p in r.sites))


def _layers(selection: S.Selection | None) -> str:
    return "" if selection is None or selection.word == "all" else to_text(selection)


def written(size: Size) -> str:
    """A polynomial for people: a number that is no small fraction as a decimal."""
    n = size.number
    if n is None or n.denominator == 1:
        return str(size)
    return str(n) if n.denominator < 100 else repr(float(n))


# ---------------------------------------------------------------- the algebra


def sum_of(products: Iterable[tuple[Product, Size]], sizes: Sizes) -> Term:
    total: dict[Product, Size] = {}
    for factors, c in products:
        total[factors] = total[factors] + c if factors in total else c
    kept = [(f, c) for f, c in total.items() if c.terms]
    return Term(tuple(sorted(kept, key=lambda p: [a.text for a in p[0]])), sizes)


def number(value: Size | float | Fraction) -> Term:
    return sum_of([((), Size.of(value))], ())


def atom(kind: str, sizes: Sizes, *parts: Any) -> Term:
    return Term((((Atom.of(kind, sizes, *parts),), ONE),), sizes)


def stretched(a: Sizes, b: Sizes) -> Sizes:
    """The sizes of two operands aligned at the right, where a literal 1 stretches."""
    out: list[Size] = []
    for i in range(1, max(len(a), len(b)) + 1):
        s = a[-i] if i <= len(a) else None
        t = b[-i] if i <= len(b) else None
        out.insert(0, t if s is None or (t is not None and s == ONE) else s)  # type: ignore[arg-type]
    return tuple(out)


def add(a: Term, b: Term) -> Term:
    return sum_of([*a.products, *b.products], stretched(a.sizes, b.sizes))


def times(a: Term, b: Term) -> Term:
    products = [
        (tuple(sorted((*f, *g), key=lambda x: x.text)), c * d) for f, c in a.products for g, d in b.products
    ]
    return sum_of(products, stretched(a.sizes, b.sizes))


def scaled(t: Term, by: Size) -> Term:
    return sum_of([(f, c * by) for f, c in t.products], t.sizes)


@dataclass(frozen=True, slots=True)
class _Piece:
    """A summand as an operand of ``@``: what is a number at each position, and the one factor with sizes."""

    scalars: Product
    factor: Atom
    coefficient: Size


def _pieces(t: Term) -> list[_Piece]:
    """The summands of an operand; the whole sum as one factor where a summand would be stretched."""
    out: list[_Piece] = []
    for factors, c in t.products:
        others = tuple(f for f in factors if f.sizes)
        if not others or any(f.sizes != t.sizes for f in others):
            return [_Piece((), _whole(t), ONE)]
        scalars = tuple(f for f in factors if not f.sizes)
        out.append(_Piece(scalars, others[0] if len(others) == 1 else Atom.of("times", t.sizes, *others), c))
    return out


def _whole(t: Term) -> Atom:
    return Atom.of("sum", t.sizes, t)


def contract(a: Term, b: Term) -> Term:
    """``a @ b``: linear in both sides, associative where what stands between is a matrix."""
    sizes = a.sizes[:-1] + b.sizes[1:]
    products: list[tuple[Product, Size]] = []
    for p in _pieces(a):
        for q in _pieces(b):
            left = p.factor.parts if p.factor.kind == "chain" else (p.factor,)
            right: tuple[Atom, ...] = (q.factor,)
            if q.factor.kind == "chain" and all(len(f.sizes) == 2 for f in q.factor.parts[:-1]):
                right = q.factor.parts
            joined = Atom.of("chain", sizes, *left, *right)
            factors = tuple(sorted((*p.scalars, *q.scalars, joined), key=lambda x: x.text))
            products.append((factors, p.coefficient * q.coefficient))
    return sum_of(products, sizes)


def turn(t: Term) -> Term:
    """``t.T``"""
    sizes = (*t.sizes[:-2], t.sizes[-1], t.sizes[-2])
    products = [
        (tuple(sorted((*p.scalars, _turned(p.factor)), key=lambda x: x.text)), p.coefficient) for p in _pieces(t)
    ]
    return sum_of(products, sizes)


def _turned(a: Atom) -> Atom:
    sizes = (*a.sizes[:-2], a.sizes[-1], a.sizes[-2])
    if a.kind == "turned":
        return a.parts[0]
    if a.kind == "chain" and all(len(p.sizes) == 2 for p in a.parts):
        return Atom.of("chain", sizes, *(_turned(p) for p in reversed(a.parts)))
    if a.kind == "times":
        return Atom.of("times", sizes, *sorted((_turned(p) for p in a.parts), key=lambda x: x.text))
    return Atom.of("turned", sizes, a)


# ---------------------------------------------------------------- rows


class _Place:
    """A site while the rows that edit it are read, one after another."""

    def __init__(self, site: str, layers: str, tensors: dict[Any, Learned]):
        self.site, self.layers, self.tensors = site, layers, tensors
        self.weight: Term | None = None  # of a projection, as its weight edits leave it
        self.h: Term | None = None
        self.projection = False
        self.symbols: dict[str, str] = {}

    def read(self, row: Row, typing: RowTyping) -> None:
        site = typing.site
        if site.family in ("projection", "weight"):
            W = dict(site.scope)["W"].sizes
            self.symbols = {str(W[1]): "d_out", str(W[0]): "d_in"}
            if self.weight is None:
                self.weight = atom("read", W, "W")
            if site.family == "weight":
                self.weight = _Reader(self, row, typing, self.weight).out()
                return
            if self.h is None:
                self.h = self._affine()
        elif self.h is None:
            self.h = atom("read", site.h.sizes, "h")
        self.h = _Reader(self, row, typing, self.h).out()

    def _affine(self) -> Term:
        """``x @ W + bias``: what a projection computes, its weight perhaps edited."""
        assert self.weight is not None
        d_in, d_out = self.weight.sizes
        return add(contract(atom("read", (d_in,), "x"), self.weight), atom("read", (d_out,), "bias"))

    def meaning(self) -> SiteMeaning:
        out = self.h if self.h is not None else self._affine()
        return SiteMeaning(self.site, self.layers, out, self.symbols)


class _Reader:
    """Reads one row at one site: its lets are inlined, its tensors noted."""

    def __init__(self, place: _Place, row: Row, typing: RowTyping, h: Term):
        self.place, self.row, self.typing = place, row, typing
        self.h = h
        self.types: dict[str, Value] = dict(typing.values)
        self.known: dict[str, Term] = {}
        for t in typing.tensors:
            if not t.part:
                self.known[t.name] = self._tensor(t)

    def out(self) -> Term:
        site, row = self.typing.site, self.row
        for name, type_ in (("x", site.x), *site.scope):
            if type_ is not None and name not in self.known:
                self.known[name] = atom("read", type_.sizes, name)
        if site.family == "projection":
            assert self.place.weight is not None
            self.known["W"] = self.place.weight
        elif site.family == "weight":
            self.known["W"] = self.h
        if "log_mass" in self.known and self.h.text != f"{ONE}·{Atom.of('read', (), 'h').text}":
            # ruling 7: what an earlier row did to the softmax is in the mass that a later one sees
            self.known["log_mass"] = atom("call", (), "log_mass after", self.h)
        self._insertion()
        self._body(row.form)
        gate = None
        if row.gate is not None:
            outer = dict(self.known), dict(self.types)
            for t in self.typing.tensors:
                if t.part:
                    self.known[t.name] = self._tensor(t)
            self.types |= self.typing.gate_values
            self._body(row.gate)
            gate = self.known["g"]
            self.known, self.types = outer
        self.known["h"] = self.h
        self._body(row.compose)
        out = self.known["out"]
        if gate is not None:
            out = add(self.h, times(gate, add(out, scaled(self.h, Size.of(-1)))))
        return Term(out.products, self.typing.site.h.sizes)

    def _insertion(self) -> None:
        e, site = self.row.insert, self.typing.site
        if site.family == "weight":
            self.known["z"] = self.h
        elif isinstance(e, S.Name) and e.id == "parallel":
            self.known["z"] = self.known[str(site.parallel)]
        elif isinstance(e, S.Name) and e.id == "sequential":
            self.known["z"] = self.h
        elif e is not None:
            self.known["h"] = self.h
            self.types["h"] = Value(site.h)
            self.known["z"] = self.term(e)
            del self.known["h"]

    def _body(self, body: tuple[S.Statement, ...]) -> None:
        for s in body:
            if isinstance(s, S.Let):
                self.known[s.names[0]] = self.term(s.value)

    def _tensor(self, t: TensorTyping) -> Term:
        front: tuple[str, ...] = (self.row.name, t.label)
        if t.place in ("site", "kind"):
            front = (*front, self.place.site)
        key = "/".join(front)
        axes = tuple(sorted(t.type.axes))
        exact = self.term(t.exact) if t.exact is not None else None
        start = "" if t.start is None else t.start.name + "(" + ", ".join(self._shown(a) for a in t.start.args) + ")"
        lr = ONE if t.declaration.lr is None else self._plain(t.declaration.lr, self.type(t.declaration.lr))
        self.place.tensors[key] = Learned(t.type.sizes, axes, t.place, t.frozen, lr, start, exact)
        return atom("tensor", t.type.sizes, key)

    def _shown(self, e: S.Expr) -> str:
        found = Inference(dict(self.types), {}).infer(e).type
        return written(self._plain(e, found)) if isinstance(found, NumberType) else to_text(e)

    # ------------------------------------------------------------ expressions

    def type(self, e: S.Expr) -> Any:
        return self.value(e).type

    def value(self, e: S.Expr) -> Value:
        """What is known of an expression in this row's scope."""
        return Inference(dict(self.types), dict(self.sizes()), dict(self.typing.bases)).infer(e)

    def sizes(self) -> Mapping[str, Size]:
        return self.typing.sizes

    def term(self, e: S.Expr) -> Term:
        """The normal form of an expression."""
        value = self.value(e)
        type_ = value.type
        if isinstance(type_, NumberType) and not value.random:  # one that training changes is no plain number
            return number(self._plain(e, type_))
        sizes = type_.sizes if isinstance(type_, TensorType) else ()
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
                below = self.type(right)
                if isinstance(below, NumberType):
                    return scaled(self.term(left), ONE / self._plain(right, below))
                return times(self.term(left), atom("call", self.term(right).sizes, "1 /", self.term(right)))
            case S.Binary(op, left, right):
                return atom("call", sizes, op, self.term(left), self.term(right))
            case S.Attr(inner, "T"):
                return turn(self.term(inner))
            case S.Apply(function, args):
                return self._call(function, args, sizes)
            case S.Choose(then, test, other):
                decided = self.value(test)
                if isinstance(decided.type, NumberType) and decided.type.value is not None and not decided.random:
                    return self.term(then if decided.type.value else other)
                return atom("call", sizes, "if", self._argument(test), self.term(then), self.term(other))
            case S.Compare(op, left, right):
                return atom("call", sizes, op, self.term(left), self.term(right))
            case S.Index(inner, items):
                shown = [to_text(i) if not isinstance(i, S.Slice) else self._slice(i) for i in items]
                return atom("call", sizes, "[" + ", ".join(shown) + "]", self.term(inner))
        return atom("call", sizes, to_text(e))

    def _slice(self, i: S.Slice) -> str:
        ends = [None if v is None else self._shown(v) for v in (i.low, i.high)]
        return ":".join(v or "" for v in ends)

    def _argument(self, e: S.Expr) -> Term | str:
        """An argument of a call: a term, or a word such as `tokens`."""
        found = self.type(e)
        return to_text(e) if isinstance(found, WordType) else self.term(e)

    def _call(self, function: S.Expr, args: tuple[S.Arg, ...], sizes: Sizes) -> Term:
        name = S.dotted(function) or to_text(function)
        word = self.types.get(name)
        if word is not None and isinstance(word.type, WordType) and isinstance(word.type.word, str):
            name = f"?{name}"  # an activation that is an argument: a symbol
        values = [self._argument(a.value) for a in args]
        if name == "identity_map" and isinstance(values[0], Term):
            return values[0]
        if name == "drop" and isinstance(values[0], Term) and isinstance(values[1], Term) and not values[1].products:
            return values[0]
        return atom("call", sizes, name, *values)

    def _plain(self, e: S.Expr, type_: NumberType) -> Size:
        """A number as a polynomial in what is not known of it; what is no polynomial is a symbol of its own."""
        if type_.value is not None:
            return Size.of(Fraction(type_.value))
        if type_.size is not None:
            return type_.size
        match e:
            case S.Name(id):
                return Size.of(id)
            case S.Negative(value):
                return -self._plain(value, self.type(value))
            case S.Binary(op, left, right) if op in ("+", "-", "*", "/"):
                a, b = self._plain(left, self.type(left)), self._plain(right, self.type(right))
                return {"+": a.__add__, "-": a.__sub__, "*": a.__mul__, "/": a.__truediv__}[op](b)
            case S.Apply(function, args):
                inner = ", ".join(str(self._plain(a.value, self.type(a.value))) for a in args)
                return Size.of(f"{to_text(function)}({inner})")
        return Size.of(to_text(e))
