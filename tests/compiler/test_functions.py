"""Every primitive has one type rule and one torch function; what the rule infers is what torch computes."""

from __future__ import annotations

import math
import random

import pytest
import torch

import unipelt
from unipelt.compiler.evaluator import Context, evaluate
from unipelt.compiler.words import FUNCTIONS
from unipelt.compiler.named import Named
from unipelt.language.types.infer import Inference
from unipelt.language.syntax.parser import parse_expression
from unipelt.language.types.initialisers import INITIALISERS
from unipelt.language.types.primitives import DOMAINS, PRIMITIVES
from unipelt.language.sites import TensorType, axis_order
from unipelt.language.sizes import Size
from unipelt.language.syntax.nodes import Expr, Name, walk
from unipelt.language.types.values import IndexType, NumberType, Poison, Value

LENGTHS = {"batch": 9, "token": 13, "head": 4, "group": 2, "expert": 6, "block": 5}
AXES = {"expert": 6, "block": 5}
SIZES = {"4 r": 28, "d_model": 5, "d_head": 3, "d_q": 12, "d_kv": 6, "d_ff": 10, "r": 7, "l": 11}
TENSORS = {
    "x": ("batch token", ("d_model",)),
    "q": ("batch head token", ("d_head",)),
    "mass": ("batch head token", ()),
    "key": ("group", ("l", "d_head")),
    "own": ("head", ("l", "d_head")),
    "M": ("", ("d_model", "r")),
    "N": ("", ("r", "d_model")),
    "v": ("", ("d_model",)),
    "u": ("", ("r",)),
    "s": ("", ()),
    "one": ("", (1, "d_model")),
    "P": ("", ("l", "d_kv")),
    "Q": ("", ("l", "d_q")),
    "each": ("expert", ("d_model", "r")),
    "rows": ("", ("l", "d_model")),
    "each_rows": ("batch", ("l", "d_model")),
    "gates": ("", ("d_model", "4 r")),
    "again": ("", ("r", "4 r")),
    "bias": ("", ("4 r",)),
    "T": ("", ("r", "l", "d_model")),
    "bx": ("batch", ("d_model",)),
    "gh": ("group", ("d_head",)),
    "kernel": ("expert", (3, "d_model", "r")),
    "pairs": ("expert", ("l", 3)),
    "turns": ("expert", ("d_head", "d_head")),
    "blocks": ("block expert", ("d_head", "r")),
    "wide": ("batch token", ("d_ff",)),
}

#: Whole numbers that say where something stands, with what they are less than.
PLACES = {
    "I": ("", ("l",), 5),
    "J": ("", ("r", "l"), 5),
    "K": ("", (2,), 7),
    "of_head": ("head", ("d_head",), 11),
    "P5": ("", ("d_model",), 5),
    "P15": ("", (1, "d_model"), 55),
    "M35": ("", ("d_model", "r"), 35),
    "each_v": ("expert", ("d_model",), 385),
    "key_places": ("", ("l", "d_head"), 165),
}

