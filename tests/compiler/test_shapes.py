"""Blocks, Kronecker products and rotations in methods: what is said of them, the code that is written, sizes as numbers."""

from __future__ import annotations

from typing import Any

import pytest
import small
import torch

import unipelt
from unipelt.language.analyse.canonical import difference
from unipelt.language.analyse.merged import merged
from unipelt.language.analyse.verdicts import verdicts
from unipelt.language.loading import parse
from unipelt.language.report.diagnostics import PeltError
from unipelt.language.syntax.printer import to_text
from unipelt.runtime.edits import Edit


def method(form: str, site: str = "attn.q", insert: str = "parallel", compose: str = "h + delta") -> unipelt.Method:
    return parse(
        f"method m(r: int = 4, b: int = 4) {{ modify {site} insert {insert} form {{ {form} }} compose {compose} }}"
    )


def start(form: str, **more: str) -> str:
    return verdicts(method(form, **more))["identity at start"].value


BLOCK = "axis block = d_in / b S: [b * (b - 1) / 2] ~ {} per block "


@pytest.mark.parametrize("compose, form, said", [
    ("delta", BLOCK.format("zeros") + "delta = join(split(z, block) @ cayley(skew(S, b)), block)", "yes"),
    ("delta", BLOCK.format("zeros") + "delta = join(split(z, block) @ cayley(skew(S, b), 5), block)", "yes"),
    ("delta", BLOCK.format("normal(0.1)") + "delta = join(split(z, block) @ cayley(skew(S, b)), block)", "no"),
    ("h + delta", "C: [4, 4] ~ zeros D: [d_in / 4, d_out / 4] ~ normal(0.1) delta = z @ kron(C, D)", "yes"),
    ("h + delta", "C: [4, 4] ~ normal(0.1) D: [d_in / 4, d_out / 4] ~ zeros delta = z @ kron(C, D)", "yes"),
    ("h + delta", "C: [4, 4] ~ normal(0.1) D: [d_in / 4, d_out / 4] ~ normal(0.1) delta = z @ kron(C, D)", "no"),
    ("h + delta", "c: [d_in] ~ zeros delta = z @ circulant(c)", "yes"),
    ("delta", "t: [d_in - 1] ~ zeros delta = givens(z, t)", "yes"),
    ("delta", "t: [d_in - 1] ~ normal(0.3) delta = givens(z, t)", "no"),
    ("h + delta", "t: [d_in - 1] ~ zeros delta = givens(z, t) - z", "yes"),
    ("h + delta", "A: [d_in, r] ~ zeros frozen t: [3] ~ values(-1, 0, 2) delta = z @ round(A) @ A.T", "yes"),
    ("h + delta", "A: [d_in, d_out] ~ zeros frozen t: [3] ~ values(-1, 0.5, 2) delta = z @ nearest(A, t)", "unknown"),
    ("h + delta", "a: [3] ~ ones I = nearest_indices(a, d_in * d_out) c: [3] ~ zeros delta = z @ scatter(c, I, d_in, d_out)", "yes"),
    # a skew matrix between a vector and itself is 0, a rotation and its inverse are the identity
    ("h + delta", "S: [r * (r - 1) / 2] ~ normal(0.3) u: [r] ~ normal(0.3) delta = z * (u @ skew(S, r) @ u)", "unknown"),
    ("delta", "S: [d_in * (d_in - 1) / 2] ~ normal(0.3) R = skew(S, d_in) delta = z @ cayley(R) @ cayley(-R)", "unknown"),
    ("h + delta", "A: [d_in, r] ~ normal(0.3) Q = orthonormal(A) delta = z @ Q @ (Q.T @ Q - Q.T @ Q) @ Q.T", "yes"),
    ("h + delta", "A: [d_in, r] ~ normal(0.3) B: [d_in, r] ~ normal(0.3) Q = orthonormal(A) delta = (z @ B - z @ Q) @ Q.T", "no"),
])  # fmt: skip
def test_what_a_method_starts_as(compose: str, form: str, said: str) -> None:
    """Checked by numbers too, where the answer is no guess."""
    found = method(form, insert="sequential", compose=compose)
    assert verdicts(found)["identity at start"].value == said
    model = small.model("llama", dtype=torch.float64)
    unipelt.apply(model, found)
    same = torch.allclose(small.output(model), small.output(small.model("llama", dtype=torch.float64)), atol=1e-9)
    assert said == "unknown" or same is (said == "yes")


