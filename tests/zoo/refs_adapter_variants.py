"""References for `specs/adapter_variants.pelt` and `specs/hypernetworks.pelt`: the published formulas, written as sums over named indices."""

from __future__ import annotations

import small
import torch
from reference import Seen, by_formula, library, reference
from torch import nn
from torch.nn import functional as F
from transformers import BertConfig, BertModel

import unipelt


@reference("hadamard_adapter", by="formula", against="A' = w ∘ A + b")
def _hadamard() -> float:
    return by_formula(
        library("hadamard_adapter"),
        lambda s: torch.addcmul(s.beta.expand_as(s.h), s.h, s.gamma),
        kind="bert",
        head=False,
    )


@reference("adapter_bias", by="formula", against="h + (w · h + b) v")
def _adapter_bias() -> float:
    def formula(s: Seen) -> torch.Tensor:
        alpha = F.linear(s.h, s.w[None], s.b[None])
        return s.h + torch.einsum("btq,d->btd", alpha, s.shift)

    return by_formula(library("adapter_bias"), formula, kind="bert")


@reference("low_rank_adapter", by="formula", against="the adapter whose two maps are u v")
def _low_rank() -> float:
    def formula(s: Seen) -> torch.Tensor:
        if s.row != "low_rank_adapter":
            return s.out
        down, up = (torch.einsum("ik,kj->ij", a, b) for a, b in ((s.u_1, s.v_1), (s.u_2, s.v_2)))
        middle = F.gelu(F.linear(s.h, down.T, s.b_1), approximate="tanh")
        return s.h + F.linear(middle, up.T, s.b_2)

    return max(by_formula(library("low_rank_adapter", r=5, k=k), formula, kind="bert") for k in (1, 2))


@reference("sparse_adapter", by="formula", against="the adapter with a share of its weights at 0")
def _sparse() -> float:
    shares = []

    def formula(s: Seen) -> torch.Tensor:
        down, up = s.down.clone(), s.up.clone()
        for weight, mask in ((down, s.m_down), (up, s.m_up)):
            weight[mask < 0.8] = 0
            shares.append(float((weight == 0).double().mean()))
        return s.h + F.linear(F.relu(F.linear(s.h, down.T, s.b_down)), up.T, s.b_up)

    error = by_formula(library("sparse_adapter"), formula)
    assert abs(sum(shares) / len(shares) - 0.8) < 0.02
    return error


@reference("adapt_former", by="formula", against="MLP(LN(x)) + s ReLU(LN(x) W_down) W_up")
def _adapt_former() -> float:
    def formula(s: Seen) -> torch.Tensor:
        hidden = torch.einsum("btd,dr->btr", s.x, s.down) + s.b_down
        return s.h + 0.1 * (torch.einsum("btr,rd->btd", hidden.clamp(min=0), s.up) + s.b_up)

    return by_formula(library("adapt_former", r=6), formula)


@reference("lo_rand", by="formula", against="U(GELU(D(h))) + h, D and U sums of products P K Q with K in common")
def _lo_rand() -> float:
    def formula(s: Seen) -> torch.Tensor:
        down = torch.zeros(s.P_1.shape[1], s.Q_1.shape[2], dtype=s.h.dtype)
        up = torch.zeros(s.P_2.shape[1], s.Q_2.shape[2], dtype=s.h.dtype)
        for i in range(len(s.K)):
            down += s.P_1[i] @ (s.K[i] @ s.Q_1[i])
            up += s.P_2[i] @ (s.K[i] @ s.Q_2[i])
        assert down.shape == (32, 16)
        return s.h + F.gelu(s.h @ down) @ up

    return by_formula(library("lo_rand", n=3, b=4), formula)


@reference("arc", by="formula", against="x + x D diag(c) D^T + b, one D for all layers of a kind")
def _arc() -> float:
    seen: dict[str, torch.Tensor] = {}

    def formula(s: Seen) -> torch.Tensor:
        assert torch.equal(seen.setdefault(s.site, s.D), s.D)
        return s.h @ (torch.eye(s.h.shape[-1], dtype=s.h.dtype) + s.D @ torch.diag(s.c) @ s.D.T) + s.b

    error = by_formula(library("arc", r=4), formula, kind="gpt2")
    assert len(seen) == 2 and not torch.equal(*seen.values())
    return error


