"""The site ``module("regex")``: modules of any model, by their paths; against hooks written by hand, and beside peft."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers as T
from names import name as named
from names import spec
from test_any_module import ResNet, assert_same, built, close, encoder, shaken
from torch import nn

import unipelt

LORA = "[^.]*(0|3)"


def lora(pattern: str, **arguments: Any) -> Any:
    return unipelt.load(named("lora"))(at=[f'module("{pattern}")'], **arguments)


def change(model: nn.Module, x: torch.Tensor, method: Any, tmp_path: Path) -> torch.Tensor:
    """The output with a method's tensors moved from their start; by the way, that everything else of an adapter holds."""
    modules, before = list(model.named_modules()), model(x)
    state = {n: t.clone() for n, t in model.state_dict().items()}
    unipelt.apply(model, method)
    close(model(x), before)
    shaken(model)
    after = model(x)
    with unipelt.disabled(model):
        close(model(x), before)
    unipelt.save(model, tmp_path / "a")
    unipelt.remove(model)
    assert_same(model(x), before)
    assert list(model.named_modules()) == modules
    assert all(torch.equal(t, state[n]) for n, t in model.state_dict().items())
    unipelt.attach(model, tmp_path / "a")
    again = model(x)
    close(again, after)  # to rounding: torch multiplies in another order where no gradient is asked for
    return again


@pytest.mark.parametrize("shape", [(8,), (5, 8), (2, 3, 8), (2, 3, 4, 8)], ids=str)
def test_lora_on_a_plain_network_equals_hooks(shape: tuple[int, ...], tmp_path: Path) -> None:
    """x W + bias + 2 x A B at each map, whatever stands in front of the last dimension."""
    model, _ = built("mlp")
    x = torch.randn(shape)
    after = change(model, x, lora("0|3", r=4, alpha=8.0), tmp_path)
    tensors = unipelt.state_dict(model)
    assert {n: list(t.shape) for n, t in tensors.items()} == {
        "0.lora.A": [8, 4], "0.lora.B": [4, 16], "3.lora.A": [16, 4], "3.lora.B": [4, 4],
    } or named("lora") != "lora"  # fmt: skip
    values = list(tensors.values())
    unipelt.remove(model)

    def add(a: torch.Tensor, b: torch.Tensor) -> Callable:
        return lambda module, args, out: out + 2 * args[0] @ a @ b

    hooks = [model.get_submodule(p).register_forward_hook(add(*values[i : i + 2])) for p, i in (("0", 0), ("3", 2))]
    close(after, model(x))
    for hook in hooks:
        hook.remove()
    unipelt.attach(model, tmp_path / "a")
    unipelt.merge(model)
    close(model(x), after)
    unipelt.unmerge(model)
    assert_same(model(x), after)


@pytest.mark.parametrize("stride, size", [(1, (5, 4)), (2, (5, 4)), (3, (7, 7))])
def test_a_convolution_of_one_position_is_a_map_of_its_channels(
    stride: int, size: tuple[int, int], tmp_path: Path
) -> None:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Conv2d(3, 6, 1, stride=stride), nn.ReLU(), nn.Conv2d(6, 4, 1, bias=False)).eval()
    x = torch.randn(2, 3, *size)
    after = change(model, x, lora("0|2", r=2, alpha=4.0), tmp_path)
    plain = nn.Sequential(nn.Conv2d(3, 6, 1, stride=stride), nn.ReLU(), nn.Conv2d(6, 4, 1, bias=False))
    a0, b0, a2, b2 = unipelt.state_dict(model).values()
    state = {n: t.clone() for n, t in model.state_dict().items() if "unipelt" not in n.split(".")}
    state["0.weight"] += 2 * (a0 @ b0).T[..., None, None]
    state["2.weight"] += 2 * (a2 @ b2).T[..., None, None]
    plain.load_state_dict(state)
    close(after, plain(x))
    unipelt.merge(model)
    close(model(x), after)
    torch.testing.assert_close(model[0].weight, plain[0].weight)
    unipelt.unmerge(model)
    assert_same(model(x), after)
    close(model(x[0]), after[0])  # one picture, without examples


@pytest.mark.parametrize("kernel, said", [
    (dict(kernel_size=3), "3×3"), (dict(kernel_size=1, padding=1), "padding"), (dict(kernel_size=1, groups=3), "grouped"),
    (dict(kernel_size=(1, 2)), "1×2"),
], ids=str)  # fmt: skip
def test_other_convolutions_are_refused(kernel: dict[str, Any], said: str) -> None:
    model = nn.Sequential(nn.Conv2d(3, 6, **kernel), nn.Flatten())
    with pytest.raises(unipelt.PeltError, match=f"E0529.*{said}"):
        unipelt.plan(model, lora("0"))


