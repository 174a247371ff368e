"""Looking inside: what is seen is what happens, looking changes nothing, and nobody looking costs nothing."""

from __future__ import annotations

import copy
import math
import threading

import pytest
import small
import torch

import unipelt
from unipelt.compiler.gates import gates
from unipelt.language.analyse.method import analyse
from unipelt.language.report.diagnostics import PeltError
from unipelt.language.syntax.printer import to_text
from unipelt.runtime.copies import CopyEdit
from unipelt.runtime.edits import Edit
from unipelt.runtime.watch import Place

GATES = """
gate each { w: [d_in] ~ normal(0.5)  b: [] ~ zeros  g = sigmoid(z @ w + b) }
gate pooled { w: [d_in] ~ normal(0.5)  g = mean(sigmoid(z @ w), positions) }
method low(r: int = 2) {
  modify attn.q, attn.v   insert parallel
  form { A: [d_in, r] ~ normal(0.3)  B: [r, d_out] ~ normal(0.3)  delta = drop(z, 0.5) @ A @ B }
  compose add
}
method prefix(l: int = 3) {
  modify attn.heads   insert parallel
  form {
    P_k: [l, d_head] ~ normal(0.5) per group
    P_v: [l, d_head] ~ normal(0.5) per group
    G = pooled(x)
    scores = q @ (G * P_k).T * scale
    delta = softmax(scores) @ (drop(P_v, 0.5) * G)
  }
  compose { lam = sigmoid(logsumexp(scores) - log_mass)   out = (1 - lam) * h + lam * delta }
}
method tanh_gated {
  modify attn.heads   insert parallel
  form { P: [3, d_head] ~ normal(0.5)  delta = softmax(q @ P.T * scale) @ P }
  compose { t: [] ~ zeros   out = h + tanh(t) * delta }
}
method scaled {
  modify ffn   insert parallel
  form { A: [d_in, d_out] ~ normal(0.1)  w: [d_in] ~ normal(0.3)  delta = z @ A * mean(sigmoid(z @ w), positions) }
  compose { s: [] ~ ones   out = h + 2 * s * delta }
}
method token_gated { use low gated by each }
method several { use low gated by pooled  use prefix  use scaled }
method feature { modify ffn  form { l: [d_out] ~ ones  delta = l }  compose h * delta }
"""


@pytest.fixture(scope="module")
def specs(tmp_path_factory):
    path = tmp_path_factory.mktemp("specs") / "gates.pelt"
    path.write_text(GATES)
    return lambda name: unipelt.load(str(path), name)


def attached(specs, name="several", kind="bert", lowering=True, dtype=torch.float32):
    model = small.model(kind, dtype=dtype)
    unipelt.apply(model, specs(name), seed=0, allow_future=True, lowering=lowering)
    small.randomise(model)
    return model


def seen_of(model, **given):
    with unipelt.watch(model) as seen:
        small.output(model, **given)
    return seen


def close(a: float, b: float) -> bool:
    return math.isclose(a, b, rel_tol=1e-9, abs_tol=1e-12)


# ---------------------------------------------------------------- what is a gate


@pytest.mark.parametrize(
    "name, found",
    [
        ("low", {}),
        ("feature", {}),
        ("token_gated", {"gate": "gate.g"}),
        ("prefix", {"G": "G", "lam": "lam"}),
        ("tanh_gated", {"tanh(t)": "tanh(t)"}),
        ("scaled", {"gate": "mean(sigmoid(z @ w), positions)", "s": "s"}),
    ],
)
def test_gates_are_found_by_structure(specs, name, found):
    for typing in analyse(specs(name)).rows:
        assert {label: to_text(e) for label, e in gates(typing).items()} == found


def test_a_saved_adapter_has_the_same_gates(specs, tmp_path):
    """A checkpoint's own text no longer says which line was a gate: structure does."""
    model = attached(specs)
    before = seen_of(model).to_json()
    unipelt.save(model, tmp_path / "saved")
    fresh = small.model("bert")
    unipelt.attach(fresh, tmp_path / "saved")
    assert seen_of(fresh).to_json() == before


# ---------------------------------------------------------------- what is seen


