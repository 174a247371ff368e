"""Random methods of the language, as texts: drawn type by type, so that most of them check; the checker decides.

Not recombinations of the library: sites, insertions, rows that meet are chosen here, by weight; the lines of forms, gates and
compositions are drawn by `random_expressions`. The same seed gives the same text.
"""

from __future__ import annotations

import random
import re

from random_expressions import NONE, Draw, Sizes, Type, type_of, words

from unipelt.language.sites import signature

PARAMS = "r: int = 3, l: int = 4, n: int = 2, alpha: float = 1.5, p: float = 0.3, act: activation = gelu"
WEIGHTS = {
    "attn": 4, "ffn": 4, "block": 3, "attn.q": 3, "attn.k": 2, "attn.v": 3, "attn.o": 2, "ffn.up": 2, "ffn.down": 2, "ffn.gate": 1,
    "attn.heads": 5, "ffn.hidden": 3, "embed": 3, "embed.words": 2, "head": 1, "final": 1, "cross": 1, "cross.v": 1, "cross.heads": 1,
    "block.input": 1, "attn.input": 0.5, "ffn.input": 0.5, "cross.q": 0.3, "cross.k": 0.3, "cross.o": 0.3, "cross.input": 0.3,
    "attn.q.weight": 0.7, "attn.v.weight": 0.4, "ffn.up.weight": 0.5, "ffn.down.weight": 0.4, "embed.weight": 0.3, "head.weight": 0.2,
    "attn.norm.weight": 0.4, "ffn.norm.weight": 0.4, "ffn.norm.bias": 0.3, "final.weight": 0.2,
    "ffn.experts.up.weight": 0.4, "ffn.experts.gate.weight": 0.3, "ffn.experts.down.weight": 0.4,
}  # fmt: skip
#: Sites whose scopes have the same sizes.
_ALIKE = {
    "attn": ["ffn"],
    "ffn": ["attn"],
    "attn.q": ["attn.q"],
    "attn.k": ["attn.v"],
    "attn.v": ["attn.k"],
    "ffn.up": ["ffn.gate"],
}


def _insertion(d: Draw) -> tuple[str, Type]:
    """A text for `insert`, with the type of z."""
    site, h = d.site, type_of(d.site.h)
    x = type_of(site.x) if site.x is not None else None
    options: list[tuple[str, Type]] = [("sequential", h)]
    if site.is_weight:  # a parameter of the base: z is the weight itself
        return "", h
    if x is not None:
        parallel = h if site.parallel == "q" else x
        options += [("parallel", parallel)] * 4 + [
            ("x", x),
            ("2 * x", x),
            ("stop_gradient(x)", x),
            ("running_mean(x)", x),
        ]
        options += [("mean(x, tokens)", (x[0] - {"token"}, x[1]))]
        options += [(f"{n}(h + residual)", h) for n, _ in site.bases if n.endswith(".norm")] * 2
        options += [("h + residual", h), ("residual", h)] if any(n == "residual" for n, _ in site.scope) else []
    options += [("tanh(h)", h), ("h * h", h), ("mean(h, positions)", (h[0] - {"token"}, h[1]))]
    return d.one(*options)


def _scope(d: Draw) -> dict[str, Type]:
    found = {n: type_of(t) for n, t in d.site.scope if n not in ("W", "bias", "ids")}
    if d.site.x is not None:
        found["x"] = type_of(d.site.x)
    return {n: t for n, t in found.items() if t[0] <= d.axes}


def _row(rng: random.Random, name: str, site: str) -> str:
    found = signature(site)
    assert found is not None
    d = Draw(rng, found, site.split(".")[0])
    insert, z = _insertion(d)
    d.body.scope = {**_scope(d), "z": z}
    d.z = {"parallel": str(found.parallel), "sequential": "h", "": "h"}.get(insert, insert)
    out = type_of(found.h)[1]
    prompt = found.takes_rows and d.chance(0.6)
    if prompt:  # rows are the same for every token
        d.axes, d.body.scope = NONE, {}
    d.starts_exactly = not prompt and d.chance(0.4)
    if found.pools:
        d.body.scope = {"z": z}
    for _ in range(rng.choice((0, 0, 1, 1, 2, 3))):
        d.let(
            rng.choice(((d.width(),), (d.width(),), (), ("l", d.width()))) if not prompt else ("l", d.one("r", *out)),
            2,
            d.chance(0.5),
        )
    # asked of the lines, so that methods without one are drawn as they were
    if (
        not prompt
        and not found.is_weight
        and not found.outside_the_layers
        and random.Random("\n".join(d.body.lines)).random() < 0.1
    ):
        _carry(d)
    size: Sizes = ("l", *out) if prompt else out if d.chance(0.85) else ()
    d.let(size, 3, not prompt and d.chance(0.8), "delta")
    vectors = [n for n, (axes, s) in d.body.scope.items() if len(s) == 1 and not axes and n in d.tensors]
    if vectors and d.chance(0.15):
        d.body.lines.append(f"penalty 0.1 * sum({d.one(*vectors)} ** 2)")
    if vectors and not prompt and d.chance(0.1):
        own = {line.split(":")[0] for line in d.body.lines if " per " not in line}  # assigned to at each of its places
        d.body.lines.append(_after_step(d, [n for n in vectors if n in own]))
    if prompt and d.chance(0.4):
        d.body.lines = [_from_words(d, line) for line in d.body.lines]
    form = list(d.body.lines)
    d.starts_exactly = False
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
        d.body.lines = [
            f"out = {d.one('prepend(delta, h)', 'prepend(delta, h)', 'prepend(delta, h, 1)', 'append(delta, h)', 'fill(delta, h)')}"
        ]
    else:
        d.body.scope["h"] = type_of(found.h)
        _compose(d, out, size)
    layers = (
        d.one("layers last 1 ", "layers first 1 ", "layers every 2 ", "layers 0 .. depth ")
        if not found.outside_the_layers and d.chance(0.12)
        else ""
    )
    if "token" in found.h.axes and not found.pools and not prompt and d.chance(0.08):
        layers += d.one(
            "tokens first 2 ",
            "tokens last 2 ",
            "tokens first 1, last 1 ",
            'tokens since "a text" ',
            "tokens since [7] ",
        )
    sites = site if not d.chance(0.2) else ", ".join([site, *d.rng.sample(_ALIKE.get(site, [site]), 1)])
    lines = "\n      ".join(form)
    compose = "\n      ".join(d.body.lines)
    said = f"insert {insert}\n    " if insert and (d.chance(0.9) or "z" in words(lines + gate)) else ""
    return (f"  use {{\n    {layers}modify {sites}\n    {said}form {{\n      {lines}\n    }}\n    compose {{\n      {compose}\n    }}\n"
            f"  }} as {name}{gate}")  # fmt: skip


