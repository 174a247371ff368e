"""Random methods of the language, as texts: drawn type by type, so that most of them check; the checker decides.

Not recombinations of the library: forms, gates and compositions are chains of lines, each a random expression over what
is in scope there (inputs of the site, tensors that are declared as they are needed, earlier lines), of a type that is
wanted. The same seed gives the same text.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from unipelt.language.sites import SITES, SiteSignature, TensorType

Sizes = tuple[str, ...]
Axes = frozenset[str]
NONE: Axes = frozenset()

PARAMS = "r: int = 3, l: int = 4, n: int = 2, alpha: float = 1.5, p: float = 0.3, act: activation = gelu"
WEIGHTS = {
    "attn": 4, "ffn": 4, "block": 3, "attn.q": 3, "attn.k": 2, "attn.v": 3, "attn.o": 2, "ffn.up": 2, "ffn.down": 2, "ffn.gate": 1,
    "attn.heads": 5, "ffn.hidden": 3, "embed": 3, "embed.words": 2, "head": 1, "cross": 1, "cross.v": 1, "cross.heads": 1,
}  # fmt: skip
CURVES = ("relu", "gelu", "gelu_new", "silu", "tanh", "sigmoid", "softplus", "sin", "cos", "abs", "act", "identity_map")
STARTS = ("zeros", "zeros", "zeros", "normal(0.3)", "normal(0.3)", "normal(1.0)", "ones", "uniform(-0.5, 0.5)", "constant(0.5)",
          "kaiming_uniform(1)", "xavier_uniform", "truncated_normal(0.4)")  # fmt: skip


@dataclass
class Body:
    """The lines of a form, a gate or a composition while they are drawn; ``scope`` maps names to (axes, sizes)."""

    scope: dict[str, tuple[Axes, Sizes]]
    lines: list[str] = field(default_factory=list)


class Draw:
    """One row at some sites, whose signature is that of the first."""

    def __init__(self, rng: random.Random, site: SiteSignature, front: str):
        self.rng, self.site, self.front = rng, site, front
        self.count = 0
        self.z = "z"  # what z is, where it has another name
        self.axes: Axes = _type(site.h)[0]  # those that an expression may have here
        self.declared: dict[str, str] = {}
        self.body = Body({})
        self.tensors: set[str] = set()

    # ------------------------------------------------------------ choosing

    def one(self, *options: Any) -> Any:
        return self.rng.choice(options)

    def chance(self, p: float) -> bool:
        return self.rng.random() < p

    def fresh(self, front: str = "t") -> str:
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
        name = self.fresh("W" if len(sizes) > 1 else "b")
        start = self.one(*STARTS)
        if len(sizes) == 2 and sizes[0] == sizes[1] and self.chance(0.3):
            start = self.one("identity", "orthogonal")
        if not sizes and "xavier" in start:
            start = "normal(0.5)"
        scope = per or (self.one(" per layer", " per site", " per kind", " per model") if self.chance(0.15) else "")
        implied: Axes = NONE
        if self.site.family == "heads":
            if not scope and self.chance(0.5):
                scope = self.one(" per group", " per head", " per site")
            implied = frozenset({"group"}) if "group" in scope else frozenset({"head"}) if "head" in scope or not scope else NONE
        axes = implied | ({per.split()[-1]} if per else NONE)
        if not axes <= self.axes | {"group"}:
            scope, axes = " per site", NONE
        frozen = "frozen " if start not in ("zeros", "ones") and self.chance(0.1) else ""
        lr = " lr 4" if self.chance(0.04) else ""
        self.body.lines.append(f"{frozen}{name}: [{', '.join(self.alias(s) for s in sizes)}] ~ {start}{scope}{lr}")
        self.body.scope[name] = (axes, sizes)
        self.tensors.add(name)
        return name

    def alias(self, size: str) -> str:
        """A size of the site by one of its names."""
        if size == _type(self.site.h)[1][-1] and self.chance(0.5):
            return "d_out"
        return size

    # ------------------------------------------------------------ expressions

    def leaf(self, sizes: Sizes, token: bool = False) -> str | None:
        """A name in scope of that type; ``token``: with a value for each token."""
        fit = [n for n, (axes, s) in self.body.scope.items() if s == sizes and axes <= self.axes | {"group"} and (not token or "token" in axes)]
        if token and not fit:
            return None
        if fit and self.chance(0.75 if not token else 1.0):
            own = [n for n in fit if n not in self.tensors]
            return self.one(*(own if own and self.chance(0.8) else fit))
        return None if token else (self.one("0.5", "2", "alpha", "1", "alpha / r") if not sizes and self.chance(0.4) else self.tensor(sizes))

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
            sources = [(n, s) for n, (axes, s) in self.body.scope.items() if "token" in axes and len(s) == 1 and axes <= self.axes]
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
            (0.15, lambda: f"{self.one('floor', 'ceil')}(3 * {self.group(e(sizes, d, token))})"),
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
            (0.8, lambda: f"softmax({e(sizes, d, token)})"),
            (0.8, lambda: self.attended(s, d, token)),
            (0.5, lambda: self.normed(s, d, token)),
            (0.4, lambda: self.joined(s, d, token)),
            (0.4 if s in ("r", "l") else 0, lambda: self.ranged(s)),
            (0.4 if not token else 0, lambda: self.given(s)),
            (0.6 if self.site.family == "projection" and not token else 0, lambda: self.of_weight(s)),
            (0.8 if self.site.family == "heads" and s == "d_head" else 0, lambda: f"heads({self.front}.q({self.leaf(('d_model',), token) or 'x'}))"),
        ]  # fmt: skip

    def scalars(self, sizes: Sizes, d: int, token: bool) -> list[tuple[float, Callable[[], str | None]]]:
        e = self.expr

        def dot() -> str:
            t = self.width()
            return f"{self.group(e((t,), d, token))} @ {self.tensor((t,))}"

        return [
            *self.common(sizes, d, token),
            (3, lambda: f"{self.one('sum', 'mean', 'norm', 'logsumexp')}({e((self.width(),), d, token)})"),
            (3, dot),
            (0.4 if not token else 0, lambda: self.one("chance", "(chance if training else 1)", "alpha / r", "sqrt(r)", "(layer + 1) / depth")),
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
            (0.4, lambda: f"lstm({self.plain((a, b))}, {self.plain((b, f'4 * {b}'))}, {self.plain((b, f'4 * {b}'))}, {self.plain((f'4 * {b}',))})"),
            (1 if self.site.family == "heads" and b == "d_head" else 0,
             lambda: f"heads({self.front}.{self.one('k', 'v')}({self.plain((a, 'd_model'))}))"),
            (2 if self.site.family == "projection" and _type(dict(self.site.scope)["W"])[1] == sizes else 0, lambda: "W"),
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
        return self.one(*fit) if fit and self.chance(0.5) else self.tensor(sizes, " per site" if self.site.family == "heads" else "")

    def test(self) -> str:
        place = ["layer >= 1", "layer < depth / 2"] if self.site.family not in ("embed", "head") else []
        return self.one("training", "training", "r > 2", "alpha > 2", *place)

    def projected(self, s: str, d: int, token: bool) -> str:
        t = self.width()
        matrix = self.expr((t, s), d if self.chance(0.3) else 0)
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

    def ranged(self, s: str) -> str | None:
        wide = [n for n, (axes, z) in self.body.scope.items() if len(z) == 1 and z[0].startswith("d_") and axes <= self.axes]
        return f"{self.one(*wide)}{self.one(f'[: {s}]', f'[-{s} :]')}" if wide else None

    def of_weight(self, s: str) -> str | None:
        W = _type(dict(self.site.scope)["W"])[1]
        options = ["bias", "norm(W, 0)", "mean(W, 0)"] if W[1] == s else ["mean(W, 1)"] if W[0] == s else []
        return self.one(*options) if options else None

    def given(self, s: str) -> str | None:
        """What the forward pass is given for each example: an index that picks a row, or a vector."""
        if "batch" not in self.axes or not self.chance(0.3) or self.body.scope.get("z") is None:
            return None
        name = "member"
        if name not in self.declared:
            self.declared[name] = "index(n)"
            self.body.lines.append("input member: index(n)")
        return f"{self.tensor(('n', s), ' per site')}[{name}]"

    def pooled(self, sizes: Sizes, d: int, token: bool) -> str | None:
        if not sizes and self.chance(0.5):
            inner = self.expr((), d, True)
        else:
            inner = self.leaf(sizes, True) or (self.expr(sizes, d, True) if sizes else None)
        if inner is None or "token" not in self.axes:
            return None
        if token or self.chance(0.4):
            return f"running_mean({inner})"
        return f"{self.one('mean', 'mean', 'sum', 'first', 'last')}({inner}, {self.one('tokens', 'positions')})"

    def over_heads(self, sizes: Sizes) -> str | None:
        fit = [n for n, (axes, s) in self.body.scope.items() if s == sizes and "head" in axes]
        return f"{self.one('mean', 'sum')}({self.one(*fit)}, head)" if fit else None

    def summed(self, sizes: Sizes, d: int) -> str | None:
        """A sum over an axis that the form declares."""
        if not self.chance(0.25) or "term" in self.declared and self.body.lines[:1] != ["axis term = n"]:
            return None
        if "term" not in self.declared:
            self.declared["term"] = "axis"
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
        words = set("".join(c if c.isalnum() or c == "_" else " " for c in text).split())
        found = frozenset().union(*(axes for n, (axes, _) in self.body.scope.items() if n in words), NONE)
        return found & self.axes


def _type(t: TensorType) -> tuple[Axes, Sizes]:
    return t.axes, tuple(str(s) for s in t.sizes)


# ---------------------------------------------------------------- rows and methods


def _insertion(d: Draw) -> tuple[str, tuple[Axes, Sizes]]:
    """A text for `insert`, with the type of z."""
    site, h = d.site, _type(d.site.h)
    x = _type(site.x) if site.x is not None else None
    options: list[tuple[str, tuple[Axes, Sizes]]] = [("sequential", h)]
    if x is not None:
        parallel = h if site.parallel == "q" else x
        options += [("parallel", parallel)] * 4 + [("x", x), ("2 * x", x), ("stop_gradient(x)", x), ("running_mean(x)", x)]
        options += [("mean(x, tokens)", (x[0] - {"token"}, x[1]))]
        options += [(f"{n}(h + residual)", h) for n, _ in site.bases if n.endswith(".norm")] * 2
        options += [("h + residual", h), ("residual", h)] if any(n == "residual" for n, _ in site.scope) else []
    options += [("tanh(h)", h), ("h * h", h), ("mean(h, positions)", (h[0] - {"token"}, h[1]))]
    return d.one(*options)


def _scope(d: Draw) -> dict[str, tuple[Axes, Sizes]]:
    found = {n: _type(t) for n, t in d.site.scope if n not in ("W", "bias")}
    if d.site.x is not None:
        found["x"] = _type(d.site.x)
    return {n: t for n, t in found.items() if t[0] <= d.axes}


def _row(rng: random.Random, name: str, site: str) -> str:
    found = SITES[site]
    d = Draw(rng, found, site.split(".")[0])
    insert, z = _insertion(d)
    d.body.scope = {**_scope(d), "z": z}
    d.z = {"parallel": str(found.parallel), "sequential": "h"}.get(insert, insert)
    out = _type(found.h)[1]
    prompt = found.family == "embed" and d.chance(0.6)
    pooled_head = found.family == "head"
    if prompt:  # rows are the same for every token
        d.axes, d.body.scope = NONE, {}
    if pooled_head:
        d.axes, d.body.scope = d.axes, {"z": z}
    for _ in range(rng.choice((0, 0, 1, 1, 2, 3))):
        d.let(rng.choice(((d.width(),), (d.width(),), (), ("l", d.width()))) if not prompt else ("l", d.one("r", *out)), 2, d.chance(0.5))
    size: Sizes = ("l", *out) if prompt else out if d.chance(0.85) else ()
    d.let(size, 3, not prompt and d.chance(0.8), "delta")
    form = list(d.body.lines)
    gate = ""
    if not prompt and d.chance(0.25):
        inner = Draw(rng, found, d.front)
        inner.z = d.z
        inner.count = 50
        inner.body.scope = {**_scope(inner), "z": z}
        inner.let((), 2, inner.chance(0.7), "g")
        gate = " gated by { " + "  ".join(inner.body.lines) + " }"
    d.body.lines = []
    if prompt:
        d.body.lines = [f"out = {d.one('prepend(delta, h)', 'prepend(delta, h)', 'prepend(delta, h, 1)', 'append(delta, h)', 'fill(delta, h)')}"]
    else:
        d.body.scope["h"] = _type(found.h)
        _compose(d, out, size)
    layers = d.one("layers last 1 ", "layers first 1 ", "layers every 2 ", "layers 0 .. depth ") if found.family not in ("embed", "head") and d.chance(0.12) else ""
    sites = site if not d.chance(0.2) else ", ".join([site, *d.rng.sample(_ALIKE.get(site, [site]), 1)])
    lines = "\n      ".join(form)
    compose = "\n      ".join(d.body.lines)
    said = f"insert {insert}\n    " if d.chance(0.9) or "z" in _words(lines + gate) else ""
    return (f"  use {{\n    {layers}modify {sites}\n    {said}form {{\n      {lines}\n    }}\n    compose {{\n      {compose}\n    }}\n"
            f"  }} as {name}{gate}")  # fmt: skip


def _words(text: str) -> set[str]:
    return set("".join(c if c.isalnum() or c == "_" else " " for c in text).split())


#: Sites whose scopes have the same sizes.
_ALIKE = {"attn": ["ffn"], "ffn": ["attn"], "attn.q": ["attn.q"], "attn.k": ["attn.v"], "attn.v": ["attn.k"], "ffn.up": ["ffn.gate"]}


def _compose(d: Draw, out: Sizes, size: Sizes) -> None:
    delta = "delta"
    kind = d.rng.random()
    if kind < 0.35:
        d.body.lines.append(d.one("out = h + delta", "out = h + delta", "out = h - delta", f"out = h + {d.one('0.5', 'alpha', 'alpha / r')} * delta"))
    elif kind < 0.45:
        d.body.lines.append(d.one("out = h * delta", "out = h * (1 + delta)"))
    elif kind < 0.53 and size == out:
        d.body.lines.append(d.one("out = delta", "out = 0 * h + delta"))
    elif kind < 0.75:
        factor = d.group(d.expr((), 2))
        d.body.lines.append(d.one(f"out = h + {factor} * delta", f"out = (1 - {factor}) * h + {factor} * delta"))
    else:
        e = d.expr(out, 3)
        d.body.lines.append(d.one(f"out = h + {delta} * {d.group(e)}", f"out = h + {delta} + {d.group(e)}", f"out = {d.group(e)} + delta * h"))


def text(seed: int) -> str:
    """A random method."""
    rng = random.Random(seed)
    rows = rng.choices((1, 2, 3), (70, 25, 5))[0]
    sites = rng.choices(list(WEIGHTS), list(WEIGHTS.values()), k=rows)
    if rows > 1 and rng.random() < 0.6:
        sites[1] = sites[0]  # rows that meet
    if any(s.startswith("cross") for s in sites):  # on such models `embed` is the encoder's, where nothing is decoded
        sites = ["ffn" if s.startswith("embed") else s for s in sites]
    lines = [_row(rng, "abc"[i], s) for i, s in enumerate(sites)]
    if rng.random() < 0.08:
        lines.append(rng.choice(("  train *.norm.*", "  train attn.q", "  train head")))
    return f"method m{seed}({PARAMS}) {{\n" + "\n".join(lines) + "\n}\n"


def texts(first: int = 0) -> Iterator[tuple[int, str]]:
    seed = first
    while True:
        yield seed, text(seed)
        seed += 1