def test_an_edit_that_may_be_affine_after_all_is_not_said_to_be_none() -> None:
    """The rotation by what is read, and its inverse: nothing is left of it."""
    found = method("A: [d_in, 1] ~ normal(0.3) S = skew(z @ A, 2) w: [2] ~ ones "
                   "delta = z * sum(w @ cayley(S) @ cayley(-S))", insert="sequential")  # fmt: skip
    assert verdicts(found)["mergeable"].value == "unknown"


@pytest.mark.parametrize("one, other, equal", [
    ("axis i = 4 delta = join(split(z @ A, i), i) @ B", "delta = z @ A @ B", True),
    ("axis i = 4 axis o = 2 delta = join(2 * join(split(split(z @ A, i), o), o), i) @ B", "delta = 2 * (z @ A @ B)", True),
    ("axis i = 4 delta = sum(split(z @ A, i), i) @ C", "axis k = 4 delta = sum(split(z @ A, k), k) @ C", True),
    ("axis i = 4 delta = sum(split(z @ A, i), i) @ C", "axis i = 4 delta = mean(split(z @ A, i), i) @ C", False),
    ("axis i = 2 axis o = 2 delta = join(join(split(split(z @ A, i), o), i), o) @ B", "delta = z @ A @ B", False),
    ("delta = roll(z @ A, 1) @ B", "delta = roll(z @ A, 2) @ B", False),
    ("delta = z @ kron(K, L)", "delta = z @ kron(L, K)", False),
    ("delta = softmax(top(z @ A, 2)) @ B", "delta = softmax(top(z @ A, 3)) @ B", False),
    ("delta = max(z @ A) * (z @ A @ B)", "delta = min(z @ A) * (z @ A @ B)", False),
])  # fmt: skip
def test_equal_methods_are_told_from_others(one: str, other: str, equal: bool) -> None:
    front = "A: [d_in, 16] ~ normal(0.2) B: [16, d_out] ~ zeros C: [4, d_out] ~ zeros K: [4, 4] ~ zeros L: [d_in / 4, d_out / 4] ~ ones "
    assert (difference(method(front + one), method(front + other)) is None) is equal


def test_the_merged_weight_says_what_its_blocks_are() -> None:
    (found,) = merged(
        method(
            "axis term = 3 C: [4, 4] ~ ones per term D: [d_in / 4, d_out / 4] ~ zeros per term delta = z @ sum(kron(C, D), term)"
        )
    )
    assert to_text(found.weight_expression) == "W + sum(kron(C, D), term)"


