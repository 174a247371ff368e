"""References for `specs/prompt_variants.pelt`: live peft and the published formulas."""

from __future__ import annotations

import peft
import small
import torch
from reference import Seen, by_formula, library, reference
from torch.nn import functional as F

import unipelt


def placed(s: Seen, rows: torch.Tensor) -> torch.Tensor:
    """The embedded tokens of what an edit met, with rows before them."""
    return torch.cat((rows, tokens(s)), 1)


def tokens(s: Seen) -> torch.Tensor:
    """The embedded tokens, without the places that are kept for rows."""
    rows = s.given[":places"].shape[1]
    assert torch.equal(s.given[":places"], torch.arange(rows).expand(len(s.h), rows))
    return s.h[:, rows:]


def attended(s: Seen, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """The heads' outputs when keys and values [batch, group, l, d_head] join the tokens' softmax."""
    keys, values = (t.repeat_interleave(s.q.shape[1] // t.shape[1], 1) for t in (keys, values))
    e = torch.exp(torch.einsum("bhtd,bhld->bhtl", s.q, keys) * s.scale)
    mass = torch.exp(s.log_mass)[..., None]
    return (mass * s.h + torch.einsum("bhtl,bhld->bhtd", e, values)) / (mass + e.sum(-1, keepdim=True))


@reference("lo_pt", by="formula", against="P = U V before the tokens")
def _lo_pt() -> float:
    def formula(s: Seen) -> torch.Tensor:
        return placed(s, torch.einsum("lr,rd->ld", s.U, s.V).expand(len(s.h), -1, -1))

    return by_formula(library("lo_pt", l=4, r=2), formula)


@reference("idpg", by="formula", against="W_2 ReLU(W_1 m + b_1) + b_2 with m the mean of the tokens, reshaped to rows")
def _idpg() -> float:
    def formula(s: Seen) -> torch.Tensor:
        real = s.mask[:, -tokens(s).shape[1] :].bool()
        means = torch.stack([t[m].mean(0) for t, m in zip(tokens(s), real)])
        l, d = s.b_up.shape
        flat = torch.relu(means @ s.hidden_weight + s.hidden_b) @ s.up.reshape(-1, l * d) + s.b_up.reshape(-1)
        return placed(s, flat.reshape(-1, l, d))

    return by_formula(library("idpg", l=3, m=5), formula, kind="bert")


@reference("mpt", by="peft", against="live peft's multitask prompt tuning")
def _mpt() -> float:
    model = small.model("llama")
    config = peft.MultitaskPromptTuningConfig(
        task_type="CAUSAL_LM", num_virtual_tokens=4, num_tasks=3, num_ranks=2, token_dim=32, num_layers=3,
        num_attention_heads=4, num_transformer_submodules=1, prompt_tuning_init="RANDOM",
    )  # fmt: skip
    theirs = peft.get_peft_model(small.model("llama"), config).eval()
    g = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in theirs.parameters():
            if p.requires_grad:
                p.copy_(torch.randn(p.shape, generator=g))
    unipelt.apply(model, library("mpt", l=4, tasks=3, k=2))
    encoder = theirs.prompt_encoder["default"]
    into = {"P": encoder.embedding.weight, "u": encoder.prefix_task_cols, "w": encoder.prefix_task_rows}
    own = unipelt.runtime.registry.record(model, "default").trained()
    with torch.no_grad():
        for n, p in own.items():
            p.copy_(into[n.rpartition(".")[2]])
    given, task = small.inputs(padded=False), torch.tensor([2, 0, 1])
    with torch.no_grad():
        ours, other = model(**given, task=task)[0], theirs(**given, task_ids=task)[0]
    return float((ours[:, -7:] - other[:, -7:]).abs().max() / other.abs().max())


@reference(
    "per_user_prefixes", by="formula", against="each example's own keys and values in one softmax with the tokens'"
)
def _per_user() -> float:
    def formula(s: Seen) -> torch.Tensor:
        keys, values = (torch.stack([t[:, u] for u in s.user.tolist()]) for t in (s.P_k, s.P_v))
        return attended(s, keys, values)

    return by_formula(library("per_user_prefixes", users=5, l=3), formula, lowering=False)


@reference(
    "control_prefixes", by="formula", against="one MLP over the task's rows and those of the attribute, one softmax"
)
def _control() -> float:
    def formula(s: Seen) -> torch.Tensor:
        keys, values = [], []
        for a in s.attribute.tolist():
            hidden = torch.tanh(torch.cat((s.E, s.C[a])) @ s.W_1 + s.b_1)
            keys.append(torch.einsum("lm,gmd->gld", hidden, s.W_k) + s.b_k[:, None])
            values.append(torch.einsum("lm,gmd->gld", hidden, s.W_v) + s.b_v[:, None])
        return attended(s, torch.stack(keys), torch.stack(values))

    return by_formula(library("control_prefixes", l=3, m=2, mid=6), formula, lowering=False)


@reference("apt", by="formula", against="lambda alpha ∘ [P_k, P_v] with alpha = sigmoid(h W)")
def _apt() -> float:
    def formula(s: Seen) -> torch.Tensor:
        first = s.x[:, 0]
        alpha = s.lam / (1 + torch.exp(-first @ s.w))
        keys, values = (torch.einsum("bl,gld->bgld", alpha, t) for t in (s.P_k, s.P_v))
        return attended(s, keys, values)

    return by_formula(library("apt", l=3), formula, kind="bert", lowering=False)


@reference("llama_adapter_mm", by="formula", against="tanh(t) softmax(q K^T) V with K, V of P + the projected image")
def _images() -> float:
    base = small.model("llama", dtype=torch.float64).requires_grad_(False).model.layers

    def formula(s: Seen) -> torch.Tensor:
        rows = s.P + (torch.einsum("bi,id->bd", s.image, s.M) + s.b)[:, None]
        attention = base[s.layer].self_attn
        keys, values = (
            m(rows).unflatten(-1, (2, 8)).transpose(1, 2).repeat_interleave(2, 1)
            for m in (attention.k_proj, attention.v_proj)
        )
        shares = torch.softmax(torch.einsum("bhtd,bhld->bhtl", s.q, keys) * s.scale, -1)
        gate = torch.tanh(s.t["t"])[:, None, None]
        return s.h + gate * torch.einsum("bhtl,bhld->bhtd", shares, values)

    return by_formula(library("llama_adapter_mm", l=3, views=2, d_image=5), formula, lowering=False)


@reference("smop", by="formula", against="the prompt of the largest share, times that share")
def _smop() -> float:
    def formula(s: Seen) -> torch.Tensor:
        real = s.mask[:, -tokens(s).shape[1] :].bool()
        rows = []
        for embedded, here in zip(tokens(s), real):
            shares = torch.softmax(embedded[here].mean(0) @ s.W_r, -1)
            best = int(shares.argmax())
            rows.append(shares[best] * s.P[best])
        return placed(s, torch.stack(rows))

    return by_formula(library("smop", n=3, l=2), formula)


@reference("residual_prompt_tuning", by="formula", against="P + LN(W_up ReLU(W_down P)) row by row")
def _residual() -> float:
    def formula(s: Seen) -> torch.Tensor:
        rows = []
        for p in s.P:
            hidden = F.relu(F.linear(p, s.first_layer_weight.T, s.first_layer_b))
            made = F.linear(hidden, s.second_layer_weight.T, s.second_layer_b)
            rows.append(p + F.layer_norm(made, made.shape, s.behind_gamma, s.behind_beta, 1e-5))
        return placed(s, torch.stack(rows).expand(len(s.h), -1, -1))

    return by_formula(library("residual_prompt_tuning", l=3, m=5), formula)


@reference(
    "attempt",
    by="formula",
    against="P_t + sum of a_j P_j, a of the largest entries of text and prompts, for each example",
)
def _attempt() -> float:
    def formula(s: Seen) -> torch.Tensor:
        real = s.mask[:, -tokens(s).shape[1] :].bool()
        prompts = torch.cat((s.S, s.P))
        rows = []
        for embedded, here in zip(tokens(s), real):
            hidden = F.silu(embedded[here].amax(0) @ s.down) @ s.up
            query = F.layer_norm(hidden, hidden.shape, s.g_n, s.b_n, 1e-5)
            scores = torch.stack([p.amax(0) @ query for p in prompts]) / 0.7
            rows.append(s.P[0] + sum(a * p for a, p in zip(torch.softmax(scores, 0), prompts)))
        return placed(s, torch.stack(rows))

    return by_formula(library("attempt", n=3, l=2, m=5, temperature=0.7), formula, kind="bert")


@reference("progressive_prompts", by="formula", against="[P_k, ..., P_1, x]")
def _progressive() -> float:
    return by_formula(
        library("progressive_prompts", earlier=2, l=3),
        lambda s: placed(s, torch.cat((s.new, s.old)).expand(len(s.h), -1, -1)),
    )


@reference("progressive_prompts", by="formula", against="earlier prompts that a step leaves as they are")
def _progressive_step() -> float:
    model = small.model("llama", dtype=torch.float64)
    unipelt.apply(model, library("progressive_prompts", earlier=2, l=3))
    before = {n: t.detach().clone() for n, t in unipelt.state_dict(model).items()}
    model(**small.inputs())[0].square().sum().backward()
    torch.optim.SGD(unipelt.parameter_groups(model, lr=0.1), lr=0.1).step()
    moved = {n: float((t.detach() - before[n]).abs().max()) for n, t in unipelt.state_dict(model).items()}
    assert len(moved) == 2 and max(moved.values()) > 1e-6
    return min(moved.values())


@reference("hyper_prompt", by="formula", against="K, V of the task's prompt by the layer's bottlenecks, one softmax")
def _hyper_prompt() -> float:
    def formula(s: Seen) -> torch.Tensor:
        keys, values = [], []
        for task in s.task.tolist():
            for made, D, U in ((keys, s.D_k, s.U_k), (values, s.D_v, s.U_v)):
                made.append(torch.einsum("lb,gbd->gld", (s.P[task] @ D).clamp(min=0), U))
        return attended(s, torch.stack(keys), torch.stack(values))

    return by_formula(library("hyper_prompt", tasks=3, l=3, b=5), formula, lowering=False)
