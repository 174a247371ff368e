"""Heads of attention that a module computes past transformers' interface: the same numbers as through it, and nothing left behind."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import transformers as T
from small import cache_of, checkpoint_activations, with_cache
from tiny import VOCAB, batch, build, distance, footprint, look, loss, put, same, trained
from torch import nn
from torch.nn import functional as F
from torch.overrides import _get_current_function_mode_stack
from transformers.models.llama.modeling_llama import LlamaAttention, apply_rotary_pos_emb, repeat_kv

import unipelt
from unipelt.anatomy.find import find
from unipelt.anatomy.prove import proved
from unipelt.anatomy.sites import View

EFFECT = 1e-3
METHODS = ("prefix_tuning", "mam", "unipelt_apl_causal", "llama_adapter")


class Own(LlamaAttention):
    """Llama's attention, which asks no function of transformers; ``way`` computes it."""

    way: Callable[..., torch.Tensor]

    def forward(self, hidden_states: Any, position_embeddings: Any, attention_mask: Any = None, past_key_values: Any = None,
                **_: Any) -> Any:  # fmt: skip
        shape = hidden_states.shape[:-1]
        q, k, v = (f(hidden_states).view(*shape, -1, self.head_dim).transpose(1, 2)
                   for f in (self.q_proj, self.k_proj, self.v_proj))  # fmt: skip
        q, k = apply_rotary_pos_emb(q, k, *position_embeddings)
        if past_key_values is not None:
            k, v = past_key_values.update(k, v, self.layer_idx)
        k, v = (repeat_kv(t, self.num_key_value_groups) for t in (k, v))
        h = type(self).way(q, k, v, attention_mask, self.scaling)
        return self.o_proj(h.transpose(1, 2).reshape(*shape, -1)), None


def scaled_after(q: Any, k: Any, v: Any, mask: Any, scale: float) -> torch.Tensor:
    scores = torch.matmul(q, k.transpose(2, 3)) * scale
    scores = scores + mask if mask is not None else scores
    p = F.softmax(scores, dim=-1, dtype=torch.float32).to(q.dtype)
    return torch.matmul(F.dropout(p, 0.0), v)


def scaled_before(q: Any, k: Any, v: Any, mask: Any, scale: float) -> torch.Tensor:
    """Batch and heads in one dimension, as BART's was."""
    scores = torch.bmm((q * scale).flatten(0, 1), k.flatten(0, 1).transpose(1, 2)).view(*q.shape[:3], -1)
    if mask is not None:
        scores += mask
    p = nn.Softmax(dim=-1)(scores)
    return torch.bmm(p.flatten(0, 1), v.flatten(0, 1)).view(q.shape)


def added(q: Any, k: Any, v: Any, mask: Any, scale: float) -> torch.Tensor:
    """A mask to which the product is added, keys that are divided, as BLOOM's and DeBERTa's are."""
    mask = torch.zeros(1) if mask is None else mask.expand(-1, q.shape[1], -1, -1).flatten(0, 1)
    keys = k.flatten(0, 1).transpose(1, 2) / torch.tensor(2.0)
    scores = mask.baddbmm(batch1=q.flatten(0, 1), batch2=keys, alpha=2 * scale)
    p = scores.view(*q.shape[:3], -1).softmax(-1)
    return torch.einsum("bhts,bshd->bhtd", p, v.transpose(1, 2))


def by_letters(q: Any, k: Any, v: Any, mask: Any, scale: float) -> torch.Tensor:
    """Tokens first, as XLNet's."""
    q, k, v = (t.permute(2, 0, 1, 3) for t in (q, k, v))
    scores = torch.einsum("ibnd,jbnd->bnij", q, k) / (1 / scale)
    scores = scores if mask is None else scores + mask
    return torch.einsum("bnij,jbnd->ibnd", torch.softmax(scores, 3), v).permute(1, 2, 0, 3)


def shifted(q: Any, k: Any, v: Any, mask: Any, scale: float) -> torch.Tensor:
    """Scores from which each query's largest is taken, as CogView's are, and to which a number is added."""
    scores = q @ k.transpose(-1, -2) + 1.0
    scores = ((scores - scores.amax(-1, keepdim=True)) * scale).flatten(0, 1).view(*q.shape[:3], -1)
    return torch.softmax(scores if mask is None else scores + mask, -1) @ v


def function(q: Any, k: Any, v: Any, mask: Any, scale: float) -> torch.Tensor:
    causal = mask is None and q.shape[2] > 1
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal, scale=scale)


