"""The literal evaluator against explicit loops in float64: what named axes mean, and what the library's rows
compute.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from names import name, spec
from small import GROUPS, HEADS, WIDTH, model, randomise
from torch.nn import functional as F

import unipelt
from unipelt.compiler.evaluator import Context, constants, evaluate, run
from unipelt.compiler.named import Named, matmul, transpose
from unipelt.language.syntax.parser import parse_expression
from unipelt.runtime.edits import Edit

B, T, D = 3, 5, WIDTH // HEADS


def rand(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + 17 * len(shape)), dtype=torch.float64)


def edits(text_or_method: Any, kind: str = "llama", lowering: bool = False, seed: int = 1) -> list[Edit]:
    """The edits of a method at layer 0 of a small model in float64, with random tensors."""
    m = model(kind, dtype=torch.float64)
    method = unipelt.parse(spec(text_or_method)) if isinstance(text_or_method, str) else text_or_method
    unipelt.apply(m, method, allow_future=True, lowering=lowering)
    randomise(m, seed=seed)
    found = [e.eval() for e in m.modules() if isinstance(e, Edit) and e.site.layer in (None, 0)]
    assert found and all(p.dtype == torch.float64 for e in found for p in e.parameters())
    return found


def tensors(e: Edit) -> dict[str, torch.Tensor]:
    return {n: p.detach() for n, p in e.tensors().items()}


def close(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.shape == b.shape and bool((a - b).abs().max() < 1e-12)


# ---------------------------------------------------------------- named axes


def test_matmul_contracts_the_last_size_with_the_first_and_batches_axes() -> None:
    q, key = rand(B, HEADS, T, D), rand(GROUPS, 7, D, seed=1)
    out = matmul(Named(q, ("batch", "head", "token")), transpose(Named(key, ("group",))))
    assert out.axes == ("batch", "head", "token") and out.sizes == (7,)
    expected = torch.empty(B, HEADS, T, 7, dtype=torch.float64)
    for b in range(B):
        for h in range(HEADS):
            for t in range(T):
                for j in range(7):  # head h reads the key of group h // (heads / groups)
                    expected[b, h, t, j] = sum(q[b, h, t, i] * key[h // (HEADS // GROUPS), j, i] for i in range(D))
    assert close(out.data, expected)


@pytest.mark.parametrize(
    ("left", "right", "formula", "axes"),
    [
        (("batch token", (4,)), ("", (4, 6)), "bti,ij->btj", "batch token"),
        (("batch token", (4,)), ("", (4,)), "bti,i->bt", "batch token"),
        (("batch token", (4,)), ("batch token", (4,)), "bti,bti->bt", "batch token"),
        (("batch token", (4,)), ("batch", (4, 6)), "bti,bij->btj", "batch token"),
        (("batch token", (4,)), ("expert", (4, 6)), "bti,eij->betj", "batch expert token"),
        (("", (6, 4)), ("batch token", (4,)), "ji,bti->btj", "batch token"),
        (("expert", (6, 4)), ("batch token", (4,)), "eji,bti->betj", "batch expert token"),
        (("", (3, 6, 4)), ("", (4, 2)), "aji,ik->ajk", ""),
        (("", (4,)), ("", (4, 2)), "i,ik->k", ""),
        (("", (4,)), ("", (4,)), "i,i->", ""),
        (("batch token", (3, 4)), ("", (4, 2, 5)), "btai,ikl->btakl", "batch token"),
        (("head", (7, 4)), ("batch head token", (4,)), "hji,bhti->bhtj", "batch head token"),
        (("expert", (4,)), ("expert", (4, 6)), "ei,eij->ej", "expert"),
    ],
)
def test_matmul_is_an_einsum(left, right, formula: str, axes: str) -> None:
    lengths = {"batch": 2, "token": 5, "expert": 3, "head": 8}

    def make(side, seed: int) -> Named:
        names = tuple(side[0].split())
        return Named(rand(*(lengths[a] for a in names), *side[1], seed=seed), names)

    a, b = make(left, 1), make(right, 2)
    out = matmul(a, b)
    assert out.axes == tuple(axes.split()) and close(out.data, torch.einsum(formula, a.data, b.data))


@pytest.mark.parametrize(
    ("text", "formula"),
    [
        ("x * v", lambda x, v, g, s: x * v),
        ("x + s", lambda x, v, g, s: x + s),
        ("g * x", lambda x, v, g, s: g[:, None, None] * x),
        ("g + v", lambda x, v, g, s: g[:, None] + v),
        ("1 - g", lambda x, v, g, s: 1 - g),
        ("2 / v", lambda x, v, g, s: 2 / v),
        ("mean(x, tokens)", lambda x, v, g, s: torch.stack([x[0].mean(0), x[1, 2:].mean(0)])),
        ("mean(x, positions)", lambda x, v, g, s: x.mean(1)),
        ("sum(x, tokens)", lambda x, v, g, s: torch.stack([x[0].sum(0), x[1, 2:].sum(0)])),
        ("first(x, tokens)", lambda x, v, g, s: torch.stack([x[0, 0], x[1, 2]])),
        ("last(x, tokens)", lambda x, v, g, s: x[:, -1]),
        ("running_mean(x)", lambda x, v, g, s: torch.stack([x[:, : i + 1].mean(1) for i in range(4)], 1)),
        ("softmax(x)", lambda x, v, g, s: x.exp() / x.exp().sum(-1, keepdim=True)),
        ("norm(x)", lambda x, v, g, s: (x**2).sum(-1).sqrt()),
        ("x if training else v", lambda x, v, g, s: v),
        ("(x > 0) * x", lambda x, v, g, s: torch.relu(x)),
        ("concat(v, x)", lambda x, v, g, s: torch.cat([v.expand(2, 4, 3), x], -1)),
        ("v[-2 :]", lambda x, v, g, s: v[-2:]),
    ],
)
def test_elementwise_reductions_and_words(text: str, formula) -> None:
    x, v, g, s = rand(2, 4, 3), rand(3, seed=1), rand(2, seed=2), rand(1, seed=3)[0]
    names: dict[str, Any] = {"x": Named(x, ("batch", "token")), "v": Named(v), "g": Named(g, ("batch",)), "s": Named(s)}
    mask = torch.tensor([[1, 1, 1, 1], [0, 0, 1, 1]])
    out = evaluate(parse_expression(text), Context(names, {}, mask=mask))
    assert isinstance(out, Named) and close(out.data, formula(x, v, g, s))


def test_dropout_acts_in_training_alone() -> None:
    names: dict[str, Any] = {"x": Named(torch.ones(4000), ())}
    e = parse_expression("drop(x, 0.25)")
    still = evaluate(e, Context(dict(names), {}))
    assert isinstance(still, Named) and bool((still.data == 1).all())
    torch.manual_seed(0)
    out = evaluate(e, Context(dict(names), {}, training=True))
    assert isinstance(out, Named)
    assert 0.2 < float((out.data == 0).float().mean()) < 0.3 and torch.allclose(
        out.data[out.data != 0], torch.tensor(4 / 3)
    )


def test_parameters_are_values() -> None:
    method = unipelt.parse(
        "method m(r: int = 4, s: float = 2.0, act: activation = tanh, a: float = s / r) { modify ffn insert parallel "
        "form { A: [d_in, r] ~ zeros delta = z } compose { out = h + act(a * delta) } }"
    )
    known = constants(method.params, {"d_in": 3}, {"layer": 1})
    assert known["a"] == 0.5 and known["act"] == "tanh" and known["layer"] == 1
    x = rand(2, 4, 3)
    c = Context({**known, "h": Named(x, ("batch", "token")), "z": Named(x, ("batch", "token"))}, {"d_in": 3})
    run(method.rows[0].form, c)
    run(method.rows[0].compose, c)
    out = c.names["out"]
    assert isinstance(out, Named) and close(out.data, x + torch.tanh(0.5 * x))


# ---------------------------------------------------------------- rows of the library, by hand


def test_lora() -> None:
    q, v = edits(unipelt.load(name("lora"))(r=3, alpha=5.0))
    assert (q.site.name, v.site.name) == ("attn.q", "attn.v")
    for e in (q, v):
        t = tensors(e)
        h, x = rand(B, T, t["B"].shape[1]), rand(B, T, WIDTH, seed=1)
        expected = h + 5 / 3 * torch.einsum("btd,dr,ro->bto", x, t["A"], t["B"])
        assert close(e(h, {"x": x}), expected) and (expected - h).abs().max() > 1e-2


def test_bottleneck() -> None:
    e = edits("method m { modify ffn insert sequential form bottleneck(6, gelu) compose add }")[0]
    t, h = tensors(e), rand(B, T, WIDTH)
    inner = F.gelu(h @ t["down"] + t["b_down"])
    assert close(e(h, {}), h + inner @ t["up"] + t["b_up"])


def test_multi_head_parallel_adapter() -> None:
    e = edits(unipelt.load(name("multi_head_parallel_adapter"))(r=6))[0]
    t, h, q = tensors(e), rand(B, HEADS, T, D), rand(B, HEADS, T, D, seed=1)
    assert t["P_k"].shape == t["P_v"].shape == (HEADS, 6, D)
    expected = h.clone()
    for i in range(HEADS):
        expected[:, i] += torch.relu(q[:, i] @ t["P_k"][i].T) @ t["P_v"][i]
    assert close(e(h, {"q": q}), expected)


def attention(seed: int = 0, n: int = 7) -> tuple[torch.Tensor, ...]:
    """q, keys, values in every head; their scores, log-mass and output."""
    q, k, v = rand(B, HEADS, T, D, seed=seed), rand(B, HEADS, n, D, seed=seed + 1), rand(B, HEADS, n, D, seed=seed + 2)
    scores = q @ k.mT / math.sqrt(D)
    return q, k, v, scores.logsumexp(-1), scores.softmax(-1) @ v


def one_softmax(q: torch.Tensor, keys: list[torch.Tensor], values: list[torch.Tensor]) -> torch.Tensor:
    """Attention over the concatenation, with every head's rows written out."""
    out = torch.empty_like(q)
    for b in range(B):
        for i in range(HEADS):
            k = torch.cat([x[b, i] for x in keys])
            v = torch.cat([x[b, i] for x in values])
            out[b, i] = (q[b, i] @ k.T / math.sqrt(D)).softmax(-1) @ v
    return out


