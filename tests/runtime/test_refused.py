"""What the runtime refuses: the message names the thing and what to do, and the model stays as it was."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from names import name as named
from small import WIDTH, inputs, model, output, randomise, state
from torch import nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

import unipelt
from unipelt.language.report.render import remedy
from unipelt.runtime.registry import record

LORA = unipelt.load(named("lora"))(r=2)


def refused(code: str, call: Any, *args: Any, **kwargs: Any) -> str:
    with pytest.raises(unipelt.PeltError) as caught:
        call(*args, **kwargs)
    (d,) = caught.value.diagnostics
    assert d.code == code and remedy(d)
    return f"{d.message}; {remedy(d)}"


@pytest.fixture
def adapted() -> nn.Module:
    """A model with two adapters, `a` and `b`, of which `b` acts."""
    m = model("bert")
    for n in ("a", "b"):
        unipelt.apply(m, LORA, name=n)
        randomise(m, n)
    return m


@pytest.mark.parametrize("wrong", ["my adapter", "a.b", "a/b", "", "é"])
def test_what_is_no_name_of_an_adapter(wrong: Any) -> None:
    m = model("bert")
    before = state(m)
    assert repr(wrong) in refused("E0552", unipelt.apply, m, LORA, name=wrong)
    assert state(m) == before and not unipelt.adapters(m)


def test_a_model_that_is_wrapped_for_several_devices(adapted: nn.Module) -> None:
    m = model("bert")
    before = state(m)
    said = refused("E0555", unipelt.apply, nn.DataParallel(m), LORA)
    assert "DataParallel" in said and "apply the method first" in said and state(m) == before
    for call in (unipelt.apply, lambda w, _: unipelt.activate(w, "a"), lambda w, _: unipelt.merge(w, "b")):
        assert "`model.module`" in refused("E0555", call, nn.DataParallel(adapted), LORA)
    assert unipelt.active(adapted) == ("b",)


QUERY = "encoder.layer.1.attention.self.query"


def put(m: nn.Module, path: str, new: nn.Module) -> nn.Module:
    """Puts a module in another one's place, which is returned."""
    host, _, name = path.rpartition(".")
    old = m.get_submodule(path)
    setattr(m.get_submodule(host), name, new)
    return old


def test_a_module_was_replaced_since(adapted: nn.Module, tmp_path: Path) -> None:
    """The adapter is said to act no more, its tensors are saved, and attached again it acts."""
    acting = output(adapted)
    new = nn.Linear(WIDTH, WIDTH)
    new.load_state_dict({n: t for n, t in adapted.get_submodule(QUERY).state_dict().items() if "unipelt" not in n})
    put(adapted, QUERY, new)
    assert not torch.equal(output(adapted), acting)
    for call in (unipelt.activate, unipelt.merge, lambda m, n: unipelt.parameter_groups(m, n, lr=1e-3)):
        assert f"`{QUERY}`" in refused("E0559", call, adapted, "b")
    assert unipelt.active(adapted) == ("b",)
    folder = unipelt.save(adapted, tmp_path / "b", "b")
    unipelt.remove(adapted, "b")
    unipelt.attach(adapted, folder, "b")
    unipelt.activate(adapted, "b")
    assert torch.equal(output(adapted), acting)


SHARED = "method s { modify attn.q insert parallel form { A: [d_in, 2] ~ normal(1.0) per model B: [2, d_out] ~ normal(1.0) per model delta = z @ A @ B } compose add }"


@pytest.mark.parametrize(
    "method, path",
    [(SHARED, QUERY), ("method b { train *.bias }", QUERY), (SHARED, "encoder.layer.1.attention")],
    ids=["tensors of the whole model", "a copy", "a module around it"],
)
def test_whatever_hung_there(method: str, path: str) -> None:
    m = model("bert")
    before = output(m)
    unipelt.apply(m, unipelt.parse(method), "x")
    randomise(m, "x")
    old = put(m, path, nn.Identity())
    assert "where the adapter `x` would act" in refused("E0559", unipelt.activate, m, "x")
    unipelt.remove(m, "x")
    assert not unipelt.adapters(m)
    put(m, path, model("bert").get_submodule(path))
    assert torch.equal(output(m), before) and old is not m.get_submodule(path)


def test_a_module_was_wrapped_since(adapted: nn.Module) -> None:
    """As peft wraps it: what hangs at it acts still, and can be taken out."""
    acting = output(adapted)
    put(adapted, QUERY, nn.Sequential(adapted.get_submodule(QUERY)))
    for n in ("a", "b"):
        unipelt.activate(adapted, n)
    assert torch.equal(output(adapted), acting)
    for n in ("a", "b"):
        unipelt.remove(adapted, n)
    assert torch.equal(output(adapted), output(model("bert"))) and not any(
        "unipelt" in n for n, _ in adapted.named_parameters()
    )


