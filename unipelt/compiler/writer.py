"""Writes the lines of a row as straight torch code: the twin of `evaluator`, which computes what this writes.

Every word of `functions` has an entry in `WORDS` here (a test holds that the two agree). What has none, or reads what is
not known when the code is written, raises `Unwritten`.
"""

from __future__ import annotations

import keyword
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from ..language.sites import axis_order
from ..language.sizes import Size
from ..language.syntax import (
    Apply,
    Attr,
    Axis,
    Binary,
    Choose,
    Compare,
    Expr,
    Index,
    Input,
    Let,
    ListOf,
    Name,
    Negative,
    Number,
    Require,
    Slice,
    Statement,
    String,
    Tensor,
    dotted,
)  # fmt: skip
from .code import (
    ATOM,
    CHOICE,
    COMPARISON,
    LEVELS,
    SIGN,
    Code,
    Num,
    Unwritten,
    Written,
    matmul,
    operation,
    refine,
    spread,
    text_of,
    transposed,
    union,
    with_number,
)
from .functions import FUNCTIONS

_OPS: dict[str, Callable] = {
    "+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv, "**": operator.pow,
    "==": operator.eq, "!=": operator.ne, "<=": operator.le, ">=": operator.ge, "<": operator.lt, ">": operator.gt,
}  # fmt: skip
#: Names that generated code uses for itself.
_TAKEN = frozenset(("torch", "F", "nn", "math", "self", "mask", "places", "h", *keyword.kwlist, *dir(torch.nn.Module)))