EXAMPLES = {
    "relu": ("relu(x)", "relu(0 - 2)"),
    "gelu": ("gelu(q)",),
    "gelu_new": ("gelu_new(x)",),
    "silu": ("silu(M)",),
    "tanh": ("tanh(s)", "tanh(1)"),
    "sigmoid": ("sigmoid(mass)", "sigmoid(0.5)"),
    "softplus": ("softplus(x)",),
    "exp": ("exp(key)", "exp(1)"),
    "log": ("log(exp(x))", "log(2)"),
    "sqrt": ("sqrt(exp(v))", "sqrt(5)"),
    "abs": ("abs(x)", "abs(0 - 3)"),
    "sin": ("sin(u)", "sin(1)"),
    "cos": ("cos(u)", "cos(1)"),
    "identity_map": ("identity_map(x)",),
    "stop_gradient": ("stop_gradient(M)",),
    "drop": ("drop(x, 0.5)", "drop(x, 0)"),
    "leaky_relu": ("leaky_relu(x)", "leaky_relu(x, 0.2)", "leaky_relu(0 - 2)", "leaky_relu(0 - 2, 0.5)"),
    "max": (
        "max(2, 7, 3)",
        "max(x)",
        "max(M, 0)",
        "max(each, expert)",
        "max(x, tokens)",
        "max(q, positions)",
        "max(x, tokens, -1)",
    ),
    "min": ("min(2, 7, 3)", "min(x, tokens)", "min(T, -2)"),
    "maximum": ("maximum(x, v)", "maximum(q, key[0 : 1])", "maximum(x, 0)", "maximum(0.5, M)"),
    "layer_norm": ("layer_norm(x)", "layer_norm(rows, 0.1)"),
    "rms_norm": ("rms_norm(x)", "rms_norm(key, 0.1)"),
    "ceil": ("ceil(7 / 2)", "ceil(3)"),
    "floor": ("floor(7 / 2)",),
    "round": ("round(7 / 2)", "round(5 / 2)", "round(0 - 1.2)", "round(x)"),
    "nearest": ("nearest(x, v)", "nearest(T, u)", "nearest(M, bx)", "nearest(q, gh)"),
    "lgamma": ("lgamma(exp(x))", "lgamma(2.5)"),
    "digamma": ("digamma(exp(x))", "digamma(2.5)"),
    "divides": ("divides(2, 6)", "divides(4, 6)"),
    "mean": (
        "mean(x)",
        "mean(M, 0)",
        "mean(x, tokens)",
        "mean(x, positions)",
        "mean(each, expert)",
        "mean(q, head)",
        "mean(T, 1)",
    ),
    "sum": (
        "sum(x)",
        "sum(M, 0)",
        "sum(each, expert)",
        "sum(x, positions)",
        "sum(x, tokens)",
        "sum(T, -2)",
        "sum(T, -3)",
    ),
    "norm": ("norm(x)", "norm(M, 0)", "norm(M, 1)", "norm(T, -2)"),
    "logsumexp": ("logsumexp(x)", "logsumexp(q, head)"),
    "softmax": ("softmax(x)", "softmax(each, expert)", "softmax(M, 0)"),
    "running_mean": ("running_mean(x)", "running_mean(q)"),
    "first": ("first(x, positions)", "first(q, tokens)"),
    "last": ("last(x, tokens)", "last(x, positions)"),
    "heads": ("heads(P)", "heads(Q)"),
    "concat": ("concat(x, u)", "concat(key, own)", "concat(v, u, x)", "concat(x, bx)"),
    "flip": ("flip(M)", "flip(key)"),
    "scatter": (
        "scatter(x, P5, d_model)",
        "scatter(rows[0 : 1, :], P15, l, d_model)",
        "scatter(exp(M), M35, d_model, r)",
        "scatter(v, each_v, r, l, d_model)",
        "scatter(each, M35, r, d_model)",
        "scatter(q, of_head, l)",
        "scatter(rows, I, 2 * l)",
        "scatter(exp(rows[:, 0 : 1]), I, l)",
        "scatter(key, key_places, 3, l, d_model)",
    ),
    "top_indices": ("top_indices(M, 3)", "top_indices(each, r)", "top_indices(v, 5)"),
    "attention": ("attention(x, x, x @ M)", "attention(q, q, x)", "attention(x @ each, x @ M, x)"),
    "conv": ("conv(x, rows)", "conv(q, key)", "conv(x, T[0 : 5, :, :].T)", "conv(x, kernel)"),
    "conv2d": (
        "conv2d(x, T)",
        "conv2d(x @ M, kernel)",
        "conv2d(x @ rows.T, scatter(key, key_places, 3, 1, l, d_model))",
    ),
    "idwt2": ("idwt2(rows[0 : 10, 1 : 3])",),
    "idct2": ("idct2(M)", "idct2(T)", "idct2(each)"),
    "givens": (
        "givens(x, v[: d_model - 1])",
        "givens(T, T[: d_model - 1, : 2, : 2])",
        "givens(q, gh[: d_head - 1])",
        "givens(rows, bx[: d_model - 1])",
    ),
    "nearest_indices": (
        "nearest_indices(v, r)",
        "nearest_indices(each, 4)",
        "nearest_indices(M, u, d_model, 3)",
        "nearest_indices(each, M, r, l)",
    ),
    "ifft2": ("ifft2(M)", "ifft2(T)", "ifft2(each)"),
    "lstm": ("lstm(rows, gates, again, bias)", "lstm(flip(each_rows), gates, again, bias)"),
    "prepend": ("prepend(rows, x)", "prepend(rows, x, 1)", "prepend(each_rows, x)"),
    "append": ("append(rows, x)", "append(each_rows, x)"),
    "fill": ("fill(rows, x)", "fill(each_rows, x)"),
    "split": ("split(wide, block)", "split(rows, block)", "split(join(blocks, expert), expert)"),
    "join": ("join(blocks, block)", "join(split(wide, block), block)", "join(blocks.T, expert)"),
    "roll": ("roll(x, 2)", "roll(rows, r - 1, 0)", "roll(each, -1, -2)"),
    "kron": ("kron(M, N)", "kron(v, u)", "kron(each, key)", "kron(own, key)", "kron(turns, blocks)"),
    "skew": ("skew(pairs, 3)",),
    "cayley": ("cayley(turns)", "cayley(skew(pairs, 3), 4)"),
    "householder": ("householder(each)", "householder(rows.T)"),
    "circulant": ("circulant(v)", "circulant(split(wide, block))", "circulant(M)"),
    "fft2": ("fft2(M)", "fft2(each)"),
    "orthonormal": ("orthonormal(each.T)", "orthonormal(rows)"),
    "top": ("top(x, 2)", "top(each, r - 3, expert)", "softmax(top(M, 1, 0), 0)"),
    "width": ("width(M)", "width(x) * 2"),
    "svd": (),  # of several results: see `test_decompositions`
    "qr": (),
    "inverse": ("inverse(M @ N)", "inverse(each @ N)"),
    "pinv": ("pinv(M)", "pinv(T)", "pinv(key)"),
    "second_moment": (),  # of what enters a site: see below
    "data_mean": (),
    "mean_gradient": (),  # of a model: see `test_calibration`
}


