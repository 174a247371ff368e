"""The seams through which a method gets into a model, each tried where it is known to give way."""

from __future__ import annotations

import copy
import gc
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from small import checkpoint_activations
from tiny import (
    KINDS, PAD, VOCAB, batch, build, distance, footprint, look, loss, put, randomise, same, same_values, small,
    trained, values,
)  # fmt: skip
from torch.nn import functional as F

import unipelt

EFFECT = 1e-3
#: Methods that use every seam between them: projections, sublayers, heads (fused and not), gates, copies, prompts.
CHOSEN = ("lora", "ia3", "mam", "unipelt_apl_causal", "llama_adapter", "prompt_tuning", "ln_tuning")


# ---------------------------------------------------------------- threads


@pytest.mark.parametrize("spec", ["unipelt_apl_causal", "prompt_tuning", "llama_adapter"])
def test_threads_do_not_meet(spec, bases):
    """Several threads with inputs of their own, one of them without the adapter."""
    m = bases.get("gpt2")
    given = [batch("gpt2", rows=2, tokens=5 + i, seed=i) for i in range(4)]
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
@pytest.mark.parametrize("kind", ["bert", "gpt2", "llama"])
@pytest.mark.parametrize("spec", [*CHOSEN, "prefix_tuning_mlp", "unipelt_apl"])
def test_checkpointed_gradients(spec, kind, reentrant):
    """Gradients with checkpointing are those without, tensors that the layers share included."""
    m = build(kind)
    put(m, spec)
    m.train()
    inputs = batch(kind)
    loss(m, inputs).backward()
    wanted = {n: p.grad.clone() for n, p in trained(m, "a").items()}
    for p in m.parameters():
        p.grad = None
    checkpoint_activations(m, reentrant)
    if reentrant:
        m.enable_input_require_grads()
    passes = []
    inner = {"bert": "encoder.layer.0.intermediate", "gpt2": "transformer.h.0.mlp", "llama": "model.layers.0.mlp"}
    seen = m.get_submodule(inner[kind])
    handle = seen.register_forward_pre_hook(lambda *_: passes.append(1))
    loss(m, inputs).backward()
    handle.remove()
    assert len(passes) == 2  # it was checkpointed: run again for the gradient
    own = trained(m, "a")
    assert own.keys() == wanted.keys()
    for n, p in own.items():
        assert p.grad is not None, n
        assert (p.grad - wanted[n]).abs().max() <= 1e-5 * max(1.0, float(wanted[n].abs().max())), n
    assert any(float(g.abs().max()) > EFFECT for g in wanted.values())


# ---------------------------------------------------------------- offload, copies for DDP


@pytest.mark.parametrize("where", ["cpu", "dispatch", "disk"])
@pytest.mark.parametrize("spec", [*CHOSEN, "bitfit"])
def test_offloaded(spec, where, tmp_path):
    """Weights that accelerate brings only for the call: the output is exactly the same."""
    from accelerate import cpu_offload, disk_offload, dispatch_model

    kind = "gpt2"
    m = build(kind)
    inputs = batch(kind)
    before = look(m, inputs)
    put(m, spec)
    plain = look(m, inputs)
    assert distance(plain, before) > EFFECT
    if where == "cpu":
        cpu_offload(m, torch.device("cpu"))
    elif where == "disk":
        disk_offload(m, str(tmp_path), torch.device("cpu"))
    else:
        device_map = {"transformer.wte": "cpu", "lm_head": "cpu", "transformer.wpe": "cpu", "transformer.drop": "cpu",
                      "transformer.h": "disk", "transformer.ln_f": "cpu", "unipelt": "cpu"}  # fmt: skip
        dispatch_model(m, device_map, main_device="cpu", offload_dir=str(tmp_path))
    assert any(p.device.type == "meta" for p in m.parameters())
    # where only biases are trained, their difference is added in memory, and the copy is computed when offloaded
    tolerance = 1e-6 if spec == "bitfit" else 0.0
    assert distance(look(m, inputs), plain) <= tolerance
    with unipelt.disabled(m):
        assert same(look(m, inputs), before)
    assert distance(look(m, inputs), plain) <= tolerance


