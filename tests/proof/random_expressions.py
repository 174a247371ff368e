"""Random expressions of the language, drawn type by type: lines of a form, a gate or a composition at a site.

Each line is over what is in scope there (inputs of the site, tensors that are declared as they are needed, earlier lines) and
of a type that is wanted, as far as a text's names tell it: the checker decides. Rows and methods are put together in
`random_methods`.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from unipelt.language.sites import SiteSignature, TensorType

Sizes = tuple[str, ...]
Axes = frozenset[str]
Type = tuple[Axes, Sizes]
NONE: Axes = frozenset()

CURVES = (
    "relu",
    "gelu",
    "gelu_new",
    "silu",
    "tanh",
    "sigmoid",
    "softplus",
    "sin",
    "cos",
    "abs",
    "act",
    "identity_map",
    "leaky_relu",
)
STARTS = ("zeros", "zeros", "zeros", "normal(0.3)", "normal(0.3)", "normal(1.0)", "ones", "uniform(-0.5, 0.5)", "constant(0.5)",
          "kaiming_uniform(1)", "xavier_uniform", "xavier_normal", "torch_linear(4)", "truncated_normal(0.4)")  # fmt: skip


@dataclass
class Body:
    """The lines of a form, a gate or a composition while they are drawn; ``scope`` maps names to (axes, sizes)."""

    scope: dict[str, Type]
    lines: list[str] = field(default_factory=list)


class Draw:
    """What is drawn of one row at a site of this signature (where the row has several sites, of the first); ``front`` is the
    site's name up to a dot, under which the base's maps are called."""

    def __init__(self, rng: random.Random, site: SiteSignature, front: str):
        self.rng, self.site, self.front = rng, site, front
        self.count = 0
        self.z = "z"  # what z is, where it has another name
        self.axes: Axes = type_of(site.h)[0]  # those that an expression may have here
        self.declared: set[str] = set()  # what the lines so far declare besides tensors
        self.starts_exactly = False  # whether tensors may start from the base's weight and from data
        self.body = Body({})
        self.tensors: set[str] = set()

    # ------------------------------------------------------------ choosing

    def one(self, *options: Any) -> Any:
        return self.rng.choice(options)

    def chance(self, p: float) -> bool:
        return self.rng.random() < p

    def fresh(self, front: str) -> str:
        self.count += 1
        return f"{front}{self.count}"

    def pick(self, weighted: list[tuple[float, Callable[[], str | None]]]) -> str | None:
        """The first of the options, in a random order by weight, that yields something."""
        left = list(weighted)
        while left:
            i = self.rng.choices(range(len(left)), [w for w, _ in left])[0]
            found = left.pop(i)[1]()
            if found is not None:
                return found
        return None

    # ------------------------------------------------------------ tensors

    def tensor(self, sizes: Sizes, per: str = "") -> str:
        """A new tensor, declared before the line that reads it."""
        if not per and self.chance(0.5) and (started := self.exact(sizes)) is not None:
            return started
        name = self.fresh("W" if len(sizes) > 1 else "b")
        start = self.one(*STARTS)
        if len(sizes) == 2 and sizes[0] == sizes[1] and self.chance(0.3):
            start = self.one("identity", "orthogonal")
        if not sizes and "xavier" in start:
            start = "normal(0.5)"
        owners = [" per layer", " per site", " per kind", " per model"]
        owners += [] if self.site.outside_the_layers else [" per layers(2)"]
        scope = per or (self.one(*owners) if self.chance(0.15) else "")
        implied: Axes = NONE
        if self.site.has_heads:
            if not scope and self.chance(0.5):
                scope = self.one(" per group", " per head", " per site")
            implied = (
                frozenset({"group"})
                if "group" in scope
                else frozenset({"head"})
                if "head" in scope or not scope
                else NONE
            )
        if not scope:  # each expert has its own
            implied |= frozenset(self.site.own_axes)
        axes = implied | ({per.split()[-1]} if per else NONE)
        if not axes <= self.axes | {"group"}:
            scope, axes = " per site", NONE
        frozen = "frozen " if start not in ("zeros", "ones") and self.chance(0.1) else ""
        lr = " lr 4" if self.chance(0.04) else ""
        self.body.lines.append(f"{frozen}{name}: [{', '.join(self.alias(s) for s in sizes)}] ~ {start}{scope}{lr}")
        self.body.scope[name] = (axes, sizes)
        self.tensors.add(name)
        return name

    def exact(self, sizes: Sizes) -> str | None:
        """A tensor that starts from the base's weight, or from what data tell of what enters or of the weight's gradient."""
        if not (self.starts_exactly and self.site.has_weight and self.site.x is not None):
            return None
        d_in, d_out = type_of(dict(self.site.scope)["W"])[1]
        name, n, frozen = self.fresh("E"), self.count, self.one("", "frozen ")
        if sizes == (d_in, "r"):
            of = self.one("W", "W", "W / norm(W, 0)", "second_moment(x)", "mean_gradient(W)")
            lines = (
                [f"Q{n}, R{n} = qr({of})", f"{frozen}{name}: [{d_in}, r] = Q{n}[:, : r]"]
                if self.chance(0.3)
                else [f"U{n}, S{n}, V{n} = svd({of})", f"{frozen}{name}: [{d_in}, r] = U{n}[:, : r]{self.one('', f' * S{n}[: r]')}"]
            )  # fmt: skip
        elif sizes == ("r", d_out):
            lines = [f"U{n}, S{n}, V{n} = svd(W)", f"{frozen}{name}: [r, {d_out}] = V{n}[:, : r].T"]
        elif sizes == (d_in,):
            lines = [f"{frozen}{name}: [{d_in}] = data_mean(x)"]
        else:
            return None
        self.body.lines += lines
        self.body.scope[name] = (NONE, sizes)
        self.tensors.add(name)
        return name

    def alias(self, size: str) -> str:
        """A size of the site by one of its names."""
        if size == type_of(self.site.h)[1][-1] and self.chance(0.5):
            return "d_out"
        return size

    # ------------------------------------------------------------ expressions

    def leaf(self, sizes: Sizes, token: bool = False) -> str | None:
        """A name in scope of that type; ``token``: with a value for each token."""
        fit = [
            n
            for n, (axes, s) in self.body.scope.items()
            if s == sizes and axes <= self.axes | {"group"} and (not token or "token" in axes)
        ]
        if token and not fit:
            return None
        if fit and self.chance(0.75 if not token else 1.0):
            own = [n for n in fit if n not in self.tensors]
            return self.one(*(own if own and self.chance(0.8) else fit))
        return (
            None
            if token
            else (
                self.one("0.5", "2", "alpha", "1", "alpha / r")
                if not sizes and self.chance(0.4)
                else self.tensor(sizes)
            )
        )

    def expr(self, sizes: Sizes, depth: int, token: bool = False) -> str:
        """An expression with these sizes. ``token``: one with the axis token, where there is a way to have it."""
        makers = {0: self.scalars, 1: self.vectors, 2: self.matrices}[len(sizes)]
        if depth > 0 and self.chance(0.85):
            found = self.pick(makers(sizes, depth - 1, token))
            if found is not None:
                return found
        return self.leaf(sizes, token) or self.carried(sizes, token)

    def carried(self, sizes: Sizes, token: bool) -> str:
        """From a vector that there is to the sizes that are wanted."""
        if token and len(sizes) == 1:
            sources = [
                (n, s)
                for n, (axes, s) in self.body.scope.items()
                if "token" in axes and len(s) == 1 and axes <= self.axes
            ]
            if sources:
                n, s = self.one(*sources)
                return n if s == sizes else f"{n} @ {self.tensor((s[0], sizes[0]))}"
        return self.leaf(sizes) or self.tensor(sizes)

    def width(self) -> str:
        known = [s[-1] for _, s in self.body.scope.values() if s]
        return self.one("r", "r", "l", *known)

    def common(self, sizes: Sizes, d: int, token: bool) -> list[tuple[float, Callable[[], str | None]]]:
        """What is done entry by entry, whatever the sizes."""
        e = self.expr
        return [
            (3, lambda: f"{self.one(*CURVES)}({e(sizes, d, token)})"),
            (2, lambda: self.apart(self.one("({} + {})", "({} - {})"), e(sizes, d, token), e(sizes, d))),
            (2, lambda: f"{self.group(e(sizes, d, token))} * {self.group(e(sizes, d))}"),
            (1.5, lambda: f"{self.group(e((), d))} * {self.group(e(sizes, d, token))}"),
            (0.5, lambda: f"{self.group(e(sizes, d, token))} / (1 + abs({e(sizes, d)}))"),
            (0.3, lambda: f"{self.group(e(sizes, d, token))} ** 2"),
            (0.3, lambda: f"sqrt(abs({e(sizes, d, token)}) + 0.1)"),
            (0.3, lambda: f"log(1 + abs({e(sizes, d, token)}))"),
            (0.3, lambda: f"exp(tanh({e(sizes, d, token)}))"),
            (0.15, lambda: f"{self.one('floor', 'ceil', 'round')}(3 * {self.group(e(sizes, d, token))})"),
            (0.15, lambda: f"{self.one('lgamma', 'digamma')}(0.5 + abs({e(sizes, d, token)}))"),
            (0.15, lambda: f"nearest({e(sizes, d, token)}, {self.numbers()})"),
            (0.4, lambda: f"stop_gradient({e(sizes, d, token)})"),
            (0.7, lambda: f"drop({e(sizes, d, token)}, {self.one('0.5', '0.3', 'p', '0.0')})"),
            (0.3, lambda: f"-{self.group(e(sizes, d, token))}"),
            (0.5, lambda: f"({self.leaf(sizes, token) or e(sizes, d, token)} if {self.test()} else {self.leaf(sizes) or e(sizes, d)})"),
            (0.5, lambda: f"{self.apart(self.one('({} > {})', '({} <= {})'), e(sizes, d, token), e(sizes, d))} * {self.group(e(sizes, d))}" if sizes else None),
            (0.5, lambda: self.summed(sizes, d)),
            (0.8 if "token" in self.axes else 0, lambda: self.pooled(sizes, d, token)),
            (0.4, lambda: self.over_heads(sizes)),
        ]  # fmt: skip

    def vectors(self, sizes: Sizes, d: int, token: bool) -> list[tuple[float, Callable[[], str | None]]]:
        s, e = sizes[0], self.expr
        return [
            *self.common(sizes, d, token),
            (6, lambda: self.projected(s, d, token)),
            (0.5, lambda: f"{self.group(e(sizes, d, token))} @ {self.one(self.rotation, self.inverted)(s, d)}"),
            (0.8, lambda: f"softmax({e(sizes, d, token)})"),
            (0.8, lambda: self.attended(s, d, token)),
            (0.5, lambda: self.normed(s, d, token)),
            (0.4, lambda: self.joined(s, d, token)),
            (0.3, lambda: f"{self.one('layer_norm', 'rms_norm')}({e(sizes, d, token)})"),
            (0.3, lambda: f"roll({e(sizes, d, token)}, {self.one('1', '2', '-1')})"),
            (0.3, lambda: self.apart("maximum({}, {})", e(sizes, d, token), e(sizes, d))),
            (0.2, lambda: f"softmax(top({e(sizes, d, token)}, 2))"),
            (0.3, lambda: f"givens({e(sizes, d, token)}, {self.planes(s, d)})"),
            (0.4 if s.startswith("d_") else 0, lambda: self.blocks(s, d, token)),
            (0.4 if s in ("r", "l") else 0, lambda: self.ranged(s)),
            (0.3 if not token else 0.1, lambda: self.drawn(s)),
            (0.4 if not token else 0, lambda: self.given(s)),
            (2 if "token" in self.axes else 0, lambda: self.told_by_the_token(s)),
            (0.5, lambda: self.moved(s, d, token)),
            (0.5 if "token" in self.axes else 0, lambda: self.mixed(s, d)),
            (0.3, lambda: f"scatter({e(('r',), d, token)}, {self.places('r', s, 'integers')}, {s})"),
            (0.6 if self.site.has_weight and not token else 0, lambda: self.of_weight(s)),
            (0.8 if self.site.has_heads and s == "d_head" else 0, lambda: f"heads({self.front}.q({self.leaf(('d_model',), token) or 'x'}))"),
        ]  # fmt: skip

    def scalars(self, sizes: Sizes, d: int, token: bool) -> list[tuple[float, Callable[[], str | None]]]:
        e = self.expr

        def dot() -> str:
            t = self.width()
            return f"{self.group(e((t,), d, token))} @ {self.tensor((t,))}"

        return [
            *self.common(sizes, d, token),
            (3, lambda: f"{self.one('sum', 'mean', 'norm', 'logsumexp', 'max', 'min')}({e((self.width(),), d, token)})"),
            (3, dot),
            (0.3 if not token else 0, lambda: f"(1 / sqrt(width({e((self.width(),), 0)})))"),
            (0.4 if not token else 0, lambda: self.one("chance", "(chance if training else 1)", "progress", "chance[layer]", "(chance[site] if training else 1)", "noise[kind]", "alpha / r", "sqrt(r)", "(layer + 1) / depth")),
        ]  # fmt: skip

    def matrices(self, sizes: Sizes, d: int, token: bool) -> list[tuple[float, Callable[[], str | None]]]:
        a, b = sizes
        e = self.expr

        def product() -> str:
            t = self.one("r", "l")
            return f"{self.group(e((a, t), d))} @ {self.group(e((t, b), d))}"

        return [
            *((w * 0.6, f) for w, f in self.common(sizes, d, False)),
            (4, lambda: self.leaf(sizes)),
            (2, product),
            (0.8, lambda: f"{self.group(e((b, a), d))}.T"),
            (0.5, lambda: f"softmax({e(sizes, d)})"),
            (0.5, lambda: f"flip({e(sizes, d)})"),
            (2 if a.startswith("d_") and b.startswith("d_") else 0.4, lambda: f"scatter({e(('r',), d)}, {self.places('r', f'{a} * {b}')}, {a}, {b})"),
            (0.2, lambda: f"scatter({e(('r', b), d)}, {self.places('r', a, 'integers')}, {a})"),
            (0.4, lambda: f"{self.group(e(('l', b), d))}[{self.places(a, 'l', 'integers')}]"),
            (0.3 if a == b else 0, lambda: self.inverted(a, d)),
            (6 if self.starts_exactly and self.site.has_weight and type_of(dict(self.site.scope)["W"])[1] == sizes else 0,
             lambda: f"scatter({e(('r',), d)}, {self.places('r', f'{a} * {b}')}, {a}, {b})"),
            (0.3, lambda: f"pinv({self.tensor((b, a))})"),
            (4 if b == "r" and a.startswith("d_") else 0, lambda: f"orthonormal({self.tensor((a, b))})"),
            (2 if a.startswith("d_") and b.startswith("d_") else 0, lambda: self.wavelets(a, b, d)),
            (0.4, lambda: f"kron({e(('1', b), d)}, {e((a, '1'), d)})"),
            (0.3, lambda: f"{self.one('fft2', 'ifft2', 'idct2')}({e(sizes, d)})"),
            (0.4 if a == b else 0, lambda: self.rotation(a, d)),
            (0.4, lambda: f"lstm({self.plain((a, b))}, {self.plain((b, f'4 * {b}'))}, {self.plain((b, f'4 * {b}'))}, {self.plain((f'4 * {b}',))})"),
            (1 if self.site.has_heads and b == "d_head" else 0,
             lambda: f"heads({self.front}.{self.one('k', 'v')}({self.plain((a, 'd_model'))}))"),
            (2 if self.site.has_weight and type_of(dict(self.site.scope)["W"])[1] == sizes else 0, lambda: "W"),
        ]  # fmt: skip

    # ------------------------------------------------------------ parts of them

    def apart(self, op: str, a: str, b: str) -> str:
        """Of two things that are not one: ``x - x`` is nothing, and ``x > x`` nowhere true."""
        same = re.sub(r"\bz\b", self.z, a) == re.sub(r"\bz\b", self.z, b)
        return op.format(a, "0.3" if same else b)

    def group(self, text: str) -> str:
        """In parentheses, where it is more than a name or a call."""
        plain = text.replace("_", "").replace(".", "").isalnum()
        return text if plain else f"({text})"

    def plain(self, sizes: Sizes) -> str:
        """A tensor without axes."""
        fit = [n for n, (axes, s) in self.body.scope.items() if n in self.tensors and s == sizes and not axes]
        return (
            self.one(*fit)
            if fit and self.chance(0.5)
            else self.tensor(sizes, " per site" if self.site.has_heads else "")
        )

    def places(self, n: str, below: str, draw: str = "choice") -> str:
        """Whole numbers [n] that say where something stands."""
        name = self.fresh("I")
        start = f"~ {draw}({below})"
        if n == "r" and draw != "permutation" and self.chance(0.2):
            start = "~ listed(0, 2, 1)"  # as many as r is
        if n == "r" and draw != "permutation" and self.chance(0.15):
            start = f"= nearest_indices({self.plain(('r',))}, {below})"
        if draw == "choice" and self.starts_exactly and self.site.has_weight and self.chance(0.9):
            start = (
                "= top_indices(abs(W), " + n + ")"
                if below == " * ".join(type_of(dict(self.site.scope)["W"])[1])
                else start
            )
        self.body.lines.append(f"frozen {name}: [{n}] {start}" + (" per site" if self.site.has_heads else ""))
        return name

    def numbers(self) -> str:
        """A list of numbers: one that is given, or a tensor."""
        if self.chance(0.5):
            return self.plain(("r",))
        name = self.fresh("t")
        self.body.lines.append(
            f"frozen {name}: [3] ~ values(-0.5, 0.1, 1)" + (" per site" if self.site.has_heads else "")
        )
        return name

    def planes(self, s: str, d: int) -> str:
        """Angles of the planes of a vector, or a matrix for each."""
        return self.plain((f"{s} - 1",) if self.chance(0.6) else (f"{s} - 1", "2", "2"))

    def mixed(self, s: str, d: int) -> str | None:
        """A vector of each token, made of other tokens' too."""
        t = self.width()
        z = [
            n for n, (axes, sizes) in self.body.scope.items() if "token" in axes and sizes == (t,) and axes <= self.axes
        ]
        own = [
            n for n, (axes, sizes) in self.body.scope.items() if "token" in axes and sizes == (s,) and axes <= self.axes
        ]
        if not z or (not own and self.chance(0.5)):
            return None
        if own and self.chance(0.5):
            return f"attention({self.one(*z)}, {self.one(*z)}, {self.one(*own)})"
        if self.chance(0.3):
            return f"conv2d({self.one(*z)}, {self.plain(('n', '3', t, s))})"
        return (
            f"conv({self.one(*z)}, {self.plain(('n', t, s))})"
            if self.chance(0.5) or not own
            else f"conv({self.one(*own)}, {self.plain(('n', s))})"
        )

    def moved(self, s: str, d: int, token: bool) -> str:
        """A vector's entries in another order, or some of another's."""
        if self.chance(0.5):
            return f"{self.group(self.expr((s,), d, token))}[{self.places(s, s, 'permutation')}]"
        t = self.width()
        return f"{self.group(self.expr((t,), d, token))}[{self.places(s, t, 'integers')}]"

    def test(self) -> str:
        place = ["layer >= 1", "layer < depth / 2"] if not self.site.outside_the_layers else []
        return self.one("training", "training", "r > 2", "alpha > 2", *place)

    def projected(self, s: str, d: int, token: bool) -> str:
        t = self.width()
        matrix = self.expr((t, s), max(d, 1) if self.chance(0.4) else 0)
        return f"{self.group(self.expr((t,), d, token))} @ {self.group(matrix)}"

    def attended(self, s: str, d: int, token: bool) -> str:
        t = self.width()
        keys, values = self.expr(("l", t), min(d, 1)), self.expr(("l", s), min(d, 1))
        return f"softmax({self.group(self.expr((t,), d, token))} @ {self.group(keys)}.T) @ {self.group(values)}"

    def normed(self, s: str, d: int, token: bool) -> str | None:
        norms = [n for n, _ in self.site.bases if n.endswith(".norm")]
        if norms and s == "d_model" and self.chance(0.7):
            return f"{norms[0]}({self.expr((s,), d, token)})"
        v = self.let((s,), d, token)
        return f"({v} - mean({v})) / sqrt(mean({v} ** 2) + 0.1)"

    def joined(self, s: str, d: int, token: bool) -> str:
        a, b = self.expr(("r",), d, token), self.expr(("l",), d)
        return f"concat({a}, {b}) @ {self.tensor(('r + l', s))}"

    def blocks(self, s: str, d: int, token: bool) -> str | None:
        """A vector, half by half."""
        if "half" in self.declared and "axis half = 2" not in self.body.lines[:2]:
            return None
        if "half" not in self.declared:
            self.declared.add("half")
            self.body.lines.insert(0, "axis half = 2")
        whole = self.expr((s,), d, token)
        text = f"split({whole}, half)"
        if self.chance(0.5):
            text = f"{text} * {self.tensor((), ' per half')}"
        else:
            text = f"{text} @ {self.tensor((f'{s} / 2', f'{s} / 2'), ' per half')}"
        for n in [n for n, (axes, _) in self.body.scope.items() if "half" in axes]:
            del self.body.scope[n]
        return f"join({text}, half)"

    def rotation(self, n: str, d: int, regular: bool = False) -> str:
        """A square matrix of a kind of its own; ``regular``: one that has an inverse, as stable as itself."""
        pairs, least = self.tensor((f"{n} * ({n} - 1) / 2",)), self.tensor((n, "r"))
        if regular:
            return self.one(f"cayley(skew({pairs}, {n}))", f"householder({least})")
        return self.one(f"cayley(skew({pairs}, {n}))", f"cayley(skew({pairs}, {n}), 3)", f"skew({pairs}, {n})", f"householder({least})",
                        f"circulant({self.expr((n,), 0)})")  # fmt: skip

    def inverted(self, n: str, d: int) -> str:
        return f"inverse({self.rotation(n, d, regular=True)})"

    def wavelets(self, a: str, b: str, d: int) -> str:
        """A matrix by its wavelet coefficients; both sizes are even then, which is asked for."""
        for size in (a, b):
            if (line := f"require divides(2, {size})") not in self.body.lines:
                self.body.lines.append(line)
        return f"idwt2({self.expr((a, b), d)})"

    def told_by_the_token(self, s: str) -> str | None:
        """A vector that the id of a token picks, or its place in the text."""
        if not self.site.name.startswith("embed") or self.site.has_heads:
            return None
        n, word = self.one(("vocab", "ids"), ("64", "positions"))
        return f"{self.tensor((n, s), ' per site')}[{word}]"

    def ranged(self, s: str) -> str | None:
        wide = [
            n for n, (axes, z) in self.body.scope.items() if len(z) == 1 and z[0].startswith("d_") and axes <= self.axes
        ]
        return f"{self.one(*wide)}{self.one(f'[: {s}]', f'[-{s} :]')}" if wide else None

    def of_weight(self, s: str) -> str | None:
        W = type_of(dict(self.site.scope)["W"])[1]
        options = ["bias", "norm(W, 0)", "mean(W, 0)"] if W[1] == s else ["mean(W, 1)"] if W[0] == s else []
        return self.one(*options) if options else None

    def drawn(self, s: str) -> str:
        """Numbers of each pass, along some of the axes that there are."""
        axes = [a for a in ("batch", "token") if a in self.axes and self.chance(0.5)]
        return f"{self.one('noise', 'noise', 'chance')}[{', '.join([*axes, self.alias(s)])}]"

    def given(self, s: str) -> str | None:
        """What the forward pass is given for each example: an index that picks a row, or a vector."""
        if "batch" not in self.axes or not self.chance(0.3) or self.body.scope.get("z") is None:
            return None
        if "member" not in self.declared:
            self.declared.add("member")
            self.body.lines.append("input member: index(n)")
        return f"{self.tensor(('n', s), ' per site')}[member]"

    def pooled(self, sizes: Sizes, d: int, token: bool) -> str | None:
        if not sizes and self.chance(0.5):
            inner = self.expr((), d, True)
        else:
            inner = self.leaf(sizes, True) or (self.expr(sizes, d, True) if sizes else None)
        if inner is None or "token" not in self.axes:
            return None
        if token or self.chance(0.4):
            return f"running_mean({inner})"
        return f"{self.one('mean', 'mean', 'sum', 'first', 'last', 'max')}({inner}, {self.one('tokens', 'positions')})"

    def over_heads(self, sizes: Sizes) -> str | None:
        fit = [n for n, (axes, s) in self.body.scope.items() if s == sizes and "head" in axes]
        return f"{self.one('mean', 'sum')}({self.one(*fit)}, head)" if fit else None

    def summed(self, sizes: Sizes, d: int) -> str | None:
        """A sum over an axis that the form declares."""
        if not self.chance(0.25) or "term" in self.declared and self.body.lines[:1] != ["axis term = n"]:
            return None
        if "term" not in self.declared:
            self.declared.add("term")
            self.body.lines.insert(0, "axis term = n")
        before, self.axes = self.axes, self.axes | {"term"}
        try:
            part = self.tensor(sizes, " per term")
            inner = f"{self.group(self.expr(sizes, min(d, 1)))} * {part}" if self.chance(0.7) else part
        finally:
            self.axes = before
        for n in [n for n, (axes, _) in self.body.scope.items() if "term" in axes]:
            del self.body.scope[n]
        return f"{self.one('sum', 'mean')}({inner}, term)"

    def let(self, sizes: Sizes, d: int, token: bool, name: str = "") -> str:
        """A line of its own; its axes are said to be all that there may be, which only costs chances."""
        text = self.expr(sizes, d, token)
        name = name or self.fresh("u")
        self.body.lines.append(f"{name} = {text}")
        self.body.scope[name] = (self.axes if "token" in self._axes(text) else self._axes(text), sizes)
        return name

    def _axes(self, text: str) -> Axes:
        """The axes of an expression, as far as its names tell."""
        named = words(text)
        found = frozenset().union(*(axes for n, (axes, _) in self.body.scope.items() if n in named), NONE)
        return found & self.axes


def type_of(t: TensorType) -> Type:
    return t.axes, tuple(str(s) for s in t.sizes)


def words(text: str) -> set[str]:
    """The names and numbers in a text."""
    return set("".join(c if c.isalnum() or c == "_" else " " for c in text).split())
