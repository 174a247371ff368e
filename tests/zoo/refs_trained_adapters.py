"""References for `specs/trained_adapters.pelt`: the published formulas, with the members' tensors as these have them themselves."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import small
import torch
from reference import Seen, apart, library, reference, watched
from torch.nn import functional as F
from trained import with_members

import unipelt
from unipelt.runtime.registry import record

Tensors = dict[str, torch.Tensor]


def fused(
    method: unipelt.Method, kind: str, formula: Callable[[Seen, Sequence[Tensors]], torch.Tensor], count: int = 2
) -> float:
    """How far each edit's new h is from what the formula makes of what it met and of the members' own tensors at its place."""
    model = small.model(kind, dtype=torch.float64)
    method = with_members(model, method, count)
    unipelt.apply(model, method)
    small.randomise(model)
    with watched(model) as found:
        small.output(model)
    mine = [s for s in found if s.row == method.rows[0].name]
    for s in mine if kind == "bert" else ():
        s.given["norm"] = model.encoder.layer[s.layer].output.LayerNorm  # type: ignore[index, union-attr]
    assert len(mine) == len(record(model, "default").plan.edits) == len(found), "the members are not active"
    return max(
        apart(s.out, formula(s, [_tensors(model, n, s) for n in ("first", "second", "third")[:count]])) for s in mine
    )


def _tensors(model: torch.nn.Module, name: str, s: Seen) -> Tensors:
    """A member's own tensors where an edit is."""
    state, plan = unipelt.state_dict(model, name), record(model, name).plan
    edit = next(e for e in plan.edits if (e.site.name, e.site.layer) == (s.site, s.layer))
    return {own: state[full] for own, full in edit.tensors.items()}


def _normed(s: Seen) -> torch.Tensor:
    """What Pfeiffer's adapter reads: the sum behind the feed-forward layer, normed as BERT norms it."""
    return F.layer_norm(s.h + s.residual, s.h.shape[-1:], s.norm.weight.detach(), s.norm.bias.detach(), 1e-12)


def _pfeiffer(z: torch.Tensor, m: Tensors) -> torch.Tensor:
    return torch.relu(z @ m["down"] + m["b_down"]) @ m["up"] + m["b_up"]


def _lora(x: torch.Tensor, m: Tensors) -> torch.Tensor:
    return 16 / 4 * (x @ m["A"] @ m["B"])


@reference(
    "adapter_fusion", by="formula", against="softmax of (Q z) · (K d_i), the sum of its shares times V d_i, added to h"
)
def _fusion() -> float:
    def formula(s: Seen, members: Sequence[Tensors]) -> torch.Tensor:
        z = _normed(s)
        up = torch.stack([_pfeiffer(z, m) for m in members], 2)
        query, key, value = F.linear(z, s.Q.T, s.b_q), F.linear(up, s.K.T, s.b_k), F.linear(up, s.V.T)
        shares = torch.softmax((query.unsqueeze(2) @ key.transpose(-2, -1)).squeeze(2), -1)
        return s.h + (shares.unsqueeze(2) @ value).squeeze(2)

    return fused(library("adapter_fusion"), "bert", formula)


@reference("adapter_soup", by="formula", against="an adapter whose tensors are the means of the members'")
def _soup() -> float:
    def formula(s: Seen, members: Sequence[Tensors]) -> torch.Tensor:
        mean = {n: torch.stack([m[n] for m in members]).mean(0) for n in members[0]}
        return s.h + _pfeiffer(_normed(s), mean)

    return fused(library("adapter_soup"), "bert", formula, 3)


@reference("scalearn", by="formula", against="h + sum of w_i ∘ d_i")
def _scalearn() -> float:
    def formula(s: Seen, members: Sequence[Tensors]) -> torch.Tensor:
        up = torch.stack([_pfeiffer(_normed(s), m) for m in members], 2)
        return s.h + (s.w * up).sum(2)

    return fused(library("scalearn"), "bert", formula)


@reference("lorahub", by="formula", against="h + s x (sum of w_i A_i) (sum of w_i B_i)")
def _lorahub() -> float:
    def formula(s: Seen, members: Sequence[Tensors]) -> torch.Tensor:
        A, B = (sum(w * m[n] for w, m in zip(s.w, members)) for n in ("A", "B"))
        return s.h + _lora(s.x, {"A": A, "B": B})

    return fused(library("lorahub"), "llama", formula, 3)


@reference("lora_soups", by="formula", against="W + sum of w_i s A_i B_i, as one weight")
def _lora_soups() -> float:
    def formula(s: Seen, members: Sequence[Tensors]) -> torch.Tensor:
        change = sum(w * 16 / 4 * m["A"] @ m["B"] for w, m in zip(s.w, members))
        return F.linear(s.x, (s.W + change).T, s.bias)

    return fused(library("lora_soups"), "gpt2", formula)


@reference("mole", by="formula", against="softmax of norm(E_1 ⊕ … ⊕ E_n) · e / t, token by token")
def _mole() -> float:
    def formula(s: Seen, members: Sequence[Tensors]) -> torch.Tensor:
        out = s.h.clone()
        for b, t in torch.cartesian_prod(*map(torch.arange, s.h.shape[:2])).tolist():
            given = [_lora(s.x[b, t], m) for m in members]
            joined = torch.cat(given)
            normed = (joined - joined.mean()) / torch.sqrt(joined.var(unbiased=False) + 1e-5)
            shares = torch.softmax(torch.stack([normed @ e for e in s.e]) / s.t["t"], 0)
            out[b, t] += sum(share * e for share, e in zip(shares, given))
        return out

    return fused(library("mole"), "llama", formula)


@reference("lora_flow", by="formula", against="h + sum of (softmax(W_gate x) + b)_i s B_i A_i x")
def _lora_flow() -> float:
    def formula(s: Seen, members: Sequence[Tensors]) -> torch.Tensor:
        gate = torch.softmax(F.linear(s.x, s.w), -1) + s.b
        changes = torch.stack([_lora(s.x, m) for m in members], -1)
        return s.h + (changes @ gate.unsqueeze(-1)).squeeze(-1)

    return fused(library("lora_flow"), "llama", formula)


@reference("meteora", by="formula", against="two of three LoRAs for each token, their shares made to sum to one")
def _meteora() -> float:
    def formula(s: Seen, members: Sequence[Tensors]) -> torch.Tensor:
        shares, chosen = torch.softmax(F.linear(s.x, s.w), -1).topk(2, -1)
        shares = shares / shares.sum(-1, keepdim=True)
        changes = torch.stack([_lora(s.x, m) for m in members], 2)
        picked = changes.gather(2, chosen.unsqueeze(-1).expand(*chosen.shape, changes.shape[-1]))
        return s.h + (shares.unsqueeze(-1) * picked).sum(2)

    return fused(library("meteora"), "llama", formula, 3)