def heads(t: torch.Tensor) -> torch.Tensor:
    """[group, l, d] → [batch, head, l, d]"""
    return t.repeat_interleave(HEADS // GROUPS, 0).expand(B, -1, -1, -1)


def test_a_prefix_is_one_softmax_over_the_concatenation() -> None:
    e = edits(unipelt.load(name("prefix_tuning"))(l=6))[0]
    t = tensors(e)
    assert t["P_k"].shape == (GROUPS, 6, D), "one copy for each key/value head"
    q, k, v, mass, h = attention()
    out = e(h, {"q": q, "scale": D**-0.5, "log_mass": mass})
    assert close(out, one_softmax(q, [heads(t["P_k"]), k], [heads(t["P_v"]), v])) and (out - h).abs().max() > 1e-2


def test_two_prefixes_in_either_order_are_one_softmax() -> None:
    a = edits(unipelt.load(name("prefix_tuning"))(l=6), seed=1)[0]
    b = edits(unipelt.load(name("prefix_tuning"))(l=3), seed=2)[0]
    q, k, v, mass, h = attention()
    ta, tb = tensors(a), tensors(b)
    whole = one_softmax(q, [heads(ta["P_k"]), heads(tb["P_k"]), k], [heads(ta["P_v"]), heads(tb["P_v"]), v])
    for first, second in ((a, b), (b, a)):
        out, c = first.evaluate(h, {"q": q, "scale": D**-0.5, "log_mass": mass})
        own = c.names["scores"]
        assert isinstance(own, Named)
        then = torch.logaddexp(mass, own.data.logsumexp(-1))
        assert close(second(out, {"q": q, "scale": D**-0.5, "log_mass": then}), whole)


@pytest.mark.parametrize("lowering", [False, True])
def test_two_prefixes_commute_in_a_model_and_equal_one_long_prefix(lowering: bool) -> None:
    def attend(lengths: list[int], tensors_: list[dict[str, torch.Tensor]]) -> torch.Tensor:
        uses = "\n".join(f"use {name('prefix_tuning')}({n}) as p{i}" for i, n in enumerate(lengths))
        m = model("llama", dtype=torch.float64)
        unipelt.apply(m, unipelt.parse(f"method m {{ {uses} }}"), lowering=lowering)
        from unipelt.runtime.registry import record

        own = record(m, "default").trained()
        with torch.no_grad():
            for n, p in own.items():
                front, row, label = n.rsplit(".", 2)
                p.copy_(tensors_[int(row[1:])][f"{front}.{label}"])
        from small import output

        return output(m)

    places = [f"layers.{i}.attn.heads" for i in range(3)]
    a, b = (
        {f"{p}.{n}": rand(GROUPS, size, D, seed=9 * i + size) for i, p in enumerate(places) for n in ("P_k", "P_v")}
        for size in (2, 5)
    )
    both = {n: torch.cat([a[n], b[n]], 1) for n in a}
    one = attend([7], [both])
    assert (attend([2, 5], [a, b]) - one).abs().max() < 1e-10
    assert (attend([5, 2], [b, a]) - one).abs().max() < 1e-10
    assert (attend([2], [a]) - one).abs().max() > 1e-3


def test_llama_adapter_by_hand() -> None:
    m = model("llama", dtype=torch.float64)
    unipelt.apply(m, unipelt.load(name("llama_adapter"))(l=6, top=2), lowering=False)
    randomise(m)
    layers = [e for e in m.modules() if isinstance(e, Edit)]
    assert [e.site.layer for e in layers] == [1, 2]
    for e in layers:
        t = tensors(e)
        assert t["P"].shape == (6, WIDTH) and t["t"].shape == (HEADS,)
        block = m.model.layers[e.site.layer].self_attn
        k = (t["P"] @ block.k_proj.weight.T).reshape(6, GROUPS, D).movedim(1, 0)
        v = (t["P"] @ block.v_proj.weight.T).reshape(6, GROUPS, D).movedim(1, 0)
        q, _, _, _, h = attention(seed=e.site.layer or 0)
        expected = h.clone()
        for i in range(HEADS):
            g = i // (HEADS // GROUPS)
            expected[:, i] += torch.tanh(t["t"][i]) * ((q[:, i] @ k[g].T / math.sqrt(D)).softmax(-1) @ v[g])
        assert close(e(h, {"q": q, "scale": D**-0.5}), expected) and (expected - h).abs().max() > 1e-2


@pytest.mark.parametrize("compose", ["h + delta", "delta", "h * delta", "0.5 * h + 3 * delta"])
@pytest.mark.parametrize("lowering", [False, True])
def test_a_gate_mixes_what_was_with_what_would_be(compose: str, lowering: bool) -> None:
    text = f"use {{ modify ffn insert parallel form low_rank(4) compose {{ out = {compose} }} }} as a"
    plain = edits(f"method m {{ {text} }}", "bert", lowering)[0]
    gated = edits(f"method m {{ {text} gated by token_gate }}", "bert", lowering)[0]
    t = tensors(gated)
    with torch.no_grad():
        for n, p in plain.tensors().items():
            p.copy_(t[n])
    h, x = rand(B, T, WIDTH), rand(B, T, WIDTH, seed=1)
    out = plain(h, {"x": x})
    g = torch.sigmoid(x @ t["gate.w"] + t["gate.b"])
    assert g.shape == (B, T) and close(gated(h, {"x": x}), h + g[..., None] * (out - h))


def test_the_gate_of_a_sequence_pools_over_every_position() -> None:
    e = edits(
        "method m { use { modify ffn insert parallel form low_rank(4) compose add } as a gated by sequence_gate }",
        "bert",
    )[0]
    t, h, x = tensors(e), rand(B, T, WIDTH), rand(B, T, WIDTH, seed=1)
    g = torch.sigmoid(x @ t["gate.w"] + t["gate.b"]).mean(1)
    assert close(e(h, {"x": x}), h + g[:, None, None] * (x @ t["A"] @ t["B"]))


def test_the_gated_prefix_multiplies_keys_and_values() -> None:
    e = edits(unipelt.load(name("unipelt_gated_prefix"))(l=4, mid=6), "bert")[0]
    t, x = tensors(e), rand(B, T, WIDTH, seed=5)
    q, _, _, mass, h = attention()
    inner = torch.tanh(t["E"] @ t["W1"] + t["b1"])
    G = torch.sigmoid(x @ t["G_w"] + t["G_b"]).mean(1)
    expected = torch.empty_like(h)
    for i in range(HEADS):
        k = G[:, None, None] * (inner @ t["K"][i] + t["bk"][i])
        v = G[:, None, None] * (inner @ t["V"][i] + t["bv"][i])
        scores = q[:, i] @ k.mT / math.sqrt(D)
        lam = torch.sigmoid(scores.logsumexp(-1) - mass[:, i])[..., None]
        expected[:, i] = (1 - lam) * h[:, i] + lam * (scores.softmax(-1) @ v)
    assert close(e(h, {"q": q, "x": x, "scale": D**-0.5, "log_mass": mass}), expected)