class Writer:
    """``names`` are the values that may be read, ``sizes`` the site's, ``bases`` the sizes that a frozen module yields.

    ``training`` is True or False where code is written for one of the two, and None where it asks ``self.training``.
    ``fused``: a product and a bias become one linear map.
    """

    def __init__(self, names: Mapping[str, Written], sizes: Mapping[str, Written], bases: Mapping[str, Size], repeats: Written,
                 training: bool | None, fused: bool):  # fmt: skip
        self.names: dict[str, Written] = dict(names)
        self.sizes, self.bases, self.repeats = dict(sizes), dict(bases), repeats
        self.training, self.fused = training, fused
        self.lines: list[str] = []
        self.helpers: dict[str, None] = {}
        self.taken: dict[str, str] = {}  # what each name of Python stands for
        self.temporary = 0

    # ------------------------------------------------------------ statements

    def run(self, body: Sequence[Statement], front: str = "") -> None:
        """The lets of a body. ``front`` keeps the names of a gate apart from those of the form."""
        for s in body:
            if isinstance(s, Let):
                self.bind(s.names[0], self.write(s.value), front)
            elif not isinstance(s, (Tensor, Axis, Require, Input)):
                raise Unwritten(f"`{s.word}`")

    def bind(self, name: str, value: Written, front: str = "") -> None:
        if isinstance(value, Code) and value.level != ATOM or isinstance(value, Code) and not value.text.replace(".", "").isidentifier():
            value = self.assign(front + name, value)
        self.names[name] = value

    def assign(self, name: str, value: Code) -> Code:
        """A line that gives a value a name."""
        safe = self.safe(name)
        self.lines.append(f"{safe} = {value.text}")
        return Code(safe, value.axes, value.sizes)

    def safe(self, name: str) -> str:
        """A name of the language as one of Python."""
        found = name.replace(".", "_")
        while found in _TAKEN or self.taken.get(found, name) != name:
            found += "_"
        self.taken[found] = name
        return found

    def once(self, value: Code) -> Code:
        """The value under a name of its own, where its text would be repeated."""
        if value.level == ATOM and value.text.replace(".", "").isidentifier():
            return value
        self.temporary += 1
        return self.assign(f"t{self.temporary}", value)

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

    def _name(self, id: str) -> Written:
        if id in self.names:
            return self.names[id]
        if id in self.sizes:
            return self.sizes[id]
        if id in ("true", "false"):
            return id == "true"
        if id == "training":
            return Num("self.training") if self.training is None else self.training
        if id == "chance":
            raise Unwritten("`chance`")
        return id  # a domain, an axis, an activation: words stand for themselves

    def _binary(self, e: Binary) -> Written:
        if self.fused and e.op == "+" and isinstance(e.left, Binary) and e.left.op == "@":
            return self._affine(e.left, e.right)
        return self.combined(e.op, self.write(e.left), self.write(e.right))

    def combined(self, op: str, a: Written, b: Written) -> Written:
        """``a op b``."""
        if isinstance(a, str) or isinstance(b, str):
            raise Unwritten(f"`{op}` of a word")
        if op == "@":
            if not isinstance(a, Code) or not isinstance(b, Code):
                raise Unwritten("`@` of a number")
            return matmul(a, b, self.repeats)
        if isinstance(a, Code) and isinstance(b, Code):
            return operation(op, a, b, self.repeats)
        if isinstance(a, Code) or isinstance(b, Code):
            return with_number(op, a, b)
        return numbers(op, a, b)

    def _affine(self, product: Binary, bias: Expr) -> Written:
        """``a @ W + b`` as one linear map where W and b are the same for every position."""
        a, W, b = self.write(product.left), self.write(product.right), self.write(bias)
        if isinstance(a, Code) and isinstance(W, Code) and isinstance(b, Code):
            if not (W.axes or b.axes) and len(W.sizes) == 2 and len(b.sizes) == 1 and a.axes:
                return Code(f"F.linear({a.text}, {transposed(W).text}, {b.text})", a.axes, (*a.sizes[:-1], W.sizes[1]))
        return self.combined("+", self.combined("@", a, W), b)

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

    def _index(self, e: Index) -> Written:
        value = self.write(e.value)
        if not isinstance(value, Code):
            raise Unwritten("an index of a number")
        items, sizes, picked = [], list(value.sizes), None
        for i, item in enumerate(e.items):
            if not isinstance(item, Slice):
                index = self.write(item)
                if not isinstance(index, Code):
                    raise Unwritten("an index that is no argument of the forward pass")
                picked = (i, index)
                items.append(":")
                continue
            low, high = (self.write(b) if b is not None else None for b in (item.low, item.high))
            items.append(f"{'' if low is None else text_of(low)}:{'' if high is None else text_of(high)}")
            sizes[i] = _length(sizes[i], low, high)
        items += [":"] * (len(value.sizes) - len(items))
        out = Code(text_of(value, ATOM) + (f"[{', '.join([':'] * len(value.axes) + items)}]" if set(items) != {":"} else ""), value.axes, tuple(sizes))
        if picked is None:
            return out
        i, index = picked  # an entry for each example: the axis batch stands in front of all others
        dim = len(value.axes) + i
        del sizes[i]
        moved = f".movedim({dim}, 0)" if dim else ""
        return Code(f"{out.text}.index_select({dim}, {index.text}){moved}", ("batch", *value.axes), tuple(sizes))

    def _apply(self, e: Apply) -> Written:
        args = [self.write(a.value) for a in e.args]
        text = dotted(e.function)
        if text is not None and text in self.bases:
            (a,) = args
            assert isinstance(a, Code)
            return Code(f"{text.replace('.', '_')}({a.text})", a.axes, (*a.sizes[:-1], self.bases[text]))
        name: Any = e.function.id if isinstance(e.function, Name) else None
        bound = self.names.get(name)
        name = bound if isinstance(bound, str) else name
        if name not in WORDS:
            raise Unwritten(f"`{name}`")
        if not any(isinstance(a, (Code, Num)) for a in args):
            return FUNCTIONS[name](None, *args)  # type: ignore[arg-type,return-value]
        return WORDS[name](self, *args)

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
        return Code(self.helper(function, a.text, "mask", dim), axes, sizes)


def negative(v: Written) -> Written:
    if isinstance(v, Code):
        return Code(f"-{text_of(v, SIGN)}", v.axes, v.sizes, SIGN)
    if isinstance(v, Num):
        return Num(f"-{text_of(v, SIGN)}", SIGN, -v.size if v.size is not None else None)
    if isinstance(v, str):
        raise Unwritten("minus a word")
    return -v


