"""What trains, from which start."""

from __future__ import annotations

from typing import Any

import torch
from tiny import distance, look, loss, randomise, same, same_values, size, small, starting, trained, values
from torch import nn
from trained import among_members

import unipelt
from unipelt.language.syntax.nodes import Binary, Name

from .case import Case, holds


@holds("gradients")
def gradients(case: Case) -> None:
    """Every trained tensor gets a gradient, the base gets none, and a step changes the trained tensors only."""
    m, inputs = case.base(), case.inputs
    plan = case.put(m)
    loss(m, inputs).backward()
    own = trained(m, "a")
    assert len(own) == sum(not t.frozen for t in plan.tensors.values()) + len(plan.copies)
    for n, p in own.items():
        assert (p.grad is None) == (n in case.resting), n
        assert p.grad is None or torch.isfinite(p.grad).all(), n
    ids = {id(p) for p in own.values()}
    for n, p in m.named_parameters():
        assert id(p) in ids or (p.grad is None and not p.requires_grad), n
    before = values(m)
    torch.optim.SGD(unipelt.parameter_groups(m, "a", 0.1)).step()
    after = values(m)
    # those with a rate of 0 learn in other runs
    resting = {id(own[n]) for n, t in plan.tensors.items() if n in own and (t.lr == 0 or n in case.resting)}
    moved = {id(p) for n, p in m.named_parameters(remove_duplicate=False) if not torch.equal(before[n], after[n])}
    silent = [n for n, p in own.items() if p.grad is not None and p.grad.abs().max() == 0]
    # a bias of the keys adds the same to every score of a query and cancels in the softmax: only rounding is left of it
    still = {id(p) for n, p in own.items() if p.grad is not None and p.grad.abs().max() < 1e-5 and n not in silent}
    assert moved <= ids - resting
    assert len(ids - moved - still - resting) == len(silent) and len(still) <= len(ids) // 4
    left = set(silent) - _of_absent_biases(m, plan)
    if left and all(t.dim() < 3 for t in case.acted().values()):  # the head may not look at some tokens
        left -= {n for e in plan.edits if e.row.tokens for n in e.tensors.values()}
    for seed in range(1, 9):
        if left:
            left -= _learning_as_noise(case, m, left, seed)
    assert not left, left
    unipelt.remove(m, "a")


def _learning_as_noise(case: Case, model: nn.Module, names: set[str], seed: int) -> set[str]:
    """Those of some tensors that get a gradient with values around 0; where a row reads whether there is training, in it too.

    A ReLU may turn on for other examples, a start may lie far beyond a clamp, and what learns first may be frozen at the end.
    """
    own = trained(model, "a")
    model.zero_grad()
    with torch.no_grad():
        for n in names:
            own[n].zero_()
    randomise(model, "a", seed)
    for training in (False, True) if case.knows_training else (False,):
        model.train(training)
        loss(model, case.inputs).backward()
    model.eval()
    return {n for n in names if own[n].grad is not None and own[n].grad.any()}  # type: ignore[union-attr]


def _of_absent_biases(model: nn.Module, plan: Any) -> set[str]:
    """Tensors that are multiplied by the bias of a map that has none: 0, whatever they are."""
    found = set()
    for e in plan.edits:
        if getattr(model.get_submodule(e.site.view.module), "bias", None) is None:
            for n in e.row.nodes:
                if isinstance(n, Binary) and n.op == "*" and Name("bias") in (n.left, n.right):
                    found |= {e.tensors[x.id] for x in (n.left, n.right) if isinstance(x, Name) and x.id in e.tensors}
    return found


@holds("train mode")
def train_mode(case: Case) -> None:
    """Without dropout, train mode computes what eval mode computes.

    Up to rounding: outside training, what is made of tensors alone is computed once, in another order of sums. Eval mode
    again gives the same bits.
    """
    m, inputs, acting = case.acting(), case.inputs, case.acted()
    assert not any(x.training for x in m.modules())  # as the base was when the method was put on
    m.train()
    assert distance(look(m, inputs), acting) <= 1e-6 * max(1.0, size(acting))
    m.eval()
    assert same(look(m, inputs), acting)


@holds("seed")
def seed(case: Case) -> None:
    """The same seed gives the same tensors, whatever else is attached; another seed gives others."""
    m = case.base()
    method = small(case.spec)

    def start(name: str, seed: int) -> dict[str, torch.Tensor]:
        with among_members(m, method) as written:
            unipelt.apply(m, written, name=name, seed=seed, allow_future=True, **starting(m))
        return {n: t.clone() for n, t in unipelt.state_dict(m, name).items()}

    first = start("a", 3)
    other = start("b", 4)
    unipelt.remove(m, "a")
    torch.randn(5)
    unipelt.activate(m)
    again = start("c", 3)
    assert same_values(first, again)
    random = any(n.startswith(_RANDOM) for n in _starts(case.plan))
    assert same_values(first, other) is not random
    unipelt.remove(m, "b")
    unipelt.remove(m, "c")


_RANDOM = (
    "choice",
    "permutation",
    "integers",
    "normal",
    "truncated_normal",
    "uniform",
    "kaiming",
    "xavier",
    "torch_linear",
    "orthogonal",
    "sampled",
)


def _starts(plan: Any) -> set[str]:
    return {t.start.name for t in plan.tensors.values() if t.start is not None}
