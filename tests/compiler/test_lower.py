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


GATED = """
method two_gates {
  modify ffn   insert parallel
  form {
    A: [d_in, 3] ~ normal(0.5)   b: [3] ~ normal(0.5)   B: [3, d_out] ~ normal(0.5)
    w: [d_in] ~ normal(0.5)      c: [] ~ normal(0.5)    u: [d_in] ~ normal(0.5)
    g = sigmoid(z @ w + c)
    delta = g * (relu(z @ A + b) @ B) + tanh(z @ u) * g
  }
  compose add
}
"""


def compared(texts: str, change, lowering=True, dtype=torch.float64):
    """Outputs of a method as it is written and by its recipes, each after a pass and a change of the model."""
    found = []
    for on in (False, lowering):
        model = small.model("llama", dtype=dtype).eval()
        unipelt.apply(model, unipelt.parse(texts), seed=0, lowering=on)
        with torch.no_grad():
            small.output(model)
            change(model)
            found.append(small.output(model))
    return found


@pytest.mark.parametrize("lowering", [True, ["joined"], ["joined", "folded"]])
def test_products_of_one_input_are_one_outside_training_too(lowering, monkeypatch):
    """With a bias and without, of a matrix and of a vector whose values multiply what has sizes and what has none."""
    torch.testing.assert_close(*compared(GATED, small.randomise, lowering), rtol=1e-10, atol=1e-10)
    seen = []
    model = small.model("llama", dtype=torch.float64).eval()
    unipelt.apply(model, unipelt.parse(GATED), seed=0, lowering=lowering)
    linear = torch.nn.functional.linear
    monkeypatch.setattr(torch.nn.functional, "linear", lambda x, W, b=None: (seen.append(W.shape), linear(x, W, b))[1])
    small.output(model)
    assert seen.count((5, small.WIDTH)) == small.LAYERS  # A, w and u


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.to(torch.float32),
        lambda m: [setattr(p, "data", p.data * 1.5) for n, p in m.named_parameters() if "unipelt" in n],
        lambda m: [p.copy_(p * 1.5) for n, p in m.named_parameters() if "unipelt" in n],
        lambda m: m.load_state_dict({n: t * 1.5 for n, t in m.state_dict().items()}),
    ],
    ids=["dtype", "other data", "in place", "state"],
)
def test_what_was_found_for_a_pass_is_found_again_where_the_model_changed(change):
    torch.testing.assert_close(*compared(GATED, change), rtol=1e-5, atol=1e-5)


def test_an_edit_may_be_given_other_dtypes_and_dimensions_from_call_to_call():
    """A module may be called by itself, with tokens that it flattens; each call has what the evaluator gives."""
    found = []
    for lowering in (False, True):
        model = small.model("llama", dtype=torch.float64).eval()
        unipelt.apply(model, unipelt.parse(GATED), seed=0, lowering=lowering)
        mlp, x = model.model.layers[1].mlp, torch.randn(2, 5, small.WIDTH, generator=torch.Generator().manual_seed(0))
        edit = mlp.unipelt.adapters["adapter_default"][0]
        with torch.no_grad():
            found.append([edit(h, {"x": h + 1}) for h in (x.double(), x, x.double()[0], x.double(), x[0])])
    for written, made in zip(*found, strict=True):
        assert written.dtype == made.dtype
        torch.testing.assert_close(made, written)