def types(numeric: bool) -> dict[str, Value]:
    found = {}
    for name, (axes, sizes) in TENSORS.items():
        shape = tuple(Size.of(SIZES[s] if numeric and isinstance(s, str) else s) for s in sizes)
        shape = tuple(Size.of(4) * Size.of("r") if s == Size.of("4 r") else s for s in shape)
        found[name] = Value(TensorType(frozenset(axes.split()), shape))
    for name, (axes, sizes, below) in PLACES.items():
        shape = tuple(Size.of(SIZES[s] if numeric and isinstance(s, str) else s) for s in sizes)
        found[name] = Value(IndexType(frozenset(axes.split()), shape, Size.of(below)))
    return found


def inference(numeric: bool) -> Inference:
    sizes = {n: Size.of(v if numeric else n) for n, v in SIZES.items()}
    return Inference(types(numeric), sizes, axes={n: Size.of(v) for n, v in AXES.items()})


def context(seed: int, marks: bool = False) -> Context:
    g = torch.Generator().manual_seed(seed)
    names = {}
    for name, (axes, sizes) in TENSORS.items():
        order = tuple(sorted(axes.split(), key=axis_order))
        shape = [LENGTHS[a] for a in order] + [SIZES[s] if isinstance(s, str) else s for s in sizes]
        names[name] = Named(torch.randn(shape, generator=g, dtype=torch.float64), order)
    for name, (axes, sizes, below) in PLACES.items():
        order = tuple(sorted(axes.split(), key=axis_order))
        shape = [LENGTHS[a] for a in order] + [SIZES[s] if isinstance(s, str) else s for s in sizes]
        names[name] = Named(torch.randint(below, shape, generator=g), order)
    mask = torch.ones(LENGTHS["batch"], LENGTHS["token"])
    mask[2, 5:] = 0
    mask[4, :3] = 0
    shape = (LENGTHS["batch"], LENGTHS["token"])
    if marks:  # of pseudo-tokens; else the places of rows
        places = torch.randint(SIZES["l"] + 1, shape, generator=g)
    else:
        places = torch.rand(shape, generator=g).argsort(-1)[:, : SIZES["l"]]
    grid = torch.randperm(LENGTHS["token"], generator=g)[:12].view(3, 4)
    return Context(names, SIZES, mask=mask, places=places, axes=AXES, grid=grid)


def agree(e: Expr, seed: int = 0) -> str:
    """Infers with symbols and with numbers, computes, and compares; what went wrong in words, or nothing."""
    symbolic, numeric = inference(False), inference(True)
    s, n = symbolic.infer(e).type, numeric.infer(e).type
    if symbolic.problems or any(d.code in ("E0338", "E0339") for d in numeric.problems):
        return "refused"  # that a size splits into so many pieces may be known by its number alone
    assert not numeric.problems and not isinstance(s, Poison)
    value = evaluate(e, context(seed, marks=any(n == Name("fill") for n in walk(e))))
    if isinstance(s, NumberType):
        assert isinstance(n, NumberType) and not isinstance(value, (Named, str))
        if n.value is not None:
            assert value == pytest.approx(n.value), "a constant is folded to what is computed"
        return ""
    assert isinstance(s, (TensorType, IndexType)) and type(n) is type(s) and isinstance(value, Named)
    assert isinstance(n, (TensorType, IndexType)) and value.data.is_floating_point() == isinstance(s, TensorType)
    if isinstance(n, IndexType):
        assert 0 <= int(value.data.min()) and int(value.data.max()) < n.below.number
    assert set(value.axes) == s.axes == n.axes and len(value.axes) == len(s.axes)
    assert value.axes == tuple(sorted(value.axes, key=axis_order)), "axes lie in their order"
    assert [value.data.shape[i] for i in range(len(value.axes))] == [LENGTHS[a] for a in value.axes]
    expected = [x.bind(SIZES).number for x in s.sizes]
    assert list(value.sizes) == expected == [x.number for x in n.sizes]
    return ""


def test_the_two_tables_have_the_same_names() -> None:
    assert set(PRIMITIVES) == set(FUNCTIONS) and len(PRIMITIVES) > 30
    assert all(p.name == n and p.doc and p.arity[0] <= p.arity[1] for n, p in PRIMITIVES.items())
    assert not set(PRIMITIVES) & set(DOMAINS)


def test_every_primitive_has_examples() -> None:
    between = {"gradient", "among"}  # words of `after step`, which are held by the tests of steps
    assert set(EXAMPLES) == set(PRIMITIVES) - between


@pytest.mark.parametrize("text", [t for ts in EXAMPLES.values() for t in ts])
def test_a_primitive_computes_what_its_rule_says(text: str) -> None:
    assert agree(parse_expression(text)) == ""


@pytest.mark.parametrize(
    "text",
    [
        "x @ x",
        "x @ M @ N",
        "q @ key.T",
        "q @ own.T",
        "key @ q",
        "key + own",
        "gh * q",
        "mass * q",
        "s * x",
        "one + rows",
        "x * bx",
        "x @ each @ u",
        "T @ v",
        "x @ M @ T",
        "(x > 0) * x",
        "x ** 2",
        "2 / exp(x)",
        "rows[2 : 5, 1 : 3]",
        "-T[-3 :]",
        "r / 7 + l",
        "v[I]",
        "rows[2 : 5, J]",
        "each[I, : 2]",
        "T[:, of_head]",
        "M[J, K]",
        "x[I] @ rows",
        "bx[J]",
        "T[I]",
    ],
)
def test_operators_compute_what_is_inferred(text: str) -> None:
    assert agree(parse_expression(text)) == ""


