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
_AT = ("attn.q, attn.v", "attn.q, attn.k, attn.v, attn.o", "mixer.in, mixer.out", "ffn.up, ffn.down")


def beside(found: Type) -> dict[str, Any]:
    """Ours and peft's LoRA on the modules that serve whole projections. peft edits a fused projection as one, so those are left out."""
    record: dict[str, Any] = {"class": found.cls, "kind": kind(found)}
    try:
        model, _, inputs = built_and_run(found)
    except Exception as e:
        return {**record, "why": f"not run: {said(e)}"}
    theirs: Any = copy.deepcopy(model)
    reasons = []
    for at in _AT:
        try:
            plan = unipelt.apply(
                model, unipelt.load("lora", arguments={"r": R, "alpha": ALPHA, "at": f"[{at}]"}), name=NAME, seed=0
            )
        except Exception as e:
            reasons.append(said(e))
            continue
        whole = [e for e in plan.edits if e.site.view.columns is None]
        if len(whole) == len(plan.edits):
            break
        unipelt.remove(model, NAME)
        reasons.append(f"{at}: a fused projection, whose columns peft does not tell apart")
    else:
        return {**record, "why": reasons[0]}
    drawn = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for group in unipelt.parameter_groups(model, NAME, 1e-3):
            for p in group["params"]:
                p.copy_(torch.randn(p.shape, generator=drawn) * 0.3)
    ours = outputs(model, inputs)
    paths = [e.site.view.module for e in whole]
    try:
        theirs = peft.PeftModel(
            theirs, peft.LoraConfig(r=R, lora_alpha=ALPHA, lora_dropout=0.0, target_modules=paths)
        ).eval()
    except Exception as e:
        return {**record, "at": at, "modules": len(paths), "why": f"peft: {said(e)}"}
    state = unipelt.state_dict(model, NAME)
    with torch.no_grad():
        for e in whole:
            A, B = (state[e.tensors[n]] for n in ("A", "B"))
            _put(theirs.base_model.model.get_submodule(e.site.view.module), A, B)
    error = apart(outputs(theirs, inputs), ours)
    return {**record, "at": at, "modules": len(paths), "error": error, "equal": error <= WITHIN}


def _put(layer: nn.Module, A: torch.Tensor, B: torch.Tensor) -> None:
    """peft's matrices are those of linear modules: [r, d_in] and [d_out, r]."""
    a, b = (getattr(layer, n)["default"].weight for n in ("lora_A", "lora_B"))
    a.copy_(A.T.reshape(a.shape))
    b.copy_(B.T.reshape(b.shape))
