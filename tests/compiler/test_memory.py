"""What edits keep for the backward pass: no more than a hook written by hand, nothing twice, nothing of a copy of a parameter."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import small
import torch
from names import name as named

import unipelt
from unipelt.compiler import again, helpers
from unipelt.runtime.edits import Edit

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))  # behind tests, which has files of the same names
import memory

INPUTS = {"input_ids": torch.arange(2, 66).view(4, 16), "attention_mask": torch.ones(4, 16, dtype=torch.long)}
ACTIVATION = 4 * 16 * small.WIDTH  # the entries of one activation


def adapted(name: str, lowering: bool = True, **arguments: int) -> Any:
    model = small.model("bert")
    unipelt.apply(model, unipelt.load(named(name))(**arguments), lowering=lowering)
    return model


def test_lora_keeps_what_a_hook_by_hand_keeps() -> None:
    by_hand = small.model("bert").requires_grad_(False)
    for layer in by_hand.encoder.layer:
        for module in (layer.attention.self.query, layer.attention.self.value):
            module.A, module.B = torch.nn.Parameter(torch.randn(32, 4)), torch.nn.Parameter(torch.zeros(4, 32))
            module.register_forward_hook(lambda m, args, out: torch.add(out, args[0] @ m.A @ m.B, alpha=2.0))
    assert memory.kept(adapted("lora", r=4), INPUTS) <= memory.kept(by_hand, INPUTS)


@pytest.mark.parametrize("name", ["lora", "parallel_adapter", "mam", "unipelt_apl"])
def test_nothing_is_kept_twice_and_no_copy_of_a_parameter(name: str) -> None:
    small_ones = {"mam": {"r": 8, "l": 2, "mid": 16}, "parallel_adapter": {"r": 8}, "unipelt_apl": {"mid": 16}}
    model = adapted(name, **small_ones.get(name, {}))  # a prefix's MLP is computed for each layer, and small here
    small.randomise(model, seed=1)
    kept = memory.tensors_kept(model, INPUTS)
    large = [s for s in kept if s.nbytes() >= ACTIVATION * 4]
    data = [torch.tensor([], dtype=torch.float32).set_(s).sort().values for s in large]
    own = [p.detach().flatten().sort().values for p in model.parameters() if p.numel() >= ACTIVATION]
    for i, t in enumerate(data):
        assert not any(t.shape == o.shape and torch.equal(t, o) for o in (*data[:i], *own))


def test_a_gate_keeps_the_narrow_side_of_what_it_multiplies() -> None:
    """Of each gated product one activation less."""
    narrow, wide = (memory.kept(adapted("unipelt_apl"), INPUTS), memory.kept(adapted("unipelt_apl", False), INPUTS))
    gated = 3 * small.LAYERS  # LoRA at q and at v, the adapter
    assert narrow <= wide - gated * ACTIVATION * 4


#: A lowering, a method of which it keeps less, and how much at one of its places: what is not made any more, in numbers.
SMALLER = {
    "again": ("loha", {"r": 2}, 2 * small.WIDTH**2),
    "circular": ("c3a", {"b": 8}, (small.WIDTH // 8) * ACTIVATION),
    "contracted": ("vb_lora", {"r": 2, "n": 6, "b": 8, "k": 2}, 3 * ACTIVATION // 2),
}


@pytest.mark.parametrize("lowering", SMALLER)
def test_what_a_lowering_does_not_make_is_not_kept(lowering: str) -> None:
    name, arguments, numbers = SMALLER[lowering]
    method = unipelt.load(named(name))(**arguments)
    kept, found = [], []
    for chosen in ((), [lowering]):
        model = small.model("bert", dtype=torch.float64)
        plan = unipelt.apply(model, method, lowering=chosen)
        small.randomise(model, seed=1)
        model.train()
        kept.append(memory.kept(model, INPUTS))
        model.zero_grad()
        torch.manual_seed(0)  # of the base's dropout
        model(**INPUTS)[0].square().sum().backward()
        found.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    assert kept[1] <= kept[0] - len(plan.edits) * numbers * 8
    assert found[0].keys() == found[1].keys()
    for n, g in found[0].items():
        torch.testing.assert_close(found[1][n], g, rtol=1e-9, atol=1e-10)


def test_vectors_are_multiplied_before_a_matrix_is() -> None:
    """`m * V / norm(V)` of DoRA as `(m / norm(V)) * V`: one matrix less is written; the numbers are the same."""
    found = []
    for chosen in ((), ["small first"]):
        model = small.model("bert", dtype=torch.float64)
        plan = unipelt.apply(model, unipelt.load(named("dora"))(r=2), lowering=chosen)
        small.randomise(model, seed=1)
        model.eval()(**INPUTS)[0].square().sum().backward()
        found.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    sources = {r.source for e in model.modules() if isinstance(e, Edit) for r in e.recipes.known.values()}
    assert len(plan.edits) > 0 and all("out = m / torch" in s for s in sources)
    for n, g in found[0].items():
        torch.testing.assert_close(found[1][n], g, rtol=1e-9, atol=1e-10)


def test_what_is_computed_again_has_second_gradients() -> None:
    a, b, c, d = (torch.randn(*s, dtype=torch.float64, requires_grad=True) for s in ((4, 2), (2, 3), (4, 1), (1, 3)))
    assert torch.autograd.gradgradcheck(again.entrywise, (a, b, c, d))
    z, w = (torch.randn(*s, dtype=torch.float64, requires_grad=True) for s in ((2, 3, 5), (2, 4, 5)))
    circulant = torch.stack([helpers.circulant(row) for row in w.flatten(0, 1)]).unflatten(0, (2, 4))
    expected = torch.einsum("bik,iokj->boj", z[:, :2], circulant)
    torch.testing.assert_close(again.circular(z[:, :2], w, "bi,io,bo"), expected)
    assert torch.autograd.gradgradcheck(lambda z, w: again.circular(z, w, "bi,io,bo"), (z[:, :2], w))


def test_a_transform_keeps_no_imaginary_part() -> None:
    t = torch.randn(4, 6, requires_grad=True)
    for f in (helpers.fft2, helpers.ifft2):
        assert f(t).untyped_storage().nbytes() == t.untyped_storage().nbytes()