@pytest.mark.parametrize("spec", CHOSEN)
def test_applied_to_an_offloaded_model(spec, tmp_path):
    """The base is offloaded first, as `device_map` does: the method acts as it does on a model in memory."""
    from accelerate import cpu_offload

    m = build("gpt2")
    inputs = batch("gpt2")
    before = look(m, inputs)
    put(m, spec)
    plain = look(m, inputs)
    unipelt.remove(m, "a")
    cpu_offload(m, torch.device("cpu"))
    put(m, spec)
    assert same(look(m, inputs), plain)
    with unipelt.disabled(m):
        assert same(look(m, inputs), before)
    unipelt.remove(m, "a")
    assert same(look(m, inputs), before)


@pytest.mark.parametrize("where", ["cpu", "disk"])
@pytest.mark.parametrize("spec", ["mam", "prompt_tuning", "ln_tuning"])
def test_a_saved_adapter_on_an_offloaded_model(spec, where, tmp_path):
    from accelerate import cpu_offload, disk_offload

    m = build("gpt2")
    inputs = batch("gpt2")
    put(m, spec)
    acting = look(m, inputs)
    folder = unipelt.save(m, tmp_path / "adapter", "a")
    right, wrong = build("gpt2"), build("gpt2", initializer_range=0.2)
    for other in (right, wrong):
        if where == "cpu":
            cpu_offload(other, torch.device("cpu"))
        else:
            disk_offload(other, str(tmp_path / str(id(other))), torch.device("cpu"))
    with pytest.raises(unipelt.PeltError, match="E0571"):
        unipelt.attach(wrong, folder)
    unipelt.attach(right, folder)
    assert distance(look(right, inputs), acting) <= 1e-5


def test_what_is_inactive_does_not_train(bases):
    """DDP waits for every parameter that requires a gradient: only the active adapter's may."""
    m = bases.get("bert_head")
    for i, spec in enumerate(("lora", "mam", "bitfit")):
        put(m, spec, f"n{i}")
    for names in (("n0",), ("n1",), ("n2",), ("n0", "n1"), ()):
        unipelt.activate(m, *names)
        wanted = {id(p) for n in names for p in trained(m, n).values()}
        assert {id(p) for p in m.parameters() if p.requires_grad} == wanted
        assert bool(wanted) is bool(names)
    for i in range(3):
        unipelt.remove(m, f"n{i}")


# ---------------------------------------------------------------- the attention interface


@pytest.mark.parametrize("kind", ["bert", "gpt2", "llama"])
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


@pytest.mark.filterwarnings(
    "ignore::DeprecationWarning"
)  # what torch and transformers say on the way to flex attention
@pytest.mark.parametrize(
    "spec", ["prefix_tuning", "llama_adapter", "unipelt_apl_causal", "multi_head_parallel_adapter"]
)
def test_an_attention_implementation_set_later_keeps_the_heads_edit(spec, bases):
    m = bases.get("llama")
    inputs = batch("llama")
    before = look(m, inputs)
    put(m, spec)
    acting = look(m, inputs)
    try:
        for name in ("eager", "sdpa", "eager"):
            m.set_attn_implementation(name)
            assert distance(look(m, inputs), acting) <= 1e-5
            assert distance(look(m, inputs), before) > EFFECT
        with pytest.raises(unipelt.PeltError, match="E0542"):
            m.set_attn_implementation("flex_attention")
            look(m, inputs)
    finally:
        m.set_attn_implementation("sdpa")
    assert same(look(m, inputs), acting)
    unipelt.remove(m, "a")


class OwnAttention(torch.nn.Module):
    """Attention that asks no function of transformers (as T5's was before 5.15)."""

    def __init__(self, other):
        super().__init__()
        self.query, self.key, self.value, self.heads = other.query, other.key, other.value, other.num_attention_heads

    def forward(self, hidden_states, *_, **__):
        q, k, v = (f(hidden_states).unflatten(-1, (self.heads, -1)).transpose(1, 2) for f in (self.query, self.key, self.value))
        return torch.nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2), None


