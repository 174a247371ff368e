"""A pass of an adapted model: in threads, checkpointed, broken off, through another attention."""

from __future__ import annotations

import copy
import gc
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from small import checkpoint_activations
from tiny import KINDS, batch, build, distance, footprint, look, loss, put, same, trained

import unipelt
from unipelt.anatomy.find import find


EFFECT = 1e-3
#: Methods that use every seam between them: projections, sublayers, heads (fused and not), gates, copies, prompts.
CHOSEN = ("lora", "ia3", "mam", "unipelt_apl_causal", "llama_adapter", "prompt_tuning", "ln_tuning")


# ---------------------------------------------------------------- threads


@pytest.mark.parametrize(("spec", "kind"), [
    ("unipelt_apl_causal", "gpt2"), ("prompt_tuning", "gpt2"), ("llama_adapter", "gpt2"), ("prompt_tuning", "t5"), ("mam", "albert"),
])  # fmt: skip
def test_threads_do_not_meet(spec, kind, bases):
    """Several threads with inputs of their own, one of them without the adapter."""
    m = bases.get(kind)
    given = [batch(kind, rows=2, tokens=5 + i, seed=i) for i in range(4)]
    base = [look(m, b) for b in given]
    put(m, spec)
    wanted = [look(m, b) for b in given]
    assert all(distance(w, b) > EFFECT for w, b in zip(wanted, base))
    start = threading.Barrier(4)

    def work(i: int) -> int:
        start.wait()
        wrong = 0
        for _ in range(25):
            if i == 3:
                with unipelt.disabled(m):
                    wrong += not same(look(m, given[i]), base[i])
            else:
                wrong += not same(look(m, given[i]), wanted[i])
        return wrong

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(work, range(4))) == [0, 0, 0, 0]
    assert same(look(m, given[3]), wanted[3])
    unipelt.remove(m, "a")


# ---------------------------------------------------------------- gradient checkpointing


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize(("kind", "spec"), [
    *((kind, spec) for kind in ("bert", "gpt2", "llama") for spec in (*CHOSEN, "prefix_tuning_mlp", "unipelt_apl")),
    *((kind, "mam") for kind in ("t5", "bart", "distilbert_head", "opt")), ("t5", "prompt_tuning"),
])  # fmt: skip
def test_checkpointed_gradients(kind, spec, reentrant):
    """Gradients with checkpointing are those without, tensors that the layers share included."""
    m = build(kind)
    put(m, spec)
    m.train()
    inputs = batch(kind)
    passes = []
    seen = m.get_submodule(find(m).named("attn.q")[0].view.module)
    handle = seen.register_forward_pre_hook(lambda *_: passes.append(1))
    loss(m, inputs).backward()
    once = len(passes)  # more than one where a module serves several layers
    wanted = {n: p.grad.clone() for n, p in trained(m, "a").items()}
    for p in m.parameters():
        p.grad = None
    checkpoint_activations(m, reentrant)
    if reentrant:
        m.enable_input_require_grads()
    loss(m, inputs).backward()
    handle.remove()
    assert len(passes) == 3 * once  # it was checkpointed: run again for the gradient
    own = trained(m, "a")
    assert own.keys() == wanted.keys()
    for n, p in own.items():
        assert p.grad is not None, n
        assert (p.grad - wanted[n]).abs().max() <= 1e-5 * max(1.0, float(wanted[n].abs().max())), n
    assert any(float(g.abs().max()) > EFFECT for g in wanted.values())


# ---------------------------------------------------------------- the attention interface


@pytest.mark.parametrize("kind", ["bert", "gpt2", "llama", "bart"])
def test_another_model_with_the_same_configuration(kind, bases):
    """Two models that share one configuration object: only the one with the adapter is edited."""
    a = build(kind)
    cls = KINDS[kind][0]
    torch.manual_seed(3)
    b = cls(a.config).eval()
    inputs = batch(kind)
    assert a.config is b.config
    before, shown = look(b, inputs), repr(a.config)
    own = look(a, inputs)
    put(a, "prefix_tuning")
    assert repr(a.config) == shown and a.config._attn_implementation == "sdpa"
    assert same(look(b, inputs), before)
    assert distance(look(a, inputs), own) > EFFECT
    put(b, "prefix_tuning", noise=3)
    acting = look(b, inputs)
    unipelt.remove(a, "a")
    assert same(look(b, inputs), acting)
    assert same(look(a, inputs), own)