@pytest.mark.parametrize("method", ["lora", "parallel_adapter"])
def test_hooks_were_put_on_another_module(method: str) -> None:
    """As torch's dynamic quantisation does, without the named arguments."""
    m = model("bert")
    unipelt.apply(m, unipelt.load(named(method)))
    for path, host in [*m.named_modules()]:
        if host._forward_hooks or host._forward_pre_hooks:
            new = nn.Linear(4, 4) if isinstance(host, nn.Linear) else nn.Identity()
            for hook in host._forward_pre_hooks.values():
                new.register_forward_pre_hook(hook)
            for hook in host._forward_hooks.values():
                new.register_forward_hook(hook)
            if path:
                assert type(new).__name__ in refused("E0559", new, torch.zeros(1, 1, 4))


@pytest.mark.parametrize("place", ["", "encoder.layer.1.attention.self.query"])
@pytest.mark.parametrize("thing", [nn.Identity(), "a text"], ids=["child", "attribute"])
def test_something_of_the_name_that_edits_go_by(place: str, thing: Any) -> None:
    m = model("bert")
    host = m.get_submodule(place)
    host.unipelt = thing
    before, said = state(m), output(m)
    assert f"`{place or 'BertModel'}`" in refused("E0557", unipelt.apply, m, LORA)
    assert host.unipelt is thing and state(m) == before and torch.equal(output(m), said)
    del host.unipelt
    unipelt.apply(m, LORA)


def test_an_adapter_that_is_named_twice(adapted: nn.Module) -> None:
    acting = output(adapted)
    assert "`a`" in refused("E0558", unipelt.activate, adapted, "b", "a", "a")
    assert unipelt.active(adapted) == ("b",) and torch.equal(output(adapted), acting)


@pytest.mark.parametrize("reads", ["x", "residual"])
def test_a_module_that_is_called_by_itself(reads: str) -> None:
    """What enters the sublayer is not there; once it is called as a whole, it is, and nothing is left over."""
    m = model("bert")
    unipelt.apply(m, unipelt.parse(f"method m {{ modify ffn  compose {{ out = h + {reads} * 0.1 }} }}"))
    acting = output(m)
    end = m.encoder.layer[1].output.dropout
    assert f"`{reads}` of `ffn`" in refused("E0523", end, torch.zeros(2, 3, WIDTH))
    assert torch.equal(output(m), acting)
    with unipelt.disabled(m):
        end(torch.zeros(2, 3, WIDTH))


def test_merging_one_of_two_that_act(adapted: nn.Module) -> None:
    unipelt.activate(adapted, "a", "b")
    before, acting = state(adapted), output(adapted)
    said = refused("E0560", unipelt.merge, adapted, "a")
    assert "`b` is active" in said and "unipelt.activate(model, 'a')" in said
    assert state(adapted) == before and torch.equal(output(adapted), acting)
    unipelt.activate(adapted, "a")
    unipelt.merge(adapted, "a")
    assert (output(adapted) - acting).abs().max() > 1e-3  # `b` is not in it


@pytest.mark.parametrize("dtype, size", [(torch.float16, 6e4), (torch.float32, float("nan"))])
def test_merging_what_no_weight_can_hold(dtype: torch.dtype, size: float) -> None:
    m = model("bert", dtype=dtype)
    unipelt.apply(m, LORA)
    with torch.no_grad():
        for n, p in record(m, "default").trained().items():
            if ".layer.1." in n:
                p.fill_(size)
    before = copy.deepcopy(m.state_dict())
    said = refused("E0561", unipelt.merge, m, "default")
    assert "`encoder.layer.1." in said and ".weight`" in said and str(dtype) in said
    assert all(torch.equal(t.nan_to_num(), before[n].nan_to_num()) for n, t in m.state_dict().items())
    assert unipelt.active(m) == ("default",)


def test_taking_back_a_merge_that_there_is_not(adapted: nn.Module) -> None:
    for m in (model("bert"), adapted):
        before = state(m)
        assert "nothing is merged" in refused("E0562", unipelt.unmerge, m)
        assert state(m) == before


def test_what_is_asked_of_a_model_without_an_adapter() -> None:
    m = model("bert")
    before = state(m)
    for call in (
        unipelt.activate,
        lambda m: unipelt.activate(m, "a"),
        lambda m: unipelt.merge(m, "a"),
        lambda m: unipelt.remove(m, "a"),
    ):
        assert "no adapter" in refused("E0550", call, m) and state(m) == before


def test_what_is_asked_while_an_adapter_is_merged(adapted: nn.Module) -> None:
    unipelt.merge(adapted, "b")
    merged, weights = output(adapted), copy.deepcopy(adapted.state_dict())
    for call in (lambda: unipelt.apply(adapted, LORA, name="c"), lambda: unipelt.remove(adapted, "b")):
        said = refused("E0554", call)
        assert "the adapter `b` is merged" in said and "unipelt.unmerge(model)" in said
    assert set(unipelt.adapters(adapted)) == {"a", "b"} and torch.equal(output(adapted), merged)
    assert all(torch.equal(t, weights[n]) for n, t in adapted.state_dict().items())