def test_the_norm_of_an_edit_and_its_gate_are_those_of_the_pass(specs):
    model, given = attached(specs, "token_gated", dtype=torch.float64), small.inputs(padded=False)
    caught: dict[str, tuple] = {}

    def keep(edit, args, kwargs, out):
        caught[edit.site.label] = (args[0], args[1]["x"], out)

    for m in model.modules():
        if isinstance(m, Edit):
            m.register_forward_hook(keep, with_kwargs=True)
    seen = seen_of(model, **given)
    state = unipelt.state_dict(model)
    assert len(seen.edits) == len(seen.gates) == 2 * small.LAYERS
    for place, value in seen.edits.items():
        label = f"encoder.layer.{place.layer}.{place.site}"
        h, x, out = caught[label]
        assert math.isclose(value, ((out - h).norm() / h.norm()).item(), rel_tol=1e-6)
        w, b = (state[f"{label}.low.gate.{n}"] for n in "wb")
        g = torch.sigmoid(x @ w + b)
        found = seen.gates[place]["gate"]
        wanted = (g.mean(), g.std(correction=0), g.min(), g.max())
        assert all(close(a, b.item()) for a, b in zip((found.mean, found.std, found.min, found.max), wanted))
        assert found.count == g.numel()


@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_a_fused_prefix_is_seen_as_it_is_written(specs, kind):
    lowered, literal = (seen_of(attached(specs, "several", kind, lowering)).to_json() for lowering in (True, False))
    assert len(lowered) == 4 * small.LAYERS
    for a, b in zip(lowered, literal, strict=True):
        assert math.isclose(a["edit"], b["edit"], rel_tol=1e-4) and a["gates"].keys() == b["gates"].keys()
        for label, wanted in b["gates"].items():
            assert all(math.isclose(a["gates"][label][k], v, rel_tol=1e-3, abs_tol=1e-5) for k, v in wanted.items())


def test_pad_tokens_do_not_count(specs):
    """One batch with pads, or each of its examples alone: the same gates and norms."""
    model, padded = attached(specs, "token_gated", "gpt2", dtype=torch.float64), small.inputs()
    together = seen_of(model, **padded)
    with unipelt.watch(model) as apart:
        for ids, mask in zip(padded["input_ids"], padded["attention_mask"]):
            small.output(model, input_ids=ids[mask.bool()][None])
    for a, b in zip(together.to_json(), apart.to_json(), strict=True):
        assert math.isclose(a["edit"], b["edit"], rel_tol=1e-6)
        assert all(math.isclose(a["gates"]["gate"][k], v, rel_tol=1e-9) for k, v in b["gates"]["gate"].items())
    assert together.to_json()[0]["gates"]["gate"]["count"] == int(padded["attention_mask"].sum())


def test_heads_and_learned_scales(specs):
    seen = seen_of(attached(specs, "tanh_gated"))
    assert seen.gates[Place("tanh_gated", "attn.heads", 1)]["tanh(t)"].count == small.HEADS
    scales = seen_of(attached(specs, "scaled")).gates[Place("scaled", "ffn", 0)]
    assert scales["s"].count == 1 and scales["s"].std == 0 and 0 < scales["gate"].mean < 1


def test_trained_copies_and_prompts():
    copies = unipelt.parse("method biases { train *.bias }")
    model = small.model("bert_labels")
    unipelt.apply(model, copies)
    assert all(v == 0 for v in seen_of(model).edits.values())
    small.randomise(model)
    edits = seen_of(model).edits
    assert Place("train", "attention.self.query", 2) in edits and Place("head", "classifier") in edits
    assert all(v > 0 for v in edits.values())
    prompt = unipelt.parse(
        "method p { modify embed  form { P: [4, d_out] ~ normal(1.0)  delta = P }  compose prepend(delta, h) }"
    )
    model = small.model("gpt2")
    unipelt.apply(model, prompt)
    assert list(seen_of(model).edits) == [Place("p", "embed")]


def test_text_and_json(specs):
    seen = seen_of(attached(specs))
    lines = str(seen).splitlines()
    assert len(lines) == 1 + 4 * small.LAYERS and lines[1].startswith("low/attn.q/0 ") and "gate 0." in lines[1]
    assert seen.to_json()[0]["gates"]["gate"].keys() == {"mean", "std", "min", "max", "count"}


# ---------------------------------------------------------------- looking changes nothing


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_training_does_not_notice(specs, attention):
    """In training mode, dropout and all: the same loss, gradients and state of the generator, bit for bit."""
    model = attached(specs)
    model.set_attn_implementation(attention)
    twin = copy.deepcopy(model)
    results = []
    for m, watched in ((model, False), (twin, True)):
        m.train()
        torch.manual_seed(3)
        if watched:
            with unipelt.watch(m) as seen:
                m(**small.inputs())[0].square().sum().backward()
        else:
            m(**small.inputs())[0].square().sum().backward()
        grads = {n: p.grad for n, p in m.named_parameters() if p.grad is not None}
        results.append((grads, torch.get_rng_state()))
    assert len(seen.edits) == 4 * small.LAYERS
    assert results[0][0].keys() == results[1][0].keys() and torch.equal(results[0][1], results[1][1])
    assert all(torch.equal(g, results[1][0][n]) for n, g in results[0][0].items())