@reference("vl_adapter", by="formula", against="an adapter for each task, their up-projection in common")
def _vl() -> float:
    def formula(s: Seen) -> torch.Tensor:
        if s.row != "vl_adapter":
            return s.out
        rows = []
        for h, task in zip(s.h, s.task.tolist()):
            hidden = F.gelu(h @ s.down[task] + s.b_down[task], approximate="tanh")
            rows.append(h + hidden @ s.up + s.b_up)
        return torch.stack(rows)

    return by_formula(library("vl_adapter", r=5, tasks=3), formula, kind="bert")


@reference("clip_adapter", by="formula", against="ratio A(f) + (1 - ratio) f, A two maps with relu behind each")
def _clip() -> float:
    def formula(s: Seen) -> torch.Tensor:
        a = F.relu(F.linear(F.relu(F.linear(s.h, s.down.T)), s.up.T))
        return torch.lerp(s.h, a, 0.2)

    return by_formula(library("clip_adapter", r=6), formula)


@reference("mad_x_stack", by="formula", against="a Pfeiffer adapter over the output of another")
def _stack() -> float:
    waiting: list[torch.Tensor] = []

    def formula(s: Seen) -> torch.Tensor:
        if s.row == "task":
            assert torch.equal(waiting.pop(), s.h), "the task's adapter stands on the language's"
        z = F.layer_norm(s.h + s.residual, s.h.shape[-1:], *norms[s.layer], 1e-12)
        out = s.h + F.linear(F.relu(F.linear(z, s.down.T, s.b_down)), s.up.T, s.b_up)
        if s.row == "language":
            waiting.append(s.out)
        return out

    layers = small.model("bert", dtype=torch.float64).encoder.layer
    norms = [(layer.output.LayerNorm.weight.detach(), layer.output.LayerNorm.bias.detach()) for layer in layers]
    error = by_formula(library("mad_x_stack", r_language=6, r_task=3), formula, kind="bert")
    assert not waiting
    return error


def twelve_layers() -> nn.Module:
    with torch.device("meta"):
        return BertModel(BertConfig())


@reference(
    "s4_design",
    by="count",
    against="adapters in groups 1-3, LoRA in 1 and 4, prefixes in 2-4, biases in 3-4, groups of 2, 4, 4, 2 layers",
)
def _s4() -> float:
    d = 768
    adapter, lora, prefix = 2 * d * 24 + 24 + d, 2 * 2 * d * 4, 2 * 10 * d
    biases = 4 * d + 4 * d + d + 2 * d  # of the four maps of attention, of up and down, of the two norms
    by_hand = (2 + 4 + 4) * adapter + (2 + 2) * lora + (4 + 4 + 2) * prefix + (4 + 2) * biases
    return abs(unipelt.plan(twelve_layers(), library("s4_design")).counts.trained - by_hand)


@reference("auto_peft", by="count", against="serial and parallel adapters and prefixes of the sizes of each layer")
def _auto() -> float:
    d, serial, parallel, rows = 768, [48] * 6 + [12] * 6, [96, 6] * 6, 3
    found = library("auto_peft", r_serial=serial, r_parallel=parallel, l=rows, from_layer=4)
    by_hand = sum(2 * d * r + r + d for r in (*serial[4:], *parallel[4:])) + 8 * 2 * rows * d
    return abs(unipelt.plan(twelve_layers(), found).counts.trained - by_hand)


