"""References of the methods with few numbers of an update at given places."""

from __future__ import annotations

import math
from typing import Any

import peft
import torch
from recorded import by_recording
from reference import Seen, apart, beside_peft, by_formula, library, randomised, reference

from unipelt.runtime.edits import Edit

TARGETS = dict(target_modules=["q_proj", "v_proj"])
MODULES = {"attn.q": "q_proj", "attn.v": "v_proj"}


def theirs(name: str) -> str:
    """The module in peft's wrapper where a tensor of ours belongs."""
    layers, layer, *site = name.split(".")[:4]
    return f"base_model.model.model.{layers}.{layer}.self_attn.{MODULES['.'.join(site)]}"


def placed(rows: torch.Tensor, columns: torch.Tensor, d_out: int) -> torch.Tensor:
    """Their places, by rows of W (out, in), as ours, which count the entries of [in, out]."""
    return columns.long() * d_out + rows.long()


def _shira(method: Any) -> float:
    config = peft.ShiraConfig(r=2, random_seed=3, target_modules=["q_proj"])

    def fixed(name: str, model: Any) -> torch.Tensor:
        rows, columns = model.get_submodule(theirs(name)).shira_indices["default"]
        return placed(rows, columns, 32)

    def into(name: str, state: dict[str, torch.Tensor]) -> torch.Tensor:
        return state[f"{theirs(name)}.shira_weight.default"]

    return beside_peft(method, config, into, fixed=fixed)


@reference("shira", by="peft", against="live peft, SHiRA with its random mask")
def shira() -> float:
    return _shira(library("shira", one_in=8, at="attn.q"))  # 32 * 32 / 8 = 2 * (32 + 32)


@reference("shira_r", by="peft", against="live peft, SHiRA with its random mask")
def shira_r() -> float:
    return _shira(library("shira_r", r=2, at="attn.q"))