def numbers(op: str, a: Any, b: Any) -> Written:
    """``a op b`` of numbers: computed where both are known."""
    if not isinstance(a, Num) and not isinstance(b, Num):
        return a // b if op == "/" and isinstance(a, int) and isinstance(b, int) and b and a % b == 0 else _OPS[op](a, b)
    sizes = [v.size if isinstance(v, Num) else Size.of(v) if isinstance(v, int) else None for v in (a, b)]
    size = _OPS[op](*sizes) if op in ("+", "-", "*", "/") and None not in sizes else None
    level = LEVELS[op]
    return Num(f"{text_of(a, level + (op == '**'))} {op} {text_of(b, level + (op != '+'))}", level, size)


def _length(size: Size, low: Written | None, high: Written | None) -> Size:
    """The size of a range of a size."""
    ends = []
    for v, otherwise in ((low, Size.of(0)), (high, size)):
        if v is None:
            ends.append(otherwise)
        elif isinstance(v, int):
            ends.append(size + v if v < 0 else Size.of(v))
        elif isinstance(v, Num) and v.size is not None:
            ends.append(v.size)
        else:
            raise Unwritten("a range whose ends are not known")
    return ends[1] - ends[0]


# ---------------------------------------------------------------- the words

Word = Callable[..., Written]
WORDS: dict[str, Word] = {}


def word(*names: str) -> Callable[[Word], Word]:
    def add(f: Word) -> Word:
        WORDS.update(dict.fromkeys(names, f))
        return f

    return add


def _curve(name: str, call: str, number: str | None = None) -> None:
    """A function of each entry; ``number`` is the same of a plain number."""

    def curve(w: Writer, a: Written) -> Written:
        if isinstance(a, Code):
            inner = text_of(a, ATOM) if call.startswith("{}") else a.text
            return Code(call.format(inner), a.axes, a.sizes)
        if number is None:
            raise Unwritten(f"`{name}` of a number")
        return Num(number.format(text_of(a)))

    WORDS[name] = curve


_curve("relu", "F.relu({})", "max({}, 0.0)")
_curve("gelu", "F.gelu({})")
_curve("gelu_new", 'F.gelu({}, approximate="tanh")')
_curve("silu", "F.silu({})")
_curve("tanh", "torch.tanh({})", "math.tanh({})")
_curve("sigmoid", "torch.sigmoid({})")
_curve("softplus", "F.softplus({})")
_curve("exp", "torch.exp({})", "math.exp({})")
_curve("log", "torch.log({})", "math.log({})")
_curve("sqrt", "torch.sqrt({})", "math.sqrt({})")
_curve("abs", "torch.abs({})", "abs({})")
_curve("sin", "torch.sin({})", "math.sin({})")
_curve("cos", "torch.cos({})", "math.cos({})")
_curve("ceil", "torch.ceil({})", "math.ceil({})")
_curve("floor", "torch.floor({})", "math.floor({})")
_curve("stop_gradient", "{}.detach()", "{}")
WORDS["identity_map"] = lambda w, a: a


@word("drop")
def _drop(w: Writer, a: Written, p: Written) -> Written:
    if not isinstance(a, Code) or w.training is False or (not isinstance(p, Num) and not p):
        return a
    return Code(f"F.dropout({a.text}, {text_of(p)}{', self.training' if w.training is None else ''})", a.axes, a.sizes)


@word("max", "min")
def _extremum(w: Writer, *args: Written) -> Written:
    raise Unwritten("the largest of numbers that are not known")


@word("divides")
def _divides(w: Writer, a: Written, b: Written) -> Written:
    return Num(f"{text_of(b, LEVELS['*'])} % {text_of(a, SIGN)} == 0", COMPARISON)


def _reduction(name: str, plain: str, real: str | None = None) -> None:
    def reduce(w: Writer, a: Written, *over: Written) -> Written:
        for what in over or (-1,):
            if not isinstance(a, Code):
                raise Unwritten(f"`{name}` of a number")
            if what == "tokens" and real is not None:
                a = w.over_tokens(real, a)
                continue
            if what == "tokens":
                raise Unwritten(f"`{name}` over tokens")
            dim, axes, sizes = w.dim(a, what)
            a = Code(plain.format(text_of(a, ATOM) if plain.startswith("{0}") else a.text, dim), axes, sizes)
        return a

    WORDS[name] = reduce


_reduction("mean", "{0}.mean({1})", "mean_of_real")
_reduction("sum", "{0}.sum({1})", "sum_of_real")
_reduction("norm", "torch.linalg.vector_norm({0}, dim={1})")
_reduction("logsumexp", "torch.logsumexp({0}, {1})")


