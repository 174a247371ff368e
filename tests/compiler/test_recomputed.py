"""What a layer norm yields is not kept for a product that narrows it, and every gradient is the same."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import small
import torch
from names import name as named
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils.checkpoint import checkpoint

import unipelt
from unipelt.compiler.helpers import lean_product
from unipelt.compiler.lower import LOWERINGS

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))  # behind tests, which has files of the same names
import memory

INPUTS = {"input_ids": torch.arange(2, 66).view(4, 16), "attention_mask": torch.ones(4, 16, dtype=torch.long)}
ACTIVATION = 4 * 16 * small.WIDTH * 4  # bytes
WITHOUT = [n for n in LOWERINGS if n != "recomputed"]


def adapted(name: str, lowering: Any) -> Any:
    model = small.model("bert")
    unipelt.apply(model, unipelt.load(named(name)), lowering=lowering)
    return model.train()


@pytest.mark.parametrize("name", ["lora", "unipelt_apl"])
def test_what_norms_yield_is_not_kept(name: str) -> None:
    """LoRA reads the norm of the layer before; UniPELT's adapter reads a norm of its own in every layer, too."""
    lean, kept = (memory.kept(adapted(name, lowering), INPUTS) for lowering in (True, WITHOUT))
    norms = small.LAYERS - 1 + (small.LAYERS if name == named("unipelt_apl") else 0)
    assert lean <= kept - norms * ACTIVATION


@pytest.mark.parametrize("lowering", [True, WITHOUT])
def test_it_is_released(lowering: Any) -> None:
    """Not kept in another way either: its memory is free after the forward pass."""
    model, found = adapted("lora", lowering), []
    norm = model.encoder.layer[0].output.LayerNorm
    norm.register_forward_hook(lambda m, args, out: found.append(StorageWeakRef(out.untyped_storage())))
    output = model(**INPUTS)[0]
    assert found[0].expired() == (lowering is True)
    output.sum().backward()


def tensors(*shapes: tuple[int, ...]) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(s, generator=generator, dtype=torch.float64, requires_grad=True) for s in shapes]


def normed(x: torch.Tensor, weight: torch.Tensor | None = None, bias: torch.Tensor | None = None) -> torch.Tensor:
    return torch.nn.functional.layer_norm(x, (6,), weight, bias)


def test_gradients_of_gradients_are_those_of_the_product() -> None:
    x, weight, bias, W, b, w = tensors((2, 3, 6), (6,), (6,), (6, 2), (2,), (6,))
    assert torch.autograd.gradcheck(lambda x, n, m, W, b: lean_product(normed(x, n, m), W, b), (x, weight, bias, W, b))
    assert torch.autograd.gradgradcheck(lambda x, n, W: lean_product(normed(x, n), W), (x, weight, W))
    assert torch.autograd.gradgradcheck(lambda x, w: lean_product(normed(x), w), (x, w))


def test_few_columns_laid_in_a_piece_are_the_same_product() -> None:
    """With and without a norm before it, and a bias."""
    x, W, b = tensors((1, 2, 256), (256, 2), (2,))

    def normed(x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.layer_norm(x, (256,))

    for made in (lambda x: x, normed):
        for bias in (None, b):
            expected = made(x) @ W if bias is None else made(x) @ W + bias
            torch.testing.assert_close(lean_product(made(x), W, bias), expected, rtol=0, atol=1e-12)
    assert torch.autograd.gradcheck(lambda x, W, b: lean_product(normed(x), W, b), (x, W, b))
    assert torch.autograd.gradgradcheck(lambda x, W: lean_product(normed(x), W), (x, W))


def test_what_was_changed_since_is_kept() -> None:
    x, W = tensors((2, 3, 6), (6, 2))
    y = normed(x)
    with torch.no_grad():
        y.mul_(2)
    (found,) = torch.autograd.grad(lean_product(y, W).sum(), W)
    torch.testing.assert_close(found, y.detach().sum((0, 1))[:, None].expand(6, 2))


def test_other_hooks_see_what_is_kept() -> None:
    x, W = tensors((2, 3, 6), (6, 2))
    y, seen = normed(x), []

    def pack(t: torch.Tensor) -> torch.Tensor:
        seen.append(tuple(t.shape))
        return t.clone()

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        out = lean_product(y, W * 1)
    assert seen and all(s in ((6, 2), (2, 6), ()) for s in seen)
    expected = torch.autograd.grad((normed(x) @ W).square().sum(), (x, W))
    torch.testing.assert_close(torch.autograd.grad(out.square().sum(), (x, W)), expected)


@pytest.mark.parametrize("reentrant", [True, False])
def test_under_checkpoints(reentrant: bool) -> None:
    x, W = tensors((2, 3, 6), (6, 2))
    expected = torch.autograd.grad((normed(x) @ W).square().sum(), (x, W))
    for around in (lambda y: lean_product(y, W), None):  # the norm before it, and in it
        x.grad = W.grad = None
        if around is None:
            out = checkpoint(lambda x: lean_product(normed(x), W), x, use_reentrant=reentrant)
        else:
            out = checkpoint(around, normed(x), use_reentrant=reentrant)
        out.square().sum().backward()
        torch.testing.assert_close((x.grad, W.grad), expected)
    y = checkpoint(normed, x, use_reentrant=reentrant)  # and in it alone
    torch.testing.assert_close(torch.autograd.grad(lean_product(y, W).square().sum(), W)[0], expected[1])
    x.grad = W.grad = None
    lean_product(checkpoint(normed, x, use_reentrant=reentrant), W).square().sum().backward()
    torch.testing.assert_close((x.grad, W.grad), expected)


def test_beside_what_is_kept_on_another_device() -> None:
    x, W = tensors((2, 3, 6), (6, 2))
    expected = torch.autograd.grad((normed(x) @ W).square().sum(), (x, W))
    with torch.autograd.graph.save_on_cpu():
        out = lean_product(normed(x), W)
    torch.testing.assert_close(torch.autograd.grad(out.square().sum(), (x, W)), expected)


def test_under_functions_of_functions() -> None:
    """torch.func has no hooks for what is kept: there the product is plain."""
    x, W = (t.detach() for t in tensors((2, 3, 6), (6, 2)))

    def loss(product: Any) -> Any:
        return lambda x: product(normed(x), W).square().sum()

    found, expected = (torch.func.vmap(torch.func.grad(loss(p)))(x) for p in (lean_product, torch.matmul))
    torch.testing.assert_close(found, expected)