def function_of_three(q: Any, k: Any, v: Any, mask: Any, scale: float) -> torch.Tensor:
    mask = mask if mask is None else mask.expand(-1, q.shape[1], -1, -1).flatten(0, 1)
    q, k, v = (t.flatten(0, 1) for t in (q, k, v))
    h = F.scaled_dot_product_attention(q, k, v, mask, is_causal=mask is None and q.shape[1] > 1, scale=scale)
    return h.view(-1, 4, *h.shape[1:])


WAYS = {"scaled_after": ("softmax", scaled_after), "scaled_before": ("softmax", scaled_before), "added": ("softmax", added),
        "by_letters": ("softmax", by_letters), "shifted": ("softmax", shifted), "function": ("sdpa", function), "function_of_three": ("sdpa", function_of_three)}  # fmt: skip
SEAMS = ("scaled_after", "scaled_before", "function")  # one of each kind, for what takes longer


def pair(way: str) -> tuple[Any, Any]:
    """The same Llama twice, with grouped heads: through the interface, and with attention of its own."""
    through = build("llama")
    through.set_attn_implementation("sdpa" if WAYS[way][0] == "sdpa" else "eager")
    own = copy.deepcopy(through)
    kind = type("Computed", (Own,), {"way": staticmethod(WAYS[way][1])})
    for layer in own.model.layers:
        layer.self_attn.__class__ = kind
    return through, own


@pytest.mark.parametrize("way", WAYS)
def test_heads_are_found_where_attention_is_computed_by_the_module(way: str) -> None:
    _, own = pair(way)
    sites = find(own)
    heads = sites.named("attn.heads")
    assert [(s.view.module, s.attends, s.proof) for s in heads] == [
        (f"model.layers.{i}.self_attn", WAYS[way][0], "proved") for i in range(2)
    ]
    assert (heads[0].sizes["heads"], heads[0].sizes["groups"]) == (4, 2)


@pytest.mark.parametrize("way", SEAMS)
def test_a_wrong_map_of_heads_is_refused(way: str) -> None:
    """Another module, another number of heads, another layer's module: the site of that layer drops out, with the reason."""
    _, own = pair(way)
    sites = find(own)
    heads = sites.named("attn.heads")[0]
    wrong = {
        "no attention": replace(heads, view=View("model.layers.0.mlp")),
        "heads": replace(heads, sizes={**heads.sizes, "heads": 2, "groups": 1, "d_head": 16}),
        "not passed through": replace(heads, view=View("model.layers.1.self_attn")),
    }
    for reason, site in wrong.items():
        mistaken = replace(sites, sites=tuple(site if s is heads else s for s in sites.sites))
        left = proved(mistaken, own, own.model)
        assert [s.layer for s in left.named("attn.heads")] == [1], reason
        assert reason in left.refused["layers.0.attn.heads"]


@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.parametrize("way", WAYS)
def test_it_computes_what_the_interface_does(way: str, padded: bool) -> None:
    """Padding, the causal mask in each form, grouped heads; rows in the same softmax and in one of their own, gates, adapters."""
    through, own = pair(way)
    inputs = batch("llama", padded=padded)
    base = look(own, inputs)
    assert distance(base, look(through, inputs)) <= 1e-5
    for spec in METHODS:
        for m in (through, own):
            put(m, spec)
        now = look(own, inputs)
        assert distance(now, look(through, inputs)) <= 1e-5, spec
        assert distance(now, base) > EFFECT, spec
        with unipelt.disabled(own):
            assert same(look(own, inputs), base)
        for m in (through, own):
            unipelt.remove(m, "a")
    assert same(look(own, inputs), base)


@pytest.mark.parametrize("way", SEAMS)
def test_adapters_stand_behind_each_other(way: str) -> None:
    """The second prefix is in one softmax with the first."""
    through, own = pair(way)
    for m in (through, own):
        put(m, "prefix_tuning", name="a")
        put(m, "prefix_tuning", name="b", noise=1)
        unipelt.activate(m, "a", "b")
    inputs = batch("llama")
    assert distance(look(own, inputs), look(through, inputs)) <= 1e-5
    unipelt.activate(own, "a")
    assert distance(look(own, inputs), look(through, inputs)) > EFFECT


