"""Writes the lines of a row as straight torch code: the twin of `evaluator`, which computes what this writes.

What is not known when the code is written raises `Unwritten`.
"""

from __future__ import annotations

import keyword
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import count
from typing import Any

import torch

from ..language.sizes import Size
from ..language.types.carried import from_before
from ..language.types.indexing import numbers_named
from ..language.types.draws import PROGRESS, Draw, draw_of
from ..language.syntax.nodes import (
    Apply,
    Attr,
    Binary,
    Choose,
    Compare,
    Expr,
    Index,
    Later,
    Let,
    ListOf,
    Name,
    Negative,
    Number,
    Slice,
    Statement,
    String,
    dotted,
)  # fmt: skip
from .code import (
    ATOM,
    CHOICE,
    COMPARISON,
    LEVELS,
    SIGN,
    Code,
    PRODUCT,
    Num,
    Unwritten,
    Written,
    is_name,
    matmul,
    operation,
    picked,
    text_of,
    transposed,
    with_number,
)
from . import again, helpers
from .evaluator import OPERATIONS
from .named import ordered
from .less import circular, contracted, is_low_rank, small_first
from .words import FUNCTIONS, WORDS
from .lines import Line, is_live

#: Names that generated code uses for itself.
_TAKEN = frozenset(
    (
        "torch",
        "F",
        "nn",
        "math",
        "self",
        "mask",
        "places",
        "grid",
        "chosen",
        "h",
        *keyword.kwlist,
        "__debug__",
        *dir(torch.nn.Module),
        *dir(helpers),
        *dir(again),
    )
)


