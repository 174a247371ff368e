"""LoRA beside live peft: the same projections, the same matrices, and outputs that must be equal."""

from __future__ import annotations

import copy
from typing import Any

import peft
import torch
from reach_methods import NAME, apart, outputs, said
from reach_model import built_and_run
from reach_types import Type, kind
from torch import nn

import unipelt

WITHIN = 1e-5
R, ALPHA = 4, 16.0
_AT = ("attn.q, attn.v", "attn.o, ffn.down", "attn.o", "mixer.in, mixer.out", "mixer.in", "ffn.up, ffn.down")


def beside(found: Type) -> dict[str, Any]:
    """The first of some places at which both can be: ours may know no such site, and peft edits a fused projection as one."""
    record: dict[str, Any] = {"class": found.cls, "kind": kind(found)}
    try:
        model, _, inputs = built_and_run(found)
    except Exception as e:
        return {**record, "why": f"not run: {said(e)}"}
    base, reasons = outputs(model, inputs), []
    for at in _AT:
        try:
            return {**record, "at": at, **_compared(copy.deepcopy(model), model, inputs, base, at)}
        except Exception as e:
            reasons.append(f"{at}: {said(e)}")
        if NAME in unipelt.adapters(model):
            unipelt.remove(model, NAME)
    return {**record, "why": "; ".join(reasons)[:600]}


def _compared(theirs: Any, model: nn.Module, inputs: dict[str, Any], base: Any, at: str) -> dict[str, Any]:
    """Ours on ``model`` beside peft's on its copy, with the same random matrices, which must change the output."""
    method = unipelt.load("lora", arguments={"r": R, "alpha": ALPHA, "at": f"[{at}]"})
    plan = unipelt.apply(model, method, name=NAME, seed=0, head=False)
    if any(e.site.view.columns is not None for e in plan.edits):
        raise ValueError("a fused projection, whose columns peft does not tell apart")
    drawn = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for group in unipelt.parameter_groups(model, NAME, 1e-3):
            for p in group["params"]:
                p.copy_(torch.randn(p.shape, generator=drawn) * 0.3)
    ours, state = outputs(model, inputs), unipelt.state_dict(model, NAME)
    paths = [e.site.view.module for e in plan.edits]
    config = peft.LoraConfig(r=R, lora_alpha=ALPHA, lora_dropout=0.0, target_modules=paths)
    theirs = peft.PeftModel(theirs, config).eval()
    with torch.no_grad():
        for e in plan.edits:
            A, B = (state[e.tensors[n]] for n in ("A", "B"))
            _put(theirs.base_model.model.get_submodule(e.site.view.module), A, B)
    error, moved = apart(outputs(theirs, inputs), ours), apart(ours, base)
    return {"modules": len(paths), "error": error, "moved": moved, "equal": error <= WITHIN < moved}


def _put(layer: nn.Module, A: torch.Tensor, B: torch.Tensor) -> None:
    """peft's matrices are those of linear modules: [r, d_in] and [d_out, r]."""
    a, b = (getattr(layer, n)["default"].weight for n in ("lora_A", "lora_B"))
    a.copy_(A.T.reshape(a.shape))
    b.copy_(B.T.reshape(b.shape))
