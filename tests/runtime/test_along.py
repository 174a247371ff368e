"""What rows carry from layer to layer (`carry`) on models: followed by hand, alone and beside others, and refused where it cannot be handed on."""

from __future__ import annotations

import copy
import threading
from typing import Any

import pytest
import small
import torch
from transformers import AlbertConfig, AlbertModel, T5Config, T5ForConditionalGeneration

import unipelt
from unipelt.runtime.registry import record, registry

TEXT = """
method m(r: int = 4) {
  modify SITE
  insert INSERT
  form {
    E: [d_in, r] ~ normal(0.3) per model
    D: [d_in, r] ~ normal(0.3)
    U: [r, d_out] ~ normal(0.3)
    carry s = z @ E + z @ D then tanh(s) + z @ D
    delta = s @ U
  }
  compose h + delta
}
"""


def method(site: str = "block.input", insert: str = "sequential", layers: str = "", name: str = "m") -> unipelt.Method:
    text = TEXT.replace("SITE", site).replace("INSERT", insert).replace("method m", f"method {name}")
    return unipelt.parse(text.replace("  modify", f"  layers {layers}  modify") if layers else text)


def llama(m: unipelt.Method | None = None, **more: Any) -> torch.nn.Module:
    model = small.model("llama", dtype=torch.float64)
    if m is not None:
        unipelt.apply(model, m, **more)
    return model


def by_hand(model: torch.nn.Module, ids: torch.Tensor, layers: range | None = None) -> torch.Tensor:
    """A pass of a small Llama whose blocks read what the method makes of their inputs, with a loop of our own."""
    t = unipelt.state_dict(model)
    with unipelt.disabled(model), torch.no_grad():
        core = model.model
        h, s, n = core.embed_tokens(ids), None, ids.shape[1]
        positions = core.rotary_emb(h, torch.arange(n)[None])
        mask = torch.full((n, n), -torch.inf, dtype=h.dtype).triu(1)[None, None]
        for i, block in enumerate(core.layers):
            if layers is None or i in layers:
                own = {
                    k: next(v for name, v in t.items() if name.endswith(f"layers.{i}.block.input.m.{k}")) for k in "DU"
                }
                s = (h @ t["m.E"] if s is None else torch.tanh(s)) + h @ own["D"]
                h = h + s @ own["U"]
            out = block(h, attention_mask=mask, position_embeddings=positions)
            h = out[0] if isinstance(out, tuple) else out
        return model.lm_head(core.norm(h))


IDS = small.inputs(padded=False)["input_ids"]


def same(a: torch.Tensor, b: torch.Tensor, within: float = 1e-12) -> bool:
    return float((a - b).detach().abs().max()) <= within * float(b.detach().abs().max())


@pytest.mark.parametrize("lowering", [True, False])
@pytest.mark.parametrize("layers", ["", "every 2", "last 2"])
def test_the_first_layer_begins_and_the_others_go_on(lowering: bool, layers: str) -> None:
    model = llama(method(layers=layers), lowering=lowering)
    n = small.LAYERS
    expected = by_hand(model, IDS, {"": None, "every 2": range(0, n, 2), "last 2": range(n - 2, n)}[layers])
    assert not same(expected, small.output(llama(), input_ids=IDS), 1e-3)
    with torch.no_grad():
        for _ in range(4):  # where nothing has changed since, hosts do less
            assert same(model(IDS).logits, expected)
        assert same(
            model(IDS[:, :3]).logits,
            by_hand(model, IDS[:, :3], {"": None, "every 2": range(0, n, 2), "last 2": range(n - 2, n)}[layers]),
        )


def test_it_decodes_with_a_cache_as_without() -> None:
    model, found, cache = llama(method()), [], None
    with torch.no_grad():
        for part in (IDS[:, :3], IDS[:, 3:4], IDS[:, 4:]):
            out = model(part, use_cache=True, **(small.with_cache(model, cache) if cache is not None else {}))
            cache = small.cache_of(out)
            found.append(out.logits)
    assert same(torch.cat(found, 1), by_hand(model, IDS), 1e-10)