@word("softmax")
def _softmax(w: Writer, a: Written, over: Written = -1) -> Written:
    if not isinstance(a, Code) or over == "tokens":
        raise Unwritten("`softmax` of a number or over tokens")
    return Code(f"torch.softmax({a.text}, {w.dim(a, over)[0]})", a.axes, a.sizes)


@word("running_mean")
def _running_mean(w: Writer, a: Written) -> Written:
    assert isinstance(a, Code)
    return Code(w.helper("running_mean", a.text, a.axes.index("token")), a.axes, a.sizes)


def _pick(name: str, real: str, at: str) -> None:
    def pick(w: Writer, a: Written, over: Written) -> Written:
        assert isinstance(a, Code)
        if over == "tokens":
            return w.over_tokens(real, a)
        dim, axes, sizes = w.dim(a, over)
        return Code(f"{text_of(a, ATOM)}.select({dim}, {at})", axes, sizes)

    WORDS[name] = pick


_pick("first", "first_of_real", "0")
_pick("last", "last_of_real", "-1")


@word("heads")
def _heads(w: Writer, a: Written) -> Written:
    assert isinstance(a, Code)
    d_head, d_kv = w.sizes["d_head"], w.sizes["d_kv"]
    size = _as_size(d_head)
    name = "group" if a.sizes[-1] == _as_size(d_kv) else "head"
    axes = tuple(sorted({*a.axes, name}, key=axis_order))
    at = axes.index(name)
    dims = a.rank
    text = f"{text_of(a, ATOM)}.unflatten(-1, (-1, {text_of(d_head)})).movedim(-2, {at})"
    assert at < dims
    return Code(text, axes, (*a.sizes[:-1], size))


def _as_size(v: Written) -> Size:
    if isinstance(v, Num) and v.size is not None:
        return v.size
    if not isinstance(v, int):
        raise Unwritten("a size that is not known")
    return Size.of(v)


@word("concat")
def _concat(w: Writer, *parts: Written) -> Written:
    codes = [p for p in parts if isinstance(p, Code)]
    if len(codes) < len(parts):
        raise Unwritten("`concat` of a number")
    axes = union(*codes)
    codes = [refine(p, axes, w.repeats) for p in codes]
    last = codes[0].sizes[-1]
    for p in codes[1:]:
        last = last + p.sizes[-1]
    n = len(codes[0].sizes)
    if any(len(p.sizes) != n for p in codes):
        raise Unwritten("`concat` of other numbers of sizes")
    if all(p.axes == axes for p in codes):
        text = f"torch.cat([{', '.join(p.text for p in codes)}], -1)"
    else:
        text = w.helper("join_last", *(spread(p, axes, n) for p in codes))
    return Code(text, axes, (*codes[0].sizes[:-1], last))


@word("flip")
def _flip(w: Writer, a: Written) -> Written:
    assert isinstance(a, Code)
    return Code(f"{text_of(a, ATOM)}.flip(-2)", a.axes, a.sizes)


@word("lstm")
def _lstm(w: Writer, x: Written, W: Written, U: Written, b: Written) -> Written:
    assert isinstance(x, Code) and isinstance(W, Code) and isinstance(U, Code) and isinstance(b, Code)
    return Code(w.helper("lstm", x.text, W.text, U.text, b.text), x.axes, (*x.sizes[:-1], U.sizes[0]))


@word("prepend", "append")
def _prepend(w: Writer, rows: Written, h: Written, after: Written = 0) -> Written:
    assert isinstance(rows, Code) and isinstance(h, Code)
    return Code(w.helper("put_rows", rows.text, h.text, "places"), h.axes, h.sizes)


@word("fill")
def _fill(w: Writer, rows: Written, h: Written) -> Written:
    assert isinstance(rows, Code) and isinstance(h, Code)
    return Code(w.helper("fill_rows", rows.text, h.text, "places"), h.axes, h.sizes)


@word("width")
def _width(w: Writer, a: Written) -> Written:
    assert isinstance(a, Code)
    n = a.sizes[-1].number
    return int(n) if n is not None else Num(f"{text_of(a, ATOM)}.shape[-1]", size=a.sizes[-1])