MODULES = {
    "blocks": "axis i = b axis o = b A: [d_in / b, r] ~ normal(0.3) per i B: [r, d_out / b] ~ normal(0.3) per o "
              "delta = join(sum(split(split(z, i) @ A, o) @ split(B.T, i).T, i), o)",
    "rotation": "axis block = d_in / b S: [b * (b - 1) / 2] ~ normal(0.3) per block "
                "delta = join(split(W.T, block) @ cayley(skew(S, b)), block).T @ split_of",
    "experts": "axis e = 3 w: [d_in] ~ normal(0.3) per e A: [d_in, d_out] ~ normal(0.3) per e "
               "delta = sum(softmax(top(z @ w, 2, e), e) * (z @ A), e)",
    "matrices": "C: [2, 2] ~ normal(0.3) D: [d_in / 2, d_out / 2] ~ normal(0.3) V: [d_out, 2] ~ normal(0.3) c: [d_out] ~ normal(0.3) "
                "delta = roll(z @ kron(C, D) @ householder(V) @ circulant(c), 1) @ orthonormal(V) @ V.T",
    "planes": "t: [d_in - 1] ~ normal(0.3) M: [d_in - 1, 2, 2] ~ normal(0.3) u: [7] ~ normal(9) c: [7] ~ normal(0.3) "
              "delta = givens(givens(z, t), M) @ idct2(scatter(c, nearest_indices(u, 2 * u, d_in, d_out), d_in, d_out))",
    "rounded": "frozen t: [2, 2] ~ values(-1, 0.5, 0.125, 2) A: [d_in, d_out] ~ normal(2) a: [d_out] ~ normal(0.3) "
               "delta = z @ (nearest(A, sum(t, 0)) + round(A)) * digamma(exp(a)) + lgamma(exp(a)) * sum(nearest(z, sum(t, 1)))",
    "norms": "A: [d_in, r] ~ normal(0.3) B: [r, d_out] ~ normal(0.3) "
             "delta = maximum(layer_norm(z @ A), rms_norm(leaky_relu(z @ A, 0.2), 0.1)) * max(z @ A) * min(z, tokens)[: r] @ B",
}  # fmt: skip
MODULES["rotation"] = MODULES["rotation"].replace("delta = join", "delta = z @ join").replace(" @ split_of", "")


@pytest.mark.parametrize("what", MODULES)
def test_the_text_that_is_written_computes_the_same(what: str) -> None:
    """The recipe, the evaluator and the stand-alone module."""
    found = method(MODULES[what])
    outputs, edits = [], []
    for lowering in (True, False):
        model = small.model("llama", dtype=torch.float64)
        unipelt.apply(model, found, lowering=lowering, allow_future=True)
        small.randomise(model)
        outputs.append(small.output(model))
        edits.append(next(m for m in model.modules() if isinstance(m, Edit)))
    assert torch.allclose(*outputs, atol=1e-10)
    assert all(r is not None for r in edits[0].recipes.known.values())  # type: ignore[union-attr]
    scope: dict[str, Any] = {}
    exec(found.torch_source(), scope)
    sizes = dict(d_in=32, d_out=32, d_model=32, d_q=32)
    code = scope["M"].__init__.__code__
    alone = scope["M"](**{n: sizes[n] for n in code.co_varnames[1 : code.co_argcount]}).double()
    own = edits[0].tensors()
    for n, p in {**dict(alone.named_parameters()), **dict(alone.named_buffers())}.items():
        assert p.shape == own[n].shape
        p.data = own[n].detach().clone()
    h, x = torch.randn(2, 5, 32, dtype=torch.float64), torch.randn(2, 5, 32, dtype=torch.float64)
    W = torch.randn(32, 32, dtype=torch.float64)
    mask = torch.tensor([[1, 1, 1, 0, 0], [0, 1, 1, 1, 1]])
    given = {"h": h, "x": x, "W": W, "mask": mask}
    forward = scope["M"].forward.__code__
    taken = {n: given[n] for n in forward.co_varnames[1 : forward.co_argcount]}
    there = {"x": x, "W": W} if "W" in taken else {"x": x}
    assert torch.allclose(alone(**taken), edits[1](h, there, mask), atol=1e-10)


@pytest.mark.parametrize("form", [
    "A: [max(d_model, d_ff), r] ~ normal(0.3) B: [r, d_out] ~ zeros delta = z / sqrt(d_in) @ A[: d_in] @ B",
    "A: [d_in, r] ~ normal(1 / d_in) B: [r, d_out] ~ zeros delta = z @ A @ B * (d_out / d_in)",
    "A: [d_in + d_out, r] ~ zeros delta = z @ A[d_out :] @ A[-d_out :].T",
    "A: [d_in, d_out] ~ zeros delta = roll(z, d_in / 4) @ A",
    "A: [d_in, d_out] ~ zeros delta = softmax(top(z, d_in / 8)) @ A",
    "axis i = d_in / heads A: [heads, d_out] ~ zeros delta = sum(split(z, i) @ A, i) / (d_model - vocab)",
])  # fmt: skip
def test_sizes_stand_where_numbers_may(form: str) -> None:
    for site in ("attn.q", "ffn.down"):
        model = small.model("bert", dtype=torch.float64)
        unipelt.apply(model, method(form, site))
        small.randomise(model)
        after = small.output(model)
        assert after.isfinite().all() and not torch.allclose(
            after, small.output(small.model("bert", dtype=torch.float64))
        )
        literal = small.model("bert", dtype=torch.float64)
        unipelt.apply(literal, method(form, site), lowering=False)
        small.randomise(literal)
        assert torch.allclose(small.output(literal), after, atol=1e-10)