@pytest.mark.parametrize("way", SEAMS)
def test_steps_with_a_cache_are_the_whole_pass(way: str) -> None:
    _, own = pair(way)
    put(own, "unipelt_apl_causal")
    ids = batch("llama", padded=False)["input_ids"]
    with torch.no_grad():
        whole = own(ids).logits
        first = own(ids[:, :4], use_cache=True)
        steps, cache = [first.logits], cache_of(first)
        for i in range(4, ids.shape[1]):
            out = own(ids[:, i : i + 1], **with_cache(own, cache), use_cache=True)
            steps.append(out.logits)
    assert (torch.cat(steps, 1) - whole).abs().max() <= 1e-5


@pytest.mark.parametrize("checkpointed", [False, True])
@pytest.mark.parametrize("way", SEAMS)
def test_gradients_are_those_of_the_interface(way: str, checkpointed: bool) -> None:
    inputs, found = batch("llama"), []
    for m in pair(way):
        put(m, "mam")
        m.train()
        if checkpointed:
            checkpoint_activations(m)
        loss(m, inputs).backward()
        found.append({n: p.grad for n, p in trained(m, "a").items()})
    assert set(found[0]) == set(found[1])
    for n, g in found[0].items():
        assert g is not None and found[1][n] is not None and g.abs().max() > 0, n
        assert (g - found[1][n]).abs().max() <= 1e-5 * max(1.0, float(g.abs().max())), n


# ---------------------------------------------------------------- what is left


def test_nothing_is_left_behind() -> None:
    _, own = pair("scaled_after")
    before = footprint(own)
    put(own, "lora")
    assert "forward" not in vars(own.model.layers[0].self_attn)  # nothing at heads
    unipelt.remove(own, "a")
    put(own, "prefix_tuning")
    assert "forward" in vars(own.model.layers[0].self_attn)
    twin = copy.deepcopy(own)
    inputs = batch("llama")
    assert same(look(twin, inputs), look(own, inputs))
    unipelt.remove(own, "a")
    assert footprint(own) == before and distance(look(own, inputs), look(twin, inputs)) > EFFECT


def test_a_pass_that_is_broken_off_leaves_nothing() -> None:
    _, own = pair("scaled_after")
    put(own, "prefix_tuning")
    inputs = batch("llama")
    wanted = look(own, inputs)
    for broken in (ValueError, KeyboardInterrupt):

        def stop(module: nn.Module, args: Any, error: type[BaseException] = broken) -> None:
            raise error

        handle = own.model.layers[1].self_attn.o_proj.register_forward_pre_hook(stop)
        with pytest.raises(broken):
            look(own, inputs)
        handle.remove()
        assert _get_current_function_mode_stack() == []
    assert same(look(own, inputs), wanted)


def test_other_threads_and_other_modules_see_nothing() -> None:
    """While one thread is inside the module, another computes attention by the same functions, and a model without adapters runs."""
    _, own = pair("function")
    plain = copy.deepcopy(own)
    put(own, "prefix_tuning")
    inputs = batch("llama")
    base, wanted = look(plain, inputs), look(own, inputs)
    inside, go, found = threading.Event(), threading.Event(), []

    def wait(module: nn.Module, args: Any) -> None:
        inside.set()
        go.wait(30)

    handle = own.model.layers[0].self_attn.o_proj.register_forward_pre_hook(wait)
    other = threading.Thread(target=lambda: found.append(look(own, inputs)))
    other.start()
    assert inside.wait(30)
    assert same(look(plain, inputs), base) and _get_current_function_mode_stack() == []
    go.set()
    other.join()
    handle.remove()
    assert same(found[0], wanted)


def _mixed(q: Any, k: Any, v: Any, mask: Any, scale: float) -> torch.Tensor:
    """Weights that heads share among themselves."""
    p = torch.softmax(q @ k.transpose(-1, -2) * scale + mask, -1)
    return torch.einsum("hg,bgts->bhts", torch.eye(4), p) @ v


def _summed(q: Any, k: Any, v: Any, mask: Any, scale: float) -> torch.Tensor:
    """Weights to which something is added."""
    p = torch.softmax(q @ k.transpose(-1, -2) * scale + mask, -1)
    return (p + p.flip(1)) @ v


def _twice(q: Any, k: Any, v: Any, mask: Any, scale: float) -> torch.Tensor:
    return (scaled_after(q, k, v, mask, scale) + scaled_after(q, k, v, mask, scale)) / 2


def _linear(q: Any, k: Any, v: Any, mask: Any, scale: float) -> torch.Tensor:
    """No softmax over keys."""
    return torch.softmax(q, -1) @ (torch.softmax(k, -2).transpose(-1, -2) @ v)


