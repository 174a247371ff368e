"""Projections that are columns of one module, whatever their widths: each edit acts on its own columns, merges into them and
starts from them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as T
from torch import nn

import unipelt
from unipelt.anatomy.columns import Columns, joined, taken
from unipelt.anatomy.find import OWN, find

WIDTH, INNER, VOCAB, HEAD = 32, 48, 64, 8
SIZES: dict[str, Any] = dict(vocab_size=VOCAB, hidden_size=WIDTH, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
                             intermediate_size=INNER, max_position_embeddings=32, pad_token_id=0, bos_token_id=1, eos_token_id=2,
                             initializer_range=0.3)  # fmt: skip
FUSED = ('like: "pre_norm"  attn.q: "self_attn.qkv_proj[0/2]"  attn.k: "self_attn.qkv_proj[2/4]"  attn.v: "self_attn.qkv_proj[3/4]" '
         'ffn.gate: "mlp.gate_up_proj[0/2]"  ffn.up: "mlp.gate_up_proj[1/2]"')  # fmt: skip
#: The columns of each projection's module; queries are half of theirs, keys and values a quarter each.
WHERE = {
    "attn.q": ("qkv_proj", 0, WIDTH), "attn.k": ("qkv_proj", WIDTH, WIDTH + 2 * HEAD), "attn.v": ("qkv_proj", WIDTH + 2 * HEAD, 2 * WIDTH),
    "ffn.gate": ("gate_up_proj", 0, INNER), "ffn.up": ("gate_up_proj", INNER, 2 * INNER),
}  # fmt: skip


def fused(monkeypatch: pytest.MonkeyPatch, folder: Path, entries: str = FUSED) -> Any:
    """A model with one projection for queries, keys and values of different widths, and one for gate and up."""
    file = folder / "mine.pelt"
    file.write_text(f"anatomy fused for phi3 {{ {entries} }}")
    monkeypatch.setenv(OWN, str(file))
    torch.manual_seed(0)
    return T.AutoModel.from_config(T.Phi3Config(**SIZES)).eval()


def output(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=torch.arange(5, 11)[None]).last_hidden_state


def low_rank(*sites: str) -> Any:
    return unipelt.parse(f"method low {{ modify {', '.join(sites)}  insert parallel  form {{ A: [d_in, 2] ~ normal(0.3)  "
                         "B: [2, d_out] ~ normal(0.3)  delta = z @ A @ B } compose add }")  # fmt: skip


@pytest.mark.parametrize("sites", [*((s,) for s in WHERE), tuple(WHERE), ("attn.k", "attn.v")], ids=" ".join)
@pytest.mark.parametrize("lowering", [True, False])
def test_an_edit_of_columns_acts_on_them_alone(
    sites: tuple[str, ...], lowering: bool, tmp_path: Path, monkeypatch: Any
) -> None:
    """The model with the product added to those columns of its weights, by hand, gives the same; so does the merged one."""
    model, by_hand = fused(monkeypatch, tmp_path), fused(monkeypatch, tmp_path)
    before = output(model)
    unipelt.apply(model, low_rank(*sites), lowering=lowering)
    tensors = unipelt.state_dict(model)
    with torch.no_grad():
        for layer in range(2):
            for site in sites:
                name, start, stop = WHERE[site]
                part = "self_attn" if site.startswith("attn") else "mlp"
                A, B = (tensors[f"layers.{layer}.{site}.low.{n}"] for n in "AB")
                by_hand.get_submodule(f"layers.{layer}.{part}.{name}").weight[start:stop] += (A @ B).T
    changed = output(model)
    assert (changed - before).abs().max() > 1e-2
    torch.testing.assert_close(changed, output(by_hand), rtol=1e-4, atol=1e-5)
    unipelt.merge(model, "default")
    for (n, merged), (_, expected) in zip(_weights(model), _weights(by_hand)):
        torch.testing.assert_close(merged, expected, rtol=1e-4, atol=1e-5, msg=n)


def test_columns_are_compiled_whole(tmp_path: Path, monkeypatch: Any) -> None:
    model = fused(monkeypatch, tmp_path)
    unipelt.apply(model, low_rank(*WHERE))
    expected = output(model)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(output(compiled), expected, rtol=1e-4, atol=1e-5)


def _weights(model: nn.Module) -> list[tuple[str, torch.Tensor]]:
    return [(n, p) for n, p in model.named_parameters() if "unipelt" not in n.split(".")]


def test_frozen_calls_give_the_columns_of_their_projection(tmp_path: Path, monkeypatch: Any) -> None:
    model = fused(monkeypatch, tmp_path)
    prefix = unipelt.parse("method p { modify attn.heads  insert parallel  form { P: [3, d_model] ~ normal(1) per site  "
                           "delta = softmax(q @ heads(attn.k(P)).T * scale) @ heads(attn.v(P)) }  compose add }")  # fmt: skip
    plan = unipelt.apply(model, prefix)
    edit = next(m for m in model.modules() if type(m).__name__ == "Edit")
    rows = torch.randn(3, WIDTH)
    weight = model.layers[0].self_attn.qkv_proj.weight
    for site in ("attn.q", "attn.k", "attn.v"):
        _, start, stop = WHERE[site]
        torch.testing.assert_close(edit.bases[site](rows), rows @ weight[start:stop].T)
    assert {e.site.sizes["groups"] for e in plan.edits} == {2}


#: A norm over the inputs of each output, one over the outputs of each input, the weight itself.
EXACT = "method start {{ modify {site}  insert parallel  form {{ n: [d_in] = norm(W, 1)  m: [d_out] = norm(W, 0)  C: [d_in, d_out] = W  delta = (z * n) @ C * m }}  compose add }}"


@pytest.mark.parametrize("site", ["attn.q", "attn.k", "attn.v"])
def test_an_exact_start_reads_the_columns_of_its_site(site: str) -> None:
    """GPT-2's three projections are one weight, [d_in, d_out]."""
    torch.manual_seed(0)
    model = T.GPT2Model(
        T.GPT2Config(vocab_size=VOCAB, n_embd=WIDTH, n_layer=2, n_head=4, n_positions=32, initializer_range=0.3)
    ).eval()
    _starts(model, site, model.h[1].attn.c_attn.weight.chunk(3, 1)["qkv".index(site[-1])], "h.1")