@pytest.mark.parametrize("name", [n for n, p in PRIMITIVES.items() if p.elementwise])
def test_an_activation_is_elementwise(name: str) -> None:
    c = context(3)
    f = parse_expression(f"{name}(exp(x))")
    whole = evaluate(f, c)
    c.names["x"] = Named(c.names["x"].data[:1, :1], ("batch", "token"))  # type: ignore[union-attr]
    part = evaluate(f, c)
    assert isinstance(whole, Named) and isinstance(part, Named)
    assert torch.allclose(whole.data[:1, :1], part.data, rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    "text",
    [
        "M @ M",
        "mean(x, head)",
        "x + u",
        "x @ s",
        "u @ v",
        "heads(M)",
        "mean(v, tokens)",
        "sum(s)",
        "mean(M, 2)",
        "norm(M, 2)",
        "concat(x, s)",
        "concat(M, N)",
        "prepend(v, x)",
        "prepend(P, x)",
        "prepend(rows, x, 0 - 1)",
        "prepend(rows, x, 0.5)",
        "prepend(rows, v)",
        "append(P, x)",
        "append(key, x)",
        "fill(v, x)",
        "fill(x, x)",
        "I + v",
        "-I",
        "I > 2",
        "tanh(I)",
        "drop(I, 0.5)",
        "concat(I, I)",
        "sum(I)",
        "I.T",
        "v @ I",
        "I[0 : 2]",
        "width(I)",
        "key[of_head]",
        "nearest_indices(v)",
        "nearest_indices(v, u, 3)",
        "nearest_indices(x, 3)",
        "nearest_indices(v, 0.5)",
        "nearest_indices(2, 3)",
        "nearest_indices(v, u, 3, 4)",
        "nearest(x, M)",
        "nearest(2, v)",
        "nearest(x, 2)",
        "givens(x, v)",
        "givens(s, v)",
        "givens(x, 2)",
        "givens(x, T)",
        "idct2(v)",
        "scatter(u, I, l)",
        "scatter(v, v, l)",
        "scatter(2, I, l)",
        "scatter(rows[0 : 1, :], I, l)",
        "top_indices(x, 2)",
        "top_indices(M, 0.5)",
        "top_indices(v, d_model + 1)",
        "top_indices(s, 1)",
        "attention(x, v, x)",
        "attention(x, x @ M, x)",
        "attention(x, x, 2)",
        "attention(x, rows, rows)",
        "conv(v, rows)",
        "conv(x, v)",
        "conv(x, M)",
        "conv(x, x)",
        "conv(x, 2)",
        "ifft2(v)",
        "idwt2(v)",
        "idwt2(rows[0 : 10, 0 : 3])",
        "ifft2(x)",
        "flip(v)",
        "flip(2)",
        "lstm(rows, M, again, bias)",
        "lstm(rows, gates, M, bias)",
        "lstm(rows, gates, again, u)",
        "lstm(v, gates, again, bias)",
        "lstm(rows, gates, again, 2)",
        "lstm(rows, each, again, bias)",
        "softmax(s)",
        "running_mean(v)",
        "first(v, positions)",
        "sum(M, expert)",
        "divides(M, 2)",
        "max(M, 2)",
        "max(3)",
        "max(2, M)",
        "max(s)",
        "maximum(2, 3)",
        "maximum(x, u)",
        "maximum(x, tokens)",
        "leaky_relu(x, x)",
        "layer_norm(s)",
        "layer_norm(x, v)",
        "rms_norm(2)",
        "householder(v)",
        "circulant(s)",
        "fft2(v)",
        "width(s)",
        "drop(x, M)",
        "split(x, token)",
        "split(s, block)",
        "split(r, block)",
        "split(blocks @ M.T, block)",
        "join(x, block)",
        "join(x, batch)",
        "roll(x, M)",
        "roll(x, 0.5)",
        "roll(v, 1, 1)",
        "kron(M, v)",
        "kron(T, T)",
        "kron(M, 2)",
        "skew(pairs, 4)",
        "skew(pairs, M)",
        "cayley(M)",
        "cayley(v)",
        "cayley(turns, 0)",
        "orthonormal(v)",
        "top(x, 0)",
        "top(x, M)",
        "top(v, 1, block)",
        "top(x, 1, tokens)",
        "top(s, 1)",
        "T[0 : 2, 0 : 1, :, :]",
    ],
)
def test_what_torch_cannot_do_is_refused_before(text: str) -> None:
    assert agree(parse_expression(text)) == "refused"


# ---------------------------------------------------------------- shapes and small matrices, beside other code


def value_of(text: str, **names: Named) -> Named:
    found = evaluate(parse_expression(text), Context(dict(names), {}, axes=AXES))
    assert isinstance(found, Named)
    return found


def draws(*shape: int, seed: int = 5) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_split_numbers_blocks_before_places_and_join_undoes_it() -> None:
    x = draws(2, 3, 10)
    pieces = value_of("split(x, block)", x=Named(x, ("batch", "token")))
    assert pieces.axes == ("batch", "block", "token") and pieces.sizes == (2,)
    for i in range(5):
        assert torch.equal(pieces.data[:, i], x[:, :, 2 * i : 2 * i + 2])
    assert torch.equal(value_of("join(y, block)", y=pieces).data, x)