@pytest.mark.parametrize("way", [_mixed, _summed, _twice])
def test_what_is_not_recognised_is_refused_and_the_projections_stay(way: Any) -> None:
    _, own = pair("scaled_after")
    for layer in own.model.layers:
        layer.self_attn.__class__ = type("Computed", (Own,), {"way": staticmethod(way)})
    with pytest.raises(unipelt.PeltError, match="E0512.*attn.heads"):
        put(own, "prefix_tuning")
    before = look(own, batch("llama"))
    put(own, "adapter")
    assert distance(look(own, batch("llama")), before) > EFFECT


@pytest.mark.parametrize("way", [_mixed, _twice, _linear])
def test_attention_that_is_computed_otherwise_later_is_an_error(way: Any) -> None:
    """Not silence: E0547."""
    _, own = pair("scaled_after")
    put(own, "prefix_tuning")
    for layer in own.model.layers:
        layer.self_attn.__class__ = type("Computed", (Own,), {"way": staticmethod(way)})
    with pytest.raises(unipelt.PeltError, match="E0547.*model.layers.0.self_attn"):
        look(own, batch("llama"))
    assert _get_current_function_mode_stack() == []


@pytest.mark.sampled(2)
@pytest.mark.parametrize("way", ["scaled_after", "function"])
def test_compilers_are_refused(way: str) -> None:
    """A compiler would leave the edits out: E0547, and without adapters it is welcome."""
    _, own = pair(way)
    inputs = batch("llama")
    put(own, "prefix_tuning")
    wanted = look(own, inputs)
    compiled = torch.compile(own, backend="eager")
    with pytest.raises(unipelt.PeltError, match="E0547.*compiler"):
        compiled(**inputs)
    with pytest.raises(unipelt.PeltError, match="E0547.*compiler"):
        torch.export.export(
            own, (inputs["input_ids"],), {"attention_mask": inputs["attention_mask"], "use_cache": False}, strict=False
        )
    assert same(look(own, inputs), wanted)
    unipelt.remove(own, "a")
    base = look(own, inputs)
    with torch.no_grad():
        assert (compiled(**inputs).logits - own(**inputs).logits).abs().max() <= 1e-5
    assert same(look(own, inputs), base)


@pytest.mark.parametrize("way", SEAMS)
def test_what_watches_sees_the_same(way: str) -> None:
    inputs, found = batch("llama"), []
    for m in pair(way):
        put(m, "unipelt_apl_causal")
        with unipelt.watch(m, "a") as seen, torch.no_grad():
            m(**inputs)
        found.append(seen.edits)
    assert found[0] == pytest.approx(found[1], rel=1e-4) and any(v > EFFECT for v in found[0].values())


# ---------------------------------------------------------------- models of transformers


SIZES: dict[str, Any] = dict(vocab_size=VOCAB, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, pad_token_id=0, bos_token_id=1, eos_token_id=2)  # fmt: skip
MODELS: dict[str, tuple[Any, str]] = {
    "mpt": (T.MptConfig(vocab_size=VOCAB, d_model=32, n_layers=2, n_heads=4, max_seq_len=32), "distances"),
    "bloom": (T.BloomConfig(vocab_size=VOCAB, hidden_size=32, n_layer=2, n_head=4, pad_token_id=0, bos_token_id=1, eos_token_id=2), "distances"),
    "falcon": (T.FalconConfig(**SIZES, alibi=True, attn_implementation="eager"), "distances"),
    "falcon_sdpa": (T.FalconConfig(**SIZES, num_kv_heads=2, new_decoder_architecture=True, attn_implementation="sdpa"), "sdpa"),
    "gptj": (T.GPTJConfig(vocab_size=VOCAB, n_embd=32, n_layer=2, n_head=4, n_positions=32, rotary_dim=4, pad_token_id=0, bos_token_id=1, eos_token_id=2), "softmax"),
}  # fmt: skip


@pytest.mark.parametrize("kind", MODELS)
def test_models_that_compute_attention_themselves_have_heads(kind: str) -> None:
    """Learned rows act, and steps with a cache are the whole pass."""
    config, how = MODELS[kind]
    torch.manual_seed(0)
    m = T.AutoModelForCausalLM.from_config(config).eval()
    base = look(m, batch("llama"))
    plan = put(m, "unipelt_apl_causal")
    assert {e.site.attends for e in plan.edits if e.site.name == "attn.heads"} == {how}
    inputs = batch("llama")
    assert distance(look(m, inputs), base) > EFFECT
    ids = inputs["input_ids"][:1]
    with torch.no_grad():
        whole = m(ids).logits
        first = m(ids[:, :4], use_cache=True)
        rest = m(ids[:, 4:5], **with_cache(m, cache_of(first))).logits
    assert (torch.cat([first.logits, rest], 1) - whole[:, :5]).abs().max() <= 1e-5
    unipelt.remove(m, "a")
    assert same(look(m, batch("llama")), base)


