"""Every primitive has one type rule and one torch function; what the rule infers is what torch computes."""

from __future__ import annotations

import random

import pytest
import torch

from unipelt.compiler.evaluator import Context, evaluate
from unipelt.compiler.functions import FUNCTIONS
from unipelt.compiler.named import Named
from unipelt.language.infer import Inference
from unipelt.language.parser import parse_expression
from unipelt.language.primitives import DOMAINS, INITIALISERS, PRIMITIVES
from unipelt.language.sites import TensorType, axis_order
from unipelt.language.sizes import Size
from unipelt.language.syntax import Expr
from unipelt.language.values import NumberType, Poison, Value

LENGTHS = {"batch": 9, "token": 13, "head": 4, "group": 2, "expert": 6}
SIZES = {"d_model": 5, "d_head": 3, "d_q": 12, "d_kv": 6, "d_ff": 10, "r": 7, "l": 11}
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
    "T": ("", ("r", "l", "d_model")),
    "bx": ("batch", ("d_model",)),
    "gh": ("group", ("d_head",)),
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
    "max": ("max(2, 7, 3)",),
    "min": ("min(2, 7, 3)",),
    "ceil": ("ceil(7 / 2)", "ceil(3)"),
    "floor": ("floor(7 / 2)",),
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
    "prepend": ("prepend(rows, x)",),
    "width": ("width(M)", "width(x) * 2"),
}


def types(numeric: bool) -> dict[str, Value]:
    found = {}
    for name, (axes, sizes) in TENSORS.items():
        shape = tuple(Size.of(SIZES[s] if numeric and isinstance(s, str) else s) for s in sizes)
        found[name] = Value(TensorType(frozenset(axes.split()), shape))
    return found


def inference(numeric: bool) -> Inference:
    sizes = {n: Size.of(v if numeric else n) for n, v in SIZES.items()}
    return Inference(types(numeric), sizes, axes={"expert": Size.of(6)})


def context(seed: int) -> Context:
    g = torch.Generator().manual_seed(seed)
    names = {}
    for name, (axes, sizes) in TENSORS.items():
        order = tuple(sorted(axes.split(), key=axis_order))
        shape = [LENGTHS[a] for a in order] + [SIZES[s] if isinstance(s, str) else s for s in sizes]
        names[name] = Named(torch.randn(shape, generator=g, dtype=torch.float64), order)
    mask = torch.ones(LENGTHS["batch"], LENGTHS["token"])
    mask[2, 5:] = 0
    mask[4, :3] = 0
    return Context(names, SIZES, mask=mask)


def agree(e: Expr, seed: int = 0) -> str:
    """Infers with symbols and with numbers, computes, and compares; what went wrong in words, or nothing."""
    symbolic, numeric = inference(False), inference(True)
    s, n = symbolic.infer(e).type, numeric.infer(e).type
    if symbolic.problems:
        return "refused"
    assert not numeric.problems and not isinstance(s, Poison)
    value = evaluate(e, context(seed))
    if isinstance(s, NumberType):
        assert isinstance(n, NumberType) and not isinstance(value, (Named, str))
        if n.value is not None:
            assert value == pytest.approx(n.value), "a constant is folded to what is computed"
        return ""
    assert isinstance(s, TensorType) and isinstance(n, TensorType) and isinstance(value, Named)
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
    assert set(EXAMPLES) == set(PRIMITIVES)


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
        "mean(x, batch)",
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
        "softmax(s)",
        "running_mean(v)",
        "first(v, positions)",
        "sum(M, expert)",
        "divides(M, 2)",
        "max(M, 2)",
        "width(s)",
        "drop(x, M)",
        "T[0 : 2, 0 : 1, :, :]",
    ],
)
def test_what_torch_cannot_do_is_refused_before(text: str) -> None:
    assert agree(parse_expression(text)) == "refused"


# ---------------------------------------------------------------- random expressions


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
            lambda: f"{rng.choice(['relu', 'tanh', 'softmax', 'sum', 'mean', 'logsumexp', 'norm', 'heads'])}({sub()})",
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
    from unipelt.compiler.initialise import draw, generator
    from unipelt.language.syntax import Number, String
    from unipelt.language.values import Distribution

    for name, spec in INITIALISERS.items():
        args = tuple(String("a") if spec.text else Number(0.5 + i) for i in range(spec.arity[0]))
        t = draw(Distribution(name, args), (2,), (3, 4), generator(0, "t"), lambda text, n, g: torch.ones(n, 4))
        assert t.shape == (2, 3, 4) and torch.isfinite(t).all()
