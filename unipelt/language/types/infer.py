"""Types and facts of expressions, with sizes as symbols (a check) or numbers (a plan). One mistake, one error."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from ..report.diagnostics import Diagnostic, TextEdit, Label, instead, near, put
from .draws import DRAWN, PROGRESS, draw_of, drawn
from .indexing import INSERTED, indexed
from .primitives import DOMAINS, PRIMITIVES
from ..syntax.printer import to_text
from ..sites import NUMBERS, TensorType, united_axes
from ..sizes import Size
from ..report.texts import inside
from ..syntax.nodes import (
    Apply,
    Attr,
    Binary,
    Choose,
    Compare,
    Expr,
    Index,
    ListOf,
    Name,
    Negative,
    Number,
    Span,
    String,
    Then,
    dotted,
)  # fmt: skip
from .values import AFFINE, POISON, IndexType, NumberType, Poison, Several, Type, Value, WordType, bend, join, product


def _beyond(value: float | None) -> bool:
    """Whether a size is no machine's integer, or another number no float: a mistake, or meant to take for ever."""
    return value is not None and not abs(value) <= (1 << 63 if isinstance(value, int) else sys.float_info.max)


@dataclass
class Inference:
    """Infers expressions in a scope. ``sizes`` are the site's sizes, ``bases`` the callable frozen modules,
    ``hidden`` maps names that exist here but may not be read to the reason, ``where`` names what symbols are."""

    names: dict[str, Value]
    sizes: dict[str, Size]
    bases: dict[str, tuple[Size, Size]] = field(default_factory=dict)
    hidden: dict[str, str] = field(default_factory=dict)
    axes: dict[str, Size] = field(default_factory=dict)
    where: dict[str, str] = field(default_factory=dict)
    problems: list[Diagnostic] = field(default_factory=list)
    remedies: dict[str, str] = field(default_factory=dict)  # what to do about hidden names
    values: dict[str, str] = field(default_factory=dict)  # what symbols stand for, where that is known
    #: What `a.A` is, where `a` is another row or a list of adapters; with the weights of a call (`of.delta(w)`).
    lent: Callable[[Attr, Value | None], Value | None] = lambda e, weights: None
    stepping: bool = False  # whether what is read stands in `after step`
    nodes: dict[int, tuple[Expr, Value]] | None = None  # what is known of each node of the line that is read
    apart: Expr | None = None  # the expression whose several results are named by the line that is read

    # ------------------------------------------------------------ reporting

    def fail(self, code: str, message: str, span: Span, **more: Any) -> Value:
        self.problems.append(Diagnostic(code, message, span, **more))
        return Value(POISON)

    def axis_size(self, name: str) -> Size | None:
        return self.axes.get(name) or self.sizes.get(name)

    def bindings(self, *sizes: Size) -> tuple[str, ...]:
        symbols = sorted(set().union(*(s.symbols for s in sizes))) if sizes else []
        said = {s: f"{s} = {self.values[s]}" if s in self.values else s for s in symbols}
        return tuple(f"{said[s]} ({self.where.get(s, 'a size of the site')})" for s in symbols)

    # ------------------------------------------------------------ expressions

    def infer(self, e: Expr) -> Value:
        """The value of an expression; within a line (``nodes``) each node is worked out once."""
        if self.nodes is None:
            return self._worked_out(e)
        if id(e) not in self.nodes:
            self.nodes[id(e)] = e, self._worked_out(e)  # with the node, whose identity must not become another's
        return self.nodes[id(e)][1]

    def _worked_out(self, e: Expr) -> Value:
        value = getattr(self, "_" + e.kind)(e)
        if isinstance(value.type, Several) and e is not self.apart:
            names = ", ".join("abcdefgh"[: len(value.type.parts)])
            return self.fail("E0391", f"`{to_text(e)}` gives {value.type}, and here is one", e.span,
                             help=f"give each a name in a line of their own: `{names} = {to_text(e)}`")  # fmt: skip
        return value

    def _number(self, e: Number) -> Value:
        return literal(e)

    def _string(self, e: String) -> Value:
        return literal(e)

    def _list(self, e: ListOf) -> Value:
        """A list of numbers has a value for each layer and stands for the one at ``layer``."""
        items = [self.infer(i) for i in e.items]
        if any(isinstance(v.type, Poison) for v in items):
            return Value(POISON)
        wrong = next(
            (i for i, v in zip(e.items, items) if not isinstance(v.type, NumberType) or isinstance(i, ListOf)), None
        )
        if not items or wrong is not None:
            return self.fail("E0365", "a list has a number for each layer" + (", and this is none" if items else ""),
                             wrong.span if wrong is not None else e.span, help="for example [4, 8, 8, 16]")  # fmt: skip
        if "layer" in self.hidden:
            return self.fail("E0303", f"a list {self.hidden['layer']}", e.span, help=self.remedies.get("layer", ""))
        layer, depth = (self._known(n) for n in NUMBERS)
        if depth is not None and depth != len(items):
            return self.fail("E0366", f"there are {len(items)} values here, one for each layer, and {depth} layers",
                             e.span, help="give one for each layer, or an expression such as `8 if layer < depth / 2 else 16`")  # fmt: skip
        if layer is not None:
            return replace(items[layer], reads=items[layer].reads | {"layer"})
        sizes = [v.type.size for v in items if isinstance(v.type, NumberType) and v.type.size is not None]
        size = Size.of(f"[{', '.join(s.text for s in sizes)}]") if len(sizes) == len(items) else None
        return replace(join(items, NumberType(size)), reads=join(items).reads | {"layer"})

    def _known(self, number: str) -> int | None:
        """The value of ``layer`` or ``depth``, where it has one."""
        t = self.names[number].type if number in self.names else None
        return t.value if isinstance(t, NumberType) and isinstance(t.value, int) else None

    def _name(self, e: Name) -> Value:
        if e.id in self.names:
            return self.names[e.id]
        if e.id in self.hidden:
            reads: dict[str, Any] = {"help": self.remedies.get(e.id, "")}
            if e.id == "h" and "z" in self.names:
                reads = {"help": "read `z`; with `insert sequential` it is `h`", "edits": put("z", e.span)}
            return self.fail("E0303", f"`{e.id}` {self.hidden[e.id]}", e.span, **reads)
        if e.id in self.axes or e.id in ("head", "group", "batch"):
            return Value(WordType("axis", e.id))
        if e.id in self.sizes:
            size = self.sizes[e.id]
            n = size.number
            return Value(NumberType(size, int(n) if n is not None and n.denominator == 1 else None))
        if e.id in NUMBERS:
            return Value(NumberType(Size.of(e.id)), reads=frozenset({e.id}))
        if e.id == "inserted" and INSERTED in self.names:
            return Value(WordType("number of a row", "inserted"))
        if e.id in DOMAINS:
            return Value(WordType("domain", e.id))
        if e.id in ("true", "false"):
            return Value(NumberType(None, e.id == "true"))
        if e.id == "training":
            return Value(NumberType(None, False), random=True)
        if e.id in ("chance", PROGRESS):
            return Value(TensorType(frozenset(), ()), random=True, reads=frozenset({e.id}))
        if e.id == "noise":
            return self.fail(
                "E0385",
                "`noise` has sizes",
                e.span,
                help="write them in brackets, as in `noise[d_in]` or `noise[batch, 4]`",
            )
        if e.id in PRIMITIVES and PRIMITIVES[e.id].elementwise:
            return Value(WordType("activation", e.id))
        known = [
            *self.names,
            *self.sizes,
            *self.axes,
            *NUMBERS,
            *DOMAINS,
            *DRAWN,
            PROGRESS,
            "training",
            "true",
            "false",
        ]
        return self.fail(
            "E0301", f"there is no `{e.id}` here", e.span, **instead(e.id, known, e.span, self._in_scope())
        )

    def _in_scope(self) -> str:
        named = sorted(n for n, v in self.names.items() if n.isidentifier() and not isinstance(v.type, Poison))
        return f"in scope: {', '.join(named)}" if named else ""

    def _attr(self, e: Attr) -> Value:
        if e.name == "T":
            a = self.infer(e.value)
            if isinstance(a.type, TensorType) and len(a.type.sizes) >= 2:
                *front, p, q = a.type.sizes
                return a.typed(TensorType(a.type.axes, (*front, q, p)))
            if isinstance(a.type, Poison):
                return a
            if isinstance(a.type, TensorType) and a.type.sizes and "token" in a.type.axes:
                return self.fail("E0314", f"`.T` turns the last two sizes, and this is {a.type}: tokens are an axis, not a size", e.span,
                                 help="leave `.T` out and write the tokens first, as in `z @ A`: each goes through a product by itself")  # fmt: skip
            return self.fail("E0314", f"`.T` turns the last two sizes, and this is {a.type}", e.span, help="leave `.T` out",
                             edits=put("", Span(e.span.file, e.value.span.end, e.span.end)) if isinstance(e.value, Name) else ())  # fmt: skip
        text = dotted(e)
        if text in self.bases:
            return self.fail("E0322", f"`{text}` is a module of the base: call it", e.span, help=f"write `{text}(…)`")
        found = self.lent(e, None)
        if found is not None:
            return found
        others = f"modules here: {', '.join(self.bases)}" if self.bases else ""
        return self.fail(
            "E0301", f"there is no `{text or e.name}` here", e.span, **instead(text or "", self.bases, e.span, others)
        )

    def _negative(self, e: Negative) -> Value:
        a = self.infer(e.value)
        if self._no_operand("-", a, e.value):
            return Value(POISON)
        if isinstance(a.type, NumberType):
            size = -a.type.size if a.type.size is not None else None
            return a.typed(NumberType(size, -a.type.value if a.type.value is not None else None))
        return a

    def _then(self, e: Then) -> Value:
        """What a `carry` line binds (see `carried`): here with what is known of the name already."""
        return join(map(self.infer, (e.first, e.next)), self.names[e.name].type)

    def _compare(self, e: Compare) -> Value:
        a, b = self.infer(e.left), self.infer(e.right)
        if self._no_operand(e.op, a, e.left) or self._no_operand(e.op, b, e.right):
            return Value(POISON)
        if isinstance(a.type, NumberType) and isinstance(b.type, NumberType):
            x, y = a.type.value, b.type.value
            if x is None or y is None:
                return join((a, b), NumberType())
            table = {"==": x == y, "!=": x != y, "<=": x <= y, ">=": x >= y, "<": x < y, ">": x > y}
            return join((a, b), NumberType(None, table[e.op]))
        return bend(self._elementwise(e.op, a, b, e), e.span)

    def _choose(self, e: Choose) -> Value:
        test = self.infer(e.test)
        decided = isinstance(test.type, NumberType) and test.type.value is not None and not test.random
        taken = bool(test.type.value) if decided and isinstance(test.type, NumberType) else None
        a = self.infer(e.then) if taken is not False else self._passed_over(e.then)
        b = self.infer(e.other) if taken is not True else self._passed_over(e.other)
        if not isinstance(test.type, (NumberType, Poison)):
            return self.fail("E0315", f"a condition is a number or a comparison of numbers, not {test.type}", e.test.span,
                             help="for a choice in each entry multiply: `(z > 0) * a + (z <= 0) * b`")  # fmt: skip
        if isinstance(test.type, NumberType) and test.type.value is not None:
            found = a if test.type.value else b  # `training` counts as false: verdicts are those of evaluation
            return replace(found, random=found.random or test.random)
        if isinstance(a.type, Poison) or isinstance(b.type, Poison):
            return Value(POISON)
        if type(a.type) is not type(b.type) or (isinstance(a.type, (TensorType, IndexType)) and a.type != b.type):
            return self.fail("E0316", f"the two branches differ: {a.type} and {b.type}", e.other.span, label=str(b.type),
                             labels=(Label(e.then.span, str(a.type)),))  # fmt: skip
        return join((test, a, b), a.type if a.type == b.type else NumberType(self._either(e, a, b)))

    def _passed_over(self, e: Expr) -> Value:
        """The value of a branch that the numbers here decide against: its sizes need not fit them, as in `a if d_in <= d_out else b`."""
        before = len(self.problems)
        value = self.infer(e)
        del self.problems[before:]
        return value

    def _either(self, e: Choose, a: Value, b: Value) -> Size | None:
        """The size that is one of two by a condition on sizes: a symbol named by its text."""
        test = e.test.id if isinstance(e.test, Name) and self.where.get(e.test.id) == "parameter" else None
        if isinstance(e.test, Compare):
            sides = [v.type for v in (self.infer(e.test.left), self.infer(e.test.right))]
            sizes = [t.size for t in sides if isinstance(t, NumberType) and t.size is not None]
            test = f"{sizes[0].text} {e.test.op} {sizes[1].text}" if len(sizes) == 2 else None
        branches = [v.type.size for v in (a, b) if isinstance(v.type, NumberType) and v.type.size is not None]
        if test is None or len(branches) < 2:
            return None
        return Size.of(f"({branches[0].text} if {test} else {_bare(branches[1].text)})")

    def _binary(self, e: Binary) -> Value:
        a, b = self.infer(e.left), self.infer(e.right)
        if isinstance(a.type, Poison) or isinstance(b.type, Poison):
            return Value(POISON)
        if self._no_operand(e.op, a, e.left) or self._no_operand(e.op, b, e.right):
            return Value(POISON)
        if isinstance(a.type, NumberType) and isinstance(b.type, NumberType):
            return self._numbers(e, a, b)
        if e.op == "@":
            return self._matmul(e, a, b)
        out = self._elementwise(e.op, a, b, e)
        if e.op == "*":
            return product(a, b, out.type, e.span)
        if e.op == "/":
            return product(a, bend(b, e.right.span), out.type, e.span)
        if e.op == "**":
            square = isinstance(b.type, NumberType) and b.type.value == 1
            return out if square else bend(out, e.span)
        return out

    def _no_operand(self, op: str, a: Value, e: Expr) -> bool:
        """Whether nothing is computed with a value, which is said."""
        if not isinstance(a.type, (WordType, IndexType)):
            return False
        what = a.type.what if isinstance(a.type, WordType) else "index"
        helps = {"activation": "call it, as in `{0}(z)`", "index": "read a tensor with it, as in `b[{0}]`"}
        self.fail(
            "E0317",
            f"`{op}` takes tensors and numbers, not {a.type}",
            e.span,
            help=helps.get(what, "").format(to_text(e)),
        )
        return True

    def _numbers(self, e: Binary, a: Value, b: Value) -> Value:
        assert isinstance(a.type, NumberType) and isinstance(b.type, NumberType)
        x, y, value, size = a.type.value, b.type.value, None, None
        try:
            if x is not None and y is not None:
                if e.op == "**" and (abs(y) > 64 or abs(x) > 1e9):
                    raise OverflowError
                value = {"+": lambda: x + y, "-": lambda: x - y, "*": lambda: x * y, "/": lambda: x / y,
                         "**": lambda: x**y}[e.op]()  # fmt: skip
                if e.op == "/" and isinstance(x, int) and isinstance(y, int) and x % y == 0:
                    value = x // y
            if e.op == "@":
                raise KeyError
            if isinstance(value, complex):
                raise OverflowError  # a root of what is less than 0
            if isinstance(value, int):
                size = Size.of(value)
            elif a.type.size is not None and b.type.size is not None:
                p, q = a.type.size, b.type.size
                if len(p.terms) * len(q.terms) > 4096:
                    raise OverflowError
                if e.op in "+-*/":
                    size = {"+": lambda: p + q, "-": lambda: p - q, "*": lambda: p * q, "/": lambda: p / q}[e.op]()
                elif e.op == "**" and isinstance(y, int) and 0 <= y <= 4:
                    size = Size.of(1)
                    for _ in range(y):
                        size = size * p
            if _beyond(value) or (size is not None and size.large):
                raise OverflowError
        except (ZeroDivisionError, OverflowError, KeyError):
            if e.op == "@":
                return self.fail(
                    "E0318", "`@` multiplies tensors; numbers take `*`", e.span, help="use `*`", edits=self._times(e)
                )
            return self.fail("E0318", "this number cannot be computed", e.span)
        return join((a, b), NumberType(size, value))

    def _elementwise(self, op: str, a: Value, b: Value, e: Any) -> Value:
        return self.aligned(op, a, b, e.left.span, e.right.span)

    def aligned(self, name: str, a: Value, b: Value, left: Span, right: Span) -> Value:
        """What an operation or a function makes of two operands, entry by entry."""
        if isinstance(a.type, Poison) or isinstance(b.type, Poison):
            return join((a, b))
        p = a.type if isinstance(a.type, TensorType) else TensorType(frozenset(), ())
        q = b.type if isinstance(b.type, TensorType) else TensorType(frozenset(), ())
        sizes: list[Size] = []
        for i in range(1, max(len(p.sizes), len(q.sizes)) + 1):
            s = p.sizes[-i] if i <= len(p.sizes) else None
            t = q.sizes[-i] if i <= len(q.sizes) else None
            if s is None or t is None or s == t or t.number == 1:
                sizes.insert(0, s if s is not None else t)  # type: ignore[arg-type]
            elif s.number == 1:
                sizes.insert(0, t)
            else:
                return self.fail(
                    "E0310", f"the sizes of `{name}` do not agree: {s} and {t}", right, label=str(q), labels=(Label(left, str(p)),),
                    where=self.bindings(s, t), help=f"the last sizes must be equal: {p.sizes[-1]} and {q.sizes[-1]}" if i == 1 else "",
                )  # fmt: skip
        return join((a, b), TensorType(united_axes(p.axes, q.axes), tuple(sizes)))

    def _matmul(self, e: Binary, a: Value, b: Value) -> Value:
        for side, expr in ((a, e.left), (b, e.right)):
            if not isinstance(side.type, TensorType) or not side.type.sizes:
                return self.fail(
                    "E0313", f"`@` contracts sizes, and this side has none: {side.type}", expr.span, help="use `*`", edits=self._times(e),
                )  # fmt: skip
        assert isinstance(a.type, TensorType) and isinstance(b.type, TensorType)
        s, t = a.type.sizes[-1], b.type.sizes[0]
        if s != t:
            flipped = len(b.type.sizes) >= 2 and b.type.sizes[1] == s
            return self.fail(
                "E0312", "the sizes of `@` do not agree", e.right.span, label=f"first size {t}",
                labels=(Label(e.left.span, f"last size {s}: {a.type}"),), where=self.bindings(s, t),
                help=f"`{_turned(e.right)}` would fit" if flipped else self._near_size(s, t),
                edits=put(_turned(e.right), e.right.span) if flipped else (),
            )  # fmt: skip
        axes = united_axes(a.type.axes, b.type.axes)
        return product(a, b, TensorType(axes, a.type.sizes[:-1] + b.type.sizes[1:]), e.span)

    def _times(self, e: Binary) -> tuple[TextEdit, ...]:
        """`*` in the place of the operator between two sides."""
        place = inside(e.span, r"^[^@]*(@)[^@]*$")  # the sides may be arguments, which stand elsewhere
        return put("*", place) if place else ()

    def _near_size(self, s: Size, t: Size) -> str:
        for wrong, right in ((t, s), (s, t)):
            symbol = next(iter(wrong.symbols), "") if wrong == Size.of(next(iter(wrong.symbols), 0)) else ""
            if symbol and right == Size.of(next(iter(right.symbols), 0)):
                hint = near(symbol, right.symbols, 0.5)
                if hint:
                    return hint
        return f"the two sizes must be equal: {s} and {t}"

    def _index(self, e: Index) -> Value:
        draw = draw_of(e, self.names, self.axes)
        return indexed(self, e) if draw is None else drawn(self, e, draw)

    # ------------------------------------------------------------ calls

    def _apply(self, e: Apply) -> Value:
        args = [self.infer(a.value) for a in e.args]
        text = dotted(e.function)
        if text in self.bases:
            return self._base_call(e, text, args)  # type: ignore[arg-type]
        if isinstance(e.function, Attr) and len(args) == 1 and (found := self.lent(e.function, args[0])) is not None:
            return found
        name = e.function.id if isinstance(e.function, Name) else None
        if name is not None and name in self.names and isinstance(self.names[name].type, WordType):
            word = self.names[name].type
            if word.what == "activation":  # type: ignore[union-attr]
                name = word.word if isinstance(word.word, str) else "relu"  # type: ignore[union-attr]
        if name is not None and name in self.names and isinstance(self.names[name].type, Poison):
            return Value(POISON)
        if name is None or name not in PRIMITIVES:
            known = [*PRIMITIVES, *self.bases]
            title = text or to_text(e.function)
            return self.fail("E0320", f"there is no function `{title}` here", e.function.span,
                             **instead(title, known, e.function.span, f"modules here: {', '.join(self.bases)}" if "." in title else ""))  # fmt: skip
        p = PRIMITIVES[name]
        if any(a.name is not None for a in e.args):
            return self.fail(
                "E0321",
                f"`{name}` takes its arguments by position",
                e.span,
                help="leave the names of the arguments out",
            )
        if not p.arity[0] <= len(args) <= p.arity[1]:
            n = str(p.arity[0]) if p.arity[0] == p.arity[1] else f"{p.arity[0]} to {p.arity[1]}"
            return self.fail(
                "E0321",
                f"`{name}` takes {n} argument{'s' * (n != '1')}, {len(args)} are given",
                e.span,
                help=f"give it {n}; what it is: {p.doc}",
            )
        if any(isinstance(a.type, Poison) for a in args):
            return Value(POISON)
        wrong = None if p.indexes else next((i for i, a in enumerate(args) if isinstance(a.type, IndexType)), None)
        if wrong is not None:
            return self.fail("E0317", f"`{name}` is computed of tensors and numbers, not of {args[wrong].type}", e.args[wrong].span,
                             help=f"read a tensor with it, as in `b[{to_text(e.args[wrong].value)}]`")  # fmt: skip
        return p.rule(self, e.span, args, [a.value for a in e.args])

    def _base_call(self, e: Apply, text: str, args: list[Value]) -> Value:
        if len(args) != 1:
            return self.fail("E0321", f"`{text}` takes one argument", e.span, help="give it one")
        (a,), (d_in, d_out) = args, self.bases[text]
        if isinstance(a.type, Poison):
            return a
        if not isinstance(a.type, TensorType) or not a.type.sizes or a.type.sizes[-1] != d_in:
            return self.fail("E0312", f"`{text}` reads vectors of size {d_in}, and this is {a.type}", e.args[0].span,
                             where=self.bindings(d_in))  # fmt: skip
        out = replace(a, type=TensorType(a.type.axes, (*a.type.sizes[:-1], d_out)), reads=a.reads | {text})
        return bend(out, e.span) if text.endswith(".norm") else out


def literal(e: Number | String) -> Value:
    """The value of what says itself what it is."""
    if isinstance(e, String):
        return Value(WordType("string", e.value))
    value = e.value / 100 if e.percent else e.value
    return Value(NumberType(Size.of(value) if isinstance(value, int) else None, value))


def _bare(text: str) -> str:
    """The text without brackets around the whole, which the last branch of a condition does not need: a chain must not nest."""
    depth = 0
    for i, c in enumerate(text):
        depth += (c == "(") - (c == ")")
        if depth == 0:
            return text[1:-1] if c == ")" and i == len(text) - 1 else text
    return text


def _turned(e: Expr) -> str:
    """The text of an expression with its last two sizes turned."""
    if isinstance(e, Attr) and e.name == "T":
        return to_text(e.value)
    return f"{to_text(e)}.T" if isinstance(e, (Name, Attr, Apply, Index)) else f"({to_text(e)}).T"


def reading(kind: Type, name: str, degree: int = AFFINE) -> Value:
    """A value of the scope that reads the input."""
    return Value(kind, degree, reads=frozenset({name}))


def bounded(value: Value, span: Span) -> Value:
    """A scope value that is no affine function of the input (``log_mass``)."""
    return replace(value, bends=span)
