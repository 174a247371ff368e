"""Every size is a number wherever a number may stand, at every site: a method that reads sizes computes what the same method
with the numbers themselves computes, literal and lowered, saved and loaded.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mixed
import pytest
import torch
from small import HEADS, INNER, LAYERS, WIDTH, WORDS, inputs, model, output, randomise, state
from torch import nn

import unipelt
from unipelt.language.sites import SITES
from unipelt.runtime.registry import record

HEAD = 12  # of the grouped model, whose heads together are wider than its tokens: d_q != d_model
LABELS = 3
_COMMON = {"d_model": WIDTH, "d_ff": INNER, "vocab": WORDS, "heads": HEADS}
#: The sizes of each model that are alike at all of its sites.
KNOWN = {
    "bert": {**_COMMON, "d_head": WIDTH // HEADS, "d_q": WIDTH, "d_kv": WIDTH, "groups": HEADS, "labels": LABELS},
    "grouped": {**_COMMON, "d_head": HEAD, "d_q": HEADS * HEAD, "d_kv": 2 * HEAD, "groups": 2, "labels": WORDS},
    "t5": {**_COMMON, "d_head": 6, "d_q": 24, "d_kv": 24, "groups": HEADS, "labels": WORDS},
}
#: The names of the sizes of x, of what `insert parallel` (at the input `insert sequential`) reads, and of h.
OWN = {
    name: [str(t.sizes[0]) if t is not None else None for t in (s.x, s.x if s.parallel == "x" else s.h, s.h)]
    for name, s in SITES.items()
}
_CROSS = tuple(n for n, s in SITES.items() if s.cross)
#: Sites of a model whose blocks differ, with the sizes that all of the blocks have that have them.
MIXED = {
    **{n: ("d_model", "d_mix", "d_inner", "vocab") for n, s in SITES.items() if s.mixes}, "ffn.router": ("d_model", "d_experts", "vocab"),
    **{f"attn.{n}": ("d_model", "d_q_rank", "d_q", "d_kv_a", "d_kv_rank", "d_kv_b", "d_experts", "heads", "vocab") for n in ("q_a", "q_b", "kv_a", "kv_b")},
    "projector": ("d_model", "vocab", "heads"),
}  # fmt: skip
LACKING = {"bert": (*_CROSS, *MIXED, "ffn.gate", "final"), "grouped": (*_CROSS, *MIXED, "embed"), "t5": (*MIXED, "ffn.gate", "embed"),
           "mixed": tuple(n for n in SITES if n not in MIXED)}  # fmt: skip
CASES = [(kind, site) for kind in (*KNOWN, "mixed") for site in SITES if site not in LACKING[kind]]


def build(kind: str) -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM, T5Config, T5ForConditionalGeneration

    if kind == "bert":
        return model("bert_labels", dtype=torch.float64)
    if kind == "mixed":
        return mixed.build()
    torch.manual_seed(0)
    if kind == "grouped":
        config = LlamaConfig(hidden_size=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=HEADS, intermediate_size=INNER, vocab_size=WORDS,
                             num_key_value_heads=2, head_dim=HEAD)  # fmt: skip
        return LlamaForCausalLM(config).double().eval()
    t5 = T5Config(
        vocab_size=WORDS,
        d_model=WIDTH,
        d_kv=6,
        d_ff=INNER,
        num_layers=2,
        num_decoder_layers=1,
        num_heads=HEADS,
        dropout_rate=0.0,
    )
    return T5ForConditionalGeneration(t5).double().eval()


def given(kind: str) -> dict[str, Any]:
    if kind == "mixed":
        return mixed.batch()
    batch = inputs()
    return {**batch, "decoder_input_ids": batch["input_ids"][:, :4]} if kind == "t5" else batch


def sizes_at(kind: str, site: str) -> dict[str, int]:
    """Every size at a site, worked out here from the configuration."""
    if kind == "mixed":
        shape = {n: mixed.SIZES[str(size)] for n, size in zip(("d_x", "d_in", "d_out"), OWN[site]) if size is not None}
        return {**{n: mixed.SIZES[n] for n in MIXED[site]}, **shape}
    known = KNOWN[kind]
    found = {n: known[own] for n, own in zip(("d_x", "d_in", "d_out"), OWN[site]) if own is not None}
    return {**known, **found}


def reading(site: str, s: dict[str, Any]) -> str:
    """A method in which every size stands where a number may, written as ``s`` has it: its name, or the number."""
    pooled, insert = "mean(z, tokens)" if site == "head" else "z", "sequential" if SITES[site].x is None else "parallel"
    return f"""method m {{
  modify {site}
  insert {insert}
  form {{
    A: [d_in, d_out] ~ normal(1 / {s["d_in"]}) lr {s["d_in"]} / 8
    b: [d_out] ~ constant(1 / sqrt({s["d_out"]}))
    n = ({" + ".join(f"{i} * sqrt({text})" for i, text in enumerate(s.values(), 2))}) / 100
    part = ({pooled} / sqrt({s["d_in"]}))[: {s["d_in"]} - 3]
    delta = part @ A[3 : {s["d_in"]}] * n + b
  }}
  compose h + delta * min({", ".join(list(s.values())[:8])}) / {s["d_out"]}
}}"""


@pytest.mark.sampled(3)
@pytest.mark.parametrize(("kind", "site"), CASES)
def test_every_size_is_its_number_at_every_site(kind: str, site: str, tmp_path: Path, monkeypatch: Any) -> None:
    mixed.teach(tmp_path, monkeypatch)
    sizes = sizes_at(kind, site)
    method = unipelt.parse(reading(site, {n: n for n in sizes}))
    plain = unipelt.parse(reading(site, {n: str(v) for n, v in sizes.items()}))

    def computed(spec: Any, lowering: bool) -> tuple[nn.Module, torch.Tensor]:
        m = build(kind)
        plan = unipelt.apply(m, spec, lowering=lowering, allow_future=True)
        assert {t.lr for t in plan.tensors.values()} == {sizes["d_in"] / 8, 1.0}
        randomise(m)
        return m, output(m, **given(kind))

    (m, found), (_, literal), (_, expected) = computed(method, True), computed(method, False), computed(plain, False)
    assert torch.equal(literal, expected) and torch.allclose(found, literal, rtol=0, atol=1e-9)
    again = build(kind)
    assert not torch.allclose(output(again, **given(kind)), found, rtol=0, atol=1e-4)
    unipelt.save(m, tmp_path / "kept")
    unipelt.attach(again, tmp_path / "kept", allow_future=True)
    assert torch.equal(output(again, **given(kind)), found)


def at(site: str, form: str, compose: str = "h + delta", more: str = "") -> unipelt.Method:
    return unipelt.parse(f"method m {{ modify {site} insert parallel form {{ {form} }} compose {compose} {more} }}")


@pytest.mark.parametrize(
    ("kind", "site"),
    [
        ("bert", "ffn.down"),
        ("bert", "ffn.hidden"),
        ("grouped", "attn.o"),
        ("grouped", "attn.v"),
        ("t5", "attn.o"),
        ("bert", "head"),
    ],
)
def test_the_size_of_x_is_that_of_what_is_read_there(kind: str, site: str) -> None:
    """Beside those of other names: where x is not as wide as a token a tensor [d_x, r] fits it, and one [d_model, r] does not."""
    m = build(kind)
    pooled = "mean(x, tokens)" if site == "head" else "x"
    plan = unipelt.apply(
        m, at(site, f"A: [d_x, 2] ~ normal(1) B: [2, d_out] ~ normal(1) delta = {pooled} @ A @ B"), allow_future=True
    )
    assert {t.sizes[0] for n, t in plan.tensors.items() if n.endswith(".A")} == {sizes_at(kind, site)["d_x"]}
    output(m, **given(kind))


def test_sizes_in_gates_exact_starts_inputs_and_what_is_folded(tmp_path: Path) -> None:
    method = unipelt.parse("""