@pytest.mark.parametrize("site", list(WHERE))
def test_an_exact_start_reads_columns_of_any_width(site: str, tmp_path: Path, monkeypatch: Any) -> None:
    model = fused(monkeypatch, tmp_path)
    name, start, stop = WHERE[site]
    module = next(m for n, m in model.layers[1].named_modules() if n.endswith(name))
    _starts(model, site, module.weight[start:stop].T, "layers.1")


def test_a_bias_is_a_start_too() -> None:
    model = T.GPT2Model(T.GPT2Config(vocab_size=VOCAB, n_embd=WIDTH, n_layer=2, n_head=4, n_positions=32)).eval()
    with torch.no_grad():
        model.h[1].attn.c_attn.bias.normal_()
    unipelt.apply(
        model, unipelt.parse("method m { modify attn.k  form { b: [d_out] = bias  delta = b }  compose add }")
    )
    assert torch.equal(unipelt.state_dict(model)["h.1.attn.k.m.b"], model.h[1].attn.c_attn.bias[WIDTH : 2 * WIDTH])


def test_one_tensor_does_not_start_from_the_weights_of_several_sites() -> None:
    """It would be right at one site and wrong at the others."""
    model = T.GPT2Model(T.GPT2Config(vocab_size=VOCAB, n_embd=WIDTH, n_layer=2, n_head=4, n_positions=32)).eval()
    text = "method m {{ modify {sites}  insert parallel  form {{ n: [d_in] = norm(W, 1) {per}  delta = (z * n) @ W }}  compose add }}"
    for sites, per, code in (
        ("attn.q", "per kind", "E0367"),
        ("attn.q", "per model", "E0367"),
        ("attn.q, attn.v", "per layer", "E0513"),
    ):
        with pytest.raises(unipelt.PeltError) as e:
            unipelt.plan(model, unipelt.parse(text.format(sites=sites, per=per)))
        assert {d.code for d in e.value.diagnostics} == {code}
    unipelt.plan(model, unipelt.parse(text.format(sites="attn.q", per="per layer")))


