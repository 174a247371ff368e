"""“Equal” is never said of what differs: pairs that a normal form could confuse, and random pairs judged by numbers."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from names import spec
from numbers_of import distance, outputs

from unipelt.language.syntax import nodes as S
from unipelt.language.analyse.canonical import difference
from unipelt.language.loading import parse
from unipelt.language.syntax.parser import parse_expression
from unipelt.language.syntax.printer import to_text

SQUARE = "A: [d_in, d_out] ~ normal(0.1) B: [d_in, d_in] ~ normal(0.1) "


def form(text: str) -> str:
    return f"method m {{ modify ffn insert parallel form {{ {SQUARE} {text} }} compose h + delta }}"


#: What differs in one thing that a let, an alias, a size or an order could hide.
DIFFERENT = {
    "functions of a number in a let": (form("b = sqrt(layer + 1) delta = b * z @ A"), form("b = exp(layer + 1) delta = b * z @ A")),
    "a condition in a let": (form("b = layer > 1 delta = b * z @ A"), form("b = layer > 2 delta = b * z @ A")),
    "a start's number in a let": (
        form("b = 0.1 * sqrt(layer + 1) C: [d_out] ~ normal(b) delta = z @ A + C"),
        form("b = 0.1 * exp(layer + 1) C: [d_out] ~ normal(b) delta = z @ A + C")),
    "a learning rate in a let": (
        form("b = sqrt(layer + 1) C: [d_out] ~ zeros lr b delta = z @ A + C"),
        form("b = exp(layer + 1) C: [d_out] ~ zeros lr b delta = z @ A + C")),
    "a let bound twice": (form("s = 2 delta = s * z @ A s = 3"), form("s = 3 delta = s * z @ A s = 2")),
    "an alias of a function": (form("f = relu delta = f(z) @ A"), form("f = tanh delta = f(z) @ A")),
    "an alias of a domain": (form("t = tokens delta = mean(z, t) @ A"), form("t = positions delta = mean(z, t) @ A")),
    "an alias of an index": tuple(
        form(f"input a: index(3) input b: index(3) C: [3, d_in] ~ normal(0.1) i = {n} delta = C[i] @ A + 0 * z") for n in "ab"),
    "an argument of the forward pass": (form("delta = z @ A"), form("input a: index(3) delta = z @ A")),
    "the sizes of an argument": tuple(form(f"input a: [{n}, d_in] delta = mean(a, 0) @ A + 0 * z") for n in (3, 4)),
    "two draws and one": (form("d = drop(z, 0.1) delta = d @ A + d @ B"), form("delta = drop(z, 0.1) @ A + drop(z, 0.1) @ B")),
    "two draws are no difference": (form("delta = drop(z, 0.1) @ A - drop(z, 0.1) @ A"), form("delta = z @ A - z @ A")),
    "a divisor of training": (form("delta = z @ A / (1 if training else 2)"), form("delta = z @ A / 2")),
    "a size that is summed away": (form("delta = sum(z - z + 1) * z @ A"), form("c: [3] ~ zeros delta = sum(c - c + 1) * z @ A")),
    "a size inside a function": (form("delta = sum(relu(z - z + 1)) * z @ A"), form("c: [3] ~ zeros delta = sum(relu(c - c + 1)) * z @ A")),
    "a declared axis's size": tuple(
        form(f"axis e = {n} C: [d_in, d_out] ~ normal(0.1) per e delta = z @ sum(C, e)") for n in (3, 4)),
    "a tensor that nothing reads": (form("delta = z @ A"), form("C: [d_in] ~ zeros delta = z @ A")),
    "a tensor that cancels": (form("delta = z @ A"), form("C: [d_in] ~ zeros delta = z @ A + z * C - z * C")),
    "a start made of another tensor": tuple(
        form(f"frozen P: [d_out] ~ {d} C: [d_out] = P delta = z @ A + C") for d in ("zeros", "ones")),
    "a coefficient that is a sum": (
        form("k = (layer + 1) / (layer + 2) delta = (k + 2) * (z @ A)"), form("k = (layer + 1) / (layer + 2) delta = k + 2 * (z @ A)")),
    "products of a vector in the middle": (
        form("c: [d_in] ~ normal(0.1) delta = z * (B @ (A @ c @ A))"), form("c: [d_in] ~ normal(0.1) delta = z * (B @ A @ c @ A)")),
    "rows in layers that overlap": tuple(spec(f"method m {{ {a} {b} }}") for a, b in (
        ("use adapter(3) as a { layers first 2 }", "use parallel_adapter(3) as b { layers last 2 }"),
        ("use parallel_adapter(3) as b { layers last 2 }", "use adapter(3) as a { layers first 2 }"))),
    "a row of one stack among rows of all": tuple(spec(f"method m {{ {a} {b} }}") for a, b in (
        ("use adapter(3) as a { modify ffn }", "use adapter(4) as b { modify decoder.ffn }"),
        ("use adapter(4) as b { modify decoder.ffn }", "use adapter(3) as a { modify ffn }"))),
    "a site named twice": (
        spec("method m { use adapter(3) as a { modify ffn, ffn } }"),
        spec("method m { use adapter(3) as a { modify ffn } use adapter(3) as b { modify ffn } }")),
    "the rate of what is trained twice": (
        "method m { train *.bias lr 2 train block }", "method m { train block train *.bias lr 2 }"),
    "a softmax shared and one written out": tuple(
        spec("method m { use prefix_tuning(3) as a { compose { lam = sigmoid(logsumexp(scores) - log_mass) out = %s } } "
             "use prefix_tuning(4) as b }" % out) for out in ("(1 - lam) * h + lam * delta", "h + lam * (delta - h)")),
    "a softmax shared in some layers": tuple(
        spec("method m { use prefix_tuning(3) as a { layers first 2 compose { lam = sigmoid(logsumexp(scores) - log_mass) out = %s } } "
             "use prefix_tuning(4) as b }" % out) for out in ("(1 - lam) * h + lam * delta", "h + lam * (delta - h)")),
    "a weight that a later edit reads": tuple(
        "method m { use { modify attn.q%s layers first 2 %s form { D: [d_in, d_out] ~ zeros delta = %s } compose h + delta } as a "
        "use { modify attn.q insert parallel form { D: [d_in, d_out] ~ zeros delta = x @ (W * D) } compose h + delta } as b }" % v
        for v in ((".weight", "", "D"), ("", "insert parallel", "z @ D"))),
    "a projection and its weight are two sites": (
        "method m { modify attn.q, attn.q.weight form { b: [d_out] ~ zeros delta = b } compose h + delta }",
        "method m { modify attn.q form { b: [d_out] ~ zeros delta = b } compose x @ (W + b) + bias + delta }"),
    "which of two axes of a size": tuple(
        form(f"axis e = 3 axis f = 3 C: [d_in, d_out] ~ normal(0.1) per e, f delta = z @ sum(sum(softmax(C, e) * sum(C, {n}), e), f)")
        for n in "ef"),
}  # fmt: skip


@pytest.mark.parametrize("what", DIFFERENT)
def test_what_differs_is_not_equal(what):
    a, b = (parse(text) for text in DIFFERENT[what])
    found = difference(a, b)
    assert found is not None and found[1] != found[2] and difference(b, a) is not None
    assert difference(a, a) is None and difference(b, b) is None


SAME = {
    "a let and its value": (form("b = sqrt(layer + 1) delta = b * z @ A"), form("delta = sqrt(layer + 1) * z @ A")),
    "an alias": (form("f = relu t = tokens delta = f(mean(z, t)) @ A"), form("delta = relu(mean(z, tokens)) @ A")),
    "one draw, named or not": (form("d = drop(z, 0.1) delta = 2 * d @ A"), form("d = drop(z, 0.1) delta = d @ A + d @ A")),
    "a dropout of nothing": (form("delta = drop(z, 0.0) @ A"), form("delta = z @ A")),
    "an index and its alias": tuple(
        form(f"input a: index(3) C: [3, d_in] ~ normal(0.1) {i} delta = C[{n}] @ A + 0 * z") for i, n in (("i = a", "i"), ("", "a"))),
    "the order of what trains alike": ("method m { train *.bias train head }", "method m { train head train *.bias, head }"),
    "a site named twice": tuple(spec(f"method m {{ use adapter(3) as a {{ modify {at} }} }}") for at in ("ffn", "ffn, decoder.ffn")),
    "an axis by another name": tuple(
        form(f"axis {e} = 3 C: [d_in, d_out] ~ normal(0.1) per {e} delta = z @ sum(C, {e})") for e in ("expert", "member")),
    "rows of different stacks": tuple(spec(f"method m {{ {a} {b} }}") for a, b in (
        ("use adapter(3) as a { modify encoder.ffn }", "use adapter(4) as b { modify decoder.ffn }"),
        ("use adapter(4) as b { modify decoder.ffn }", "use adapter(3) as a { modify encoder.ffn }"))),
    "LoRA in two stacks, on the weight in one": tuple(
        "method m { use { modify encoder.attn.q insert parallel form { D: [d_in, d_out] ~ zeros delta = z @ D } compose h + delta } as a "
        "use { modify decoder.attn.q%s form { D: [d_in, d_out] ~ zeros delta = %s } compose h + delta } as b }" % v
        for v in ((".weight", "D"), (" insert parallel", "z @ D"))),
    "how a number of layers is written": (spec("method m(k: int = 2) { use adapter { layers first k + 1 } }"), spec("method m { use adapter { layers first 3 } }")),
    "how a rate is written": ("method m { train *.bias lr 2.0 train head lr 1.0 }", "method m { train *.bias lr 2 train head }"),
    "the order of tokens": tuple(spec(f"method m {{ use adapter {{ tokens {t} }} }}") for t in ("first 2, last 1", "last 1, first 2")),
}  # fmt: skip


@pytest.mark.parametrize("what", SAME)
def test_what_is_the_same_is_equal(what):
    a, b = (parse(text) for text in SAME[what])
    assert difference(a, b) is None


def test_a_difference_of_layers_shows_both() -> None:
    a, b = (
        parse(spec(f"method m {{ use adapter {{ {more} }} }}"))
        for more in ("layers last 1 tokens first 2", "modify attn, ffn")
    )
    found = difference(a, b)
    assert found is not None and found[0] == "attn"
    assert found[1].startswith("in layers last 1 tokens first 2: ") and found[2].startswith("everywhere: ")


# ---------------------------------------------------------------- random pairs


class Forms:
    """Random expressions over square matrices and vectors, so that a wrong rearrangement still has its type."""

    def __init__(self, seed: int):
        self.draw = random.Random(seed)

    def vector(self, depth: int) -> str:
        d = self.draw
        if depth == 0:
            return d.choice(["z", "b", "c"])
        v, w = self.vector(depth - 1), self.vector(depth - 1)
        return d.choice([
            f"({v} + {w})", f"({v} - {w})", f"{v} * {w}", f"{v} @ {self.matrix(depth - 1)}", f"{self.number()} * {v}",
            f"{d.choice(['relu', 'tanh'])}({v})", f"sum({v}) * {w}", f"{v} / {self.number()}",
        ])  # fmt: skip

    def matrix(self, depth: int) -> str:
        d = self.draw
        if depth == 0:
            return d.choice(["A", "B", "A.T"])
        m, n = self.matrix(depth - 1), self.matrix(depth - 1)
        return d.choice(
            [f"({m} @ {n})", f"({m} + {n})", f"({m} * {n})", f"({m}).T", f"({m} * b)", f"({self.number()} * {m})"]
        )

    def number(self) -> str:
        return self.draw.choice(
            [
                "2",
                "0.5",
                "(layer + 1)",
                "sqrt(layer + 1)",
                "exp(layer / 4)",
                "max(layer, 2)",
                "(layer + 1) / (layer + 2)",
            ]
        )

    def changed(self, e: S.Expr) -> S.Expr:
        """The expression with some operands exchanged or regrouped: sometimes the same, sometimes not."""

        def change(n):
            if not isinstance(n, S.Binary) or self.draw.random() < 0.5:
                return n
            if n.op in "+*" and self.draw.random() < 0.6:
                return replace(n, left=n.right, right=n.left)
            if isinstance(n.right, S.Binary) and n.right.op == n.op and n.op in "+*@-":
                return replace(n.right, left=replace(n, right=n.right.left), right=n.right.right)
            if isinstance(n.left, S.Binary) and n.left.op == n.op and n.op in "+*@-":
                return replace(n.left, right=replace(n, left=n.left.right))
            if n.op == "@" and isinstance(n.right, S.Binary) and n.right.op == "+":
                return replace(n.right, left=replace(n, right=n.right.left), right=replace(n, right=n.right.right))
            return replace(n, op=self.draw.choice("+-*")) if n.op in "+-*" and self.draw.random() < 0.2 else n

        return S.rewrite(e, change)

    def method(self, text: str) -> str:
        """A method with that delta; parts of it perhaps in lets, tensors perhaps in another order."""
        tensors = [
            "A: [d_in, d_out] ~ normal(0.1)",
            "B: [d_in, d_out] ~ normal(0.2)",
            "b: [d_in] ~ normal(0.1)",
            "c: [d_out] ~ normal(0.2)",
        ]
        self.draw.shuffle(tensors)
        lets = ""
        inner = [n for n in S.walk(parse_expression(text)) if isinstance(n, (S.Apply, S.Binary))]
        if inner and self.draw.random() < 0.5:
            part = self.draw.choice(inner)
            lets = f"n = {to_text(part)} "
            text = to_text(S.rewrite(parse_expression(text), lambda n: S.Name("n") if n == part else n))
        return f"method m {{ modify ffn insert parallel form {{ {' '.join(tensors)} {lets}delta = {text} }} compose h + 2 * delta }}"


def test_random_methods_that_are_said_to_be_equal_are_so_by_number():
    equal, different = 0, 0
    for seed in range(260):
        forms = Forms(seed)
        text = forms.vector(3)
        try:
            one, other = parse(forms.method(text)), parse(forms.method(to_text(forms.changed(parse_expression(text)))))
        except ValueError:  # an exchange that has no type
            continue
        if difference(one, other) is None:
            equal += 1
            assert distance(outputs(one), outputs(other)) < 1e-9, (str(one), str(other))
        else:
            different += 1
    assert equal > 100 and different > 25, (equal, different)
