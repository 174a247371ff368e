"""The words of the language as torch code: for each function of `functions` what is written where it is called.

A test holds that the two tables have the same words.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Protocol

from ...language.sites import axis_order
from ...language.sizes import Size
from ..code import (
    ATOM,
    CHOICE,
    COMPARISON,
    LEVELS,
    SIGN,
    Code,
    Num,
    Unwritten,
    Written,
    broadcast,
    refine,
    spread,
    text_of,
    union,
)


class Writing(Protocol):
    """What a word may ask of the `Writer`."""

    sizes: Mapping[str, Written]
    axes: Mapping[str, Written]
    repeats: Written
    training: bool | None
    names: dict[str, Written]

    def helper(self, name: str, *args: Any) -> str: ...

    def asked(self, value: Code, most: Written) -> Code: ...

    def dim(self, a: Code, over: Written) -> tuple[int, tuple[str, ...], tuple[Size, ...]]: ...

    def over_tokens(self, function: str, a: Code) -> Code: ...


Word = Callable[..., Written]
WORDS: dict[str, Word] = {}


def word(*names: str) -> Callable[[Word], Word]:
    def add(f: Word) -> Word:
        WORDS.update(dict.fromkeys(names, f))
        return f

    return add


def _curve(name: str, call: str, number: str | None = None) -> None:
    """A function of each entry; ``number`` is the same of a plain number."""

    def curve(w: Writing, a: Written) -> Written:
        if isinstance(a, Code):
            level = ATOM if call.startswith("{}") else CHOICE
            return a.through(lambda text: call.format(text_of(replace(a, text=text), level)))
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
_curve("lgamma", "torch.lgamma({})", "math.lgamma({})")
_curve("digamma", "torch.digamma({})")
_curve("ceil", "torch.ceil({})", "math.ceil({})")
_curve("floor", "torch.floor({})", "math.floor({})")
_curve("round", "torch.round({})", "round({})")
_curve("stop_gradient", "{}.detach()", "{}")
WORDS["identity_map"] = lambda w, a: a


@word("nearest")
def _nearest(w: Writing, x: Written, table: Written) -> Written:
    assert isinstance(x, Code) and isinstance(table, Code)
    axes, n = union(x, table), len(x.sizes)
    x, table = refine(x, axes, w.repeats), refine(table, axes, w.repeats)
    return Code(w.helper("nearest", spread(x, axes, n), spread(table, axes, 1, whole=True), n), axes, x.sizes)


@word("leaky_relu")
def _leaky_relu(w: Writing, a: Written, share: Written = 0.01) -> Written:
    if not isinstance(a, Code):
        raise Unwritten("`leaky_relu` of a number")
    return Code(f"F.leaky_relu({a.text}, {text_of(share)})", a.axes, a.sizes)


@word("drop")
def _drop(w: Writing, a: Written, p: Written) -> Written:
    if not isinstance(a, Code) or w.training is False or (not isinstance(p, Num) and not p):
        return a
    return Code(f"F.dropout({a.text}, {text_of(p)}{', self.training' if w.training is None else ''})", a.axes, a.sizes)


@word("divides")
def _divides(w: Writing, a: Written, b: Written) -> Written:
    return Num(f"{text_of(b, LEVELS['*'])} % {text_of(a, SIGN)} == 0", COMPARISON)


def _reduction(name: str, plain: str, real: str | None = None) -> None:
    def reduce(w: Writing, a: Written, *over: Written) -> Written:
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


def _extremum(name: str, plain: str, real: str) -> None:
    _reduction(name, plain, real)
    reduce = WORDS[name]

    def extremum(w: Writing, *args: Written) -> Written:
        if not isinstance(args[0], Code):
            raise Unwritten("the largest of numbers that are not known")
        return reduce(w, *args)

    WORDS[name] = extremum


_extremum("max", "{0}.amax({1})", "largest")
_extremum("min", "{0}.amin({1})", "smallest")


@word("maximum")
def _maximum(w: Writing, a: Written, b: Written) -> Written:
    if isinstance(a, Code) and isinstance(b, Code):
        axes = union(a, b)
        a, b = refine(a, axes, w.repeats), refine(b, axes, w.repeats)
        n = max(len(a.sizes), len(b.sizes))
        text = f"torch.maximum({spread(a, axes, n)}, {spread(b, axes, n)})"
        return Code(text, axes, broadcast(a.sizes, b.sizes))
    a, b = (a, b) if isinstance(a, Code) else (b, a)
    assert isinstance(a, Code)
    return Code(f"{text_of(a, ATOM)}.clamp(min={text_of(b)})", a.axes, a.sizes)


def _norm(name: str) -> None:
    def norm(w: Writing, a: Written, *eps: Written) -> Written:
        assert isinstance(a, Code)
        return Code(w.helper(name, a.text, *map(text_of, eps)), a.axes, a.sizes)

    WORDS[name] = norm


_norm("layer_norm")
_norm("rms_norm")


@word("softmax")
def _softmax(w: Writing, a: Written, over: Written = -1) -> Written:
    if not isinstance(a, Code) or over == "tokens":
        raise Unwritten("`softmax` of a number or over tokens")
    return Code(f"torch.softmax({a.text}, {w.dim(a, over)[0]})", a.axes, a.sizes)


@word("running_mean")
def _running_mean(w: Writing, a: Written) -> Written:
    assert isinstance(a, Code)
    return Code(w.helper("running_mean", a.text, a.axes.index("token")), a.axes, a.sizes)


def _pick(name: str, real: str, at: str) -> None:
    def pick(w: Writing, a: Written, over: Written) -> Written:
        assert isinstance(a, Code)
        if over == "tokens":
            return w.over_tokens(real, a)
        dim, axes, sizes = w.dim(a, over)
        return Code(f"{text_of(a, ATOM)}.select({dim}, {at})", axes, sizes)

    WORDS[name] = pick


_pick("first", "first_of_real", "0")
_pick("last", "last_of_real", "-1")


@word("heads")
def _heads(w: Writing, a: Written) -> Written:
    assert isinstance(a, Code)
    d_head, d_kv = w.sizes["d_head"], w.sizes["d_kv"]
    size = as_size(d_head)
    name = "group" if a.sizes[-1] == as_size(d_kv) else "head"
    axes = tuple(sorted({*a.axes, name}, key=axis_order))
    at = axes.index(name)
    dims = a.rank
    text = f"{text_of(a, ATOM)}.unflatten(-1, (-1, {text_of(d_head)})).movedim(-2, {at})"
    assert at < dims
    return Code(text, axes, (*a.sizes[:-1], size))


def as_size(v: Written) -> Size:
    """A number as a size."""
    if isinstance(v, Num) and v.size is not None:
        return v.size
    if not isinstance(v, int):
        raise Unwritten("a size that is not known")
    return Size.of(v)


@word("concat")
def _concat(w: Writing, *parts: Written) -> Written:
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
def _flip(w: Writing, a: Written) -> Written:
    assert isinstance(a, Code)
    return Code(f"{text_of(a, ATOM)}.flip(-2)", a.axes, a.sizes)


@word("lstm")
def _lstm(w: Writing, x: Written, W: Written, U: Written, b: Written) -> Written:
    assert isinstance(x, Code) and isinstance(W, Code) and isinstance(U, Code) and isinstance(b, Code)
    return Code(w.helper("lstm", x.text, W.text, U.text, b.text), x.axes, (*x.sizes[:-1], U.sizes[0]))


@word("prepend", "append")
def _prepend(w: Writing, rows: Written, h: Written, after: Written = 0) -> Written:
    assert isinstance(rows, Code) and isinstance(h, Code)
    return Code(w.helper("put_rows", rows.text, h.text, "places"), h.axes, h.sizes)


@word("fill")
def _fill(w: Writing, rows: Written, h: Written) -> Written:
    assert isinstance(rows, Code) and isinstance(h, Code)
    return Code(w.helper("fill_rows", rows.text, h.text, "places"), h.axes, h.sizes)


@word("width")
def _width(w: Writing, a: Written) -> Written:
    assert isinstance(a, Code)
    n = a.sizes[-1].number
    return int(n) if n is not None else Num(f"{text_of(a, ATOM)}.shape[-1]", size=a.sizes[-1])
