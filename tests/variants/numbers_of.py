"""What a method computes, by the literal evaluator on random values: the judge of what is said to be equal.

Tensors get their values by their place in the canonical order, so two methods that are the same up to names are given
the same values.
"""

from __future__ import annotations

import hashlib
from typing import Any

import torch

from unipelt.compiler.evaluator import Context, constants, evaluate, run
from unipelt.compiler.named import Named, elementwise, matmul
from unipelt.language.analyse.canonical import Canonical, canonical
from unipelt.language.check.methods import sites_of
from unipelt.language.types.rows import check_row
from unipelt.language.types.typed import Sizes
from unipelt.language.ir import Method
from unipelt.language.analyse.meaning import meaning
from unipelt.language.sites import axis_order, signature, site_name
from unipelt.language.syntax.nodes import Name

SIZES = dict(d_model=12, d_head=3, heads=4, groups=2, d_ff=20, d_kv=6, d_q=12, vocab=30, labels=3, d_x=12)
BATCH, TOKENS, DEPTH, LAYER = 2, 5, 4, 3
LENGTHS = {"batch": BATCH, "token": TOKENS, "head": SIZES["heads"], "group": SIZES["groups"]}


def draw(label: str, shape: list[int]) -> torch.Tensor:
    seed = int.from_bytes(hashlib.sha256(label.encode()).digest()[:6], "little")
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 0.7


def outputs(
    method: Method, order: Canonical | None = None, zero: frozenset[str] = frozenset()
) -> dict[str, torch.Tensor]:
    """The new h of each site on the same random scope; ``zero`` are numbered tensors (t1, …) that are 0."""
    order = order or canonical(meaning(method))
    labels = {key: (f"t{i}", turned) for i, (key, turned) in enumerate(order.keys, 1)}
    state: dict[str, Any] = {}
    weights: dict[str, Named] = {}
    rows = sorted(method.rows, key=lambda r: not all(str(p).endswith(".weight") for p in r.sites))
    for row in rows:
        for path in sites_of(row.sites, method.params):
            _, name = site_name(str(path))
            found = signature(name)
            assert found is not None
            at = found.into if found.is_weight else name
            typing = check_row(row, found, method.params, Sizes(SIZES, LAYER, DEPTH))
            names = constants(method.params, SIZES, {"layer": LAYER, "depth": DEPTH})
            for t in typing.tensors:
                key = "/".join([row.name, t.label, *([found.name] if t.owner.each in ("site", "kind") else [])])
                label, turned = labels[key]
                axes = tuple(sorted(t.type.axes, key=axis_order))
                shape = [LENGTHS[a] for a in axes] + [int(s.number) for s in t.type.sizes]  # type: ignore[arg-type]
                if turned:
                    shape[-2:] = [shape[-1], shape[-2]]
                value = torch.zeros(shape, dtype=torch.float64) if label in zero else draw(label, shape)
                names[t.label] = Named(value.transpose(-1, -2) if turned else value, axes)
            bases = {n: _base(n, a, b) for n, (a, b) in typing.bases.items()}
            edited = _edited(row, typing, found, at, names, bases, state, weights)
            if edited is not None:
                state[at] = edited
    for at, W in weights.items():  # a weight edit shows in what the projection computes
        if at not in state:
            state[at] = _affine(at, W)
    return {at: v.data for at, v in state.items()}


def _base(name: str, a: Any, b: Any) -> Any:
    W = draw(f"base {name}", [int(a.number), int(b.number)])
    return lambda t: torch.tanh(t @ W) if name.endswith("norm") else t @ W


def _scope(at: str, name: str, type_: Any) -> Named:
    axes = tuple(sorted(type_.axes, key=axis_order))
    shape = [LENGTHS[a] for a in axes] + [int(s.bind(SIZES).number) for s in type_.sizes]
    return Named(draw(f"scope {at} {name}", shape), axes)


def _affine(at: str, W: Named) -> Named:
    found = signature(at)
    assert found is not None and found.x is not None
    bias = _scope(at, "bias", dict(found.scope)["bias"])
    return elementwise(torch.add, matmul(_scope(at, "x", found.x), W), bias)  # type: ignore[return-value]


def _edited(row: Any, typing: Any, found: Any, at: str, names: dict, bases: dict, state: dict, weights: dict) -> Any:
    scope = {n: _scope(at, n, t) for n, t in found.scope}
    if found.x is not None:
        scope["x"] = _scope(at, "x", found.x)
    if found.is_weight:
        scope["W"] = weights.get(at, _scope(at, "W", found.h))
        h = scope["W"]
    elif found.has_weight:
        scope["W"] = weights.get(at, scope["W"])
        h = state.get(at) or _affine(at, scope["W"])
    else:
        h = state.get(at) or _scope(at, "h", found.h)
    c = Context({**names, **scope}, SIZES, bases)
    if found.has_heads:
        c.names["scale"] = 0.5
    e = row.insert
    if found.is_weight:
        c.names["z"] = h
    elif isinstance(e, Name) and e.id in ("parallel", "sequential"):
        c.names["z"] = h if e.id == "sequential" else c.names[found.parallel]
    elif e is not None:
        c.names["h"] = h
        c.names["z"] = evaluate(e, c)
        del c.names["h"]
    g = None
    if row.gate is not None:
        inner = Context(dict(c.names), SIZES, bases)
        inner.names |= {n[5:]: v for n, v in names.items() if n.startswith("gate.")}
        run(row.gate, inner)
        g = inner.names["g"]
    run(row.form, c)
    c.names["h"] = h
    run(row.compose, c)
    out: Any = c.names["out"]
    if g is not None:
        out = elementwise(torch.add, h, elementwise(torch.mul, g, elementwise(torch.sub, out, h)))
    if found.is_weight:
        weights[at] = out
        return None
    return out


def distance(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    """The largest difference over all sites, relative to the largest entry; sites must be the same."""
    assert a.keys() == b.keys()
    worst = 0.0
    for at in a:
        x, y = torch.broadcast_tensors(a[at], b[at])
        worst = max(worst, float((x - y).abs().max() / x.abs().max().clamp(min=1)))
    return worst
