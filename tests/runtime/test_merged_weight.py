"""The merged weight as it is derived is the one that merging writes, number by number."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from names import CLASSICS, name as named
from names import spec
from small import model, output, randomise

import unipelt
from unipelt.compiler.evaluator import Context, constants, evaluate
from unipelt.compiler.named import Named
from unipelt.language.loading import load, parse
from unipelt.language.analyse.merged import merged, merged_at
from unipelt.language.syntax.printer import to_text
from unipelt.language.analyse.verdicts import verdicts

LOW = "A: [d_in, r] ~ normal(0.1) B: [r, d_out] ~ normal(0.1) "
ROWS = {
    "before a projection's output": f"modify attn.q insert sequential form {{ {LOW} delta = z @ A @ B }} compose h + 0.5 * delta",
    "behind a sublayer": f"modify ffn insert sequential form {{ {LOW} delta = z @ A @ B }} compose h + delta",
    "behind attention": f"modify attn insert sequential form {{ {LOW} b: [d_out] ~ zeros delta = z @ A @ B - b }} compose h + delta",
    "on the inner activation": f"modify ffn.hidden insert sequential form {{ {LOW} delta = z @ A @ B }} compose h + 3 * delta",
    "a vector at the input": f"modify attn.v insert parallel form {{ {LOW} c: [d_in] ~ normal(0.1) delta = (c * z) @ A @ B }} compose h + delta",
    "a vector at the output": f"modify attn.k insert parallel form {{ {LOW} c: [d_out] ~ ones delta = c * (z @ A @ B) }} compose h * c + delta",
    "its own weight": f"modify attn.q insert parallel form {{ {LOW} delta = z @ (W / norm(W, 0)) * 0.1 + z @ A @ B }} compose h + delta",
    "outside training": f"modify attn.q insert parallel form {{ {LOW} delta = drop(stop_gradient(z), 0.5) @ A @ B * (2 if training else 3) }} compose h + delta",
    "terms": "modify attn.q, attn.v insert parallel form { axis term = 3 A: [d_in, r] ~ normal(0.1) per term B: [r, d_out] ~ normal(0.1) per term "
    "delta = z @ sum(A @ B, term) } compose h + delta",
    "kronecker": "modify attn.q, attn.v insert parallel form { C: [4, 4] ~ normal(0.1) A: [d_in / 4, r] ~ normal(0.1) B: [r, d_out / 4] ~ normal(0.1) "
    "delta = z @ kron(C, A @ B) } compose h + delta",
    "rotated": "modify attn.q insert parallel form { axis block = 4 S: [d_in * (d_in / 4 - 1) / 8] ~ normal(0.1) per block "
    "delta = join(split(W.T, block) @ cayley(skew(S, d_in / 4)), block).T } compose h - z @ W + z @ delta",
    "replaced": "modify attn.o insert parallel form { A: [d_in, d_out] ~ normal(0.1) b: [d_out] ~ zeros delta = z @ A + b } compose delta",
}  # fmt: skip
METHODS = {what: spec(f"method m(r: int = 3) {{ {row} }}") for what, row in ROWS.items()}
METHODS["gated"] = spec(f"method m(r: int = 3) {{ use {{ modify attn.q insert parallel form {{ {LOW} delta = z @ A @ B }} compose h + delta }} as low "
                        "gated by { t: [] ~ normal(0.5) g = tanh(t) } }")  # fmt: skip


def check(method: unipelt.Method, kind: str = "bert") -> int:
    """Merges into a model; the number of sites at which the derived weight and bias were the ones written."""
    m = model(kind, dtype=torch.float64)
    plan = unipelt.plan(m, method)
    hosts, before = {}, {}
    for e in plan.edits:
        derived = merged_at(e.typing)
        assert derived is not None, e.site.name
        found = [s for s in plan.sites.named(derived.into, e.site.stack) if s.layer == e.site.layer]
        hosts[id(e)] = (e, derived, m.get_submodule(found[0].view.module))
    unipelt.apply(m, method)
    state = randomise(m)
    for key, (_, _, host) in hosts.items():
        before[key] = host.weight.detach().T.clone(), host.bias.detach().clone()
    unipelt.merge(m, "default")
    for key, (e, derived, host) in hosts.items():
        W, bias = before[key]
        names = {**constants(method.params, e.site.sizes, e.constants), "W": Named(W, ()), "bias": Named(bias, ())}
        names |= {label.removeprefix("gate."): Named(state[n], plan.tensors[n].axes) for label, n in e.tensors.items()}
        context = Context(names, dict(e.site.sizes), axes=e.lengths)
        for expression, new, shape in (
            (derived.weight_expression, host.weight.T, W),
            (derived.bias_expression, host.bias, bias),
        ):
            value = evaluate(expression, context)
            value = value.data if isinstance(value, Named) else torch.tensor(float(value))
            assert torch.allclose(value.expand_as(shape), new, atol=1e-10), (e.site.name, to_text(expression))
        assert not torch.equal(host.weight.T, W) or not torch.equal(host.bias, bias)
    return len(hosts)


@pytest.mark.parametrize("what", METHODS)
def test_the_derived_weight_is_what_merging_writes(what):
    assert check(parse(METHODS[what])) >= 2


@pytest.mark.parametrize("method", [m for m in map(named, CLASSICS) if load(m).rows])
def test_methods_of_the_library(method):
    """Where the verdict is yes, every row at every site has its weight; those of one row each are merged by number.

    The others are merged by number in `tests/zoo`, whether their weight is a formula or not.
    """
    loaded = load(method)
    if verdicts(loaded)["mergeable"].value != "yes":
        return
    found = merged(loaded)
    assert {(m.row, m.site) for m in found} >= {
        (r.name, str(p)) for r in loaded.rows for p in r.sites if loaded.params == ()
    }
    assert found
    cross = [p for r in loaded.rows for p in r.sites if str(p).startswith("cross")]
    rows = tuple(replace(r, sites=tuple(p for p in r.sites if p not in cross)) for r in loaded.rows)
    assert check(replace(loaded, rows=rows)) >= 2


def test_the_weight_is_readable():
    (first, *_), scaled = merged(load(named("lora"))), merged(load(named("ia3")))
    assert to_text(first.weight_expression) == "W + alpha / r * (A @ B)" and to_text(first.bias_expression) == "bias"
    assert to_text(scaled[0].weight_expression) == "l * W" and to_text(scaled[-1].weight_expression) == "(l * W.T).T"
    bent = parse(
        "method m { modify attn.q insert parallel form { A: [d_in, d_out] ~ zeros delta = tanh(z @ A) } compose h + delta }"
    )
    assert merged(bent) == []


ABSORBED = {
    "behind heads": f"modify attn.heads insert sequential form {{ {LOW} delta = z @ A @ B }} compose h + delta",
    "one matrix for all heads": "modify attn.heads insert mean(h, head) form { A: [d_in, d_out] ~ normal(0.1) per site delta = z @ A } compose h + delta",
    "behind the head": f"modify head insert sequential form {{ {LOW} delta = z @ A @ B }} compose h + delta",
    "what is named and not read": "modify ffn.hidden insert parallel form { b: [d_out] ~ normal(0.1) u = tanh(z) delta = b } compose h + delta",
    "a stream that is named": "modify attn insert residual form { b: [d_out] ~ normal(0.1) u = z > x delta = b } compose h + delta",
}  # fmt: skip


@pytest.mark.parametrize("what", ABSORBED)
def test_what_is_absorbed_computes_the_same(what):
    m = model("bert_labels", dtype=torch.float64)
    base = output(m)
    unipelt.apply(m, parse(spec(f"method m(r: int = 3) {{ {ABSORBED[what]} }}")))
    randomise(m)
    acting = output(m)
    unipelt.merge(m, "default")
    assert (output(m) - acting).abs().max() < 1e-12 and (acting - base).abs().max() > 1e-3
    unipelt.unmerge(m)
    unipelt.remove(m, "default")
    assert torch.equal(output(m), base)