def _carry(d: Draw) -> None:
    """A value that is handed from layer to layer, one for each token or one for each example."""
    inputs = [n for n, (axes, sizes) in d.body.scope.items() if {"batch", "token"} <= axes and len(sizes) == 1]
    if not inputs:
        return
    read, name, W, n = d.one(*inputs), d.fresh("s"), d.fresh("W"), d.width()
    axes, (inner,) = d.body.scope[read]
    start = d.one("normal(0.2) per site", "zeros per site", "normal(0.2) per model")
    own = f"{read} @ {W}"
    if d.chance(0.2):
        own, axes = f"mean({own}, {d.one('tokens', 'positions')})", axes - {"token"}
    next_ = d.one(
        f"{name} + {own}", f"tanh({name}) + {own}", f"0.5 * {name} - {own}", f"gelu({name} + {own})", name, f"2 * {own}"
    )
    d.body.lines += [
        f"{W}: [{d.alias(inner)}, {d.alias(n)}] ~ {start}",
        f"carry {name} = {d.one(own, f'relu({own})')} then {next_}",
    ]
    d.body.scope[name] = (axes, (n,))


def _after_step(d: Draw, trained: list[str]) -> str:
    """What happens to a vector between two steps."""
    if not trained:
        return ""
    name, front = d.one(*trained), d.fresh("s")
    kept = d.one(f"{name} = {name} * among(abs({name}), 2)", f"{front} = abs({name} * gradient({name}))  {name} = {name} * among({front}, 2)",
                 f"{name} = {name} / (1 + progress * norm({name}))")  # fmt: skip
    return f"after step {{ {kept} }}"


def _from_words(d: Draw, line: str) -> str:
    """The declaration of a prompt's rows with a start from words in place of its own."""
    if not re.match(r"W\d+: \[l, (d_model|d_out)\] ~ ", line):
        return line
    return line.split(" ~ ")[0] + " ~ " + d.one("sampled_tokens", 'tokens("a text")', "label_words")


def _compose(d: Draw, out: Sizes, size: Sizes) -> None:
    kind = d.rng.random()
    if kind < 0.35:
        d.body.lines.append(
            d.one(
                "out = h + delta",
                "out = h + delta",
                "out = h - delta",
                f"out = h + {d.one('0.5', 'alpha', 'alpha / r')} * delta",
            )
        )
    elif kind < 0.45:
        d.body.lines.append(d.one("out = h * delta", "out = h * (1 + delta)"))
    elif kind < 0.53 and size == out:
        d.body.lines.append(d.one("out = delta", "out = 0 * h + delta"))
    elif kind < 0.75:
        factor = d.group(d.expr((), 2))
        d.body.lines.append(d.one(f"out = h + {factor} * delta", f"out = (1 - {factor}) * h + {factor} * delta"))
    else:
        e = d.expr(out, 3)
        d.body.lines.append(
            d.one(
                f"out = h + delta * {d.group(e)}", f"out = h + delta + {d.group(e)}", f"out = {d.group(e)} + delta * h"
            )
        )


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
    if re.search(r"(prepend|append)\(", lines[0]) and rng.random() < 0.2:  # the rows that it adds are changed again
        lines.append(
            "  use { tokens inserted modify block.input form { T1: [l, d_model] ~ normal(0.3)  delta = T1[inserted] } compose h + delta } as t"
        )
    late = random.Random(f"late {seed}")  # rows that enter a block
    if late.random() < 0.04:
        placed = late.choice(("prepend(delta, h)", "prepend(delta, h, 1)", "append(delta, h)"))
        made = late.choice(("delta = T2", "delta = tanh(T2)"))
        lines.append(
            f"  use {{ layers first 1 modify block.input form {{ T2: [l, d_model] ~ normal(0.3)  {made} }} compose {placed} }} as u"
        )
    if rng.random() < 0.08:
        lines.append(rng.choice(("  train *.norm.*", "  train attn.q", "  train head")))
    return f"method m{seed}({PARAMS}) {{\n" + "\n".join(lines) + "\n}\n"
