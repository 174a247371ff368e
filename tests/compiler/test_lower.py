"""Lowerings in models: what they cannot do they leave as it is written."""

import pytest
import small
import torch
from names import name

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


def test_lowerings_are_chosen_by_name_and_another_name_is_refused():
    model = small.model("llama")
    with pytest.raises(unipelt.PeltError, match="E0593.*no lowering `quick`"):
        unipelt.apply(model, unipelt.parse(PREFIX), lowering=["rows", "quick"])
    assert not unipelt.adapters(model)


def test_what_is_computed_once_follows_the_tensors_it_is_made_of():
    model = small.model("llama")
    unipelt.apply(model, unipelt.load(name("prefix_tuning_mlp"))(l=2, mid=8))
    written = small.model("llama")
    unipelt.apply(written, unipelt.load(name("prefix_tuning_mlp"))(l=2, mid=8), lowering=False)
    for seed in (1, 2):  # changed in place without a pass between that would say so
        small.randomise(model, seed=seed)
        small.randomise(written, seed=seed)
        torch.testing.assert_close(small.output(model), small.output(written))
    for m in (model, written):  # and by another tensor in its place
        for module in m.modules():
            for key, p in list(module._parameters.items()):
                if key.endswith("W1"):
                    module._parameters[key] = torch.nn.Parameter(torch.full_like(p, 0.1))
    torch.testing.assert_close(small.output(model), small.output(written))
