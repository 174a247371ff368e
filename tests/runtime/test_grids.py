"""Convolutions over the parts of a picture: who reads whom, on which models, and where there is no grid."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import small
import torch
from names import name
from torch import nn
from torch.nn import functional as F
from transformers import (
    BeitConfig,
    BeitModel,
    CLIPConfig,
    CLIPModel,
    DeiTConfig,
    DeiTModel,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    ResNetConfig,
    ResNetModel,
    SwinConfig,
    SwinModel,
    ViTConfig,
    ViTMAEConfig,
    ViTMAEModel,
    ViTModel,
    YolosConfig,
    YolosModel,
)

import unipelt
from unipelt.compiler.evaluator import Context, evaluate
from unipelt.compiler.named import Named
from unipelt.language.syntax.parser import parse_expression
from unipelt.runtime.edits import Edit

SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
PICTURE = {"image_size": (12, 20), "patch_size": 4, **SIZES}
ROW = "method m {{ modify {} insert {} form {{ K: [3, 3, d_in, d_out] ~ normal(0.3) delta = conv2d(z, K) }} compose h + delta }}"


def built(kind: Any, config: Any) -> nn.Module:
    torch.manual_seed(0)
    return kind(config).double().eval()


def pictures(*shape: int) -> torch.Tensor:
    return torch.randn(2, 3, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def seen(model: nn.Module, **inputs: Any) -> list[tuple[Edit, torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Each edit with what entered and left it, and what it read, in a pass."""
    found = []

    def note(edit: Edit, args: tuple, out: torch.Tensor) -> None:
        found.append((edit, args[0], args[1].get("x", args[0]), out))

    hooks = [m.register_forward_hook(note) for m in model.modules() if isinstance(m, Edit)]
    with torch.no_grad():
        model(**inputs)
    for h in hooks:
        h.remove()
    assert found
    return found


def by_torch(K: torch.Tensor, z: torch.Tensor, rows: int, columns: int, first: int, last: int = 0) -> torch.Tensor:
    """The convolution of the parts, each of the other tokens by the kernel's middle alone."""
    n = z.shape[1] - last
    parts = z[:, first:n].reshape(z.shape[0], rows, columns, -1).permute(0, 3, 1, 2)
    parts = F.conv2d(parts, K.permute(3, 2, 0, 1), padding=1).flatten(2).mT
    return torch.cat([z[:, :first] @ K[1, 1], parts, z[:, n:] @ K[1, 1]], 1)