def test_a_copy_a_broken_pass_and_a_saved_folder_go_on_as_it_was(tmp_path: Any) -> None:
    model = llama(method())
    expected = by_hand(model, IDS)
    twin = copy.deepcopy(model)

    def breaks(*_: Any) -> None:
        raise InterruptedError

    handle = model.model.layers[1].register_forward_hook(breaks)
    with pytest.raises(InterruptedError):
        model(IDS)
    handle.remove()
    assert same(model(IDS).logits, expected) and same(twin(IDS).logits, expected)
    current = registry(model).switch.holder.current  # type: ignore[union-attr]
    assert current.carried is None, "what a pass has carried goes with it"
    unipelt.save(model, tmp_path / "a")
    other = llama()
    unipelt.attach(other, tmp_path / "a")
    assert same(other(IDS).logits, expected)


def test_several_adapters_carry_their_own() -> None:
    both = llama(method())
    unipelt.apply(both, method(), name="b", seed=5)
    unipelt.activate(both, "default", "b")
    text = TEXT.replace("SITE", "block.input").replace("INSERT", "sequential").split("{", 1)[1].rsplit("}", 1)[0]
    one = llama(unipelt.parse(f"method two(r: int = 4) {{ use {{ {text} }} as m  use {{ {text} }} as b }}"))
    own = {
        n: t
        for name in ("default", "b")
        for n, t in ((f"{name} {n}", t) for n, t in unipelt.state_dict(both, name).items())
    }
    with torch.no_grad():
        for n, t in unipelt.state_dict(one).items():
            front = "b" if ".b." in n or n.startswith("b.") else "default"
            t.copy_(
                own[
                    f"{front} {n.replace('.b.', '.m.') if '.b.' in n else n.replace('b.E', 'm.E') if front == 'b' else n}"
                ]
            )
    assert same(both(IDS).logits, one(IDS).logits)
    with unipelt.using(both, "default"):
        assert same(both(IDS).logits, by_hand(both, IDS))
    with (
        pytest.raises(unipelt.PeltError, match="E0853.*carries something"),
        unipelt.using(both, ["default", "b", None]),
    ):
        pass


def test_threads_do_not_see_each_other() -> None:
    model, texts = llama(method()), [IDS, IDS.flip(1), IDS[:, :4]]
    expected, wrong = [by_hand(model, t) for t in texts], []

    def work(i: int) -> None:
        with torch.no_grad():
            wrong.extend(i for _ in range(8) if not same(model(texts[i]).logits, expected[i]))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(3)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong


def test_each_stack_has_its_own() -> None:
    torch.manual_seed(0)
    model = (
        T5ForConditionalGeneration(
            T5Config(
                d_model=16, d_kv=4, d_ff=24, num_layers=2, num_heads=4, vocab_size=small.WORDS, decoder_start_token_id=0
            )
        )
        .double()
        .eval()
    )
    unipelt.apply(model, method())
    t = unipelt.state_dict(model)
    states: dict[str, torch.Tensor] = {}
    seen: list[torch.Tensor] = []

    def follow(stack: str, i: int) -> Any:
        def hook(module: Any, args: Any, kwargs: Any) -> None:
            h = states[f"{stack} enters"]
            own = {
                k: next(
                    v
                    for n, v in t.items()
                    if n.endswith(f"{stack}.block.{i}.block.input.m.{k}")
                    or n.endswith(f"{stack}.layers.{i}.block.input.m.{k}")
                )
                for k in "DU"
            }
            s = (h @ t["m.E"] if stack not in states else torch.tanh(states[stack])) + h @ own["D"]
            states[stack] = s
            seen.append(((args[0] if args else kwargs["hidden_states"]) - h - s @ own["U"]).abs().max())

        return hook

    for name in ("encoder", "decoder"):
        for i, block in enumerate(getattr(model, name).block):

            def enters(module: Any, args: Any, kwargs: Any, name: str = name) -> None:
                states[f"{name} enters"] = args[0] if args else kwargs["hidden_states"]

            block.register_forward_pre_hook(enters, prepend=True, with_kwargs=True)
            block.register_forward_pre_hook(follow(name, i), with_kwargs=True)
    with torch.no_grad():
        model(input_ids=IDS, decoder_input_ids=IDS)
    assert len(seen) == 4 and max(map(float, seen)) < 1e-12