def test_nothing_is_left_behind(specs):
    model = attached(specs)
    before, out = small.state(model), small.output(model)
    with pytest.raises(ZeroDivisionError):
        with unipelt.watch(model), unipelt.watch(model):
            small.output(model)
            1 / 0  # noqa: B018
    assert small.state(model) == before and torch.equal(small.output(model), out)
    assert all(m.watchers == () for m in model.modules() if isinstance(m, (Edit, CopyEdit)))
    unipelt.remove(model, "default")
    assert not any("unipelt" in n for n, _ in model.named_modules())


def test_blocks_nest_and_disabled_passes_are_not_seen(specs):
    model = attached(specs)
    with unipelt.watch(model) as outer:
        with unipelt.disabled(model):
            small.output(model)
        assert outer.edits == {} and outer.to_json() == []
        small.output(model)
        with unipelt.watch(model) as inner:
            small.output(model)
    assert inner.to_json()[0]["gates"]["gate"]["count"] * 2 == outer.to_json()[0]["gates"]["gate"]["count"]


def test_another_threads_passes_are_not_seen(specs):
    model = attached(specs)
    alone = seen_of(model).to_json()
    errors = []

    def other():
        try:
            for _ in range(4):
                small.output(model)
        except Exception as e:  # noqa: BLE001
            errors.append(e)

    threads = [threading.Thread(target=other) for _ in range(2)]
    with unipelt.watch(model) as seen:
        for t in threads:
            t.start()
        small.output(model)
        for t in threads:
            t.join()
    assert not errors and seen.to_json() == alone


def test_compiled_code_stays_whole_and_is_not_made_anew(specs):
    """Nobody watching: one graph without breaks. Watching: it runs as written. Afterwards: the same code as before."""
    model = attached(specs)
    want = small.output(model)
    graphs = []

    def backend(module, _):
        graphs.append(module)
        return module.forward

    compiled = torch.compile(model, backend=backend, fullgraph=True)
    torch.testing.assert_close(small.output(compiled), want)
    with unipelt.watch(compiled) as seen:
        small.output(compiled)
    assert len(seen.edits) == 4 * small.LAYERS
    torch.testing.assert_close(small.output(compiled), want)
    assert len(graphs) == 1


def test_gradient_checkpointing_keeps_the_statistics(specs):
    found = []
    for checkpointing in (False, True):
        model = attached(specs, "token_gated")
        if checkpointing:
            small.checkpoint_activations(model)
        model.train()
        torch.manual_seed(0)
        with unipelt.watch(model) as seen:
            model(**small.inputs())[0].sum().backward()
        found.append(seen)
    for place, value in found[0].edits.items():
        assert math.isclose(value, found[1].edits[place], rel_tol=1e-6)
        a, b = found[0].gates[place]["gate"], found[1].gates[place]["gate"]
        assert math.isclose(a.mean, b.mean, rel_tol=1e-6) and a.max == b.max


# ---------------------------------------------------------------- gradients, errors


def test_gradient_norms_by_place(specs):
    model = attached(specs)
    assert unipelt.gradient_norms(model) == {}
    model(**small.inputs())[0].square().sum().backward()
    norms, state = unipelt.gradient_norms(model), dict(model.named_parameters())
    assert len(norms) == 4 * small.LAYERS
    own = [
        p.grad.flatten()
        for n, p in state.items()
        if ".layer.1.attention.self.query.unipelt" in n and p.grad is not None
    ]
    assert math.isclose(norms[Place("low", "attn.q", 1)], torch.cat(own).norm().item(), rel_tol=1e-5)
    total = math.sqrt(sum(v * v for v in norms.values()))
    every = torch.cat([p.grad.flatten() for p in state.values() if p.grad is not None])
    assert math.isclose(total, every.norm().item(), rel_tol=1e-5)


def test_shared_tensors_have_a_place_of_their_own():
    text = """method m(r: int = 2) { modify attn.q, attn.v  insert parallel
      form { A: [d_in, r] ~ normal(0.1) per model  B: [r, d_out] ~ normal(0.1) per kind  C: [d_out] ~ normal(0.1)
             delta = z @ A @ B * C } compose add }"""
    model = small.model("bert")
    unipelt.apply(model, unipelt.parse(text))
    model(**small.inputs())[0].sum().backward()
    places = set(unipelt.gradient_norms(model))
    assert {Place("m", "shared"), Place("m", "attn.q"), Place("m", "attn.q", 0)} <= places
    assert len(places) == 1 + 2 + 2 * small.LAYERS


def test_an_unknown_adapter_is_said(specs):
    model = attached(specs)
    for call in (unipelt.gradient_norms, lambda m, n: unipelt.watch(m, n).__enter__()):
        with pytest.raises(PeltError, match="no adapter named `defualt`"):
            call(model, "defualt")