@pytest.mark.parametrize("full", [True, False])
@pytest.mark.parametrize("a, b", [(1, 1), (3, 3), (2, 3), (5, 4)])
def test_a_convolution_is_that_of_torch(a: int, b: int, full: bool) -> None:
    g = torch.Generator().manual_seed(0)
    z = torch.randn(2, 14, 5, generator=g, dtype=torch.float64)
    w = torch.randn(a, b, 5, *[3] * full, generator=g, dtype=torch.float64)
    grid = torch.tensor([[2, 7, 1, 0], [13, 5, 6, 3], [8, 9, 4, 12]])  # anywhere
    found = evaluate(
        parse_expression("conv2d(z, w)"), Context({"z": Named(z, ("batch", "token")), "w": Named(w)}, {}, grid=grid)
    )
    picture = F.pad(z[:, grid].permute(0, 3, 1, 2), (b // 2, b - 1 - b // 2, a // 2, a - 1 - a // 2))
    kernel = w.permute(3, 2, 0, 1) if full else w.permute(2, 0, 1)[:, None]
    expected = z @ w[a // 2, b // 2] if full else z * w[a // 2, b // 2]
    expected[:, grid] = F.conv2d(picture, kernel, groups=1 if full else 5).permute(0, 2, 3, 1)
    assert isinstance(found, Named) and torch.allclose(found.data, expected, atol=1e-12)


def test_kernels_may_have_axes_of_their_own() -> None:
    g = torch.Generator().manual_seed(0)
    z = torch.randn(2, 7, 5, generator=g, dtype=torch.float64)
    w = torch.randn(4, 3, 3, 5, 2, generator=g, dtype=torch.float64)
    grid = torch.arange(6).view(2, 3)
    c = Context({"z": Named(z, ("batch", "token")), "w": Named(w, ("part",))}, {}, grid=grid)
    found = evaluate(parse_expression("conv2d(z, w)"), c)
    assert isinstance(found, Named) and found.axes == ("batch", "part", "token")
    for i in range(4):
        one = Context({"z": Named(z, ("batch", "token")), "w": Named(w[i])}, {}, grid=grid)
        assert torch.allclose(found.data[:, i], evaluate(parse_expression("conv2d(z, w)"), one).data, atol=1e-12)  # type: ignore[union-attr]


@pytest.mark.parametrize("lowering", [True, False])
@pytest.mark.parametrize("kind, config, first, site", [
    (ViTModel, ViTConfig(**PICTURE), 1, "ffn"), (ViTModel, ViTConfig(**PICTURE), 1, "attn.q"),
    (DeiTModel, DeiTConfig(**PICTURE), 2, "attn"), (YolosModel, YolosConfig(num_detection_tokens=3, **{**PICTURE, "image_size": [12, 20]}), 1, "ffn"), (BeitModel, BeitConfig(**PICTURE), 1, "ffn.up"),
    (Dinov2WithRegistersModel, Dinov2WithRegistersConfig(num_register_tokens=3, **{**PICTURE, "image_size": 12}), 4, "block"),
])  # fmt: skip
def test_the_parts_are_found_behind_the_other_tokens(
    kind: Any, config: Any, first: int, site: str, lowering: bool
) -> None:
    model, last = built(kind, config), getattr(config, "num_detection_tokens", 0)
    plan = unipelt.apply(model, unipelt.parse(ROW.format(site, "parallel")), lowering=lowering)
    for e in plan.edits:
        assert e.grid is not None and (e.grid.before, e.grid.behind, e.grid.proved) == (first, last, True)
    wide = 20 if kind is not Dinov2WithRegistersModel else 12
    for edit, h, x, out in seen(model, pixel_values=pictures(12, wide)):
        assert torch.allclose(out, h + by_torch(edit.tensors()["K"], x, 3, wide // 4, first, last), atol=1e-10)


def test_a_picture_of_another_size_has_another_grid() -> None:
    model = built(ViTModel, ViTConfig(**{**PICTURE, "image_size": 12}))  # (wide ones do not interpolate in this model)
    unipelt.apply(model, unipelt.parse(ROW.format("ffn", "sequential")))
    for size, grid in (((12, 20), (3, 5)), ((20, 12), (5, 3)), ((16, 16), (4, 4))):
        for edit, h, _, out in seen(model, pixel_values=pictures(*size), interpolate_pos_encoding=True):
            assert torch.allclose(out, h + by_torch(edit.tensors()["K"], h, *grid, 1), atol=1e-10)


@pytest.mark.parametrize("prompt_first", [True, False])
def test_rows_of_a_prompt_are_no_parts(prompt_first: bool) -> None:
    """Whichever of two adapters comes first."""
    model = built(ViTModel, ViTConfig(**PICTURE))
    methods = {"prompt": unipelt.load(name("vpt_shallow"))(l=2), "conv": unipelt.parse(ROW.format("ffn", "sequential"))}
    for n in sorted(methods, reverse=prompt_first):
        unipelt.apply(model, methods[n], name=n)
    unipelt.activate(model, *sorted(methods))
    for edit, h, _, out in seen(model, pixel_values=pictures(12, 20)):
        if edit.prompt is None:
            assert h.shape[1] == 18
            assert torch.allclose(out, h + by_torch(edit.tensors()["K"], h, 3, 5, 3), atol=1e-10)


def test_the_tower_of_pictures_in_a_model_of_texts() -> None:
    text = {
        **SIZES,
        "vocab_size": 50,
        "max_position_embeddings": 16,
        "eos_token_id": 2,
        "bos_token_id": 1,
        "pad_token_id": 0,
    }
    model = built(
        CLIPModel,
        CLIPConfig(text_config=text, vision_config={**SIZES, "image_size": 12, "patch_size": 4}, projection_dim=8),
    )
    inputs = {"input_ids": torch.tensor([[1, 5, 2], [1, 6, 2]]), "pixel_values": pictures(12, 12)}
    with pytest.raises(unipelt.PeltError, match="E0538.*lie on no grid"):
        unipelt.plan(model, unipelt.parse(ROW.format("text.ffn", "parallel")))
    unipelt.apply(model, unipelt.parse(ROW.format("vision.ffn", "parallel")))
    for edit, h, x, out in seen(model, **inputs):
        assert torch.allclose(out, h + by_torch(edit.tensors()["K"], x, 3, 3, 1), atol=1e-10)


def test_what_a_convolution_yields_is_a_grid_itself() -> None:
    sizes = {
        "embedding_size": 8,
        "hidden_sizes": [8, 12],
        "depths": [1, 1],
        "layer_type": "bottleneck",
        "reduction_factor": 2,
    }
    model = built(ResNetModel, ResNetConfig(**sizes))
    unipelt.apply(model, unipelt.parse(ROW.format('module(".*layer.2.convolution")', "parallel")))
    for edit, h, x, out in seen(model, pixel_values=pictures(32, 48)):
        K = edit.tensors()["K"]
        assert torch.allclose(out, h + F.conv2d(x, K.permute(3, 2, 0, 1), padding=1), atol=1e-10)


@pytest.mark.parametrize("kind, config, why", [
    (SwinModel, SwinConfig(image_size=16, patch_size=2, embed_dim=8, depths=[1, 1], num_heads=[2, 2], window_size=2), "1024 tokens at first and 256 later"),
    (ViTMAEModel, ViTMAEConfig(**{**PICTURE, "image_size": 12}), "a part for each|does not become"),
])  # fmt: skip
def test_parts_that_are_put_together_or_left_out_lie_on_no_grid(kind: Any, config: Any, why: str) -> None:
    with pytest.raises(unipelt.PeltError, match=f"E0538.*({why})"):
        unipelt.plan(built(kind, config), unipelt.parse(ROW.format("ffn", "parallel")))


def test_texts_lie_on_no_grid() -> None:
    for kind in ("bert", "llama"):
        with pytest.raises(unipelt.PeltError, match="E0538.*no convolution cuts a picture into parts"):
            unipelt.plan(small.model(kind), unipelt.load(name("convpass")))


def test_a_place_with_other_tokens_is_said() -> None:
    class Pooled(nn.Module):
        def forward(self, t: torch.Tensor) -> torch.Tensor:
            return t[:, ::2]

    model = built(ViTModel, ViTConfig(**PICTURE))
    unipelt.apply(model, unipelt.parse(ROW.format("ffn.up", "parallel")))
    model.layers[0].mlp.fc1.register_forward_pre_hook(lambda m, args: (Pooled()(args[0]),))
    with pytest.raises(unipelt.PeltError, match="E0537.*3 x 5 parts, which is 16 tokens"):
        model(pixel_values=pictures(12, 20))


def test_without_weights_the_grid_is_not_yet_proved() -> None:
    with torch.device("meta"):
        model = ViTModel(ViTConfig(**PICTURE))
    plan = unipelt.plan(model, unipelt.parse(ROW.format("ffn", "parallel")))
    assert plan.edits[0].grid is not None and plan.edits[0].grid.before == 1
    assert any("not yet proved" in w for w in plan.warnings)


def test_it_learns_saves_compiles_and_is_computed_again(tmp_path: Path) -> None:
    """Checkpointed layers read the grid of the same pass; gradients are those without checkpoints."""
    model = built(ViTModel, ViTConfig(**PICTURE))
    base = copy.deepcopy(model)
    unipelt.apply(model, unipelt.load(name("convpass"))(dropout=0.0))
    small.randomise(model)
    picture = pictures(12, 20)
    after = model(pixel_values=picture)[0]
    after.square().sum().backward()
    grads = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    model.train()
    small.checkpoint_activations(model)
    model(pixel_values=picture)[0].square().sum().backward()
    again = [p.grad for p in model.parameters() if p.grad is not None]
    assert grads and all(torch.allclose(a, b, atol=1e-9) for a, b in zip(grads, again, strict=True))
    model.eval()
    unipelt.save(model, tmp_path / "a")
    unipelt.attach(base, tmp_path / "a")
    with torch.no_grad():
        assert torch.allclose(base(pixel_values=picture)[0], after, atol=1e-10)
        compiled = torch.compile(model, backend="eager", fullgraph=True)
        assert torch.allclose(compiled(pixel_values=picture)[0], after, atol=1e-10)


def test_the_torch_text_takes_the_grid() -> None:
    scope: dict = {"__name__": "text"}
    exec(unipelt.parse(ROW.format("ffn", "sequential")).torch_source(), scope)
    module = scope["M"](4)
    h = torch.randn(2, 7, 4)
    out = module(h, None, torch.arange(1, 7).view(2, 3))
    assert torch.allclose(out, h + by_torch(module.K.detach(), h, 2, 3, 1), atol=1e-5)