def test_one_module_that_serves_all_layers_goes_on_at_each_call() -> None:
    torch.manual_seed(0)
    config = AlbertConfig(
        hidden_size=16,
        embedding_size=8,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=24,
        vocab_size=small.WORDS,
    )
    model = AlbertModel(config).double().eval()
    unipelt.apply(model, method("attn.q", "parallel"))
    t = {n.rpartition(".")[2]: v for n, v in unipelt.state_dict(model).items()}
    read: list[torch.Tensor] = []
    given: list[torch.Tensor] = []
    host = next(m for n, m in model.named_modules() if n.endswith("attention.query"))
    host.register_forward_hook(
        lambda m, args, out: (
            (read.append(args[0]), given.append(out - torch.nn.functional.linear(args[0], m.weight, m.bias))) and None
        )
    )
    with torch.no_grad():
        model(input_ids=IDS)
        s = None
        for x, change in zip(read, given, strict=True):
            s = (x @ t["E"] if s is None else torch.tanh(s)) + x @ t["D"]
            assert same(change, s @ t["U"], 1e-10)
    assert len(read) == 3


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize(
    ("site", "insert"), [("block.input", "sequential"), ("block", "parallel"), ("attn.q", "parallel")]
)
def test_checkpoints_are_exact_around_blocks_and_refused_within(site: str, insert: str, reentrant: bool) -> None:
    model = llama(method(site, insert)).train()
    own = record(model, "default").trained()
    model(IDS, use_cache=False).logits.square().mean().backward()
    expected = {n: p.grad.clone() for n, p in own.items()}
    model.zero_grad()
    small.checkpoint_activations(model, reentrant)
    if reentrant:
        model.enable_input_require_grads()
    loss = model(IDS, use_cache=False).logits.square().mean()
    if site == "attn.q":
        with pytest.raises(unipelt.PeltError, match="E0549.*(?s:.*)checkpointed to save memory"):
            loss.backward()
        return
    loss.backward()
    assert all(same(own[n].grad, g, 1e-10) for n, g in expected.items())


def test_a_layer_by_itself_and_parts_of_the_tokens_are_refused() -> None:
    model = llama(method("ffn", "parallel"))
    with pytest.raises(unipelt.PeltError, match="E0549.*outside a pass"):
        model.model.layers[1].mlp(torch.zeros(1, 3, small.WIDTH, dtype=torch.float64))
    bert = small.model("bert", dtype=torch.float64)
    unipelt.apply(bert, method("ffn.up", "parallel"))
    for layer in bert.encoder.layer:
        layer.chunk_size_feed_forward = 1
    with pytest.raises(unipelt.PeltError, match="E0549.*more than once"):
        bert(**small.inputs(padded=False))


def test_sites_that_layers_have_twice_are_refused() -> None:
    with pytest.raises(unipelt.PeltError, match="E0548"):
        llama(method('module(".*self_attn.(k|v)_proj")', "parallel"))


def test_it_is_neither_merged_nor_printed() -> None:
    model = llama(method("attn.q", "parallel"))
    with pytest.raises(unipelt.PeltError, match="E0563.*what other layers have carried"):
        unipelt.merge(model)
    with pytest.raises(unipelt.PeltError, match="E0590.*carries `s` from layer to layer"):
        method().torch_source()


def test_a_plan_names_tensors_that_few_layers_read() -> None:
    text = (
        TEXT.replace(" per model", "")
        .replace("z @ E + z @ D then", "z @ E then")
        .replace("SITE", "block")
        .replace("INSERT", "parallel")
    )
    said = "\n".join(unipelt.plan(llama(), unipelt.parse(text)).warnings)
    assert (
        "`E` of `m` is read at the first layer alone" in said
        and "`D` of `m` is read behind the first layer alone" in said
        and "`U`" not in said
    )
    assert not any("alone" in w for w in unipelt.plan(llama(), method()).warnings)


def test_it_is_compiled_whole() -> None:
    model = llama(method())
    expected = by_hand(model, IDS)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    with torch.no_grad():
        for _ in range(2):
            assert same(compiled(IDS, use_cache=False).logits, expected)


def test_a_penalty_of_a_line_beside_exact_starts_is_computed() -> None:
    """The line is read by the penalty alone: it is no line of the starts."""
    form = "A: [d_in, r] ~ normal(0.1) B: [r, d_out] ~ zeros t = sum(sum(A * A)) penalty 2 * t frozen n: [d_out] = norm(W, 0) delta = z @ A @ B * n"
    model = llama(
        unipelt.parse(f"method p(r: int = 4) {{ modify attn.q insert parallel form {{ {form} }} compose h + delta }}")
    ).train()
    model(IDS)
    own = [t for n, t in unipelt.state_dict(model).items() if n.endswith(".A")]
    assert same(unipelt.penalties(model), 2 * sum(t.square().sum() for t in own))
