"""Looking inside every family of models: a prefix in the kernel is seen as it is written."""

from __future__ import annotations

import math

import pytest
import tiny
import torch

import unipelt

SPEC = """
gate each { w: [d_in] ~ normal(0.5)  g = sigmoid(z @ w) }
method several {
  use {
    modify attn.heads, cross.heads  insert parallel
    form {
      P_k: [3, d_head] ~ normal(0.5) per group
      P_v: [3, d_head] ~ normal(0.5) per group
      scores = q @ P_k.T * scale
      delta = softmax(scores) @ P_v
    }
    compose { lam = sigmoid(logsumexp(scores) - log_mass)   out = (1 - lam) * h + lam * delta }
  } as prefix
  use {
    modify ffn  insert parallel
    form { A: [d_in, 2] ~ normal(0.2)  B: [2, d_out] ~ normal(0.2)  delta = z @ A @ B }
    compose add
  } as low gated by each
}
"""


@pytest.mark.parametrize(
    "kind", ["t5", "bart", "whisper", "distilbert_head", "albert_head", "opt", "vit_head", "gpt2", "llama"]
)
def test_what_is_seen_does_not_depend_on_the_lowering(kind):
    found = []
    for lowering in (True, False):
        model = tiny.build(kind)
        unipelt.apply(model, unipelt.parse(SPEC), seed=0, lowering=lowering)
        with torch.no_grad(), unipelt.watch(model) as seen:
            model(**tiny.batch(kind))
        found.append(seen.to_json())
    assert {e["row"] for e in found[0]} - {"head"} == {"prefix", "low"}  # a head that is trained along
    stacks = {e["site"].split(".")[0] for e in found[0]} & {"encoder", "decoder"}
    assert stacks == ({"encoder", "decoder"} if kind in tiny.ENCODER_DECODERS else set())
    for a, b in zip(*found, strict=True):
        assert math.isclose(a["edit"], b["edit"], rel_tol=1e-4)
        for label, wanted in b["gates"].items():
            assert 0 < wanted["mean"] < 1
            assert all(math.isclose(a["gates"][label][k], v, rel_tol=1e-3, abs_tol=1e-5) for k, v in wanted.items())