gate own { w: [d_in] ~ normal(1 / d_in)  g = sigmoid(z @ w / sqrt(d_in) + labels / vocab) }
method m {
  use {
    modify attn.heads
    insert parallel
    form {
      input task: index(labels)
      E: [2, d_model] ~ normal(0.1) per layer
      W1: [d_model, d_head] ~ normal(0.1) per layer
      s: [labels] ~ normal(0.1) per site
      P = tanh(E / sqrt(d_in)) @ W1 * (d_out / d_x)
      delta = softmax(q @ P.T * scale) @ P + s[task] / d_in
    }
    compose h + delta
  } as prompt
  use {
    modify ffn.down
    insert parallel
    form { m: [d_in] = norm(W, 1) / sqrt(d_in)  delta = (z * m) @ W / d_out }
    compose h + own(z) * delta
  } as scaled gated by own
}""")
    m, more = build("bert"), {**inputs(), "task": torch.tensor([0, 2, 1])}
    plan = unipelt.apply(m, method)
    assert [i.count for i in plan.inputs] == [LABELS] and plan.folds
    own = record(m, "default").trained()
    W = m.get_submodule("bert.encoder.layer.0.output.dense").weight
    (start,) = [t for n, t in own.items() if "layer.0." in n and n.endswith(".scaled.m")]
    assert torch.allclose(start, W.norm(dim=0) / INNER**0.5)
    randomise(m)
    found = output(m, **more)
    unipelt.save(m, tmp_path / "kept")  # folded
    again = build("bert")
    unipelt.attach(again, tmp_path / "kept")
    assert torch.allclose(output(again, **more), found, rtol=0, atol=1e-9)


def test_what_reads_sizes_merges() -> None:
    m = build("grouped")
    unipelt.apply(
        m, at("attn.o", "A: [d_in, 2] ~ normal(1) B: [2, d_out] ~ normal(1) delta = z @ A[: d_in] @ B / sqrt(d_in)")
    )
    found = output(m)
    unipelt.merge(m, "default")
    assert torch.allclose(output(m), found, rtol=0, atol=1e-9)


@pytest.mark.parametrize(("condition", "good"), [
    ("d_model >= 32", True), ("d_model > 32", False), ("d_ff / d_model > 1", True), ("divides(labels, 3)", True), ("labels > 3", False),
    ("heads * d_head == d_model", True), ("layer < 2", False),
])  # fmt: skip
@pytest.mark.parametrize("where", ["form", "method"])
def test_a_requirement_on_sizes_holds_on_a_model_or_is_said_not_to(condition: str, good: bool, where: str) -> None:
    form, more = "b: [d_out] ~ zeros delta = b ", f"require {condition}"
    method = at("attn.q", form + more) if where == "form" else at("attn.q", form, more=more)
    if good:
        unipelt.plan(build("bert"), method)
        return
    with pytest.raises(unipelt.PeltError) as caught:
        unipelt.plan(build("bert"), method)
    assert [d.code for d in caught.value.diagnostics] == ["E0360"]


@pytest.mark.parametrize(
    "form",
    ["b: [d_out] ~ zeros delta = b / labels", "b: [labels] ~ zeros delta = sum(b) * z", "delta = z require labels > 2"],
)
def test_a_size_that_a_model_does_not_have_is_said_to_be_so(form: str) -> None:
    m = model("bert")
    before = state(m)
    with pytest.raises(unipelt.PeltError) as caught:
        unipelt.apply(m, at("ffn", form))
    (d,) = caught.value.diagnostics
    assert d.code == "E0303" and "which has no head" in d.message and state(m) == before
    with pytest.raises(unipelt.PeltError, match="no head"):
        unipelt.plan(m, at("attn.q", "b: [d_out] ~ zeros delta = b", more="require labels > 2"))


def test_labels_are_those_of_the_adapters_own_head() -> None:
    plan = unipelt.plan(build("bert"), at("attn.q", "b: [labels, d_out] ~ zeros delta = sum(b, 0)"), labels=7)
    assert {t.sizes[0] for n, t in plan.tensors.items()} == {7}


@pytest.mark.parametrize("site", ["embed", "embed.words"])
def test_where_nothing_is_read_there_is_no_size_of_x(site: str) -> None:
    with pytest.raises(unipelt.PeltError) as caught:
        unipelt.parse(
            f"method m {{ modify {site} form {{ P: [3, d_x] ~ zeros delta = P }} compose prepend(delta, h) }}"
        )
    (d,) = caught.value.diagnostics
    assert d.code == "E0303" and "there is none at" in d.message and d.help == "write `d_out`"