def test_convolutions_of_other_dimensions() -> None:
    for conv, shape in ((nn.Conv1d(3, 5, 1), (2, 3, 7)), (nn.Conv3d(3, 5, 1, stride=(1, 2, 1)), (2, 3, 4, 4, 2))):
        model = nn.Sequential(conv)
        unipelt.apply(model, lora("0"))
        shaken(model)
        x = torch.randn(shape)
        after = model(x)
        unipelt.merge(model)
        close(model(x), after)


@pytest.mark.parametrize(
    "kind, pattern", [("mlp", "0|3"), ("resnet", "mix|down|fc"), ("encoder", r"layers\.\d\.linear[12]")]
)
def test_it_is_peft_s(kind: str, pattern: str) -> None:
    """The same regular expression, the same tensors, the same output."""
    model, x = built(kind)
    other, _ = built(kind)
    theirs = peft.get_peft_model(
        other, peft.LoraConfig(r=4, lora_alpha=8, target_modules=pattern, init_lora_weights=False)
    )  # type: ignore[arg-type]
    theirs.eval()
    plan = unipelt.apply(model, lora(pattern, r=4, alpha=8.0))
    values = dict(theirs.named_parameters())
    hosts = {e.site.view.module: e for e in plan.edits}
    assert set(hosts) == {n.removeprefix("base_model.model.").split(".lora_A")[0] for n in values if ".lora_A." in n}
    with torch.no_grad():
        for path, e in hosts.items():
            for local, t in e.tensors.items():
                own = values[f"base_model.model.{path}.lora_{local}.default.weight"]
                host, key = unipelt.runtime.registry.record(model, "default").registered[t]
                getattr(host, key).copy_(own.flatten(1).T)
        assert sum(p.numel() for p in model.parameters() if p.requires_grad) == sum(
            p.numel() for p in theirs.parameters() if p.requires_grad
        )
        torch.backends.mha.set_fastpath_enabled(False)  # in it torch reads the frozen weights, past peft's layers
        try:
            expected = theirs(x)
        finally:
            torch.backends.mha.set_fastpath_enabled(True)
        close(model(x), expected)


def test_rows_that_read_the_weight() -> None:
    """(IA)³ at a map's output, DoRA, which reads W, and an adapter behind a norm."""
    model, x = built("resnet")
    method = unipelt.parse(
        spec('method m { modify module("mix") form { l: [d_out] ~ ones delta = l } compose rescale }')
    )
    unipelt.apply(model, method)
    shaken(model)
    l, after = next(iter(unipelt.state_dict(model).values())), model(x)
    unipelt.remove(model)
    hook = model.mix.register_forward_hook(lambda m, a, out: out * l[:, None, None])
    close(after, model(x))
    hook.remove()
    for text in (
        'modify module("mix|down|fc") insert parallel form { A: [d_in, 2] ~ normal(1) B: [2, d_out] ~ normal(1) '
        "s = norm((W + A @ B).T) delta = z @ A @ B * s } compose h + mean(s) * delta",
        'modify module("norm1|norm2") insert sequential form bottleneck(3, init_up = normal(1)) compose add',
    ):
        before = model(x).detach()
        unipelt.apply(model, unipelt.parse(spec(f"method m {{ {text} }}")))
        assert float((model(x).detach() - before).abs().max()) > 1e-3
        unipelt.remove(model)
        assert_same(model(x), before)


def test_a_norm_s_numbers_are_its_channels() -> None:
    model, x = built("resnet")
    unipelt.apply(
        model,
        unipelt.parse(
            'method m { modify module("norm1") form { s: [d_out] ~ normal(1) delta = s } compose h + delta }'
        ),
    )
    (s,), after = unipelt.state_dict(model).values(), model(x)
    unipelt.remove(model)
    model.norm1.register_forward_hook(lambda m, a, out: out + s[None, :, None, None])
    close(after, model(x))


CONFIG = T.BertConfig(vocab_size=20, hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=24)


def bert() -> nn.Module:
    torch.manual_seed(0)
    return T.BertModel(CONFIG).eval()


def test_a_module_in_a_layer_has_its_number_and_its_sizes() -> None:
    """So layers are selected and the model's sizes read; a row that names one place twice edits it once."""
    model = bert()
    one = unipelt.plan(model, unipelt.load(named("lora"))(at=["attn.q"]))
    dense = r"encoder\.layer\.\d\.attention\.self\.query"
    for at in ([f'module("{dense}")'], ["attn.q", f'module("{dense}")'], [f'module("{dense}")', "attn.q"]):
        plan = unipelt.plan(model, unipelt.load(named("lora"))(at=at))
        assert plan.counts == one.counts and {e.site.layer for e in plan.edits} == {0, 1, 2}
    form = "form { A: [d_in, d_model] ~ zeros B: [d_model, d_out] ~ zeros delta = z @ A @ B } compose h + delta"
    text = f'layers last 2 modify module("{dense}|.*pooler.dense") insert parallel {form}'
    plan = unipelt.plan(model, unipelt.parse(f"method m {{ {text} }}"))
    assert [e.site.path for e in plan.edits] == [f"encoder.layer.{i}.attention.self.query" for i in (1, 2)]
    for wrong, code in (
        (text.replace(dense, "nothing"), "E0516"),
        (text.replace("d_model", "vocab * labels"), "labels"),
        (text.replace("module", "decoder.module"), "E0704"),
    ):
        with pytest.raises(unipelt.PeltError, match=code):
            unipelt.plan(model, unipelt.parse(f"method m {{ {wrong} }}"))
    with pytest.raises(unipelt.PeltError, match="E0501"):
        unipelt.plan(built("mlp")[0], unipelt.parse(f"method m {{ {text.replace(dense, '0')} }}"))
    with pytest.raises(unipelt.PeltError, match="d_model"):
        unipelt.plan(
            built("mlp")[0], unipelt.parse(f"method m {{ {text.replace(dense, '0').replace('layers last 2', '')} }}")
        )


