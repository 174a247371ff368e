"""References for `specs/representations.pelt`: recordings of another library, the papers' equations, live peft."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import peft
import small
import torch
from recorded import View, by_recording
from reference import Seen, apart, beside_peft, library, reference, run

ENDS = {"prefix": 0, "suffix": 1}


def _turned(t: torch.Tensor) -> torch.Tensor:
    return t.T


def _same(t: torch.Tensor) -> torch.Tensor:
    return t


def _source(projection: str, units: Mapping[str, int]) -> Callable[[str], tuple[str, View]]:
    """Where a recording has our tensors: a block's linear map and its projection, one for each end of the text."""

    def find(name: str) -> tuple[str, View]:
        *block, _, row, tensor = name.split(".")
        front = f"{'.'.join(block)}.reft_layer.refts.ad.units.{units[row]}."
        if tensor == "b":
            return f"{front}learned_source.bias", _same
        return front + ("learned_source.weight" if tensor == "A" else projection), _turned

    return find


@reference("noreft", by="recording", against="NoReFT of AdapterHub on BERT, outputs and gradients")
def _noreft() -> float:
    method = library("noreft", r=2, first=2, last=1)
    return by_recording("adapters/bert-noreft", method, _source("projection.weight", {"noreft": 0}))


def _real(s: Seen, first: int, last: int) -> torch.Tensor:
    """Which tokens an edit may change, found by a loop: [batch, tokens, 1]."""
    mask = small.inputs()["attention_mask"]
    out = torch.zeros_like(mask, dtype=torch.bool)
    for row, on in enumerate(mask.tolist()):
        real = [i for i, v in enumerate(on) if v]
        out[row, real[:first] + (real[-last:] if last else [])] = True
    return out[..., None]


def _by_equation(name: str, equation: Callable[[Seen], torch.Tensor]) -> float:
    """At the selected tokens the equation, at the others h to the bit."""
    ends = {"prefix": (2, 0), "suffix": (0, 3)}
    worst = 0.0
    for kind in ("bert", "llama"):
        for s in run(library(name, r=3, first=2, last=3), kind):
            chosen = _real(s, *ends.get(s.row, (2, 3)))
            assert torch.equal(s.out[~chosen.expand_as(s.out)], s.h[~chosen.expand_as(s.h)])
            worst = max(worst, apart(s.out, torch.where(chosen, equation(s), s.h)))
    return worst


def _rows(r: torch.Tensor) -> torch.Tensor:
    """Orthonormal rows [r, d], by the QR decomposition with a positive diagonal."""
    q, upper = torch.linalg.qr(r)
    return (q * torch.sign(torch.diagonal(upper))).T


@reference("loreft", "loreft_tied", by="formula", against="h + R^T (W h + b - R h), R with orthonormal rows")
def _loreft() -> float:
    def equation(s: Seen) -> torch.Tensor:
        R = _rows(s.R0)
        assert torch.allclose(R @ R.T, torch.eye(3, dtype=R.dtype), atol=1e-10)
        inside = torch.einsum("rd,btd->btr", s.A.T, s.h) + s.b - torch.einsum("rd,btd->btr", R, s.h)
        return s.h + torch.einsum("rd,btr->btd", R, inside)

    return max(_by_equation(name, equation) for name in ("loreft", "loreft_tied"))


@reference("direft", by="formula", against="h + W2^T (W1 h + b)")
def _direft() -> float:
    def equation(s: Seen) -> torch.Tensor:
        return s.h + torch.einsum("dr,btr->btd", s.P, torch.einsum("dr,btd->btr", s.A, s.h) + s.b)

    return _by_equation("direft", equation)


@reference("direft", by="recording", against="DiReFT of AdapterHub on BERT, outputs and gradients")
def _direft_recorded() -> float:
    method = library("direft", r=2, first=2, last=0)
    return by_recording("adapters/bert-direft", method, _source("projection.weight", ENDS))


@reference("loreft", by="recording", against="LoReFT of AdapterHub on BERT, outputs; its third text, on whose one token "
           "in the middle both ends meet, is left out: there the second takes the place of the first")  # fmt: skip
def _loreft_recorded() -> float:
    method = library("loreft", r=2, first=2, last=2)
    return by_recording("adapters/bert-loreft", method, _source("projection.weight", ENDS), trained=False,
                        unused="parametrizations", examples=2)  # fmt: skip


@reference("alora", by="peft", against="LoraConfig(alora_invocation_tokens)")
def _alora() -> float:
    ids = small.inputs(padded=False)["input_ids"]
    wanted = ids[1, 3:5].tolist()
    config = peft.LoraConfig(r=3, lora_alpha=6, target_modules=["q_proj", "k_proj", "v_proj"], alora_invocation_tokens=wanted,
                             task_type="CAUSAL_LM")  # fmt: skip

    def into(name: str, theirs: dict[str, torch.Tensor]) -> torch.Tensor:
        layer, site, tensor = name.split(".")[-5], name.split(".")[-3], name.split(".")[-1]
        key = f"base_model.model.model.layers.{layer}.self_attn.{site}_proj.lora_{tensor}.default.weight"
        return theirs[key].T

    return beside_peft(library("alora", r=3, alpha=6.0), config, into, "llama", scale=0.1,
                        tokenizer=lambda text, **_: {"input_ids": wanted})  # fmt: skip