@pytest.mark.parametrize(("spec", "kind"), [
    ("prefix_tuning", "llama"), ("llama_adapter", "llama"), ("unipelt_apl_causal", "llama"),
    ("multi_head_parallel_adapter", "llama"), ("prefix_tuning", "bart"),
])  # fmt: skip
def test_an_attention_implementation_set_later_keeps_the_heads_edit(spec, kind, bases):
    m = bases.get(kind)
    inputs = batch(kind)
    before = look(m, inputs)
    put(m, spec)
    acting = look(m, inputs)
    try:
        for name in ("eager", "sdpa", "eager"):
            m.set_attn_implementation(name)
            assert distance(look(m, inputs), acting) <= 1e-5
            assert distance(look(m, inputs), before) > EFFECT
    finally:
        m.set_attn_implementation("sdpa")
    assert same(look(m, inputs), acting)
    unipelt.remove(m, "a")


class OwnAttention(torch.nn.Module):
    """Attention that asks no function of transformers, and whose heads share their weights among themselves."""

    def __init__(self, other):
        super().__init__()
        self.query, self.key, self.value, self.heads = other.query, other.key, other.value, other.num_attention_heads

    def forward(self, hidden_states, *_, **__):
        q, k, v = (
            f(hidden_states).unflatten(-1, (self.heads, -1)).transpose(1, 2) for f in (self.query, self.key, self.value)
        )
        weights = torch.softmax(q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5, -1)
        weights = weights + 0 * weights.flip(1)
        return (weights @ v).transpose(1, 2).flatten(2), None


def test_attention_past_the_interface_is_refused_at_its_heads_only():
    m, inputs = build("bert"), batch("bert", padded=False)
    wanted = look(m, inputs)
    for layer in m.encoder.layer:
        layer.attention.self = OwnAttention(layer.attention.self)
    before = footprint(m)
    assert distance(look(m, inputs), wanted) <= 1e-5
    with pytest.raises(unipelt.PeltError, match="E0512.*attn.heads"):
        put(m, "prefix_tuning")
    assert footprint(m) == before
    put(m, "lora")
    assert distance(look(m, inputs), wanted) > EFFECT


# ---------------------------------------------------------------- broken off, and afterwards


class Broken(Exception):
    pass


PLACES = {
    "gpt2": ("transformer.h.0.attn.resid_dropout", "transformer.h.0.mlp.c_proj", "transformer.h.1.ln_2", "lm_head"),
    "t5": ("encoder.block.1.layer.0.SelfAttention.o", "decoder.block.0.layer.1.EncDecAttention.k", "lm_head"),
}


@pytest.mark.parametrize(("spec", "kind"), [
    ("pfeiffer", "gpt2"), ("unipelt_apl_causal", "gpt2"), ("prompt_tuning", "gpt2"), ("llama_adapter", "gpt2"), ("prompt_tuning", "t5"),
])  # fmt: skip
def test_an_exception_inside_a_forward_leaves_nothing_behind(spec, kind, bases):
    m = bases.get(kind)
    inputs, other = batch(kind), batch(kind, rows=2, tokens=5, seed=4)
    before = look(m, other)
    put(m, spec)
    wanted = look(m, other)
    for place in PLACES[kind]:
        module = m.get_submodule(place)

        def fail(*_):
            raise Broken

        handle = module.register_forward_pre_hook(fail)
        with pytest.raises(Broken):
            look(m, inputs)
        handle.remove()
        assert same(look(m, other), wanted)
        handle = module.register_forward_pre_hook(fail)
        with pytest.raises(Broken):
            look(m, inputs)
        handle.remove()
        with unipelt.disabled(m):
            assert same(look(m, other), before)
        twin = copy.deepcopy(m)
        assert same(look(twin, other), wanted)
    with pytest.raises(Broken):
        with unipelt.disabled(m):
            handle = m.lm_head.register_forward_pre_hook(fail)
            look(m, inputs)
    handle.remove()
    assert same(look(m, other), wanted)
    unipelt.remove(m, "a")


def test_nothing_is_held_after_a_forward(bases):
    """A tensor that travels between two hooks is let go: the pass leaves no graph in memory."""
    m = bases.get("bert")
    put(m, "unipelt_apl")
    outputs = m(**batch("bert", padded=False))
    from unipelt.runtime.registry import registry

    holder = registry(m).switch.holder
    held = {**holder.values, **vars(holder.current), **holder.current.inputs}
    assert not [k for k, v in held.items() if isinstance(v, torch.Tensor) and v.requires_grad], held.keys()
    del outputs
    gc.collect()
    assert pickle.loads(pickle.dumps(m)) is not None
    unipelt.remove(m, "a")
