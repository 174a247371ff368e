"""Methods that need no site of a transformer, on modules of torch that nobody described: copies of biases, norms, heads and all."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as T
from names import name as named
from torch import nn

import unipelt


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 16), nn.LayerNorm(16), nn.ReLU(), nn.Linear(16, 4))


class ResNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm1 = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.mix, self.norm2 = nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8)
        self.down, self.fc = nn.Conv2d(8, 6, 1, stride=2), nn.Linear(6, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm1(self.stem(x)).relu()
        return self.fc(self.down((x + self.norm2(self.mix(x))).relu()).mean((2, 3)))


def encoder() -> nn.Module:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    return nn.TransformerEncoder(layer, 2, norm=nn.LayerNorm(8))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell, self.out = nn.LSTM(8, 8, batch_first=True), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y, (h, c) = self.cell(x)
        return self.out(y + h[-1][:, None] + c[-1][:, None])


#: How a model is built, what enters it, what ends it, and the paths of its norms.
MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], str, tuple[str, ...]]] = {
    "mlp": (mlp, (5, 8), "3", ("1",)),
    "resnet": (ResNet, (5, 3, 8, 8), "fc", ("norm1", "norm2")),
    "encoder": (encoder, (3, 5, 8), "", ("layers.0.norm1", "layers.0.norm2", "layers.1.norm1", "layers.1.norm2", "norm")),
    "recurrent": (Recurrent, (3, 5, 8), "out", ()),
}  # fmt: skip
#: Which parameters each method trains, by name and whether they are a norm's or the head's.
TRAINED: dict[str, Callable[[str, bool, bool], bool]] = {
    "full": lambda n, norm, head: True,
    "bitfit": lambda n, norm, head: "bias" in n,
    "ln_tuning": lambda n, norm, head: norm,
    "probing": lambda n, norm, head: head,
}


def built(kind: str, seed: int = 0) -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(seed)
    make, shape, _, _ = MODELS[kind]
    model = make().eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
        for n, b in model.named_buffers():
            if n.endswith(("mean", "var")):
                b.add_(torch.rand_like(b))
    return model, torch.randn(shape)


def shaken(model: nn.Module) -> None:
    """Trained tensors that are not what they started from."""
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(0.1 * torch.randn_like(p))


def close(a: torch.Tensor, b: torch.Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-5, atol=2e-6)


CASES = [
    (kind, method)
    for kind, (_, _, head, norms) in MODELS.items()
    for method in TRAINED
    if (head or method != "probing") and (norms or method != "ln_tuning")
]


@pytest.mark.parametrize("kind, method", CASES)
def test_copies_are_trained_in_any_module(kind: str, method: str, tmp_path: Path) -> None:
    """The parameters that are meant, the output of a plain module with these values, and the base as it was, always."""
    _, _, head, norms = MODELS[kind]
    # torch's own LSTM rounds otherwise from call to call, and its encoder without its fast path: see the plan's note
    same = close if kind in ("recurrent", "encoder") else assert_same
    model, x = built(kind)
    modules, state = list(model.named_modules()), {n: t.clone() for n, t in model.state_dict().items()}
    with torch.no_grad():
        before = model(x)
        plan = unipelt.apply(model, unipelt.load(named(method)))
        wanted = {n for n in state if n in dict(modules[0][1].named_parameters()) or n.endswith(("weight", "bias"))}
        chosen = TRAINED[method]
        expected = {n for n in wanted if chosen(n, n.rpartition(".")[0] in norms, n.startswith(f"{head}."))}
        assert {c.name for c in plan.copies} == expected
        close(model(x), before)
        shaken(model)
        after = model(x)
        assert float((after - before).abs().max()) > 1e-3
        with unipelt.disabled(model):
            same(model(x), before)
        plain, _ = built(kind)
        plain.load_state_dict({**state, **unipelt.state_dict(model)})
        close(after, plain(x))
        unipelt.save(model, tmp_path / "a", card={})
        unipelt.merge(model)
        close(model(x), after)
        unipelt.unmerge(model)
        same(model(x), after)
        unipelt.remove(model)
        same(model(x), before)
        assert list(model.named_modules()) == modules and model.state_dict().keys() == state.keys()
        assert all(torch.equal(t, state[n]) for n, t in model.state_dict().items())
        other, _ = built(kind)
        unipelt.attach(other, tmp_path / "a")
        same(other(x), after)


def assert_same(a: torch.Tensor, b: torch.Tensor) -> None:
    assert torch.equal(a, b)


def test_another_module_is_no_base_of_a_saved_adapter(tmp_path: Path) -> None:
    """A module without a configuration is known by its class, its parameters' names, shapes and values."""
    model, _ = built("mlp")
    unipelt.apply(model, unipelt.load(named("ln_tuning")))
    unipelt.save(model, tmp_path / "a")

    class Other(nn.Sequential):
        pass

    narrow = nn.Sequential(nn.Linear(8, 16), nn.LayerNorm(16), nn.ReLU(), nn.Linear(16, 4), nn.Linear(4, 4))
    for wrong, code in (
        (Other(*mlp()), "E0570"),
        (narrow, "E0570"),
        (built("mlp", 1)[0], "E0571"),
        (ResNet(), "E0570"),
    ):
        with pytest.raises(unipelt.PeltError, match=code):
            unipelt.attach(wrong, tmp_path / "a")
        assert not unipelt.adapters(wrong)
    unipelt.attach(built("mlp", 1)[0], tmp_path / "a", force=True)