def test_the_number_of_labels_is_a_number_too() -> None:
    model = small.model("bert_labels", dtype=torch.float64)
    unipelt.apply(model, parse("method m { modify head insert sequential form { b: [labels] ~ zeros delta = roll(b, labels - 1) / sqrt(labels) }"
                               " compose h + delta }"))  # fmt: skip
    small.randomise(model)
    assert not torch.allclose(small.output(model), small.output(small.model("bert_labels", dtype=torch.float64)))


def test_pieces_that_do_not_fit_a_model_are_refused_on_it() -> None:
    found = method("axis i = b A: [d_in / b, d_out / b] ~ zeros per i delta = join(split(z, i) @ A, i)")(b=5)
    with pytest.raises(PeltError) as caught:
        unipelt.plan(small.model("llama"), found)
    assert caught.value.diagnostics[0].code in ("E0338", "E0343")
    with pytest.raises(PeltError) as caught:
        unipelt.plan(
            small.model("llama"), method("axis i = 5 delta = z * sum(sum(split(z, i)), i)", insert="sequential")
        )
    assert caught.value.diagnostics[0].code == "E0338" and "32" in caught.value.diagnostics[0].message


def test_blocks_mix_no_tokens_and_need_no_other_examples() -> None:
    for form in MODULES.values():
        said = verdicts(method(form))
        reads_tokens = "tokens" in form
        assert said["batch-independent"].value == "yes"
        assert (said["causal"].value, said["cache-consistent"].value) == (
            ("no", "no") if reads_tokens else ("yes", "yes")
        )


def test_a_branch_that_the_sizes_decide_against_need_not_fit() -> None:
    """Where the numbers are known only what is chosen must fit them; in the text each branch must fit for sizes in general."""
    text = "A: [d_in, r] ~ zeros c: [min(d_in, d_out)] ~ ones B: [r, d_out] ~ zeros delta = "
    chosen = method(
        text + "z * c[: d_in] @ A @ B if d_in <= d_out else z @ A @ B * c[: d_out]", "attn.q, ffn.up, ffn.down"
    )
    model = small.model("llama", dtype=torch.float64)
    unipelt.apply(model, chosen)
    small.randomise(model)
    seen = {e.site.name: e for e in model.modules() if isinstance(e, Edit) and e.site.layer == 0}
    for name, edit in seen.items():
        t = edit.tensors()
        assert t["c"].shape == (32,)
        x, h = (torch.randn(2, 3, n, dtype=torch.float64) for n in (len(t["A"]), t["B"].shape[1]))
        wanted = h + (x @ t["A"] @ t["B"] * t["c"] if name == "ffn.down" else x * t["c"] @ t["A"] @ t["B"])
        assert torch.allclose(edit(h, {"x": x}), wanted)
    with pytest.raises(PeltError, match="E0312"):
        method(text + "z @ A @ B if d_in <= d_out else z @ B")


def test_nothing_of_a_branch_that_sizes_decide_is_folded(tmp_path) -> None:
    method = unipelt.load("randlora")(r=4, at="[attn.v, ffn.up, ffn.down]", wide=48)
    model, again = (small.model("llama", dtype=torch.float64) for _ in range(2))
    unipelt.apply(model, method)
    small.randomise(model)
    unipelt.save(model, tmp_path)
    unipelt.attach(again, tmp_path)
    assert torch.allclose(small.output(again), small.output(model), rtol=0, atol=1e-9)
