"""The classics: what `tests/fidelity` compares with recordings and with live peft, and the published formulas."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import recorded
import small
import test_peft
import test_recordings
import torch
from reference import Seen, apart, by_formula, library, reference, run
from torch import nn
from torch.nn import functional as F

import unipelt
from unipelt.runtime.registry import record

# ---------------------------------------------------------------- comparisons of tests/fidelity

RECORDED = {
    "pfeiffer": "adapters/bert-seq_bn", "scaled_parallel_adapter": "adapters/bert-par_bn",
    "scaled_parallel_adapter_learned": "adapters/bert-scaled_par_bn", "prefix_tuning_mlp": "adapters/bert-prefix_tuning",
    "prefix_tuning": "adapters/bert-prefix_tuning_flat", "prompt_tuning": "adapters/bert-prompt_tuning",
    "prompt_tuning_after_cls": "adapters/bert-prompt_tuning_after_bos", "lora": "adapters/bert-lora",
    "mam": "adapters/bert-mam", "unipelt_apl": "adapters/bert-unipelt", "unipelt_apl_ungated": "adapters/bert-union_nogates",
}  # fmt: skip
LIVE = {
    "lora": "llama-lora", "rslora": "llama-rslora", "ia3": "llama-ia3", "ln_tuning": "llama-ln_tuning",
    "prefix_tuning": "llama-prefix", "prefix_tuning_mlp": "gpt2-prefix_mlp", "prompt_tuning": "llama-prompt",
}  # fmt: skip


def _recorded(name: str) -> Callable[[], float]:
    def measure() -> float:
        if recorded.FOLDER is None:
            pytest.skip("the recordings are not here")
        return test_recordings.compared(name)[0]

    return measure


for _method, _name in RECORDED.items():
    reference(_method, by="recording", against=_name)(_recorded(_name))
for _method, _name in LIVE.items():
    reference(_method, by="peft", against=_name)(lambda name=_name: test_peft.compared(name, "eval"))


# ---------------------------------------------------------------- adapters


def bottleneck(s: Seen, z: torch.Tensor, act: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    return F.linear(act(F.linear(z, s.down.T, s.b_down)), s.up.T, s.b_up)


def norm_after(s: Seen, kind: str = "bert") -> nn.Module:
    """The layer norm behind the feed-forward layer of the model that `run` takes."""
    assert s.layer is not None
    return small.model(kind, dtype=torch.float64).encoder.layer[s.layer].output.LayerNorm


def pfeiffer(s: Seen) -> torch.Tensor:
    return s.h + bottleneck(s, norm_after(s)(s.h + s.residual), torch.relu)


@reference("adapter", by="formula", against="h + W₂ gelu(W₁ h + b₁) + b₂, Houlsby et al. 2019")
def _() -> float:
    return by_formula(library("adapter", r=5), lambda s: s.h + bottleneck(s, s.h, F.gelu), "bert")


@reference("pfeiffer", by="formula", against="h + adapter(LN(h + residual)), Pfeiffer et al. 2021")
def _() -> float:
    return by_formula(library("pfeiffer", r=5), pfeiffer, "bert")


@reference("adapter_drop", by="formula", against="Pfeiffer's adapter above the lowest k layers, Rücklé et al. 2021")
def _() -> float:
    assert {s.layer for s in run(library("adapter_drop", k=2, r=5), "bert")} == {2}
    return by_formula(library("adapter_drop", k=1, r=5), pfeiffer, "bert")


@reference(
    "adapter_drop_robust", by="formula", against="Pfeiffer's adapter, left out below layer `drop`, Rücklé et al. 2021"
)
def _() -> float:
    return by_formula(library("adapter_drop_robust", r=5, drop=2),
                      lambda s: s.h if s.layer is not None and s.layer < 2 else pfeiffer(s), "bert")  # fmt: skip


@reference("adapter_plus", by="formula", against="h + s ⊙ adapter(h) behind the block, Steitz and Roth 2024")
def _() -> float:
    return by_formula(
        library("adapter_plus", r=5), lambda s: s.h + bottleneck(s, s.h, F.gelu) @ torch.diag(s.s), "bert"
    )


@reference("parallel_adapter", by="formula", against="h + relu(x W_down) W_up, He et al. 2022, table 1")
def _() -> float:
    return by_formula(library("parallel_adapter", r=5), lambda s: s.h + bottleneck(s, s.x, torch.relu), "gpt2")


@reference("multi_head_parallel_adapter", by="formula", against="relu(q P_kᵀ) P_v in each head, He et al. 2022")
def _() -> float:
    def formula(s: Seen) -> torch.Tensor:
        return s.h + torch.einsum("bhtr,hrd->bhtd", torch.einsum("bhtd,hrd->bhtr", s.q, s.P_k).relu(), s.P_v)

    return by_formula(library("multi_head_parallel_adapter", r=5), formula)


# ---------------------------------------------------------------- LoRA, prefixes


@reference("lora_plus", by="formula", against="LoRA, B at 16 times the rate, Hayou et al. 2024")
def _() -> float:
    plan = unipelt.plan(small.model("llama"), library("lora_plus", r=4))
    assert {(t.name[-1], t.lr) for t in plan.tensors.values()} == {("A", 1.0), ("B", 16.0)}
    return by_formula(library("lora_plus", r=4), lambda s: s.x @ (s.W + 4 * s.A @ s.B) + s.bias)


def one_softmax(s: Seen, scores: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """The tokens' attention and the prefix in one softmax: ``log_mass`` is the log of what the tokens' scores add up to."""
    tokens, prefix = s.log_mass.exp()[..., None], scores.exp()
    return (tokens * s.h + prefix @ values) / (tokens + prefix.sum(-1, keepdim=True))


def grouped(t: torch.Tensor, heads: int) -> torch.Tensor:
    """A tensor of each key/value head, for each head that reads it."""
    return t.repeat_interleave(heads // t.shape[0], 0)


def prefix(s: Seen, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    return one_softmax(s, s.q @ keys.transpose(-1, -2) * s.scale, values)


@reference("p_tuning_v2", by="formula", against="[P_k; K], [P_v; V] in one softmax, Liu et al. 2022")
def _() -> float:
    return by_formula(
        library("p_tuning_v2", l=5), lambda s: prefix(s, grouped(s.P_k, 4), grouped(s.P_v, 4)), lowering=False
    )


@reference(
    "llama_adapter", by="formula", against="a second softmax over P W_k, P W_v behind tanh(g), Zhang et al. 2023"
)
def _() -> float:
    layers = small.model("llama", dtype=torch.float64).model.layers

    def formula(s: Seen) -> torch.Tensor:
        attention = layers[s.layer].self_attn
        keys, values = (grouped(p(s.P).view(-1, 2, 8).transpose(0, 1), 4) for p in (attention.k_proj, attention.v_proj))
        own = torch.softmax(s.q @ keys.transpose(-1, -2) / 8**0.5, -1) @ values
        return s.h + torch.tanh(s.t["t"])[None, :, None, None] * own

    return by_formula(library("llama_adapter", l=4, top=2), formula)


def hidden(s: Seen) -> torch.Tensor:
    return torch.tanh(s.E @ s.W1 + s.b1)


def made(s: Seen) -> tuple[torch.Tensor, torch.Tensor]:
    """UniPELT's keys and values of one layer: [heads, l, d_head]."""
    return hidden(s) @ s.K + s.bk[:, None], hidden(s) @ s.V + s.bv[:, None]