@reference("waveft", by="peft", against="live peft, WaveFT with db1")
def waveft() -> float:
    config = peft.WaveFTConfig(n_frequency=60, scaling=25.0, **TARGETS)

    def fixed(name: str, model: Any) -> torch.Tensor:
        layer = model.get_submodule(theirs(name))
        rows, columns = layer.waveft_indices["default"]
        p, q = layer.out_features, layer.in_features
        # their quarters at the right top and the left bottom stand the other way round
        right, low = columns >= q // 2, rows >= p // 2
        swapped = torch.where(right & ~low, rows + p // 2, torch.where(low & ~right, rows - p // 2, rows))
        moved = torch.where(right & ~low, columns - q // 2, torch.where(low & ~right, columns + q // 2, columns))
        return placed(swapped, moved, p)

    def into(name: str, state: dict[str, torch.Tensor]) -> torch.Tensor:
        return state[f"{theirs(name)}.waveft_spectrum.default"]

    return beside_peft(library("waveft", n=60), config, into, fixed=fixed, scale=0.02)


@reference("fourierft", by="peft", against="live peft, FourierFT")
def fourierft() -> float:
    config = peft.FourierFTConfig(n_frequency=60, scaling=150.0, **TARGETS)

    def fixed(name: str, model: Any) -> torch.Tensor:
        site = ".".join(name.split(".")[:2])  # one for all layers
        module = f"base_model.model.model.layers.0.self_attn.{MODULES[site]}"
        return placed(*model.get_submodule(module).indices["default"], {"attn.q": 32, "attn.v": 16}[site])

    def into(name: str, state: dict[str, torch.Tensor]) -> torch.Tensor:
        return state[f"{theirs(name)}.fourierft_spectrum.default"]

    return beside_peft(library("fourierft", n=60, s=150.0), config, into, fixed=fixed)


@reference("fourierft", by="recording", against="peft/llama-fourierft")
def _fourierft_recorded() -> float:
    def source(name: str) -> tuple[str, Any]:
        if name.endswith(".c"):
            return f"{theirs(name)}.fourierft_spectrum.default", lambda t: t
        site = ".".join(name.split(".")[:2])  # one for all layers
        d_out = {"attn.q": 32, "attn.v": 16}[site]
        module = f"base_model.model.model.layers.0.self_attn.{MODULES[site]}"
        return f"{module}.indices.default", lambda t: placed(t[0], t[1], d_out)

    return by_recording("peft/llama-fourierft", library("fourierft", n=20, s=150.0), source)


def filled(s: Seen, order: torch.Tensor, n: int) -> torch.Tensor:
    """x (W + D) + b with D zero but for the trained numbers at the first n places of an order of W's entries."""
    D = torch.zeros_like(s.W)
    for number, place in zip(s.c, order[:n].tolist(), strict=True):
        D[place // D.shape[1], place % D.shape[1]] += number
    return torch.einsum("btd,de->bte", s.x, s.W + D) + s.bias


def by_size(W: torch.Tensor, largest: bool = True) -> torch.Tensor:
    return W.flatten().abs().argsort(descending=largest)


@reference("shira_wm", by="formula", against="the entries that sorting all of |W| puts first, written one by one")
def shira_wm() -> float:
    return by_formula(library("shira_wm", one_in=10), lambda s: filled(s, by_size(s.W), -(-s.W.numel() // 10)))


@reference("pafi", by="formula", against="the entries that sorting all of |W| puts last, written one by one")
def pafi() -> float:
    return by_formula(library("pafi", one_in=20), lambda s: filled(s, by_size(s.W, False), -(-s.W.numel() // 20)))


@reference("super_tuning", by="peft", against="live peft, Super-Tuning (sparsity 0.9)")
def super_tuning() -> float:
    config = peft.SupertuningConfig(sparsity=0.9, **TARGETS)

    def into(name: str, state: dict[str, torch.Tensor]) -> torch.Tensor:
        return state[f"{theirs(name)}.supertuning_values.default"]

    return beside_peft(library("super_tuning", one_in=10), config, into)


@reference("supra_tuning", by="peft", against="live peft, Super-Tuning with low rank (sparsity 0.9)")
def supra_tuning() -> float:
    config = peft.SupertuningConfig(sparsity=0.9, r=4, lora_alpha=8.0, **TARGETS)

    def into(name: str, state: dict[str, torch.Tensor]) -> torch.Tensor:
        own = {"c": "values.default", "A": "lora_A.default.weight", "B": "lora_B.default.weight"}[name[-1]]
        t = state[f"{theirs(name)}.supertuning_{own}"]
        return t.T if t.dim() == 2 else t

    return beside_peft(library("supra_tuning", one_in=10, r=4, alpha=8.0), config, into)


def cosines(n: int) -> torch.Tensor:
    """The orthonormal cosine transform as a matrix: a frequency in each row."""
    k, p = torch.arange(n, dtype=torch.float64)[:, None], torch.arange(n, dtype=torch.float64)
    return torch.cos(math.pi * k * (2 * p + 1) / (2 * n)) * ((2 - (k == 0).double()) / n).sqrt()


def spectral_places(s: Seen) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows and columns of the coefficients of LoCA: nearest to shares of the sizes."""
    found = [(t.clamp(0, 0.999) * (n - 1)).round().long() for t, n in zip((s.a, s.b), (s.x.shape[-1], s.h.shape[-1]))]  # type: ignore[union-attr]
    return found[0], found[1]


def of_cosines(s: Seen, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    S = torch.zeros(s.x.shape[-1], s.h.shape[-1], dtype=s.h.dtype)  # type: ignore[union-attr]
    for i, j, c in zip(rows, columns, s.c, strict=True):
        S[i, j] += c
    return s.h + 3 * s.x @ (cosines(S.shape[0]).T @ S @ cosines(S.shape[1]))  # type: ignore[operator]


@reference("loca_fixed", by="formula", against="C^T S D by cosine matrices, Du et al. 2025, equation 1 of LoCA")
def _() -> float:
    return by_formula(
        library("loca_fixed", n=20, s=3.0), lambda s: of_cosines(s, s.I // s.h.shape[-1], s.I % s.h.shape[-1])
    )


@reference(
    "loca",
    by="formula",
    against="C^T S D by cosine matrices, and its central differences as the gradient of places, Du et al. 2025",
)
def _() -> float:
    method = library("loca", n=20, s=3.0, learn=0.5)
    worst = by_formula(method, lambda s: of_cosines(s, *spectral_places(s)))
    model = randomised(method).train()
    edit = next(m for m in model.modules() if isinstance(m, Edit))
    own = edit.tensors()
    with torch.no_grad():
        for name in "ab":
            own[name].uniform_(-0.1, 1.1, generator=torch.Generator().manual_seed(2))
    x, h, G = torch.randn(3, 2, 5, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    tried = []
    for steps, progress in ((7, 0.2), (12, 0.2), (29, 0.2), (30, 0.2), (12, 0.5)):
        own["steps"].fill_(steps)
        for t in own.values():
            t.grad = None
        out = edit(h, {"x": x, "progress": torch.tensor(progress, dtype=torch.float64)})
        (out * G).sum().backward()
        s = Seen("", 0, "", h, out, x, t={n: t.detach() for n, t in own.items()})
        rows, columns = spectral_places(s)
        worst = max(worst, apart(out, of_cosines(s, rows, columns)))
        K = 3 * cosines(32) @ torch.einsum("bti,bto->io", x, G) @ cosines(32).T
        wanted = {n: torch.zeros(20, dtype=torch.float64) for n in "abc"}
        coefficients = steps % 30 < 10 or progress >= 0.5
        tried.append(coefficients)
        if coefficients:
            wanted["c"] = K[rows, columns]
        else:
            for name, i, j in (("a", 1, 0), ("b", 0, 1)):
                after = K[(rows + i).clamp(max=31), (columns + j).clamp(max=31)]
                before = K[(rows - i).clamp(min=0), (columns - j).clamp(min=0)]
                inside = (own[name] >= 0) & (own[name] <= 0.999)
                wanted[name] = (s.c * (after - before) / 2 * 31 * inside).detach()
        for name, value in wanted.items():
            grad = own[name].grad
            assert grad is not None
            worst = max(worst, float((grad - value).abs().max() / K.abs().max()))
    assert tried == [True, False, False, True, True]
    return worst