def test_blocks_of_a_weight_are_the_diagonal_blocks_of_a_matrix() -> None:
    W, R = draws(10, 4), draws(5, 2, 2)
    out = value_of("join(split(W.T, block) @ R, block).T", W=Named(W), R=Named(R, ("block",)))
    assert torch.allclose(out.data.T, W.T @ torch.block_diag(*R))


def test_kron_is_that_of_torch() -> None:
    a, b = draws(3, 4), draws(2, 5, seed=6)
    assert torch.equal(value_of("kron(a, b)", a=Named(a), b=Named(b)).data, torch.kron(a, b))
    assert torch.equal(value_of("kron(a, b)", a=Named(a[0]), b=Named(b[0])).data, torch.kron(a[0], b[0]))
    terms = value_of("kron(a, b)", a=Named(draws(6, 3, 4), ("expert",)), b=Named(b))
    assert torch.equal(terms.data[4], torch.kron(draws(6, 3, 4)[4], b))


def test_a_skew_matrix_is_filled_row_by_row_above_the_diagonal() -> None:
    found = value_of("skew(s, 4)", s=Named(torch.arange(1.0, 7.0))).data
    assert found.tolist() == [[0, 1, 2, 3], [-1, 0, 4, 5], [-2, -4, 0, 6], [-3, -5, -6, 0]]


def test_cayley_is_a_rotation_and_its_series_comes_to_it() -> None:
    S = draws(4, 4) * 0.05
    S, eye = S - S.T, torch.eye(4, dtype=torch.float64)
    R = value_of("cayley(S)", S=Named(S)).data
    assert torch.allclose(R, (eye + S) @ torch.linalg.inv(eye - S)) and torch.allclose(R @ R.T, eye)
    assert torch.allclose(value_of("cayley(S, 2)", S=Named(S)).data, eye + 2 * S + 2 * S @ S)
    assert torch.allclose(value_of("cayley(S, 30)", S=Named(S)).data, R)
    half = value_of("cayley(S)", S=Named(S.bfloat16())).data
    assert half.dtype == torch.bfloat16 and torch.allclose(half.double(), R, atol=0.02)


def test_orthonormal_columns_are_those_of_gram_and_schmidt() -> None:
    A = draws(6, 3)
    Q = value_of("orthonormal(A)", A=Named(A)).data
    by_hand: list[torch.Tensor] = []
    for column in A.T:
        for q in by_hand:
            column = column - (column @ q) * q
        by_hand.append(column / column.norm())
    assert torch.allclose(Q, torch.stack(by_hand, 1))
    assert torch.allclose(value_of("orthonormal(A)", A=Named(Q)).data, Q)


def test_householder_multiplies_reflections_from_left_to_right() -> None:
    V, eye = draws(5, 3), torch.eye(5, dtype=torch.float64)
    H = [eye - 2 * torch.outer(v, v) / (v @ v) for v in V.T]
    assert torch.allclose(value_of("householder(V)", V=Named(V)).data, H[0] @ H[1] @ H[2])
    zero = torch.zeros(5, 1, dtype=torch.float64, requires_grad=True)
    still = value_of("householder(V)", V=Named(zero)).data
    still.sum().backward()
    assert torch.equal(still, eye) and zero.grad is not None and bool(zero.grad.isfinite().all())


def test_a_circulant_matrix_is_a_circular_convolution() -> None:
    c, z = draws(6), draws(6, seed=8)
    out = value_of("z @ circulant(c).T", z=Named(z), c=Named(c)).data
    assert torch.allclose(out, torch.fft.ifft(torch.fft.fft(z) * torch.fft.fft(c)).real)
    assert torch.equal(value_of("circulant(c)", c=Named(c)).data[:, 2], c.roll(2))


def test_fourier_transforms_are_the_real_parts_of_sums_of_cosines() -> None:
    X = draws(3, 4)
    wanted = torch.zeros(3, 4, dtype=torch.float64)
    for p in range(3):
        for q in range(4):
            for i in range(3):
                for j in range(4):
                    wanted[p, q] += X[i, j] * math.cos(2 * math.pi * (p * i / 3 + q * j / 4))
    assert torch.allclose(value_of("fft2(X)", X=Named(X)).data, wanted)
    assert torch.allclose(value_of("ifft2(X)", X=Named(X)).data, wanted / 12)