def test_attention_past_the_interface_is_refused_at_its_heads_only():
    m, inputs = build("bert"), batch("bert", padded=False)
    wanted = look(m, inputs)
    for layer in m.encoder.layer:
        layer.attention.self = OwnAttention(layer.attention.self)
    before = footprint(m)
    assert distance(look(m, inputs), wanted) <= 1e-5
    with pytest.raises(unipelt.PeltError, match="E0547"):
        put(m, "prefix_tuning")
    assert footprint(m) == before
    put(m, "lora")
    assert distance(look(m, inputs), wanted) > EFFECT


# ---------------------------------------------------------------- whole or not at all


class Broken(Exception):
    pass


def _break_after(monkeypatch, where, name, calls):
    original = getattr(where, name)
    left = [calls]

    def broken(*args, **kwargs):
        left[0] -= 1
        if left[0] == -1:  # once: what undoes the half-done work may call it again
            raise Broken
        return original(*args, **kwargs)

    monkeypatch.setattr(where, name, broken)


@pytest.mark.parametrize("others", [False, True])
@pytest.mark.parametrize(
    ("name", "calls"),
    [("_hang_edit", 0), ("_hang_edit", 3), ("_hang_copies", 0), ("_hang_root", 0), ("install", 0), ("activate", 0),
     ("start", 2), ("_forget_compiled", 0)],
)  # fmt: skip
def test_apply_that_fails_half_way(name, calls, others, bases, monkeypatch):
    from unipelt.runtime import attach

    m = bases.get("bert_head")
    inputs = batch("bert_head")
    for i, p in enumerate(m.parameters()):
        p.requires_grad_(i % 2 == 0)
    if others:
        put(m, "lora", "other")
    traces, weights, acting = footprint(m), values(m), look(m, inputs)
    held = unipelt.active(m)
    with monkeypatch.context() as patch:
        _break_after(patch, attach, name, calls)
        with pytest.raises(Broken):
            unipelt.apply(m, small("unipelt_apl"), name="new")
    assert footprint(m) == traces
    assert same_values(values(m), weights)
    assert same(look(m, inputs), acting)
    assert unipelt.active(m) == held and "new" not in unipelt.adapters(m)
    put(m, "unipelt_apl", "new")  # and nothing stands in the way of another try
    unipelt.remove(m, "new")
    if others:
        unipelt.activate(m, "other")
        assert same(look(m, inputs), acting)
        unipelt.remove(m, "other")
    for p in m.parameters():
        p.requires_grad_(True)


def test_a_site_that_the_second_row_misses(bases):
    m = bases.get("gpt2")
    traces, weights = footprint(m), values(m)
    method = unipelt.parse("""
        method two(r: int = 4) {
          use { modify ffn insert parallel form low_rank(r) compose add } as first
          use { modify ffn.gate insert parallel form low_rank(r) compose add } as second
        }""")
    with pytest.raises(unipelt.PeltError, match="ffn.gate"):
        unipelt.apply(m, method)
    assert footprint(m) == traces and same_values(values(m), weights)


@pytest.mark.parametrize("spec", ["lora", "ia3", "bitfit"])
def test_merge_that_fails_half_way(spec, bases, monkeypatch):
    from unipelt.runtime import merge

    m = bases.get("gpt2")
    inputs = batch("gpt2")
    put(m, spec)
    acting, weights = look(m, inputs), values(m)
    target, calls = ("_edited", 1) if spec != "bitfit" else ("_changed", 0)
    with monkeypatch.context() as patch:
        if spec == "bitfit":
            patch.setattr(merge, "_merged_values", lambda *_: (_ for _ in ()).throw(Broken()))
        else:
            _break_after(patch, merge, target, calls)
        with pytest.raises(Broken):
            unipelt.merge(m, "a")
    assert same_values(values(m), weights) and same(look(m, inputs), acting)
    assert unipelt.active(m) == ("a",)
    unipelt.remove(m, "a")