def test_names_do_not_depend_on_the_head(tmp_path: Path) -> None:
    """An adapter on a model's modules comes back on the model with a head; its regular expression speaks of paths in both."""
    model, ids = bert(), torch.tensor([[3, 4, 5]])
    unipelt.apply(model, lora(r".*attention\.self\.(query|value)"))
    shaken(model)
    after = model(ids).last_hidden_state
    unipelt.save(model, tmp_path / "a")
    unipelt.remove(model)
    whole = T.BertForMaskedLM(CONFIG).eval()
    whole.bert.load_state_dict(model.state_dict(), strict=False)
    unipelt.attach(whole, tmp_path / "a")
    close(whole.bert(ids).last_hidden_state, after)


def test_one_tensor_for_all_modules_of_an_expression() -> None:
    """``per kind``: of one site's name there is one, in a model without layers as well."""
    model = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6))
    text = "form { A: [d_in, 3] ~ normal(1) per kind B: [3, d_out] ~ zeros delta = z @ A @ B } compose h + delta"
    plan = unipelt.plan(model, unipelt.parse(f'method m {{ modify module("[02]") insert parallel {text} }}'))
    assert plan.counts.trained == 3 * 6 * 3
    other = unipelt.plan(built("mlp")[0], unipelt.parse(f'method m {{ modify module("[03]") insert parallel {text} }}'))
    assert other.counts.trained == 8 * 3 + 16 * 3 + 3 * (16 + 4)  # one for each size


class OtherWidths(nn.Module):
    """torch's attention whose keys and values have a width of their own, so that its maps are no columns of one."""

    def __init__(self) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(8, 2, kdim=4, vdim=4, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.attn(x, x[..., :4], x[..., :4])[0]


@pytest.mark.parametrize("pattern, model, code, said", [
    ("nope", ResNet, "E0528", "`norm1`"), ("mx", ResNet, "E0528", "`mix`"),
    (".*", ResNet, "E0529", "`stem`, a Conv2d"), ("layers", encoder, "E0529", "holds other modules"),
    (r".*out_proj", OtherWidths, "E0529", "never calls it"), ("norm", encoder, "E0529", "no linear map"),
], ids=lambda v: getattr(v, "__name__", v))  # fmt: skip
def test_what_fits_no_module_or_a_wrong_one_is_refused(
    pattern: str, model: Callable[[], nn.Module], code: str, said: str
) -> None:
    method = unipelt.parse(
        spec(f'method m {{ modify module("{pattern}") insert parallel form {{ delta = z @ W }} compose h + delta }}')
    )
    with pytest.raises(unipelt.PeltError, match=f"(?s){code}.*{said}"):
        unipelt.plan(model(), method)


def test_an_expression_that_takes_too_long_is_answered() -> None:
    model = nn.Module()
    model.add_module("a" * 60, nn.Linear(3, 3))
    with pytest.raises(unipelt.PeltError, match="E0528.*too long"):
        unipelt.plan(model, lora("(a|aa)+(a|aa)+(a|aa)+[!?]"))


def test_examples_that_do_not_meet_are_refused_in_the_pass() -> None:
    class Last(nn.LayerNorm):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x)[:, -1]

    class Norm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(4))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x[:, -1] * self.weight

    with pytest.raises(unipelt.PeltError, match="E0529"):
        unipelt.plan(nn.Sequential(Last(4)), lora("0"))
    model = nn.Sequential(Norm())
    unipelt.apply(model, lora("0"))
    with pytest.raises(unipelt.PeltError, match="E0529.*do not meet"):
        model(torch.randn(2, 3, 4))


def test_an_embedding_is_given_words() -> None:
    model = nn.Sequential(nn.Embedding(7, 4), nn.Linear(4, 2))
    with pytest.raises(unipelt.PeltError, match="E0529.*given words|E0306"):
        unipelt.plan(model, lora("0"))
    method = unipelt.parse(
        'method m { modify module("0") form { s: [d_out] ~ normal(1) delta = s } compose h + delta }'
    )
    unipelt.apply(model, method)
    (s,) = unipelt.state_dict(model).values()
    ids = torch.tensor([[1, 2, 3]])
    close(model(ids), model[1](model[0].forward(ids) + s))