def test_the_cosine_transform_is_that_of_sums_of_cosines_and_keeps_lengths() -> None:
    for sizes in ((3, 4), (1, 5)):
        X = draws(*sizes)
        bases = []
        for n in sizes:
            k, p = torch.arange(n, dtype=torch.float64)[:, None], torch.arange(n, dtype=torch.float64)
            bases.append(torch.cos(math.pi * k * (2 * p + 1) / (2 * n)) * ((2 - (k == 0).double()) / n).sqrt())
            assert torch.allclose(bases[-1] @ bases[-1].T, torch.eye(n, dtype=torch.float64))
        wanted = bases[0].T @ X @ bases[1]
        assert torch.allclose(value_of("idct2(X)", X=Named(X)).data, wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("n", [2, 5, 6, 8])
def test_givens_rotates_pairs_along_a_tree(n: int) -> None:
    """By a rotation [n, n] for each pair, one after another; what no angle rotates stays as it is, and lengths do."""
    angles, z = draws(n - 1), draws(3, n, seed=2)
    wanted, used, step, left = z.clone(), 0, 1, n
    while left > 1:
        for pair in range(left // 2):
            i, j, (c, s) = 2 * pair * step, (2 * pair + 1) * step, (angles[used].cos(), angles[used].sin())
            R = torch.eye(n, dtype=torch.float64)
            R[i, i], R[i, j], R[j, i], R[j, j] = c, s, -s, c
            wanted, used = wanted @ R, used + 1
        step, left = 2 * step, (left + 1) // 2
    assert used == n - 1
    out = value_of("givens(z, t)", z=Named(z), t=Named(angles)).data
    assert torch.allclose(out, wanted) and torch.allclose(out.norm(dim=-1), z.norm(dim=-1))
    blocks = torch.stack([angles.cos(), angles.sin(), -angles.sin(), angles.cos()], -1).reshape(-1, 2, 2)
    assert torch.allclose(value_of("givens(z, t)", z=Named(z), t=Named(blocks)).data, wanted)
    assert torch.equal(value_of("givens(z, t)", z=Named(z), t=Named(0 * angles)).data, z)
    each = draws(3, n - 1, seed=4)  # angles of their own along an axis
    apart = torch.stack([value_of("givens(z, t)", z=Named(z[i]), t=Named(each[i])).data for i in range(3)])
    assert torch.equal(value_of("givens(z, t)", z=Named(z, ("expert",)), t=Named(each, ("expert",))).data, apart)


def test_nearest_is_one_of_the_numbers_and_learns_them() -> None:
    x, t = draws(4, 6), draws(5, seed=2).requires_grad_()
    out = value_of("nearest(x, t)", x=Named(x), t=Named(t)).data
    which = (x[..., None] - t.detach()).abs().argmin(-1)
    assert torch.equal(out, t[which])
    out.sum().backward()
    assert t.grad is not None and torch.equal(t.grad, which.flatten().bincount(minlength=5).double())
    half = value_of("nearest(x, t)", x=Named(torch.tensor([0.5, 1.5])), t=Named(torch.tensor([1.0, 0.0, 2.0]))).data
    assert half.tolist() == [0.0, 1.0], "of two that are as near the smaller"
    each = Named(torch.stack([draws(5, seed=s) for s in range(3)]), ("expert",))
    apart = torch.stack([value_of("nearest(x, t)", x=Named(x), t=Named(row)).data for row in each.data])
    assert torch.equal(value_of("nearest(x, t)", x=Named(x), t=each).data, apart)
    one = value_of("nearest(x, t)", x=Named(x), t=Named(torch.tensor([3.0]))).data
    assert torch.equal(one, torch.full((4, 6), 3.0))


def test_nearest_indices_are_the_nearest_ones_in_whole_numbers() -> None:
    a, b = torch.tensor([-3.0, 0.4, 1.6, 9.0, float("nan")]), torch.tensor([0.0, 2.2, 5.0, 0.6, 1.0])
    assert value_of("nearest_indices(a, 4)", a=Named(a)).data.tolist() == [0, 0, 2, 3, 0]
    assert value_of("nearest_indices(a, b, 4, 3)", a=Named(a), b=Named(b)).data.tolist() == [0, 2, 8, 10, 1]
    far = value_of(
        "nearest_indices(a, b, 20000, 20000)", a=Named(torch.tensor([19999.0])), b=Named(torch.tensor([19999.0]))
    )
    assert far.data.tolist() == [20000 * 20000 - 1], "counted in whole numbers, of which floats have too few"


def test_the_largest_of_the_tokens_is_that_of_real_ones() -> None:
    x = draws(2, 4, 3)
    mask = torch.tensor([[1, 1, 0, 0], [0, 1, 1, 1]])
    for word, pick in (("max", torch.amax), ("min", torch.amin)):
        found = evaluate(
            parse_expression(f"{word}(x, tokens)"), Context({"x": Named(x, ("batch", "token"))}, {}, mask=mask)
        )
        assert isinstance(found, Named)
        assert torch.equal(found.data[0], pick(x[0, :2], 0)) and torch.equal(found.data[1], pick(x[1, 1:], 0))


def test_norms_without_weights_are_those_of_torch() -> None:
    x = draws(4, 6)
    assert torch.allclose(value_of("layer_norm(x)", x=Named(x)).data, torch.nn.LayerNorm(6, dtype=torch.float64)(x))
    assert torch.allclose(value_of("rms_norm(x)", x=Named(x)).data, torch.nn.functional.rms_norm(x, (6,), eps=1e-6))
    assert torch.equal(value_of("leaky_relu(x)", x=Named(x)).data, torch.nn.functional.leaky_relu(x))


def test_top_leaves_the_largest_and_no_share_to_the_others() -> None:
    x = torch.tensor([[3.0, 1.0, 2.0, -5.0], [0.0, 9.0, -1.0, 4.0]])
    gone = float("-inf")
    assert value_of("top(x, 2)", x=Named(x)).data.tolist() == [[3, gone, 2, gone], [gone, 9, gone, 4]]
    assert value_of("top(x, 1, 0)", x=Named(x)).data.tolist() == [[3, gone, 2, gone], [gone, 9, gone, 4]]
    assert value_of("top(x, 9)", x=Named(x)).data.tolist() == x.tolist()
    x.requires_grad_()
    (value_of("softmax(top(x, 2))", x=Named(x)).data ** 2).sum().backward()
    assert (
        x.grad is not None
        and x.grad.isfinite().all()
        and bool((x.grad[0, [1, 3]] == 0).all())
        and bool(x.grad[0, 0] != 0)
    )


# ---------------------------------------------------------------- random expressions


ONE = ["relu", "tanh", "softmax", "sum", "mean", "logsumexp", "norm", "heads", "max", "min", "layer_norm", "rms_norm", "circulant",
       "orthonormal", "householder", "fft2", "idct2", "leaky_relu", "round"]  # fmt: skip


def random_expression(rng: random.Random, depth: int) -> str:
    if depth == 0:
        return rng.choice([*TENSORS, *TENSORS, "2", "0.5", "r", "d_model"])

    def sub() -> str:
        return random_expression(rng, rng.randrange(depth))

    return rng.choice(
        [
            lambda: f"({sub()} + {sub()})",
            lambda: f"({sub()} * {sub()})",
            lambda: f"({sub()} - {sub()})",
            lambda: f"({sub()} @ {sub()})",
            lambda: f"({sub()} @ {sub()})",
            lambda: f"({sub()} @ {sub()}.T)",
            lambda: f"{sub()}.T",
            lambda: f"-{sub()}",
            lambda: f"({sub()} > {sub()})",
            lambda: f"{rng.choice(ONE)}({sub()})",
            lambda: f"{rng.choice(['split', 'join'])}({sub()}, {rng.choice(['expert', 'block'])})",
            lambda: f"{rng.choice(['kron', 'maximum', 'nearest'])}({sub()}, {sub()})",
            lambda: f"{rng.choice(['top', 'roll'])}({sub()}, 2)",
            lambda: (
                f"{rng.choice(['sum', 'mean'])}({sub()}, "
                f"{rng.choice(['tokens', 'positions', 'expert', 'head', '0', '1', '-2'])})"
            ),
            lambda: f"{rng.choice(['first', 'last'])}({sub()}, {rng.choice(['tokens', 'positions'])})",
            lambda: f"concat({sub()}, {sub()})",
            lambda: f"{sub()}[{rng.choice(['1 : 3', ': 2', '-2 :', '0 : 1, :'])}]",
            lambda: f"({sub()} if training else {sub()})",
        ]
    )()


@pytest.mark.sampled(2)
@pytest.mark.parametrize("seed", range(8))
def test_random_expressions_have_the_type_that_is_inferred(seed: int) -> None:
    rng = random.Random(seed)
    right = 0
    for _ in range(600):
        text = random_expression(rng, 3)
        try:
            right += agree(parse_expression(text)) == "" and "(" in text
        except AssertionError:
            raise
        except Exception as e:
            raise AssertionError(f"{text}: {type(e).__name__}: {e}") from e
    assert right > 60


def test_initialisers_have_a_draw() -> None:
    from unipelt.compiler.initialise import draw
    from unipelt.compiler.random import Generated
    from unipelt.language.syntax.nodes import Number, String
    from unipelt.language.types.values import Distribution

    for name, spec in INITIALISERS.items():
        many = 3 * 4 if name in ("listed", "values") else spec.arity[0]  # that one has a number for each entry
        args = tuple(String("a") if spec.text else Number(24 + i if spec.whole else 0.5 + i) for i in range(many))
        given = Distribution(name, args), (2,), (3, 4), Generated(0, "t"), lambda d, n, g: torch.ones(n, 4)
        if name.startswith("given"):  # the values come with trained adapters: nothing is drawn in their place
            with pytest.raises(unipelt.PeltError, match="E0568"):
                draw(*given)
            continue
        t = draw(*given)
        assert t.shape == (2, 3, 4) and torch.isfinite(t).all()


# ---------------------------------------------------------------- LSTMs, and rows among the tokens


@pytest.mark.parametrize("layers", [1, 2])
def test_an_lstm_is_that_of_torch(layers: int) -> None:
    """Outputs and gradients of `torch.nn.LSTM`, bidirectional and stacked, with its own weights."""
    torch.manual_seed(3)
    theirs = torch.nn.LSTM(5, 7, num_layers=layers, bidirectional=True, batch_first=True, dtype=torch.float64)
    x = torch.randn(9, 11, 5, dtype=torch.float64)
    weights = dict(theirs.named_parameters())
    out = theirs(x)[0]
    out.square().sum().backward()
    wanted = {n: p.grad.clone() for n, p in weights.items()}
    theirs.zero_grad()
    value = Named(x, ("batch",))
    for i in range(layers):
        names = {"z": value}
        for end, direction in (("", "f"), ("_reverse", "b")):
            names |= {
                f"{direction}W": Named(weights[f"weight_ih_l{i}{end}"].T), f"{direction}U": Named(weights[f"weight_hh_l{i}{end}"].T),
                f"{direction}b": Named(weights[f"bias_ih_l{i}{end}"] + weights[f"bias_hh_l{i}{end}"]),
            }  # fmt: skip
        found = evaluate(
            parse_expression("concat(lstm(z, fW, fU, fb), flip(lstm(flip(z), bW, bU, bb)))"), Context(names, {})
        )
        assert isinstance(found, Named)
        value = found
    assert torch.allclose(value.data, out, atol=1e-12)
    value.data.square().sum().backward()
    for n, p in weights.items():
        assert wanted[n].abs().max() > 1e-3 and torch.allclose(p.grad, wanted[n], atol=1e-10), n


def test_rows_stand_where_they_are_said_to() -> None:
    h, rows = torch.randn(2, 5, 3), torch.randn(2, 3)
    names = {"h": Named(h, ("batch", "token")), "P": Named(rows), "Q": Named(torch.stack([rows, -rows]), ("batch",))}
    places = torch.tensor([[0, 1], [3, 4]])
    for text, other in (("prepend(P, h)", rows), ("append(Q, h)", -rows)):
        out = evaluate(parse_expression(text), Context(names, {}, places=places)).data
        assert torch.equal(out[0], torch.cat([rows, h[0, 2:]])) and torch.equal(out[1], torch.cat([h[1, :3], other]))
    marks = torch.tensor([[0, 2, 0, 1, 2], [0, 0, 0, 0, 1]])
    for text, other in (("fill(P, h)", rows), ("fill(Q, h)", -rows)):
        out = evaluate(parse_expression(text), Context(names, {}, places=marks)).data
        assert torch.equal(out[0], torch.stack([h[0, 0], rows[1], h[0, 2], rows[0], rows[1]]))
        assert torch.equal(out[1], torch.cat([h[1, :4], other[:1]]))


def test_every_word_has_torch_code() -> None:
    from unipelt.compiler.words import WORDS

    assert set(WORDS) == set(FUNCTIONS)


# ---------------------------------------------------------------- decompositions


def several(text: str) -> list[torch.Tensor]:
    """What a function of several results gives, whose sizes and axes are those that are inferred."""
    from unipelt.language.types.values import Several

    e = parse_expression(text)
    inf = inference(True)
    inf.apart = e
    found, values = inf.infer(e).type, evaluate(e, context(0))
    assert not inf.problems and isinstance(found, Several) and isinstance(values, tuple)
    for t, value in zip(found.parts, values, strict=True):
        assert set(value.axes) == t.axes and list(value.sizes) == [s.number for s in t.sizes]
    return [v.data for v in values]


@pytest.mark.parametrize("of", ["M", "N", "again", "each", "own"])
def test_a_matrix_is_taken_apart(of: str) -> None:
    A = context(0).names[of].data  # type: ignore[union-attr]
    U, S, V = several(f"svd({of})")
    one = torch.eye(S.shape[-1], dtype=A.dtype)
    assert torch.allclose((U * S[..., None, :]) @ V.mT, A) and bool((S[..., :-1] >= S[..., 1:]).all())
    assert torch.allclose(U.mT @ U, one.expand(*S.shape, -1)) and torch.allclose(V.mT @ V, one.expand(*S.shape, -1))
    assert bool((U.gather(-2, U.abs().argmax(-2, keepdim=True)) > 0).all())
    Q, R = several(f"qr({of})")
    assert torch.allclose(Q @ R, A) and torch.allclose(Q.mT @ Q, one.expand(*S.shape, -1))
    assert torch.equal(R, R.triu()) and bool((R.diagonal(dim1=-2, dim2=-1) >= 0).all())


def test_inverses_are_those_of_torch() -> None:
    c = context(0)
    M, N = c.names["M"].data, c.names["N"].data  # type: ignore[union-attr]
    inverse, pinv = (evaluate(parse_expression(text), c).data for text in ("inverse(M @ N)", "pinv(M)"))  # type: ignore[union-attr]
    assert torch.allclose(inverse, torch.linalg.inv(M @ N)) and torch.allclose(pinv, M.T @ torch.linalg.inv(M @ M.T))


def test_moments_are_those_of_real_tokens() -> None:
    c = context(0)
    x, mask = c.names["x"].data, c.mask  # type: ignore[union-attr]
    assert mask is not None
    real = [x[i, j] for i in range(x.shape[0]) for j in range(x.shape[1]) if mask[i, j]]
    assert 0 < len(real) < x.shape[0] * x.shape[1]
    second = evaluate(parse_expression("second_moment(x)"), c).data  # type: ignore[union-attr]
    assert torch.allclose(second, sum(torch.outer(t, t) for t in real) / len(real))  # type: ignore[arg-type]
    assert torch.allclose(evaluate(parse_expression("data_mean(x)"), c).data, sum(real) / len(real))  # type: ignore[arg-type,union-attr]


@pytest.mark.parametrize("text", ["svd(v)", "qr(s)", "inverse(M)", "inverse(v)", "pinv(u)", "2 * svd(M)", "svd(M).T", "second_moment(M)",
                                  "second_moment(q)", "data_mean(v)", "mean_gradient(M)", "mean_gradient(x)"])  # fmt: skip
def test_what_cannot_be_taken_apart_or_measured_is_refused(text: str) -> None:
    assert agree(parse_expression(text)) == "refused"