@reference(
    "hadamard_adapter",
    by="count",
    against="2 d a layer, the published 0.033 % of BERT-base with a norm a layer: 36,864 = 2 x 18,432",
)
def _hadamard_count() -> float:
    return abs(unipelt.plan(twelve_layers(), library("hadamard_adapter")).counts.trained - 36_864 // 2)


@reference("adapt_former", by="count", against="64 wide at 12 layers of 768: 1,189,632 (1.19 million, as published)")
def _adapt_former_count() -> float:
    return abs(unipelt.plan(twelve_layers(), library("adapt_former")).counts.trained - 1_189_632)


@reference("light_adapter", by="formula", against="x + U ReLU(D LN(x))")
def _light() -> float:
    def formula(s: Seen) -> torch.Tensor:
        normed = F.layer_norm(s.h, s.h.shape[-1:], s.entering_gamma, s.entering_beta, 1e-5)
        hidden = F.relu(F.linear(normed, s.delta_down.T, s.delta_b_down))
        return s.h + F.linear(hidden, s.delta_up.T, s.delta_b_up)

    return by_formula(library("light_adapter", r=6), formula, kind="gpt2")


def generated(s: Seen, e: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
    """An example's adapter, all of whose weights are linear maps of the embedding e, each a flat one, reshaped."""
    d, r = h.shape[-1], s.b_down_b.shape[0]
    flat = {n: e @ s.t[f"{n}_M"].flatten(1) + s.t[f"{n}_M_0"].flatten() for n in ("down", "up")}
    flat |= {n: F.linear(e, s.t[f"{n}_M"].T, s.t[f"{n}_b"]) for n in ("b_down", "b_up", "gamma", "beta")}
    hidden = F.gelu(h @ flat["down"].view(d, r) + flat["b_down"])
    return h + F.layer_norm(hidden @ flat["up"].view(r, d) + flat["b_up"], (d,), flat["gamma"], flat["beta"], 1e-5)


@reference(
    "hyperformer",
    by="formula",
    against="h + LN(U GeLU(D h)), all of it made from the task's embedding by the place's networks",
)
def _hyperformer() -> float:
    def formula(s: Seen) -> torch.Tensor:
        if s.row != "hyperformer":
            return s.out
        rows = []
        for h, task in zip(s.h, s.task.tolist()):
            small_embedding = F.linear(F.relu(F.linear(s.T[task], s.hidden_M.T, s.hidden_b)), s.I_M.T, s.I_b)
            rows.append(generated(s, small_embedding, h))
        return torch.stack(rows)

    return by_formula(library("hyperformer", r=3, t=6, mid=5, e=4, tasks=3), formula, kind="bert")


@reference(
    "hyperformer_pp", by="formula", against="the same networks everywhere; the embedding of task, layer and sublayer"
)
def _hyperformer_pp() -> float:
    networks: dict[str, torch.Tensor] = {}
    places: dict[tuple[str, int | None], torch.Tensor] = {}

    def formula(s: Seen) -> torch.Tensor:
        if s.row != "hyperformer_pp":
            return s.out
        for n, t in s.t.items():
            assert n in "LK" or torch.equal(networks.setdefault(n, t), t), n
        places[s.site, s.layer] = torch.cat((s.L, s.K))
        rows = []
        for h, task in zip(s.h, s.task.tolist()):
            hidden = F.relu(torch.cat((s.T[task], s.L, s.K)) @ s.hidden_M + s.hidden_b)
            e = F.layer_norm(hidden @ s.J_M + s.J_b, s.J_b.shape, s.g_n, s.b_n, 1e-6)
            rows.append(generated(s, e, h))
        return torch.stack(rows)

    error = by_formula(library("hyperformer_pp", r=3, t=6, mid=5, e=4, tasks=3), formula, kind="bert")
    assert len({tuple(t.tolist()) for t in places.values()}) == len(places) == 6
    return error


@reference("udapter", by="formula", against="the adapter V_l e, with e the MLP of the language's features")
def _udapter() -> float:
    def formula(s: Seen) -> torch.Tensor:
        rows = []
        for h, language in zip(s.h, s.language):
            e = F.linear(F.relu(F.linear(language, s.hidden_M.T, s.hidden_b)), s.I_M.T, s.I_b)
            down, up = (torch.tensordot(e, s.t[f"{n}_M"], 1) + s.t[f"{n}_M_0"] for n in ("down", "up"))
            b_down, b_up = (e @ s.t[f"{n}_M"] + s.t[f"{n}_b"] for n in ("b_down", "b_up"))
            rows.append(h + F.gelu(h @ down + b_down) @ up + b_up)
        return torch.stack(rows)

    return by_formula(library("udapter", r=4, features=7, mid=5, e=3), formula)
