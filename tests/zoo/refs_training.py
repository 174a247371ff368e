"""Methods with training words: what they compute outside training, and what training does to them."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import peft
import small
import torch
from peft.tuners.lora.monteclora import MontecloraSampler
from recorded import by_recording
from reference import Seen, apart, beside_peft, by_formula, library, randomised, reference, run, watched
from torch import nn
from torch.nn import functional as F

import unipelt
from unipelt.compiler import helpers
from unipelt.runtime.edits import Edit


@contextmanager
def drawing(word: str) -> Iterator[list[torch.Tensor]]:
    """What a function of `helpers` draws while this is open, in order."""
    make, drawn = getattr(helpers, word), []

    def noted(*args: Any) -> torch.Tensor:
        numbers = make(*args)
        drawn.append(numbers.double())
        return numbers

    with mock.patch.object(helpers, word, noted):
        yield drawn


def in_training(model: nn.Module) -> list[Seen]:
    """What every edit meets in a pass of training, after which the model knows its penalties."""
    with watched(model.train()) as found, torch.enable_grad():
        model(**small.inputs(padded=False))
    return found


@reference("adalora", by="peft", against="AdaLoRA's SVD layers, before anything is pruned")
def _adalora() -> float:
    def into(name: str, theirs: dict[str, torch.Tensor]) -> torch.Tensor:
        layer, kind, tensor = re.match(r"layers\.(\d+)\.attn\.(\w)\.\w+\.(\w)$", name).groups()  # type: ignore[union-attr]
        found = theirs[f"base_model.model.model.layers.{layer}.self_attn.{kind}_proj.lora_{tensor}.default"]
        return found[:, 0] if tensor == "E" else found.T

    config = peft.AdaLoraConfig(
        init_r=4, target_r=2, lora_alpha=8, total_step=100, tinit=10, tfinal=10, target_modules=["q_proj", "v_proj"]
    )
    return beside_peft(library("adalora", r=4, alpha=8.0), config, into, scale=0.3)


@reference("adalora", by="recording", against="peft/llama-adalora")
def _adalora_recorded() -> float:
    def source(name: str) -> tuple[str, Any]:
        layer, kind, tensor = re.match(r"layers\.(\d+)\.attn\.(\w)\.\w+\.(\w+)$", name).groups()  # type: ignore[union-attr]
        front = f"base_model.model.model.layers.{layer}.self_attn.{kind}_proj.lora"
        return f"{front}_{tensor}.default" if tensor in "ABE" else "", (lambda t: t[:, 0]) if tensor == "E" else (
            lambda t: t.T
        )

    return by_recording("peft/llama-adalora", library("adalora", r=4, alpha=8.0), source, unused="ranknum")


@reference(
    "adalora",
    by="formula",
    against="equations 6 to 12 of Zhang et al. 2023: importance, budget and penalty over six steps",
)
def _adalora_budget() -> float:
    model = randomised(library("adalora", r=4, target=1, gamma=0.2), "bert_labels").train()
    for part in model.modules():
        if isinstance(part, torch.nn.Dropout):
            part.p = 0.0
    own = unipelt.runtime.registry.record(model, "default").trained()
    places = [n[:-2] for n in own if n.endswith(".E")]
    optimizer = torch.optim.SGD([own[f"{p}.{t}"] for p in places for t in "AEB"], 1e-2)
    smooth = {f"{p}.{t}": torch.zeros_like(own[f"{p}.{t}"]) for p in places for t in "AEB"}
    unsure = {n: torch.zeros_like(t) for n, t in smooth.items()}
    x, worst = {**small.inputs(padded=False), "labels": torch.tensor([0, 1, 0])}, 0.0
    for step in range(1, 7):
        optimizer.zero_grad()
        out = model(**x)
        eye = torch.eye(4, dtype=torch.float64)
        orthogonal = sum(
            torch.dist(own[f"{p}.A"].mT @ own[f"{p}.A"], eye) ** 2
            + torch.dist(own[f"{p}.B"] @ own[f"{p}.B"].mT, eye) ** 2
            for p in places
        )
        worst = max(
            worst, apart((out.loss - F.cross_entropy(out.logits, x["labels"])).detach(), (0.2 * orthogonal).detach())
        )
        out.loss.backward()
        optimizer.step()
        plain = {n: own[n].detach().clone() for n in smooth}
        unipelt.progress(model, step / 6)
        unipelt.after_step(model)
        for n in smooth:
            importance = (plain[n] * own[n].grad).abs()
            smooth[n] = 0.85 * smooth[n] + 0.15 * importance
            unsure[n] = 0.85 * unsure[n] + 0.15 * (importance - smooth[n]).abs()
        score = {n: smooth[n] * unsure[n] for n in smooth}
        s = torch.cat([score[f"{p}.E"] + score[f"{p}.A"].mean(0) + score[f"{p}.B"].mean(1) for p in places])
        done = min(1.0, max(0.0, (step / 6 - 0.1) / 0.6))
        budget = round((1 + 3 * (1 - done) ** 3) * len(places))
        kept = torch.zeros_like(s)
        kept[s.topk(budget).indices] = 1
        for p, mask in zip(places, kept.split(4)):
            worst = max(worst, apart(own[f"{p}.E"].detach() + 1, plain[f"{p}.E"] * mask + 1))
    assert sum(int((own[f"{p}.E"] != 0).sum()) for p in places) == len(places), "the target rank"
    return worst


@reference("sora", by="formula", against="W x + s B (g ⊙ A x), and the proximal step of its gate")
def _sora() -> float:
    error = by_formula(library("sora"), lambda s: s.h + 2 * torch.einsum("btd,dr,r,ro->bto", s.x, s.A, s.g_, s.B))
    model = randomised(library("sora", xi=0.4))
    before = {n: t.clone() for n, t in unipelt.state_dict(model).items()}
    unipelt.after_step(model.train())
    after = unipelt.state_dict(model)
    gates = [n for n in before if n.endswith(".g_")]
    return max(error, *(apart(after[n] + 1, F.softshrink(before[n], 0.4) + 1) for n in gates))


@reference("dylora", by="formula", against="the first b rows and columns, Valipour et al. 2023, equation 4")
def _dylora() -> float:
    def first(n: int) -> float:
        return by_formula(library("dylora", r=6, rank=n, alpha=12.0), lambda s: s.h + 2 * (s.x @ s.A[:, :n]) @ s.B[:n])

    model = randomised(library("dylora", r=3, alpha=3.0))
    fixed = [small.output(randomised(library("dylora", r=3, rank=n, alpha=3.0))) for n in (1, 2, 3)]
    torch.manual_seed(0)
    drawn = [small.output(model.train()) for _ in range(24)]
    near = [min((apart(d, f), n) for n, f in enumerate(fixed, 1)) for d in drawn]
    assert {n for _, n in near} == {1, 2, 3}
    return max(first(1), first(4), first(6), *(e for e, _ in near))


@reference(
    "pvera",
    by="formula",
    against="peft's forward without sampling: b ⊙ B mu, mu the first half of d ⊙ A x; with it, its mean and deviation",
)
def _pvera() -> float:
    def formula(s: Seen) -> torch.Tensor:
        both = s.d * F.linear(s.x, s.A[: s.x.shape[-1]].mT)
        return s.h + s.b * F.linear(both.chunk(2, -1)[0], s.B[:, : s.h.shape[-1]].mT)

    seen = run(library("pvera", r=8))
    worst = max(apart(s.out, formula(s)) for s in seen)
    model = randomised(library("pvera", r=8))
    mean, model = small.output(model), model.train()
    torch.manual_seed(0)
    drawn = torch.stack([small.output(model) for _ in range(4)])
    assert (drawn - mean).abs().max() > 1e-6 and (drawn[0] - drawn[1]).abs().max() > 1e-6
    return worst


@reference("sorsa", by="formula", against="(W - W_p) x + U S V x of the principal part")
def _sorsa() -> float:
    def formula(s: Seen) -> torch.Tensor:
        U, S, Vh = torch.linalg.svd(s.W)
        rest = s.W - U[:, :4] @ torch.diag(S[:4]) @ Vh[:4]
        return s.x @ (rest + torch.einsum("ik,k,ok->io", s.U, s.S, s.V)) + s.bias

    return by_formula(library("sorsa", r=4), formula)


@reference(
    "adamix",
    by="formula",
    against="one adapter of the mean weights outside training, and of one drawn down and up in it",
)
def _adamix() -> float:
    def one(s: Seen, down: torch.Tensor, b_down: torch.Tensor, up: torch.Tensor, b_up: torch.Tensor) -> torch.Tensor:
        return s.h + F.gelu(s.h @ down + b_down) @ up + b_up

    worst = by_formula(
        library("adamix", n=3, r=5), lambda s: one(s, s.down.mean(0), s.b_down.mean(0), s.up.mean(0), s.b_up.mean(0))
    )
    model = randomised(library("adamix", n=2, r=5))
    pairs = set()
    torch.manual_seed(0)
    for _ in range(8):
        with watched(model.train()) as found:
            small.output(model)
        for s in found:
            error, *pair = min(
                (apart(s.out, one(s, s.down[i], s.b_down[i], s.up[j], s.b_up[j])), i, j)
                for i in range(2)
                for j in range(2)
            )
            pairs.add(tuple(pair))
            worst = max(worst, error)
    assert len(pairs) == 4, "down and up are drawn apart"
    return worst


@reference(
    "lora_moe",
    by="formula",
    against="sum over i of softmax(W_g x)_i s B_i A_i x, Dou et al. 2024; variance by mean of the shares",
)
def _lora_moe() -> float:
    def formula(s: Seen) -> torch.Tensor:
        p = torch.softmax(torch.einsum("btd,ed->bte", s.x, s.w), -1)
        return s.h + 8 * torch.einsum("bte,btd,edr,ero->bto", p, s.x, s.A, s.B)

    worst = by_formula(library("lora_moe"), formula)
    model = randomised(library("lora_moe"))
    total = torch.zeros((), dtype=torch.float64)
    for s in in_training(model):
        share = torch.softmax(torch.einsum("btd,ed->bte", s.x, s.w), -1).mean(1)
        total = total + (share.var(-1, unbiased=False) / share.mean(-1)).mean().detach()
    return max(worst, apart(unipelt.penalties(model).detach(), total))


@reference(
    "blob",
    by="formula",
    against="W x + s B A x outside training; in it the penalty of their code, and no draw where the deviation is 0",
)
def _blob() -> float:
    worst = by_formula(library("blob"), lambda s: s.h + 2 * torch.einsum("btd,dr,ro->bto", s.x, s.A, s.B))
    model = randomised(library("blob", beta=0.01))
    mean, state = small.output(model), unipelt.state_dict(model)
    wanted = torch.zeros((), dtype=torch.float64)
    for n in (n[:-2] for n in state if n.endswith(".R")):
        deviation, mu = state[f"{n}.R"] ** 2, state[f"{n}.A"]
        kl = math.log(0.2 + 1e-6) - torch.log(deviation + 1e-6)
        wanted = wanted + 0.01 * (kl + (deviation**2 + mu**2) / (2 * 0.2**2 + 1e-6) - 0.5).sum()
    torch.manual_seed(0)
    drawn = [small.output(model.train()) for _ in range(2)]
    assert apart(drawn[0], mean) > 1e-6 and apart(drawn[0], drawn[1]) > 1e-6
    with torch.enable_grad():
        model(**small.inputs(padded=False))
    worst = max(worst, apart(unipelt.penalties(model).detach(), wanted))
    with torch.no_grad():
        for n, t in state.items():
            if n.endswith(".R"):
                t.zero_()
    return max(worst, apart(small.output(model), mean))


@reference("monte_clora", by="peft", against="LoraConfig(monteclora_config=…) outside training")
def _monte_clora_of_peft() -> float:
    def into(name: str, theirs: dict[str, torch.Tensor]) -> torch.Tensor:
        layer, kind, tensor = re.match(r"layers\.(\d+)\.attn\.(\w)\.\w+\.(\w+)$", name).groups()  # type: ignore[union-attr]
        front = f"base_model.model.model.layers.{layer}.self_attn.{kind}_proj.lora_"
        if tensor in "AB":
            return theirs[f"{front}{tensor}.default.weight"].T
        return theirs[f"{front}monteclora_sampler.default.{'std_prior' if tensor == 'd' else 'expert_weights_prior'}"]

    config = peft.LoraConfig(
        r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], monteclora_config=peft.MontecloraConfig(num_samples=5)
    )
    return beside_peft(library("monte_clora", r=4, alpha=8.0, n=5), config, into)


@reference(
    "monte_clora",
    by="peft",
    against="peft's MontecloraSampler with the same draws, and the divergences of torch.distributions",
)
def _monte_clora_in_training() -> float:
    model = randomised(library("monte_clora", r=3, n=4, size=0.5, beta=0.01))
    with drawing("normal_numbers") as drawn:
        found = in_training(model)
    worst, total = 0.0, torch.zeros((), dtype=torch.float64)
    for place, s in enumerate(found):
        own = {tuple(t.shape): t for t in drawn[3 * place : 3 * place + 3]}
        theirs = MontecloraSampler(32, 3, 4, sample_scaler=0.5, device="cpu", dtype=torch.float64, buffer_size=1)
        std, weight = torch.diag(s.d.exp()), s.w.exp()
        variance = theirs.wishart_reparameterization(std, own[3, 3] @ own[3, 3].T)
        noise = theirs.multivariate_reparameterization(own[4, 32, 3], variance)
        share = torch.softmax(theirs.dirichlet_reparameterization(weight, own[4,]), -1)
        A = s.A + torch.einsum("n,nij->ij", share, noise)
        worst = max(worst, apart(s.out - s.h, 16 / 3 * torch.einsum("bti,ir,ro->bto", s.x, A, s.B)))
        prior = torch.distributions.Dirichlet(torch.full((4,), 0.1, dtype=torch.float64))
        total += torch.distributions.kl_divergence(torch.distributions.Dirichlet(weight), prior)
        total += (theirs.wishart_kl(std) + theirs.multivariate_kl(variance)).detach()
    assert len(found) == 2 * small.LAYERS
    return max(worst, apart(unipelt.penalties(model).detach(), 0.01 / small.LAYERS * total))


@reference(
    "diff_pruning",
    by="formula",
    against="z z_m w by sigmoids stretched to [-1.5, 1.5] and cut, with the same draws, and the L0 penalty of their code",
)
def _diff_pruning() -> float:
    method = library("diff_pruning", at="[attn.q, ffn.down]", pen=0.01, gate=0.3)

    def gate(alpha: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
        u = u.clamp(0.0001, 0.9999)
        return (torch.sigmoid(torch.log(u) - torch.log1p(-u) + alpha) * 3 - 1.5).clamp(0, 1)

    def change(s: Seen, u: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return s.h + torch.einsum("bti,io->bto", s.x, gate(s.a, u) * gate(s.b, t) * s.D)

    half = torch.tensor(0.5, dtype=torch.float64)
    worst = by_formula(method, lambda s: change(s, half, half))
    model = randomised(method)
    with drawing("uniform_numbers") as drawn:
        found = in_training(model)
    total = torch.zeros((), dtype=torch.float64)
    for i, s in enumerate(found):
        u, t = sorted(drawn[2 * i : 2 * i + 2], key=torch.numel, reverse=True)
        worst = max(worst, apart(s.out, change(s, u, t)))
        total += torch.sigmoid(s.a).sum() + torch.sigmoid(s.b)
    assert len(found) == 2 * small.LAYERS and len(drawn) == 2 * len(found)
    return max(worst, apart(unipelt.penalties(model).detach(), 0.01 * total))


@reference(
    "lt_sft",
    by="formula",
    against="x W + x (M D), M by sorting |D| of all layers when the first phase ends, Ansell et al. 2022",
)
def _lt_sft() -> float:
    method = library("lt_sft", at="attn.q", kept=0.1, first=0.5)
    worst = by_formula(method, lambda s: s.h + torch.einsum("bti,io->bto", s.x, s.M * s.D))
    model = randomised(method).train()
    own = {n: t for n, t in unipelt.state_dict(model).items() if n.endswith(".D")}
    before = torch.stack(list(own.values())).detach().clone()
    for progress in (0.2, 0.4):
        unipelt.progress(model, progress)
        unipelt.after_step(model)
        assert torch.equal(torch.stack(list(own.values())), before), "nothing is chosen in the first phase"
    unipelt.progress(model, 0.5)
    unipelt.after_step(model)
    n = small.LAYERS * math.ceil(0.1 * 32 * 32)
    kept = torch.zeros_like(before).flatten()
    kept[before.flatten().abs().argsort(descending=True)[:n]] = 1
    for step in range(2):  # the second time nothing is chosen anew
        masks = [t for m in model.modules() if isinstance(m, Edit) for k, t in m.tensors().items() if k == "M"]
        assert torch.equal(torch.stack(masks).flatten(), kept)
        assert bool((torch.stack(list(own.values())) == (0 if step == 0 else 0.3)).all())
        with torch.no_grad():
            for t in own.values():
                t.fill_(0.3)
        unipelt.progress(model, 0.8)
        unipelt.after_step(model)
    return worst