def test_merge_that_fails_while_writing(bases, monkeypatch):
    """An error between two weights, where the first is written already."""
    m = bases.get("gpt2")
    inputs = batch("gpt2")
    put(m, "lora")
    acting, weights = look(m, inputs), values(m)
    original = torch.Tensor.copy_
    mine = {p.data_ptr() for n, p in m.named_parameters() if n.endswith("c_attn.weight")}
    written = []

    def copy_(self, *args, **kwargs):
        if self.data_ptr() in mine:
            if len(written) == 1:
                written.append(1)
                raise Broken
            written.append(1)
        return original(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(torch.Tensor, "copy_", copy_)
        with pytest.raises(Broken):
            unipelt.merge(m, "a")
    assert len(written) >= 2
    assert same_values(values(m), weights) and same(look(m, inputs), acting)
    assert unipelt.active(m) == ("a",)
    unipelt.remove(m, "a")


@pytest.mark.parametrize("spec", ["pfeiffer", "unipelt_apl_causal", "prompt_tuning", "llama_adapter"])
def test_an_exception_inside_a_forward_leaves_nothing_behind(spec, bases):
    m = bases.get("gpt2")
    inputs, other = batch("gpt2"), batch("gpt2", rows=2, tokens=5, seed=4)
    before = look(m, other)
    put(m, spec)
    wanted = look(m, other)
    for place in (
        "transformer.h.0.attn.resid_dropout",
        "transformer.h.0.mlp.c_proj",
        "transformer.h.1.ln_2",
        "lm_head",
    ):
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
    from unipelt.runtime.attach import registry

    held = registry(m).switch.holder.values
    assert not [k for k, v in held.items() if isinstance(v, torch.Tensor) and v.requires_grad], held.keys()
    del outputs
    gc.collect()
    assert pickle.loads(pickle.dumps(m)) is not None
    unipelt.remove(m, "a")


# ---------------------------------------------------------------- prompts


AT = ["embed", "embed.words"]


def prompt(at: str, **arguments):
    """Prompt tuning at a site; every spelling of its arguments is that of the library's spec."""
    method = unipelt.load("prompt_tuning")
    return method(l=4, at=at, **arguments)


@pytest.mark.parametrize("at", AT)
@pytest.mark.parametrize("kind", ["gpt2", "llama", "mistral", "qwen2"])
def test_a_prompt_with_labels(kind, at, bases):
    """The model's own loss is that of the tokens alone, computed by hand from the logits."""
    m = bases.get(kind)
    inputs = batch(kind)
    labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
    with torch.no_grad():
        before = m(**inputs, labels=labels)
        put(m, prompt(at))
        o = m(**inputs, labels=labels)
    logits = o.logits[:, -labels.shape[1] :]
    # the prompt's last row predicts the first token, whose label counts too
    shifted, targets = logits[:, :-1], labels[:, 1:]
    first = o.logits[:, -labels.shape[1] - 1]
    all_ = torch.cat([first[:, None], shifted], 1)
    by_hand = F.cross_entropy(all_.reshape(-1, VOCAB), labels.reshape(-1), ignore_index=-100)
    without_first = F.cross_entropy(shifted.reshape(-1, VOCAB), targets.reshape(-1), ignore_index=-100)
    assert abs(float(before.loss - o.loss)) > EFFECT
    assert abs(float(by_hand - without_first)) > 1e-4
    assert torch.isclose(o.loss, by_hand, atol=1e-5)
    unipelt.remove(m, "a")


@pytest.mark.parametrize("at", AT)
@pytest.mark.parametrize("kind", ["gpt2_head", "llama_head"])
def test_a_prompt_and_pooling_at_the_last_token(kind, at, bases):
    """A classifier on a decoder reads the last real token; with pads at the right that is not the last position."""
    m = bases.get(kind)
    inputs = batch(kind)
    before = look(m, inputs)
    put(m, prompt(at))
    together = look(m, inputs)["logits"]
    assert (together - before["logits"]).abs().max() > EFFECT
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    for i in range(ids.shape[0]):
        n = int(mask[i].sum())
        alone = look(m, {"input_ids": ids[i : i + 1, :n], "attention_mask": mask[i : i + 1, :n]})["logits"]
        assert (together[i : i + 1] - alone).abs().max() <= 1e-5
        assert (look(m, {"input_ids": ids[i : i + 1, :n]})["logits"] - alone).abs().max() <= 1e-5
    unipelt.remove(m, "a")


@pytest.mark.parametrize("at", AT)
def test_a_prompt_past_the_model_is_an_error(at, bases):
    m = bases.get("gpt2")
    ids = batch("gpt2")["input_ids"]
    base = m.transformer(ids).last_hidden_state
    put(m, prompt(at))
    with pytest.raises(unipelt.PeltError, match="E0543"):
        m.transformer(ids)
    with unipelt.disabled(m):
        assert torch.equal(m.transformer(ids).last_hidden_state, base)
    m(ids)
    with pytest.raises(unipelt.PeltError, match="E0543"):  # nothing of the call before is left
        m.transformer(ids)
    unipelt.remove(m, "a")
    assert torch.equal(m.transformer(ids).last_hidden_state, base)


@pytest.mark.parametrize("spec", ["lora", "mam", "prompt_tuning", "unipelt_apl_causal"])
@pytest.mark.parametrize("kind", ["bert", "gpt2", "llama"])
def test_ids_by_position_by_name_and_as_embeddings(kind, spec, bases):
    m = bases.get(kind)
    inputs = batch(kind)
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    before = look(m, inputs)
    embeds = m.get_input_embeddings()(ids).detach()
    assert distance(look(m, {"inputs_embeds": embeds, "attention_mask": mask}), before) <= 1e-6
    put(m, spec)
    acting = look(m, inputs)
    assert distance(acting, before) > EFFECT
    with torch.no_grad():
        positional = m(ids, attention_mask=mask)
        tuple_ = m(ids, attention_mask=mask, return_dict=False)[0]
    assert torch.equal(positional[0], acting["logits" if kind != "bert" else "last_hidden_state"])
    assert torch.equal(tuple_, positional[0])
    assert distance(look(m, {"inputs_embeds": embeds, "attention_mask": mask}), acting) <= 1e-6
    unipelt.remove(m, "a")


def test_a_prompt_at_the_words_given_embeddings(bases):
    m = bases.get("gpt2")
    inputs = batch("gpt2")
    put(m, prompt("embed.words"))
    acting = look(m, inputs)
    with unipelt.disabled(m):
        embeds = m.get_input_embeddings()(inputs["input_ids"]).detach()
    found = look(m, {"inputs_embeds": embeds, "attention_mask": inputs["attention_mask"]})
    assert distance(found, acting) <= 1e-6
    unipelt.remove(m, "a")


# ---------------------------------------------------------------- the meta device


@pytest.mark.parametrize("kind", ["bert", "bert_head", "gpt2", "llama"])
@pytest.mark.parametrize("spec", [*CHOSEN, "full", "unipelt_apl"])
def test_on_the_meta_device(kind, spec):
    """Applied on the meta device: the same tensors by name and shape, and nothing is left after removing."""
    real = build(kind)
    with torch.device("meta"):
        cls, config, options = KINDS[kind]
        m = cls(config(**options)).eval()
    assert {p.device.type for p in m.parameters()} == {"meta"}
    traces = footprint(m)
    unipelt.apply(m, small(spec), allow_future=True)
    unipelt.apply(real, small(spec), allow_future=True)
    shapes = {n: t.shape for n, t in unipelt.state_dict(real).items()}
    found = unipelt.state_dict(m)
    assert {n: t.shape for n, t in found.items()} == shapes and shapes
    assert {t.device.type for t in found.values()} == {"meta"}
    with pytest.raises(unipelt.PeltError, match="E0574"):
        unipelt.save(m, "nowhere")
    unipelt.remove(m, "default")
    assert footprint(m) == traces


# ---------------------------------------------------------------- architectures for free


@pytest.mark.parametrize("kind", ["roberta_head", "electra_head", "mistral", "qwen2"])
@pytest.mark.parametrize("spec", ["lora", "mam", "unipelt_apl", "unipelt_apl_causal", "prompt_tuning"])
def test_other_architectures(kind, spec, bases):
    m = bases.get(kind)
    inputs = batch(kind)
    causal = kind in ("mistral", "qwen2")
    traces, before = footprint(m), look(m, inputs)
    if causal and spec == "unipelt_apl":
        with pytest.raises(unipelt.PeltError, match="E0530"):
            unipelt.apply(m, small(spec))
        assert footprint(m) == traces
        return
    unipelt.apply(m, small(spec), name="a")
    randomise(m, "a")
    acting = look(m, inputs)
    assert distance(acting, before) > EFFECT
    with unipelt.disabled(m):
        assert same(look(m, inputs), before)
    loss(m, inputs).backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in trained(m, "a").values())
    found = unipelt.state_dict(m, "a")
    unipelt.apply(m, small(spec), name="b", lowering=False)
    with torch.no_grad():
        for n, t in unipelt.state_dict(m, "b").items():
            t.copy_(found[n])
    assert distance(look(m, inputs), acting) <= 1e-5
    unipelt.remove(m, "b")
    unipelt.remove(m, "a")
    assert footprint(m) == traces and same(look(m, inputs), before)


