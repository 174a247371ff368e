"""How tensors start: what a check and a plan let pass is drawn or computed, and what cannot be is a mistake before there is a model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from small import INNER, WIDTH, inputs, model, output, randomise

import unipelt
from unipelt.runtime.registry import record


def text(site: str, form: str, compose: str = "h + delta", gate: str = "") -> str:
    row = f"modify {site} insert parallel form {{ {form} }} compose {compose}"
    return f"method m {{ use {{ {row} }} {gate} }}" if gate else f"method m {{ {row} }}"


def started(spec: str, kind: str = "bert", seed: int = 0) -> tuple[torch.nn.Module, dict[str, torch.Tensor]]:
    """The model, and what the tensors start as in its first layer, by their own names."""
    m = model(kind)
    unipelt.apply(m, unipelt.parse(spec), allow_future=True, seed=seed)
    output(m, **inputs())
    return m, {
        n.rsplit(".", 1)[-1]: t.detach()
        for n, t in record(m, "default").values().items()
        if ".0." in n or "layer." not in n
    }


# ---------------------------------------------------------------- exact starts


@pytest.mark.parametrize("per", ["", " per layer", " per model"])
def test_a_tensor_starts_as_another_does(per: str, tmp_path: Path) -> None:
    spec = text(
        "attn.q",
        f"frozen P0: [d_in, 2] ~ normal(1){per}  P: [d_in, 2] = P0  B: [2, d_out] ~ normal(1)  delta = z @ P @ B - z @ P0 @ B",
    )
    m, found = started(spec)
    assert torch.equal(found["P"], found["P0"]) and found["P0"].abs().sum() > 1
    assert torch.allclose(output(m), output(model("bert")), atol=1e-4)  # so that the edit is the identity
    randomise(m)
    unipelt.save(m, tmp_path / "a")
    again = model("bert")
    unipelt.attach(again, tmp_path / "a")
    assert torch.equal(output(again), output(m))


def test_a_start_reads_the_lines_before_it() -> None:
    spec = text("ffn.down", "n = 2 * 3  u = norm(W, 1) / n  A: [d_in] ~ normal(1)  v = A * u  m: [d_in] = v + u * sqrt(width(z))  delta = (z * m) @ W",
                "{ s: [d_out] = norm(W, 0) + bias  c: [d_out] = s / 2  out = h + delta * c }")  # fmt: skip
    m, found = started(spec)
    host = m.get_submodule("encoder.layer.0.output.dense")
    u = host.weight.norm(dim=0) / 6
    assert torch.allclose(found["m"], found["A"] * u + u * INNER**0.5, atol=1e-6)
    assert torch.allclose(found["c"], (host.weight.norm(dim=1) + host.bias) / 2, atol=1e-6)


def test_a_start_in_a_gate_and_at_the_heads() -> None:
    gate = "gated by { a: [d_in] ~ normal(1)  w: [d_in] = a * 2  g = sigmoid(z @ w) }"
    _, found = started(text("attn.q", "a: [d_out] ~ normal(1)  b: [d_out] = a  delta = b", gate=gate))
    assert torch.equal(
        found["w"] if "w" in found else found["gate.w"],
        2 * next(t for n, t in found.items() if n.endswith("a") and len(t) == WIDTH and not torch.equal(t, found["b"])),
    )
    m, found = started(
        text(
            "attn.heads",
            "frozen E: [3, d_model] ~ normal(1) per layer  K: [3, d_kv] = attn.k(E) per layer  delta = softmax(q @ heads(K).T * scale) @ heads(K)",
        )
    )
    key = m.get_submodule("encoder.layer.0.attention.self.key")
    assert torch.allclose(found["K"], key(found["E"]), atol=1e-5)
    _, found = started(
        text(
            "attn.heads",
            "P0: [2, d_head] ~ normal(1) per head  P: [2, d_head] = P0  delta = softmax(q @ P.T * scale) @ P",
        )
    )
    assert torch.equal(found["P"], found["P0"]) and found["P"].shape == (4, 2, WIDTH // 4)


@pytest.mark.parametrize(("site", "form", "code"), [
    ("ffn", "b: [] = chance  delta = z * b", "E0370"),
    ("attn.q", "b: [d_out] = norm(W, 0) * chance  delta = b", "E0370"),
    ("ffn", "b: [d_out] = mean(z, tokens)  delta = b", "E0344"),
    ("ffn", "frozen a: [d_out] ~ normal(1)  b: [d_out] = a per model  delta = b", "E0367"),
    ("attn.q", "u = norm(W, 0)  b: [d_out] = u per kind  delta = b", "E0367"),
    ("ffn", "b: [d_out] ~ identity  delta = z * b", "E0371"), ("ffn", "b: [] ~ orthogonal  delta = z * b", "E0371"),
    ("ffn", "b: [d_out] ~ sampled_tokens  delta = z * b", "E0371"), ("ffn", 'b: [d_out] ~ tokens("a")  delta = z * b', "E0371"),
    ("ffn", "b: [d_out] ~ normal(0 - 1)  delta = b", "E0372"), ("ffn", "b: [d_out] ~ normal(1, 0 - 1)  delta = b", "E0372"),
    ("ffn", "b: [d_out] ~ uniform(1, 0)  delta = b", "E0372"), ("ffn", "b: [d_out] ~ torch_linear(0)  delta = b", "E0372"),
    ("ffn", "b: [d_out] ~ truncated_normal(0)  delta = b", "E0372"),
])  # fmt: skip
def test_a_start_that_cannot_be_is_a_mistake_before_there_is_a_model(site: str, form: str, code: str) -> None:
    with pytest.raises(unipelt.PeltError) as caught:
        unipelt.parse(text(site, form))
    assert [d.code for d in caught.value.diagnostics] == [code]


@pytest.mark.parametrize(
    "form", ["b: [d_out] ~ normal(scale)  delta = q * b", "b: [d_out] ~ zeros lr scale  delta = q * b"]
)
def test_a_number_that_only_the_forward_pass_knows(form: str) -> None:
    with pytest.raises(unipelt.PeltError) as caught:
        unipelt.parse(text("attn.heads", form))
    assert [d.code for d in caught.value.diagnostics] == ["E0373"]


# ---------------------------------------------------------------- draws


@pytest.mark.parametrize("drawn", ["zeros", "ones", "constant(2)", "normal(0.1)", "normal(1, 0)", "truncated_normal(0.1)", "uniform(0, 1)", "kaiming_uniform(1)",
                                   "xavier_uniform", "xavier_normal", "torch_linear(4)", "orthogonal", "identity", "sampled_tokens"])  # fmt: skip
@pytest.mark.parametrize("sizes", ["", "4", "4, d_model", "2, 4, d_model", "2, 2, 4, d_model"])
def test_every_distribution_at_every_number_of_sizes(drawn: str, sizes: str) -> None:
    """It is drawn, or it is a mistake of the check."""
    try:
        method = unipelt.parse(text("ffn", f"M: [{sizes}] ~ {drawn}  delta = z"))
    except unipelt.PeltError as e:
        assert [d.code for d in e.diagnostics] == ["E0371"] and sizes in ("", "4")
        return
    m = model("bert")
    unipelt.apply(m, method)
    found = next(iter(unipelt.state_dict(m).values()))
    assert found.isfinite().all() and found.dim() == len([s for s in sizes.split(",") if s])


@pytest.mark.parametrize("per", ["", " per n"])
def test_each_matrix_of_a_stack_is_one(per: str) -> None:
    _, found = started(
        text("ffn", f"axis n = 2  M: [4, 3, 3] ~ identity{per}  Q: [4, 5, 3] ~ orthogonal{per}  delta = z")
    )
    eye = torch.eye(3)
    assert torch.equal(found["M"], eye.expand(found["M"].shape))
    Q = found["Q"]
    assert torch.allclose(Q.transpose(-1, -2) @ Q, eye.expand(*Q.shape[:-2], 3, 3), atol=1e-5)
    assert not torch.allclose(Q.reshape(-1, 5, 3)[0], Q.reshape(-1, 5, 3)[1])


# ---------------------------------------------------------------- numbers


@pytest.mark.parametrize(
    "number",
    ["(0 - 1) ** 0.5", "(0 - 2.5) ** 1.5", "ceil((0 - 2) ** 0.5)", "1 / ((0 - 1) ** 0.5)", "(0 - 8) ** (1 / 3)"],
)
@pytest.mark.parametrize("where", ["compose", "start", "argument", "of an argument"])
def test_a_root_of_a_number_below_zero_is_no_number(number: str, where: str) -> None:
    spec = {"compose": text("ffn", "delta = z", f"h + {number} * delta"), "start": text("ffn", f"b: [d_out] ~ constant({number})  delta = b"),
            "argument": text("ffn", "delta = z", "h + s * delta").replace("method m", f"method m(s: float = {number})"),
            "of an argument": text("ffn", "delta = z", "h + s ** 0.5 * delta").replace("method m", "method m(s: float = 0 - 1)")}[where]  # fmt: skip
    with pytest.raises(unipelt.PeltError) as caught:
        unipelt.plan(model("bert"), unipelt.parse(spec))
    assert [d.code for d in caught.value.diagnostics] == ["E0318"]


@pytest.mark.parametrize("name", ["sigmoid", "silu", "softplus", "tanh", "gelu"])
@pytest.mark.parametrize("at", ["1000", "0 - 1000"])
def test_a_curve_far_out_is_a_number(name: str, at: str) -> None:
    assert unipelt.plan(model("bert"), unipelt.parse(text("ffn", "delta = z", f"h + {name}({at}) * delta"))).edits