@pytest.mark.parametrize("kind", [k for k, (_, how) in MODELS.items() if how == "distances"])
def test_learned_rows_are_at_no_distance(kind: str) -> None:
    """A bias for each key says how far keys are, from whatever place the model counts: pads before or behind a text change nothing."""
    torch.manual_seed(0)
    m = T.AutoModelForCausalLM.from_config(MODELS[kind][0]).eval()
    ids = batch("llama", rows=1, padded=False)["input_ids"]
    alone = m(ids).logits
    put(m, "prefix_tuning")
    pads, ones = torch.zeros(1, 3, dtype=torch.long), torch.ones_like(ids)
    with torch.no_grad():
        wanted = m(ids, attention_mask=ones).logits
        before = m(torch.cat([pads, ids], 1), attention_mask=torch.cat([pads, ones], 1)).logits[:, 3:]
        behind = m(torch.cat([ids, pads], 1), attention_mask=torch.cat([ones, pads], 1)).logits[:, :-3]
    assert (wanted - alone).abs().max() > EFFECT
    assert (before - wanted).abs().max() <= 1e-5 and (behind - wanted).abs().max() <= 1e-5


# ---------------------------------------------------------------- torch's own module


class Layer(nn.Module):
    def __init__(self, weights: bool):
        super().__init__()
        self.attn, self.up, self.down = (
            nn.MultiheadAttention(32, 4, batch_first=True),
            nn.Linear(32, 48),
            nn.Linear(48, 32),
        )
        self.weights = weights

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attn(x, x, x, need_weights=self.weights)[0]
        return x + self.down(F.relu(self.up(x)))


class Layers(nn.Module):
    def __init__(self, weights: bool):
        super().__init__()
        self.layers = nn.ModuleList([Layer(weights) for _ in range(2)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


@pytest.mark.parametrize("weights", [False, True])  # by torch's function, and written out
def test_heads_of_torchs_attention_are_as_computed_by_hand(weights: bool) -> None:
    torch.manual_seed(0)
    m = Layers(weights).eval()
    x = torch.randn(2, 5, 32)
    base = m(x)
    put(m, "prefix_tuning", example={"x": x})
    values = unipelt.state_dict(m, "a")
    P_k, P_v = (
        next(t for n, t in values.items() if n.startswith("layers.0.") and n.endswith(p)) for p in ("P_k", "P_v")
    )
    seen: list[torch.Tensor] = []
    handle = m.layers[0].attn.register_forward_hook(lambda module, args, out: seen.append(out[0]))
    with torch.no_grad():
        m(x)
        own: Any = m.layers[0].attn
        q, k, v = (
            t.unflatten(-1, (4, 8)).transpose(1, 2)
            for t in F.linear(x, own.in_proj_weight, own.in_proj_bias).chunk(3, -1)
        )
        k, v = (torch.cat([rows.expand(2, -1, -1, -1), t], 2) for rows, t in ((P_k, k), (P_v, v)))
        h = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        by_hand = F.linear(h, own.out_proj.weight, own.out_proj.bias)
    handle.remove()
    assert (seen[0] - by_hand).abs().max() <= 1e-5
    unipelt.remove(m, "a")
    assert (m(x) - base).abs().max() <= 1e-6


def test_attention_that_is_reordered_and_upcast_computes_what_the_interface_does() -> None:
    """GPT-2's option: the module multiplies queries and keys itself, in float32."""
    sizes: Any = dict(n_embd=48, n_layer=2, n_head=4, vocab_size=VOCAB, n_positions=64, bos_token_id=1, eos_token_id=1)
    own = T.GPT2LMHeadModel(T.GPT2Config(**sizes, reorder_and_upcast_attn=True, attn_implementation="eager")).eval()
    other = T.GPT2LMHeadModel(T.GPT2Config(**sizes)).eval()
    other.load_state_dict(own.state_dict())
    ids = torch.arange(1, 8)[None]
    before = own(input_ids=ids).logits
    for m in (own, other):
        put(m, "prefix_tuning")
    assert torch.allclose(own(input_ids=ids).logits, other(input_ids=ids).logits, atol=1e-5)
    assert not torch.allclose(own(input_ids=ids).logits, before, atol=1e-2)