@pytest.mark.parametrize("kind", ["mistral", "qwen2"])
@pytest.mark.parametrize("spec", ["lora", "mam", "unipelt_apl_causal", "prompt_tuning"])
def test_other_architectures_decode(kind, spec, bases):
    m = bases.get(kind)
    ids = batch(kind, rows=2, tokens=6, padded=False)["input_ids"]
    put(m, spec)
    options = dict(attention_mask=torch.ones_like(ids), max_new_tokens=4, do_sample=False, pad_token_id=PAD)
    assert torch.equal(m.generate(ids, **options), m.generate(ids, use_cache=False, **options))
    unipelt.remove(m, "a")


def test_only_the_chosen_layers():
    """`layers last 1`: the first layer of the base is left alone."""
    m = build("bert")  # its own: asking for hidden states leaves transformers' hooks on a model
    plan = put(m, unipelt.load("llama_adapter")(l=4, top=1))
    assert {e.site.layer for e in plan.edits} == {1}
    assert {n.split(".")[2] for n in unipelt.state_dict(m, "a")} == {"1"}
    with torch.no_grad():
        acting = m(**batch("bert"), output_hidden_states=True).hidden_states
        with unipelt.disabled(m):
            before = m(**batch("bert"), output_hidden_states=True).hidden_states
    assert torch.equal(acting[1], before[1]) and (acting[2] - before[2]).abs().max() > EFFECT


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_tied_weights_survive_a_merge(kind, bases):
    """A trained copy of a tied table is merged into one table, which stays tied."""
    m = build(kind, tie_word_embeddings=True)
    inputs = batch(kind)
    assert m.get_output_embeddings().weight is m.get_input_embeddings().weight
    before, weights = look(m, inputs), values(m)
    put(m, "full")
    acting = look(m, inputs)
    unipelt.merge(m, "a")
    assert m.get_output_embeddings().weight is m.get_input_embeddings().weight
    assert distance(look(m, inputs), acting) <= 1e-5 * max(1.0, float(acting["logits"].abs().max()))
    unipelt.unmerge(m)
    unipelt.remove(m, "a")
    assert same_values(values(m), weights) and same(look(m, inputs), before)


