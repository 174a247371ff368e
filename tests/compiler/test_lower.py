"""Lowerings in models: what they cannot do they leave as it is written."""

import small
import torch

import unipelt

PREFIX = """
method prefix {
  modify attn.heads   insert parallel
  form {
    K: [3, d_head] ~ normal(0.5)
    V: [3, d_head] ~ normal(0.5) per group
    scores = q @ K.T * scale
    delta = softmax(scores) @ V
  }
  compose { lam = sigmoid(logsumexp(scores) - log_mass)   out = (1 - lam) * h + lam * delta }
}
"""


def test_a_prefix_for_each_head_where_heads_share_keys():
    """The kernel repeats keys of groups for their heads: keys of heads cannot become rows of it."""
    found = []
    for lowering in (True, False):
        model = small.model("llama")
        unipelt.apply(model, unipelt.parse(PREFIX), seed=0, lowering=lowering)
        found.append(small.output(model))
    torch.testing.assert_close(*found)