def pooled(w: torch.Tensor, b: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
    """UniPELT's gate: the sigmoid of every position, padding too, then the mean."""
    return torch.sigmoid(z @ w + b).mean(1)


def unipelt_rows(gated: bool) -> Callable[[Seen], torch.Tensor]:
    def formula(s: Seen) -> torch.Tensor:
        if s.row.endswith("adapter"):
            z = norm_after(s)(s.h + s.residual)
            g = pooled(s.t["gate.w"], s.t["gate.b"], z)[:, None, None] if gated else 1.0
            return s.h + g * bottleneck(s, z, torch.relu)
        if s.row.endswith("lora"):
            return s.h + s.x @ s.A @ s.B * pooled(s.t["gate.w"], s.t["gate.b"], s.x)[:, None, None]
        keys, values = made(s)
        if gated:
            G = pooled(s.G_w, s.G_b, s.x)[:, None, None, None]
            keys, values = G * keys, G * values
        return prefix(s, keys, values)

    return formula


@reference("unipelt_prefix", by="formula", against="keys and values of tanh(E W₁) in one softmax, Mao et al. 2022")
def _() -> float:
    return by_formula(library("unipelt_prefix", l=4, mid=5), unipelt_rows(False), "bert", lowering=False)


@reference("unipelt_gated_prefix", by="formula", against="keys and values times the pooled gate, Mao et al. 2022")
def _() -> float:
    return by_formula(library("unipelt_gated_prefix", l=4, mid=5), unipelt_rows(True), "bert", lowering=False)


@reference("unipelt_ap", by="formula", against="Mao et al. 2022, their code for BERT")
def _() -> float:
    return by_formula(library("unipelt_ap", ra=4, l=4, mid=5), unipelt_rows(True), "bert", lowering=False)


@reference("unipelt_ap_ungated", by="formula", against="Mao et al. 2022 without the gates")
def _() -> float:
    return by_formula(library("unipelt_ap_ungated", ra=4, l=4, mid=5), unipelt_rows(False), "bert", lowering=False)


@reference("unipelt_apl_causal", by="formula", against="Mao et al. 2022 with a gate of each token's own")
def _() -> float:
    layers = small.model("llama", dtype=torch.float64).model.layers

    def formula(s: Seen) -> torch.Tensor:
        if s.row.endswith("prefix"):
            g = torch.sigmoid(s.x @ s.G_w + s.G_b)[:, None, :, None]
            keys, values = (grouped(t, 4) for t in made(s))
            scores = g * (s.q @ keys.transpose(-1, -2)) * s.scale
            lam = torch.sigmoid(torch.logsumexp(scores, -1) - s.log_mass)[..., None]
            return (1 - lam) * s.h + lam * g * (torch.softmax(scores, -1) @ values)
        adapter = s.row.endswith("adapter")
        z = layers[s.layer].post_attention_layernorm(s.h + s.residual) if adapter else s.x
        g = torch.sigmoid(z @ s.t["gate.w"] + s.t["gate.b"])[..., None]
        return s.h + g * (bottleneck(s, z, torch.relu) if adapter else z @ s.A @ s.B)

    return by_formula(library("unipelt_apl_causal", ra=4, l=4, rl=4, mid=5), formula, lowering=False)


# ---------------------------------------------------------------- prompts


@reference("prompt_ensemble", by="formula", against="each example's own rows before its tokens, Lester et al. 2021")
def _() -> float:
    def formula(s: Seen) -> torch.Tensor:
        return torch.cat([torch.stack([s.P[int(m)] for m in s.member]), s.h[:, 3:]], 1)

    return by_formula(library("prompt_ensemble", l=3), formula, "bert")


def turned(t: torch.Tensor) -> torch.Tensor:
    return t.T if t.dim() == 2 else t


def lstm(s: Seen) -> torch.Tensor:
    """P-tuning's encoder with torch's own LSTM."""
    net = nn.LSTM(32, 16, num_layers=2, bidirectional=True, batch_first=True).double()
    with torch.no_grad():
        for i, layer in enumerate(("H1", "H2")):
            for way, end in (("forward", ""), ("backward", "_reverse")):
                for ours, theirs in (
                    ("W_x", "weight_ih"),
                    ("W_h", "weight_hh"),
                    ("b_x", "bias_ih"),
                    ("b_h", "bias_hh"),
                ):
                    getattr(net, f"{theirs}_l{i}{end}").copy_(turned(s.t[f"{layer}_{way}_{ours}"]))
        found = net(s.E[None])[0][0]
    return F.linear(torch.relu(F.linear(found, s.W1.T, s.b1)), s.W2.T, s.b2)


def mlp(s: Seen) -> torch.Tensor:
    steps = ((s.W1, s.b1), (s.W2, s.b2), (s.W3, s.b3))
    found = s.E
    for i, (W, b) in enumerate(steps):
        found = F.linear(found.relu() if i else found, W.T, b)
    return found


def filled(rows: Callable[[Seen], torch.Tensor]) -> Callable[[Seen], torch.Tensor]:
    def formula(s: Seen) -> torch.Tensor:
        out, places = s.h.clone(), s.given[":places"]  # n > 0: here stands row n - 1
        for b, t in (places > 0).nonzero().tolist():
            out[b, t] = rows(s)[places[b, t] - 1]
        return out

    return formula


def prepended(rows: Callable[[Seen], torch.Tensor]) -> Callable[[Seen], torch.Tensor]:
    return lambda s: torch.cat([rows(s).expand(len(s.h), -1, -1), s.h[:, len(s.E) :]], 1)


for _method, _formula in {
    "p_tuning": filled(lstm), "p_tuning_mlp": filled(mlp),
    "p_tuning_prepended": prepended(lstm), "p_tuning_mlp_prepended": prepended(mlp),
}.items():  # fmt: skip
    reference(_method, by="formula", against="torch's LSTM and an MLP, Liu et al. 2021")(
        lambda name=_method, formula=_formula: by_formula(library(name), formula, "bert")
    )


# ---------------------------------------------------------------- heads and trained copies


def mean(s: Seen) -> torch.Tensor:
    assert s.mask is not None
    return torch.stack([x[m.bool()].mean(0) for x, m in zip(s.x, s.mask)])


def first(s: Seen) -> torch.Tensor:
    assert s.mask is not None
    return torch.stack([x[m.bool()][0] for x, m in zip(s.x, s.mask)])


for _method, _pool in {"mean_head": mean, "probing_mean": mean, "first_head": first, "probing_cls": first}.items():
    reference(_method, by="formula", against="a linear map of the pooled tokens")(
        lambda name=_method, pool=_pool: by_formula(
            library(name), lambda s: F.linear(pool(s), s.W_head.T, s.b_head), "bert_labels"
        )
    )


def by_writing(method: unipelt.Method, trained: Callable[[str], bool], kind: str) -> float:
    """A trained copy is the base with these parameters written over, and no other."""
    model = small.model(kind, dtype=torch.float64)
    plan = unipelt.apply(model, method)
    small.randomise(model)
    own = record(model, "default").trained()
    written = small.model(kind, dtype=torch.float64)
    assert {c.parameter.path for c in plan.copies} == {n for n, _ in written.named_parameters() if trained(n)}
    with torch.no_grad():
        for c in plan.copies:
            written.get_parameter(c.parameter.path).copy_(own[c.name])
    assert apart(small.output(model), small.output(small.model(kind, dtype=torch.float64))) > 1e-3
    return apart(small.output(model), small.output(written))


TRAINED: dict[str, tuple[Callable[[str], bool], str]] = {
    "bitfit": (lambda n: n.endswith("bias") or "classifier" in n or "pooler" in n, "bert_labels"),
    "full": (lambda n: True, "llama"),
    "partial": (lambda n: n.startswith(("model.layers.1.", "model.layers.2.")), "llama"),
    "probing": (lambda n: n.startswith("classifier") or "pooler" in n, "bert_labels"),
}
for _method, (_which, _kind) in TRAINED.items():
    reference(_method, by="formula", against="the base with these parameters written over")(
        lambda name=_method, which=_which, kind=_kind: by_writing(library(name), which, kind)
    )
