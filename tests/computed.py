"""What the classics of the library plan and compute: the same, whatever the definitions are called (see `test_renamed`)."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import torch
from names import CLASSICS, RENAMED, methods

sys.path.append(str(Path(__file__).parent / "behaviour"))
from tiny import batch, build, distance, giving, look, loss, small

import unipelt
from unipelt.runtime.registry import record

MODELS = ("bert_head", "gpt2", "llama")


def computed() -> dict[str, Any]:
    """Method (by its name in ``specs/``; the classics) and model → the codes of its refusal, or what it plans, computes and learns from."""
    back = {v: k for k, v in RENAMED.items()}
    found = {}
    for method in sorted(methods(), key=lambda n: back.get(n, n)):
        original = back.get(method, method)
        for kind in MODELS if original in CLASSICS else ():
            found[f"{original} {kind}"] = _of(method, kind)
    return found


def _of(method: str, kind: str) -> dict[str, Any]:
    m, inputs = build(kind), batch(kind)
    before = look(m, inputs)
    try:
        plan = unipelt.apply(m, small(method), allow_future=True)
    except unipelt.PeltError as e:
        return {"refused": [d.code for d in e.diagnostics]}
    own = list(record(m, "default").trained().values())
    with torch.no_grad():  # by place, not by name: names of rows are those of methods, and draws depend on them
        for i, t in enumerate(own):
            t.copy_(torch.randn(t.shape, generator=torch.Generator().manual_seed(i)) * 0.3)
    with giving(m, inputs):
        loss(m, inputs).backward()
    acting, c = look(m, inputs), plan.counts
    return {
        "outputs": _digest(acting.values()), "gradients": _digest(t.grad for t in own if t.grad is not None),
        "acts": distance(acting, before) > 1e-3, "counts": [c.trained, c.stored, c.frozen, c.head], "edits": len(plan.edits),
        "folds": len(plan.folds), "mergeable": plan.properties["mergeable"].split(":")[0],
    }  # fmt: skip


def _digest(tensors: Any) -> str:
    return hashlib.sha256(b"".join(t.detach().numpy().tobytes() for t in tensors)).hexdigest()


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps(computed()))