def test_what_needs_a_site_is_told_why_there_is_none() -> None:
    model, _ = built("mlp")
    for method in ("lora", "adapter", "prefix_tuning", "probing_mean", "mam"):
        with pytest.raises(unipelt.PeltError, match="E0501.*no `config`"):
            unipelt.plan(model, unipelt.load(named(method)))
    for text in ("train block", "train ffn.down.weight", "layers last 2 train *.bias"):
        with pytest.raises(unipelt.PeltError, match="E0501"):
            unipelt.plan(model, unipelt.parse(f"method m {{ {text} }}"))
    with pytest.raises(unipelt.PeltError, match="(?s)E0510.*path of a module"):
        unipelt.plan(model, unipelt.parse("method m { train wieght }"))
    with pytest.raises(unipelt.PeltError, match="E0517"):
        unipelt.plan(built("encoder")[0], unipelt.load(named("full")), head=True)
    one = unipelt.plan(built("resnet")[0], unipelt.parse("method m { train mix.weight }"))
    assert [c.name for c in one.copies] == ["mix.weight"]


def test_what_a_method_requires_is_asked_where_there_are_no_layers() -> None:
    model, _ = built("mlp")
    unipelt.plan(model, unipelt.parse("method m { train *.bias require params < 0.5 }"))
    with pytest.raises(unipelt.PeltError, match="requir"):
        unipelt.plan(model, unipelt.parse("method m { train *.bias require params < 0.01 }"))


def test_a_head_of_its_own_is_trained_where_it_is_named() -> None:
    """By default it is not: nobody knows whether it is new. An adapter with a part of it comes back with that part."""
    model, x = built("resnet")
    assert unipelt.plan(model, unipelt.load(named("ln_tuning"))).counts.head == 0
    plan = unipelt.plan(model, unipelt.load(named("ln_tuning")), head=True)
    assert {c.name for c in plan.copies if c.head} == {"fc.weight", "fc.bias"}
    assert plan.warnings == unipelt.plan(model, unipelt.load(named("full"))).warnings and "bn" not in plan.warnings[0]


def test_a_part_of_a_head_comes_back(tmp_path: Path) -> None:
    """Of a classifier of transformers, too, that was told not to train its whole head."""
    config = T.BertConfig(
        vocab_size=20, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    model = T.BertForSequenceClassification(config).eval()
    unipelt.apply(model, unipelt.load(named("bitfit")), head=False)
    shaken(model)
    ids = torch.tensor([[3, 4, 5]])
    after = model(ids).logits
    unipelt.save(model, tmp_path / "a")
    unipelt.remove(model)
    unipelt.attach(model, tmp_path / "a")
    assert torch.equal(model(ids).logits, after)


def test_running_statistics_are_counted_once() -> None:
    """A trained batch norm sees each batch twice, as itself and as its copy, and counts it once."""
    model, x = built("resnet")
    plain, _ = built("resnet")
    plan = unipelt.apply(model, unipelt.load(named("full")))
    assert any("running mean" in w and "`norm1` and `norm2`" in w for w in plan.warnings)
    model.train(), plain.train()
    close(model(x), plain(x))
    model.eval(), plain.eval()
    close(model(x), plain(x))
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    others = [m for m in plain.modules() if isinstance(m, nn.BatchNorm2d)]
    assert all(torch.equal(a.running_var, b.running_var) for a, b in zip(norms, others))
    assert [int(m.num_batches_tracked) for m in norms] == [1, 1]


@pytest.mark.parametrize("gradients", [True, False])
def test_torch_s_encoder_with_pads(gradients: bool) -> None:
    """With pads its layers take nested tensors, in a fast path that sees no hooks: while there are adapters, neither is used."""
    model, x = built("encoder")
    plain, _ = built("encoder")
    pads = torch.tensor([[0, 0, 0, 0, 0], [0, 0, 0, 1, 1], [0, 1, 1, 1, 1]]).bool()
    with torch.set_grad_enabled(gradients), pytest.warns(UserWarning) if not gradients else _nothing():
        before = plain(x, src_key_padding_mask=pads)
    for method in ("full", "bitfit"):
        unipelt.apply(model, unipelt.load(named(method)), name=method)
    with torch.set_grad_enabled(gradients):
        close(model(x, src_key_padding_mask=pads)[~pads], before[~pads])
        shaken(model)
        for method in ("full", "bitfit"):
            unipelt.activate(model, method)
            other, _ = built("encoder")
            other.load_state_dict({**plain.state_dict(), **unipelt.state_dict(model, method)})
            close(model(x, src_key_padding_mask=pads)[~pads], other(x, src_key_padding_mask=pads)[~pads])
        unipelt.remove(model, "full")
        assert not model.use_nested_tensor
        unipelt.remove(model, "bitfit")
        assert model.use_nested_tensor and torch.equal(model(x, src_key_padding_mask=pads), before)


def _nothing() -> Any:
    import contextlib

    return contextlib.nullcontext()


def test_a_parameter_of_the_model_itself_is_refused() -> None:
    for model in (nn.Linear(3, 3), nn.LSTM(3, 3)):
        with pytest.raises(unipelt.PeltError, match=r"E0511.*model itself(?s:.)*Sequential\(model\)"):
            unipelt.plan(model, unipelt.load(named("full")))
        unipelt.plan(nn.Sequential(model), unipelt.load(named("full")))