def test_a_plan_says_what_is_trained_along() -> None:
    """`train` copies a module's parameters whole."""
    model = T.GPT2Model(T.GPT2Config(vocab_size=VOCAB, n_embd=WIDTH, n_layer=2, n_head=4, n_positions=32)).eval()
    (said,) = unipelt.plan(model, unipelt.parse("method m { train attn.q.bias }")).warnings
    assert "`train attn.q.bias` trains `attn.k` and `attn.v` too" in said
    assert not unipelt.plan(model, unipelt.parse("method m { train attn.q, attn.k, attn.v }")).warnings
    assert not unipelt.plan(T.BertModel(T.BertConfig(num_hidden_layers=1, hidden_size=8, num_attention_heads=2, intermediate_size=8,
                                                     vocab_size=9)), unipelt.parse("method m { train attn.q.bias }")).warnings  # fmt: skip


def _starts(model: Any, site: str, weight: torch.Tensor, block: str) -> None:
    unipelt.apply(model, unipelt.parse(EXACT.format(site=site)))
    tensors = unipelt.state_dict(model)
    n, m, c = (tensors[f"{block}.{site}.start.{x}"] for x in "nmC")
    torch.testing.assert_close(c, weight.detach(), rtol=0, atol=0)
    torch.testing.assert_close(n, weight.detach().norm(dim=1))
    torch.testing.assert_close(m, weight.detach().norm(dim=0))
    output(model)


def test_columns_of_a_tensor() -> None:
    h = torch.arange(12.0).reshape(2, 6)
    assert torch.equal(taken(h, None), h) and torch.equal(taken(h, Columns.span(2, 4)), h[:, 2:4])
    out = joined(h, {Columns.span(4, 5): -h[:, 4:5], Columns.span(0, 2): -h[:, :2]})
    assert torch.equal(out, h * torch.tensor([-1, -1, 1, 1, -1, 1]))
    assert Columns.span(0, 2).meets(Columns.span(1, 3)) and not Columns.span(0, 2).meets(Columns.span(2, 3))


@pytest.mark.parametrize("entries, code, said", [
    ('attn.v: "self_attn.qkv_proj[3/5]"', "E0507", "yields 64"),
    ('attn.v: "self_attn.qkv_proj[4/4]"', "E0505", "counted from 0"),
    ('attn.v: "self_attn.qkv_proj[0/0]"', "E0505", "counted from 0"),
    ('attn.v: "self_attn.qkv_proj[2/4]"', "E0508", "`attn.k` and `attn.v`"),
    ('attn.v: "self_attn.qkv_proj"', "E0508", "`attn.q` and `attn.v`"),
    ('ffn: "mlp.down_proj[0/1]"', "E0505", "only a projection"),
    ('ffn: "before post_attention_layernorm"', "E0505", "only `embed`"),
    ('attn.o: "before self_attn.o_proj"', "E0505", "only `embed`"),
    ('ffn.x: "mlp[0/2]"', "E0505", "only a projection"),
    ('attn.k: "self_attn.qkv_proj[16/32]"  attn.v: "self_attn.qkv_proj[17/32]"', "E0504", "2"),
])  # fmt: skip
def test_columns_that_mean_nothing_are_refused(
    entries: str, code: str, said: str, tmp_path: Path, monkeypatch: Any
) -> None:
    wrong = dict(re.findall(r'(\S+): ("[^"]*")', entries))
    mine = {**dict(re.findall(r'(\S+): ("[^"]*")', FUSED)), **wrong}
    model = fused(monkeypatch, tmp_path, "  ".join(f"{n}: {t}" for n, t in mine.items()))
    with pytest.raises(unipelt.PeltError) as e:
        find(model)
    (found,) = e.value.diagnostics
    assert found.code == code and said in found.message, str(e.value)