class Writer:
    """``names`` are the values that may be read, ``sizes`` the site's, ``bases`` the sizes that a frozen module yields.

    ``training`` is True or False where code is written for one of the two, and None where it asks ``self.training``.
    ``on`` are the lowerings (see `lower`). ``live`` are names of Python that stand for something else at every call.
    """

    def __init__(self, names: Mapping[str, Written], sizes: Mapping[str, Written], bases: Mapping[str, Size], repeats: Written,
                 training: bool | None, on: frozenset[str] = frozenset()):  # fmt: skip
        self.names: dict[str, Written] = dict(names)
        self.sizes: Mapping[str, Written] = dict(sizes)
        self.bases, self.repeats = dict(bases), repeats
        self.training, self.on = training, on
        self.axes: Mapping[str, Written] = {}  # the sizes of the declared ones
        self.lines: list[Line] = []
        self.live: set[str] = set()
        self.helpers: dict[str, None] = {}
        self.taken: dict[str, str] = {}  # what each name of Python stands for
        self.draws: dict[str, Code] = {}
        self.drawn: dict[str, tuple[Draw, tuple[int, ...]]] = {}  # what enters by names of Python, with its sizes
        self.penalties: list[Written] = []
        self.carried: dict[str, Code] = {}  # to the next layer
        self.asks = False  # whether a line asks what is among the largest of all places
        self.called: dict[str, Code] = {}  # functions of adapters that are not known yet, with what they yield
        self.h: Code | None = None  # what is modified, as it enters

    # ------------------------------------------------------------ statements

    def run(self, body: Sequence[Statement], front: str = "") -> None:
        """The lets of a body. ``front`` keeps the names of a gate apart from those of the form."""
        for s in body:
            if isinstance(s, Let):
                self.bind(s.names[0], self.write(s.value), front)
            elif isinstance(s, Later) and s.word == "carry":
                self.carry(s)
            elif isinstance(s, Later) and self.training is not False and s.word == "penalty":
                self.penalties.append(self.write(s.values[0]))

    def carry(self, s: Later) -> None:
        """A name for what is carried: the first value, or, where one enters from the layer before, the next."""
        name, (first, following) = s.names[0], s.values
        if self.training is None:
            raise Unwritten(f"it carries `{name}` from layer to layer, and a module of one layer has none before it")
        if (entered := from_before(name)) in self.names:
            self.names[name] = self.names[entered]
        self.bind(name, self.write(following if entered in self.names else first))
        self.carried[name] = self.names[name]  # type: ignore[assignment]

    def bind(self, name: str, value: Written, front: str = "") -> None:
        if isinstance(value, Code) and not is_name(value):
            value = self.assign(front + name, value)
        self.names[name] = value

    def assign(self, name: str, value: Code, joins: tuple[str, Code, Code | None] | None = None) -> Code:
        """A line that gives a value a name; one that is bound already gets another."""
        safe = self.safe(name)
        while any(safe in line.names for line in self.lines):
            name += "_"
            safe = self.safe(name)
        if self.is_live(value):
            self.live.add(safe)
        self.lines.append(Line(safe, value.column or value.text, joins))
        if value.column is not None:
            return Code(f"{safe}.squeeze(-1)", value.axes, (), product=value.product, column=safe)
        return Code(safe, value.axes, value.sizes, product=value.product)

    def is_live(self, value: Code) -> bool:
        return is_live(value.text, self.live)

    def safe(self, name: str) -> str:
        """A name of the language, or of the code's own behind a colon, as one of Python. What the code adds later begins with an
        underscore (see `lines`, `bound`)."""
        found = name.replace(".", "_").removesuffix("()").lstrip(":_") or "name"
        while found in _TAKEN or self.taken.get(found, name) != name:
            found += "_"
        self.taken[found] = name
        return found

    def fresh(self, stem: str, first: int = 1) -> str:
        """A name of the code's own that nothing has yet: the stem and a number."""
        return next(f":{stem}{n}" for n in count(first) if f"{stem}{n}" not in self.taken)

    def once(self, value: Code) -> Code:
        """The value under a name of its own, where its text would be repeated."""
        if is_name(value):
            return value
        return self.assign(self.fresh("t"), value)

    def asked(self, value: Code, most: Written) -> Code:
        """A line that waits for 1 at the entries among the largest of all places and 0 elsewhere (see `helpers.at_all_places`)."""
        self.asks = True
        return self.assign(self.fresh("t"), Code(f"yield {value.text}, {text_of(most)}", value.axes, value.sizes))

    def helper(self, name: str, *args: Any) -> str:
        """A call of a function of `helpers`."""
        self.helpers[name] = None
        return f"{name}({', '.join(map(str, args))})"

    # ------------------------------------------------------------ expressions

    def write(self, e: Expr) -> Written:
        if isinstance(e, Name):
            return self._name(e.id)
        if isinstance(e, Number):
            return e.value / 100 if e.percent else e.value
        if isinstance(e, Binary):
            return self._binary(e)
        if isinstance(e, Apply):
            return self._apply(e)
        if isinstance(e, Attr) and (lent := dotted(e)) in self.names:
            return self.names[lent]  # type: ignore[index]
        if isinstance(e, Attr):
            value = self.write(e.value)
            if e.name != "T" or not isinstance(value, Code):
                raise Unwritten(f"`.{e.name}`")
            return transposed(value)
        if isinstance(e, Negative):
            return negative(self.write(e.value))
        if isinstance(e, Compare):
            return self._compare(e)
        if isinstance(e, Choose):
            return self._choose(e)
        if isinstance(e, Index):
            return self._index(e)
        if isinstance(e, String):
            return e.value
        assert isinstance(e, ListOf)
        layer = self.names.get("layer")
        if isinstance(layer, int):
            return self.write(e.items[layer])
        items = [self.write(i) for i in e.items]
        if not isinstance(layer, Num) or any(isinstance(i, (Code, str)) for i in items):
            raise Unwritten("a list outside the layers")
        return Num(f"[{', '.join(map(text_of, items))}][{layer.text}]")

    def _name(self, name: str) -> Written:
        if name in self.names:
            return self.names[name]
        if name in self.sizes:
            return self.sizes[name]
        if name in ("true", "false"):
            return name == "true"
        if name == "training":
            return Num("self.training") if self.training is None else self.training
        if name == PROGRESS and self.training is False:
            return 1.0
        if name in ("chance", PROGRESS):
            raise Unwritten(f"`{name}`")
        return name  # a domain, an axis, an activation: words stand for themselves

    def _binary(self, e: Binary) -> Written:
        if "linear" in self.on and e.op == "+" and isinstance(e.left, Binary) and e.left.op == "@":
            a, W, b = self.write(e.left.left), self.write(e.left.right), self.write(e.right)
            if isinstance(a, Code) and isinstance(W, Code) and isinstance(b, Code) and _is_map(a, W, b):
                return self.product(a, W, b)
            return self.combined("+", self.combined("@", a, W), b)
        if (found := circular(self, e)) is not None or (found := small_first(self, e)) is not None:
            return found
        return self.combined(e.op, self.write(e.left), self.write(e.right))

    def combined(self, op: str, a: Written, b: Written) -> Written:
        """``a op b``."""
        if isinstance(a, str) or isinstance(b, str):
            raise Unwritten(f"`{op}` of a word")
        if op == "@":
            if not isinstance(a, Code) or not isinstance(b, Code):
                raise Unwritten("`@` of a number")
            return self.product(a, b)
        if isinstance(a, Code) and isinstance(b, Code):
            if op == "*" and "again" in self.on and self.training and is_low_rank(a) and is_low_rank(b):
                factors = [v.text for f in (a, b) for v in f.product[:2]]  # type: ignore[index]
                return Code(self.helper("entrywise", *factors), (), a.sizes)
            left, right = self.apart(a, b)
            return operation(op, left, right, self.repeats)
        if isinstance(a, Code) or isinstance(b, Code):
            a, b = self.apart(a, b)
            return with_number(op, a, b)
        return numbers(op, a, b)

    def product(self, a: Code, W: Code, b: Code | None = None) -> Code:
        """``a @ W``; with a bias as one linear map. What others may be joined with is a line."""
        a, W, b = self.apart(a, W, b)
        lean = "recomputed" in self.on and self.training and self.is_live(a) and _is_map(a, W, b) and _narrows(W)
        if b is not None and len(W.sizes) == 2:
            if lean:
                text = self.helper("lean_product", a.text, W.text, b.text)
            else:
                text = f"F.linear({a.text}, {transposed(W).text}, {b.text})"
            out = Code(text, a.axes, (*a.sizes[:-1], W.sizes[1]), product=(a, W, b))
        else:
            out = matmul(a, W, self.repeats)
            if lean:
                out = replace(out, text=self.helper("lean_product", a.text, W.text), level=ATOM)
            out = out if b is None else operation("+", out, b, self.repeats)
        if (
            "joined" in self.on
            and self.training is not None
            and is_name(a)
            and _is_map(a, W, b)
            and W.sizes[-1].number is not None
        ):
            if self.is_live(a) and not self.is_live(W) and not (b is not None and self.is_live(b)):
                if not out.sizes:  # what the scalar multiplies has sizes
                    out = replace(out, column=f"({out.text}).unsqueeze(-1)")
                return self.assign(self.fresh("t"), out, (a.text, W, b))
        return out

    def apart(self, *values: Any) -> tuple[Any, ...]:
        """The values; beside a live one, what reads the adapter's tensors alone is a line of its own, which is computed once."""
        known = [v for v in values if isinstance(v, (Code, Num))]
        if "folded" not in self.on or not any(is_live(v.text, self.live) for v in known):
            return values
        return tuple(self.once(v) if isinstance(v, Code) and not self.is_live(v) else v for v in values)

    def _compare(self, e: Compare) -> Written:
        a, b = self.write(e.left), self.write(e.right)
        like = next((v for v in (a, b) if isinstance(v, Code)), None)
        if like is None:
            return self.combined(e.op, a, b)
        named = self.once(like)
        a, b = (named if v is like else v for v in (a, b))
        out = self.combined(e.op, a, b)
        assert isinstance(out, Code)
        return Code(f"({out.text}).to({named.text}.dtype)", out.axes, out.sizes)

    def _choose(self, e: Choose) -> Written:
        test = self.write(e.test)
        if isinstance(test, str):
            raise Unwritten("a word as a condition")
        if not isinstance(test, (Code, Num)):
            return self.write(e.then if test else e.other)
        then, other = self.write(e.then), self.write(e.other)
        if isinstance(then, str) or isinstance(other, str):
            raise Unwritten("a choice of words")
        text = f"{text_of(then, COMPARISON)} if {text_of(test, COMPARISON)} else {text_of(other, CHOICE)}"
        if isinstance(then, Code) and isinstance(other, Code):
            if then.axes != other.axes:
                raise Unwritten("a choice of tensors with other axes")
            return Code(text, then.axes, then.sizes, CHOICE)
        tensor = next((v for v in (then, other) if isinstance(v, Code)), None)
        if tensor is not None:  # a gate that is a number outside training
            if tensor.axes or tensor.sizes:
                raise Unwritten("a choice between a tensor and a number")
            return Code(text, (), (), CHOICE)
        return Num(text, CHOICE)

    def _draw(self, draw: Draw) -> Code:
        """What is drawn. It enters where code is written for one pass; in a text for both, these are torch's own numbers."""
        written = [self.write(s) for s in draw.sizes]
        sizes = tuple(s.size if isinstance(s, Num) and s.size is not None else Size.of(s) for s in written)  # type: ignore[arg-type]
        h = self.h
        if not isinstance(h, Code):
            raise Unwritten(f"`{draw.word}` of a row that does not see h")
        if self.training is None:
            return self._drawn_here(draw, sizes, [text_of(s) for s in written], h)
        if draw.word == "noise" and not self.training:
            return Code(f"h.new_zeros(({''.join(f'{text_of(s)}, ' for s in written)}))", (), sizes)
        if not all(isinstance(s, int) for s in written):
            raise Unwritten(f"`{draw.word}` of sizes that are not known")
        axes = ordered(tuple(a for a in draw.axes if a in (*h.axes, "head", "group", *self.axes)))
        wanted = draw, tuple(written)
        name = next((n for n, other in self.drawn.items() if other == wanted), None)
        if name is None:
            name = self.safe(self.fresh("drawn", 0))
            self.drawn[name] = wanted  # type: ignore[assignment]
            self.live.add(name)
        return Code(name, axes, sizes)

    def _drawn_here(self, draw: Draw, sizes: tuple[Size, ...], written: Sequence[str], h: Code) -> Code:
        if draw.owner != "site":
            raise Unwritten(f"`{draw.word}` that several places share")
        if not set(draw.axes) <= {*h.axes, *self.axes}:
            raise Unwritten(f"`{draw.word}` along other axes than those of h")
        axes = ordered(draw.axes)
        lengths = [f"h.shape[{h.axes.index(a)}]" if a in h.axes else text_of(self.axes[a]) for a in axes]
        shape = [*lengths, *written]
        text = f"torch.{'randn' if draw.word == 'noise' else 'rand'}(({''.join(f'{s}, ' for s in shape)}), device=h.device, dtype=h.dtype)"
        if text not in self.draws:
            self.draws[text] = self.once(Code(text + " * self.training" * (draw.word == "noise"), axes, sizes, PRODUCT))
        return self.draws[text]

    def _index(self, e: Index) -> Written:
        bound = {n for n, v in self.names.items() if isinstance(v, Code) and (v.axes or v.sizes)}
        draw = draw_of(e, bound, self.axes)
        if draw is not None:
            return self._draw(draw)
        value = self.write(e.value)
        if not isinstance(value, Code):
            raise Unwritten("an index of a number")
        items, sizes = [], list(value.sizes)
        picks: list[tuple[int, Code]] = []
        for i, item in enumerate(e.items):
            if not isinstance(item, Slice):
                index = self.names[key] if (key := numbers_named(item)) in self.names else self.write(item)
                if not isinstance(index, Code):
                    raise Unwritten("an index that is no tensor")
                picks.append((i, index))
                items.append(":")
                continue
            low, high = (self.write(b) if b is not None else None for b in (item.low, item.high))
            items.append(f"{_end(low)}:{_end(high)}")
            sizes[i] = _length(sizes[i], low, high)
        items += [":"] * (len(value.sizes) - len(items))
        out = Code(
            text_of(value, ATOM) + (f"[{', '.join([':'] * len(value.axes) + items)}]" if set(items) != {":"} else ""),
            value.axes,
            tuple(sizes),
        )
        for i, index in reversed(picks):  # the last first: what stands behind a size may come to be more than one
            out = picked(out, i, index)
        return out

    def _apply(self, e: Apply) -> Written:
        match e:
            case Apply(Name("sum"), (product, axis)) if isinstance(axis.value, Name) and axis.value.id in self.axes:
                for summed in (circular, contracted):
                    if (found := summed(self, product.value, axis.value.id)) is not None:
                        return found
        args = [self.write(a.value) for a in e.args]
        text = dotted(e.function)
        if text is not None and text in self.bases:
            (a,) = args
            assert isinstance(a, Code)
            return Code(f"{text.replace('.', '_')}({a.text})", a.axes, (*a.sizes[:-1], self.bases[text]))
        if text is not None and text in self.called:
            return replace(self.called[text], text=f"{self.called[text].text}({text_of(args[0])})")
        name: Any = e.function.id if isinstance(e.function, Name) else None
        bound = self.names.get(name)
        name = bound if isinstance(bound, str) else name
        if name not in WORDS:
            raise Unwritten(f"`{name}`")
        if not any(isinstance(a, (Code, Num)) for a in args):
            return FUNCTIONS[name](None, *args)  # type: ignore[arg-type,return-value]
        return WORDS[name](self, *self.apart(*args))

    # ------------------------------------------------------------ reductions

    def dim(self, a: Code, over: Written) -> tuple[int, tuple[str, ...], tuple[Size, ...]]:
        """The dimension that is reduced, the axes that stay, the sizes that stay."""
        if isinstance(over, str):
            axis = "token" if over in ("tokens", "positions") else over
            if axis not in a.axes:
                raise Unwritten(f"a reduction over {axis}")
            return a.axes.index(axis), tuple(x for x in a.axes if x != axis), a.sizes
        if not isinstance(over, int):
            raise Unwritten("a reduction over a size that is not known")
        at = over if over >= 0 else len(a.sizes) + over
        return (len(a.axes) + over if over >= 0 else over), a.axes, tuple(s for i, s in enumerate(a.sizes) if i != at)

    def over_tokens(self, function: str, a: Code) -> Code:
        """A function of `helpers` over the real tokens."""
        if "batch" not in a.axes:
            raise Unwritten("real tokens of what has no batch")
        dim, axes, sizes = self.dim(a, "tokens")
        return replace(a.through(lambda text: self.helper(function, text, "mask", dim)), axes=axes, sizes=sizes)


