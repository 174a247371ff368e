"""A row's formula and its picture say the same: the way that is drawn, followed with numbers, gives what the formula gives."""

from __future__ import annotations

import math
import re

import pytest
from names import spec

from unipelt.language.syntax import nodes as S
from unipelt.language.write.composition import composition, result
from unipelt.language.write.diagram import Panel, diagram
from unipelt.language.write.formula import as_latex, lines
from unipelt.language.loading import parse
from unipelt.language.syntax.parser import parse_expression

NUMBERS = {"h": 0.7, "delta": -0.4, "z": 0.9, "g": 0.3, "s": 1.5, "d_head": 4.0, "log_mass": 0.6, "scores": 0.2}
FUNCTIONS = {"tanh": math.tanh, "sigmoid": lambda x: 1 / (1 + math.exp(-x)), "logsumexp": lambda x: x}
SPELT = {"·": "*", "−": "-", "×": "*", "Δ": "delta", "λ": "lam", "σ": "sigmoid"}
#: By what the node says; the last are mixtures, of which the formula alone says all.
SUMS = ["add", "scaled(2.0)", "learned_scale", "h - delta", "h - 2.0 * delta", "delta + h", "h + tanh(delta) * delta", "h + delta * h",
        "h + (delta - h)", "{ k = tanh(delta)  out = h + k * delta }", "{ k = 2.0 * h  out = h + k * delta }"]  # fmt: skip
OTHERS = [
    "replace",
    "2.0 * delta",
    "tanh(delta)",
    "{ k = tanh(delta)  out = k }",
    "rescale",
    "delta * h",
    "h * (1.0 + delta)",
    "h / (2.0 + delta)",
]
MIXED = [
    "share_softmax",
    "2.0 * h + delta",
    "{ k = 2.0 * h  out = k + delta }",
    "(1.0 - delta) * h + delta",
    "h * delta * h",
]
GATES = ["", " gated by token_gate", " gated by { g = 0.3 }"]


def value(e: S.Expr, names: dict[str, float]) -> float:
    match e:
        case S.Number(value=v):
            return float(v)
        case S.Name(id):
            return names[id]
        case S.Negative(v):
            return -value(v, names)
        case S.Binary(op, left, right):
            a, b = value(left, names), value(right, names)
            return {"+": a + b, "-": a - b, "*": a * b, "/": a / b if b else math.nan}[op]
        case S.Apply(S.Name(id), (argument,)):
            return FUNCTIONS[id](value(argument.value, names))
    raise AssertionError(e)


def said(text: str, names: dict[str, float]) -> float:
    """The value of a formula as it is printed."""
    return value(parse_expression(re.sub("|".join(SPELT), lambda m: SPELT[m[0]], text)), names)


def made(compose: str, gate: str):
    form = "P: [2, d_head] ~ zeros  scores = q @ P.T  delta = z" if "softmax" in compose else "delta = z"
    site = "attn.heads" if "softmax" in compose else "ffn"
    return parse(
        spec(f"method m {{ use {{ modify {site} insert parallel form {{ {form} }} compose {compose} }} as a{gate} }}")
    )


def drawn(panel: Panel, names: dict[str, float], gated: bool) -> float:
    """What the picture computes: delta goes through the boxes behind it and the gate, and meets h at the node."""
    v = names["delta"]  # `delta = z`: every box stands behind delta
    for box in panel.boxes:
        sign, _, rest = box.label.partition(" ")
        if sign in ("·", "+", "−", "/") and rest:
            v = said(f"{v:.17f} {sign} ({rest})" if v >= 0 else f"(0 - {-v:.17f}) {sign} ({rest})", names)
        elif box.kind == "function":
            v = FUNCTIONS[box.label](v)
        else:
            v = said(box.label, names)
    if gated:
        v *= names["g"]
    h = names["h"]
    return {"+": lambda: h + v, "−": lambda: h - v, "×": lambda: h * v, "/": lambda: h / v, "=": lambda: v}[
        panel.node
    ]()


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("compose", SUMS + OTHERS + MIXED)
def test_the_picture_computes_what_the_formula_computes(compose: str, gate: str) -> None:
    method = made(compose, gate)
    (row,), (panel,) = method.rows, diagram(method)
    names = dict(NUMBERS)
    for s in row.compose:
        if isinstance(s, S.Let) and s.names[0] != "out":
            names[s.names[0]] = value(s.value, names)
    out = value(result(row), names)
    meant = names["h"] + names["g"] * (out - names["h"]) if gate else out
    assert value(composition(row).new, names) == pytest.approx(meant)
    assert said(panel.formula.removeprefix("h ← "), names) == pytest.approx(meant)
    assert panel.formula == f"h ← {lines(row)[-1][1]}"
    assert as_latex(method).count(r"\leftarrow") == 1
    assert bool(panel.gate) == bool(gate)
    if compose in MIXED and not gate:
        assert panel.node in ("λ", "∘") and panel.change == "Δ"
        return
    assert drawn(panel, names, bool(gate)) == pytest.approx(meant)
    arrow = said(panel.change, names)
    h = names["h"]
    assert {"+": h + arrow, "−": h - arrow, "×": h * arrow, "/": h / arrow if arrow else 0, "=": arrow}[
        panel.node
    ] == pytest.approx(meant)


def test_a_gated_product_is_drawn_as_the_sum_that_it_is() -> None:
    (panel,) = diagram(made("rescale", " gated by token_gate"))
    assert (panel.node, panel.formula, panel.change) == ("+", "h ← h + g · (h · Δ − h)", "g · (h · Δ − h)")
    assert [b.label for b in panel.boxes] == ["h · Δ − h"]
    (panel,) = diagram(made("share_softmax", " gated by token_gate"))
    assert (
        panel.node == "+"
        and [b.label for b in panel.boxes][-1] == "(1 − λ) · h + λ · Δ − h"
        and any("λ = " in w for w in panel.where)
    )


def test_rows_placed_among_the_tokens_keep_the_functions_name() -> None:
    method = parse(
        "method m { modify embed form { P: [2, d_out] ~ zeros  delta = P } compose prepend(2.0 * delta, h, 1) }"
    )
    (panel,) = diagram(method)
    assert (panel.node, panel.change) == ("prepend", "2.0 · Δ")
    assert [b.label for b in panel.boxes] == ["P", "· 2.0"]