def test_dropout_of_the_method_acts_in_training_only(bases):
    m = bases.get("bert")
    inputs = batch("bert")
    put(m, unipelt.load("lora")(r=4, dropout=0.5))
    acting = look(m, inputs)
    m.train()
    torch.manual_seed(0)
    one = look(m, inputs)
    two = look(m, inputs)
    assert distance(one, two) > EFFECT and distance(one, acting) > EFFECT
    m.eval()
    assert same(look(m, inputs), acting)
    unipelt.remove(m, "a")


@pytest.mark.parametrize("order", [("one", "two"), ("two", "one")])
@pytest.mark.parametrize("copied", ["full", "bitfit", "ln_tuning"])
def test_a_trained_copy_beside_an_adapter(copied, order, bases):
    """Weight edits precede activation edits, whichever adapter they belong to (ruling 6)."""
    m = bases.get("bert", torch.float64)
    inputs = batch("bert")
    put(m, copied, "one")
    put(m, "lora", "two")
    for name in order[:1]:
        unipelt.activate(m, name)
    alone = look(m, inputs)
    unipelt.activate(m, *order)
    both = look(m, inputs)
    unipelt.activate(m, *reversed(order))
    assert distance(both, look(m, inputs)) <= 1e-10
    assert distance(both, alone) > EFFECT
    unipelt.remove(m, "one")
    unipelt.remove(m, "two")