def _is_map(a: Code, W: Code, b: Code | None) -> bool:
    """Whether ``a @ W`` (and ``+ b``) is one map of the last size, the same for every position."""
    fits = b is None or (not b.axes and len(b.sizes) == len(W.sizes) - 1)
    return bool(a.axes) and len(a.sizes) == 1 and not W.axes and len(W.sizes) in (1, 2) and fits


def _narrows(W: Code) -> bool:
    """Whether a product with W yields less than it reads."""
    n = [s.number for s in W.sizes]
    return len(n) == 1 or (None not in n and n[0] > n[1])  # type: ignore[operator]


def negative(v: Written) -> Written:
    if isinstance(v, Code):
        return v.through(lambda text: f"-{text_of(replace(v, text=text), SIGN)}", SIGN)
    if isinstance(v, Num):
        return Num(f"-{text_of(v, SIGN)}", SIGN, -v.size if v.size is not None else None)
    if isinstance(v, str):
        raise Unwritten("minus a word")
    return -v


def numbers(op: str, a: Any, b: Any) -> Written:
    """``a op b`` of numbers: computed where both are known."""
    if not isinstance(a, Num) and not isinstance(b, Num):
        return (
            a // b
            if op == "/" and isinstance(a, int) and isinstance(b, int) and b and a % b == 0
            else OPERATIONS[op](a, b)
        )
    sizes = [v.size if isinstance(v, Num) else Size.of(v) if isinstance(v, int) else None for v in (a, b)]
    size = OPERATIONS[op](*sizes) if op in ("+", "-", "*", "/") and None not in sizes else None
    level = LEVELS[op]
    return Num(f"{text_of(a, level + (op == '**'))} {op} {text_of(b, level + (op != '+'))}", level, size)


def _end(v: Written | None) -> str:
    """An end of a range; a size that is divided is a whole number."""
    if v is None:
        return ""
    return f"int({v.text})" if isinstance(v, Num) and "/" in v.text else text_of(v)


def _length(size: Size, low: Written | None, high: Written | None) -> Size:
    """The size of a range of a size."""
    ends = []
    for v, otherwise in ((low, Size.of(0)), (high, size)):
        if v is None:
            ends.append(otherwise)
        elif isinstance(v, int):
            ends.append(size + v if v < 0 else Size.of(v))
        elif isinstance(v, Num) and v.size is not None:
            ends.append(size + v.size if v.size.below_zero else v.size)
        else:
            raise Unwritten("a range whose ends are not known")
    return ends[1] - ends[0]