def test_a_merge_that_needs_a_bias_where_there_is_none() -> None:
    m = model("llama")
    text = "method m { modify attn.q insert parallel form { b: [d_out] ~ ones  delta = b } compose h + delta }"
    plan = unipelt.apply(m, unipelt.parse(text))
    assert (
        plan.properties["mergeable"]
        == "no: `m`: the merged `model.layers.0.self_attn.q_proj` would need a bias, and it has none"
    )
    assert (
        unipelt.plan(model("bert"), unipelt.parse(text)).properties["mergeable"] == "yes"
    )  # a map with a bias holds it
    before, acting = state(m), output(m)
    said = refused("E0564", unipelt.merge, m, "default")
    assert "`model.layers.0.self_attn.q_proj` would need a bias" in said and "save the adapter" in said
    assert state(m) == before and torch.equal(output(m), acting)


@pytest.mark.parametrize(("delta", "needed"), [
    ("concat(z @ A, b)", True),
    ("concat(z @ A, 0 * b)", False),
    ("sum(split(z @ C + concat(b, b), half), half) @ D", True),
    ("join(split(z @ C, half), half)", False),
    ("((z @ A + b) if r > 2 else z @ A) @ D", True),
    ("(z @ A) @ (D + D) * (b @ b)", False),
])  # fmt: skip
def test_a_bias_is_needed_where_a_number_stands_beside_the_input(delta: str, needed: bool) -> None:
    """The plan says of a map without a bias what merging does, however deep in a formula the number stands."""
    m = model("llama")
    tensors = "A: [d_in, d_out/2] ~ normal(0.1) C: [d_in, d_out] ~ normal(0.1) D: [d_out/2, d_out] ~ normal(0.1) b: [d_out/2] ~ ones"
    plan = unipelt.apply(m, unipelt.parse(
        f"method m(r: int = 3) {{ modify attn.q insert parallel form {{ axis half = 2 {tensors} delta = {delta} }} compose h + delta }}"))  # fmt: skip
    if needed:
        assert "would need a bias" in plan.properties["mergeable"]
        refused("E0564", unipelt.merge, m, "default")
    else:
        before = output(m)
        assert plan.properties["mergeable"] == "yes"
        unipelt.merge(m, "default")
        assert torch.allclose(output(m), before, atol=1e-4)


def test_an_adapter_without_values(tmp_path: Path) -> None:
    with torch.device("meta"):
        m = model("bert")
    unipelt.apply(m, LORA)
    assert "no values to save" in refused("E0574", unipelt.save, m, tmp_path / "a")
    assert "no values to merge" in refused("E0574", unipelt.merge, m, "default")
    assert not list(tmp_path.iterdir()) and unipelt.active(m) == ("default",)


@pytest.mark.parametrize("site", ["embed", "embed.words"])
@pytest.mark.parametrize("shape", [(7,), (3, 9), (2, 7), (3, 1, 7)])
def test_positions_that_cannot_grow_by_a_prompt(site: str, shape: tuple[int, ...]) -> None:
    m, ids = model("gpt2"), inputs()["input_ids"]
    text = f"method m(l: int = 2) {{ modify {site} form {{ P: [l, d_out] ~ normal(0.2)  delta = P }} compose prepend(delta, h) }}"
    unipelt.apply(m, unipelt.parse(text))
    counted = torch.arange(7)
    plain = m(input_ids=ids).logits
    assert all(
        torch.equal(m(input_ids=ids, position_ids=p).logits, plain) for p in (counted[None], counted.expand(3, 7))
    )
    said = refused("E0545", m, input_ids=ids, position_ids=torch.zeros(shape, dtype=torch.long))
    assert (
        "[batch, tokens] = [3, 7]" in said and f"not {list(shape)}" in said and "`position_ids` of that shape" in said
    )


# ---------------------------------------------------------------- other models in the process


def eager_attention_forward(*_: Any, **__: Any) -> None:
    raise AssertionError("the function of another class of this file")


def own_attention(module: nn.Module, query: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
    return 2 * query


class Attention(nn.Module):
    """Like those of transformers' files that hold several eager functions, or one under another name."""

    def forward(self, x: torch.Tensor, implementation: str) -> Any:
        return ALL_ATTENTION_FUNCTIONS.get_interface(implementation, own_attention)(self, x, x, x, None)


def test_edits_at_heads_leave_the_attention_of_other_models() -> None:
    m = model("llama")
    m.set_attn_implementation("eager")
    unipelt.apply(m, unipelt.load(named("prefix_tuning")))
    randomise(m)
    with unipelt.disabled(m):
        plain = output(m)
    assert not torch.equal(output(m), plain)
    x = inputs()["input_ids"].float()[:, None, :, None]
    assert torch.equal(Attention()(x, "eager"), 2 * x)
    assert Attention()(x, "sdpa")[0].shape == x.transpose(1, 2).shape
    with pytest.raises(KeyError, match="edgar"):
        Attention()(x, "edgar")
