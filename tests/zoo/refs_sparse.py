"""References of the methods with few numbers of an update at given places."""

from __future__ import annotations

from typing import Any

import peft
import torch
from recorded import by_recording
from reference import Seen, beside_peft, by_formula, library, reference

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
