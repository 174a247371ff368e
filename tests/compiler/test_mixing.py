"""Tokens that read one another: who reads whom, on causal models and others, with pads at either end and with a cache."""

from __future__ import annotations

import pytest
import small
import torch
from small import cache_of, with_cache
from torch import nn

import unipelt
from unipelt.compiler.evaluator import Context, evaluate
from unipelt.compiler.named import Named
from unipelt.compiler.words.mixing import CAUSAL
from unipelt.language.analyse.verdicts import verdicts
from unipelt.language.syntax.parser import parse_expression

ROW = "method m {{ modify {} insert {} form {{ {} }} compose h + delta }}"
ATTENTION = "Q: [d_in, 4] ~ normal(0.5) K: [d_in, 4] ~ normal(0.5) V: [d_in, d_out] ~ normal(0.5) delta = attention(z @ Q, z @ K, z @ V)"
CONV = "w: [3, d_in] ~ normal(0.5) U: [2, d_in, d_out] ~ normal(0.5) delta = conv(tanh(conv(z, w)), U)"
FORMS = {"attention": ATTENTION, "conv": CONV}


def applied(kind: str, form: str, site: str = "ffn", insert: str = "parallel", **more) -> nn.Module:
    model = small.model(kind, dtype=torch.float64)
    unipelt.apply(model, unipelt.parse(ROW.format(site, insert, FORMS[form])), **more)
    return model


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", ["llama", "gpt2", "bert"])
def test_a_later_token_is_read_where_the_model_reads_it(kind: str, form: str) -> None:
    model = applied(kind, form)
    ids = small.inputs(padded=False)["input_ids"]
    other = ids.clone()
    other[:, 4] = (other[:, 4] + 1) % small.WORDS
    a, b = small.output(model, input_ids=ids), small.output(model, input_ids=other)
    earlier, later = (a - b).abs()[:, :4].amax(), (a - b).abs()[:, 5:].amax()
    assert later > 1e-3
    assert earlier > 1e-3 if kind == "bert" else earlier < 1e-12


@pytest.mark.parametrize("lowering", [True, False])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_pads_are_read_by_no_token(kind: str, left: bool, form: str, lowering: bool) -> None:
    model = applied(kind, form, lowering=lowering)
    ids = small.inputs(padded=False)["input_ids"][:, :5]
    pads = torch.full((3, 3), 7)
    mask = torch.ones(3, 5, dtype=torch.long)
    alone = small.output(model, input_ids=ids, attention_mask=mask)
    none = torch.zeros_like(pads)
    padded = torch.cat([pads, ids] if left else [ids, pads], 1)
    whole = torch.cat([none, mask] if left else [mask, none], 1)
    given = {"input_ids": padded, "attention_mask": whole}
    if left:
        given["position_ids"] = torch.cat([none, torch.arange(5).expand(3, 5)], 1)
    found = small.output(model, **given)
    assert found.isfinite().all()
    assert torch.allclose(found[:, 3:] if left else found[:, :5], alone, atol=1e-9)


@pytest.mark.parametrize("form", FORMS)
def test_a_step_with_a_cache_sees_its_own_chunk_alone_and_the_plan_says_so(form: str) -> None:
    model = applied("llama", form)
    method = unipelt.parse(ROW.format("ffn", "parallel", FORMS[form]))
    assert verdicts(method)["cache-consistent"].value == "no" and verdicts(method)["causal"].value == "yes"
    plan = unipelt.plan(small.model("llama"), method)
    assert any("decoding with a cache differs" in w for w in plan.warnings)
    ids = small.inputs(padded=False)["input_ids"]
    whole = small.output(model, input_ids=ids)
    with torch.no_grad():
        first = model(input_ids=ids[:, :4], use_cache=True)
        then = model(input_ids=ids[:, 4:], use_cache=True, **with_cache(model, cache_of(first)))[0]
    assert torch.allclose(first[0], whole[:, :4], atol=1e-9) and not torch.allclose(then, whole[:, 4:], atol=1e-3)


def named(*shape: int, axes: str = "batch token", seed: int = 0) -> Named:
    g = torch.Generator().manual_seed(seed)
    return Named(torch.randn(shape, generator=g, dtype=torch.float64), tuple(axes.split()))


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("k", [1, 2, 3, 4, 5])
def test_a_convolution_is_that_of_torch(k: int, causal: bool) -> None:
    z, w, u = named(2, 7, 5), named(k, 5, axes="", seed=1), named(k, 5, 3, axes="", seed=2)
    mask = torch.ones(2, 7)
    mask[0, 5:] = 0
    before = k - 1 if causal else k // 2
    rows = nn.functional.pad((z.data * mask[..., None]).mT, (before, k - 1 - before))
    c = Context({"z": z, "w": w, "u": u, CAUSAL: causal}, {}, mask=mask)
    for text, kernel, groups in (("conv(z, w)", w.data.T[:, None], 5), ("conv(z, u)", u.data.permute(2, 1, 0), 1)):
        found = evaluate(parse_expression(text), c)
        assert torch.allclose(found.data, nn.functional.conv1d(rows, kernel, groups=groups).mT, atol=1e-12)  # type: ignore[union-attr]


@pytest.mark.parametrize("causal", [False, True])
def test_attention_is_that_of_torch(causal: bool) -> None:
    q, k, v = named(2, 7, 4), named(2, 7, 4, seed=1), named(2, 7, 3, seed=2)
    c = Context({"q": q, "k": k, "v": v, CAUSAL: causal}, {})
    found = evaluate(parse_expression("attention(q, k, v)"), c)
    expected = nn.functional.scaled_dot_product_attention(q.data, k.data, v.data, is_causal=causal)
    assert torch.allclose(found.data, expected, atol=1e-12)  # type: ignore[union-attr]


def test_kernels_and_heads_may_have_axes_of_their_own() -> None:
    z, w = named(2, 7, 5), named(3, 4, 5, axes="part", seed=1)
    c = Context({"z": z, "w": w, CAUSAL: True}, {})
    found = evaluate(parse_expression("conv(z, w)"), c)
    assert isinstance(found, Named) and found.axes == ("batch", "part", "token")
    for i in range(3):
        one = evaluate(parse_expression("conv(z, w)"), Context({"z": z, "w": Named(w.data[i]), CAUSAL: True}, {}))
        assert torch.allclose(found.data[:, i], one.data, atol=1e-12)  # type: ignore[union-attr]


def test_the_torch_text_takes_the_mask_and_whether_it_is_causal() -> None:
    for form in FORMS.values():
        scope: dict = {"__name__": "text"}
        exec(unipelt.parse(ROW.format("ffn", "parallel", form)).torch_source(), scope)
        module = scope["M"](8, causal=True)
        x = torch.randn(2, 5, 8)
        other = x.clone()
        other[:, 3] += 1
        a, b = module(torch.zeros(2, 5, 8), x, None), module(torch.zeros(2, 5, 8), other, None)
        assert torch.allclose(a[:, :3], b[:, :3], atol=1e-6) and not torch.allclose(a[:, 3:], b[:, 3:], atol=1e-3)
